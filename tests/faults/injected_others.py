"""F1, F4: SIGKILL, ENOSPC and EIO at every changing system call of promoting, deleting, collecting and importing."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

from registry import Registry, RegistryError
from tests.faults.injected import TYPED, Point, list_points, refuse_without_strace, trace
from tests.faults.invariant import read_acknowledged
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.faults.workload import (
    Home,
    acknowledge,
    collect,
    find_untyped,
    inspect,
    make_home,
    prepare,
    register,
)

_CRASHED = "tmp/crashed"
_FAULTS = ("signal=SIGKILL", "error=ENOSPC", "error=EIO")


@dataclass(frozen=True)
class _Operation:
    """One operation that changes something; `is_done` says whether what it was to change is so afterwards."""

    name: str
    act: Callable[[Registry, Home, Path], None]
    is_done: Callable[[Registry], bool]


def strike(chance: Chance) -> Outcome:
    """Strike each call of each operation: first kill at all of them, then let them fail."""
    refuse_without_strace()
    export = _export(chance.folder / "sender")
    rng = random.Random(chance.seed)
    trials: list[tuple[str, _Operation, Point]] = []
    for fault in _FAULTS:
        of_fault = []
        for operation in _OPERATIONS:
            home = _make(chance.folder / f"watched-{operation.name}-{fault[-4:]}")
            of_fault += [(fault, operation, point) for point in list_points(home, partial(_work, operation, export))]
        rng.shuffle(of_fault)
        # of the many pages that SQLite writes, one is much like the other, so they come last
        of_fault.sort(key=lambda one: one[2].call == "pwrite64")
        trials += of_fault
    struck: Counter[str] = Counter()
    broken: list[str] = []
    for number, (fault, operation, point) in enumerate(trials):
        home = _make(chance.folder / f"{number}-{operation.name}-{point.call}-{point.k}")
        work = partial(_work, operation, export)
        found: list[str] = []
        if trace(home, work, f"inject={point.call}:{fault}:when={point.k}"):
            struck[f"{operation.name} {fault.partition('=')[2]}"] += 1
            found = _judge(home, fault, operation, work)
            broken += [f"{home.folder}: {one}, at {point.was}" for one in found]
        if not found:
            shutil.rmtree(home.folder)
        if chance.must_end(struck.total()):
            break
    told = ", ".join(f"{n} {what}" for what, n in sorted(struck.items()))
    return Outcome(struck.total(), tuple(broken), f"of {len(trials)} calls; {told}")


def _work(operation: _Operation, export: Path, home: Home) -> None:
    with home.open() as registry:
        operation.act(registry, home, export)
    acknowledge(home.folder / "done", operation.name)


def _judge(home: Home, fault: str, operation: _Operation, work: Callable[[Home], None]) -> list[str]:
    """Return what was broken: now, or for whoever does the same again."""
    said = home.folder / "said"
    codes = [one.split(":")[0].removeprefix("typed ") for one in read_acknowledged(said) if one.startswith("typed")]
    done = bool(read_acknowledged(home.folder / "done"))
    broken = find_untyped(said)
    broken += [
        f"{fault} was called {code}" for code in codes if code not in {*TYPED, "storage-error"}
    ]  # the latter: where the export lies
    if "error" in fault and not done and not codes and not broken:
        broken.append(f"after {fault} it was neither done nor was there an error")
    broken += inspect(home, home.folder / "told")
    if broken:
        return broken
    try:
        with home.open() as registry:
            if done and not operation.is_done(registry):
                broken.append(f"{operation.name} was acknowledged, and is not so")
        work(home)
        with home.open() as registry:
            if not operation.is_done(registry):
                broken.append(f"{operation.name} was done again, and is not so")
    except RegistryError as error:
        broken.append(f"it cannot be done again: {error.message}")
    return broken or inspect(home) + collect(home)


def _make(folder: Path) -> Home:
    """Make a registry with a version, a blob that nobody names, and what a crash left."""
    home = make_home(folder)
    with home.open() as registry:
        content = b"what nobody needs" * 100
        blob = registry.store.blob_path(sha256(content).hexdigest())
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        (registry.store.root / _CRASHED).mkdir(parents=True)
    return home


def _export(folder: Path) -> Path:
    """Export two versions out of another registry."""
    sender = Home(folder)
    with sender.open() as registry:
        for source in prepare().sources[2:4]:
            register(registry, "sent", source)
        registry.export_versions("sent@v1", "sent@v2", target=folder / "export")
    return folder / "export"


def _promote(registry: Registry, home: Home, export: Path) -> None:
    registry.set_alias("base@best", "base@v1")


def _delete(registry: Registry, home: Home, export: Path) -> None:
    registry.retire("base@v1", force=True)


def _collect(registry: Registry, home: Home, export: Path) -> None:
    done = registry.gc(registry.plan_gc(grace=timedelta(0)))
    if done.fault is not None:
        raise done.fault


def _import(registry: Registry, home: Home, export: Path) -> None:
    registry.import_versions(export)


def _is_collected(registry: Registry) -> bool:
    """Say whether all that was there is gone; an empty folder may be left of what it worked in itself."""
    plan = registry.plan_gc(grace=timedelta(0))
    return not plan.blobs and all(one.place != _CRASHED and not one.size_bytes for one in plan.leftovers)


_OPERATIONS = (
    _Operation("promote", _promote, lambda registry: registry.version("base@best").number == 1),
    _Operation("delete", _delete, lambda registry: registry.version("base@v1").retired_at is not None),
    _Operation("gc", _collect, _is_collected),
    _Operation("import", _import, lambda registry: len(registry.history("sent")) == 2),
)

SCENARIOS = [
    Scenario("inject-others", "F1", "the same for promote, delete, gc and import", strike, 1, 20, least_long=250),
]
