"""Time `Registry.resolve` in process, each form of ref, against one bare indexed query of SQLAlchemy Core.

    python -m benchmarks.resolve FOLDER        # a registry made by benchmarks/big_registry.py

Prints medians in milliseconds; all forms in turn, so that they share the machine's noise.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import bindparam, create_engine, select

from registry import Registry
from registry.tables import models, versions


def main() -> None:
    """Time every form and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registry", help="folder with registry.db, or a database URL")
    parser.add_argument("--repeat", type=int, default=2000)
    given = parser.parse_args()
    where = given.registry
    registry = Registry(where if "://" in where else str(Path(where) / "registry.db"), Path(where) / "store")
    for name, seconds in time_resolving(registry, given.repeat).items():
        tenths = statistics.quantiles(seconds, n=10)
        print(f"{name:12} {statistics.median(seconds) * 1e3:.3f} ms  ({tenths[0] * 1e3:.3f}–{tenths[-1] * 1e3:.3f})")
    registry.close()


def time_resolving(registry: Registry, repeat: int) -> dict[str, list[float]]:
    """Time each form `repeat` times, every time with another version."""
    engine = create_engine(registry.database.url)
    with engine.connect() as connection:
        named = select(versions.c.id, models.c.name, versions.c.number, versions.c.weights_digest)
        rows = connection.execute(named.join_from(versions, models).where(versions.c.number > 1)).all()
        rows = random.Random(0).sample(rows, min(repeat, len(rows)))
        bare = select(versions.c.id).where(versions.c.model_id == 2, versions.c.number == bindparam("number"))

        forms: dict[str, Callable[[int], object]] = {
            "bare query": lambda i: connection.execute(bare, {"number": rows[i].number}).all(),
            "NAME": lambda i: registry.resolve(rows[i].name),
            "NAME@vN": lambda i: registry.resolve(f"{rows[i].name}@v{rows[i].number}"),
            "NAME@step-N": lambda i: registry.resolve(f"{rows[i].name}@step-{rows[i].number * 10}"),
            "NAME@ALIAS": lambda i: registry.resolve(f"{rows[i].name}@best"),
            "sha256:…": lambda i: registry.resolve(f"sha256:{rows[i].weights_digest[:16]}"),
        }
        times: dict[str, list[float]] = {name: [] for name in forms}
        for i in range(len(rows)):
            for name, call in forms.items():
                start = time.perf_counter()
                call(i)
                times[name].append(time.perf_counter() - start)
    engine.dispose()
    return times


if __name__ == "__main__":
    main()
