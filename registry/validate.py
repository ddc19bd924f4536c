"""Validate versions: run a suite, and record what it measured, or that it failed; rows are added, never changed."""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, or_, select

from registry.audit import append_event
from registry.database import Database
from registry.environment import describe_environment, describe_packages
from registry.errors import ArtifactMissing, RegistryError
from registry.ownership import refuse_empty_store
from registry.resolve import resolve_ref
from registry.rows import check_row
from registry.stale import UNDECIDING, tell_stale, without_size
from registry.tables import validations
from registry.thresholds import FAILED, Threshold
from registry.validation.metric import Measured, Metric, judge
from registry.validation.subject import DTYPE, Subject
from registry.validation.suites import Suite


@dataclass(frozen=True)
class ValidationRun:
    """What one run of a suite gave for one version; `error` is what it raised, `is_new` False if it was there.

    `is_recorded` is False where a worker could not even record that it failed.
    """

    ref: str
    suite: str
    metrics: tuple[Metric, ...]
    seconds: float
    dataset_digest: str | None
    error: str | None = None
    is_new: bool = True
    is_recorded: bool = True

    @property
    def passed(self) -> bool | None:
        """Whether all thresholds were met; None if there was none."""
        judged = [one.passed for one in self.metrics if one.passed is not None]
        return all(judged) if judged else None


def find_recorded(database: Database, ref: str, run_id: str) -> ValidationRun | None:
    """Return a run as it is recorded; None if it is not."""
    with database.read() as connection:
        rows = connection.execute(
            select(validations).where(validations.c.run_id == run_id).order_by(validations.c.id)
        ).all()
    if not rows:
        return None
    error = next((row.details["message"] for row in rows if row.metric == FAILED), None)
    metrics = tuple(map(_read_metric, rows))
    return ValidationRun(ref, rows[0].suite, metrics, rows[0].seconds or 0.0, rows[0].dataset_digest, error)


def validate_version(
    database: Database,
    subject: Subject,
    suite: Suite,
    thresholds: Sequence[Threshold] = (),
    run_id: str | None = None,
) -> ValidationRun:
    """Run a suite on one version and record it. What the suite raises is recorded as a failure, and not raised.

    Raises StoreNotOwned if the store that was opened has nothing of this registry, which says nothing of a version.

    With a `run_id` that is recorded by then, by a worker that was thought lost say, that run is what counts.
    """
    started = time.monotonic()
    error, trace = None, None
    try:
        measured = suite.run(subject)
    except RegistryError as failure:
        if isinstance(failure, ArtifactMissing):
            refuse_empty_store(database, subject.registry.store)
        measured, error = Measured([_fail(failure.code, failure.message)]), failure.message
    except Exception as failure:  # noqa: BLE001 (a suite is anybody's code; the others have to go on)
        trace = "".join(traceback.format_exception(failure))[-4000:]
        error = f"{type(failure).__name__}: {failure}"
        measured = Measured([_fail("exception", error, trace)])
    seconds = time.monotonic() - started
    name = measured.suite or _name_record(suite, subject)
    metrics = judge(name, measured.metrics, thresholds)
    run = ValidationRun(subject.version.ref, name, metrics, seconds, measured.dataset_digest, error)
    rows = [_make_row(one, run, suite, subject, measured) for one in metrics]
    own_id = run_id or uuid.uuid4().hex
    if database.change(lambda connection: _record(connection, own_id, subject, run, suite, rows)):
        return run
    return find_recorded(database, run.ref, own_id) or run


def find_done(
    database: Database, subject: Subject, suite: Suite, thresholds: Sequence[Threshold] = ()
) -> ValidationRun | None:
    """Return the newest run of this very suite on this version if it is not stale; None if there is none."""
    with database.read() as connection:
        version_id = resolve_ref(connection, subject.version.ref).id
        rows = connection.execute(
            select(validations)
            .where(validations.c.version_id == version_id, validations.c.suite_version == suite.version)
            .where(or_(validations.c.suite == suite.name, validations.c.suite.startswith(f"{suite.name}-")))
            .order_by(validations.c.id.desc())
        ).all()
    asked = without_size(_make_key(suite, subject))
    for row in rows:
        if row.metric == FAILED and without_size(row.parameters) == asked:
            return None  # what it has measured before is not what it does now
        if _stands(row, suite, subject):
            same = [one for one in reversed(rows) if one.run_id == row.run_id]
            metrics = judge(row.suite, [_read_metric(one) for one in same], thresholds)
            return ValidationRun(
                subject.version.ref, row.suite, metrics, row.seconds or 0.0, _read_run_digest(row), is_new=False
            )
    return None


