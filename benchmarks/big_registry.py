"""Fill a registry with many versions fast: the rows of a big team's years, with no bytes behind them.

    python -m benchmarks.big_registry FOLDER --versions 100000 --models 100 --depth 1000

Models hold chains of versions `depth` long, each chain's first version a child of the one base; every version has its
step, two tags, its parity and one metric; every model has aliases with a past. The chain of events is whole: `audit
verify` accepts it. The same arguments give the same rows, but for instants.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, select, text

from registry import Registry
from registry.architecture import describe_architecture
from registry.audit import GENESIS, digest_event
from registry.tables import (
    aliases,
    architectures,
    blobs,
    events,
    models,
    tags,
    validations,
    version_files,
    version_parents,
    versions,
)

BASE = "base"
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
_BATCH = 10_000
_ARCHITECTURE = describe_architecture(
    d_model=64,
    n_layers=2,
    n_heads=4,
    d_head=16,
    d_mlp=256,
    d_vocab=211,
    n_ctx=96,
    act_fn="gelu_new",
    normalization_type="LN",
    eps=1e-5,
    positional_embedding_type="standard",
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Spec:
    """How big: `n_versions` spread over `n_models`, in chains of `depth` generations below the base."""

    n_versions: int = 100_000
    n_models: int = 100
    depth: int = 1000


@dataclass(frozen=True)
class _One:
    """One version to be: its ids, its name, and its parent's."""

    id: int
    model_id: int
    model: str
    number: int
    parent: _One | None

    @property
    def ref(self) -> str:
        return f"{self.model}@v{self.number}"

    @property
    def at(self) -> datetime:
        return _BEGINNING + timedelta(seconds=self.id)


def name_model(index: int) -> str:
    """Return the name of the model `index`, counted from 0."""
    return f"team-{index % 10}/model-{index:05}"


def digest_of(what: object) -> str:
    """Make up a SHA-256, the same for the same thing."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def fill(registry: Registry, spec: Spec) -> None:
    """Fill a fresh registry, in one transaction."""
    with registry.database.write() as connection:
        if connection.execute(select(versions.c.id).limit(1)).first():
            raise ValueError(f"{registry} is not empty")
        names = [BASE, *map(name_model, range(spec.n_models))]
        _insert(
            connection, models, ({"id": i, "name": name, "created_at": _BEGINNING} for i, name in enumerate(names, 1))
        )
        _insert(
            connection,
            architectures,
            [{"fingerprint": _ARCHITECTURE.fingerprint, "fields": dict(_ARCHITECTURE.fields)}],
        )
        _insert(connection, blobs, [{"digest": digest_of("config"), "size_bytes": 300, "created_at": _BEGINNING}])
        for some in _batch(_plan(spec)):
            _insert_versions(connection, some)
        _insert(connection, aliases, map(_alias_row, _plan_aliases(spec)))
        _insert(connection, events, _event_rows(spec))
        if not registry.database.is_sqlite:
            _count_on(connection)
    _analyse(registry)


def _plan(spec: Spec) -> Iterator[_One]:
    """Name the versions, parents before children; a model's versions follow each other."""
    ids = count(1)
    base = _One(next(ids), 1, BASE, 1, None)
    yield base
    each, left = divmod(spec.n_versions - 1, spec.n_models)
    for index in range(spec.n_models):
        previous = base
        for number in range(1, each + 1 + (index < left)):
            parent = base if (number - 1) % spec.depth == 0 else previous
            previous = _One(next(ids), index + 2, name_model(index), number, parent)
            yield previous


def _insert_versions(connection: Connection, some: list[_One]) -> None:
    weights = {one.id: digest_of((one.ref, "weights")) for one in some}
    files = {one.id: digest_of((one.ref, "file")) for one in some}
    _insert(connection, blobs, ({"digest": files[one.id], "size_bytes": 4000, "created_at": one.at} for one in some))
    _insert(connection, versions, (_version_row(one, weights[one.id]) for one in some))
    _insert(connection, version_files, (row for one in some for row in _file_rows(one, files[one.id])))
    _insert(
        connection,
        version_parents,
        (
            {
                "version_id": one.id,
                "parent_id": one.parent.id,
                "relation": _relation(one),
                "admitted_differences": [],
            }
            for one in some
            if one.parent
        ),
    )
    _insert(
        connection,
        tags,
        ({"version_id": one.id, "key": key, "value": value} for one in some for key, value in _tags(one).items()),
    )
    _insert(connection, validations, (row for one in some for row in _validation_rows(one)))


def _relation(one: _One) -> str:
    return "continued" if one.parent and one.parent.model == one.model else "finetuned"


def _tags(one: _One) -> dict[str, str]:
    return {"seed": str(one.number % 7), "run": f"run-{one.model_id}"}


def _version_row(one: _One, weights_digest: str) -> dict[str, Any]:
    return {
        "id": one.id,
        "model_id": one.model_id,
        "number": one.number,
        "step": one.number * 10,
        "family": "gpt2",
        "fingerprint": _ARCHITECTURE.fingerprint,
        "weights_digest": weights_digest,
        "vocabulary_digest": None,
        "layout": "huggingface",
        "processing": None,
        "dtype": "float32",
        "n_parameters": 1000,
        "size_bytes": 4300,
        "source_kind": "huggingface",
        "source_location": "/made/up",
        "provenance": {},
        "note": None,
        "findings": [],
        "operation_id": digest_of(one.id)[:32],
        "created_at": one.at,
    }


