"""The part of the child that puts torch's distributed checkpoints together, tensor by tensor.

torch reads their metadata with pickle.load, and whatever is no tensor with weights_only=False. So the metadata are read
here, with an allow-list, and checked before torch's loader gets them; and it is asked for tensors only.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load

from registry.errors import MalformedArtifact, RegistryError, SourceError
from registry.sources.nests import find_weights
from registry.sources.pickle_file import printable
from registry.sources.unpickle import DTYPES, check_name, explain, write_tensors
from registry.sources.wrappers import find_prefix

_METADATA = ".metadata"
_PIECE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\.distcp")
_CLASSES = (
    metadata.Metadata,
    metadata.TensorStorageMetadata,
    metadata.TensorProperties,
    metadata.ChunkStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    filesystem._StoragePrefix,
    torch.Size,
    OrderedDict,
    PosixPath,
    PurePosixPath,
)
# what metadata may ask for, by the module and the name in the pickle
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(one.__module__, one.__qualname__): one for one in _CLASSES},
    **{("torch", str(one).removeprefix("torch.")): one for one in vars(torch).values() if isinstance(one, torch.dtype)},
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): PosixPath,
    ("pathlib._local", "PosixPath"): PosixPath,
}


@dataclass(frozen=True)
class _Stored:
    """A tensor as the metadata describe it: `key` is its name there, and each chunk has offsets and sizes."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Reader(filesystem.FileSystemReader):
    """torch's reader of pieces, with metadata that have been checked."""

    def __init__(self, folder: Path, checked: metadata.Metadata) -> None:
        super().__init__(folder)
        self._checked = checked

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Return what was checked instead of unpickling it."""
        return self._checked


def convert_distributed(task: Mapping[str, Any]) -> dict[str, Any]:
    """Write the weights of a distributed checkpoint as one safetensors file."""
    folder = Path(task["folder"])
    try:
        found = _read_metadata(folder)
        weights = find_weights(_make_tree(found), lambda value: isinstance(value, _Stored), folder.name)
        for name, stored in weights.tensors.items():
            check_name(folder.name, name)
            _check_stored(folder, found, stored)
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:  # objects without their fields
        raise _malformed(folder, f"they are damaged ({type(error).__name__})") from error
    reader = _Reader(folder, found)
    prefix = find_prefix(weights.tensors)
    write_tensors(
        Path(task["target"]),
        [(name, stored.dtype, stored.shape) for name, stored in weights.tensors.items()],
        lambda name: _load(folder, reader, weights.tensors[name]),
        prefix,
    )
    return {"prefix": prefix, "left_out": [printable(name) for name in weights.left_out[:20]]}


class _Unpickler(pickle.Unpickler):
    """Unpickles nothing but what torch's metadata are made of."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class, or refuse."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _ALLOWED[module, name]


def _read_metadata(folder: Path) -> metadata.Metadata:
    with (folder / _METADATA).open("rb") as file:
        try:
            found = _Unpickler(file).load()
        except MemoryError:
            raise
        except Exception as error:  # a damaged pickle leads to any error of the classes that are allowed
            raise explain(_METADATA, error) from error
    if not isinstance(found, metadata.Metadata) or not isinstance(found.state_dict_metadata, dict):
        raise _malformed(folder, "they are not torch's")
    if getattr(found, "storage_meta", None) is None:
        found.storage_meta = metadata.StorageMeta()
    return found


def _make_tree(found: metadata.Metadata) -> dict[Any, Any]:
    """Nest the tensors as they were saved, `...` standing for whatever is no tensor."""
    paths = found.planner_data or {}
    tree: dict[Any, Any] = {}
    for key, entry in found.state_dict_metadata.items():
        *nest, name = paths.get(key, (key,))
        branch = tree
        for part in nest:
            branch = branch.setdefault(part, {})
        branch[name] = _describe(key, entry) if isinstance(entry, metadata.TensorStorageMetadata) else ...
    return tree


def _describe(key: str, entry: metadata.TensorStorageMetadata) -> _Stored:
    chunks = tuple((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks)
    return _Stored(key, tuple(entry.size), entry.properties.dtype, chunks)


def _check_stored(folder: Path, found: metadata.Metadata, stored: _Stored) -> None:
    """Check that the chunks make up the tensor exactly, and that the pieces have bytes enough for it.

    torch fills an empty tensor: where no chunk is, what the memory held before would stay.
    """
    boxes = stored.chunks
    if stored.dtype not in DTYPES:
        raise _malformed(folder, f"{printable(stored.key)} has the dtype {stored.dtype}")
    numbers = [*stored.shape, *(number for box in boxes for numbers in box for number in numbers)]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise _malformed(folder, f"the shape of {printable(stored.key)} makes no sense")
    inside = all(
        len(offsets) == len(sizes) == len(stored.shape)
        and all(offset + size <= length for offset, size, length in zip(offsets, sizes, stored.shape, strict=True))
        for offsets, sizes in boxes
    )
    covered = sum(math.prod(sizes) for _, sizes in boxes)
    if not inside or covered != math.prod(stored.shape) or _overlap(boxes):
        raise _malformed(folder, f"the chunks of {printable(stored.key)} do not make up the tensor")
    n_bytes = sum(_check_piece(folder, found, stored.key, offsets) for offsets, _ in boxes)
    if stored.size_bytes > n_bytes:
        raise _malformed(folder, f"{printable(stored.key)} claims {stored.size_bytes:,} bytes and has {n_bytes:,}")


def _check_piece(folder: Path, found: metadata.Metadata, key: str, offsets: tuple[int, ...]) -> int:
    """Check where a chunk is said to be, and return how many bytes it has there."""
    place = found.storage_data[metadata.MetadataIndex(key, offsets)]
    if not isinstance(place.relative_path, str) or not _PIECE.fullmatch(place.relative_path):
        raise _malformed(folder, f"they name {printable(place.relative_path)[:80]!r}, which is no file of this folder")
    path = folder / place.relative_path
    if not path.is_file():
        raise _malformed(folder, f"the piece {place.relative_path} is missing")
    if place.offset < 0 or place.length < 0 or place.offset + place.length > path.stat().st_size:
        raise _malformed(folder, f"{place.relative_path} is shorter than they say")
    if getattr(place, "transform_descriptors", None):
        raise _malformed(folder, f"{place.relative_path} is compressed, and such pieces are not read")
    length: int = place.length
    return length


def _overlap(boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Say whether two chunks share a number; one per rank, so comparing all of them is quick enough."""
    return any(
        all(a < b + n and b < a + m for a, m, b, n in zip(offsets, sizes, others, lengths, strict=True))
        for index, (offsets, sizes) in enumerate(boxes)
        for others, lengths in boxes[:index]
        if math.prod(sizes) and math.prod(lengths)
    )


def _load(folder: Path, reader: _Reader, stored: _Stored) -> torch.Tensor:
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    try:
        load({stored.key: tensor}, storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # torch wraps whatever a damaged piece leads to in an error of its own
        raise explain(f"{folder.name}: {printable(stored.key)}", error.__cause__ or error) from error  # type: ignore[arg-type]
    return tensor


def _malformed(folder: Path, what: str) -> RegistryError:
    return MalformedArtifact(
        f"The metadata of {folder.name} cannot be used: {what}.",
        hint="Copy or save the checkpoint again, with all of its pieces.",
    )
