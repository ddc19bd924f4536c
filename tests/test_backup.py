"""Backups: one moment of a registry while others write to it, whole by itself, never in place of something else."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from cli.main import main
from registry import Registry, backup
from registry.errors import ArtifactCorrupt, InvalidInput, StoreUnavailable
from tests.faults.invariant import find_breaches
from tests.kept import keep
from tests.records import record


def _list(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_backup_opens_as_a_registry(registry: Registry, tmp_path: Path) -> None:
    keep(registry, "m", b"a", b"b")
    registry.set_alias("m@best", "m@v1")
    stages: list[tuple[str, int, int]] = []
    done = registry.backup(tmp_path / "backup.db", progress=lambda *one: stages.append(one))
    assert done.path == tmp_path / "backup.db"
    assert (done.n_events, done.head) == (2, registry.events_head().digest)
    assert done.size_bytes == done.path.stat().st_size == stages[-1][1] == stages[-1][2]
    assert stat.S_IMODE(done.path.stat().st_mode) == 0o600
    assert [name for name in _list(tmp_path) if "backup" in name] == ["backup.db"]
    restored = Registry(str(done.path), registry.store.root)
    assert find_breaches(restored, ["m@v1"]) == []
    assert restored.resolve("m@best").ref == "m@v1"
    keep(restored, "m", b"c")
    restored.close()


def test_a_backup_is_of_one_moment_while_others_write(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps somebody else writes; the copy neither begins again nor mixes before and after."""
    monkeypatch.setattr(backup, "_PAGES", 2)
    record(registry, "first")
    head = registry.events_head()
    other = Registry(str(tmp_path / "registry.db"), registry.store.root)
    steps = []

    def write_between(stage: str, done: int, total: int) -> None:
        steps.append(done)
        if len(steps) < 20:
            record(other, "busy")

    done = registry.backup(tmp_path / "backup.db", progress=write_between)
    assert steps == sorted(steps)
    assert len(steps) > 15
    assert (done.n_events, done.head) == (head.n_events, head.digest)
    copy = Registry(str(done.path), registry.store.root)
    assert copy.verify_events(since=head.digest) is None
    assert [model.name for model in copy.models()] == ["first"]
    assert len(other.history("busy")) == 19
    copy.close()
    other.close()


def test_backups_can_be_made_beside_a_busy_thread(registry: Registry, tmp_path: Path) -> None:
    record(registry, "first")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            record(registry, "busy")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        backups = [registry.backup(tmp_path / f"{n}.db") for n in range(3)]
    finally:
        stop.set()
        writer.join()
    assert all(registry.verify_events(since=done.head) is None for done in backups)


def test_nothing_is_overwritten(registry: Registry, tmp_path: Path) -> None:
    record(registry, "m")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for target in (tmp_path / "file", tmp_path / "dangling", tmp_path / "registry.db"):
        with pytest.raises(InvalidInput, match="there already"):
            registry.backup(target)
    assert (tmp_path / "file").read_text() == "mine"
    folder = tmp_path / "backups"
    folder.mkdir()
    paths = {registry.backup(folder).path for _ in range(3)}
    assert {path.name for path in paths} == set(_list(folder))
    assert len(paths) == 3
    with pytest.raises(StoreUnavailable):
        registry.backup(tmp_path / "file" / "below" / "a-file.db")


def test_with_its_store_a_backup_is_a_whole_registry(registry: Registry, tmp_path: Path) -> None:
    keep(registry, "m", b"a" * 10, b"b" * 20)
    folder = tmp_path / "backups"
    done = registry.backup(folder, with_store=True)
    assert (done.store, done.n_blobs, done.blob_bytes) == (folder / "store", 2, 30)
    keep(registry, "m", b"c" * 30)
    again = registry.backup(folder, with_store=True)
    assert (again.n_blobs, again.blob_bytes) == (1, 30)
    for one, refs in ((done, ["m@v1"]), (again, ["m@v1", "m@v2"])):
        copy = Registry(str(one.path), folder / "store")
        assert find_breaches(copy, refs) == []
        copy.close()
    copy = Registry(str(again.path), folder / "store")
    assert copy.plan_gc().size_bytes == 0  # the newest of them owns the store
    blob = next(iter(registry.store.list_blobs())).digest
    assert not copy.store.blob_path(blob).samefile(registry.store.blob_path(blob))
    copy.close()


def test_a_corrupt_blob_is_not_backed_up_as_if_it_were_whole(registry: Registry, tmp_path: Path) -> None:
    (a,) = keep(registry, "m", b"content")
    blob = registry.store.blob_path(a.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"CONTENT")
    with pytest.raises(ArtifactCorrupt, match=a.digest):
        registry.backup(tmp_path / "backups", with_store=True)
    assert _list(tmp_path / "backups") == ["store"]
    keep(registry, "again", b"content")
    assert registry.backup(tmp_path / "backups", with_store=True).n_blobs == 1


def test_postgres_is_left_to_its_own_tool(fresh_postgres: str, tmp_path: Path) -> None:
    registry = Registry(
        fresh_postgres.replace("postgresql+psycopg://postgres:", "postgresql+psycopg://postgres:secret")
    )
    with pytest.raises(InvalidInput, match="Postgres") as refused:
        registry.backup(tmp_path / "dump")
    assert f"pg_dump --format=custom --file={tmp_path / 'dump'} 'postgresql://" in str(refused.value.hint)
    assert "secret" not in str(refused.value)
    registry.close()


def test_the_command_prints_where_it_is(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LENSREG_URL", str(tmp_path / "registry.db"))
    monkeypatch.setenv("LENSREG_STORE", str(registry.store.root))
    keep(registry, "m", b"content")
    (tmp_path / "backups").mkdir()
    for arguments in ([], ["--with-store", "--output", "json"]):
        with pytest.raises(SystemExit) as left:
            main(["backup", str(tmp_path / "backups"), *arguments])
        assert left.value.code == 0
        out = capsys.readouterr().out
        path = Path(json.loads(out)["path"] if arguments else out.strip())
        assert path.parent == tmp_path / "backups"
        assert path.is_file()
