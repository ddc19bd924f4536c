"""The audit trail: one event for every change, in the change's own transaction, and a chain that shows tampering."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import select, text

from registry import Registry, RegistryError
from registry.audit import GENESIS, append_event, digest_event
from registry.errors import DatabaseError, InvalidInput, InvalidRef
from registry.tables import events
from tests.records import add_version, record, record_all


def _run(registry: Registry, *statements: str, **values: Any) -> None:
    with registry.database.write() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


@pytest.fixture
def trail(any_registry: Registry) -> Registry:
    """Six events: three versions, two aliases, one retirement."""
    record_all(any_registry, *({"model": "m", "step": step, "note": "π % _"} for step in range(3)))
    any_registry.set_alias("m@best", "m@v1")
    any_registry.set_alias("m@best", "m@v2")
    any_registry.retire("m@v3", reason="diverged")
    return any_registry


def test_each_change_writes_one_event(any_registry: Registry) -> None:
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: record(any_registry, "m"), "version.registered"),
        (lambda: record(any_registry, "m", parents=["m@v1"], tags={"a": "b"}, step=3), "version.registered"),
        (lambda: any_registry.set_alias("m@best", "m@v1"), "alias.set"),
        (lambda: any_registry.set_alias("m@best", "m@v2"), "alias.set"),
        (lambda: any_registry.remove_alias("m@best"), "alias.removed"),
        (lambda: any_registry.retire("m@v2"), "version.retired"),
        (lambda: any_registry.restore("m@v2"), "version.restored"),
    ]
    for n_before, (change, action) in enumerate(changes):
        assert len(any_registry.events()) == n_before
        change()
        assert any_registry.events()[0].action == action
    assert any_registry.verify_events() is None


def test_asking_writes_no_event(trail: Registry) -> None:
    trail.resolve("m"), trail.version("m"), trail.models(), trail.history("m"), trail.lineage("m"), trail.aliases()
    assert len(trail.events()) == 6


def test_an_event_says_who_did_what_when_and_from_where(any_registry: Registry) -> None:
    stored = record(any_registry, "m", step=7, tags={"lr": "1e-4"}, note="first", parents=[])
    (event,) = any_registry.events()
    assert (event.sequence, event.action, event.subject) == (1, "version.registered", "m@v1")
    assert event.previous_digest == GENESIS
    assert "@" in event.actor
    assert abs(datetime.now(UTC) - datetime.fromisoformat(event.at)) < timedelta(minutes=1)
    assert {"torch", "transformers", "transformer-lens"} <= set(event.environment["packages"])
    assert event.details["weights_digest"] == stored.weights_digest
    assert event.details["fingerprint"] == stored.fingerprint
    assert event.details["files"] == {file.name: file.digest for file in stored.files}
    assert (event.details["step"], event.details["note"], event.details["tags"]) == (7, "first", {"lr": "1e-4"})
    assert event.details["processing"] is None


def test_a_change_that_is_undone_leaves_no_event(trail: Registry) -> None:
    before = trail.events()
    for break_off in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(break_off), trail.database.write() as connection:
            add_version(connection, "m")
            append_event(connection, "test.event", "m", {})
            raise break_off
    with pytest.raises(RegistryError):
        trail.set_alias("m@best", "m@v3")
    assert trail.events() == before
    assert trail.verify_events() is None
    assert record(trail, "m").number == 4


def test_a_trail_that_was_left_alone_holds(trail: Registry) -> None:
    assert trail.verify_events() is None
    found = trail.events()
    assert [one.sequence for one in found] == [6, 5, 4, 3, 2, 1]
    for later, earlier in itertools.pairwise(found):
        assert later.previous_digest == earlier.digest
    assert [one.sequence for one in trail.events(limit=2)] == [6, 5]
    assert trail.events(limit=0) == []


def test_an_empty_trail_holds(any_registry: Registry) -> None:
    assert any_registry.verify_events() is None


ALTERED = {
    "at": "2020-01-01T00:00:00.000000+00:00",
    "actor": "somebody@else",
    "action": "version.restored",
    "subject": "m@v1",
    "details": '{"reason": null, "forced": false}',
    "environment": "{}",
    "digest": "0" * 64,
}


@pytest.mark.parametrize("column", ALTERED)
def test_an_altered_event_is_found(trail: Registry, column: str) -> None:
    _run(trail, f"UPDATE events SET {column} = :value WHERE sequence = 3", value=ALTERED[column])
    fault = trail.verify_events()
    assert fault is not None
    assert (fault.sequence, "event 3 was altered") == (3, fault.message)


def test_one_altered_character_deep_in_the_details_is_found(trail: Registry) -> None:
    details = dict(trail.events()[3].details)
    details["weights_digest"] = details["weights_digest"][:-1] + "x"
    _run(trail, "UPDATE events SET details = :details WHERE sequence = 3", details=json.dumps(details))
    fault = trail.verify_events()
    assert fault is not None and fault.sequence == 3


def test_an_altered_event_with_a_digest_that_fits_breaks_the_next(trail: Registry) -> None:
    """Who alters an event and digests it again would have to do so with all that follow."""
    with trail.database.write() as connection:
        row = connection.execute(select(events).where(events.c.sequence == 3)).one()._asdict() | {"actor": "other@host"}
        connection.execute(
            events.update().where(events.c.sequence == 3).values(actor="other@host", digest=digest_event(row))
        )
    fault = trail.verify_events()
    assert fault is not None
    assert (fault.sequence, fault.message) == (4, "event 4 does not follow the one before it")


def _shift(by: int, *sequences: int) -> list[str]:
    return [f"UPDATE events SET sequence = {one + by} WHERE sequence = {one}" for one in sequences]


@pytest.mark.parametrize(
    ("statements", "sequence", "message"),
    [
        (["DELETE FROM events WHERE sequence = 3"], 3, "event 3 is missing"),
        (["DELETE FROM events WHERE sequence = 1"], 1, "event 1 is missing"),
        (["DELETE FROM events WHERE sequence <= 3"], 1, "event 1 is missing"),
        (
            ["DELETE FROM events WHERE sequence = 3", *_shift(-1, 4, 5, 6)],
            3,
            "event 3 does not follow the one before it",
        ),
        (
            [f"UPDATE events SET sequence = {to} WHERE sequence = {at}" for at, to in ((3, 99), (4, 3), (99, 4))],
            3,
            "event 3 does not follow the one before it",
        ),
        (["UPDATE events SET sequence = 60 WHERE sequence = 6"], 6, "event 6 is missing"),
    ],
    ids=["deleted", "first-deleted", "start-deleted", "deleted-and-renumbered", "reordered", "renumbered"],
)
def test_events_that_were_removed_or_moved_are_found(
    trail: Registry, statements: list[str], sequence: int, message: str
) -> None:
    _run(trail, *statements)
    fault = trail.verify_events()
    assert fault is not None
    assert (fault.sequence, fault.message) == (sequence, message)


INSERT = (
    "INSERT INTO events SELECT {sequence}, '{previous}', '{digest}', at, actor, action, subject, details, environment"
    " FROM events WHERE sequence = 1"
)


@pytest.mark.parametrize(
    ("statements", "sequence", "message"),
    [
        ([INSERT.format(sequence=7, previous="a" * 64, digest="b" * 64)], 7, "event 7 does not follow"),
        ([INSERT.format(sequence=0, previous="a" * 64, digest="b" * 64)], 0, "event 0 comes before the first"),
        ([INSERT.format(sequence=-5, previous="a" * 64, digest="b" * 64)], -5, "event -5 comes before the first"),
        (
            [
                *_shift(1, 6, 5, 4, 3),
                INSERT.format(sequence=3, previous="a" * 64, digest="b" * 64),
            ],
            3,
            "event 3 does not follow",
        ),
    ],
    ids=["at-the-end", "at-zero", "before-zero", "between"],
)
def test_events_that_were_inserted_are_found(
    trail: Registry, statements: list[str], sequence: int, message: str
) -> None:
    _run(trail, *statements)
    fault = trail.verify_events()
    assert fault is not None
    assert fault.sequence == sequence
    assert fault.message.startswith(message)


def test_an_inserted_event_with_a_link_that_fits_is_altered_all_the_same(trail: Registry) -> None:
    newest = trail.events(limit=1)[0]
    _run(trail, INSERT.format(sequence=7, previous=newest.digest, digest="b" * 64))
    fault = trail.verify_events()
    assert fault is not None
    assert (fault.sequence, fault.message) == (7, "event 7 was altered")


def test_a_trail_cut_off_at_its_end_still_holds_as_is_documented(trail: Registry) -> None:
    _run(trail, "DELETE FROM events WHERE sequence > 4")
    assert trail.verify_events() is None


def test_a_digest_kept_elsewhere_shows_that_the_end_was_cut_off(trail: Registry) -> None:
    kept = trail.events_head()
    assert (kept.n_events, kept.digest) == (6, trail.events(limit=1)[0].digest)
    for since in (kept.digest, f"sha256:{kept.digest.upper()}", trail.events()[3].digest, GENESIS):
        assert trail.verify_events(since=since) is None
    _run(trail, "DELETE FROM events WHERE sequence > 4")
    assert trail.verify_events(since=trail.events_head().digest) is None
    trail.set_alias("m@new", "m@v1")  # grows over the cut
    fault = trail.verify_events(since=kept.digest)
    assert fault is not None
    assert (fault.sequence, "cut there or written anew" in fault.message) == (6, True)


def test_the_head_of_an_empty_trail_is_in_every_trail(any_registry: Registry) -> None:
    empty = any_registry.events_head()
    assert (empty.n_events, empty.digest) == (0, GENESIS)
    record(any_registry, "m")
    assert any_registry.verify_events(since=empty.digest) is None
    _run(any_registry, "DELETE FROM events")
    assert any_registry.verify_events(since=empty.digest) is None


@pytest.mark.parametrize("since", ["", "abc", "sha256:", "g" * 64, "v1"])
def test_what_is_no_digest_is_no_head(trail: Registry, since: str) -> None:
    with pytest.raises(InvalidInput, match="no digest of an event"):
        trail.verify_events(since=since)


NO_JSON = ["nonsense", '{"a": NaN}', "[" * 100_000, '"text"', ""]


def test_json_that_cannot_be_read_is_found_too(registry: Registry, subtests: pytest.Subtests) -> None:
    """Postgres keeps such text out by itself; SQLite takes anything."""
    record_all(registry, *({"model": "m"} for _ in range(3)))
    with registry.database.read() as connection:
        whole = connection.execute(text("SELECT details FROM events WHERE sequence = 2")).scalar()
    for details in NO_JSON:
        with subtests.test(details=details[:20]):
            _run(registry, "UPDATE events SET details = :details WHERE sequence = 2", details=details)
            fault = registry.verify_events()
            assert fault is not None
            assert (fault.sequence, fault.message) == (2, "event 2 was altered")
    _run(registry, "UPDATE events SET details = 'nonsense', at = x'00' WHERE sequence = 2")
    assert registry.verify_events() is not None
    with pytest.raises(DatabaseError, match="cannot be read"):
        registry.events()
    _run(registry, "UPDATE events SET details = :details WHERE sequence = 2", details=whole)
    assert registry.verify_events() is not None, "the instant is still altered"


def test_the_events_of_a_model_are_its_own(
    any_registry: Registry, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.record.check_new_model", lambda *_: None)  # as older releases, which let in m and M
    names = ["m", "M", "mm", "m-1", "m.x", "m_x", "mzx", "org/m", "org/m_x"]
    for name in names:
        record(any_registry, name)
        any_registry.set_alias(f"{name}@best", name)
    record(any_registry, "m")
    for name in names:
        with subtests.test(name=name):
            subjects = {one.subject for one in any_registry.events(name)}
            assert subjects == {f"{name}@v1", f"{name}@v2"} if name == "m" else {f"{name}@v1"}
            assert len(any_registry.events(name)) == (3 if name == "m" else 2)
    assert {one.subject for one in any_registry.events("m@v1")} == {"m@v1"}
    assert any_registry.events("nobody") == []
    assert any_registry.events("m_") == []


def test_events_are_filtered(trail: Registry) -> None:
    user, _, host = trail.events(limit=1)[0].actor.partition("@")
    assert [one.sequence for one in trail.events(action="alias.set")] == [5, 4]
    assert [one.sequence for one in trail.events(action="alias.set", limit=1)] == [5]
    assert [one.sequence for one in trail.events("m@v1", action="alias.set")] == [4]
    assert len(trail.events(actor=user)) == len(trail.events(actor=f"{user}@{host}")) == 6
    assert trail.events(actor=user[:-1]) == trail.events(actor=f"{user}@") == trail.events(action="alias") == []
    third = datetime.fromisoformat(trail.events()[3].at)
    assert [one.sequence for one in trail.events(since=third)] == [6, 5, 4, 3]
    assert [one.sequence for one in trail.events(until=third)] == [2, 1]
    assert trail.events(since=third, until=third) == []
    elsewhere = third.astimezone(timezone(timedelta(hours=9)))
    assert [one.sequence for one in trail.events(since=elsewhere, before=5)] == [4, 3]
    with pytest.raises(InvalidInput, match="time zone"):
        trail.events(since=datetime(2026, 1, 1))


def test_events_are_kept_under_models_and_versions_only(trail: Registry, subtests: pytest.Subtests) -> None:
    for subject in ("m@best", "m@step-1", "sha256:abcdef", "m@", "%", "", "m@v1\x00"):
        with subtests.test(subject=subject), pytest.raises(InvalidRef):
            trail.events(subject)


def test_a_user_s_name_that_is_no_text_is_written_as_near_as_can_be(
    any_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "caf\udce9")
    record(any_registry, "m")
    assert any_registry.events()[0].actor.startswith("caf?@")
    assert any_registry.verify_events() is None
