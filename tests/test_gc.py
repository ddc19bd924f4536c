"""`gc`: what no version needs is deleted, what any needs is not, and nothing at all when something is not as it was."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from cli.main import main
from registry import Registry
from registry.errors import (
    ArtifactMissing,
    InvalidInput,
    SchemaTooNew,
    StoreInconsistent,
    StoreNotOwned,
    StoreUnavailable,
)
from registry.ownership import change_with_blobs
from registry.settings import parse_duration
from registry.store import StagedFile
from tests.faults.invariant import find_breaches
from tests.kept import keep, put
from tests.processes import needs_mounts, run_code

NOW = timedelta(0)
GRACE = timedelta(seconds=2)  # longer than a busy machine takes from one line to the next


@pytest.fixture
def kept(any_registry: Registry) -> Registry:
    """Three versions, one of them retired, that share a blob."""
    keep(any_registry, "m", b"shared", b"a" * 50)
    keep(any_registry, "m", b"shared", b"b" * 60)
    keep(any_registry, "other", b"c" * 70, link=True)
    any_registry.retire("m@v1")
    return any_registry


def _digests(registry: Registry) -> set[str]:
    return {blob.digest for blob in registry.store.list_blobs()}


def test_there_is_nothing_to_delete_of_what_versions_need(kept: Registry) -> None:
    """A retired version needs its blobs as any other: it can be restored."""
    plan = kept.plan_gc(grace=NOW)
    assert (plan.blobs, plan.leftovers, plan.size_bytes, plan.n_young) == ((), (), 0, 0)
    done = kept.gc(plan)
    assert (done.n_blobs, done.n_leftovers, done.size_bytes, done.n_skipped) == (0, 0, 0, 0)
    assert find_breaches(kept, ["m@v1", "m@v2", "other@v1"]) == []
    assert not kept.events(action="store.collected")


def test_a_fresh_registry_has_nothing_to_delete(any_registry: Registry) -> None:
    assert any_registry.gc(any_registry.plan_gc()).n_blobs == 0


def test_a_store_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Registry(str(tmp_path / "registry.db"), tmp_path / "file") as registry:
        with pytest.raises(StoreUnavailable, match="cannot be used: Not a directory"):
            registry.plan_gc()
        (found,) = [one for one in registry.doctor() if one.check == "store folder"]
    assert found.state == "fault" and "is no folder" in found.found


def test_what_no_version_needs_is_shown_and_deleted(kept: Registry, tmp_path: Path) -> None:
    orphan = put(kept.store, tmp_path / "orphan", b"orphan" * 10)
    folder = kept.store.link_folder([("orphan", orphan.digest)])
    (kept.store.root / "tmp" / "crashed").mkdir()
    (kept.store.root / "tmp" / "crashed" / "half").write_bytes(b"x" * 100)
    (kept.store.root / "derived" / "ab").mkdir(parents=True)
    (kept.store.root / "derived" / "ab" / "k.safetensors").write_bytes(b"y" * 1000)
    before = _digests(kept)

    plan = kept.plan_gc(grace=NOW)
    assert [(blob.digest, blob.size_bytes) for blob in plan.blobs] == [(orphan.digest, 60)]
    assert [(one.kind, one.size_bytes) for one in plan.leftovers] == [("derived", 1000), ("temporary", 100)]
    assert plan.size_bytes == 1160
    assert _digests(kept) == before

    done = kept.gc(plan)
    assert (done.n_blobs, done.n_leftovers, done.size_bytes, done.n_skipped) == (1, 3, 1160, 0)
    assert _digests(kept) == before - {orphan.digest}
    assert not folder.exists()
    assert list((kept.store.root / "tmp").iterdir()) == []
    assert find_breaches(kept, ["m@v1", "m@v2", "other@v1"]) == []
    (event,) = kept.events(action="store.collected")
    assert event.details["blobs"] == 1
    assert event.details["leftovers"] == {"derived": 1, "folder": 1, "temporary": 1}
    assert event.details["size_bytes"] == 1160
    assert kept.plan_gc(grace=NOW).size_bytes == 0


def test_leftovers_that_are_other_names_of_one_blob_go_with_it(kept: Registry, tmp_path: Path) -> None:
    """Registrations that are killed just before they replace a blob leave those."""
    orphan = put(kept.store, tmp_path / "orphan", b"orphan")
    for name in ("crashed", "crashed-too"):
        (kept.store.root / "tmp" / name).mkdir()
        (kept.store.root / "tmp" / name / "old").hardlink_to(kept.store.blob_path(orphan.digest))
    time.sleep(0.02)  # the file system's clock is that coarse; that one is deleted has to show in the others' times
    done = kept.gc(kept.plan_gc(grace=NOW))
    assert (done.n_blobs, done.n_leftovers, done.n_skipped) == (1, 2, 0)
    assert list((kept.store.root / "tmp").iterdir()) == []


def _wait_out_the_grace() -> None:
    time.sleep(GRACE.total_seconds() + 0.1)


def test_what_is_younger_than_the_grace_stays(kept: Registry, tmp_path: Path) -> None:
    put(kept.store, tmp_path / "orphan", b"orphan")
    (kept.store.root / "tmp" / "crashed").mkdir()
    plan = kept.plan_gc()
    assert (plan.blobs, plan.leftovers, plan.n_young) == ((), (), 2)
    _wait_out_the_grace()
    put(kept.store, tmp_path / "younger", b"younger")
    plan = kept.plan_gc(grace=GRACE)
    assert (len(plan.blobs), len(plan.leftovers), plan.n_young) == (1, 1, 1)
    with pytest.raises(InvalidInput):
        kept.plan_gc(grace=timedelta(seconds=-1))


def test_a_plan_does_not_delete_what_has_come_to_be_needed(kept: Registry, tmp_path: Path) -> None:
    orphans = [put(kept.store, tmp_path / "orphan", content) for content in (b"1", b"2", b"3")]
    _wait_out_the_grace()
    plan = kept.plan_gc(grace=GRACE)
    assert len(plan.blobs) == 3
    keep(kept, "late", b"1")
    _wait_out_the_grace()  # so that only the row keeps it
    kept.store.renew([orphans[1].digest])  # somebody relies on it and has not come to his rows yet
    done = kept.gc(plan)
    assert (done.n_blobs, done.n_skipped) == (1, 2)
    assert kept.store.find_blob(orphans[2].digest) is None
    kept.store.check(orphans[1].digest, 1)
    assert find_breaches(kept, ["late@v1"]) == []


def test_a_registration_whose_blobs_were_deleted_under_it_is_refused(kept: Registry, tmp_path: Path) -> None:
    """The grace makes sure that this does not happen; without it, no version may come to be that lacks its blobs."""
    staged = put(kept.store, tmp_path / "file", b"content")
    kept.gc(kept.plan_gc(grace=NOW))
    written: list[object] = []
    with pytest.raises(ArtifactMissing, match=staged.digest):
        change_with_blobs(kept.database, kept.store, {staged.digest: staged.size_bytes}, written.append)
    assert written == []


def test_weights_that_were_left_elsewhere_and_are_here_anyway_stay(kept: Registry) -> None:
    """A version names them, and fetching them only looks whether they are there."""
    keep(kept, "lazy", b"to be fetched")
    with kept.database.write() as connection:
        connection.execute(text("UPDATE versions SET weights_digest = NULL WHERE family = 'gpt2' AND id = 4"))
    assert kept.plan_gc(grace=NOW).blobs == ()


# --- refusals --------------------------------------------------------------------------------------------------


def _delete(registry: Registry, blob: Path) -> None:
    blob.unlink()


def _truncate(registry: Registry, blob: Path) -> None:
    blob.chmod(0o644)
    os.truncate(blob, 3)


def _break_chain(registry: Registry, blob: Path) -> None:
    with registry.database.write() as connection:
        connection.execute(text("UPDATE events SET actor = 'mallory' WHERE sequence = 2"))


@pytest.mark.parametrize("damage", [_delete, _truncate, _break_chain])
def test_nothing_is_deleted_when_something_is_wrong(
    kept: Registry, tmp_path: Path, damage: Callable[[Registry, Path], None]
) -> None:
    put(kept.store, tmp_path / "orphan", b"orphan")
    plan = kept.plan_gc(grace=NOW)
    (file, *_) = kept.version("m@v1").files  # also of a version that is retired
    damage(kept, kept.store.blob_path(file.digest))
    before = _digests(kept)
    with pytest.raises(StoreInconsistent, match="Nothing was deleted"):
        kept.plan_gc(grace=NOW)
    with pytest.raises(StoreInconsistent):
        kept.gc(plan)
    assert _digests(kept) == before


def test_another_registrys_store_is_refused(kept: Registry, tmp_path: Path) -> None:
    """A team's blobs must survive whoever gives the wrong --registry."""
    before = _digests(kept)
    stranger = Registry(str(tmp_path / "stranger.db"), kept.store.root)
    with pytest.raises(StoreNotOwned, match="never registered"):
        stranger.plan_gc(grace=NOW)
    keep(stranger, "mine", b"mine")
    for registry in (stranger, kept):
        for adopt in (False, True):
            with pytest.raises(StoreNotOwned, match="another registry") as refused:
                registry.plan_gc(grace=NOW, adopt=adopt)
            assert len(refused.value.registries) == 1
    assert _digests(kept) > before
    stranger.close()
    Path(refused.value.hint.rpartition(": ")[2]).unlink()  # type: ignore[union-attr]
    (blob,) = kept.plan_gc(grace=NOW).blobs
    assert blob.size_bytes == len(b"mine")


