"""What Hugging Face's Trainer wrote of the training: the step, what it logged at that step, and its whole log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact
from registry.sources.json_file import read_json_object
from registry.sources.source import Finding, SourceFile

TRAINER_STATE = "trainer_state.json"
_MAX_STEP = 10**15
_MAX_FACTS, _MAX_NAME = 64, 64
# they say how fast the machine was, and the summary at the end is of the whole training
_OF_THE_MACHINE = ("_runtime", "_per_second", "total_flos", "num_input_tokens_seen")
_SUMMARY = "train_runtime"


@dataclass(frozen=True)
class LogEntry:
    """What was logged at one step of training: `values` has loss, learning_rate, eval_loss and what else is a number.

    `loss` is Trainer's: the mean since it logged last.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint's folder says of its training; `file` is where, None if there is nothing that can be read."""

    step: int | None = None
    epoch: float | None = None
    log: tuple[LogEntry, ...] = ()
    file: Path | None = None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """What is kept of it: the file itself."""
        return () if self.file is None else (SourceFile(TRAINER_STATE, self.file, "original"),)

    @property
    def provenance(self) -> dict[str, dict[str, float | str]]:
        """What is recorded with the version: the epoch, the loss that was logged last, and what was measured there.

        An evaluation counts only at this very step; that of an earlier one is of other weights.
        """
        facts: dict[str, float] = {}
        for entry in self.log:
            if self.step is None or entry.step > self.step:
                continue
            is_here = entry.step == self.step
            facts |= {name: value for name, value in entry.values.items() if is_here or not _is_evaluation(name)}
        if self.epoch is not None:
            facts["epoch"] = self.epoch
        kept = sorted(facts)[:_MAX_FACTS]
        return {"training": {name: _write_out(facts[name]) for name in kept}} if kept else {}


def read_trainer_state(homes: Sequence[Path]) -> TrainerState:
    """Read it from the first folder that has one. What cannot be read is a finding: the step is not known then."""
    for home in homes:
        path = home / TRAINER_STATE
        if path.is_file():
            try:
                state = read_json_object(path, constants=True)
            except MalformedArtifact as error:
                return TrainerState(findings=(Finding("step-unknown", f"{error.message} So the step is not known."),))
            return TrainerState(
                read_step(state.get("global_step")), _read_number(state.get("epoch")), read_log(state), path
            )
    return TrainerState()


def read_log(state: Mapping[str, Any]) -> tuple[LogEntry, ...]:
    """Return what was logged, in its order; entries without a step and the summary at the end are left out."""
    history = state.get("log_history")
    return tuple(_read_entries(history if isinstance(history, list) else []))


def read_step(value: Any) -> int | None:
    """Return a step of training, or None for anything else."""
    return value if type(value) is int and 0 <= value < _MAX_STEP else None


def _read_entries(history: Sequence[Any]) -> Iterator[LogEntry]:
    for one in history:
        step = read_step(one.get("step")) if isinstance(one, dict) else None
        if step is None or _SUMMARY in one:
            continue
        numbers = {name: _read_number(value) for name, value in one.items() if _is_fact(name)}
        yield LogEntry(step, {name: number for name, number in numbers.items() if number is not None})


def _is_fact(name: str) -> bool:
    return name != "step" and len(name) <= _MAX_NAME and name.isprintable() and not name.endswith(_OF_THE_MACHINE)


def _is_evaluation(name: str) -> bool:
    return name.startswith("eval_")


def _read_number(value: Any) -> float | None:
    """Return a number, which may be NaN: training that diverged is worth knowing of."""
    if type(value) is int:
        return float(value) if abs(value) < 2**63 else None
    return value if type(value) is float else None


def _write_out(value: float) -> float | str:
    """Write NaN and infinities as text: databases differ in what they make of them."""
    return value if math.isfinite(value) else str(value)
