"""What a registry holds, so that a test can say that an operation left nothing behind."""

from __future__ import annotations

import os
from typing import NamedTuple

from registry import Registry


class Contents(NamedTuple):
    """Every path in the store, every model with its number of versions, and the number of events."""

    store: frozenset[str]
    models: tuple[tuple[str, int], ...]
    n_events: int


def read_contents(registry: Registry) -> Contents:
    """Look at the store and the database; a store that was never used is as good as one with empty folders."""
    paths: set[str] = set()
    for place, folders, files in os.walk(registry.store.root):
        left = folders if place.endswith("/tmp") else ()
        paths.update(f"{place}/{name}" for name in (*files, *left))
    return Contents(
        frozenset(paths),
        tuple((model.name, model.n_versions) for model in registry.models()),
        len(registry.events()),
    )
