"""A registered checkpoint whose store is damaged, read-only, full or taken away."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from registry import Registry
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    SourceChanged,
    StorageError,
)
from tests.damaged_blobs import FAULTS, list_store, overwrite
from tests.processes import needs_mounts, run_code

MakeCheckpoint = Callable[..., Path]


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
        overwrite(blob, bytes(flipped))
        with pytest.raises(ArtifactCorrupt, match=blob.name):
            stored.load("base")
        overwrite(blob, content)
    stored.load("base")


def test_healing_brings_in_nothing_but_what_was_registered(
    stored: Registry, make_checkpoint: MakeCheckpoint, source: Path
) -> None:
    """The same weights in shards are the same version, whose blobs they are not."""
    shards = make_checkpoint("gpt2", max_shard_size="200KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    blobs = list_store(stored.store.root / "blobs")
    assert stored.register("base", shards).outcome == "unchanged"
    assert list_store(stored.store.root / "blobs") == blobs
    _blob(stored, "model.safetensors").unlink()
    assert stored.register("base", shards).outcome == "unchanged"
    with pytest.raises(ArtifactMissing):
        stored.load("base")
    stored.register("base", source, link=True)
    stored.load("base")


def test_a_dry_run_heals_nothing(stored: Registry, source: Path) -> None:
    _blob(stored, "config.json").unlink()
    before = list_store(stored.store.root)
    stored.register("base", source, dry_run=True)
    assert list_store(stored.store.root) == before


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
    before = list_store(store)
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
    assert list_store(store) == before
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
    assert list_store(registry.store.root) == ["tmp"]


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
    before = list_store(root)
    printed = run_code(
        READ_ONLY_STORE,
        mounts=f"mount --bind {root} {root} && mount -o remount,ro,bind {root}",
        database=stored.database.url.database,
        store=root,
        source=source,
    )
    assert printed == [folder.name, "store-unavailable", "['base']"]
    assert list_store(root) == before


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
