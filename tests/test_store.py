"""The store: what was put in comes out unchanged, or is refused by its digest; no fault leaves a version half there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from registry import Registry
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    SourceChanged,
    SourceNotFound,
    StorageError,
    StoreUnavailable,
)
from registry.store import LocalStore, StagedFile, folder_locks, linked_folders, local
from tests.processes import needs_mounts, run_code

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def _put(store: LocalStore, path: Path, content: bytes, *, link: bool = False) -> StagedFile:
    """Write a file, and bring it into the store."""
    path.write_bytes(content)
    with store.stage() as folder:
        staged = store.copy_in(path, folder / path.name, link=link)
        store.publish([staged])
    return staged


def _list(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    # the folders for blobs are there from the beginning
    return sorted(str(path) for path in found if path.parts[0] != "blobs" or len(path.parts) > 2)


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
    assert _list(store.root / "tmp") == []


def test_a_copy_is_its_own_and_read_only(store: LocalStore, tmp_path: Path) -> None:
    staged = _put(store, tmp_path / "file", b"content")
    blob = store.blob_path(staged.digest)
    assert blob.stat().st_mode & 0o777 == 0o400
    assert blob.stat().st_nlink == 1
    (tmp_path / "file").write_bytes(b"CONTENT")
    assert blob.read_bytes() == b"content"


def test_the_same_content_is_kept_once(store: LocalStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _put(store, tmp_path / name, b"content")
    _put(store, tmp_path / "d", b"other")
    assert len([path for path in (store.root / "blobs").rglob("*") if path.is_file()]) == 2


def test_a_replaced_blob_is_not_freed_before_the_new_name_has_reached_the_disk(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.blob_path(_put(store, tmp_path / "file", b"content").digest)
    sync, links = local.sync, []

    def sync_and_look(path: Path) -> None:
        if path == old.parent:
            links.append(os.fstat(descriptor).st_nlink)
        sync(path)

    monkeypatch.setattr(local, "sync", sync_and_look)
    descriptor = os.open(old, os.O_RDONLY)
    try:
        _put(store, tmp_path / "again", b"content")
        assert old.stat().st_ino != os.fstat(descriptor).st_ino
        assert links == [1]
        assert os.fstat(descriptor).st_nlink == 0  # nothing is left of it afterwards
    finally:
        os.close(descriptor)
    assert not [name for name in _list(store.root) if name.startswith("tmp/")]


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
    blob = store.blob_path(_put(store, tmp_path / "file", b"content").digest)
    monkeypatch.setattr(folder_locks, "_LOCK_SECONDS", 0.05)
    stopped = os.open(blob.parent, os.O_RDONLY)
    try:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        _put(store, tmp_path / "again", b"content")
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
    assert _list(store.root) == ["tmp"]


def test_a_link_is_the_same_file_and_costs_no_space(store: LocalStore, tmp_path: Path) -> None:
    staged = _put(store, tmp_path / "file", b"content", link=True)
    assert store.blob_path(staged.digest).samefile(tmp_path / "file")
    _put(store, tmp_path / "file", b"content", link=True)
    store.check(staged.digest, 7)


def test_a_linked_file_that_is_written_to_afterwards_is_noticed(store: LocalStore, tmp_path: Path) -> None:
    staged = _put(store, tmp_path / "file", b"content", link=True)
    (tmp_path / "file").write_bytes(b"CONTENT")
    with pytest.raises(ArtifactCorrupt, match="was altered"):
        store.check(staged.digest, 7)


def test_a_link_does_not_take_the_place_of_a_copy_that_is_whole(store: LocalStore, tmp_path: Path) -> None:
    """Else whoever registered a copy would have his blob changed by somebody else's next training step."""
    staged = _put(store, tmp_path / "a", b"content")
    _put(store, tmp_path / "b", b"content", link=True)
    (tmp_path / "b").write_bytes(b"CONTENT")
    store.check(staged.digest, 7)
    store.blob_path(staged.digest).unlink()
    _put(store, tmp_path / "b", b"content", link=True)
    assert store.blob_path(staged.digest).samefile(tmp_path / "b")


