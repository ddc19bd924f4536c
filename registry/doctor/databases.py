"""The database as a connection finds it: schema, settings, wholeness, rights, clock, and the end of the audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection, String, func, inspect, select, text

from registry.audit import read_head
from registry.database import Database
from registry.doctor.finding import Finding, State
from registry.schema import SCHEMA_REVISION, check_schema
from registry.tables import events, metadata, versions

N_SHOWN = 5
_OLDEST_POSTGRES = 13
_SKEW_SECONDS = 60.0
# what a connection must have set, and why
_PRAGMAS = {
    "journal_mode": ("wal", "Readers wait for writers."),
    "synchronous": (2, "What was acknowledged may be lost when the power fails."),
    "foreign_keys": (1, "Rows may be left without those that they belong to."),
}
_SYNCED = {
    "fsync": "A crash of the server's machine may damage the whole database.",
    "full_page_writes": "A crash of the server's machine may damage the whole database.",
    "synchronous_commit": "What was acknowledged may be lost when the server's machine crashes.",
}


def examine_schema(database: Database) -> Iterator[Finding]:
    """Check that the schema is this code's; what is wrong with it is an error that says what to do."""
    if database.file is not None and not database.file.exists():
        yield Finding("schema", "note", f"{database} is not there yet.", "It is set up on first use.")
    elif check_schema(database):
        yield Finding("schema", "note", f"{database} is empty.", "It is set up on first use.")
    else:
        yield Finding("schema", "ok", f"{SCHEMA_REVISION}")


def has_schema(findings: list[Finding]) -> bool:
    """Whether `examine_schema` found tables that can be asked."""
    return [one.state for one in findings] == ["ok"]


def examine_sqlite(database: Database) -> Iterator[Finding]:
    """Check what is set on a connection, and the structure of the file."""
    with database.read_alone() as connection:
        found = [row[0] for row in connection.execute(f"PRAGMA quick_check({N_SHOWN})")]
    if found == ["ok"]:
        yield Finding("SQLite file", "ok", "quick_check finds nothing wrong")
    else:
        damage = "; ".join(str(one) for one in found)[:500]
        to_do = "Restore a backup; keep the damaged file. Do not write to it."
        yield Finding("SQLite file", "fault", f"It is damaged: {damage}", to_do)
    with database.read() as asked:
        for name, (wanted, otherwise) in _PRAGMAS.items():
            value = asked.exec_driver_sql(f"PRAGMA {name}").scalar()
            if value != wanted:
                state: State = "note" if name == "journal_mode" else "fault"
                to_do = f"{otherwise} It is set on every connection where the file can be written."
                yield Finding(f"SQLite {name}", state, f"{name} is {value}, not {wanted}.", to_do)
            else:
                yield Finding(f"SQLite {name}", "ok", str(value))


def examine_postgres(database: Database) -> Iterator[Finding]:
    """Check the server: release, encoding, what it syncs, isolation, rights."""
    with database.read() as connection:
        yield from _examine_server(connection)
        yield from _examine_syncing(connection)
        yield _examine_clock("server clock", connection.execute(select(func.clock_timestamp())).scalar_one())


def _show(connection: Connection, name: str) -> str:
    return str(connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one())


def _examine_server(connection: Connection) -> Iterator[Finding]:
    number, release = int(_show(connection, "server_version_num")) // 10_000, _show(connection, "server_version")
    if number < _OLDEST_POSTGRES:
        to_do = f"Use Postgres {_OLDEST_POSTGRES} or later."
        yield Finding("Postgres", "fault", f"Postgres {release} is too old.", to_do)
    else:
        yield Finding("Postgres", "ok", f"Postgres {release}, time zone {_show(connection, 'TimeZone')}")
    encoding = _show(connection, "server_encoding")
    if encoding != "UTF8":
        to_do = "Make a database with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and move there."
        yield Finding("encoding", "fault", f"The database keeps text as {encoding}.", to_do)
    else:
        yield Finding("encoding", "ok", encoding)
    if connection.execute(text("SELECT pg_is_in_recovery()")).scalar():
        yield Finding("server role", "note", "The server is a standby: it can only be read, and may lag behind.")
    if _show(connection, "default_transaction_read_only") == "on":
        yield Finding("server role", "note", "Transactions of this role are read-only: nothing can be registered.")
    isolation = _show(connection, "default_transaction_isolation")
    to_do = "Writers queue behind a lock; with stricter isolation they see what was before they had it: ALTER ROLE … "
    to_do += "SET default_transaction_isolation = 'read committed'."
    if isolation != "read committed":
        yield Finding("isolation", "fault", f"Transactions begin as {isolation}.", to_do)
    else:
        yield Finding("isolation", "ok", isolation)


