"""Register versions whose blobs are made-up bytes: as register.py does it, but with no network to verify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from registry import Registry
from registry.ownership import change_with_blobs
from registry.record import record_version
from registry.store import LocalStore, StagedFile
from registry.versions import StoredFile
from tests.records import make_draft


def put(store: LocalStore, path: Path, content: bytes, *, link: bool = False) -> StagedFile:
    """Write a file, and bring it into the store."""
    path.unlink(missing_ok=True)  # it may be linked to a blob
    path.write_bytes(content)
    with store.stage() as folder:
        staged = store.copy_in(path, folder / path.name, link=link)
        store.publish([staged])
    return staged


def publish_bytes(store: LocalStore, content: bytes, *, replace: bool = False, link: Path | None = None) -> StagedFile:
    """Publish some bytes by way of a file, as registering does."""
    with store.stage() as folder:
        source = link or folder / "source"
        if link is None:
            source.write_bytes(content)
        staged = store.copy_in(source, folder / "file", link=link is not None)
        store.publish([staged], replace=replace)
    return staged


def keep(registry: Registry, model: str, *contents: bytes, link: bool = False) -> list[StagedFile]:
    """Register a version with a file of each content; return the files."""
    sources = registry.store.root.parent / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    stored, staged = [], []
    with registry.store.stage() as folder:
        for n, content in enumerate(contents):
            name = f"{n}.safetensors"
            source = folder / f"source-{n}" if not link else sources / f"{model.replace('/', '-')}-{n}"
            source.unlink(missing_ok=True)  # it may be linked to a blob
            source.write_bytes(content)
            one = registry.store.copy_in(source, folder / name, link=link)
            stored.append(StoredFile(name, "weights", one.digest, one.size_bytes))
            staged.append(one)
        registry.store.publish(staged)
        registry.store.link_folder((file.name, file.digest) for file in stored)
        blobs = {one.digest: one.size_bytes for one in staged}
        draft = replace(make_draft(model), files=tuple(stored))
        change_with_blobs(
            registry.database, registry.store, blobs, lambda connection: record_version(connection, draft)
        )
    return staged