def test_a_link_across_file_systems_says_to_copy(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    store = LocalStore(other / f"lensreg-{os.getpid()}")
    try:
        with pytest.raises(StoreUnavailable, match="another file system") as refused:
            _put(store, tmp_path / "file", b"content", link=True)
        assert "--link" in str(refused.value.hint)
        assert _list(store.root) == ["tmp"]
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
    assert _list(store.root / "tmp") == []


# --- what is no longer what was put there ----------------------------------------------------------------------


def _flip(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0x10
    _overwrite(blob, bytes(content))


def _overwrite(blob: Path, content: bytes) -> None:
    blob.chmod(0o644)
    blob.write_bytes(content)


def _swap(blob: Path, make: Callable[[Path], object]) -> None:
    blob.unlink()
    make(blob)


def _link_to_copy(blob: Path) -> None:
    elsewhere = blob.parent.parent.parent / "elsewhere"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)


FAULTS: dict[str, tuple[Callable[[Path], object], type[StorageError]]] = {
    "deleted": (lambda blob: blob.unlink(), ArtifactMissing),
    "truncated": (lambda blob: _overwrite(blob, blob.read_bytes()[:-1]), ArtifactCorrupt),
    "emptied": (lambda blob: _overwrite(blob, b""), ArtifactCorrupt),
    "grown": (lambda blob: _overwrite(blob, blob.read_bytes() + b"\x00"), ArtifactCorrupt),
    "flipped": (_flip, ArtifactCorrupt),
    "zeroed": (lambda blob: _overwrite(blob, bytes(blob.stat().st_size)), ArtifactCorrupt),
    "link-to-a-copy": (_link_to_copy, ArtifactCorrupt),
    "dangling-link": (lambda blob: _swap(blob, lambda path: path.symlink_to("nowhere")), ArtifactCorrupt),
    "fifo": (lambda blob: _swap(blob, os.mkfifo), ArtifactMissing),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_blob_with_a_fault_is_refused_by_its_digest_and_healed_by_the_next_copy(
    store: LocalStore, tmp_path: Path, fault: str
) -> None:
    damage, error = FAULTS[fault]
    staged = _put(store, tmp_path / "file", b"content" * 100)
    damage(store.blob_path(staged.digest))
    with pytest.raises(error, match=staged.digest) as refused:
        store.check(staged.digest, 700)
    assert refused.value.digest == staged.digest  # type: ignore[attr-defined]
    assert "Register the same source again" in str(refused.value.hint)
    for link in (False, True):
        _put(store, tmp_path / "file", b"content" * 100, link=link)
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
    assert _list(tmp_path) == ["file"]


# --- folders with the files' own names -------------------------------------------------------------------------


@pytest.fixture
def listing(store: LocalStore, tmp_path: Path) -> list[tuple[str, str]]:
    """Two blobs, under the names that a folder gives them."""
    return [(name, _put(store, tmp_path / name, name.encode()).digest) for name in ("config.json", "model.safetensors")]


def test_a_folder_shows_blobs_under_their_own_names(store: LocalStore, listing: list[tuple[str, str]]) -> None:
    folder = store.link_folder(listing)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"config.json",
        "model.safetensors": b"model.safetensors",
    }
    assert all(path.is_symlink() and not path.readlink().is_absolute() for path in folder.iterdir())
    assert store.link_folder(reversed(listing)) == folder
    assert store.link_folder(listing[:1]) != folder
    assert _list(store.root / "tmp") == []


def test_a_store_can_be_moved(store: LocalStore, listing: list[tuple[str, str]], tmp_path: Path) -> None:
    store.link_folder(listing)
    moved = LocalStore(store.root.rename(tmp_path / "moved"))
    assert (moved.link_folder(listing) / "config.json").read_bytes() == b"config.json"


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "a-file-in-place-of-a-link": lambda folder: _swap(folder / "config.json", lambda path: path.write_bytes(b"{}")),
    "a-link-elsewhere": lambda folder: _swap(folder / "config.json", lambda path: path.symlink_to("/etc/hostname")),
    "a-link-to-another-blob": lambda folder: _swap(
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
    assert looked == [folder] * 2 and _list(store.root / "tmp") == []


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ".", "", "a/"])
def test_a_name_that_leaves_the_folder_is_refused(
    store: LocalStore, listing: list[tuple[str, str]], tmp_path: Path, name: str
) -> None:
    before = _list(tmp_path)
    with pytest.raises(StorageError, match="no file name"):
        store.link_folder([(name, listing[0][1])])
    assert _list(tmp_path) == before


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
    assert _list(store.root) == ["tmp"]


READ_ONLY_STORE = """
    from pathlib import Path
    from registry import Registry, RegistryError
    registry = Registry(values["database"], values["store"])
    print(Path(registry.path("base")).name)
    try:
        registry.register("other", values["source"])
    except RegistryError as error:
        print(error.code)
    print([model.name for model in registry.models()])
"""


@needs_mounts
def test_a_store_that_may_only_be_read_gives_and_does_not_take(stored: Registry, source: Path) -> None:
    folder = stored.path("base")
    root = stored.store.root
    before = _list(root)
    printed = run_code(
        READ_ONLY_STORE,
        mounts=f"mount --bind {root} {root} && mount -o remount,ro,bind {root}",
        database=stored.database.url.database,
        store=root,
        source=source,
    )
    assert printed == [folder.name, "store-unavailable", "['base']"]
    assert _list(root) == before


