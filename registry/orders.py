"""Orders to measure: what is sent to whoever runs a suite on a version, here or elsewhere, and what comes of them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from registry.database import Database
from registry.errors import RegistryError, WorkerMismatch
from registry.progress import Progress
from registry.tables import validations
from registry.thresholds import FAILED, parse_threshold
from registry.validate import ValidationRun, find_done, find_recorded, validate_version
from registry.validation.metric import Metric
from registry.validation.subject import Subject
from registry.validation.suites import make_suite, settle_suite
from registry.worker import digest_data, refuse_other_data

if TYPE_CHECKING:
    from registry.methods.comparing import Comparing
    from registry.versions import Version


@dataclass(frozen=True)
class Order:
    """One run of a suite that is to be made, here or by a worker; whoever gives it decides its `run_id`."""

    ref: str
    suite: str
    suite_version: str
    parameters: Mapping[str, Any]
    require: tuple[str, ...] = ()
    dtype: str | None = None
    device: str | None = None
    again: bool = False
    data_digest: str | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)


def give_orders(
    registry: Comparing,
    versions: Sequence[Version],
    suite: str,
    parameters: Mapping[str, Any],
    *,
    require: Sequence[str],
    dtype: str | None,
    device: str | None,
    again: bool,
    is_sent: bool,
) -> tuple[list[Order], dict[str, ValidationRun]]:
    """Make the orders to measure versions, and find, by version, what is measured already and need not be ordered.

    Whatever refs mean is settled here; if orders are sent elsewhere, they say which data is meant, too.
    Raises InvalidInput for a suite, a parameter or a threshold that is none, SourceNotFound if data are not there.
    """
    made = settle_suite(make_suite(suite, parameters), lambda ref: registry._find(ref).ref)
    pinned = {name: getattr(made, name) for name in parameters}
    thresholds = [parse_threshold(text) for text in require]
    digest = digest_data(str(pinned["data"])) if is_sent and "data" in pinned else None
    orders, there = [], {}
    for version in versions:
        subject = Subject(registry, version, dtype, device)
        run = None if again else find_done(registry.database, subject, made, thresholds)
        if run is None:
            orders.append(Order(version.ref, suite, made.version, pinned, tuple(require), dtype, device, again, digest))
        else:
            there[version.ref] = run
    return orders, there


def carry_out(registry: Comparing, order: Order, progress: Progress) -> ValidationRun:
    """Make the run that an order asks for and record it, once: if it is recorded already, it is not made again.

    Raises WorkerMismatch if what is installed or what lies here is not what the order is about.
    """
    suite = make_suite(order.suite, order.parameters)
    if suite.version != order.suite_version:
        raise WorkerMismatch(
            f"The suite {order.suite} is version {suite.version} here, and {order.suite_version} where it was sent.",
            sender=order.suite_version,
            worker=suite.version,
            hint="Install the same package that brings it in both places.",
        )
    if order.data_digest is not None:
        refuse_other_data(str(order.parameters["data"]), order.data_digest)
    thresholds = [parse_threshold(text) for text in order.require]
    subject = Subject(registry, registry._find(order.ref), order.dtype, order.device, progress)
    there = find_recorded(registry.database, subject.version.ref, order.run_id)
    if there is None and not order.again:
        there = find_done(registry.database, subject, suite, thresholds)
    return there or validate_version(registry.database, subject, suite, thresholds, order.run_id)


def report_failure(order: Order, failure: RegistryError) -> ValidationRun:
    """Say of a run that nobody could record why."""
    details = {"error": failure.code, "message": failure.message}
    metric = Metric(FAILED, None, passed=False, details=details)
    return ValidationRun(order.ref, order.suite, (metric,), 0.0, None, failure.message, is_recorded=False)


def refuse_unrecorded(database: Database, orders: Sequence[Order]) -> None:
    """Raise WorkerMismatch if runs that workers say they recorded are not in this database."""
    with database.read() as connection:
        ids = [one.run_id for one in orders]
        there = set(connection.execute(select(validations.c.run_id).where(validations.c.run_id.in_(ids))).scalars())
    missing = [one.ref for one in orders if one.run_id not in there]
    if missing:
        raise WorkerMismatch(
            f"Workers say that they recorded their results for {', '.join(missing[:10])}, and {database} has none.",
            sender=str(database),
            hint="They opened a copy of it. Start the workers with LENSREG_URL of this registry, or without it.",
        )
