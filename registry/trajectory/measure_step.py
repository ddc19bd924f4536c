"""Measure one step of a run against its base and the step before: its weights, and what it predicts.

One function of plain data and a registry, so that steps can go to other processes, each with a registry of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from registry.compare.change import ratio
from registry.compare.components import COMPONENTS
from registry.compare.weights import WeightChange, WeightComparison
from registry.compare_versions import compare_weights
from registry.errors import (
    InvalidInput,
    ProcessingConflict,
    UnsupportedFamily,
    UnsupportedLayout,
    VocabularyMismatch,
)
from registry.load_options import make_options
from registry.pair import Pair, load_pair
from registry.progress import Progress, no_progress
from registry.validation.data import Data
from registry.validation.drift import measure_drift
from registry.validation.windows import Window, choose_length, cut_windows
from registry.worker import refuse_other_data

if TYPE_CHECKING:
    from registry.methods.comparing import Comparing

# what two versions have not in common; everything else is an error
_INCOMPARABLE = (VocabularyMismatch, ProcessingConflict, UnsupportedLayout, UnsupportedFamily)
T = TypeVar("T")
Place = tuple[int | None, str | None]
"""A layer, or None outside of them, and a component, or None for all of them together."""


@dataclass(frozen=True)
class StepOptions:
    """What is measured of every step, and how: plain data.

    `prompts` are texts, or lists of tokens; `data` a .txt or .jsonl file, or a dataset that `datasets` saved, with
    `column`, cut into windows of `length`. Neither, and no network is run. `data_digest` is that of its bytes, where a
    worker has to see the same.
    """

    weights: bool = False
    prompts: tuple[str | tuple[int, ...], ...] = ()
    data: str | None = None
    data_digest: str | None = None
    column: str = "text"
    length: int | None = None
    max_tokens: int | None = None
    batch_size: int = 4
    dtype: str = "float32"
    device: str | None = None

    @property
    def runs(self) -> bool:
        """Whether networks are run."""
        return bool(self.prompts) or self.data is not None


@dataclass(frozen=True)
class StepTask:
    """One step that is to be measured, by refs: against the base, and the step before it if there is one."""

    ref: str
    base: str
    previous: str | None
    options: StepOptions


@dataclass(frozen=True)
class StepDrift:
    """How far what a step predicts is from the base, and on which tokens."""

    kl: float
    top1_agreement: float
    n_tokens: int
    tokens_digest: str
    dtype: str
    processing: tuple[str, ...]


@dataclass(frozen=True)
class StepMeasurement:
    """What was measured of one step; the distances are relative ones by place, and `notes` say what could not be."""

    ref: str
    from_base: Mapping[Place, float]
    from_previous: Mapping[Place, float]
    total_from_base: float | None
    total_from_previous: float | None
    drift: StepDrift | None
    notes: tuple[str, ...] = ()


def measure_step(registry: Comparing, task: StepTask, progress: Progress = no_progress) -> StepMeasurement:
    """Measure one step of a run. What cannot be compared is a note, and the rest is measured all the same."""
    ref, options = task.ref, task.options
    if options.data is not None and options.data_digest is not None:
        refuse_other_data(options.data, options.data_digest)
    notes: list[str] = []
    base, previous, drift = None, None, None
    if options.weights:
        base = _try(lambda: _compare(registry, task.base, ref, progress), notes)
        before = task.previous
        if before == task.base:
            previous = base
        elif before is not None:
            previous = _try(lambda: _compare(registry, before, ref, progress), notes)
        notes += [said for found in (base, previous) if found is not None for said in _tell(found)]
    if options.runs:
        drift = _try(lambda: _measure_drift(registry, task, progress), notes)
    return StepMeasurement(
        ref,
        {} if base is None else measure_places(base.tensors),
        {} if previous is None else measure_places(previous.tensors),
        None if base is None else base.relative_distance,
        None if previous is None else previous.relative_distance,
        drift,
        tuple(dict.fromkeys(notes)),
    )


def measure_places(changes: Iterable[WeightChange]) -> dict[Place, float]:
    """Return the relative distance by layer and component, and by layer alone, in the order of the layers."""
    grouped: dict[Place, list[WeightChange]] = defaultdict(list)
    for one in changes:
        grouped[one.layer, None].append(one)
        grouped[one.layer, one.component].append(one)
    return {
        place: ratio(math.hypot(*(one.distance for one in some)), math.hypot(*(one.norm_a for one in some)))
        for place, some in sorted(grouped.items(), key=lambda item: _order(item[0]))
    }


def _order(place: Place) -> tuple[float, int]:
    layer, component = place
    order: tuple[str | None, ...] = (None, *COMPONENTS)
    return (math.inf if layer is None else layer, order.index(component))


def _compare(registry: Comparing, a: str, b: str, progress: Progress) -> WeightComparison:
    one, other = (registry.fetch(ref, progress=progress) for ref in (a, b))
    return compare_weights(registry.derived, one, other, ranks=False, heads=False, progress=progress)


def _tell(found: WeightComparison) -> Iterator[str]:
    """Say which tensors could not be compared, and with what."""
    if found.misshapen:
        yield f"other shapes than in {found.a}, and not compared: {_list(found.misshapen)}."
    if found.only_a:
        yield f"only in {found.a}: {_list(found.only_a)}."
    if found.only_b:
        yield f"not in {found.a}: {_list(found.only_b)}."


def _list(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5:,} more" if len(listed) > 5 else "")


def _measure_drift(registry: Comparing, task: StepTask, progress: Progress) -> StepDrift:
    """Run both networks on the same tokens, which the tokenizer of the base makes."""
    options = task.options
    wanted = make_options(
        processed=True, flags={}, dtype=options.dtype, device=options.device, n_devices=1, verify="changed"
    )
    child, parent = (registry.fetch(one, progress=progress) for one in (task.ref, task.base))
    pair = load_pair(registry.derived, child, parent, wanted, progress)
    total = hashlib.sha256()
    windows = _digest(_make_windows(pair, options), total.update)
    found = measure_drift(pair, windows, options.batch_size, progress, options.max_tokens or 0)
    return StepDrift(found.kl, found.top1_agreement, found.n_tokens, total.hexdigest(), options.dtype, pair.processing)


def _make_windows(pair: Pair, options: StepOptions) -> Iterator[Window]:
    network = pair.parent
    n_ctx = min(pair.child.cfg.n_ctx, network.cfg.n_ctx)
    if network.tokenizer is None and (options.data or any(isinstance(one, str) for one in options.prompts)):
        raise InvalidInput(
            f"{pair.parent_ref} was registered without a tokenizer, so it reads no texts.",
            hint="Give lists of token numbers.",
        )
    if options.data is not None:
        length = choose_length(network, options.length or n_ctx)
        texts = Data(options.data).read_texts(options.column)
        yield from cut_windows(network, texts, length=length, max_tokens=options.max_tokens)
        return
    for index, prompt in enumerate(options.prompts):
        tokens = (
            network.to_tokens(prompt, truncate=False, move_to_device=False)[0]
            if isinstance(prompt, str)
            else torch.tensor(prompt, dtype=torch.long)
        )
        if not 1 <= len(tokens) <= n_ctx:
            raise InvalidInput(
                f"Prompt {index + 1:,} has {len(tokens):,} tokens.", hint=f"Give 1 to {n_ctx:,}, which is n_ctx."
            )
        yield Window(tokens, index, 0)


def _digest(windows: Iterable[Window], update: Callable[[bytes], None]) -> Iterator[Window]:
    for window in windows:
        update(repr(window.tokens.tolist()).encode())
        yield window


def _try(work: Callable[[], T], notes: list[str]) -> T | None:
    """Do the work; what cannot be compared is a note."""
    try:
        return work()
    except _INCOMPARABLE as error:
        notes.append(error.message)
        return None
