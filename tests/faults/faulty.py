"""Our own code with a safeguard left out, for the controls: each is called in a child, and replaces what it has."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from registry import engines
from registry.database import Database
from registry.store import LocalStore, StagedFile, local


def put_rows_first() -> None:
    """Publish blobs only after the transaction with the version's rows."""
    publish, write = LocalStore.publish, Database.write
    waiting: list[tuple[LocalStore, list[StagedFile]]] = []

    def publish_later(self: LocalStore, files: Iterable[StagedFile], *how: Any, **more: Any) -> None:
        waiting.append((self, list(files)))

    def verify_nothing(self: LocalStore, digest: str, size_bytes: int, **how: Any) -> None:
        """Leave out the look at blobs within the transaction, which would refuse rows without them."""

    def link_later(self: LocalStore, files: Iterable[tuple[str, str]]) -> Path:
        return self.root

    @contextlib.contextmanager
    def write_first(self: Database) -> Iterator[Connection]:
        with write(self) as connection:
            yield connection
        while waiting:
            time.sleep(0.02)  # as long as a disk takes to sync; in memory there would be hardly a moment to strike
            publish(*waiting.pop())

    LocalStore.publish, LocalStore.link_folder, Database.write = publish_later, link_later, write_first
    LocalStore.verify = verify_nothing


def sync_nothing() -> None:
    """Leave out the fsync of blobs and of folders."""
    local.sync = lambda path: None


def sync_no_folders() -> None:
    """Leave out the fsync of folders."""
    sync = local.sync
    local.sync = lambda path: None if path.is_dir() else sync(path)


def sync_folders_late() -> None:
    """Sync folders as late as a busy disk does: what must not happen between a rename and its sync has time to."""
    sync = local.sync

    def sync_late(path: Path) -> None:
        if path.is_dir():
            time.sleep(0.02)
        sync(path)

    local.sync = sync_late


def keep_no_replaced_blobs() -> None:
    """Free the file that a blob takes the place of before its folder is synced."""
    sync_folders_late()
    local._keep = lambda blob, name: None


def commit_without_sync() -> None:
    """Have SQLite sync at checkpoints only."""
    set_up = engines._set_up_sqlite

    def set_up_carelessly(connection: sqlite3.Connection, record: Any) -> None:
        set_up(connection, record)
        connection.execute("PRAGMA synchronous = NORMAL")

    engines._set_up_sqlite = set_up_carelessly
