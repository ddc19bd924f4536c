"""What people get when they ask for a version: frozen, whole, and without a database behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from registry.plain_text import escape

PARITY_METRICS = ("raw", "processed", "bridge")
"""What parity is measured of; a run of the suite may also have failed."""


@dataclass(frozen=True)
class Parent:
    """An edge of the lineage: the parent's ref, what the child is to it, and the differences that were admitted.

    `declared` is how it was declared before it was registered; `evidence` what the weights say of the edge, if that was
    looked at.
    """

    ref: str
    relation: str
    admitted_differences: tuple[Mapping[str, Any], ...] = ()
    declared: str | None = None
    evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class AbsentParent:
    """A parent that was declared without being registered: a model on the Hub at a revision.

    `digest` is that of its weights or of its one weight file, if it was said; `allowed` the architecture fields in
    which it may differ from its child; `joined` the ref of what it turned out to be, once that is registered.
    """

    repo: str
    revision: str
    digest: str | None
    relation: str
    allowed: tuple[str, ...] = ()
    joined: str | None = None

    @property
    def ref(self) -> str:
        """`hf://ORG/NAME@REVISION`, which no version's ref can be."""
        return f"hf://{self.repo}@{self.revision}"


@dataclass(frozen=True)
class StoredFile:
    """One file of a version: its name, what it is for, its SHA-256 in hex, and its size."""

    name: str
    role: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Measurement:
    """One recorded metric; `value` is None when it was not measured.

    What follows `created_at` is of runs of a suite, and None in what registering measured: `direction` says which way
    is better, `parameters` what the suite was asked, and `weights_digest` which weights were measured.
    """

    suite: str
    metric: str
    value: float | None
    bound: float | None
    passed: bool | None
    unit: str | None
    dtype: str | None
    n_samples: int | None
    dataset_digest: str | None
    details: Mapping[str, Any]
    environment: Mapping[str, Any]
    created_at: datetime
    run_id: str | None = None
    suite_version: str | None = None
    direction: str | None = None
    seed: int | None = None
    device: str | None = None
    seconds: float | None = None
    parameters: Mapping[str, Any] | None = None
    weights_digest: str | None = None


@dataclass(frozen=True)
class Version:
    """One immutable checkpoint of a model."""

    model: str
    number: int
    step: int | None
    family: str
    fingerprint: str
    architecture: Mapping[str, Any]
    weights_digest: str | None
    vocabulary_digest: str | None
    layout: str
    processing: tuple[str, ...] | None
    dtype: str
    n_parameters: int
    size_bytes: int
    source_kind: str
    source_location: str
    provenance: Mapping[str, Any]
    note: str | None
    findings: tuple[Mapping[str, str], ...]
    created_at: datetime
    retired_at: datetime | None
    files: tuple[StoredFile, ...] = ()
    parents: tuple[Parent, ...] = ()
    absent_parents: tuple[AbsentParent, ...] = ()
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    validations: tuple[Measurement, ...] = ()

    @property
    def ref(self) -> str:
        """The one ref that always means this version: `NAME@vN`."""
        return f"{self.model}@v{self.number}"

    @property
    def parity(self) -> dict[str, Measurement]:
        """The newest parity measurements, by metric (`raw`, `processed`, `bridge`); empty when it was not verified."""
        return {m.metric: m for m in self.validations if m.suite == "parity" and m.metric in PARITY_METRICS}

    @property
    def training(self) -> dict[str, float]:
        """What Trainer had logged when it saved this: epoch, loss, eval_loss, learning_rate …; empty if it is unknown.

        `loss` is the mean between its two last logs; what begins with `eval_` was measured at this very step.
        """
        facts = self.provenance.get("training")
        if not isinstance(facts, Mapping):  # of an import, say
            return {}
        numbers = {name: _read_number(value) for name, value in facts.items()}
        return {name: number for name, number in numbers.items() if number is not None}

    @property
    def is_verified(self) -> bool:
        """Whether parity was measured and within its bound."""
        return bool(self.parity) and all(m.passed for m in self.parity.values())

    def with_role(self, role: str) -> tuple[StoredFile, ...]:
        """Return the files that play `role`: weights, config, tokenizer, generation or original."""
        return tuple(file for file in self.files if file.role == role)

    def _repr_html_(self) -> str:
        parents = [f"{parent.ref} ({parent.relation})" for parent in self.parents]
        absent = [f"{one.ref} ({one.relation}, absent)" for one in self.absent_parents if one.joined is None]
        rows = {
            "architecture": f"{self.family}, {self.n_parameters:,} parameters, {self.dtype}",
            "weights": f"sha256:{self.weights_digest[:12]}" if self.weights_digest else "not fetched yet",
            "parents": ", ".join([*parents, *absent]) or "none",
            "parity": "verified" if self.is_verified else "not verified",
        }
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
        return f"<table><caption>{escape(self.ref)}</caption>{cells}</table>"


def _read_number(value: Any) -> float | None:
    """Read a number from JSON, in which NaN and infinities are text."""
    is_number = type(value) in (int, float) or value in ("nan", "inf", "-inf")
    return float(value) if is_number else None


@dataclass(frozen=True)
class VersionSummary:
    """One line of a list: enough to recognise a version, at the price of one query."""

    model: str
    number: int
    step: int | None
    family: str
    n_parameters: int
    size_bytes: int
    weights_digest: str | None
    verified: bool
    parents: tuple[str, ...]
    aliases: tuple[str, ...]
    note: str | None
    created_at: datetime
    retired_at: datetime | None

    @property
    def ref(self) -> str:
        """`NAME@vN`."""
        return f"{self.model}@v{self.number}"


@dataclass(frozen=True)
class ModelSummary:
    """One model with its newest version that is not retired."""

    name: str
    n_versions: int
    newest: str | None
    family: str | None
    n_parameters: int | None
    verified: bool | None
    created_at: datetime


@dataclass(frozen=True)
class AliasSpan:
    """One stretch of an alias's life: what it meant, from when, and until when (None: still)."""

    model: str
    name: str
    version: str
    set_at: datetime
    removed_at: datetime | None

    @property
    def ref(self) -> str:
        """`NAME@ALIAS`."""
        return f"{self.model}@{self.name}"
