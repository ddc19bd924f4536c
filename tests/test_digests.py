"""One pass over a stream gives what hashing it, and each range of it, by itself gives, and passes the bytes on."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import Registry, digests
from registry.digests import CHUNK_BYTES, Range, digest_stream
from registry.weights import digest_file

MB = 2**20


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cut(size: int, cuts: list[int], dropped: list[bool]) -> list[Range]:
    """Make ranges, some without bytes, that cover a stream but for what is dropped."""
    edges = sorted([0, size, *(cut % (size + 1) for cut in cuts)])
    ranges = [(start, end - start) for start, end in itertools.pairwise(edges)]
    return [one for number, one in enumerate(ranges) if not (dropped and dropped[number % len(dropped)])]


@given(
    size=st.integers(0, 300),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    dropped=st.lists(st.booleans(), max_size=7),
    seed=st.integers(0, 99),
)
def test_ranges_that_cross_chunks_have_their_digests(
    size: int, cuts: list[int], dropped: list[bool], seed: int
) -> None:
    content = random.Random(seed).randbytes(size)
    ranges = _cut(size, cuts, dropped)
    chooser = random.Random(seed)
    chooser.shuffle(ranges)
    written = io.BytesIO()
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "CHUNK_BYTES", chooser.choice([1, 7, 64]))
        stream: Any = io.BytesIO(content)
        found = digest_stream(stream, ranges, lambda chunk: written.write(bytes(chunk)), done.append)
    assert found.whole == _hash(content)
    assert found.ranges == {(start, n): _hash(content[start : start + n]) for start, n in ranges}
    assert written.getvalue() == content
    assert sum(done) == size


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 9 * CHUNK_BYTES + 5])
def test_chunks_of_the_size_that_is_used(size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    ranges = [(0, size // 3), (size // 3, size - size // 3)]
    found = digest_stream(io.BytesIO(content), ranges)  # type: ignore[arg-type]
    assert found.whole == _hash(content)
    assert found.ranges == {(start, n): _hash(content[start : start + n]) for start, n in ranges}
    (tmp_path / "file").write_bytes(content)
    assert digest_file(tmp_path / "file") == found.whole


def test_a_range_that_the_stream_does_not_reach_has_no_digest() -> None:
    found = digest_stream(io.BytesIO(b"abcdef"), [(0, 2), (4, 3), (7, 1)])  # type: ignore[arg-type]
    assert found.ranges == {(0, 2): _hash(b"ab")}


def test_what_goes_wrong_while_writing_is_not_swallowed() -> None:
    def fail(chunk: memoryview) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        digest_stream(io.BytesIO(bytes(20 * MB)), [(0, 20 * MB)], fail)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_registering_reads_every_tensor_once(
    registry: Registry, make_checkpoint: Callable[..., Path], name: str
) -> None:
    """The digests that are taken while copying are those of a dry run, which reads the tensors by themselves."""
    source = make_checkpoint(name, max_shard_size="100KB")
    stages: set[str] = set()

    def note(stage: str, done: int, total: int) -> None:
        stages.add(stage)

    options: dict[str, Any] = {"parity": "skip", "progress": note}
    dry = registry.register("it", source, dry_run=True, **options)
    assert "hashing" in stages
    stages.clear()
    done = registry.register("it", source, **options)
    assert "copying" in stages
    assert "hashing" not in stages
    assert done.weights_digest == dry.weights_digest
