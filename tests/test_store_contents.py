"""The contents of a store: what is listed, what counts as left over, and what is not deleted any more."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry import Registry
from registry.errors import ArtifactMissing, StoreUnavailable
from registry.store import LocalStore, local_contents
from registry.store.contents import Claim, Contents
from tests.kept import keep, put
from tests.processes import run_code, start


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def _age(path: Path, days: float = 10) -> None:
    """Make a file look as if it had been written long ago; the time of its last change cannot be set."""
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_an_empty_store_has_no_contents(store: LocalStore) -> None:
    contents: Contents = store
    assert list(contents.list_blobs()) == list(contents.list_leftovers()) == contents.list_claims() == []
    assert contents.find_blob("a" * 64) is None
    contents.delete_blob("a" * 64)


def test_blobs_are_listed_with_their_size_and_deleted_by_digest(store: LocalStore, tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    staged = [put(store, tmp_path / str(n), bytes([n]) * n) for n in range(5)]
    (store.root / "blobs" / "ab" / "no-digest").parent.mkdir(exist_ok=True)
    (store.root / "blobs" / "ab" / "no-digest").write_text("somebody else's")
    listed = {blob.digest: blob for blob in store.list_blobs()}
    assert {digest: blob.size_bytes for digest, blob in listed.items()} == {
        one.digest: one.size_bytes for one in staged
    }
    assert all(before < blob.modified_at <= datetime.now(UTC) for blob in listed.values())
    store.delete_blob(staged[3].digest)
    assert store.find_blob(staged[3].digest) is None
    assert len(list(store.list_blobs())) == 4


def test_what_is_relied_on_counts_as_new(store: LocalStore, tmp_path: Path) -> None:
    """A link whose bytes are here already leaves the blob in place: it must not look as old as it is."""
    copied = put(store, tmp_path / "a", b"content")
    _age(store.blob_path(copied.digest))
    assert store.blob_path(copied.digest).stat().st_mtime < time.time() - 86400
    put(store, tmp_path / "b", b"content", link=True)
    assert not store.blob_path(copied.digest).samefile(tmp_path / "b")
    assert store.blob_path(copied.digest).stat().st_mtime > time.time() - 60
    with pytest.raises(ArtifactMissing):
        store.renew(["b" * 64])


def test_bytes_that_were_staged_long_ago_are_new_when_they_are_published(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with store.stage() as folder:
        staged = store.copy_in(tmp_path / "file", folder / "file")
        _age(staged.path)
        store.publish([staged])
    assert store.blob_path(staged.digest).stat().st_mtime > time.time() - 60


def test_another_users_blob_is_replaced_by_a_copy_and_not_by_a_link(store: LocalStore, tmp_path: Path) -> None:
    """Nobody may touch what is another user's, yet it must count as new; a link in its place could be written to."""
    copied = put(store, tmp_path / "a", b"content")
    blob = store.blob_path(copied.digest)
    if os.geteuid() != 0:
        pytest.skip("only root can make a blob another user's")
    for path in (store.root, *store.root.rglob("*"), tmp_path):
        path.chmod(0o777 if path.is_dir() else 0o444)
    inode = blob.stat().st_ino
    code = """
    from pathlib import Path
    from registry.store import LocalStore
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    store, path = LocalStore(Path(values["store"])), Path(values["path"])
    path.write_bytes(b"content")
    with store.stage() as folder:
        store.publish([store.copy_in(path, folder / "b", link=True)])
    """
    for parent in tmp_path.parents:  # pytest's own folders are closed to others
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)
    run_code(code, store=store.root, path=tmp_path / "b")
    assert blob.stat().st_ino != inode
    assert not blob.samefile(tmp_path / "b")
    assert blob.read_bytes() == b"content"


def _hold_staging(root: Path, ready: Path) -> None:
    with LocalStore(root).stage() as folder:
        (folder / "half").write_bytes(b"x" * 100)
        ready.touch()
        time.sleep(60)


def test_what_a_crash_leaves_is_left_over_and_what_is_being_written_is_not(store: LocalStore, tmp_path: Path) -> None:
    process = start(_hold_staging, store.root, tmp_path / "ready")
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    assert list(store.list_leftovers()) == []
    (folder,) = (store.root / "tmp").iterdir()
    process.kill()
    process.join()
    (leftover,) = store.list_leftovers()
    assert (leftover.place, leftover.kind, leftover.size_bytes) == (f"tmp/{folder.name}", "temporary", 100)
    (folder / "half").write_bytes(b"x" * 101)
    assert not store.delete_leftover(leftover)
    (leftover,) = store.list_leftovers()
    assert store.delete_leftover(leftover)
    assert not folder.exists()
    assert not store.delete_leftover(leftover)


