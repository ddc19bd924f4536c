"""What following a run gives: frozen, and each list of it a DataFrame in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from registry.plain_text import escape
from registry.results import Results
from registry.sources.trainer_state import LogEntry

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TraceStep:
    """One checkpoint of a run. What was not recorded or not measured is None.

    `loss`, `eval_loss` and `learning_rate` are what Trainer logged. `n_changed` counts the tensors that are not those
    of the step before, `n_changed_from_base` those that are not the base's. `from_base` and `from_previous` are
    relative distances of all weights together; `kl` (nats) and `top1_agreement` compare what is predicted with the
    base. `values` holds recorded metrics, and `stale` names those of other weights or packages.
    """

    ref: str
    step: int
    epoch: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    n_tensors: int | None = None
    n_changed: int | None = None
    n_changed_from_base: int | None = None
    from_base: float | None = None
    from_previous: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    stale: tuple[str, ...] = ()
    values: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerStep:
    """How far one layer was moved at one step, as a share of its norm; `layer` None is all that is in no layer."""

    ref: str
    step: int
    layer: int | None
    from_base: float
    from_previous: float | None


@dataclass(frozen=True)
class PartStep:
    """How far one component of one layer was moved at one step, as a share of its norm."""

    ref: str
    step: int
    layer: int | None
    component: str
    from_base: float
    from_previous: float | None


@dataclass(frozen=True)
class TracedMetric:
    """A recorded metric, `suite.name`: its unit, which way is better, and the digest of the data it was measured on."""

    name: str
    unit: str | None
    direction: str | None
    dataset_digest: str | None


@dataclass(frozen=True)
class DriftBasis:
    """What the drift was measured on: how many tokens, the SHA-256 of them, and how the networks ran."""

    n_tokens: int
    tokens_digest: str
    dtype: str
    processing: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """What became of a run, in the order of its steps, against `base`.

    `log` is what Trainer logged by training step; `layers` and `parts` are empty unless weights were compared, and
    `drift` is None unless networks were run. `notes` say what was left out or could not be compared.
    """

    name: str
    base: str
    steps: Results[TraceStep]
    log: Results[LogEntry]
    metrics: tuple[TracedMetric, ...] = ()
    layers: Results[LayerStep] = field(default_factory=lambda: Results((), LayerStep))
    parts: Results[PartStep] = field(default_factory=lambda: Results((), PartStep))
    drift: DriftBasis | None = None
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame with a row for each step, and a column for each metric, too.

        Raises PackageMissing without pandas.
        """
        return self.steps.to_pandas()

    def _repr_html_(self) -> str:
        names = [one.name for one in self.metrics]
        head = "".join(f"<th>{escape(name)}</th>" for name in ("step", "version", "loss", "changed", "KL", *names))
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td>{'' if cell is None else escape(f'{cell:.6g}' if isinstance(cell, float) else str(cell))}</td>"
                for cell in (one.step, one.ref, one.loss, one.n_changed, one.kl, *map(one.values.get, names))
            )
            + "</tr>"
            for one in self.steps
        )
        title = f"{escape(self.name)}, from {escape(self.base)}"
        return f"<table><caption>{title}</caption><tr>{head}</tr>{rows}</table>"
