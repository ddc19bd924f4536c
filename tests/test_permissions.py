"""Who can read and write what a registry makes: its user alone, or those with whom the folder is shared."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry import Registry
from registry.load_options import UnverifiedVersion
from registry.permissions import make_file, make_folder
from tests.records import record


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Whatever the user's umask is, it decides nothing."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _fill(folder: Path, checkpoint: Path) -> None:
    """Make everything that a registry makes: rows, blobs, a folder of links, derived files, a note, stamps."""
    registry = Registry(str(folder / "data" / "registry.db"), folder / "store")
    registry.register("m", checkpoint, parity="skip")
    with pytest.warns(UnverifiedVersion):
        registry.load("m")
    registry.path("m")
    _check_sidecars(folder / "data")
    registry.close()


def _check_sidecars(folder: Path) -> None:
    modes = {path.name: _mode(path) for path in folder.iterdir()}
    names = {"registry.db", *(f"registry.db{end}" for end in ("-wal", "-shm", ".lock", ".lock.next", ".ballast"))}
    assert set(modes) == names
    assert len(set(modes.values())) == 1, modes


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _list(folder: Path) -> dict[Path, int]:
    return {path: _mode(path) for path in folder.rglob("*") if not path.is_symlink()}


def _is_frozen(path: Path, store: Path) -> bool:
    return path.is_relative_to(store) and (path.relative_to(store).parts[0] == "blobs" or path.suffix == ".safetensors")


def test_everything_is_for_the_user_alone(
    umask: int, tmp_path: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENSREG_STAMPS", str(tmp_path / "home" / "stamps"))
    checkpoint = make_checkpoint("gpt2")
    home = tmp_path / "home"
    _fill(home, checkpoint)
    modes = {home: _mode(home), **_list(home)}
    folders = {path for path in modes if path.is_dir()}
    assert {modes[path] for path in folders} == {0o700}
    frozen = {path for path in modes.keys() - folders if _is_frozen(path, home / "store")}
    assert {modes[path] for path in frozen} == {0o400}
    assert {modes[path] for path in modes.keys() - folders - frozen} == {0o600}
    kinds = {path.relative_to(home).parts[:2] for path in modes}
    assert {("store", "blobs"), ("store", "derived"), ("store", "folders"), ("store", "tmp")} <= kinds
    assert any(path.name == "registry.db.lock" for path in modes)


@pytest.mark.parametrize("shared", [0o2770, 0o2775, 0o2750], ids=oct)
def test_in_a_shared_folder_everything_is_shared_alike(
    umask: int, shared: int, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    home = tmp_path / "team"
    home.mkdir()
    home.chmod(shared)
    if os.geteuid() == 0:
        os.chown(home, -1, 4242)
        home.chmod(shared)  # which changing the group took away
    _fill(home, make_checkpoint("gpt2"))
    store = home / "store"
    for path, mode in _list(home).items():
        if path.is_relative_to(store / "tmp") and path != store / "tmp":
            continue
        expected = shared if path.is_dir() else shared & (0o444 if _is_frozen(path, store) else 0o666)
        assert mode == expected, path
        assert path.stat().st_gid == home.stat().st_gid, path


def test_what_is_being_written_is_never_for_others(tmp_path: Path) -> None:
    """Not even in a shared store: whoever could swap a file there between check and use would have its way."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o2777)
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    with registry.store.stage() as staging:
        assert _mode(staging) & 0o777 == 0o700
    registry.close()


def test_a_folder_that_is_there_keeps_its_permissions(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o775)  # by a umask, as it is usual: no decision to share
    make_folder(home / "a" / "b")
    make_file(home / "a" / "b" / "file")
    make_file(home / "file")
    assert _list(home) == {
        home / "a": 0o700,
        home / "a" / "b": 0o700,
        home / "a" / "b" / "file": 0o600,
        home / "file": 0o600,
    }
    assert _mode(home) == 0o775


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o640)
    make_file(tmp_path / "file")
    assert (_mode(tmp_path / "file"), (tmp_path / "file").read_text()) == (0o640, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_many_threads_make_one_file_and_no_lock_of_theirs_is_lost(tmp_path: Path) -> None:
    """A descriptor of the database that is closed under its own name would take SQLite's locks away."""
    refs: list[str] = []

    def work() -> None:
        registry = Registry(str(tmp_path / "registry.db"), tmp_path)
        refs.append(record(registry, "m").ref)
        registry.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refs) == [f"m@v{number}" for number in range(1, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "registry.db",
        "registry.db.ballast",
        "registry.db.lock",
        "registry.db.lock.next",
    ]
