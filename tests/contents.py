"""What a registry holds, so that a test can say that an operation left nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from registry import Registry


class Contents(NamedTuple):
    """Every path in the store, every model with its number of versions, and the number of events."""

    store: frozenset[Path]
    models: tuple[tuple[str, int], ...]
    n_events: int


def read_contents(registry: Registry) -> Contents:
    """Look at the store and the database; a store that was never used is as good as one with empty folders."""
    paths = frozenset(path for path in registry.store.root.rglob("*") if not path.is_dir() or "tmp" in path.parts[-2:])
    tmp = registry.store.root / "tmp"
    return Contents(
        frozenset(paths - {tmp}),
        tuple((model.name, model.n_versions) for model in registry.models()),
        len(registry.events()),
    )
