"""A sketch of a network's matrices: at most 12 x 12 elements of each, enough to tell whether two networks are related.

Which elements is decided by SHA-256 of a matrix's name and shape, so that any two networks of one shape are sampled at
the same places, by every release of every library. Whole rows and columns are chosen, and not single elements, because
a change of low rank, as adapters make, is one of low rank in the sub-matrix, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from registry.hooked_names import BUFFER

N_SAMPLED = 12
N_EXPERTS_SAMPLED = 2
"""Of the experts of a layer, how many that files keep one by one are sampled: there may be thousands."""

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_IN_BLOCK = re.compile(r"(^|\.)\d+\.")
_GROUPED = re.compile(r"\._(W_[KV])$")

Samples = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sketch:
    """The samples of each matrix by name, with the shapes of the tensors that they are of.

    The names are HookedTransformer's, raw where there is such a network, or else the tensors' own. `processing` is what
    weights in hooked layout had gone through.
    """

    shapes: Mapping[str, Shape]
    samples: Mapping[str, Samples]
    processing: tuple[str, ...] = ()

    @property
    def blocks(self) -> list[str]:
        """The names of the matrices in the layers, which every network of its own has otherwise; sorted."""
        return [name for name in sorted(self.samples) if is_in_block(name)]

    @property
    def form(self) -> str:
        """The SHA-256, in hex, of the names and shapes of the matrices in the layers: equal where all compare."""
        listed = [[name, list(self.shapes[name])] for name in self.blocks]
        return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def is_in_block(name: str) -> bool:
    """Say whether a tensor is one of a layer's; embeddings are not."""
    return _IN_BLOCK.search(name) is not None


def name_sampled(name: str, shape: Shape) -> str | None:
    """Return the name under which a tensor is sampled, or None for what is none: vectors, buffers, too many experts."""
    expert = _EXPERT.search(name)
    if BUFFER.fullmatch(name) or (expert and int(expert[1]) >= N_EXPERTS_SAMPLED):
        return None
    if re.search(r"(^|\.)_?b_\w+$", name) or len(shape) < 2 or min(_view(name, shape)) < 2:
        return None
    return _GROUPED.sub(r".\1", name)


def choose_indices(name: str, shape: Shape) -> tuple[NDArray[np.int64], ...]:
    """Return where a tensor is sampled: an index array for each of its axes, all shaped like the sub-matrix."""
    n_rows, n_columns = _view(name, shape)
    rows, columns = (_choose(f"{name} {shape} {which}", n) for which, n in (("row", n_rows), ("column", n_columns)))
    row, column = np.meshgrid(rows, columns, indexing="ij")
    if _has_heads_in_columns(name, shape):  # (heads, d_model, d_head), seen as d_model x (heads * d_head)
        return column // shape[2], row, column % shape[2]
    return (*np.unravel_index(row, shape[:-1]), column)


def pack(sketch: Sketch) -> tuple[bytes, bytes]:
    """Write a sketch as two binary columns: names and shapes, compressed, and the samples in the order of the names."""
    names = sorted(sketch.samples)
    forms = [[name, list(sketch.shapes[name])] for name in names]
    packed = b"".join(np.ascontiguousarray(sketch.samples[name], "<f4").tobytes() for name in names)
    return zlib.compress(json.dumps(forms, separators=(",", ":"), ensure_ascii=False).encode()), packed


def unpack(forms: bytes, samples: bytes, processing: tuple[str, ...] = ()) -> Sketch:
    """Read what `pack` wrote. Raises ValueError if it is not whole."""
    shapes = _read_shapes(forms)
    sizes = {name: sample_size(name, shape) for name, shape in shapes.items()}
    if len(samples) != 4 * sum(rows * columns for rows, columns in sizes.values()):
        raise ValueError("there are more or fewer samples than the shapes need")
    return Sketch(shapes, dict(_split(np.frombuffer(samples, "<f4").astype(np.float32), sizes)), processing)


@lru_cache(maxsize=8)
def _read_shapes(forms: bytes) -> Mapping[str, Shape]:
    """Read names and shapes, which are mostly those of the sketch before."""
    try:
        listed: list[tuple[str, list[int]]] = json.loads(zlib.decompress(forms))
        return {name: tuple(shape) for name, shape in listed}
    except (TypeError, zlib.error) as error:
        raise ValueError(str(error)) from error


def sample_size(name: str, shape: Shape) -> tuple[int, int]:
    """Return the shape of a tensor's sub-matrix."""
    n_rows, n_columns = _view(name, shape)
    return min(n_rows, N_SAMPLED), min(n_columns, N_SAMPLED)


def _split(values: Samples, sizes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Samples]]:
    start = 0
    for name, (rows, columns) in sizes.items():
        yield name, values[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns


def _has_heads_in_columns(name: str, shape: Shape) -> bool:
    return len(shape) == 3 and name.endswith(("attn.W_Q", "attn.W_K", "attn.W_V"))


def _view(name: str, shape: Shape) -> tuple[int, int]:
    """Return the rows and columns of the matrix that a tensor is seen as: one whose rank is that of the change."""
    if _has_heads_in_columns(name, shape):
        return shape[1], shape[0] * shape[2]
    return math.prod(shape[:-1]), shape[-1]


def _choose(seed: str, n: int) -> NDArray[np.int64]:
    """Choose N_SAMPLED different numbers below n, or take all; numpy's generators may change with a release."""
    if n <= N_SAMPLED:
        return np.arange(n)
    chosen: set[int] = set()
    counter = 0
    while len(chosen) < N_SAMPLED:
        digest = hashlib.sha256(f"{seed} {counter}".encode()).digest()
        chosen.add(int.from_bytes(digest[:8], "big") % n)
        counter += 1
    return np.array(sorted(chosen))