def _examine_syncing(connection: Connection) -> Iterator[Finding]:
    off = {name: why for name, why in _SYNCED.items() if _show(connection, name) == "off"}
    for name, why in off.items():
        yield Finding(f"Postgres {name}", "warning", f"{name} is off. {why}", f"Set {name} = on.")
    if not off:
        yield Finding("Postgres syncing", "ok", ", ".join(_SYNCED))


def examine_rights(database: Database) -> Iterator[Finding]:
    """Check what this role may do with the tables, and that their text is sorted by code point."""
    with database.read() as connection:
        lacking: dict[str, list[str]] = {}
        for name in metadata.tables:
            for right in ("SELECT", "INSERT"):
                query = text("SELECT has_table_privilege(:name, :right)")
                if not connection.execute(query, {"name": name, "right": right}).scalar():
                    lacking.setdefault(right, []).append(name)
        if unread := lacking.get("SELECT"):
            to_do = "Ask for GRANT SELECT on all tables of the registry."
            yield Finding("rights", "fault", f"This role may not read {', '.join(sorted(unread))}.", to_do)
        elif unwritten := lacking.get("INSERT"):
            some = "nothing can be registered" if len(unwritten) == len(metadata.tables) else "not everything works"
            found = f"This role may not write to {', '.join(sorted(unwritten))}: {some}."
            yield Finding("rights", "note", found)
        else:
            yield Finding("rights", "ok", "all tables can be read and written")
        yield _examine_collations(connection)


def _examine_collations(connection: Connection) -> Finding:
    found = inspect(connection)
    wrong = []
    for table in metadata.sorted_tables:
        there = {one["name"]: getattr(one["type"], "collation", None) for one in found.get_columns(table.name)}
        for column in table.columns:
            declared = column.type.dialect_impl(connection.dialect)
            if isinstance(declared, String) and declared.collation and there.get(column.name) != declared.collation:
                wrong.append(f"{table.name}.{column.name}")
    if wrong:
        to_do = 'They were altered by hand. ALTER TABLE … ALTER COLUMN … TYPE … COLLATE "C".'
        return Finding("collation", "fault", f"Not compared by code point: {', '.join(wrong)}.", to_do)
    return Finding("collation", "ok", "names are compared by code point")


def examine_trail(database: Database) -> Iterator[Finding]:
    """Show where the audit trail ends, and check the clock against its newest event."""
    with database.read() as connection:
        head = read_head(connection)
        newest = connection.execute(select(events.c.at).order_by(events.c.sequence.desc()).limit(1)).scalar()
    kept = "Keep the digest elsewhere, and check with lensreg audit verify --since."
    yield Finding("audit trail", "ok", f"{head.n_events:,} events; the newest is sha256:{head.digest}", kept)
    if newest is not None:
        yield _examine_clock("clock", datetime.fromisoformat(newest), what="the newest event")


def _examine_clock(check: str, other: datetime, what: str = "the server") -> Finding:
    ahead = (other - datetime.now(UTC)).total_seconds()
    is_wrong = ahead > _SKEW_SECONDS or (what == "the server" and ahead < -_SKEW_SECONDS)
    if is_wrong:
        found = f"This machine's clock is {abs(ahead):,.0f} s {'behind' if ahead > 0 else 'ahead of'} {what}."
        to_do = "Set it (NTP). The order of events and versions goes by number, but their times will seem wrong."
        return Finding(check, "warning", found, to_do)
    return Finding(check, "ok", f"not behind {what}")


def read_largest_version(database: Database) -> int:
    """Return the size of the largest version in bytes."""
    with database.read() as connection:
        return int(connection.execute(select(func.max(versions.c.size_bytes))).scalar() or 0)
