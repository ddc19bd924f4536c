"""What is left of a change that a KeyboardInterrupt cut off: nothing, and no lock, at once."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select
from sqlalchemy.engine import cursor

from registry import Registry, engines
from registry.tables import events
from registry.writers_queue import wait_for_turn
from tests.records import record


def test_an_interrupt_inside_a_statement_leaves_no_lock(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is thrown away then, and SQLite ends it when the traceback is gone, which a notebook keeps."""
    monkeypatch.setattr(engines, "BUSY_SECONDS", 5)
    record(registry, "m")
    registry.set_alias("m@best", "m")
    with monkeypatch.context() as patched:

        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(cursor.CursorResult, "_init_metadata", interrupt)
        with pytest.raises(KeyboardInterrupt) as kept, registry.database.write() as connection:
            connection.execute(select(events))  # of which there is more than one row, so that the cursor stays open
    started = time.monotonic()
    assert record(registry, "m").ref == "m@v2"
    assert time.monotonic() - started < 2
    assert kept.value.__traceback__ is not None, "it was kept all the while"


def test_a_turn_that_an_interrupt_left_behind_is_taken_back(registry: Registry) -> None:
    record(registry, "m")
    path = f"{registry.database.url.database}.lock"
    abandoned = wait_for_turn(path, 5)
    abandoned.__enter__()  # and never left, as when it strikes before the block begins
    started = time.monotonic()
    assert record(registry, "m").ref == "m@v2"
    assert time.monotonic() - started < 2
    abandoned.__exit__(None, None, None)


def test_aliases_do_not_end_before_they_began(any_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    from registry import aliases, retire

    record(any_registry, "m")
    record(any_registry, "m")

    class Past(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Past:
            return cls(2001, 1, 1, tzinfo=UTC)

    first = any_registry.set_alias("m@best", "m@v1")
    for module in (aliases, retire):
        monkeypatch.setattr(module, "datetime", Past)
    any_registry.set_alias("m@best", "m@v2")
    any_registry.remove_alias("m@best")
    spans = any_registry.aliases(history=True)
    assert [one.version for one in spans] == ["m@v1", "m@v2"]
    assert all(first.set_at <= one.set_at <= (one.removed_at or one.set_at) for one in spans)
    any_registry.retire("m@v1", force=True)
    version = any_registry.version("m@v1")
    assert version.retired_at is not None and version.retired_at >= version.created_at
