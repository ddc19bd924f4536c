"""A training run with known answers: three checkpoints of Trainer, of which layer 1 moves by exactly 1 % and 2 %."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from registry import Registry
from tests.checkpoints import edit_weights

STEPS = (10, 20, 30)
FACTORS = (1.0, 1.01, 1.02)
LOG: list[dict[str, Any]] = [
    {"epoch": 0.5, "grad_norm": 3.0, "learning_rate": 1e-4, "loss": 4.0, "step": 5},
    {"epoch": 1.0, "grad_norm": 2.0, "learning_rate": 8e-5, "loss": 3.5, "step": 10},
    {"epoch": 1.0, "eval_loss": 3.6, "eval_runtime": 2.0, "eval_samples_per_second": 9.0, "step": 10},
    {"epoch": 1.8, "grad_norm": 1.0, "learning_rate": 5e-5, "loss": 3.0, "step": 18},
    {"epoch": 3.0, "grad_norm": float("nan"), "learning_rate": 0.0, "loss": 2.5, "step": 30},
    {"epoch": 3.0, "eval_loss": 2.75, "eval_runtime": 2.0, "step": 30},
    {"epoch": 3.0, "total_flos": 1e9, "train_loss": 3.1, "train_runtime": 60.0, "step": 30},
]


def write_state(folder: Path, step: int, log: list[dict[str, Any]]) -> None:
    """Write trainer_state.json as Trainer leaves it in a checkpoint."""
    so_far = [entry for entry in log if entry["step"] <= step]
    state = {"epoch": step / 10, "global_step": step, "log_history": so_far, "max_steps": 30}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def make_run(base: Path, folder: Path) -> Path:
    """Make the folder of the run."""

    def scale(tensors: dict[str, torch.Tensor], factor: float) -> None:
        for name in tensors:
            if ".h.1." in name:
                tensors[name] = tensors[name] * factor

    for step, factor in zip(STEPS, FACTORS, strict=True):
        target = folder / f"checkpoint-{step}"
        edit_weights(base, target, lambda tensors, factor=factor: scale(tensors, factor))  # type: ignore[misc]
        write_state(target, step, LOG)
    return folder


def register_run(registry: Registry, folder: Path, name: str = "run", parent: str | None = "base") -> None:
    """Register it, without parity."""
    plan = registry.plan_run(name, folder, parent=parent)
    assert len(list(registry.register_run(plan, parity="skip"))) == len(plan.steps)
