"""Stamps: while a file's has not changed its digest stands; whatever is wrong leads to hashing, never to trust."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import ArtifactCorrupt, InvalidInput
from registry.settings import parse_bytes, read_settings
from registry.store import LocalStore
from registry.store.stamps import SETTLED_NS, Stamps, Verify
from tests.processes import run_at_once, run_code

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that is older than any step of a file system's clock."""
    return write_old(tmp_path / "blob", CONTENT)


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    return Stamps(tmp_path / "stamps")


def write_old(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def was_read(stamps: Stamps, path: Path, verify: Verify = "changed", digest: str = DIGEST) -> tuple[bool, bool]:
    """Return whether the file agrees, and whether it was read to say so."""
    read: list[int] = []
    return stamps.agrees(path, digest, verify, read.append), bool(read)


def test_a_file_is_read_once(stamps: Stamps, file: Path) -> None:
    assert was_read(stamps, file) == (True, True)
    assert was_read(stamps, file) == (True, False)
    assert was_read(stamps, file, "always") == (True, True)
    assert was_read(stamps, file, "never") == (True, False)
    assert was_read(stamps, file, digest="0" * 64) == (False, True)  # the stamp is for one digest
    assert was_read(Stamps(None), file) == was_read(Stamps(None), file) == (True, True)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"W")


def _overwrite_and_restore_times(path: Path) -> None:
    before = path.stat()
    _overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    beside = path.with_name("beside")
    shutil.copy2(path, beside)
    _overwrite_and_restore_times(beside)
    beside.replace(path)


@pytest.mark.parametrize("alter", [_overwrite, _overwrite_and_restore_times, _replace])
def test_what_was_altered_is_read_again(stamps: Stamps, file: Path, alter: Callable[[Path], None]) -> None:
    assert was_read(stamps, file) == (True, True)
    size = file.stat().st_size
    alter(file)
    assert file.stat().st_size == size
    assert was_read(stamps, file) == (False, True)
    assert was_read(stamps, file, "never") == (True, False)


def test_a_copied_store_is_read_again(stamps: Stamps, file: Path) -> None:
    """As from another machine: the same path, bytes and times, but another inode."""
    assert was_read(stamps, file) == (True, True)
    shutil.copy2(file, file.with_name("moved"))
    file.with_name("moved").replace(file)
    assert was_read(stamps, file) == (True, True)
    assert was_read(stamps, file) == (True, False)


def test_a_young_file_is_not_trusted(stamps: Stamps, tmp_path: Path) -> None:
    """A second write within one step of the clock would leave no trace."""
    young = tmp_path / "young"
    young.write_bytes(CONTENT)
    assert was_read(stamps, young) == was_read(stamps, young) == (True, True)
    future = time.time_ns() + 10**12
    os.utime(young, ns=(future, future))
    assert was_read(stamps, young) == was_read(stamps, young) == (True, True)
    past = time.time_ns() - SETTLED_NS - 10**9
    os.utime(young, ns=(past, past))
    assert was_read(stamps, young) == (True, True)
    assert was_read(stamps, young) == (True, False)


def test_the_clock_of_this_file_system_has_steps_below_what_counts_as_young(tmp_path: Path) -> None:
    path, seen = tmp_path / "clock", []
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        path.write_bytes(b"")
        seen.append(path.stat().st_mtime_ns)
    steps = [later - sooner for sooner, later in itertools.pairwise(seen) if later != sooner]
    assert steps and max(steps) < SETTLED_NS / 2


