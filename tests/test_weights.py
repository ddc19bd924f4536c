"""Weights as bytes: the header parser agrees with the format's own library, and digests mean what they should."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from registry.errors import MalformedArtifact
from registry.weights import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    TensorHeader,
    digest_file,
    digest_tensors,
    digest_weights,
    read_header,
)

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

letters = st.characters(categories=["L", "N", "P"], include_characters="._")
names = st.text(letters, min_size=1, max_size=24).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
# name -> (dtype, shape)
layouts = st.dictionaries(names, st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), shapes), max_size=6)
# for metadata without any entry, safetensors 0.8.0 writes a file that it cannot read itself
metadatas = st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=1, max_size=3)
property_test = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_tensors(layout: dict[str, tuple[str, tuple[int, ...]]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (dtype, shape) in layout.items():
        numbers = torch.randint(0, 2, (*shape, DTYPE_BYTES[dtype]), generator=generator, dtype=torch.uint8)
        tensors[name] = numbers.view(TORCH_DTYPES[dtype]).reshape(shape)
    return tensors


def write_raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a file by hand: what the library would never write."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def digest(*files: Path) -> str:
    headers: dict[str, TensorHeader] = {}
    for file in files:
        headers |= read_header(file)
    return digest_weights(headers, digest_tensors(headers.values()))


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


# --- the header


@property_test
@given(layouts, metadatas)
def test_the_header_is_read_as_the_library_reads_it(
    tmp_path: Path, layout: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    tensors = make_tensors(layout)
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    header = read_header(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(header) == set(file.keys())
        for name, one in header.items():
            theirs = file.get_slice(name)
            assert (one.dtype, list(one.shape)) == (theirs.get_dtype(), list(theirs.get_shape()))
            mine = content[one.start : one.start + one.size_bytes]
            assert mine == tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert one.n_parameters == math.prod(one.shape) and one.file == tmp_path / "x.safetensors"


@property_test
@given(layouts.filter(bool), st.data())
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(
    tmp_path: Path, layout: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    """Never an untyped error, and never a laxer eye than the library's."""
    file = tmp_path / "x.safetensors"
    save_file(make_tensors(layout), file)
    content = bytearray(file.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header_end - 1))
        match data.draw(st.sampled_from(["set", "drop", "insert", "cut"])):
            case "set":
                content[place] = data.draw(st.integers(0, 255))
            case "drop":
                del content[place]
            case "insert":
                content.insert(place, data.draw(st.sampled_from(list(b'{}[]",:0123456789 x\xff'))))
            case "cut":
                del content[place + 1 :]
        header_end = min(header_end, len(content))
        if not content:
            break
    file.write_bytes(content)
    try:
        header = read_header(file)
    except MalformedArtifact as error:
        assert error.code == "malformed-artifact" and str(file) == error.fields["path"]
    else:
        with safetensors.safe_open(file, "pt") as theirs:
            assert {name: list(one.shape) for name, one in header.items()} == {
                name: list(theirs.get_slice(name).get_shape())
                for name in theirs.keys()  # noqa: SIM118
            }


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}
DEEP = b"{" + b'"a":{' * 100_000 + b"}" * 100_001


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ([], b"", "not JSON"),
        (b"null", b"", "not JSON"),
        (b"", b"", "not JSON"),
        (b'{"a"', b"", "not JSON"),
        (b' {"a":' + json.dumps(entry(0, 8)).encode() + b"}", bytes(8), "not JSON"),
        (b'{"\xff": 1}', b"", "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "not JSON"),
        (DEEP, b"", "nested too deeply"),
        (json.dumps({"a": entry(0, 8), "b": entry(0, 8)}).replace('"b"', '"a"').encode(), bytes(8), "twice"),
        (b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "twice"),
        ({"a": 1}, b"", "entry of a"),
        ({"a": {"dtype": "F32", "shape": [0]}}, b"", "entry of a"),
        ({"a": {**entry(0, 8), "evil": 1}}, bytes(8), "entry of a"),
        ({"a": entry(0, 8, dtype="F31")}, bytes(8), "unknown dtype"),
        ({"a": {**entry(0, 8), "dtype": ["F32"]}}, bytes(8), "unknown dtype"),
        ({"a": {**entry(0, 8), "dtype": None}}, bytes(8), "unknown dtype"),
        ({"a": {**entry(0, 8), "shape": "2"}}, bytes(8), "shape of a"),
        ({"a": entry(0, 8, [-2])}, bytes(8), "shape of a"),
        ({"a": entry(0, 8, [2.0])}, bytes(8), "shape of a"),  # type: ignore[list-item]
        ({"a": entry(0, 8, [True, 2])}, bytes(8), "shape of a"),
        ({"a": entry(0, 8, [2**62])}, bytes(8), "shape of a"),
        ({"a": entry(0, 8, [2] * 5000)}, bytes(8), "shape of a"),
        ({"a": entry(0, 8, [2**61, 2**61])}, bytes(8), "but 8 bytes"),
        ({"a": entry(0, 8, [3])}, bytes(8), "but 8 bytes"),
        ({"a": entry(0, 8, [1])}, bytes(8), "but 8 bytes"),
        ({"a": {**entry(0, 8), "data_offsets": [8, 0]}}, bytes(8), "place of a"),
        ({"a": {**entry(0, 8), "data_offsets": [0]}}, bytes(8), "place of a"),
        ({"a": {**entry(0, 8), "data_offsets": [0, 4, 8]}}, bytes(8), "place of a"),
        ({"a": {**entry(0, 8), "data_offsets": None}}, bytes(8), "place of a"),
        ({"": entry(0, 8)}, bytes(8), "name is empty"),
        ({"a\x00b": entry(0, 8)}, bytes(8), "control characters"),
        ({"a\x1b[31m": entry(0, 8)}, bytes(8), "control characters"),
        ({"a\u202eb": entry(0, 8)}, bytes(8), "control characters"),
        ({"x" * 600: entry(0, 8)}, bytes(8), "too long"),
        (GOOD, bytes(15), "truncated"),
        (GOOD, bytes(17), "follow the last tensor"),
        ({}, b"PK\x03\x04", "follow the last tensor"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), "hole"),
        ({"a": entry(4, 12)}, bytes(12), "hole"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "overlap"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "overlap"),
        ({"__metadata__": 5}, b"", "metadata"),
        ({"__metadata__": None}, b"", "metadata"),
        ({"__metadata__": {"format": 5}}, b"", "metadata"),
        ({"__metadata__": [["format", "pt"]]}, b"", "metadata"),
    ],
)  # fmt: skip
def test_what_the_format_forbids_is_refused(header: object, data: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedArtifact, match=why):
        read_header(write_raw(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("length", [0, 1, 2**10, MAX_HEADER_BYTES + 1, 2**62, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(MalformedArtifact):
        read_header(write_raw(tmp_path / "x.safetensors", GOOD, bytes(16), length=length))


@pytest.mark.parametrize("n_bytes", range(9))
def test_a_file_too_short_for_a_header_is_refused(n_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x02" + bytes(n_bytes))
    with pytest.raises(MalformedArtifact):
        read_header(tmp_path / "x.safetensors")


def test_a_file_with_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((2**30).to_bytes(8, "little") + b"{")
        file.truncate(2**30 + 8)  # sparse: it takes no space
    with pytest.raises(MalformedArtifact, match="claims 1,073,741,824 bytes"):
        read_header(tmp_path / "x.safetensors")


def test_more_tensors_than_any_network_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedArtifact, match="200,001 tensors"):
        read_header(write_raw(tmp_path / "x.safetensors", dict.fromkeys(map(str, range(200_001)))))


# --- digests


@property_test
@given(layouts.filter(bool), st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_weights_digest_does_not_depend_on_order_or_shards(
    tmp_path: Path, layout: dict[str, tuple[str, tuple[int, ...]]], chance: Any, n_shards: int
) -> None:
    """The library sorts by dtype and name, so another order is written by hand."""
    tensors = make_tensors(layout)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    whole = digest(tmp_path / "x.safetensors")

    order = list(tensors)
    chance.shuffle(order)
    header, data = {}, b""
    for name in order:
        content = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype, shape = layout[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    assert digest(write_raw(tmp_path / "shuffled.safetensors", header, data)) == whole

    shards = []
    for index in range(n_shards):
        shards.append(tmp_path / f"{index}.safetensors")
        save_file({name: tensors[name] for name in order[index::n_shards]}, shards[-1])
    assert digest(*reversed(shards)) == whole


@property_test
@given(layouts.filter(lambda layout: any(math.prod(shape) for _, shape in layout.values())), st.data())
def test_one_flipped_bit_changes_the_weights_digest(
    tmp_path: Path, layout: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(make_tensors(layout), file)
    before = digest(file)
    headers = read_header(file)
    content = bytearray(file.read_bytes())
    start = min(one.start for one in headers.values())
    place = data.draw(st.integers(start, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    changed = {name for name, one in headers.items() if one.start <= place < one.start + one.size_bytes}
    assert len(changed) == 1
    assert digest(file) != before


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: {"b": a}, id="renamed"),
        pytest.param(lambda a: {"a": a.view(torch.int32)}, id="the same bytes as another dtype"),
        pytest.param(lambda a: {"a": a.reshape(3, 2)}, id="the same bytes in another shape"),
        pytest.param(lambda a: {"a": a.reshape(6)}, id="flat"),
        pytest.param(lambda a: {"a": a, "b": torch.zeros(0)}, id="an empty tensor more"),
        pytest.param(lambda a: {}, id="a tensor less"),
        pytest.param(lambda a: {"a": a.bfloat16()}, id="rounded"),
        pytest.param(lambda a: {"a": -a}, id="negated"),
    ],
)
def test_another_network_has_another_weights_digest(
    change: Callable[[torch.Tensor], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    save_file({"a": tensor}, tmp_path / "x.safetensors")
    save_file({name: one.contiguous() for name, one in change(tensor).items()}, tmp_path / "y.safetensors")
    assert digest(tmp_path / "x.safetensors") != digest(tmp_path / "y.safetensors")


def test_metadata_are_no_weights(tmp_path: Path) -> None:
    for index, metadata in enumerate([None, {"format": "pt"}, {"step": "7"}]):
        save_file({"a": torch.ones(3)}, tmp_path / f"{index}.safetensors", metadata=metadata)
    assert len({digest(file) for file in tmp_path.iterdir()}) == 1


def test_the_weights_digest_is_what_its_definition_says(tmp_path: Path) -> None:
    """It is recorded for ever, so another release must come to the same."""
    save_file({"b": torch.ones(2, 3), "a": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    zero, ones = bytes(2), struct.pack("<6f", *[1.0] * 6)
    lines = [
        f"a BF16 1 {hashlib.sha256(zero).hexdigest()}",
        f"b F32 2,3 {hashlib.sha256(ones).hexdigest()}",
    ]
    expected = hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()
    assert digest(tmp_path / "x.safetensors") == expected


def test_every_byte_is_counted_as_it_is_hashed(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3_000_000), "b": torch.zeros(7)}, tmp_path / "x.safetensors")
    headers, steps = read_header(tmp_path / "x.safetensors"), []
    digests = digest_tensors(headers.values(), steps.append)
    assert digests["a"] == hashlib.sha256(bytes(12_000_000)).hexdigest()
    assert sum(steps) == 12_000_028 and len(steps) > 3
    steps.clear()
    content = (tmp_path / "x.safetensors").read_bytes()
    assert digest_file(tmp_path / "x.safetensors", steps.append) == hashlib.sha256(content).hexdigest()
    assert sum(steps) == len(content)
