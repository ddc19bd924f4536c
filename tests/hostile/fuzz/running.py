"""Judge many cases in children that are forked once all is imported; what is found is printed and kept."""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.case import ACCEPTED
from tests.hostile.fuzz.judging import Verdict, choose, judge_batch, send, warm_up
from tests.hostile.fuzz.kinds import make_folder

_BATCH = 100
_PATIENCE = 60
"""Seconds without a word from a child: a case has two of processor time, but the machine may be busy with others."""


@dataclass
class Child:
    """A child at work on a batch."""

    process: int
    pipe: int
    folder: Path
    numbers: list[int]
    heard: float = field(default_factory=time.monotonic)
    begun: int | None = None
    rest: bytes = b""


def fuzz(seed: int, n_cases: int, home: Path, jobs: int, seconds: float | None = None) -> list[Verdict]:
    """Judge cases 0 to `n_cases`, in children that are forked once all is imported; findings are kept and printed."""
    warm_up()
    gc.collect()
    gc.freeze()  # what children do not touch they need no copy of
    until = time.monotonic() + seconds if seconds is not None else float("inf")
    waiting = iter(range(0, n_cases, _BATCH))
    again: list[list[int]] = []
    children: dict[int, Child] = {}
    verdicts: list[Verdict] = []
    while True:
        while len(children) < jobs:
            numbers = again.pop() if again else _next_batch(waiting, n_cases, until)
            if not numbers:
                break
            child = _start(seed, numbers, home)
            children[child.pipe] = child
        if not children:
            return sorted(verdicts, key=lambda one: one.number)
        ready = select.select(list(children), [], [], 1)[0]
        for child in [children[pipe] for pipe in ready]:
            part = os.read(child.pipe, 2**16)
            verdicts += _listen(child, part, seed, home)
            if not part:
                del children[child.pipe]
                verdicts += _end(child, again, seed, home)
        for child in children.values():
            if time.monotonic() - child.heard > _PATIENCE:
                os.kill(child.process, signal.SIGKILL)


def _next_batch(waiting: Iterator[int], n_cases: int, until: float) -> list[int]:
    first = next(waiting, None) if time.monotonic() < until else None
    return [] if first is None else list(range(first, min(first + _BATCH, n_cases)))


def _start(seed: int, numbers: list[int], home: Path) -> Child:
    folder = Path(tempfile.mkdtemp(prefix="batch-", dir=home))
    reader, writer = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            judge_batch(seed, numbers, folder, send(writer))
        except BaseException:  # noqa: BLE001 (nothing of the parent may go on in the child)
            send(writer)({"failed": traceback.format_exc()})
        finally:
            os._exit(0)
    os.close(writer)
    return Child(process, reader, folder, numbers)


def _listen(child: Child, part: bytes, seed: int, home: Path) -> list[Verdict]:
    """Take in what a child says, and return the verdicts in it."""
    child.heard = time.monotonic()
    *lines, child.rest = (child.rest + part).split(b"\n")
    found = []
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        if "begun" in said:
            child.begun = said["begun"]
        elif "failed" in said:
            sys.stderr.write(said["failed"])
        else:
            verdict = Verdict(**said)
            child.begun = None
            found.append(verdict)
            _report(verdict, child, seed, home)
    return found


def _end(child: Child, again: list[list[int]], seed: int, home: Path) -> list[Verdict]:
    """See how a child ended; a case that it was at is a finding, and those behind it go to another."""
    os.close(child.pipe)
    _, status = os.waitpid(child.process, 0)
    found = []
    if child.begun is not None:
        kind, _ = choose(seed, child.begun)
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an end without a verdict"
        verdict = Verdict(child.begun, kind.name, "none", 0, f"the process that judged it met {how}")
        _report(verdict, child, seed, home)
        found.append(verdict)
        if left := [number for number in child.numbers if number > child.begun]:
            again.append(left)
    shutil.rmtree(child.folder, ignore_errors=True)
    return found


def _report(verdict: Verdict, child: Child, seed: int, home: Path) -> None:
    if not verdict.fault:
        return
    sys.stdout.write(f"FAULT --seed {seed} --case {verdict.number} ({verdict.kind}): {verdict.fault}\n")
    sys.stdout.flush()
    kept = home / "findings" / f"{verdict.number}-{verdict.kind}"
    if not kept.exists() and verdict.kind != "batch":
        kept.parent.mkdir(exist_ok=True)
        kind, rng = choose(seed, verdict.number)
        make_folder(kind, rng, kept)  # the same as the child's
        (kept.with_suffix(".txt")).write_text(f"--seed {seed} --case {verdict.number}: {verdict.fault}\n")


def make_table(verdicts: list[Verdict]) -> str:
    """Say, in Markdown, what came of each kind."""
    rows = [
        "| what is mutated | cases | typed errors | taken | of these compared | slowest | faults |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    judged = [one for one in verdicts if one.kind != "batch"]
    counted = Counter(one.kind for one in judged)
    for kind in [*sorted(counted), None]:
        mine = [one for one in judged if kind in (one.kind, None)]
        taken = sum(one.said == ACCEPTED for one in mine)
        faults = sum(bool(one.fault) for one in (verdicts if kind is None else mine))
        slowest = max((one.seconds for one in mine), default=0)
        rows.append(
            f"| {kind or '**all**'} | {len(mine):,} | {len(mine) - taken:,} | {taken:,} "
            f"| {sum(one.is_compared for one in mine):,} | {slowest:.1f} s | {faults} |"
        )
    return "\n".join(rows)
