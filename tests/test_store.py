"""The store: what was put in comes out unchanged, or is refused by its digest; no fault leaves a version half there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry import Registry
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    SourceNotFound,
    StorageError,
    StoreUnavailable,
)
from registry.store import LocalStore, StagedFile, folder_locks, linked_folders, local
from tests.damaged_blobs import FAULTS, list_store, swap
from tests.kept import put
from tests.places import find_other_file_system
from tests.processes import needs_mounts, run_code

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


# --- in and out ------------------------------------------------------------------------------------------------

SIZES = [0, 1, 4095, 4 * 2**20 - 1, 4 * 2**20, 4 * 2**20 + 1]


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_come_out_as_they_went_in(store: LocalStore, tmp_path: Path, size: int, link: bool) -> None:
    content = random.Random(size).randbytes(size)
    digest = hashlib.sha256(content).hexdigest()
    done: list[int] = []
    (tmp_path / "file").write_bytes(content)
    with store.stage() as folder:
        staged = store.copy_in(tmp_path / "file", folder / "file", link=link, advance=done.append)
        assert (staged.digest, staged.size_bytes, sum(done)) == (digest, size, size)
        with pytest.raises(ArtifactMissing):
            store.check(digest, size)
        store.publish([staged])
    path = store.check(digest, size, advance=done.append)
    assert path == store.blob_path(digest)
    assert path.read_bytes() == content == (tmp_path / "file").read_bytes()
    assert sum(done) == 2 * size
    assert list_store(store.root / "tmp") == []


def test_a_copy_is_its_own_and_read_only(store: LocalStore, tmp_path: Path) -> None:
    staged = put(store, tmp_path / "file", b"content")
    blob = store.blob_path(staged.digest)
    assert blob.stat().st_mode & 0o777 == 0o400
    assert blob.stat().st_nlink == 1
    (tmp_path / "file").write_bytes(b"CONTENT")
    assert blob.read_bytes() == b"content"


def test_the_same_content_is_kept_once(store: LocalStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(store, tmp_path / name, b"content")
    put(store, tmp_path / "d", b"other")
    assert len([path for path in (store.root / "blobs").rglob("*") if path.is_file()]) == 2


def test_a_replaced_blob_is_not_freed_before_the_new_name_has_reached_the_disk(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.blob_path(put(store, tmp_path / "file", b"content").digest)
    sync, links = local.sync, []

    def sync_and_look(path: Path) -> None:
        if path == old.parent:
            links.append(os.fstat(descriptor).st_nlink)
        sync(path)

    monkeypatch.setattr(local, "sync", sync_and_look)
    descriptor = os.open(old, os.O_RDONLY)
    try:
        put(store, tmp_path / "again", b"content")
        assert old.stat().st_ino != os.fstat(descriptor).st_ino
        assert links == [1]
        assert os.fstat(descriptor).st_nlink == 0  # nothing is left of it afterwards
    finally:
        os.close(descriptor)
    assert not [name for name in list_store(store.root) if name.startswith("tmp/")]


def test_the_database_s_folder_is_synced_before_a_blob_has_its_name(
    registry: Registry, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, n_blobs = local.sync, []
    assert registry.database.file is not None
    folder = registry.database.file.parent

    def sync_and_count(path: Path) -> None:
        if path == folder:
            n_blobs.append(len(list((registry.store.root / "blobs").glob("*/*"))))
        sync(path)

    monkeypatch.setattr(local, "sync", sync_and_count)
    registry.register("m", make_checkpoint("gpt2"), parity="skip")
    assert n_blobs == [0]


def test_a_process_that_was_stopped_at_a_blob_s_folder_keeps_nobody_waiting(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.blob_path(put(store, tmp_path / "file", b"content").digest)
    monkeypatch.setattr(folder_locks, "_LOCK_SECONDS", 0.05)
    stopped = os.open(blob.parent, os.O_RDONLY)
    try:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        put(store, tmp_path / "again", b"content")
    finally:
        os.close(stopped)
    with folder_locks.lock(blob.parent):
        other = os.open(blob.parent, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(other)


def test_what_is_staged_and_not_published_is_gone(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(KeyboardInterrupt), store.stage() as folder:
        store.copy_in(tmp_path / "file", folder / "file")
        raise KeyboardInterrupt
    assert list_store(store.root) == ["tmp"]


def test_a_link_is_the_same_file_and_costs_no_space(store: LocalStore, tmp_path: Path) -> None:
    staged = put(store, tmp_path / "file", b"content", link=True)
    assert store.blob_path(staged.digest).samefile(tmp_path / "file")
    put(store, tmp_path / "file", b"content", link=True)
    store.check(staged.digest, 7)


def test_a_linked_file_that_is_written_to_afterwards_is_noticed(store: LocalStore, tmp_path: Path) -> None:
    staged = put(store, tmp_path / "file", b"content", link=True)
    (tmp_path / "file").write_bytes(b"CONTENT")
    with pytest.raises(ArtifactCorrupt, match="was altered"):
        store.check(staged.digest, 7)


def test_a_link_does_not_take_the_place_of_a_copy_that_is_whole(store: LocalStore, tmp_path: Path) -> None:
    """Else whoever registered a copy would have his blob changed by somebody else's next training step."""
    staged = put(store, tmp_path / "a", b"content")
    put(store, tmp_path / "b", b"content", link=True)
    (tmp_path / "b").write_bytes(b"CONTENT")
    store.check(staged.digest, 7)
    store.blob_path(staged.digest).unlink()
    put(store, tmp_path / "b", b"content", link=True)
    assert store.blob_path(staged.digest).samefile(tmp_path / "b")


