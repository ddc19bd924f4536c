"""Where a registry is: its database, checked on first use, and its store."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from registry.database import Database
from registry.errors import DatabaseUnavailable, SchemaOutdated, StorageFull
from registry.schema import SCHEMA_REVISION, prepare_schema, read_revision, upgrade_schema
from registry.settings import read_settings
from registry.store import open_store
from registry.store.derived import DerivedFiles

if TYPE_CHECKING:
    from registry.versions import Version

T = TypeVar("T")


class OpenedRegistry:
    """The database and the store that every method works on; as a context manager, it is closed at the end."""

    def __init__(self, url: str | None = None, store: str | Path | None = None) -> None:
        settings = read_settings(url, store)
        self.settings = settings
        self.store = open_store(settings)
        self.derived = DerivedFiles(self.store, settings.derived_bytes)
        self._unprepared = Database(settings.url, on_network=settings.on_network)
        if self._unprepared.file is not None:
            self.store.database_folder = self._unprepared.file.absolute().parent
        self._threw_off_ballast = False
        self._is_strict = settings.is_strict

    def __repr__(self) -> str:
        return f"Registry({str(self._unprepared)!r}, store={str(self.store)!r})"

    @cached_property
    def database(self) -> Database:
        """The database, once its schema has been checked; one that is a little older can only be read."""
        try:
            prepare_schema(self._unprepared)
        except SchemaOutdated as error:
            from registry.older_schema import open_older

            return open_older(self._unprepared, error)
        return self._unprepared

    def _refuse_older(self) -> None:
        """Raise SchemaOutdated at once if the database can only be read, before work is done that ends in writing."""
        if self.database is not self._unprepared:
            with self.database.write():
                pass

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema to this code's version; return the revision before and after."""
        before, _ = read_revision(self._unprepared)
        upgrade_schema(self._unprepared)
        self._close_older()
        return before, SCHEMA_REVISION

    def status(self) -> dict[str, str | None]:
        """Say where the database and the store are, and which schema it has and needs."""
        schema, _ = read_revision(self._unprepared)
        return {
            "database": str(self._unprepared),
            "store": str(self.store),
            "schema": schema,
            "needed_schema": SCHEMA_REVISION,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the database's connections back."""
        self._close_older()
        self._unprepared.close()
        if self._threw_off_ballast:
            from registry.ballast import set_ballast_aside

            set_ballast_aside(self._unprepared)

    def _close_older(self) -> None:
        """Close the database if it is one that can only be read, and have it looked at again when it is used."""
        if self.__dict__.get("database", self._unprepared) is not self._unprepared:
            self.__dict__.pop("database").close()

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do the work; if there is no space left for it, throw off the ballast and try once more."""
        try:
            return work()
        except (StorageFull, DatabaseUnavailable):  # the latter is all that SQLite says of a disk quota
            from registry.ballast import throw_off_ballast

            self._unprepared.close()
            if not throw_off_ballast(self._unprepared):
                raise
            self._threw_off_ballast = True
            return work()

    def _find(self, ref: str) -> Version:
        """Return the version that `ref` means, which must be in use."""
        from registry.query import read_version
        from registry.resolve import refuse_retired, resolve_ref

        with self.database.read() as connection:
            resolved = resolve_ref(connection, ref)
            refuse_retired(resolved)
            return read_version(connection, resolved.id)

    def version(self, ref: str) -> Version:
        """Return everything that is recorded of the version that `ref` means."""
        from registry.query import read_version
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            return read_version(connection, resolve_ref(connection, ref).id)
