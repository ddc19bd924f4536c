"""Audit a suite of checkpoints: which steps hold the same weights, which are missing, and what the final one is.

It compares digests alone. Published suites were wrong in ways that this proves: of 154 branches of Pythia-2.8b 86
served the weights of the last step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

N_NAMED = 12


@dataclass(frozen=True)
class SuiteStep:
    """One checkpoint: `weights` holds, for every form that they are kept in, the digest of each file.

    `step` is None for the checkpoint that people get when they name no step.
    """

    name: str
    step: int | None
    weights: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class SuiteFinding:
    """Something that is wrong, or may be: `steps` are those it is about."""

    code: str
    message: str
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class SuiteAudit:
    """What the digests of a suite say: its steps in order, the final one if there is one, and the findings."""

    suite: str
    steps: tuple[SuiteStep, ...]
    final: SuiteStep | None
    findings: tuple[SuiteFinding, ...]


def audit_suite(suite: str, found: Iterable[SuiteStep]) -> SuiteAudit:
    """Compare all steps with each other, and the final checkpoint with them."""
    named = list(found)
    steps = tuple(sorted((one for one in named if one.step is not None), key=lambda one: one.step or 0))
    final = next((one for one in named if one.step is None), None)
    findings = [
        *_find_empty(named),
        *_find_same(steps, final),
        *_find_shared_files(steps),
        *_find_gaps([one.step or 0 for one in steps]),
        *_find_wrong_end(steps, final),
    ]
    return SuiteAudit(suite, steps, final, tuple(findings))


def _find_empty(found: Sequence[SuiteStep]) -> list[SuiteFinding]:
    return [
        SuiteFinding("no-weights", f"{one.name} holds no weights.", () if one.step is None else (one.step,))
        for one in found
        if not one.weights
    ]


def _find_same(steps: Sequence[SuiteStep], final: SuiteStep | None) -> list[SuiteFinding]:
    """Find steps that hold one and the same weights: at most one of them can be what its name says."""
    findings = []
    for form in sorted({form for one in steps for form in one.weights}):
        groups: dict[tuple[tuple[str, str], ...], list[SuiteStep]] = defaultdict(list)
        for one in steps:
            if form in one.weights:
                groups[_key(one, form)].append(one)
        for key, group in groups.items():
            if len(group) < 2:
                continue
            numbers = tuple(one.step or 0 for one in group)
            is_final = final is not None and form in final.weights and _key(final, form) == key
            also = f", those of {final.name}" if is_final and final else ""
            findings.append(
                SuiteFinding(
                    "same-weights",
                    f"{len(group)} steps hold the same weights ({form}){also}: {_list(numbers)}. "
                    "At most one of them is what its name says.",
                    numbers,
                )
            )
    return findings


def _find_shared_files(steps: Sequence[SuiteStep]) -> list[SuiteFinding]:
    """Find steps that share some shards and differ in others: one of them is mixed, unless a part was frozen."""
    holders: dict[tuple[str, str, str], list[SuiteStep]] = defaultdict(list)
    for one in steps:
        for form, files in one.weights.items():
            for file, digest in files.items():
                holders[form, file, digest].append(one)
    findings = []
    for (form, file, _), group in holders.items():
        if len({_key(one, form) for one in group}) > 1:
            numbers = tuple(one.step or 0 for one in group)
            message = (
                f"{file} is the same in steps {_list(numbers)}, whose other files differ: mixed, or partly frozen."
            )
            findings.append(SuiteFinding("shared-file", message, numbers))
    return findings


def _find_gaps(steps: Sequence[int]) -> list[SuiteFinding]:
    """Find steps that are missing: where the distance is a multiple of the one that occurs most."""
    distances = [later - earlier for earlier, later in pairwise(steps)]
    if not distances:
        return []
    usual, times = Counter(distances).most_common(1)[0]
    if times < 2 or usual == 0:  # steps at no regular distance, as in a logarithmic schedule
        return []
    missing = [
        step
        for earlier, later in pairwise(steps)
        if later - earlier > usual and (later - earlier) % usual == 0
        for step in range(earlier + usual, later, usual)
    ]
    if not missing:
        return []
    message = f"{len(missing)} steps are missing, where there is one every {usual:,} otherwise: {_list(missing)}."
    return [SuiteFinding("gap", message, tuple(missing))]


def _find_wrong_end(steps: Sequence[SuiteStep], final: SuiteStep | None) -> list[SuiteFinding]:
    """Compare the final checkpoint with the last step, in the forms that both are kept in."""
    if final is None or not steps:
        return []
    last = steps[-1]
    forms = sorted(set(final.weights) & set(last.weights))
    if not forms or all(_key(final, form) == _key(last, form) for form in forms):
        return []
    like = [one for one in steps if any(form in one.weights and _key(one, form) == _key(final, form) for form in forms)]
    what = f"those of step {_list([one.step or 0 for one in like])}" if like else "those of no step"
    message = f"{final.name} does not hold the weights of the last step, {last.step:,}, but {what}."
    return [SuiteFinding("final-is-not-last", message, (last.step or 0,))]


def _key(one: SuiteStep, form: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(one.weights[form].items()))


def _list(steps: Sequence[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:N_NAMED])
    return f"{shown} and {len(steps) - N_NAMED:,} more" if len(steps) > N_NAMED else shown