def _stands(row: Any, suite: Suite, subject: Subject) -> bool:
    """Whether a recorded result is what running the suite on the subject now would measure."""
    digest_data = getattr(suite, "digest_data", None)
    key, recorded = _make_key(suite, subject), row.parameters or {}
    ignored = UNDECIDING if digest_data else ("batch_size",)
    if any(key.get(name) != recorded.get(name) for name in {*key, *recorded} - {*ignored}):
        return False
    if row.metric == FAILED or tell_stale(row, subject.version.weights_digest) is not None:
        return False
    try:
        return digest_data is None or digest_data(row.details.get("data")) == _read_run_digest(row)
    except RegistryError:  # running it will say what is the matter with the data
        return False


def _read_run_digest(row: Any) -> str | None:
    """Return the digest of all data of the run; a metric may have been measured on a part of them."""
    digest: str | None = row.details.get("data", {}).get("digest", row.dataset_digest)
    return digest


def _name_record(suite: Suite, subject: Subject) -> str:
    """Return what a run is recorded as; a failure in one dtype, say, says nothing of another."""
    record_as = getattr(suite, "record_as", None)
    return suite.name if record_as is None else str(record_as(subject))


def _fail(code: str, message: str, trace: str | None = None) -> Metric:
    details = {"error": code, "message": message[:2000]}
    return Metric(FAILED, None, passed=False, details=details | ({"traceback": trace} if trace else {}))


def _make_key(suite: Suite, subject: Subject) -> dict[str, Any]:
    """Say what decides a result beside the version: the suite's parameters, dtype and device."""
    given: Any = suite
    return {**dataclasses.asdict(given), "dtype": subject.dtype, "device": subject.device}


def _make_row(metric: Metric, run: ValidationRun, suite: Suite, subject: Subject, measured: Measured) -> dict[str, Any]:
    finite = metric.value is not None and math.isfinite(metric.value)
    details = {**metric.details, **({} if finite or metric.value is None else {"value": metric.value})}
    if measured.extent is not None:
        details["data"] = {**measured.extent, "digest": run.dataset_digest}
    environment = describe_environment()
    return {
        "suite": run.suite,
        "metric": metric.name,
        "value": metric.value if finite else None,
        "bound": metric.bound,
        "passed": metric.passed,
        "unit": metric.unit,
        "dtype": measured.dtype or subject.dtype or DTYPE,
        "n_samples": metric.n_samples,
        "dataset_digest": metric.dataset_digest or run.dataset_digest,
        "details": _write_out(details),
        "environment": {**environment, "packages": describe_packages(*measured.packages)},
        "suite_version": suite.version,
        "direction": metric.direction,
        "seed": measured.seed,
        "device": subject.device or "cpu",
        "seconds": run.seconds,
        "parameters": _make_key(suite, subject),
        "weights_digest": subject.version.weights_digest,
    }


def _write_out(value: Any) -> Any:
    """Write NaN and infinities as text: databases differ in what they make of them."""
    if isinstance(value, Mapping):
        return {str(key): _write_out(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_write_out(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _record(
    connection: Connection,
    run_id: str,
    subject: Subject,
    run: ValidationRun,
    suite: Suite,
    rows: Sequence[Mapping[str, Any]],
) -> bool:
    """Write the rows of a run and its event, unless they are there."""
    if connection.execute(select(validations.c.id).where(validations.c.run_id == run_id).limit(1)).first() is not None:
        return False
    version = resolve_ref(connection, subject.version.ref)
    now = datetime.now(UTC)
    whole = [{**row, "version_id": version.id, "run_id": run_id, "created_at": now} for row in rows]
    connection.execute(validations.insert(), [dict(check_row(validations, row)) for row in whole])
    append_event(
        connection,
        "version.validated",
        version.ref,
        {
            "suite": run.suite,
            "suite_version": suite.version,
            "run": run_id,
            "dataset_digest": run.dataset_digest,
            "metrics": {str(row["metric"]): row["value"] for row in rows},
            "passed": run.passed,
        },
    )
    return True


def _read_metric(row: Any) -> Metric:
    """Read a metric without the thresholds it was held to then; a bound of the suite's own stays."""
    own = row.details.get("own", {"bound": None, "passed": None}) if "threshold" in row.details else None
    return Metric(
        row.metric,
        row.value,
        row.unit,
        row.direction,
        row.n_samples,
        own["bound"] if own else row.bound,
        own["passed"] if own else row.passed,
        {name: value for name, value in row.details.items() if name not in ("threshold", "own")},
        row.dataset_digest,
    )
