"""Readers against what nobody thought of: mutated bytes, headers of any kind, names and paths of any letters."""

from __future__ import annotations

import json
import os
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES, save_file

from registry import RegistryError
from registry.refs import check_alias_name, check_model_name, check_tag_key, parse_ref
from registry.sources.gguf_header import read_gguf_header
from registry.sources.json_file import read_json_object
from registry.sources.pickle_file import check_pickle_file
from registry.sources.source import SourceOptions
from registry.sources.weight_files import read_weights
from registry.tokenizer_files import check_tokenizer_files
from registry.weights import DTYPE_BYTES, make_header, read_header
from tests.hostile.case import save_whole
from tests.hostile.pickled import TENSORS, save_legacy, save_zip
from tests.hostile.safetensors_files import pack

_QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# --- headers: ours against the library's


def _accepts(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except SafetensorError:
        return False
    return True


def _reads(path: Path) -> bool:
    try:
        read_header(path)
    except RegistryError:
        return False
    return True


_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BYTES, "F4", "Q8", 7]),
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 40) | st.just(2**64), min_size=1, max_size=3),
    },
    optional={"more": st.none()},
)
_HEADER = st.dictionaries(
    st.text(max_size=5) | st.just("__metadata__"), _ENTRY | st.none() | st.just({"a": "b"}), max_size=3
)


@settings(max_examples=500, deadline=None, suppress_health_check=_QUIET)
@given(header=_HEADER, n_bytes=st.integers(0, 48))
def test_what_the_library_rejects_is_never_read(header: dict[str, Any], n_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(json.dumps(header).encode(), bytes(n_bytes)))
    assert _accepts(path) or not _reads(path)


_SHAPES = st.lists(st.integers(0, 4), max_size=4)
_WRITTEN = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20),
    st.tuples(st.sampled_from(sorted(filter(None, _TYPES.values()), key=str)), _SHAPES),
    max_size=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=_QUIET)
@given(written=_WRITTEN)
def test_what_the_library_writes_is_read(written: dict[str, tuple[torch.dtype, list[int]]], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in written.items()}
    tensors.pop("__metadata__", None)
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_header(path)
    assert {name: tuple(one.shape) for name, one in tensors.items()} == {name: one.shape for name, one in found.items()}
    content = make_header((one.name, one.dtype, one.shape, one.size_bytes) for one in found.values())
    path.write_bytes(content + bytes(sum(one.size_bytes for one in found.values())))
    assert read_header(path).keys() == found.keys()


# --- mutations


def _read_tokenizer(path: Path) -> None:
    check_tokenizer_files([path])


_READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": read_header,
    "config.json": read_json_object,
    "tokenizer.json": _read_tokenizer,
    "tokenizer_config.json": _read_tokenizer,
    "model.gguf": read_gguf_header,
    "zip.bin": check_pickle_file,
    "legacy.bin": check_pickle_file,
}


def _find_original(name: str, folder: Path) -> bytes:
    path = folder / name
    if name == "zip.bin":
        save_zip(path, TENSORS)
    elif name == "legacy.bin":
        save_legacy(path, TENSORS)
    else:
        whole = save_whole("gguf" if name == "model.gguf" else "huggingface")
        return (whole if whole.is_file() else whole / name).read_bytes()
    return path.read_bytes()


@pytest.mark.parametrize("name", _READERS)
def test_no_mutation_gives_an_untyped_error(name: str, tmp_path: Path) -> None:
    content, chance, path = _find_original(name, tmp_path), random.Random(name), tmp_path / name
    outcomes = {"read": 0, "refused": 0}
    for _ in range(600):
        mutated = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = int(min(len(mutated), 5000) * chance.random())
            how = chance.randrange(4)
            if how == 0:
                mutated[place] ^= 1 << chance.randrange(8)
            elif how == 1:
                mutated[place : place + 8] = chance.choice((bytes(8), b"\xff" * 8, b"\x7f" * 8))
            elif how == 2:
                del mutated[place : place + chance.randrange(1, 20)]
            else:
                mutated[place:place] = chance.choice((b"{", b"[", b'"', b"\\ud800", b"1e999", b"-", b",", b"\0"))
        path.write_bytes(mutated)
        try:
            _READERS[name](path)
            outcomes["read"] += 1
        except RegistryError as error:
            assert error.message.isprintable() and len(error.message) < 2000
            outcomes["refused"] += 1
    # of these only bounds are checked here; libraries read them, tokenizers's behind a guard and torch in a child
    assert outcomes["refused"] > 50 or name in ("tokenizer.json", "legacy.bin")


# --- names and paths

_OPENED: list[str] = []
_IS_HEARD = [False]


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _IS_HEARD[0] and isinstance(args[0], (str, bytes)):
        _OPENED.append(os.path.realpath(os.fsdecode(args[0])))


sys.addaudithook(_hear)

_PIECES = st.sampled_from(
    [
        "..",
        "/",
        "\\",
        "C:",
        ".",
        "~",
        "%2e",
        "%00",
        "\0",
        "\n",
        "model",
        ".safetensors",
        "outside",
        "/etc/passwd",
        "ﬁ",
        "e\u0301",
        "\u202e",
    ]
)
_PATHS = st.lists(_PIECES | st.text(max_size=3), max_size=8).map("".join)


@settings(max_examples=1000, deadline=None, suppress_health_check=_QUIET)
@given(shards=st.lists(_PATHS, min_size=1, max_size=10))
def test_no_weight_map_leads_out_of_its_folder(shards: list[str], tmp_path: Path) -> None:
    """Ten paths an example: ten thousand in all."""
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (tmp_path / "outside.safetensors").write_bytes(pack({}))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {str(index): shard for index, shard in enumerate(shards)}})
    )
    _OPENED.clear()
    _IS_HEARD[0] = True
    try:
        with pytest.raises(RegistryError):
            read_weights(folder, tmp_path, SourceOptions())
    finally:
        _IS_HEARD[0] = False
    root = os.path.realpath(folder)
    assert all(path.startswith(root + "/") for path in _OPENED), _OPENED


_LETTERS = set(string.ascii_letters + string.digits + "._-/")


@settings(max_examples=3000, deadline=None)
@given(name=_PATHS | st.text())
def test_no_name_is_more_than_plain_letters(name: str) -> None:
    for check, letters in (
        (check_model_name, _LETTERS),
        (check_alias_name, _LETTERS - {"/"}),
        (check_tag_key, _LETTERS),
    ):
        try:
            assert check(name) == name
        except RegistryError as error:
            assert error.message.isprintable()
        else:
            assert name and set(name) <= letters and len(name) <= 200 and name[0] not in "./-"
            assert check is check_tag_key or ".." not in name
    try:
        ref = parse_ref(name)
    except RegistryError as error:
        assert error.message.isprintable()
    else:
        assert ref.model is None or check_model_name(ref.model)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/../b", "/x", "x/", "%2e%2e", "a?b", "a#b", "a;b", "a\0b", "a" * 10_000, "a.", "a ", " a", "a\n",
     "cafe\u0301", "café", "аdmin", "\u202ea", "-rf", "a" * 64, "A/b/c", "a//b", "~", "C:", "a\\b", "a:b", "a@b"],
)  # fmt: skip
def test_names_that_mean_something_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(RegistryError):
        check_model_name(name)