def _file_rows(one: _One, digest: str) -> list[dict[str, Any]]:
    return [
        {"version_id": one.id, "name": "config.json", "role": "config", "digest": digest_of("config")},
        {"version_id": one.id, "name": "model.safetensors", "role": "weights", "digest": digest},
    ]


def _validation_rows(one: _One) -> list[dict[str, Any]]:
    def row(suite: str, metric: str, value: float, bound: float | None, **more: Any) -> dict[str, Any]:
        return {
            "version_id": one.id,
            "suite": suite,
            "metric": metric,
            "value": value,
            "bound": bound,
            "passed": True if bound else None,
            "unit": "nats",
            "dtype": "float64",
            "n_samples": 128,
            "dataset_digest": digest_of("probe"),
            "details": more,
            "environment": {},
            "created_at": one.at,
        }

    return [
        row("parity", "raw", 1e-6, 1e-4, noise_floor=1e-7),
        row("parity", "processed", 2e-6, 1e-4, noise_floor=1e-7),
        row("held-out", "loss", 4 - one.number % 1000 / 1000, None),
    ]


@dataclass(frozen=True)
class _Span:
    """One stretch of an alias's life."""

    name: str
    one: _One
    set_at: datetime
    before: _One | None = None
    removed_at: datetime | None = None


def _plan_aliases(spec: Spec) -> Iterator[_Span]:
    """Give every model `first`, and `best`, which has moved from its first version to its newest."""
    newest = {one.model_id: one for one in _plan(spec)}
    first = {one.model_id: one for one in _plan(spec) if one.number == 1}
    end = _BEGINNING + timedelta(seconds=spec.n_versions)
    for model_id, one in first.items():
        set_at, moved_at = end + timedelta(seconds=2 * model_id), end + timedelta(seconds=2 * model_id + 1)
        yield _Span("first", one, set_at)
        yield _Span("best", one, set_at, removed_at=moved_at)
        yield _Span("best", newest[model_id], moved_at, before=one)


def _alias_row(span: _Span) -> dict[str, Any]:
    return {
        "model_id": span.one.model_id,
        "name": span.name,
        "version_id": span.one.id,
        "set_at": span.set_at,
        "removed_at": span.removed_at,
    }


def _event_rows(spec: Spec) -> Iterator[dict[str, Any]]:
    """Chain an event for every version and every alias."""
    previous = GENESIS
    told = chain(map(_tell_registered, _plan(spec)), map(_tell_alias, _plan_aliases(spec)))
    for sequence, what in enumerate(told, 1):
        row = {"sequence": sequence, "previous_digest": previous, "actor": "ada@lab", "environment": {}, **what}
        previous = digest_event(row)
        yield row | {"digest": previous}


def _tell_registered(one: _One) -> dict[str, Any]:
    """Say what `record_version` says of a version."""
    return {
        "at": one.at.isoformat(timespec="microseconds"),
        "action": "version.registered",
        "subject": one.ref,
        "details": {
            "weights_digest": digest_of((one.ref, "weights")),
            "fingerprint": _ARCHITECTURE.fingerprint,
            "vocabulary_digest": None,
            "files": {"config.json": digest_of("config"), "model.safetensors": digest_of((one.ref, "file"))},
            "parents": {one.parent.ref: _relation(one)} if one.parent else {},
            "admitted": [],
            "step": one.number * 10,
            "tags": _tags(one),
            "note": None,
            "source": {"kind": "huggingface", "location": "/made/up"},
            "parity": {"raw": 1e-6, "processed": 2e-6},
        },
    }


def _tell_alias(span: _Span) -> dict[str, Any]:
    """Say what `set_alias` says of an alias."""
    return {
        "at": span.set_at.isoformat(timespec="microseconds"),
        "action": "alias.set",
        "subject": span.one.ref,
        "details": {"alias": f"{span.one.model}@{span.name}", "before": span.before.ref if span.before else None},
    }


def _insert(connection: Connection, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    for some in _batch(rows):
        connection.execute(table.insert(), some)


def _batch(items: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(items)
    while some := list(islice(left, _BATCH)):
        yield some


def _count_on(connection: Connection) -> None:
    """Let Postgres number what comes next after what was numbered here."""
    for table in (models, versions):
        last = connection.execute(select(func.max(table.c.id))).scalar()
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last)"), {"name": table.name, "last": last}
        )


def _analyse(registry: Registry) -> None:
    """Let the database count its rows now, as it would by itself in time."""
    with registry.database.write() as connection:
        connection.exec_driver_sql("ANALYZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--versions", type=int, default=Spec.n_versions)
    parser.add_argument("--models", type=int, default=Spec.n_models)
    parser.add_argument("--depth", type=int, default=Spec.depth)
    given = parser.parse_args()
    start = time.perf_counter()
    registry = Registry(str(given.folder / "registry.db"), given.folder / "store")
    fill(registry, Spec(given.versions, given.models, given.depth))
    registry.close()
    print(f"{given.versions:,} versions in {given.folder}, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