def test_a_folder_that_its_maker_takes_away_meanwhile_is_no_fault(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes a folder and finds gc at it, before it is held, deletes it and makes another."""
    folder = store.root / "tmp" / "just-made"
    folder.mkdir(parents=True)
    (leftover,) = store.list_leftovers()
    monkeypatch.setattr(local_contents, "make_folder", lambda path: folder.rmdir())  # the last step before it is moved
    assert not store.delete_leftover(leftover)
    assert not list(store.list_leftovers())


def test_folders_whose_links_dangle_are_left_over(store: LocalStore, tmp_path: Path) -> None:
    a, b = (put(store, tmp_path / name, name.encode()) for name in "ab")
    sound = store.link_folder([("a", a.digest)])
    dangling = store.link_folder([("a", a.digest), ("b", b.digest)])
    store.delete_blob(b.digest)
    (leftover,) = store.list_leftovers()
    assert (leftover.kind, store.root / leftover.place) == ("folder", dangling)
    assert sorted(leftover.digests) == sorted([a.digest, b.digest])
    assert store.delete_leftover(leftover)
    assert not dangling.exists()
    assert sound.is_dir()
    store.check(a.digest, 1)


def test_a_folder_of_links_that_another_gc_takes_meanwhile_is_no_fault(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.link_folder([("file", "0" * 64)])

    def take_first(link: Path) -> Path:
        folder.rename(store.root / "tmp" / "deleted")
        raise FileNotFoundError(link)

    monkeypatch.setattr(Path, "readlink", take_first)
    assert [one for one in store.list_leftovers() if one.kind == "folder"] == []


def test_a_derived_file_without_its_card_is_left_over(store: LocalStore) -> None:
    folder = store.root / "derived" / "ab"
    folder.mkdir(parents=True)
    (folder / "abc.safetensors").write_bytes(b"x" * 7)
    (leftover,) = store.list_leftovers()
    assert (leftover.kind, leftover.size_bytes) == ("derived", 7)
    (folder / "abc.json").write_text("its card came meanwhile")
    assert not store.delete_leftover(leftover)
    assert list(store.list_leftovers()) == []
    (folder / "abc.json").unlink()
    assert store.delete_leftover(leftover)
    assert not (folder / "abc.safetensors").exists()


def test_only_what_is_corrupt_is_moved_aside_and_every_time_it_is_kept(store: LocalStore, tmp_path: Path) -> None:
    staged = put(store, tmp_path / "a", b"content")
    blob = store.blob_path(staged.digest)
    assert store.quarantine(staged.digest, 7) is None
    for content in (b"CONTENT", b"conten"):
        blob.chmod(0o644)
        blob.write_bytes(content)
        aside = store.quarantine(staged.digest, 7)
        assert aside is not None
        assert aside.read_bytes() == content
        with pytest.raises(ArtifactMissing, match="not in"):
            store.check(staged.digest, 7)
        assert store.quarantine(staged.digest, 7) is None
        put(store, tmp_path / "a", b"content")
        store.check(staged.digest, 7)
    assert [(one.kind, one.digests) for one in store.list_leftovers()] == [("quarantined", (staged.digest,))] * 2


def test_a_claim_is_read_as_it_was_written_and_an_altered_one_refused(store: LocalStore) -> None:
    claims = [Claim(f"{n}" * 64, f"sqlite:///{n}.db", "f" * 64) for n in range(3)]
    for claim in claims:
        store.write_claim(Claim(claim.registry_id, "elsewhere", "0" * 64))
        store.write_claim(claim)
    assert store.list_claims() == claims
    path = store.root / "registries" / f"{'1' * 64}.json"
    path.write_text(path.read_text().replace("sqlite", "SQLITE"))
    with pytest.raises(StoreUnavailable, match="altered"):
        store.list_claims()


def test_a_torn_claim_keeps_nobody_from_registering(registry: Registry) -> None:
    keep(registry, "m", b"a")
    (path,) = (registry.store.root / "registries").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreUnavailable, match="altered"):
        registry.plan_gc()
    keep(registry, "m", b"b")
    assert len(registry.store.list_claims()) == 1
    registry.plan_gc()
