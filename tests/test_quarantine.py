"""Quarantine: what is corrupt is moved aside by an explicit act, kept while needed, and healed by registering."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from cli.main import main
from registry import Registry
from registry.errors import ArtifactMissing
from tests.faults.invariant import find_breaches
from tests.kept import keep, put

NOW = timedelta(0)


def _corrupt(registry: Registry, digest: str, content: bytes = b"CORRUPT") -> Path:
    blob = registry.store.blob_path(digest)
    blob.chmod(0o644)
    blob.write_bytes(content)
    return blob


def test_corrupt_blobs_are_moved_aside_and_healed_by_registering(any_registry: Registry) -> None:
    a, _ = keep(any_registry, "m", b"content", b"whole")
    blob = _corrupt(any_registry, a.digest)
    found = any_registry.verify(read_data=True)
    assert blob.exists()  # verifying changes nothing
    (moved,) = any_registry.quarantine(found)
    assert (moved.digest, moved.versions) == (a.digest, ("m@v1",))
    assert Path(moved.place).read_bytes() == b"CORRUPT"
    with pytest.raises(ArtifactMissing, match="not in") as refused:
        any_registry.store.check(a.digest, 7)
    assert "Register the same source again" in str(refused.value.hint)
    (event,) = any_registry.events(action="blob.quarantined")
    assert event.subject == f"sha256:{a.digest}"
    assert event.details["versions"] == ["m@v1"]

    # still needed: gc works, and keeps it, as it may be the last copy
    plan = any_registry.plan_gc(grace=NOW)
    assert (plan.blobs, plan.leftovers, plan.n_needed) == ((), (), 1)
    keep(any_registry, "again", b"content")
    assert find_breaches(any_registry, ["m@v1", "again@v1"]) == []
    assert any_registry.plan_gc().n_young == 1
    assert any_registry.gc(any_registry.plan_gc(grace=NOW)).n_leftovers == 1
    assert not Path(moved.place).exists()


def test_a_blob_that_was_healed_meanwhile_is_not_moved(registry: Registry, tmp_path: Path) -> None:
    (a,) = keep(registry, "m", b"content")
    _corrupt(registry, a.digest)
    found = registry.verify(read_data=True)
    put(registry.store, tmp_path / "a", b"content")
    assert registry.quarantine(found) == []
    registry.store.check(a.digest, 7)


def test_a_quarantined_blob_of_which_only_another_corrupt_copy_is_back_stays(registry: Registry) -> None:
    (a,) = keep(registry, "m", b"content")
    _corrupt(registry, a.digest)
    registry.quarantine(registry.verify(read_data=True))
    _corrupt(registry, keep(registry, "again", b"content")[0].digest, b"corrupt")
    assert registry.gc(registry.plan_gc(grace=NOW)).n_leftovers == 0
    registry.quarantine(registry.verify(read_data=True))
    kinds = [leftover.kind for leftover in registry.store.list_leftovers()]
    assert kinds.count("quarantined") == 2


def test_the_command_moves_aside_what_it_finds(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LENSREG_URL", str(tmp_path / "registry.db"))
    monkeypatch.setenv("LENSREG_STORE", str(registry.store.root))
    (a,) = keep(registry, "m", b"content")
    blob = _corrupt(registry, a.digest)
    for arguments in (["verify"], ["verify", "--quarantine"], ["verify", "--read-data"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == (3 if "--read-data" in arguments else 0)
        assert blob.exists()
    with pytest.raises(SystemExit) as left:
        main(["verify", "--read-data", "--quarantine"])
    assert left.value.code == 3
    assert f"moved aside: {registry.store.root / 'quarantine' / a.digest}.0" in capsys.readouterr().err
    assert not blob.exists()
