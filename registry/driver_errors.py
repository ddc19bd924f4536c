"""Errors of SQLite, Postgres and SQLAlchemy, and those of damaged rows, as errors of ours."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy

from registry.errors import (
    ConnectionLost,
    DatabaseError,
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidInput,
    NotPermitted,
    QueryTimeout,
    RegistryBusy,
    RegistryError,
    StorageFull,
)

_WAL_BYTES = 64 * 2**10  # and more, that the -wal and -shm files of a first connection take


@contextlib.contextmanager
def type_driver_errors(database: object, file: Path | None) -> Iterator[None]:
    """Raise ours instead of what comes up in the block; `database` is what it is called, `file` that of SQLite."""
    try:
        yield
    except sqlalchemy.exc.DataError as error:
        raise _refuse_value(error.orig) from error
    except sqlalchemy.exc.DBAPIError as error:
        raise _type_error(database, file, error) from error
    except (UnicodeEncodeError, OverflowError) as error:
        raise _refuse_value(error) from error
    except sqlalchemy.exc.TimeoutError as error:
        raise RegistryBusy(f"Too many threads use {database} at once.", hint="Try again.") from error
    except json.JSONDecodeError as error:
        raise DatabaseError(
            f"{database} holds a row that cannot be read: {error}.",
            hint="It was altered by hand or damaged. See: lensreg audit verify; then restore a backup.",
        ) from error


def _refuse_value(error: BaseException | None) -> InvalidInput:
    """Say of what got past our own checks that the driver, or the database, cannot hold it."""
    return InvalidInput(
        f"A value cannot be stored or looked for: {' '.join(str(error).split())[:300]}.",
        hint="Give text without NUL or lone surrogates, and whole numbers of at most 64 bits.",
    )


def _type_error(database: object, file: Path | None, error: sqlalchemy.exc.DBAPIError) -> RegistryError:
    """Tell busy from forbidden from read-only from full from lost from unreachable, for both databases."""
    said = " ".join(str(error.orig).split()).rstrip(".?")
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, sqlalchemy.exc.IntegrityError):
        return DatabaseError(
            f"{database} refused what was to be written: {said}.",
            hint="Nothing was written. This is a fault in lens-registry; please report it.",
        )
    if "database is locked" in said or state == "55P03":
        return RegistryBusy(f"{database} is busy: {said}.", hint="Try again.")
    if state in ("42501", "3F000"):  # the second: none of the search_path's schemas is there, or open to this role
        return NotPermitted(
            f"{database} does not let this role do it: {said}.",
            hint="Have its administrator run what `lensreg db grants` prints, or use another role in the URL.",
        )
    if "readonly" in said or "read-only" in said or state == "25006":
        return DatabaseReadOnly(
            f"{database} cannot be written to: {said}.",
            hint="Check your permissions on it, or point --registry at another database.",
        )
    if "disk is full" in said or state == "53100" or ("disk I/O error" in said and _is_full(file)):
        return StorageFull(
            f"There is no space left for {database}.",
            hint="Make room, which works on a full disk, too: lensreg gc. Nothing was registered.",
        )
    if state == "57014":
        return QueryTimeout(
            f"{database} took too long: {said}.",
            hint="Try again, or give it longer: ?statement_timeout=5min in the URL.",
        )
    if error.connection_invalidated:
        return ConnectionLost(f"The connection to {database} was lost: {said}.", hint="Nothing was written. Try again.")
    return DatabaseUnavailable(
        f"{database} cannot be used: {said}.",
        hint="Check that the path or the URL is right and, for Postgres, that the server answers.",
    )


def _is_full(file: Path | None) -> bool:
    """Say whether there is no room for the files that SQLite makes beside the database even to read it."""
    try:
        return file is not None and shutil.disk_usage(file.parent).free < _WAL_BYTES
    except OSError:
        return False