def test_a_file_that_is_written_while_it_is_hashed_is_not_stamped(stamps: Stamps, file: Path) -> None:
    stamps.agrees(file, DIGEST, advance=lambda _: _overwrite_and_restore_times(file))
    assert was_read(stamps, file) == (False, True)


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[" * 10**5, b"\xff\x00", b"null", b"[]", b'{"path": 1}'])
def test_a_damaged_stamp_is_no_stamp(stamps: Stamps, file: Path, tmp_path: Path, rubbish: bytes) -> None:
    was_read(stamps, file)
    (stamp,) = [path for path in (tmp_path / "stamps").rglob("*") if path.is_file()]
    stamp.write_bytes(rubbish)
    assert was_read(stamps, file) == (True, True)
    assert was_read(stamps, file) == (True, False)  # and it is written again


def test_every_part_of_a_stamp_counts(stamps: Stamps, file: Path, tmp_path: Path) -> None:
    was_read(stamps, file)
    (stamp,) = [path for path in (tmp_path / "stamps").rglob("*") if path.is_file()]
    whole = json.loads(stamp.read_bytes())
    for name, value in whole.items():
        stamp.write_text(json.dumps(whole | {name: value + 1 if isinstance(value, int) else value[:-1] + "x"}))
        assert was_read(stamps, file) == (True, True), name


def test_where_nothing_can_be_remembered_every_file_is_read(file: Path, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_bytes(b"")
    stamps = Stamps(tmp_path / "in the way")
    assert was_read(stamps, file) == was_read(stamps, file) == (True, True)
    code = """
        from pathlib import Path
        from registry.store.stamps import Stamps
        os.makedirs(values["folder"])
        os.chmod(values["folder"], 0o500)
        stamps, read = Stamps(Path(values["folder"])), []
        assert all(stamps.agrees(Path(values["file"]), values["digest"], "changed", read.append) for _ in range(2))
        print(len(read), os.listdir(values["folder"]))
    """
    assert run_code(code, with_rights=False, folder=tmp_path / "closed", file=file, digest=DIGEST) == ["2 []"]


def _stamp_all(index: int, folder: Path, files: list[Path]) -> int:
    stamps = Stamps(folder)
    return sum(was_read(stamps, file, digest=hashlib.sha256(file.name.encode()).hexdigest())[0] for file in files)


def test_many_processes_stamp_at_once(tmp_path: Path) -> None:
    files = [write_old(tmp_path / f"{index}", f"{index}".encode()) for index in range(40)]
    folder = tmp_path / "stamps"
    assert run_at_once(_stamp_all, folder, files, n=6) == [40] * 6
    stamps = Stamps(folder)
    for file in files:
        assert was_read(stamps, file, digest=hashlib.sha256(file.name.encode()).hexdigest()) == (True, False)
    assert sum(path.is_file() for path in folder.rglob("*")) == 40  # nothing is left beside


def test_a_store_reads_a_blob_once(tmp_path: Path, stamps: Stamps) -> None:
    store = LocalStore(tmp_path / "store", stamps)
    blob = store.blob_path(DIGEST)
    blob.parent.mkdir(parents=True)
    write_old(blob, CONTENT)
    read: list[int] = []
    for _ in range(2):
        store.check(DIGEST, len(CONTENT), verify="changed", advance=read.append)
    assert len(read) == 1
    store.check(DIGEST, len(CONTENT), advance=read.append)
    assert len(read) == 2
    _overwrite_and_restore_times(blob)
    store.check(DIGEST, len(CONTENT), verify="never")
    with pytest.raises(ArtifactCorrupt, match="was altered"):
        store.check(DIGEST, len(CONTENT), verify="changed")


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENSREG_STAMPS", str(tmp_path))
    monkeypatch.setenv("LENSREG_CACHE_BYTES", "1.5 GB")
    settings = read_settings()
    assert settings.stamps.parent == tmp_path and settings.derived_bytes == 1_500_000_000
    monkeypatch.delenv("LENSREG_CACHE_BYTES")
    monkeypatch.delenv("LENSREG_STAMPS")
    settings = read_settings()
    assert settings.derived_bytes is None and settings.stamps.is_relative_to(Path.home() / ".cache")
    assert [parse_bytes(text) for text in ("0", "7", "20kB", "3M", "2TB")] == [0, 7, 20_000, 3_000_000, 2 * 10**12]
    for text in ("", "many", "-1", "1 XB", "1e3"):
        with pytest.raises(InvalidInput, match="no number of bytes"):
            parse_bytes(text)
    from registry.load_options import read_verify  # it imports torch, which the processes of these tests do without

    with pytest.raises(InvalidInput, match="always, changed, never"):
        read_verify("sometimes")
