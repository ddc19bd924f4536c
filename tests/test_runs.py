"""Whole training runs: in order, each step the child of the one before, interrupted, repeated, and grown meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from registry import Registry
from registry.errors import (
    ArchitectureMismatch,
    InvalidInput,
    LineageConflict,
    MalformedArtifact,
    SourceNotFound,
    WorkerMismatch,
)
from tests.checkpoints import edit_config

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

STEPS = (500, 1000, 1500, 10000)  # in another order than their names


@pytest.fixture
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("gpt2")


@pytest.fixture
def run(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A Trainer's folder: four checkpoints, and what lies beside them."""
    folder = tmp_path / "run"
    for number, step in enumerate(STEPS):
        checkpoint = shutil.copytree(make_checkpoint("gpt2", seed=number + 1), folder / f"checkpoint-{step}")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "runs").mkdir()
    (folder / "checkpoint-best").mkdir()
    (folder / "README.md").write_text("notes")
    return folder


def _register(registry: Registry, run: Path, parent: str | None = "base", **options: object) -> list[str | None]:
    plan = registry.plan_run("run", run, parent=parent)
    done = registry.register_run(plan, parity="skip", **options)  # type: ignore[arg-type]
    return [one.version.ref if one and one.version else None for _, one in done]


def test_a_run_becomes_steps_in_order_each_the_child_of_the_one_before(
    any_registry: Registry, base: Path, run: Path
) -> None:
    any_registry.register("base", base, parity="skip")
    plan = any_registry.plan_run("run", run, parent="base")
    assert [(one.step, one.folder.name, one.version) for one in plan.steps] == [
        (step, f"checkpoint-{step}", None) for step in STEPS
    ]
    assert (plan.parent, plan.ignored) == ("base@v1", ("checkpoint-best", "runs"))
    assert any_registry.models()[0].n_versions == 1, "a plan writes nothing"
    assert _register(any_registry, run, tags={"lr": "1e-4"}) == [f"run@v{number}" for number in (1, 2, 3, 4)]
    edges = [(one.ref, one.relation) for step in STEPS for one in any_registry.version(f"run@step-{step}").parents]
    assert edges == [("base@v1", "finetuned"), *((f"run@v{number}", "continued") for number in (1, 2, 3))]
    assert {any_registry.version(f"run@step-{step}").tags["lr"] for step in STEPS} == {"1e-4"}
    assert any_registry.verify_events() is None


def test_repeating_a_run_registers_what_is_new(any_registry: Registry, base: Path, run: Path) -> None:
    any_registry.register("base", base, parity="skip")
    late = run / "checkpoint-1000"
    late.rename(run / "later")
    assert _register(any_registry, run) == ["run@v1", "run@v2", "run@v3"]
    (run / "later").rename(late)
    plan = any_registry.plan_run("run", run)
    assert [one.version for one in plan.steps] == ["run@v1", None, "run@v2", "run@v3"]
    assert _register(any_registry, run) == [None, "run@v4", None, None]
    assert [parent.ref for parent in any_registry.version("run@step-1000").parents] == ["run@v1"]
    assert [parent.ref for parent in any_registry.version("run@step-1500").parents] == ["run@v1"], (
        "lineage never changes"
    )
    assert _register(any_registry, run) == [None] * 4
    assert len(any_registry.history("run")) == 4


def test_a_run_that_was_broken_off_goes_on_where_it_was(registry: Registry, base: Path, run: Path) -> None:
    registry.register("base", base, parity="skip")
    weights = run / "checkpoint-1500" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(MalformedArtifact):
        _register(registry, run)
    assert [one.step for one in registry.history("run")] == [1000, 500]
    weights.write_bytes(whole)
    assert _register(registry, run) == [None, None, "run@v3", "run@v4"]