def test_a_store_that_nobody_claims_has_to_be_adopted(kept: Registry, tmp_path: Path) -> None:
    put(kept.store, tmp_path / "orphan", b"orphan")
    shutil.rmtree(kept.store.root / "registries")
    with pytest.raises(StoreNotOwned, match="whose blobs") as refused:
        kept.plan_gc(grace=NOW)
    assert "--adopt" in str(refused.value.hint)
    assert kept.gc(kept.plan_gc(grace=NOW, adopt=True)).n_blobs == 1
    assert kept.plan_gc(grace=NOW).blobs == ()


def test_a_registry_that_was_restored_from_a_backup_deletes_nothing_it_has_forgotten(
    registry: Registry, tmp_path: Path
) -> None:
    keep(registry, "m", b"before")
    registry.backup(tmp_path / "backup.db")
    keep(registry, "m", b"after")
    before = _digests(registry)
    restored = Registry(str(tmp_path / "backup.db"), registry.store.root)
    with pytest.raises(StoreNotOwned, match="older one"):
        restored.plan_gc(grace=NOW)
    assert _digests(registry) == before
    keep(restored, "m", b"after")
    assert restored.gc(restored.plan_gc(grace=NOW, adopt=True)).n_blobs == 0
    assert find_breaches(restored, ["m@v1", "m@v2"]) == []
    restored.close()


