"""Resolving, recording, listing and searching in big registries, against MLflow's client and the Hub's cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import sqlalchemy
from huggingface_hub import hf_hub_download

from benchmarks import big_registry
from benchmarks.environments import find_program
from benchmarks.hub_cache import fill_cache
from benchmarks.page import Bound, Entry, Line, Section
from benchmarks.plan import Plan
from benchmarks.timing import Call, median_of, time_many
from benchmarks.worker import WayFailed, Worker
from registry import Registry
from registry.tables import models, versions
from tests.records import add_version

N_MODELS = 100
NAME = big_registry.name_model(0)
HUB = '`hf_hub_download(repo, "config.json", local_files_only=True)`'
BARE = "a bare indexed query by SQLAlchemy Core, on an open connection"
POOLED = "the same query, on a connection that a pool gives for it"
N_BLOCKS, BLOCK_SECONDS = 5, 3
SEARCHED = "tag.seed = '3'"


def measure(plan: Plan) -> Section:
    """Measure at 1,000, 10,000 and 100,000 versions."""
    entries: list[Entry] = []
    bounds: list[Bound] = []
    sizes = (1000,) if plan.quick else (1000, 10_000, 100_000)
    for n_versions in sizes:
        with plan.working_folder() as folder:
            found = _measure_size(plan, folder, n_versions)
        entries += found
        if n_versions == sizes[-1]:
            bounds = _judge(found, n_versions)
    text = [
        f"{N_MODELS} models with their versions spread evenly, as `python -m benchmarks.big_registry` makes them, on",
        "SQLite in one process; single calls. MLflow holds as many models and versions, with the same number of tags,",
        "on SQLite too; they were inserted into its own tables, as its client would have taken hours. A version is",
        "recorded with its rows and its audit event in one transaction, which is on the disk when the call returns",
        "(MLflow leaves that to the database's default). The Hub's cache holds one repository.",
    ]
    return Section(
        "Resolving, recording, listing, searching", "python -m benchmarks --only resolving", text, entries, bounds
    )


def _measure_size(plan: Plan, folder: Path, n_versions: int) -> list[Entry]:
    registry = Registry(str(folder / "registry.db"), folder / "store")
    big_registry.fill(registry, big_registry.Spec(n_versions, N_MODELS, depth=1000))
    fill_cache(folder / "hub", "org/model")
    python = find_program(plan.folder, "mlflow", "python") if plan.rivals else None
    missing, worker = "not installed", None
    if python:
        try:
            worker = Worker(
                "benchmarks.subjects.mlflow_client:Client",
                plan.memory_bytes,
                python=python,
                url=f"sqlite:///{folder / 'mlflow.db'}",
                models=[big_registry.name_model(index).replace("/", "-") for index in range(N_MODELS)],
                n_versions=n_versions,
            )
        except WayFailed as failed:
            missing = str(failed)
    try:
        return _ask(plan, folder, registry, worker, missing, n_versions)
    finally:
        registry.close()
        if worker:
            worker.stop()


@dataclass(frozen=True)
class _Question:
    """What we and MLflow are asked; `theirs` names a call of `mlflow_client`."""

    what: str
    way: str
    call: Call
    theirs: str
    their_way: str
    others: Mapping[str, Call] = field(default_factory=dict)
    calls: int = 20


def _ask(
    plan: Plan, folder: Path, registry: Registry, worker: Worker | None, missing: str, n_versions: int
) -> list[Entry]:
    bare = sqlalchemy.create_engine(f"sqlite:///{folder / 'registry.db'}")
    with bare.connect() as connection:
        questions = [
            *_list_refs(folder, registry, connection, n_versions, calls=100 if plan.quick else 2000),
            *_list_lists(registry),
        ]
        entries = [_turn(n_versions, worker, missing, question) for question in questions]
    bare.dispose()
    # last, and with nobody reading: what is recorded changes the sizes
    return [*entries, _turn(n_versions, worker, missing, _make_record(registry))]


def _list_refs(
    folder: Path, registry: Registry, connection: sqlalchemy.Connection, n_versions: int, *, calls: int
) -> list[_Question]:
    """Every kind of ref; beside it the Hub's cache, and what a query costs by itself."""
    some = max(n_versions // N_MODELS // 2, 1)
    query = (
        sqlalchemy.select(versions.c.id, models.c.name, versions.c.number, versions.c.retired_at)
        .join_from(versions, models)
        .where(models.c.name == sqlalchemy.bindparam("name"), versions.c.number == sqlalchemy.bindparam("number"))
    )
    asked = {"name": NAME, "number": some}

    def query_anew() -> object:
        with connection.engine.connect() as taken:
            return taken.execute(query, asked).one()

    others: dict[str, Call] = {
        HUB: lambda: hf_hub_download("org/model", "config.json", cache_dir=folder / "hub", local_files_only=True),
        BARE: lambda: connection.execute(query, asked).one(),
        POOLED: query_anew,
    }
    kinds = (
        ("`NAME@vN`", f"{NAME}@v{some}", "number", "`client.get_model_version(name, version)`"),
        ("`NAME@ALIAS`", f"{NAME}@best", "alias", "`client.get_model_version_by_alias(name, alias)`"),
        ("`NAME`", NAME, "newest", "`client.get_latest_versions(name)`"),
    )
    return [
        _Question(
            f"resolve {what}", "`registry.resolve(ref)`", partial(registry.resolve, ref), key, theirs, others, calls
        )
        for what, ref, key, theirs in kinds
    ]


def _list_lists(registry: Registry) -> list[_Question]:
    return [
        _Question(
            "list the models",
            "`registry.models()`",
            registry.models,
            "models",
            "`client.search_registered_models()`",
        ),
        _Question(
            "list the versions of one model",
            "`registry.history(name)`",
            partial(registry.history, NAME),
            "history",
            "`client.search_model_versions(\"name = '…'\")`",
        ),
        _Question(
            "search one model by tag, 100 at most",
            f"`registry.search(\"model = '…' and {SEARCHED}\", limit=100)`",
            partial(registry.search, f"model = '{NAME}' and {SEARCHED}", limit=100),
            "search",
            "`client.search_model_versions(\"name = '…' and tags.seed = '3'\", max_results=100)`",
        ),
        _Question(
            "search all by tag, 100 at most",
            f'`registry.search("{SEARCHED}", limit=100)`',
            partial(registry.search, SEARCHED, limit=100),
            "search-all",
            "`client.search_model_versions(\"tags.seed = '3'\", max_results=100)`",
        ),
    ]


def _make_record(registry: Registry) -> _Question:
    def record() -> None:
        with registry.database.write() as connection:
            add_version(connection, NAME)

    return _Question(
        "record a version",
        "`record_version(connection, draft)` and its commit",
        record,
        "record",
        "`client.create_model_version(name, source, tags=…)`",
        calls=50,
    )


def _turn(n_versions: int, worker: Worker | None, missing: str, question: _Question) -> Entry:
    """Ask ours, what else runs in this process, and MLflow, in turn in blocks."""
    ways = {question.way: question.call, **question.others}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    mlflow: list[float] = []
    for _ in range(N_BLOCKS):
        taken = time_many(ways, question.calls // N_BLOCKS, budget_seconds=BLOCK_SECONDS)
        for name, some in taken.items():
            seconds[name].extend(some)
        if worker is None:
            continue
        try:
            calls = max(question.calls // N_BLOCKS // 10, 2)  # it takes longer, and needs no more
            answer = worker.run(what=question.theirs, calls=calls, budget_seconds=BLOCK_SECONDS)
        except WayFailed as failed:
            worker, missing = None, str(failed)
            continue
        mlflow.extend(answer.details["seconds"])
    lines = [Line(name, tuple(taken)) for name, taken in seconds.items()]
    lines.insert(1, Line(f"MLflow: {question.their_way}", tuple(mlflow), missing=missing))
    return Entry(f"{n_versions:,} versions, {question.what}", lines)


def _judge(entries: Sequence[Entry], n_versions: int) -> list[Bound]:
    """Judge resolving in the biggest registry: the slower of name with number and alias counts."""
    of = f"with {n_versions:,} versions"
    by_way = [{line.way: line.seconds for line in entry.lines} for entry in entries[:3]]
    ours = [median_of(entry.lines[0].seconds) for entry in entries[:3]]
    slowest = max(ours)
    mlflow = [median_of(entry.lines[1].seconds) for entry in entries[:3] if entry.lines[1].seconds]
    hub = median_of(by_way[0][HUB])
    bare = median_of(by_way[0][BARE])
    pooled = median_of(by_way[0][POOLED])
    why = (
        f"In the same run a bare query took {bare * 1e3:.3f} ms on an open connection and {pooled * 1e3:.3f} ms on one "
        "that a pool gives for it; what is left is parsing the ref, our transaction, and making the answer."
    )
    return [
        Bound(f"resolve {of}, the slowest kind of ref", "at most", 0.12, slowest * 1e3, "ms", why),
        Bound(
            f"resolve {of}, against MLflow",
            "at least",
            15,
            min(their / our for their, our in zip(mlflow, ours, strict=True)) if len(mlflow) == len(ours) else None,
            "times faster",
            f"The smallest of the ratios for the three kinds of ref counts. {why}",
        ),
        Bound(f"resolve {of}, against the Hub's cache", "at least", 1, hub / slowest, "times faster", why),
    ]