FULL_DISK = """
    import pathlib
    from registry import Registry, RegistryError
    registry = Registry(values["database"], values["store"])
    store = pathlib.Path(values["store"])
    for kilobytes in (4, 16, 64, 200):
        os.system(f"mount -t tmpfs -o size={kilobytes}k none {store}")
        try:
            registry.register("base", values["source"], parity="skip")
        except RegistryError as error:
            blobs = [path for path in store.rglob("*") if path.is_file()]
            print(error.code, registry.models(), registry.events(), blobs)
        os.system(f"umount {store}")
    registry.close()
"""


@needs_mounts
def test_a_full_disk_is_reported_and_nothing_is_registered(tmp_path: Path, source: Path) -> None:
    assert sum(path.stat().st_size for path in source.iterdir()) > 250_000
    (tmp_path / "store").mkdir()
    database, store = tmp_path / "registry.db", tmp_path / "store"
    printed = run_code(FULL_DISK, mounts="true", database=database, store=store, source=source)
    assert printed == ["storage-full [] [] []"] * 4


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


# --- a registered checkpoint whose store is damaged ------------------------------------------------------------


@pytest.fixture(scope="module")
def source(make_checkpoint: MakeCheckpoint) -> Path:
    """A tiny GPT-2 with its tokenizer."""
    return make_checkpoint("gpt2")