def test_other_weights_under_a_step_that_is_there_are_refused(registry: Registry, base: Path, run: Path) -> None:
    """Trained again into the same folder: the same names and sizes, other weights."""
    registry.register("base", base, parity="skip")
    _register(registry, run)
    shutil.copyfile(run / "checkpoint-500" / "model.safetensors", run / "checkpoint-1500" / "model.safetensors")
    with pytest.raises(LineageConflict, match="run@v3 holds other weights for step 1500"):
        _register(registry, run)
    assert len(registry.history("run")) == 4
    registry.retire("run@v3", force=True)
    assert _register(registry, run) == [None, None, "run@v5", None]


def test_checkpoints_that_are_converted_are_skipped_too(
    registry: Registry, run: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Their files are not those of the store, so that only converting them again tells."""
    import torch
    from safetensors.torch import load_file

    for step in STEPS:
        weights = run / f"checkpoint-{step}" / "model.safetensors"
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
    assert _register(registry, run, None) == [f"run@v{number}" for number in (1, 2, 3, 4)]
    assert registry.version("run@v1").parents == ()
    assert _register(registry, run, None) == [None] * 4


class _Elsewhere(ThreadPoolExecutor):
    """Does what it is given at once, in another thread, and then what `after` says; `given` is how much it was."""

    def __init__(self, after: Callable[[int], object] = bool) -> None:
        super().__init__(1)
        self.given, self.after = 0, after

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        future = super().submit(function, *arguments, **options)
        wait([future])
        self.given += 1
        self.after(self.given)
        return future


def _describe(registry: Registry) -> list[tuple[object, ...]]:
    """Describe all that verifying finds, and what comes of it."""
    versions = [registry.version(one.ref) for one in reversed(registry.history("run"))]
    return [
        (
            one.ref,
            one.step,
            one.weights_digest,
            one.vocabulary_digest,
            [(parent.ref, parent.relation, parent.evidence) for parent in one.parents],
            [(row.metric, row.value, row.passed, row.details) for row in one.validations],
        )
        for one in versions
    ]


def _register_verified(registry: Registry, run: Path, **options: Any) -> list[str]:
    """Register with parity, and return the stages that happened here."""
    stages: list[str] = []
    plan = registry.plan_run("run", run, parent="base")
    list(registry.register_run(plan, progress=lambda stage, done, total: stages.append(stage), **options))
    return stages


def test_checkpoints_that_were_verified_elsewhere_are_registered_as_if_here(
    registry: Registry, base: Path, run: Path, tmp_path: Path
) -> None:
    registry.register("base", base, parity="skip")
    elsewhere = Registry(str(tmp_path / "other.db"), tmp_path / "other")
    elsewhere.register("base", base, parity="skip")
    shutil.rmtree(run / "checkpoint-10000")
    assert "verifying" in _register_verified(registry, run)
    with _Elsewhere() as executor:
        assert "verifying" not in _register_verified(elsewhere, run, executor=executor)
        assert executor.given == 3
        assert _describe(elsewhere) == _describe(registry)
        assert _describe(elsewhere)[0][5]
        _register_verified(elsewhere, run, executor=executor)
        assert executor.given == 3, "what is there is not sent"
    assert elsewhere.verify_events() is None
    elsewhere.close()


def test_a_checkpoint_that_changes_after_it_was_verified_is_verified_again(
    registry: Registry, base: Path, run: Path, make_checkpoint: Callable[..., Path]
) -> None:
    registry.register("base", base, parity="skip")
    for step in STEPS[2:]:
        shutil.rmtree(run / f"checkpoint-{step}")

    def change(number: int) -> None:
        if number == 1:
            shutil.copyfile(make_checkpoint("gpt2", seed=9) / "model.safetensors", weights)

    weights = run / "checkpoint-500" / "model.safetensors"
    with _Elsewhere(change) as executor:
        stages = _register_verified(registry, run, executor=executor)
    here: list[str] = []
    other = registry.register("other", run / "checkpoint-500", progress=lambda stage, done, total: here.append(stage))
    assert stages.count("verifying") == here.count("verifying") > 0, "that of one of two"
    assert other.version is not None
    assert registry.version("run@step-500").weights_digest == other.version.weights_digest
    assert [(row.metric, row.value) for row in registry.version("run@step-500").validations] == [
        (row.metric, row.value) for row in other.version.validations
    ]


def test_what_cannot_be_verified_elsewhere_fails_here_in_its_turn(registry: Registry, base: Path, run: Path) -> None:
    registry.register("base", base, parity="skip")
    (run / "checkpoint-1000" / "model.safetensors").write_bytes(b"\0" * 100)
    with _Elsewhere() as executor, pytest.raises(MalformedArtifact):
        _register(registry, run, executor=executor)
    assert [one.step for one in registry.history("run")] == [500]
    plan, moved = registry.plan_run("run", run, parent="base"), run.with_name("moved")
    run.rename(moved)  # workers do not see it, and we do
    n_new = len(STEPS) - 1
    with (
        _Elsewhere(lambda number: number < n_new or moved.rename(run)) as executor,
        pytest.raises(WorkerMismatch, match="does not see"),
    ):
        list(registry.register_run(plan, parity="skip", executor=executor))


def test_a_run_is_the_first_thing_that_a_registry_gets(registry: Registry, run: Path) -> None:
    with _Elsewhere() as executor:
        assert _register(registry, run, None, executor=executor) == [f"run@v{number}" for number in (1, 2, 3, 4)]


@pytest.mark.slow
def test_processes_verify_a_run_side_by_side(registry: Registry, base: Path, run: Path) -> None:
    registry.register("base", base, parity="skip")
    assert "verifying" not in _register_verified(registry, run, workers=2)
    assert [one.step for one in reversed(registry.history("run"))] == list(STEPS)


def test_a_blob_that_is_gone_is_healed_by_repeating(registry: Registry, run: Path) -> None:
    _register(registry, run, None)
    blob = registry.store.blob_path(registry.version("run@step-1000").with_role("weights")[0].digest)
    blob.unlink()
    assert _register(registry, run, None) == [None] * 4
    assert blob.is_file()


def test_a_checkpoint_of_another_architecture_ends_the_run(registry: Registry, base: Path, run: Path) -> None:
    registry.register("base", base, parity="skip")
    edit_config(run / "checkpoint-1000", layer_norm_epsilon=1e-2)
    with pytest.raises(ArchitectureMismatch, match="run@v1"):
        _register(registry, run)


def test_adapters_are_merged_into_the_parent_each_anew(registry: Registry, base: Path, tmp_path: Path) -> None:
    from tests.adapters import make_adapted, save_adapter

    registry.register("base", base, parity="skip")
    for seed, step in enumerate((10, 20)):
        save_adapter(tmp_path / "lora" / f"checkpoint-{step}", make_adapted("gpt2", seed=seed))
    with pytest.raises(InvalidInput, match="need the network that they change"):
        registry.plan_run("run", tmp_path / "lora")
    assert _register(registry, tmp_path / "lora") == ["run@v1", "run@v2"]
    for ref in ("run@v1", "run@v2"):
        assert [(one.ref, one.relation) for one in registry.version(ref).parents] == [("base@v1", "adapter-merged")]
    assert _register(registry, tmp_path / "lora") == [None, None]


def test_folders_that_hold_no_run_are_refused(registry: Registry, run: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="There are no folders checkpoint-N"):
        registry.plan_run("run", run / "runs")
    with pytest.raises(SourceNotFound, match="cannot be read"):
        registry.plan_run("run", tmp_path / "nowhere")
    (run / "checkpoint-0500").mkdir()
    with pytest.raises(MalformedArtifact, match="are the same step"):
        registry.plan_run("run", run)
    (run / "checkpoint-0500").rmdir()
    (run / "checkpoint-500" / "trainer_state.json").write_text('{"global_step": 400}')
    with pytest.raises(MalformedArtifact, match="it is step 400"):
        registry.plan_run("run", run)
