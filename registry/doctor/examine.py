"""All checks in order: which registry this is, packages, the database from outside and from inside, the store."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from registry.database import Database
from registry.doctor import databases, places
from registry.doctor.buckets import examine_bucket
from registry.doctor.finding import Finding, report_errors
from registry.doctor.packages import examine_packages, examine_sqlite_library
from registry.errors import RegistryError
from registry.store.bucket import Bucket


def examine_registry(
    database: Database, root: Path, bucket: Bucket | None = None, *, read_only: bool = False
) -> list[Finding]:
    """Check everything; `root` is the store's folder, or its cache if it is in a bucket.

    Nothing is written but a temporary file, or object, where one can be; with `read_only` not even that.
    """
    findings = list(places.examine_settings(database, root if bucket is None else str(bucket.url)))
    findings += report_errors("packages", examine_packages)
    path = database.file
    if path is not None:
        findings.append(examine_sqlite_library())
        examine = partial(
            places.examine_folder,
            "database",
            path.parent,
            is_database=True,
            at_own_risk=database.on_network,
            read_only=read_only,
        )
        findings += report_errors("database folder", examine)
        findings += report_errors("database permissions", partial(places.examine_database_file, path))
    schema = report_errors("schema", partial(databases.examine_schema, database))
    findings += schema
    largest = 0
    if path is None and not any(one.state == "fault" for one in schema):
        findings += report_errors("Postgres", partial(databases.examine_postgres, database))
    if databases.has_schema(schema):
        inside = {"SQLite": databases.examine_sqlite} if path else {"rights": databases.examine_rights}
        for check, one in {**inside, "audit trail": databases.examine_trail}.items():
            findings += report_errors(check, partial(one, database))
        largest = _read_largest(database)
    if path is not None:
        ballast = Path(f"{path}{places.BALLAST}") if databases.has_schema(schema) else None
        findings += report_errors("database", partial(places.examine_room, "database", path.parent, 0, ballast))
    if bucket is not None:
        findings += examine_bucket(bucket, read_only=read_only)
    what = "store" if bucket is None else "cache"
    examine = partial(places.examine_folder, what, root, is_database=False, read_only=read_only)
    findings += report_errors(what, examine)
    findings += report_errors(what, partial(places.examine_room, what, root, largest))
    findings += report_errors("leftovers", partial(places.examine_leftovers, root))
    return findings


def _read_largest(database: Database) -> int:
    try:
        return databases.read_largest_version(database)
    except RegistryError:  # it is a finding already
        return 0
