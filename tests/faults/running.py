"""Run scenarios, two at a time, each in a process that is forked once all is imported; judge what came of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import multiprocessing.connection
import os
import pkgutil
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path

from sqlalchemy.exc import SAWarning

from tests import faults
from tests.faults import workload
from tests.faults.scenario import LONG_OVERTIME, LONG_SECONDS, OVERTIME, Chance, NotHereError, Outcome, Scenario

LANES = 2
PATIENCE = 60  # seconds that a scenario may run past its time, and its overtime, before it counts as hanging
_WARM_SECONDS = 15  # for imports, and for looking things over at the end


@dataclass(frozen=True)
class Row:
    """What came of one scenario: an outcome, or why the fault cannot be provoked here, or why there is none."""

    scenario: Scenario
    outcome: Outcome
    seconds: float
    skipped: str = ""
    error: str = ""
    least: int = 0


@dataclass(frozen=True)
class _Run:
    scenario: Scenario
    chance: Chance
    began: float
    process: int


def find_scenarios(only: Collection[str] = ()) -> list[Scenario]:
    """Return the scenarios of all modules here; with `only`, those of these names or of modules of these names."""
    found: list[Scenario] = []
    for module in sorted(one.name for one in pkgutil.iter_modules(faults.__path__) if one.name != "__main__"):
        scenarios: list[Scenario] = getattr(importlib.import_module(f"{faults.__name__}.{module}"), "SCENARIOS", [])
        found += [one for one in scenarios if not only or {one.name, module} & set(only)]
    if unknown := set(only) - {one.name for one in found} - {one.name for one in pkgutil.iter_modules(faults.__path__)}:
        raise SystemExit(f"There is no scenario {', '.join(sorted(unknown))}.")
    return found


def run_all(
    scenarios: Sequence[Scenario],
    folder: Path,
    seed: int,
    seconds: float,
    warm_up: Callable[[], object] = workload.prepare,
) -> list[Row]:
    """Run the scenarios within so many seconds, shared out by their `share`; return the rows in their order.

    `warm_up` makes what all of them need, before they are forked.
    """
    end = time.monotonic() + seconds
    warm_up()
    left = LANES * max(1.0, end - time.monotonic() - min(_WARM_SECONDS, seconds / 4))
    waiting = sorted(scenarios, key=lambda one: one.share, reverse=True)
    running: dict[Connection, _Run] = {}
    rows: dict[str, Row] = {}
    while waiting or running:
        while waiting and len(running) < LANES:
            one = waiting.pop(0)
            share = left * one.share / sum(other.share for other in scenarios)
            connection, run = _start(one, folder / one.name, seed, share, seconds)
            running[connection] = run
        for connection in multiprocessing.connection.wait(list(running), timeout=1):
            run = running.pop(connection)
            rows[run.scenario.name] = _finish(run, connection)
        for connection, run in list(running.items()):
            if time.monotonic() > run.chance.until + run.chance.overtime + PATIENCE:
                del running[connection]
                os.killpg(run.process, signal.SIGKILL)
                rows[run.scenario.name] = _finish(run, connection)
    return [rows[one.name] for one in scenarios]


def find_failures(rows: Sequence[Row]) -> list[str]:
    """Say what is wrong: breaches, fewer strikes than there should be, controls that found nothing."""
    failures = []
    for row in rows:
        name, outcome = row.scenario.name, row.outcome
        if row.skipped:
            continue
        if row.error:  # of a control too: that is no finding
            failures.append(f"{name}: {row.error}")
            continue
        if row.scenario.is_control:
            if not outcome.broken:
                failures.append(f"{name}: nothing was found although a safeguard was left out; the suite is blind.")
            continue
        failures += [f"{name}: {one}" for one in outcome.broken]
        if outcome.struck < row.least:
            failures.append(f"{name}: struck {outcome.struck} times instead of {row.least} at least.")
    return failures


def _start(scenario: Scenario, folder: Path, seed: int, share: float, seconds: float) -> tuple[Connection, _Run]:
    """Fork a scenario that has `share` seconds, of a run of `seconds` in all."""
    folder.mkdir(parents=True)
    own_seed = int.from_bytes(sha256(f"{seed} {scenario.name}".encode()).digest()[:4])
    now = time.monotonic()
    overtime = LONG_OVERTIME if seconds >= LONG_SECONDS else OVERTIME
    chance = Chance(folder, own_seed, now + share, scenario.count_least(seconds), overtime)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sys.stdout.flush()
    process = os.fork()
    if not process:
        receiver.close()
        _strike(scenario, chance, sender)
    sender.close()
    return receiver, _Run(scenario, chance, now, process)


def _strike(scenario: Scenario, chance: Chance, sender: Connection) -> None:
    """Do the striking, in the child, and send what came of it."""
    os.setpgid(0, 0)
    for name in ("psycopg", "sqlalchemy.pool"):  # they tell of each fault that strikes within their own steps
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore", SAWarning)
    said: dict[str, object]
    try:
        outcome = scenario.strike(chance)
        said = {"struck": outcome.struck, "broken": outcome.broken, "notes": outcome.notes}
    except NotHereError as error:
        said = {"skipped": str(error)}
    except BaseException:  # noqa: BLE001 whatever it is, the table has to say so
        said = {"error": f"the scenario itself failed: {traceback.format_exc()}"}
    with contextlib.suppress(BrokenPipeError):  # whoever started it was killed
        sender.send_bytes(json.dumps(said).encode())
    os._exit(0)


def _finish(run: _Run, connection: Connection) -> Row:
    seconds = time.monotonic() - run.began
    try:
        said = json.loads(connection.recv_bytes()) if connection.poll() else {}
    except EOFError:
        said = {}
    os.waitpid(run.process, 0)
    if not said:
        said = {"error": f"it was killed, or did not end within {seconds:.0f} s"}
    outcome = Outcome(said.get("struck", 0), tuple(said.get("broken", ())), said.get("notes", ""))
    row = Row(run.scenario, outcome, seconds, said.get("skipped", ""), said.get("error", ""), run.chance.least)
    if not find_failures([row]):
        shutil.rmtree(run.chance.folder, ignore_errors=True)
    return row
