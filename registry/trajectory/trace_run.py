"""Follow a run over its steps: what is recorded of them, and what is measured of each when it is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from registry.errors import InvalidInput
from registry.executors import HERE, Place, Task, run_tasks
from registry.progress import Progress, no_progress
from registry.results import Results
from registry.sources.trainer_state import LogEntry
from registry.trajectory.find_run import Run, find_run, name_some
from registry.trajectory.metrics import MetricCourse, follow_metrics
from registry.trajectory.records import ChangedCount, count_changed, read_training_log
from registry.trajectory.results import DriftBasis, LayerStep, PartStep, Trace, TraceStep
from registry.versions import Version
from registry.worker import digest_data, pin_version

if TYPE_CHECKING:
    from registry.methods.comparing import Comparing
    from registry.trajectory.measure_step import StepMeasurement, StepOptions, StepTask


@dataclass(frozen=True)
class Recorded:
    """What the database and the store know of a run."""

    run: Run
    counts: Mapping[str, ChangedCount]
    courses: Sequence[MetricCourse]
    log: Sequence[LogEntry]
    notes: Sequence[str]


def trace_run(
    registry: Comparing,
    name: str,
    base: str | None = None,
    metrics: Sequence[str] = (),
    options: StepOptions | None = None,
    place: Place = HERE,
    progress: Progress = no_progress,
) -> Trace:
    """Follow a run. `options` say what is measured of each step, at `place`; None: nothing is."""
    recorded = read_recorded(registry, name, base, metrics)
    measured: dict[str, StepMeasurement] = {}
    if options is not None:
        measured = {one.ref: one for one in measure_steps(registry, recorded.run, options, place, progress)}
    return put_together(name, recorded, measured)


def read_recorded(registry: Comparing, name: str, base: str | None, metrics: Sequence[str]) -> Recorded:
    """Read what is known of a run without reading weights. Raises InvalidInput for a metric that no step has."""
    with registry.database.read() as connection:
        run = find_run(connection, name, base)
        courses = follow_metrics(run.steps, metrics)
        counts, unknown = count_changed(connection, run)
    log, unread = read_training_log(registry.store, run.steps)
    notes = [*run.notes, *unknown, *unread, *(note for one in courses for note in one.notes)]
    return Recorded(run, counts, courses, log, notes)


def measure_steps(
    registry: Comparing, run: Run, options: StepOptions, place: Place = HERE, progress: Progress = no_progress
) -> list[StepMeasurement]:
    """Measure every step against the base and the step before it, and return what was found, in their order."""
    from registry.trajectory.measure_step import measure_step

    if options.data is not None and not place.is_here:
        options = replace(options, data_digest=digest_data(options.data))
    pins = {one.ref: pin_version(one) for one in (run.base, *run.steps)}
    tasks = [
        Task(one.ref, (one,), tuple(pins[ref] for ref in (one.base, one.previous, one.ref) if ref is not None))
        for one in plan_measuring(run, options)
    ]
    found = []
    for outcome in run_tasks(registry, measure_step, tasks, place, progress, stage="steps"):
        if outcome.error is not None:
            raise outcome.error
        found.append(outcome.value)
    return found


def plan_measuring(run: Run, options: StepOptions) -> list[StepTask]:
    """Return what is to be measured, a task for each step; they can be done in any order, and anywhere."""
    from registry.trajectory.measure_step import StepTask

    refs = [one.ref for one in run.steps]
    before = [None, *refs[:-1]]
    return [StepTask(ref, run.base.ref, previous, options) for ref, previous in zip(refs, before, strict=True)]


def put_together(name: str, recorded: Recorded, measured: Mapping[str, StepMeasurement]) -> Trace:
    """Make the trace of what is recorded and of what was measured, by ref."""
    steps = [_make_step(version, recorded, measured.get(version.ref)) for version in recorded.run.steps]
    layers: list[LayerStep] = []
    parts: list[PartStep] = []
    for one in steps:
        found = measured.get(one.ref)
        for (layer, component), distance in () if found is None else found.from_base.items():
            before = found.from_previous.get((layer, component)) if found is not None else None
            if component is None:
                layers.append(LayerStep(one.ref, one.step, layer, distance, before))
            else:
                parts.append(PartStep(one.ref, one.step, layer, component, distance, before))
    return Trace(
        name,
        recorded.run.base.ref,
        Results(steps, TraceStep),
        Results(recorded.log, LogEntry),
        tuple(one.metric for one in recorded.courses),
        Results(layers, LayerStep),
        Results(parts, PartStep),
        _find_basis(measured.values()),
        (*recorded.notes, *_join_notes(measured)),
    )


def _make_step(version: Version, recorded: Recorded, measured: StepMeasurement | None) -> TraceStep:
    if version.step is None:
        raise InvalidInput(f"{version.ref} has no training step.", hint="Only versions with one make a run.")
    training, count, ref = version.training, recorded.counts[version.ref], version.ref
    drift = measured.drift if measured is not None else None
    return TraceStep(
        ref=ref,
        step=version.step,
        epoch=training.get("epoch"),
        loss=training.get("loss"),
        eval_loss=training.get("eval_loss"),
        learning_rate=training.get("learning_rate"),
        n_tensors=count.n_tensors,
        n_changed=count.from_previous,
        n_changed_from_base=count.from_base,
        from_base=measured.total_from_base if measured is not None else None,
        from_previous=measured.total_from_previous if measured is not None else None,
        kl=drift.kl if drift is not None else None,
        top1_agreement=drift.top1_agreement if drift is not None else None,
        stale=tuple(one.metric.name for one in recorded.courses if ref in one.stale),
        values={one.metric.name: one.values.get(ref) for one in recorded.courses},
    )


def _find_basis(measured: Iterable[StepMeasurement]) -> DriftBasis | None:
    """Return what the drift was measured on, which is the same at all steps."""
    return next(
        (
            DriftBasis(one.drift.n_tokens, one.drift.tokens_digest, one.drift.dtype, one.drift.processing)
            for one in measured
            if one.drift is not None
        ),
        None,
    )


def _join_notes(measured: Mapping[str, StepMeasurement]) -> Iterator[str]:
    """Say each thing once, with the steps that it is said of."""
    by_note: dict[str, list[str]] = defaultdict(list)
    for ref, found in measured.items():
        for note in found.notes:
            by_note[note].append(ref)
    for note, refs in by_note.items():
        yield f"{name_some(refs)}: {note}"
