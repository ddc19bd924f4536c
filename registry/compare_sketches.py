"""Compare two sketches: related, unrelated or not comparable, with the figures that say so.

The measure is the correlation of corresponding sub-matrices from which the means of rows and of columns were taken. If
the order of neurons and of dimensions is arbitrary, as between two networks that were trained from different
initialisations, then the correlation's variance is exactly 1 / ((rows - 1) * (columns - 1)), whatever outliers the rows
and columns have; so that z, the sum over all matrices divided by its standard deviation, is about N(0, 1). Taking means
also makes centred weights equal to those that were not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from registry.architecture import UNRELATED_PARENT
from registry.errors import UnrelatedParent
from registry.sketch import Sketch

RELATED_Z = 6.0
"""From which z on weights are related; by chance it is reached once in 10^9 times."""

MIN_FREEDOM = 144
"""How many independent samples there must be: with as many equal ones, z is twice RELATED_Z."""

_WRITES = re.compile(r"attn\.W_O|\.W_out(\.weight)?$")
_MLP_WRITES = re.compile(r"\.W_out(\.weight)?$")

Verdict = Literal["unchanged", "related", "unrelated", "not-comparable"]


@dataclass(frozen=True)
class Evidence:
    """What the weights say of a parent and a child.

    `unchanged` is: in every sample, whatever biases, norms and embeddings do. `correlation` and `distance` (relative to
    the parent) are medians over all matrices, which hide a change of less than half of them; `changed_correlation` and
    `changed_distance` are medians over those that changed. None where there were none to compare.
    """

    verdict: Verdict
    n_matrices: int
    n_unchanged: int
    correlation: float | None
    distance: float | None
    z: float | None
    changed_correlation: float | None = None
    changed_distance: float | None = None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Evidence:
        """Read what `as_dict` gave, also of a release that knew less or more."""
        return cls(**{one.name: record.get(one.name) for one in fields(cls)})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return asdict(self)

    @property
    def change(self) -> str:
        """How many matrices changed, in words: `70 of 210 matrices changed`."""
        n_changed = self.n_matrices - self.n_unchanged
        if n_changed in (0, self.n_matrices):
            return f"{'all' if n_changed else 'none of'} {self.n_matrices:,} matrices changed"
        return f"{n_changed:,} of {self.n_matrices:,} matrices changed"

    def __str__(self) -> str:
        if self.correlation is None or self.distance is None or self.z is None:
            return f"not comparable: only {self.n_matrices} matrices in common"
        if self.verdict == "unrelated":
            return (
                f"unrelated: correlation {self.correlation:.3g}, relative distance {self.distance:.2g}, "
                f"z {self.z:.1f} over {self.n_matrices:,} matrices"
            )
        if self.verdict == "unchanged":
            return f"unchanged: {self.change}, z {self.z:.1f}"
        correlation, distance = self.changed_correlation, self.changed_distance
        if correlation is None or distance is None:  # constants have none
            correlation, distance = self.correlation, self.distance
        return (
            f"{self.verdict}: {self.change}, by a relative distance of {distance:.2g} "
            f"(correlation {correlation:.3g}), z {self.z:.1f}"
        )


def compare_sketches(parent: Sketch, child: Sketch) -> Evidence:
    """Compare the matrices of the layers that both have in one shape, as far as processing leaves them comparable."""
    names = list_comparable(parent, child)
    figures = [_measure(*stacked) for stacked in _stack(parent, child, names)]
    correlations, distances, freedoms, changes = np.concatenate([np.zeros((4, 0)), *figures], axis=1)
    n_unchanged = sum(bool(np.array_equal(parent.samples[name], child.samples[name])) for name in names)
    freedom = float(freedoms.sum())
    if freedom < MIN_FREEDOM:
        return Evidence("not-comparable", len(names), n_unchanged, None, None, None)
    z = float(np.dot(freedoms, correlations) / np.sqrt(freedom))
    verdict: Verdict = "related" if z >= RELATED_Z else "unrelated"
    if n_unchanged == len(names):
        verdict = "unchanged"
    changed = changes > 0
    return Evidence(
        verdict,
        len(names),
        n_unchanged,
        correlation=float(np.median(correlations)),
        distance=float(np.median(distances)),
        z=z,
        changed_correlation=float(np.median(correlations[changed])) if changed.any() else None,
        changed_distance=float(np.median(distances[changed])) if changed.any() else None,
    )


def refuse_unrelated(
    evidence: Evidence, parent: str, child: str, relation: str, allowed: frozenset[str], hint: str | None = None
) -> None:
    """Raise UnrelatedParent if the weights say that the child does not come from the parent; a student need not."""
    if evidence.verdict != "unrelated" or relation == "distilled" or UNRELATED_PARENT in allowed:
        return
    raise UnrelatedParent(
        f"The weights of {child} do not come from those of its parent {parent}: {evidence} (related from "
        f"z {RELATED_Z:g} on). Nothing was stored.",
        hint=hint
        or "Name the parent that it was made from (lensreg identify SOURCE finds it), or none. If it was trained so "
        f"far from it that nothing is left, or its neurons were put in another order: --allow {UNRELATED_PARENT}",
        parent=parent,
        source=child,
        evidence=evidence.as_dict(),
    )


def list_comparable(one: Sketch, other: Sketch) -> list[str]:
    """Name the matrices of layers that both have in one shape, and that processing left alike; sorted.

    Folding norms rescales all that reads the residual stream, and refactoring rotates heads; what is written to the
    residual stream is centred at most.
    """
    names = [name for name in one.blocks if one.shapes[name] == other.shapes.get(name)]
    differing = set(one.processing) ^ set(other.processing)
    if "refactor_factored_attn_matrices" in differing:
        return [name for name in names if _MLP_WRITES.search(name)]
    if "fold_ln" in differing:
        return [name for name in names if _WRITES.search(name)]
    return names


def find_ranks(parent: Sketch, child: Sketch, roundoff: float) -> Mapping[str, int]:
    """Return the rank of what changed in every matrix that changed; less than a sub-matrix's own is a low rank.

    `roundoff` is that of the numbers that the weights were rounded to: what it makes of any change has full rank.
    """
    ranks = {}
    for name in list_comparable(parent, child):
        one, other = (sketch.samples[name].astype(np.float64) for sketch in (parent, child))
        if np.array_equal(one, other):
            continue
        noise = 8 * roundoff * max(np.abs(one).max(), np.abs(other).max())
        ranks[name] = int((np.linalg.svd(other - one, compute_uv=False) > noise).sum())
    return ranks


def centre(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Take the means of rows and of columns away, of one sub-matrix or many, and what rounding leaves of nothing."""
    wide = samples.astype(np.float64)
    rows, columns = wide.mean(-1, keepdims=True), wide.mean(-2, keepdims=True)
    centred: NDArray[np.float64] = wide - rows - columns + rows.mean(-2, keepdims=True)
    left, was = (np.abs(one).max((-2, -1), keepdims=True) for one in (centred, wide))
    return np.where(left <= 1e-12 * was, 0.0, centred)


def _stack(parent: Sketch, child: Sketch, names: list[str]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Stack the sub-matrices of one size, which nearly all are."""
    by_size: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        by_size.setdefault(parent.samples[name].shape, []).append(name)
    return [
        (np.stack([parent.samples[name] for name in some]), np.stack([child.samples[name] for name in some]))
        for some in by_size.values()
    ]


def _measure(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the correlation, the relative distance, the degrees of freedom and whether anything changed, as 1 and 0.

    They are those of each matrix that is no constant: one of zeros, at the beginning of training, is like any other.
    """
    a, b = centre(one), centre(other)
    norms, others = (np.linalg.norm(part, axis=(1, 2)) for part in (a, b))
    some = (norms > 0) & (others > 0)
    products = (a * b).sum((1, 2))[some] / (norms * others)[some]
    distances = np.linalg.norm(a - b, axis=(1, 2))[some] / norms[some]
    freedom = (one.shape[1] - 1) * (one.shape[2] - 1)
    changed = (one != other).any(axis=(1, 2))[some]
    return np.stack([products, distances, np.full(int(some.sum()), freedom), changed])
