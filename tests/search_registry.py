"""A small registry of versions that differ in all that can be searched by, and the same as plain rows of Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import update

from registry import Registry
from registry.record import ParentEdge, record_version
from registry.search.fields import ARCHITECTURE
from registry.tables import validations, versions
from tests.records import digest_of, make_architecture, make_draft

FIRST = datetime(2026, 1, 30, 12, tzinfo=UTC)

SHAPES: list[dict[str, Any]] = [
    {},
    {"d_model": 768, "n_heads": 12, "eps": 1e-6, "attn_scale": 11.313708498984761, "d_mlp": None},
    {
        "normalization_type": "RMS",
        "act_fn": "silu",
        "positional_embedding_type": "rotary",
        "rotary_base": 500000.0,
        "gated_mlp": True,
        "use_local_attn": True,
        "window_size": 64,
        "attn_types": ["local", "global"],
        "tie_word_embeddings": False,
        "attn_scores_soft_cap": 50.0,
    },
]


@dataclass(frozen=True)
class Spec:
    """One version to be; parents by their place in SPECS."""

    model: str
    step: int | None = None
    note: str | None = None
    family: str = "gpt2"
    shape: int = 0
    n_parameters: int = 1000
    size: int = 4000
    tags: tuple[tuple[str, str], ...] = ()
    parents: tuple[tuple[int, str], ...] = ()
    losses: tuple[float | None, ...] = ()
    verified: bool = True
    fetched: bool = True
    aliases: tuple[str, ...] = ()
    retired: bool = False


SPECS = [
    Spec("base", shape=0, size=10**9, n_parameters=124_000_000, aliases=("best",)),
    Spec("base", shape=1, family="llama", size=2 * 10**9, losses=(3.5,)),
    Spec("run", 100, "it's", parents=((0, "finetuned"),), losses=(3.2, 3.1), tags=(("lr", "1e-4"), ("x.y/z-1", ""))),
    Spec("run", 200, "100% of a_b", parents=((2, "continued"),), losses=(3.2, None), tags=(("lr", "3e-4"),)),
    Spec(
        "run", 300, "Ünïcode 日本 \\ [x]*?", parents=((3, "continued"),), losses=(float("nan"),), aliases=("last-good",)
    ),
    Spec("run", 300, "", parents=((3, "continued"),), retired=True, losses=(2.9,), verified=False),
    Spec("Team/merge", None, None, "llama", 2, parents=((4, "merged"), (1, "merged")), losses=(float("inf"),)),
    Spec("team/a", 0, "line\nline", "llama", 2, verified=False, fetched=False, losses=(-0.0,), tags=(("LR", "1e-4"),)),
    Spec("team/b", 10**15 - 1, 'say "no"', "Llama", 1, 2**53 + 1, size=2**40, aliases=("best", "Best", "x_y")),
    Spec("zeta", 5, "IT'S", "gpt2", 0, 2**63 - 1, parents=((8, "distilled"), (6, "merged"))),
    Spec("zeta", 5, "aa", "z", 1, parents=((9, "finetuned"),), losses=(3.1, 3.2), tags=(("lr", "1e-4"), ("seed", "7"))),
    Spec("zéta".encode().hex(), None, "%", parents=((0, "finetuned"), (10, "converted")), retired=True),
]


def fill(registry: Registry) -> list[dict[str, Any]]:
    """Record SPECS and return a row of plain values for each, with `id` and `ref`."""
    ids: list[int] = []
    rows: list[dict[str, Any]] = []
    with registry.database.write() as connection:
        for index, spec in enumerate(SPECS):
            edges = [ParentEdge(ids[at], rows[at]["ref"], relation) for at, relation in spec.parents]
            shape = SHAPES[spec.shape]
            draft = replace(
                make_draft(spec.model, step=spec.step, note=spec.note, tags=dict(spec.tags), parents=edges),
                family=spec.family,
                architecture=make_architecture(**shape),
                n_parameters=spec.n_parameters,
            )
            if not spec.fetched:
                draft = replace(draft, weights_digest=None)
            if not spec.verified:
                draft = replace(draft, measurements=[])
            ids.append(record_version(connection, draft))
            number = sum(one.model == spec.model for one in SPECS[: index + 1])
            created_at = FIRST + timedelta(hours=12 * (index // 2))
            connection.execute(
                update(versions).where(versions.c.id == ids[-1]).values(created_at=created_at, size_bytes=spec.size)
            )
            for loss in spec.losses:
                connection.execute(validations.insert().values(**_measure(ids[-1], "held-out", "loss", loss)))
            rows.append(
                {
                    "id": ids[-1],
                    "ref": f"{spec.model}@v{number}",
                    "model": spec.model,
                    "version": number,
                    "step": spec.step,
                    "family": spec.family,
                    "note": spec.note,
                    "n_parameters": spec.n_parameters,
                    "size": spec.size,
                    "weights_digest": draft.weights_digest,
                    "layout": "huggingface",
                    "created_at": created_at,
                    "verified": spec.verified,
                    "retired": spec.retired,
                    "alias": set(spec.aliases),
                    "relation": {relation for _, relation in spec.parents},
                    "metric.loss": _newest(spec.losses),
                    "metric.held-out.loss": _newest(spec.losses),
                    "metric.parity.raw": 1e-6 if spec.verified else None,
                    "metric.nothing.loss": None,
                    **{f"tag.{key}": dict(spec.tags).get(key) for key in ("lr", "LR", "x.y/z-1", "seed", "no")},
                    **{name: draft.architecture.get(name) for name in ARCHITECTURE},
                }
            )
    for spec, row in zip(SPECS, rows, strict=True):
        for alias in spec.aliases:
            registry.set_alias(f"{spec.model}@{alias}", row["ref"])
        if spec.retired:
            registry.retire(row["ref"], force=True)
    for at, row in enumerate(rows):
        above = _ancestors(at)
        row["ancestors"] = {rows[other]["ref"] for other in above}
        row["depth"] = _depth(at)
    for row in rows:
        row["descendants"] = {other["ref"] for other in rows if row["ref"] in other["ancestors"]}
    return rows


def _measure(version_id: int, suite: str, metric: str, value: float | None) -> dict[str, Any]:
    return {
        "version_id": version_id,
        "suite": suite,
        "metric": metric,
        "value": value,
        "dataset_digest": digest_of("data"),
        "details": {},
        "environment": {},
        "created_at": FIRST,
    }


def _newest(values: tuple[float | None, ...]) -> float | None:
    """Return the newest value; NaN is none."""
    return values[-1] if values and values[-1] == values[-1] else None


def _ancestors(at: int) -> set[int]:
    parents = {parent for parent, _ in SPECS[at].parents}
    return parents.union(*(_ancestors(parent) for parent in parents))


def _depth(at: int) -> int:
    return min((1 + _depth(parent) for parent, _ in SPECS[at].parents), default=0)
