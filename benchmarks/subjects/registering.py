"""Registering files, against hashing and copying them with the tools that every system has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cache import list_files, warm
from benchmarks.checkpoints import Shape
from benchmarks.page import Bound, Entry, Line, Section, write_bytes
from benchmarks.plan import Plan
from benchmarks.timing import median_of, time_call
from benchmarks.worker import Way, Worker

OURS = '`registry.register(name, folder, parity="skip")`: hashes, copies, digests tensors, looks for NaN, fsyncs'
COPIED = "`sha256sum FILES`, `cp FILES`: does not fsync"
SYNCED = "`sha256sum FILES`, `cp FILES`, `sync COPIES`"


class Register(Way):
    """Registers what it is asked to, each time in a fresh registry whose schema is there."""

    def __init__(self, tiny: str, below: str) -> None:
        from registry import Registry

        self.registry_class, self.home = Registry, Path(below) / "home"
        self.prepare({})
        self.finish(self.run({"source": tiny}), {})

    def prepare(self, request: Mapping[str, Any]) -> None:
        self.registry = self.registry_class(str(self.home / "registry.db"), self.home / "store")
        self.registry.models()

    def run(self, request: Mapping[str, Any]) -> Any:
        return self.registry.register("model", request["source"], parity="skip")

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        self.registry.close()
        shutil.rmtree(self.home)
        return {}


def measure(plan: Plan) -> Section:
    """Register about 512 MB in 1, 4 and 16 files."""
    shape = Shape(2, 256, 4, d_vocab=2000) if plan.quick else Shape(8, 1024, 16, d_vocab=13000)
    rounds = 2 if plan.quick else 5
    entries, bounds = [], []
    with plan.working_folder() as folder:
        sources = {n_files: folder / f"source-{n_files}" for n_files in (1, 4, 16)}
        tiny = folder / "tiny"
        with Worker("benchmarks.subjects.loading_ways:MakeCheckpoint", plan.memory_bytes) as maker:
            maker.run(folder=str(tiny), shape=json.dumps(asdict(Shape(2, 64, 4, d_vocab=300))))
            for n_files, source in sources.items():
                maker.run(folder=str(source), shape=json.dumps(asdict(shape)), n_files=n_files)
        n_bytes = sum(file.stat().st_size for file in list_files(sources[1]))
        target = "benchmarks.subjects.registering:Register"
        with Worker(target, plan.memory_bytes, tiny=str(tiny), below=str(folder)) as worker:
            for n_files, source in sources.items():
                lines = _take_turns(worker, folder, source, rounds)
                what = f"{n_files} file{'s' * (n_files > 1)}"
                entries.append(Entry(f"{write_bytes(n_bytes)} in {what}", lines))
                bounds.append(_judge(what, lines))
    text = [
        f"A checkpoint of {write_bytes(n_bytes)} with random weights in float32, the same bytes in 1, 4 and 16 files,",
        "in the page cache. Verification is left out, imports are over, and each time the registry is fresh. Before",
        "each of them the disk had written what it still had to write. `cp` leaves its copies to be written later,",
        "and registering does not: the second line, with `sync`, is the same promise. Private memory is ours alone.",
    ]
    return Section("Registering", "python -m benchmarks --only registering", text, entries, bounds)


def _take_turns(worker: Worker, folder: Path, source: Path, rounds: int) -> list[Line]:
    files, target = list_files(source), folder / "copies"
    seconds: dict[str, list[float]] = {OURS: [], COPIED: [], SYNCED: []}
    private_bytes = []
    for _ in range(rounds):
        _calm(files)
        outcome = worker.run(source=str(source))
        seconds[OURS].append(outcome.seconds)
        private_bytes.append(outcome.private_bytes)
        for way, synced in ((COPIED, False), (SYNCED, True)):
            _calm(files)
            target.mkdir()
            seconds[way].append(time_call(lambda synced=synced: _hash_and_copy(files, target, synced=synced)))
            shutil.rmtree(target)
    most = {OURS: max(private_bytes)}
    return [Line(way, tuple(taken), most.get(way)) for way, taken in seconds.items()]


def _calm(files: list[Path]) -> None:
    """Let the disk finish what others left to it, and have the source in the page cache."""
    os.sync()
    warm(files)


def _hash_and_copy(files: list[Path], target: Path, *, synced: bool) -> None:
    subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", *files, target], check=True)
    if synced:
        subprocess.run(["sync", *target.iterdir()], check=True)


def _judge(what: str, lines: list[Line]) -> Bound:
    ours, copied, synced = (median_of(line.seconds) for line in lines)
    return Bound(
        f"registering {what} without verification, against `sha256sum` + `cp`",
        "at most",
        1.3,
        ours / copied,
        "times",
        f"Against the same with `sync`, which registering does and `cp` does not, it is {ours / synced:.2f} times. It "
        "also digests every tensor by itself and looks for NaN and infinities, which reads everything once more.",
    )
