"""Struck inside one process: interrupts at any bytecode, forks, threads, and a clock that goes back (F13, F21)."""

from __future__ import annotations

import datetime as real_datetime
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from registry import Registry, RegistryError, audit, engines, record, retire
from registry.load_options import UnverifiedVersion
from tests.faults.invariant import find_breaches
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.records import make_draft
from tests.records import record as record_rows

_USABLE_SECONDS = 15  # by then the registry has to answer again, so no lock was left behind


def _make_registry(folder: Path) -> Registry:
    return Registry(str(folder / "registry.db"), folder / "store")


class Interrupt:
    """Raises KeyboardInterrupt at the n-th bytecode that this thread executes; without n, counts them."""

    def __init__(self, n: int | None = None) -> None:
        self.n = n
        self.n_seen = 0
        self.where = ""

    def run(self, work: Callable[[], object]) -> BaseException | None:
        """Do the work and return what came out of it."""
        try:
            sys.settrace(self._trace)
            work()
        except BaseException as error:  # noqa: BLE001  an interrupt may come out as anything
            return error
        finally:
            sys.settrace(None)
        return None

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.n_seen += 1
            if self.n_seen == self.n:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._trace


def _interrupt(chance: Chance) -> Outcome:
    """Interrupt changes of rows; after each the registry answers at once, and in the end all is whole."""
    registry = _make_registry(chance.folder)
    chooser = random.Random(chance.seed)
    patience, engines.BUSY_SECONDS = engines.BUSY_SECONDS, 2 * _USABLE_SECONDS
    try:
        record_rows(registry, "m")
        changes: list[Callable[[], object]] = [
            lambda: _register_rows(registry),
            lambda: registry.set_alias("m@best", "m"),
            lambda: registry.retire("m@v1", force=True),
            lambda: registry.restore("m@v1"),
            lambda: registry.history("m", limit=5),
        ]
        lengths = [_count(one) for one in changes]
        struck, broken = 0, []
        while not chance.must_end(struck) and not broken:
            number = chooser.randrange(len(changes))
            interrupt = Interrupt(chooser.randint(1, lengths[number]))
            kept = interrupt.run(changes[number])
            struck += _is_interrupt(kept)
            if kept is not None and not _is_interrupt(kept) and not isinstance(kept, RegistryError):
                broken.append(f"{kept!r} came out of an interrupt at {interrupt.where}")
            del kept  # with its traceback, and whatever that holds
            started = time.monotonic()
            try:
                record_rows(registry, "m")
                registry.restore("m@v1")
            except RegistryError as error:
                broken.append(f"after an interrupt at {interrupt.where}: {error.message}")
            if time.monotonic() - started > _USABLE_SECONDS:
                broken.append(f"after an interrupt at {interrupt.where} a lock was left behind")
        broken += _find_row_breaches(registry)
    finally:
        engines.BUSY_SECONDS = patience
        registry.close()
    return Outcome(struck, tuple(broken))


def _is_interrupt(kept: BaseException | None) -> bool:
    """Say whether an interrupt came out, or what SQLAlchemy stumbled over when one cut its own steps."""
    while kept is not None and not isinstance(kept, KeyboardInterrupt):
        kept = kept.__context__
    return kept is not None


def _register_rows(registry: Registry) -> None:
    """Record a version as registering does, in a transaction that undoes it all when it is interrupted."""
    draft = make_draft("m", tags={"a": "b"})
    with registry.database.write() as connection:
        record.record_version(connection, draft)


def _count(work: Callable[[], object]) -> int:
    work()  # the first time imports
    counter = Interrupt()
    kept = counter.run(work)
    if kept is not None and not isinstance(kept, RegistryError):
        raise kept
    return counter.n_seen


def _find_row_breaches(registry: Registry) -> list[str]:
    """Do what `find_breaches` does, for versions that have rows and no blobs."""
    broken = []
    fault = registry.verify_events()
    if fault is not None:
        broken.append(fault.message)
    numbers = sorted(one.number for one in registry.history("m"))
    registered = [one for one in registry.events("m") if one.action == "version.registered"]
    if len(registered) != len(numbers) or numbers != list(range(1, len(numbers) + 1)):
        broken.append(f"{len(registered)} events registered the versions {numbers}")
    done = registry.verify()
    broken += [one.message for one in done.faults if one.code not in ("artifact-missing", "artifact-corrupt")]
    return broken


def _interrupt_registering(chance: Chance) -> Outcome:
    """Interrupt `register` itself, files and all, by a signal at a random time."""
    import signal

    from tests.checkpoints import save_checkpoint

    registry = _make_registry(chance.folder)
    chooser = random.Random(chance.seed)
    sources = [save_checkpoint(chance.folder / f"source-{seed}", "gpt2", seed=seed) for seed in (1, 2)]
    registry.register("first", sources[0], parity="skip")
    others: set[str] = set()
    n_left = 0
    started = time.monotonic()
    registry.register("first", sources[1], parity="skip")
    whole = time.monotonic() - started

    struck, done, broken = 0, [], []

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal struck
        struck += 1
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        while not chance.must_end(struck):
            n = struck
            source = sources[(struck + len(done)) % 2]
            name = f"m{struck + len(done)}"
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chooser.uniform(0.001, whole * 1.1))
                    found = registry.register(name, source, parity="skip").version
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                done.append(found.ref if found else "")
            except BaseException as error:
                if struck == n:
                    raise
                if not isinstance(error, KeyboardInterrupt):
                    others.add(type(error).__name__)
            kept = list((registry.store.root / "tmp").iterdir())  # what was being deleted when it struck; gc does it
            n_left += len(kept)
            for one in kept:
                shutil.rmtree(one)
    finally:
        signal.signal(signal.SIGALRM, before)
    broken += find_breaches(registry, done)
    registry.close()
    notes = f"{len(done)} got through, {n_left} left a folder in tmp"
    return Outcome(struck, tuple(broken), f"{notes}, some came out as {', '.join(sorted(others))}" if others else notes)


