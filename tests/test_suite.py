"""Suites of checkpoints: what digests alone prove, of runs on disk, on the Hub, and in the registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from registry import Registry
from registry.errors import InvalidName, SourceNotFound, SourceUnreachable
from registry.suite import SuiteStep, audit_suite
from tests.records import digest_of, record

if TYPE_CHECKING:
    from tests.hub_server import FakeHub


def _steps(weights: Sequence[tuple[int | None, str]]) -> list[SuiteStep]:
    return [SuiteStep(f"step{step}", step, {"safetensors": {"model.safetensors": digest}}) for step, digest in weights]


def _audit(*weights: tuple[int | None, str]) -> list[tuple[str, tuple[int, ...]]]:
    return [(one.code, one.steps) for one in audit_suite("run", _steps(weights)).findings]


def test_a_suite_of_different_weights_at_regular_steps_is_right() -> None:
    assert _audit((10, "a"), (20, "b"), (30, "c"), (None, "c")) == []
    # in any order, without a final one, with a logarithmic beginning as Pythia has
    assert _audit((4, "c"), (1, "a"), (2, "b"), (8, "d"), (1000, "e"), (2000, "f"), (3000, "g")) == []
    assert _audit() == _audit((None, "a")) == _audit((10, "a")) == []


def test_steps_that_hold_the_same_weights_are_found() -> None:
    assert _audit((10, "a"), (20, "b"), (30, "a"), (40, "b"), (50, "c")) == [
        ("same-weights", (10, 30)),
        ("same-weights", (20, 40)),
    ]


def test_steps_that_serve_the_final_weights_are_told_so() -> None:
    """As most branches of Pythia-2.8b did."""
    audit = audit_suite("run", _steps([(step, "z" if step > 1 else "a") for step in range(1, 20)] + [(None, "z")]))
    (finding,) = audit.findings
    assert (finding.code, finding.steps) == ("same-weights", tuple(range(2, 20)))
    assert finding.message.startswith("18 steps hold the same weights (safetensors), those of stepNone: 2, 3, 4")
    assert "and 6 more" in finding.message


def test_steps_that_are_missing_are_named() -> None:
    assert _audit((10, "a"), (20, "b"), (50, "c"), (60, "d")) == [("gap", (30, 40))]
    assert _audit((1, "a"), (10, "b"), (20, "c"), (30, "d"), (35, "e"), (45, "f")) == [], "35 is off the beat, not 40"
    assert _audit((1, "a"), (2, "b"), (4, "c"), (8, "d")) == [], "nothing is regular here"


def test_a_final_checkpoint_that_is_not_the_last_step_is_found() -> None:
    assert _audit((10, "a"), (20, "b"), (None, "a")) == [("final-is-not-last", (20,))]
    (finding,) = audit_suite("run", _steps([(10, "a"), (20, "b"), (None, "x")])).findings
    assert finding.message == "stepNone does not hold the weights of the last step, 20, but those of no step."


def test_forms_are_compared_each_by_itself() -> None:
    """The pickles of a step may be another's while its safetensors are right; forms that one lacks say nothing."""
    first = SuiteStep("1", 1, {"safetensors": {"m": "a"}, "bin": {"p": "x"}})
    second = SuiteStep("2", 2, {"safetensors": {"m": "b"}, "bin": {"p": "x"}})
    third = SuiteStep("3", 3, {"safetensors": {"m": "c"}})
    final = SuiteStep("main", None, {"bin": {"p": "x"}})
    (finding,) = audit_suite("run", [first, second, third, final]).findings
    assert (finding.code, finding.steps, "(bin)" in finding.message) == ("same-weights", (1, 2), True)


def test_a_step_with_a_shard_of_another_is_found() -> None:
    def sharded(step: int, *digests: str) -> SuiteStep:
        return SuiteStep(str(step), step, {"safetensors": {f"shard-{n}": one for n, one in enumerate(digests)}})

    audit = audit_suite("run", [sharded(1, "a", "b"), sharded(2, "c", "b"), sharded(3, "d", "e")])
    assert [(one.code, one.steps) for one in audit.findings] == [("shared-file", (1, 2))]
    whole = audit_suite("run", [sharded(1, "a", "b"), sharded(2, "a", "b")])
    assert [one.code for one in whole.findings] == ["same-weights"]


