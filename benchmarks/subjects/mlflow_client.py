"""MLflow's client on SQLite, asked what our registry is asked; runs in MLflow's own environment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag, SqlRegisteredModel

from benchmarks.timing import time_many
from benchmarks.worker import Way

_BATCH = 10_000


class Client(Way):
    """A registry with `n_models` models of together `n_versions` versions, each with two tags; each model an alias."""

    def __init__(self, url: str, models: list[str], n_versions: int) -> None:
        self.client = MlflowClient(tracking_uri=url, registry_uri=url)
        first = models[0]
        for name in models:
            self.client.create_registered_model(name)
        self.client.create_model_version(first, source="/made/up", tags={"seed": "1", "run": "run-1"})
        n_each = n_versions // len(models)
        _fill(url, models, n_each)
        for name in models:
            self.client.set_registered_model_alias(name, "best", str(n_each))
        some = str(max(n_each // 2, 1))
        numbers = itertools.count(1)
        self.calls: dict[str, Callable[[], object]] = {
            "number": lambda: self.client.get_model_version(first, some),
            "alias": lambda: self.client.get_model_version_by_alias(first, "best"),
            "newest": lambda: self.client.get_latest_versions(first),
            "record": lambda: self.client.create_model_version(
                first, source=f"/made/up/{next(numbers)}", tags={"seed": "1", "run": "run-1"}
            ),
            "models": lambda: self.client.search_registered_models(max_results=1000),
            "history": lambda: self.client.search_model_versions(f"name = '{first}'", max_results=10_000),
            "search": lambda: self.client.search_model_versions(
                f"name = '{first}' and tags.seed = '3'", max_results=100
            ),
            "search-all": lambda: self.client.search_model_versions("tags.seed = '3'", max_results=100),
        }

    def run(self, request: Mapping[str, Any]) -> Any:
        call = self.calls[request["what"]]
        return time_many({"": call}, request["calls"], budget_seconds=request["budget_seconds"])[""]

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": result}


def _fill(url: str, models: list[str], n_each: int) -> None:
    """Copy the one version that the client made, in one transaction: by the client it would take hours."""
    engine = sqlalchemy.create_engine(url)
    versions, tags = SqlModelVersion.__table__, SqlModelVersionTag.__table__
    with engine.begin() as connection:
        row = dict(connection.execute(versions.select()).mappings().one())
        tag = dict(connection.execute(tags.select()).mappings().first() or {})
        wanted = ((name, number) for name in models for number in range(1, n_each + 1))
        left = (pair for pair in wanted if pair != (row["name"], row["version"]))
        while some := list(itertools.islice(left, _BATCH)):
            connection.execute(versions.insert(), [row | {"name": name, "version": number} for name, number in some])
            connection.execute(
                tags.insert(),
                [
                    tag | {"name": name, "version": number, "key": key, "value": value}
                    for name, number in some
                    for key, value in (("seed", str(number % 7)), ("run", f"run-{models.index(name)}"))
                ],
            )
        assert connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(SqlRegisteredModel)).scalar()
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    engine.dispose()