@pytest.fixture(scope="module")
def original(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database and a store in which `base` is registered; not to be changed."""
    folder = tmp_path_factory.mktemp("original")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    registry.register("base", source)
    registry.close()
    return folder


@pytest.fixture
def stored(original: Path, tmp_path: Path) -> Iterator[Registry]:
    """A registry of its own in which `base` is registered."""
    shutil.copytree(original, tmp_path / "copy", symlinks=True)
    registry = Registry(str(tmp_path / "copy" / "registry.db"), tmp_path / "copy" / "store")
    yield registry
    registry.close()


def _blob(registry: Registry, name: str) -> Path:
    (digest,) = (file.digest for file in registry.version("base").files if file.name == name)
    return registry.store.blob_path(digest)


def test_path_gives_the_files_that_were_registered(stored: Registry, source: Path) -> None:
    folder = stored.path("base")
    files = stored.version("base").files
    assert {path.name for path in folder.iterdir()} == {file.name for file in files}
    for file in files:
        assert (folder / file.name).read_bytes() == (source / file.name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_blob_is_not_loaded_and_registering_the_source_again_heals_it(
    stored: Registry, source: Path, fault: str, name: str
) -> None:
    damage, error = FAULTS[fault]
    blob = _blob(stored, name)
    damage(blob)
    with pytest.raises(error, match=blob.name) as refused:
        stored.load("base")
    assert refused.value.digest == blob.name  # type: ignore[attr-defined]
    if fault not in ("flipped", "zeroed"):  # path does not read the bytes
        with pytest.raises(error):
            stored.path("base")
    events = stored.events()
    again = stored.register("base", source)
    assert (again.outcome, again.version and again.version.ref) == ("unchanged", "base@v1")
    assert stored.events() == events
    for file in stored.version("base").files:
        stored.store.check(file.digest, file.size_bytes)
    if name == "model.safetensors":
        stored.load("base")


def test_every_flipped_bit_is_found(stored: Registry) -> None:
    chooser = random.Random(11)
    files = stored.version("base").files
    for _ in range(60):
        blob = stored.store.blob_path(chooser.choice(files).digest)
        content = blob.read_bytes()
        flipped = bytearray(content)
        flipped[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        _overwrite(blob, bytes(flipped))
        with pytest.raises(ArtifactCorrupt, match=blob.name):
            stored.load("base")
        _overwrite(blob, content)
    stored.load("base")


def test_healing_brings_in_nothing_but_what_was_registered(
    stored: Registry, make_checkpoint: MakeCheckpoint, source: Path
) -> None:
    """The same weights in shards are the same version, whose blobs they are not."""
    shards = make_checkpoint("gpt2", max_shard_size="200KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    blobs = _list(stored.store.root / "blobs")
    assert stored.register("base", shards).outcome == "unchanged"
    assert _list(stored.store.root / "blobs") == blobs
    _blob(stored, "model.safetensors").unlink()
    assert stored.register("base", shards).outcome == "unchanged"
    with pytest.raises(ArtifactMissing):
        stored.load("base")
    stored.register("base", source, link=True)
    stored.load("base")


def test_a_dry_run_heals_nothing(stored: Registry, source: Path) -> None:
    _blob(stored, "config.json").unlink()
    before = _list(stored.store.root)
    stored.register("base", source, dry_run=True)
    assert _list(stored.store.root) == before


def test_weights_saved_over_a_version_s_folder_are_not_loaded(
    stored: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """As `model.save_pretrained(registry.path("base"))` may do, replacing the link by a file."""
    folder = stored.path("base")
    other = make_checkpoint("gpt2", seed=1)
    (folder / "model.safetensors").unlink()
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    for use in (stored.load, stored.path):
        with pytest.raises(ArtifactCorrupt, match=r"model\.safetensors is not what was put there"):
            use("base")


def test_a_record_whose_digest_or_name_was_altered_leads_nowhere_else(stored: Registry, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("secret")
    store = stored.store.root
    before = _list(store)
    digest = stored.version("base").files[0].digest
    for statements, error in [
        (
            [
                "INSERT INTO blobs SELECT '../../../../victim', 6, created_at FROM blobs LIMIT 1",
                "UPDATE version_files SET digest = '../../../../victim' WHERE name = 'config.json'",
            ],
            ArtifactCorrupt,
        ),
        (
            [
                f"UPDATE version_files SET digest = '{digest}' WHERE name = 'config.json'",
                "UPDATE version_files SET name = '../../../../victim' WHERE name = 'config.json'",
            ],
            StorageError,
        ),
    ]:
        with stored.database.write() as connection:
            for statement in statements:
                connection.execute(text(statement))
        for use in (stored.load, stored.path):
            with pytest.raises(error):
                use("base")
    assert _list(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "victim"]


def test_a_config_that_changes_while_it_is_read_is_not_registered(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """What was understood and compared with the parent must be what is stored."""
    folder = make_checkpoint("gpt2")

    def write_meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "copying" and done == 0:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.1}))

    with pytest.raises(SourceChanged):
        registry.register("base", folder, progress=write_meanwhile)
    assert registry.models() == []
    assert _list(registry.store.root) == ["tmp"]


def test_linked_weights_that_are_trained_further_are_not_loaded(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("gpt2")
    registry.register("base", folder, parity="skip", link=True)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ArtifactCorrupt):
        registry.load("base")


# --- killed at any moment --------------------------------------------------------------------------------------


def register_until_killed(url: str, root: str, sources: list[str], n_kills: int) -> None:
    """Fork children that register one checkpoint after the other, and kill each at a random moment.

    Runs in a process of its own, which has imported all it needs: a fork is cheap then, and is safe without threads.
    Prints the refs that a registration was acknowledged for.
    """
    import registry.convert
    import registry.networks  # noqa: F401

    chooser = random.Random(5)
    told_of: set[str] = set()
    seconds = 0.0
    for child in range(2 + n_kills):  # the first sets the database up, the second tells how long the others take
        reader, writer = os.pipe()
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            mine = Registry(url, root)
            for number, source in enumerate(sources):
                done = mine.register(f"m{child}", source, step=number, parity="skip")
                os.write(writer, f"{done.version.ref}\n".encode() if done.version else b"")
            os._exit(0)
        os.close(writer)
        if child >= 2:
            time.sleep(chooser.uniform(0, 1.1 * seconds))
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(reader) as told:
            told_of |= set(told.read().split())
        os.waitpid(pid, 0)
        if child < 2:
            seconds = time.perf_counter() - started
    sys.stdout.write(json.dumps(sorted(told_of)))


def test_a_registration_that_is_killed_leaves_no_version_without_its_blobs(
    tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    sources = [str(make_checkpoint("gpt2", seed=seed, n_layer=1)) for seed in range(3)]
    url, root = str(tmp_path / "registry.db"), tmp_path / "store"
    (printed,) = run_code(
        "from tests.test_store import register_until_killed\nregister_until_killed(**values)",
        url=url,
        root=root,
        sources=sources,
        n_kills=10,
    )
    told_of = set(json.loads(printed))
    registry = Registry(url, root)
    there = [version for model in registry.models() for version in registry.history(model.name)]
    assert told_of <= {version.ref for version in there}, "what was acknowledged is there"
    assert 6 <= len(there) < 36, "some were killed and some were not"
    for summary in there:
        for file in registry.version(summary.ref).files:
            registry.store.check(file.digest, file.size_bytes)
    assert registry.verify_events() is None
    assert len(registry.events()) == len(there)
    for blob in (root / "blobs").glob("*/*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name, "a name never comes before its bytes"
    assert {path.name for path in root.iterdir()} <= {"blobs", "folders", "registries", "tmp"}
    assert registry.register("after", sources[0], parity="skip").outcome == "registered"
    registry.close()