def test_a_registry_with_a_newer_schema_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    keep(registry, "m", b"a")
    with registry.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newer = Registry(str(tmp_path / "registry.db"), registry.store.root)
    with pytest.raises(SchemaTooNew):
        newer.plan_gc(grace=NOW)
    newer.close()


def test_what_cannot_be_deleted_is_said_and_what_was_deleted_is_recorded(registry: Registry, tmp_path: Path) -> None:
    keep(registry, "m", b"a")
    digests = sorted(put(registry.store, tmp_path / "orphan", bytes([n])).digest for n in range(3))
    stuck = registry.store.blob_path(digests[1])
    stuck.unlink()
    stuck.mkdir()  # which no permissions are needed for, and which cannot be unlinked either
    with pytest.raises(StoreUnavailable):
        registry.gc(registry.plan_gc(grace=NOW))
    (event,) = registry.events(action="store.collected")
    assert event.details["blobs"] == 1
    stuck.rmdir()
    assert registry.gc(registry.plan_gc(grace=NOW)).n_blobs == 1
    assert find_breaches(registry, ["m@v1"]) == []


# --- the command -----------------------------------------------------------------------------------------------


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.fixture
def orphan(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagedFile:
    """A blob that nobody needs, beside one that somebody does, in the registry that the command opens."""
    monkeypatch.setenv("LENSREG_URL", str(tmp_path / "registry.db"))
    monkeypatch.setenv("LENSREG_STORE", str(registry.store.root))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    keep(registry, "m", b"needed")
    return put(registry.store, tmp_path / "orphan", b"orphan")


def test_the_command_shows_the_plan_and_asks(
    orphan: StagedFile, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, "gc")
    assert (code, out) == (0, "")
    assert "There is nothing to delete" in err
    assert "1 more are younger than 1d" in err
    code, out, err = _run(capsys, "gc", "--grace", "0s", "--dry-run")
    assert code == 0
    assert orphan.digest[:12] in out
    assert "no version names it" in out
    assert _run(capsys, "gc", "--grace", "0s")[0] == 1  # nobody is there to answer
    assert registry.store.find_blob(orphan.digest) is not None
    code, out, err = _run(capsys, "gc", "--grace", "0s", "--yes")
    assert code == 0
    assert "1 blobs and 0 leftovers deleted" in err
    assert registry.store.find_blob(orphan.digest) is None
    assert find_breaches(registry, ["m@v1"]) == []


def test_the_command_prints_json(orphan: StagedFile, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "gc", "--grace", "0s", "--yes", "--output", "json")
    said = json.loads(out)
    assert code == 0
    assert [(row["what"], row["name"], row["size_bytes"]) for row in said["rows"]] == [("blob", orphan.digest, 6)]
    assert said["carried_out"] == {"n_blobs": 1, "leftovers": {}, "size_bytes": 6, "n_skipped": 0}
    said = json.loads(_run(capsys, "gc", "--dry-run", "--output", "json")[1])
    assert (said["carried_out"], said["rows"]) == (None, [])
    code, _, err = _run(capsys, "gc", "--grace", "soon")
    assert code == 1
    assert "no duration" in err


@pytest.mark.parametrize(("written", "seconds"), [("0s", 0), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_durations_are_read_as_people_write_them(written: str, seconds: float) -> None:
    assert parse_duration(written).total_seconds() == seconds


# --- a full disk -----------------------------------------------------------------------------------------------

FULL = """
from datetime import timedelta
from pathlib import Path
from registry import Registry
from registry.errors import StorageFull
from tests.faults.invariant import find_breaches
from tests.kept import keep, put

home = Path(values["home"])
registry = Registry(str(home / "registry.db"), home / "store")
keep(registry, "m", b"a" * 100)
put(registry.store, home / "orphan", b"o" * 50_000)
registry.close()
filler = os.open(home / "filler", os.O_WRONLY | os.O_CREAT)
for size in (4096, 1):
    try:
        while True:
            os.write(filler, b"x" * size)
    except OSError:
        pass

registry = Registry(str(home / "registry.db"), home / "store")
for call in (registry.models, registry.verify, lambda: registry.version("m"), lambda: keep(registry, "m", b"b")):
    try:
        call()
        print("worked")
    except StorageFull as error:
        print("lensreg gc" in error.hint)
plan = registry.plan_gc(grace=timedelta(0))
print(len(plan.blobs), plan.size_bytes)
if values["decline"]:
    registry.close()
    print((home / "registry.db.ballast").stat().st_size)
    plan = registry.plan_gc(grace=timedelta(0))
print(registry.gc(plan).n_blobs)
print((home / "registry.db.ballast").stat().st_size)
print(find_breaches(registry, ["m@v1"]), registry.events()[0].action)
registry.close()
"""


@needs_mounts
@pytest.mark.parametrize("decline", [False, True])
def test_a_full_disk_is_made_room_on(tmp_path: Path, decline: bool) -> None:
    """With room for nothing, not even SQLite can read; every command says so, and gc works all the same."""
    home = tmp_path / "home"
    home.mkdir()
    mounts = f"mount -t tmpfs -o size=2m tmpfs {home}"
    said = run_code(FULL, mounts=mounts, home=home, decline=decline)
    declined = ["262144"] if decline else []
    assert said == ["True"] * 4 + ["1 50000", *declined, "1", "262144", "[] store.collected"]