def test_a_link_across_file_systems_says_to_copy(tmp_path: Path) -> None:
    other = find_other_file_system(tmp_path)
    if other is None:
        pytest.skip("there is no other file system")
    store = LocalStore(Path(tempfile.mkdtemp(prefix="lensreg-store-", dir=other)))
    try:
        with pytest.raises(StoreUnavailable, match="another file system") as refused:
            put(store, tmp_path / "file", b"content", link=True)
        assert "--link" in str(refused.value.hint)
        assert list_store(store.root) == ["tmp"]
    finally:
        shutil.rmtree(store.root)


def test_a_folder_that_is_taken_for_a_leftover_before_it_is_held_is_not_the_one_that_is_given(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gc` without a grace deleted it under a registration, between two of its steps."""
    given: list[Path] = []

    def collect_first(folder: Path) -> int | None:
        given.append(folder)
        if len(given) == 1:
            (leftover,) = store.list_leftovers()
            assert store.delete_leftover(leftover)
        if len(given) == 2:
            with folder_locks.take(folder):  # it is about to be deleted
                return folder_locks.hold(folder)
        return folder_locks.hold(folder)

    monkeypatch.setattr("registry.store.local.hold", collect_first)
    with store.stage() as folder:
        assert folder == given[2] and folder.is_dir()
        assert list(store.list_leftovers()) == []
    assert len(given) == 3
    assert list_store(store.root / "tmp") == []


# --- what is no longer what was put there ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_blob_with_a_fault_is_refused_by_its_digest_and_healed_by_the_next_copy(
    store: LocalStore, tmp_path: Path, fault: str
) -> None:
    damage, error = FAULTS[fault]
    staged = put(store, tmp_path / "file", b"content" * 100)
    damage(store.blob_path(staged.digest))
    with pytest.raises(error, match=staged.digest) as refused:
        store.check(staged.digest, 700)
    assert refused.value.digest == staged.digest  # type: ignore[attr-defined]
    assert "Register the same source again" in str(refused.value.hint)
    for link in (False, True):
        put(store, tmp_path / "file", b"content" * 100, link=link)
        store.check(staged.digest, 700)
        if not link:
            damage(store.blob_path(staged.digest))


NO_DIGESTS = [
    "",
    "abc",
    "a" * 63,
    "a" * 65,
    "A" * 64,
    "g" * 64,
    "a" * 63 + "\n",
    "a" * 64 + "\n",
    "٣" * 64,
    "../" * 21 + "x",
    "/" + "a" * 63,
    "../../../etc/passwd",
    "\x00" * 64,
]


@pytest.mark.parametrize("digest", NO_DIGESTS, ids=lambda digest: repr(digest)[:20])
def test_what_is_no_digest_never_becomes_a_path(store: LocalStore, tmp_path: Path, digest: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for use in (
        lambda: store.blob_path(digest),
        lambda: store.check(digest, 7),
        lambda: store.check(digest, 7, read=False),
        lambda: store.link_folder([("file", digest)]),
        lambda: store.publish([StagedFile(tmp_path / "file", digest, 7)]),
    ):
        with pytest.raises(ArtifactCorrupt, match="no SHA-256"):
            use()
    assert list_store(tmp_path) == ["file"]


# --- folders with the files' own names -------------------------------------------------------------------------


@pytest.fixture
def listing(store: LocalStore, tmp_path: Path) -> list[tuple[str, str]]:
    """Two blobs, under the names that a folder gives them."""
    return [(name, put(store, tmp_path / name, name.encode()).digest) for name in ("config.json", "model.safetensors")]


def test_a_folder_shows_blobs_under_their_own_names(store: LocalStore, listing: list[tuple[str, str]]) -> None:
    folder = store.link_folder(listing)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"config.json",
        "model.safetensors": b"model.safetensors",
    }
    assert all(path.is_symlink() and not path.readlink().is_absolute() for path in folder.iterdir())
    assert store.link_folder(reversed(listing)) == folder
    assert store.link_folder(listing[:1]) != folder
    assert list_store(store.root / "tmp") == []


def test_a_store_can_be_moved(store: LocalStore, listing: list[tuple[str, str]], tmp_path: Path) -> None:
    store.link_folder(listing)
    moved = LocalStore(store.root.rename(tmp_path / "moved"))
    assert (moved.link_folder(listing) / "config.json").read_bytes() == b"config.json"


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "a-file-in-place-of-a-link": lambda folder: swap(folder / "config.json", lambda path: path.write_bytes(b"{}")),
    "a-link-elsewhere": lambda folder: swap(folder / "config.json", lambda path: path.symlink_to("/etc/hostname")),
    "a-link-to-another-blob": lambda folder: swap(
        folder / "config.json", lambda path: path.symlink_to((folder / "model.safetensors").readlink())
    ),
    "a-file-more": lambda folder: (folder / "added_tokens.json").write_bytes(b"{}"),
    "a-folder-more": lambda folder: (folder / "more").mkdir(),
    "a-file-less": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_folder_that_somebody_wrote_into_is_refused(
    store: LocalStore, listing: list[tuple[str, str]], alteration: str
) -> None:
    folder = store.link_folder(listing)
    ALTERATIONS[alteration](folder)
    with pytest.raises(ArtifactCorrupt, match="somebody wrote") as refused:
        store.link_folder(listing)
    assert str(folder) in str(refused.value.hint)
    shutil.rmtree(folder)
    assert sorted(path.name for path in store.link_folder(listing).iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_gc_takes_while_it_is_looked_at_is_made_again(
    store: LocalStore, listing: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, look = store.link_folder(listing), Path.iterdir
    taken: list[Path] = []

    def take_first(path: Path) -> Iterator[Path]:
        if path == folder and not taken:
            taken.append(folder.rename(store.root / "tmp" / "deleted"))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", take_first)
    assert store.link_folder(listing) == folder
    assert taken and (folder / "config.json").read_bytes() == b"config.json"


def test_a_folder_that_another_process_makes_first_is_taken(
    store: LocalStore, listing: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, look, looked = store.link_folder(listing), linked_folders._read_links, []

    def see_nothing_first(path: Path) -> dict[str, str] | None:
        looked.append(path)
        return look(path) if len(looked) > 1 else None

    monkeypatch.setattr(linked_folders, "_read_links", see_nothing_first)
    assert store.link_folder(listing) == folder
    assert looked == [folder] * 2 and list_store(store.root / "tmp") == []


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ".", "", "a/"])
def test_a_name_that_leaves_the_folder_is_refused(
    store: LocalStore, listing: list[tuple[str, str]], tmp_path: Path, name: str
) -> None:
    before = list_store(tmp_path)
    with pytest.raises(StorageError, match="no file name"):
        store.link_folder([(name, listing[0][1])])
    assert list_store(tmp_path) == before


# --- places that cannot be written to, or are full -------------------------------------------------------------


def test_a_store_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for root in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/nowhere")):
        with pytest.raises(StoreUnavailable) as refused, LocalStore(root).stage():
            pass
        assert "--store" in str(refused.value.hint)


def test_a_source_that_vanishes_is_not_the_store_s_fault(store: LocalStore, tmp_path: Path) -> None:
    for link in (False, True):
        with pytest.raises(SourceNotFound, match="gone"), store.stage() as folder:
            store.copy_in(tmp_path / "gone", folder / "gone", link=link)
    assert list_store(store.root) == ["tmp"]


FULL_DATABASE = """
    from registry import Registry, RegistryError
    from tests.records import record
    registry = Registry(values["database"], values["store"])
    n = 0
    try:
        while n < 1000:
            record(registry, "m", note="x" * 5000)
            n += 1
    except RegistryError as error:
        print(error.code)
    print(len(registry.history("m")) == n > 0, registry.verify_events())
    registry.close()
"""


@needs_mounts
def test_a_database_on_a_full_disk_keeps_what_it_had(tmp_path: Path) -> None:
    printed = run_code(
        FULL_DATABASE,
        mounts=f"mount -t tmpfs -o size=1500k none {tmp_path}",
        database=tmp_path / "registry.db",
        store=tmp_path / "store",
    )
    assert printed == ["storage-full", "True None"]