def _fork(chance: Chance) -> Outcome:
    """Fork while threads write and read; parent and child go on, each with connections of its own."""
    if not hasattr(os, "fork"):
        raise NotHereError("there is no fork here")
    registry = _make_registry(chance.folder)
    for name in ("parent", "child", "m"):
        record_rows(registry, name)
    struck, broken, stop = 0, [], threading.Event()

    def write() -> None:
        while not stop.is_set():
            record_rows(registry, "m")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not chance.must_end(struck):
            child = os.fork()
            if child == 0:
                os._exit(_use("child", registry))
            if _use("parent", registry):
                broken.append("the parent read what was not its own")
            _, status = os.waitpid(child, 0)
            struck += 1
            if status:
                broken.append(f"a forked child ended with {os.waitstatus_to_exitcode(status)}")
    finally:
        stop.set()
        writer.join()
    broken += _find_row_breaches(registry)
    registry.close()
    return Outcome(struck, tuple(broken))


def _use(name: str, registry: Registry) -> int:
    """Write and read as one of two processes; 0 if all was as it should be."""
    try:
        registry.set_alias(f"{name}@best", name)
        wrong = registry.resolve(f"{name}@best").model != name
        registry.remove_alias(f"{name}@best")
    except RegistryError as error:
        os.write(2, f"{name}: {error}\n".encode())
        return 2
    return int(wrong)


def _thread(chance: Chance) -> Outcome:
    """Many threads on one Registry register, load, resolve and list at once."""
    import warnings

    from tests.checkpoints import save_checkpoint

    registry = _make_registry(chance.folder)
    source = save_checkpoint(chance.folder / "source", "gpt2")
    other = save_checkpoint(chance.folder / "other", "gpt2", seed=1)
    registry.register("base", source, parity="skip")
    done: list[str] = []
    broken: list[str] = []

    def work(number: int) -> None:
        n_rounds = 0
        try:
            while not chance.must_end(n_rounds):
                n_rounds += 1
                for one in (source, other):
                    version = registry.register(f"own-{number}", one, parity="skip", parent="base").version
                    if version is not None and version.ref not in done:
                        done.append(version.ref)
                registry.load("base")
                registry.resolve("base")
                registry.models()
        except Exception as error:  # noqa: BLE001  whatever it is, a thread must not have it
            broken.append(f"{type(error).__name__}: {error}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedVersion)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    broken += find_breaches(registry, done)
    registry.close()
    return Outcome(len(threads), tuple(broken), f"{len(done)} registered")


def _turn_back_clock(chance: Chance) -> Outcome:
    """Let the clock jump, mostly back: order goes by number, and nothing lasts for less than no time."""
    registry = _make_registry(chance.folder)
    chooser = random.Random(chance.seed)
    clock = _Clock()
    modules = [one for one in (audit, record, retire) if hasattr(one, "datetime")]
    from registry import aliases

    modules += [aliases]
    kept = [one.datetime for one in modules]
    broken, struck = [], 0
    try:
        for module in modules:
            module.datetime = clock  # type: ignore[attr-defined]
        while not chance.must_end(struck):
            clock.skew += real_datetime.timedelta(seconds=chooser.uniform(-86_400, 3600))
            version = record_rows(registry, "m")
            registry.set_alias("m@best", version.ref)
            if chooser.random() < 0.3:
                registry.remove_alias("m@best")
            struck += 1
            if registry.resolve("m").ref != version.ref:
                broken.append(f"{version.ref} is not the newest, by a clock that went back")
                break
        events = registry.events()
        sequence = [one.sequence for one in events]
        if sequence != sorted(sequence, reverse=True):
            broken.append("events are not in their order")
        spans = registry.aliases(history=True)
        backwards = [one for one in spans if one.removed_at is not None and one.removed_at < one.set_at]
        if backwards:
            broken.append(f"{len(backwards)} of {len(spans)} aliases ended before they began")
    finally:
        for module, one in zip(modules, kept, strict=True):
            module.datetime = one  # type: ignore[attr-defined]
    broken += _find_row_breaches(registry)
    registry.close()
    return Outcome(struck, tuple(broken))


class _Clock:
    """Stands in for `datetime` in the modules that ask for the time; `skew` is added to what it is."""

    def __init__(self) -> None:
        self.skew = real_datetime.timedelta()

    def now(self, zone: real_datetime.tzinfo | None = None) -> real_datetime.datetime:
        """Tell the time that this clock has."""
        return real_datetime.datetime.now(zone) + self.skew

    def __getattr__(self, name: str) -> Any:
        return getattr(real_datetime.datetime, name)


SCENARIOS = [
    Scenario("interrupts", "F21", "KeyboardInterrupt at any bytecode of a change", _interrupt, share=2, least=20),
    Scenario(
        "interrupted register", "F21", "KeyboardInterrupt while files are copied", _interrupt_registering, least=5
    ),
    Scenario("fork", "F21", "fork while a thread writes", _fork, least=5),
    Scenario("threads", "F21", "threads on one Registry", _thread, least=2),
    Scenario("clock", "F13", "the clock jumps back", _turn_back_clock, share=0.5, least=20),
]
