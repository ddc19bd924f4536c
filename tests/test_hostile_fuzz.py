"""Readers against what nobody thought of: mutated bytes, headers of any kind, names and paths of any letters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import string
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from registry.weights import DTYPE_BYTES, make_header, read_header
from tests.checkpoints import edit_config
from tests.hostile.case import ACCEPTED
from tests.hostile.fuzz.judging import open_world, warm_up
from tests.hostile.fuzz.kinds import KINDS, World
from tests.hostile.fuzz.paths import PATHS, find_ways_out, hear_opens
from tests.hostile.fuzz.plain import differ_as_networks
from tests.hostile.fuzz.running import fuzz, make_table
from tests.hostile.fuzz.sources import list_bases
from tests.hostile.safetensors_files import pack

pytestmark = pytest.mark.filterwarnings("ignore")  # of what reads such files
SEED = 20261127
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


# --- mutations: a few of the hundred thousand that `make fuzz` judges


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    before = tempfile.tempdir, os.environ.get("TOKENIZERS_PARALLELISM")
    tempfile.tempdir, os.environ["TOKENIZERS_PARALLELISM"] = str(folder), "false"  # forks
    yield folder
    tempfile.tempdir = before[0]
    os.environ.pop("TOKENIZERS_PARALLELISM") if before[1] is None else os.environ.update(
        TOKENIZERS_PARALLELISM=before[1]
    )


def test_mutated_files_are_refused_with_a_typed_error_or_are_what_they_say(home: Path) -> None:
    verdicts = fuzz(SEED, 200, home, jobs=2)
    assert [one for one in verdicts if one.fault] == []
    assert [one.number for one in verdicts] == list(range(200))
    assert {one.kind for one in verdicts} == {one.name for one in KINDS}
    assert sum(one.said != ACCEPTED for one in verdicts) > 120
    assert sum(one.is_compared for one in verdicts) > 8
    assert "| **all** | 200 |" in make_table(verdicts)


def _die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(*arguments: object) -> None:
    raise KeyError("not typed")


def _leave(world: World, *arguments: object) -> None:
    Path(tempfile.mkdtemp()).touch()


def _take_memory(*arguments: object) -> None:
    assert len(b"x" * 2**29) == 2**29


def _leave_free_memory() -> bytes:
    """Leave more than is taken above to malloc, unused; below what is returned, so that it cannot be given back."""
    bytes(b"x" * (31 * 2**20))  # freed, and so malloc takes blocks up to this size from its heap from now on
    blocks = [b"x" * 2**24 for _ in range(48)]
    return blocks.pop()


FAULTY: dict[str, tuple[Callable[..., object], str]] = {
    "dies": (_die, "met signal 9"),
    "raises": (_raise, "KeyError"),
    "leaves": (_leave, "left in the folder for temporary files"),
    "takes memory": (_take_memory, "memory grew by"),
    "is wrong": (lambda *arguments: "base@v1", "the step is 7, and"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_what_is_wrong_is_found(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the verdicts above would prove little. Cases behind the one at which a process dies are judged, too."""
    act, said = FAULTY[name]
    step = replace(
        KINDS[0], name="trainer-state", hand_over=act, compare=lambda *_: "the step is 7, and said is 8", each=1
    )
    warm_up()  # with the real kinds: it hands over one of each in this process
    pin = _leave_free_memory()  # as after thousands of tests: what a case takes of it is taken, too
    monkeypatch.setattr("tests.hostile.fuzz.judging.KINDS", (step,))
    verdicts = fuzz(SEED, 3, home, jobs=1)
    assert [one.number for one in verdicts] == [0, 1, 2]
    assert [one.fault for one in verdicts if said not in one.fault] == []
    assert len(list((home / "findings").glob("*.txt"))) >= 3
    del pin


def test_a_tensor_with_other_numbers_is_seen(home: Path, tmp_path: Path) -> None:
    """What is registered is compared with the folder: here with one whose weights are another's."""
    registry = open_world(warm_up(), tmp_path / "world").registry
    source = list_bases("config")[0]
    ref = registry.register("other", source, parity="skip").version.ref  # type: ignore[union-attr]
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    assert differ_as_networks(registry, ref, folder) is None
    edit_config(folder, layer_norm_epsilon=0.3)
    found = differ_as_networks(registry, ref, folder)
    registry.close()
    assert found is not None and "computes something else" in found


# --- names and paths


def test_no_name_and_no_path_leads_elsewhere() -> None:
    ways = find_ways_out(SEED, 1500)
    assert ways.breaches == []
    assert sum(ways.tried.values()) > 1400 and min(ways.tried.values()) > 40 and ways.n_opened > 500


@pytest.mark.parametrize("what", ["secret.json", "../secret.json"])
def test_what_is_opened_elsewhere_is_heard(tmp_path: Path, what: str) -> None:
    (tmp_path / "secret.json").touch()
    (tmp_path / "root").mkdir()
    with hear_opens(tmp_path / "root") as heard:
        (tmp_path / what if "/" not in what else Path(what)).read_bytes()
        (tmp_path / "root" / "x").touch()
    assert heard.outside == [str(tmp_path / "secret.json")] and heard.n_opened == 2


_LETTERS = set(string.ascii_letters + string.digits + "._-/")


@settings(max_examples=2000, deadline=None)
@given(name=PATHS | st.text())
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
