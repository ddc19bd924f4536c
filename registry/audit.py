"""The audit trail: one event for every change, in the change's own transaction, each holding its predecessor's digest.

Events are ordered by sequence, never by clock. The chain shows any event that was altered, removed, inserted or moved;
it cannot show that its newest events were cut off, unless somebody kept the digest of the newest elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ColumnElement, Connection, Row, Text, cast, func, select

from registry.database import note_event
from registry.environment import describe_actor, describe_environment
from registry.errors import InvalidInput, InvalidRef
from registry.refs import check_count, check_instant, check_limit, check_text, parse_ref
from registry.rows import check_row
from registry.tables import events

GENESIS = "0" * 64
_HEAD = select(events.c.sequence, events.c.digest).order_by(events.c.sequence.desc()).limit(1)
_FIRST = select(events.c.digest).where(events.c.sequence == 1)
_INSERT = events.insert()


@dataclass(frozen=True)
class Event:
    """One change: who did what to what, when, and from where."""

    sequence: int
    at: str
    actor: str
    action: str
    subject: str
    details: Mapping[str, Any]
    environment: Mapping[str, Any]
    previous_digest: str
    digest: str


@dataclass(frozen=True)
class EventFilters:
    """Which events are wanted: of one `action`, by one `actor` (`user@host`, or the user on any host), of which time.

    `since` is included, `until` is not; both are as the clocks of those who wrote them had it.
    """

    action: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Head:
    """Where the trail ends: how many events there are, and the digest of the newest, which stands for all of them."""

    n_events: int
    digest: str


@dataclass(frozen=True)
class ChainFault:
    """The first event at which the chain does not hold, and why."""

    sequence: int
    message: str


def append_event(connection: Connection, action: str, subject: str, details: Mapping[str, Any]) -> None:
    """Append one event within the caller's write transaction, which must be the only writer."""
    append_events(connection, [(action, subject, details)])


def append_events(connection: Connection, changes: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Append an event for each (action, subject, details), in order, as `append_event` does for one."""
    head = read_head(connection)
    sequence, previous = head.n_events, head.digest
    at, actor = datetime.now(UTC).isoformat(timespec="microseconds"), describe_actor()
    environment = describe_environment()
    rows = []
    for action, subject, details in changes:
        sequence += 1
        row: dict[str, Any] = {
            "sequence": sequence,
            "previous_digest": previous,
            "at": at,
            "actor": actor,
            "action": action,
            "subject": subject,
            "details": dict(details),
            "environment": environment,
        }
        previous = digest_event(check_row(events, row))
        rows.append({**row, "digest": previous})
    if rows:
        connection.execute(_INSERT, rows)
        note_event(connection, previous)


def read_registry_id(connection: Connection) -> str | None:
    """Return what tells this registry from every other: the digest of its first event; None while there is none."""
    return connection.execute(_FIRST).scalar()


def read_events(
    connection: Connection,
    subject: str | None = None,
    limit: int | None = None,
    *,
    before: int | None = None,
    filters: EventFilters | None = None,
) -> list[Event]:
    """Return events, newest first; `subject` is a model (with all its versions) or one version, `NAME@vN`.

    `before` is the sequence of an event that they all came before.
    """
    query = select(events.c.sequence).order_by(events.c.sequence.desc()).limit(check_limit(limit))
    if before is not None:
        query = query.where(events.c.sequence < check_count(before, "sequence"))
    if subject is not None:
        if parse_ref(subject).kind not in ("newest", "number"):
            raise InvalidRef(f"Events are not kept under {subject}.", hint="Write NAME or NAME@vN.", ref=subject)
        # not LIKE: on SQLite it takes upper case for lower. A is the character after @
        of_versions = (events.c.subject > f"{subject}@") & (events.c.subject < f"{subject}A")
        query = query.where((events.c.subject == subject) | of_versions)
    if filters is not None:
        query = query.where(*_make_conditions(filters))
    # the index alone says which ones they are; only those are read whole
    wanted = query.subquery()
    found = select(events).join(wanted, wanted.c.sequence == events.c.sequence).order_by(events.c.sequence.desc())
    return [_make_event(row) for row in connection.execute(found)]


def _make_conditions(filters: EventFilters) -> Iterator[ColumnElement[bool]]:
    if filters.action is not None:
        yield events.c.action == check_text(filters.action, "action")
    if filters.actor is not None:
        start = f"{check_text(filters.actor, 'actor')}@"
        yield (events.c.actor == filters.actor) | (func.substr(events.c.actor, 1, len(start)) == start)
    for instant, is_start in ((filters.since, True), (filters.until, False)):
        if instant is None:
            continue
        text = check_instant(instant).isoformat(timespec="microseconds")  # as events are written, so that text sorts
        yield events.c.at >= text if is_start else events.c.at < text


def read_head(connection: Connection) -> Head:
    """Return where the trail ends: keep it elsewhere, and `verify_chain` notices if the end was cut off."""
    row = connection.execute(_HEAD).first()
    return Head(row.sequence, row.digest) if row else Head(0, GENESIS)


def verify_chain(connection: Connection, since: str | None = None) -> ChainFault | None:
    """Walk the chain from its beginning and return the first fault, or None.

    `since` is the digest of an event that was the newest once, as `read_head` gave it: the trail must still hold it.
    """
    wanted = None if since is None else _parse_digest(since)
    as_text = [cast(one, Text).label(one.name) if isinstance(one.type, JSON) else one for one in events.c]
    # not all at once, which a driver would keep in memory
    query = select(*as_text).order_by(events.c.sequence).execution_options(yield_per=500)
    with connection.execute(query) as rows:
        return _find_fault(rows, wanted)


def _find_fault(rows: Iterable[Row[Any]], wanted: str | None) -> ChainFault | None:
    previous, n_events, held = GENESIS, 0, wanted in (None, GENESIS)
    for sequence, row in enumerate(rows, start=1):
        if row.sequence < sequence:
            return ChainFault(row.sequence, f"event {row.sequence} comes before the first")
        if row.sequence > sequence:
            return ChainFault(sequence, f"event {sequence} is missing")
        if row.previous_digest != previous:
            return ChainFault(sequence, f"event {sequence} does not follow the one before it")
        if row.digest != _digest_as_read(row):
            return ChainFault(sequence, f"event {sequence} was altered")
        previous, n_events, held = row.digest, sequence, held or row.digest == wanted
    if not held:
        return ChainFault(
            n_events + 1,
            f"no event has the digest {wanted} that was the newest once: the trail was cut there or written anew, "
            f"and the {n_events} events that are there came after, or instead",
        )
    return None


def _parse_digest(text: str) -> str:
    digest = text.strip().lower().removeprefix("sha256:")
    if len(digest) != len(GENESIS) or set(digest) - set("0123456789abcdef"):
        raise InvalidInput(
            f"{text!r} is no digest of an event.", hint="Give the 64 digits that lensreg audit head printed then."
        )
    return digest


def digest_event(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that an event's row says, its predecessor's digest included."""
    content = {name: row[name] for name in (column.name for column in events.c) if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_as_read(row: Row[Any]) -> str | None:
    """Digest a row whose JSON is still text; None if it holds what no event can."""
    try:
        read = {name: json.loads(getattr(row, name)) for name in ("details", "environment")}
        return digest_event({**row._asdict(), **read})
    except (ValueError, TypeError, RecursionError):
        return None


def _make_event(row: Row[Any]) -> Event:
    return Event(**row._asdict())