def test_a_step_without_weights_is_found() -> None:
    audit = audit_suite("run", [SuiteStep("a", 1, {}), *_steps([(2, "a")])])
    assert [(one.code, one.steps) for one in audit.findings] == [("no-weights", (1,))]


def test_a_registered_model_is_audited_from_its_rows(any_registry: Registry) -> None:
    for step, weights in ((10, "a"), (20, "b"), (30, "a"), (40, "d")):
        record(any_registry, "run", step=step, weights_digest=digest_of(weights))
    audit = any_registry.audit_suite("run")
    assert [(one.code, one.steps) for one in audit.findings] == [("same-weights", (10, 30))]
    record(any_registry, "run", step=25, weights_digest=digest_of("c"))
    codes = [one.code for one in any_registry.audit_suite("run").findings]
    assert codes == ["same-weights", "final-is-not-last"], "the bare name means the newest version, step 25"
    any_registry.retire("run@v3"), any_registry.retire("run@v5")
    assert any_registry.audit_suite("run").findings == ()


def test_what_has_no_steps_is_no_suite(any_registry: Registry, tmp_path: Path) -> None:
    record(any_registry, "m")
    with pytest.raises(SourceNotFound, match="no version of it has a training step"):
        any_registry.audit_suite("m")
    with pytest.raises(SourceNotFound, match="no folders checkpoint-N"):
        any_registry.audit_suite(tmp_path)
    for nonsense in ("", "a b", "m@v1@v2"):
        with pytest.raises((SourceNotFound, InvalidName)):
            any_registry.audit_suite(nonsense)


@pytest.fixture
def run(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of three checkpoints, and in the folder itself what the run ended with."""
    folder = shutil.copytree(make_checkpoint("gpt2", seed=3), tmp_path / "run")
    for number in (1, 2, 3):
        shutil.copytree(make_checkpoint("gpt2", seed=number), folder / f"checkpoint-{number * 100}")
    return folder


def test_a_run_on_disk_is_hashed(registry: Registry, run: Path) -> None:
    audit = registry.audit_suite(run)
    assert [one.step for one in audit.steps] == [100, 200, 300]
    assert audit.final is not None and audit.findings == ()
    shutil.copyfile(run / "checkpoint-100" / "model.safetensors", run / "checkpoint-300" / "model.safetensors")
    findings = [(one.code, one.steps) for one in registry.audit_suite(run).findings]
    assert findings == [("same-weights", (100, 300)), ("final-is-not-last", (300,))]
    assert registry.models() == []


def test_a_suite_on_the_hub_is_audited_without_its_weights(registry: Registry, run: Path, hub: FakeHub) -> None:
    for step in (100, 200, 300):
        hub.push("org/suite", run / f"checkpoint-{step}", f"step{step}")
    hub.push("org/suite", run)
    hub.push("org/suite", run, "experiment")
    assert registry.audit_suite("org/suite").findings == ()
    hub.push("org/suite", run, "step200")
    hub.push("org/suite", run / "checkpoint-100", "step600")
    audit = registry.audit_suite("hf://org/suite")
    assert [one.step for one in audit.steps] == [100, 200, 300, 600]
    assert [(one.code, one.steps) for one in audit.findings] == [
        ("same-weights", (100, 600)),
        ("same-weights", (200, 300)),
        ("gap", (400, 500)),
        ("final-is-not-last", (600,)),
    ]
    assert all("/resolve/" not in one.path and "/cdn/" not in one.path for one in hub.requests), "only lists were read"


def test_a_hub_that_does_not_answer_or_has_no_steps_is_an_error(registry: Registry, run: Path, hub: FakeHub) -> None:
    hub.push("org/model", run)
    with pytest.raises(SourceNotFound, match="named after a training step"):
        registry.audit_suite("org/model")
    with pytest.raises(SourceNotFound):
        registry.audit_suite("org/nothing")
    hub.status = 503
    with pytest.raises(SourceUnreachable):
        registry.audit_suite("org/model")
