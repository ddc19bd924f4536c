"""The audit trail: one event for every change, in the change's own transaction, each holding its predecessor's digest.

Events are ordered by sequence, never by clock. The chain shows any event that was altered, removed, inserted or moved;
it cannot show that its newest events were cut off, unless somebody kept the digest of the newest elsewhere.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy import JSON, Connection, Row, Text, cast, func, select

from registry.errors import InvalidInput, InvalidRef
from registry.refs import parse_ref
from registry.settings import read_ci_variables
from registry.tables import events

GENESIS = "0" * 64


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
class ChainFault:
    """The first event at which the chain does not hold, and why."""

    sequence: int
    message: str


def append_event(connection: Connection, action: str, subject: str, details: Mapping[str, Any]) -> None:
    """Append one event within the caller's write transaction, which must be the only writer."""
    last = connection.execute(
        select(events.c.sequence, events.c.digest).order_by(events.c.sequence.desc()).limit(1)
    ).first()
    row: dict[str, Any] = {
        "sequence": last.sequence + 1 if last else 1,
        "previous_digest": last.digest if last else GENESIS,
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        # a name from the environment may hold bytes that are no text
        "actor": f"{_user()}@{socket.gethostname()}"[:255].encode(errors="replace").decode(),
        "action": action,
        "subject": subject,
        "details": dict(details),
        "environment": describe_environment(),
    }
    connection.execute(events.insert().values(digest=digest_event(row), **row))


def read_events(connection: Connection, subject: str | None = None, limit: int | None = None) -> list[Event]:
    """Return events, newest first; `subject` is a model (with all its versions) or one version, `NAME@vN`."""
    if limit is not None and not 0 <= limit < 2**31:
        raise InvalidInput(f"{limit} is no number of events.", hint="Leave it out to have all of them.")
    query = select(events).order_by(events.c.sequence.desc()).limit(limit)
    if subject is not None:
        if parse_ref(subject).kind not in ("newest", "number"):
            raise InvalidRef(f"Events are not kept under {subject}.", hint="Write NAME or NAME@vN.", ref=subject)
        # not LIKE: on SQLite it takes upper case for lower
        start = func.substr(events.c.subject, 1, len(subject) + 1)
        query = query.where((events.c.subject == subject) | (start == f"{subject}@"))
    return [_make_event(row) for row in connection.execute(query)]


def verify_chain(connection: Connection) -> ChainFault | None:
    """Walk the chain from its beginning and return the first fault, or None."""
    previous = GENESIS
    as_text = [cast(one, Text).label(one.name) if isinstance(one.type, JSON) else one for one in events.c]
    rows = connection.execute(select(*as_text).order_by(events.c.sequence))
    for sequence, row in enumerate(rows, start=1):
        if row.sequence < sequence:
            return ChainFault(row.sequence, f"event {row.sequence} comes before the first")
        if row.sequence > sequence:
            return ChainFault(sequence, f"event {sequence} is missing")
        if row.previous_digest != previous:
            return ChainFault(sequence, f"event {sequence} does not follow the one before it")
        if row.digest != _digest_as_read(row):
            return ChainFault(sequence, f"event {sequence} was altered")
        previous = row.digest
    return None


@lru_cache
def describe_environment() -> dict[str, Any]:
    """Name the versions of what converts and records, and what the environment says of the job."""
    packages: dict[str, str | None] = {}
    for package in ("lens-registry", "torch", "transformers", "transformer-lens"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return {"packages": packages, "job": read_ci_variables()}


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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
