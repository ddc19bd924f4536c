"""Thresholds that versions have to meet, the gates of aliases, and rankings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from registry import Registry
from registry.environment import describe_environment
from registry.errors import InvalidInput, InvalidRef, RequirementsUnmet, UnknownRef
from registry.resolve import resolve_ref
from registry.tables import validations
from tests.records import record

DATA, OTHER = "a" * 64, "b" * 64


def measure(
    registry: Registry, ref: str, suite: str, metrics: Mapping[str, float | None], *, data: str = DATA, **more: Any
) -> None:
    """Write measurements as a run of a suite does."""
    with registry.database.write() as connection:
        version_id = resolve_ref(connection, ref).id
        connection.execute(
            validations.insert(),
            [
                {
                    "version_id": version_id,
                    "suite": suite,
                    "metric": name,
                    "value": value,
                    "details": {},
                    "environment": describe_environment(),
                    "created_at": datetime.now(UTC),
                    "dataset_digest": data,
                    **more,
                }
                for name, value in metrics.items()
            ],
        )


def test_the_newest_measurements_decide(any_registry: Registry) -> None:
    record(any_registry, "m")
    asked = ["loss < 3", "parity <= 1e-3", "accuracy.accuracy >= 0.5"]
    parity = any_registry.version("m").parity["raw"].value
    assert parity is not None and parity <= 1e-3  # as registering measured it
    assert [one.met for one in any_registry.check_requirements("m", asked)] == [False, True, False]
    asked_of_runs = ["loss < 3", "accuracy.accuracy >= 0.5"]
    assert [one.reason for one in any_registry.check_requirements("m", asked_of_runs)] == ["it was not measured"] * 2
    measure(any_registry, "m", "loss", {"loss": 4.0, "perplexity": 54.6})
    measure(any_registry, "m", "loss", {"loss": 2.5, "perplexity": 12.2})
    measure(any_registry, "m", "parity", {"raw": 1e-6, "processed": 2e-3})
    measure(any_registry, "m", "accuracy", {"accuracy": 0.5})
    loss, bad, accuracy = any_registry.check_requirements("m", asked)
    assert (loss.met, loss.value, loss.metric) == (True, 2.5, "loss.loss")
    assert (bad.met, bad.value, bad.metric) == (False, 2e-3, "parity.processed")
    assert accuracy.met
    measure(any_registry, "m", "loss", {"failed": None})
    assert any_registry.check_requirements("m", ["loss < 3"])[0].reason == "the newest run of loss failed"
    measure(any_registry, "m", "loss", {"loss": 2.5}, parameters={"data": "a", "batch_size": 4})
    measure(any_registry, "m", "loss", {"failed": None}, parameters={"data": "b", "batch_size": 4})
    assert any_registry.check_requirements("m", ["loss < 3"])[0].met  # it failed on other data
    measure(any_registry, "m", "loss", {"failed": None}, parameters={"data": "a", "batch_size": 1})
    assert not any_registry.check_requirements("m", ["loss < 3"])[0].met


def test_a_gate_keeps_versions_out_of_an_alias(any_registry: Registry) -> None:
    for _ in range(3):
        record(any_registry, "m")
    measure(any_registry, "m@v2", "loss", {"loss": 2.5})
    measure(any_registry, "m@v3", "loss", {"loss": 3.5})
    any_registry.set_alias("m@best", "m@v1")
    assert any_registry.set_gate("m@best", ["loss < 3"]) == ("loss < 3",)
    assert any_registry.gate("m@best") == ("loss < 3",)
    for ref, said in (("m@v1", "it was not measured"), ("m@v3", "loss.loss is 3.5")):
        if ref != "m@v1":
            with pytest.raises(RequirementsUnmet, match=said):
                any_registry.set_alias("m@best", ref)
    assert any_registry.resolve("m@best").number == 1
    assert any_registry.set_alias("m@best", "m@v2").version == "m@v2"
    with pytest.raises(RequirementsUnmet, match="it was not measured") as caught:
        any_registry.set_alias("m@best", "m@v1")
    assert caught.value.fields["requirements"][0]["threshold"] == "loss < 3"
    any_registry.set_alias("m@other", "m@v1")  # another alias has no gate
    assert [one.met for one in any_registry.check_requirements("m@best")] == [True]
    any_registry.set_gate("m@best", [])
    any_registry.set_alias("m@best", "m@v3")
    events = [event for event in any_registry.events("m") if event.action == "gate.set"]
    assert [event.details["requirements"] for event in events] == [[], ["loss < 3"]]
    assert any_registry.verify_events() is None


def test_gates_that_cannot_be_meant(any_registry: Registry) -> None:
    record(any_registry, "m")
    with pytest.raises(InvalidInput):
        any_registry.set_gate("m@best", ["loss"])
    with pytest.raises(InvalidRef):
        any_registry.set_gate("m", ["loss < 3"])
    with pytest.raises(InvalidInput, match="no model"):
        any_registry.set_gate("nobody@best", ["loss < 3"])
    assert any_registry.set_gate("m@best", []) == ()
    assert [event.action for event in any_registry.events("m")].count("gate.set") == 0


def test_loading_can_require(registry: Registry) -> None:
    record(registry, "m")
    with pytest.raises(RequirementsUnmet, match="m@v1 does not meet what load requires: loss < 3: it was not measured"):
        registry.load("m", require=["loss < 3"])


def test_versions_are_ranked_on_the_same_data(any_registry: Registry) -> None:
    for _ in range(6):
        record(any_registry, "m")
    for number, loss in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 2.5)):
        measure(any_registry, f"m@v{number}", "loss", {"loss": loss}, direction="lower", unit="nats per token")
    measure(any_registry, "m@v1", "loss", {"loss": 1.0}, direction="lower")
    measure(any_registry, "m@v5", "loss", {"loss": 0.1}, direction="lower", data=OTHER)
    board = any_registry.leaderboard("m", "loss")
    assert [(one.rank, one.ref) for one in board.ranks] == [(1, "m@v1"), (2, "m@v2"), (2, "m@v3"), (4, "m@v4")]
    assert [one.ref for one in board.elsewhere] == ["m@v5"]
    assert board.unmeasured == ("m@v6",)
    assert (board.metric, board.direction, board.dataset_digest) == ("loss.loss", "lower", DATA)
    assert [one.ref for one in any_registry.leaderboard("m", "loss", limit=2).ranks] == ["m@v1", "m@v2"]
    assert list(board.ranks.to_pandas()["ref"]) == [one.ref for one in board.ranks]


def test_higher_can_be_better_and_searches_can_be_ranked(any_registry: Registry) -> None:
    for name, share in (("a", 0.5), ("b", 0.75), ("c", 0.9)):
        record(any_registry, name)
        measure(any_registry, name, "accuracy", {"accuracy": share}, direction="higher")
    board = any_registry.leaderboard("model in ('a', 'b')", "accuracy.accuracy")
    assert [one.ref for one in board.ranks] == ["b@v1", "a@v1"]
    with pytest.raises(UnknownRef, match="no model 'nobody'"):
        any_registry.leaderboard("nobody", "accuracy")
    with pytest.raises(InvalidInput, match="None of the 1 versions has a value for 'loss'"):
        any_registry.leaderboard("a", "loss")
    measure(any_registry, "a", "another", {"accuracy": 0.1})
    with pytest.raises(InvalidInput, match="several suites"):
        any_registry.leaderboard("a", "accuracy")


def test_the_commands(tmp_path: Path, run: Callable[..., tuple[str, str, int]]) -> None:
    registry = Registry()
    record(registry, "m")
    measure(registry, "m", "loss", {"loss": 2.5}, direction="lower")
    out, _, code = run("gate", "m", "--require", "loss < 3", "--require", "drift < 1")
    assert code == 3
    lines = [line.split()[:4] for line in out.splitlines()[1:]]
    assert lines == [
        ["loss", "<", "3", "yes"],
        ["drift", "<", "1", "no"],
    ]
    assert run("gate", "m", "--require", "loss < 3")[2] == 0
    assert run("gate", "m@best", "--require", "loss < 2", "--set")[0] == "m@best requires loss < 2\n"
    out, err, code = run("alias", "set", "m@best", "m")
    assert (code, "requirements-unmet" in err) == (1, True)
    assert run("gate", "m@best", "--off")[0] == "m@best requires nothing\n"
    assert run("gate", "m@best", "--set")[2] == 2
    out, err, code = run("leaderboard", "m", "--by", "loss")
    assert out.splitlines()[1].split()[:3] == ["1", "m@v1", "2.5"]
    answer = json.loads(run("leaderboard", "m", "--by", "loss", "-o", "json")[0])
    assert set(answer) == {
        "schema_version", "metric", "direction", "unit", "dataset_digest", "ranks", "elsewhere", "unmeasured",
    }  # fmt: skip
    assert run("leaderboard", "m", "--by", "loss", "-o", "ids")[0] == "m@v1\n"
    registry.close()
