"""What is left of a change that a KeyboardInterrupt cut off: nothing, and no lock, at once."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from sqlalchemy import select
from sqlalchemy.engine import cursor
from torch import overrides
from torch.utils._device import DeviceContext

from registry import Registry, engines
from registry.quiet import quiet
from registry.tables import events
from registry.writers_queue import wait_for_turn
from tests.patience import must_not_hang
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
    with must_not_hang():
        assert record(registry, "m").ref == "m@v2"
    assert kept.value.__traceback__ is not None, "it was kept all the while"


def test_a_turn_that_an_interrupt_left_behind_is_taken_back(registry: Registry) -> None:
    record(registry, "m")
    path = f"{registry.database.url.database}.lock"
    abandoned = wait_for_turn(path, 5)
    abandoned.__enter__()  # and never left, as when it strikes before the block begins
    with must_not_hang():
        assert record(registry, "m").ref == "m@v2"
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


def test_an_interrupt_between_two_steps_of_a_library_leaves_nothing_on_meta() -> None:
    def interrupt() -> None:
        torch.device("meta").__enter__()  # and never left, as when it strikes before the block begins
        raise KeyboardInterrupt

    with DeviceContext("cpu"), pytest.raises(KeyboardInterrupt), quiet():
        interrupt()
    assert not torch.empty(1).is_meta
    with DeviceContext("meta"):
        with pytest.raises(KeyboardInterrupt), quiet():
            interrupt()
        assert torch.empty(1).is_meta, "which is how it was before"
    with quiet(), contextlib.suppress(KeyboardInterrupt):  # taken for an error of their own
        interrupt()
    assert not torch.empty(1).is_meta


def test_what_was_cut_off_and_is_collected_later_changes_nothing_then() -> None:
    with DeviceContext("meta"):
        abandoned = quiet()
        abandoned.__enter__()  # and never left, as when an interrupt strikes at the block's end
    del abandoned
    gc.collect()
    assert not torch.empty(1).is_meta


def test_a_mode_that_torch_took_off_when_it_was_interrupted_is_not_put_on_later() -> None:
    def cut_off() -> None:
        taken_off = overrides._pop_mode_temporarily()
        taken_off.__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept, DeviceContext("meta"), quiet():
        cut_off()
    assert not torch.empty(1).is_meta
    del kept  # with its traceback, and what that holds
    gc.collect()
    assert not torch.empty(1).is_meta
