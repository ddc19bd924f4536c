"""One case, and a batch of them in a child: what was said to a mutated file, and what is wrong with that."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers

from registry import Registry, RegistryError
from registry.quiet import quiet
from registry.sources import pickles, unpickle
from tests.faults.invariant import find_breaches
from tests.hostile.case import ACCEPTED, save_whole
from tests.hostile.fuzz.kinds import KINDS, Kind, World, make_folder
from tests.hostile.fuzz.plain import NotPlainError
from tests.hostile.fuzz.sources import list_bases
from tests.hostile.watch import forget_peak, read_memory, read_peak

MOST_SECONDS = 2.0
"""Of processor time: the machine may have other things to do."""
MOST_BYTES = 200 * 2**20
_ADDRESS_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Verdict:
    """What came of one case: `said` is ACCEPTED or the code of the error, `fault` what is wrong with that, or empty."""

    number: int
    kind: str
    said: str
    seconds: float
    fault: str = ""
    is_compared: bool = False


def choose(seed: int, number: int) -> tuple[Kind, random.Random]:
    """Return the kind of a case, and the chance that everything about it comes from."""
    rng = random.Random(f"{seed} {number}")
    return rng.choices(KINDS, [one.share for one in KINDS])[0], rng


@cache
def warm_up() -> Path:
    """Import all that cases need, make what they are mutated from, and return the folder of a registry with a base."""
    root = Path(tempfile.mkdtemp(prefix="lensreg-fuzz-warm-"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for kind in KINDS:
        list_bases(kind.name)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = Registry(str(root / "fresh" / "registry.db"), root / "fresh" / "store")
        fresh.register("base", save_whole("huggingface"), parity="skip")
        fresh.close()
        empty = Registry(str(root / "fresh" / "empty" / "registry.db"), root / "fresh" / "empty" / "store")
        empty.models()
        empty.close()
        _fork_for_pickles()
        world = open_world(root / "fresh", root / "used")
        for kind in KINDS:  # unmutated, each is taken, and is what it says
            for number, base in enumerate(list_bases(kind.name)):
                found = kind.hand_over(world, base, f"{kind.name}{number}")
                try:
                    if found is not None and (fault := kind.compare(world, found, base)):
                        raise RuntimeError(f"{kind.name}, unmutated: {fault}")
                except NotPlainError as error:
                    raise RuntimeError(f"{kind.name} {base}, unmutated, cannot be compared: {error}") from error
        world.registry.close()
    return root / "fresh"


def judge_batch(seed: int, numbers: Sequence[int], folder: Path, tell: Callable[[dict[str, Any]], None]) -> None:
    """Judge these cases one after another in a registry of their own; `tell` what is begun, and each verdict."""
    warnings.simplefilter("ignore")
    scratch = folder / "tmp"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_BYTES,) * 2)
    world = open_world(warm_up(), folder / "world")
    last = numbers[0]
    for number in numbers:
        last = number
        tell({"begun": number})
        forget_peak()
        before = read_memory()
        verdict = judge(world, seed, number, folder / "case")
        if left := sorted(one.name for one in scratch.iterdir()):
            verdict = _blame(verdict, f"it left in the folder for temporary files {left[:3]}")
            for one in scratch.iterdir():
                shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink()
        taken = read_peak() - before
        if taken > MOST_BYTES:
            verdict = _blame(verdict, f"memory grew by {taken / 2**20:.0f} MB")
        tell(asdict(verdict))
        shutil.rmtree(folder / "case", ignore_errors=True)
    broken = find_breaches(world.registry)
    if left := [one.name for one in (world.registry.store.root / "tmp").iterdir()]:
        broken.append(f"left in the store's tmp: {left[:3]}")
    if broken:
        tell(asdict(Verdict(last, "batch", "", 0, f"cases {numbers[0]} to {last}: {broken[0]}")))


def judge(world: World, seed: int, number: int, folder: Path) -> Verdict:
    """Make the case in `folder`, hand it over, and judge what comes of it."""
    kind, rng = choose(seed, number)
    make_folder(kind, rng, folder)
    found: Any = None
    fault, said = "", ACCEPTED
    began = time.process_time()
    try:
        found = kind.hand_over(world, folder, f"case{number}")
    except RegistryError as error:
        said = error.code
        if not error.message.isprintable() or len(error.message) > 2000:
            fault = f"its message is no line for a terminal: {error.message[:200]!r}"
    except BaseException as error:  # noqa: BLE001 (that any other comes through is what is looked for)
        said, fault = type(error).__name__, _locate(error)
    seconds = time.process_time() - began
    if not fault and seconds > MOST_SECONDS:
        fault = f"it took {seconds:.1f} s of processor time"
    is_compared = False
    if found is not None and not fault and rng.randrange(kind.each) == 0:
        try:
            fault, is_compared = kind.compare(world, found, folder) or "", True
        except NotPlainError:
            pass
        except BaseException as error:  # noqa: BLE001 (what was registered cannot be used)
            fault = f"what was registered is not what it should be: {_locate(error)}"
    return Verdict(number, kind.name, said, seconds, fault, is_compared)


def open_world(fresh: Path, folder: Path) -> World:
    """Copy the registry that cases start from into `folder`, and open it."""
    shutil.copytree(fresh, folder, symlinks=True)
    return World(Registry(str(folder / "registry.db"), folder / "store"), folder)


def _blame(verdict: Verdict, fault: str) -> Verdict:
    """Add a fault: none hides another."""
    return replace(verdict, fault="; ".join(filter(None, (verdict.fault, fault))))


def _locate(error: BaseException) -> str:
    steps = traceback.extract_tb(error.__traceback__)
    ours = [one for one in steps if "/registry/" in one.filename]
    place = (ours or steps)[-1]
    return f"{type(error).__name__}: {str(error)[:300]!r} (in {Path(place.filename).name}:{place.lineno} {place.name})"


def _fork_for_pickles() -> None:
    """Let the child that reads pickles be forked from this process instead of started: it need not import torch again.

    It does the same task under the same limits, and its end is looked at in the same way.
    """

    def run(command: Sequence[str], *, stderr: Any, timeout: float, **_: Any) -> Any:
        task = next(one for one in command if one.endswith("task.json"))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(stderr.fileno(), 2)
                unpickle.main(task)
                status = 0
            except BaseException:  # noqa: BLE001 (as the interpreter does at the top)
                os.write(2, traceback.format_exc().encode(errors="replace"))
            finally:
                os._exit(status)
        deadline = time.monotonic() + min(timeout, 30)
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise subprocess.TimeoutExpired(command, timeout)
            time.sleep(0.0005)
        return SimpleNamespace(returncode=os.waitstatus_to_exitcode(done[1]))

    pickles.subprocess = SimpleNamespace(  # type: ignore[assignment]
        run=run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


def send(pipe: int) -> Callable[[dict[str, Any]], None]:
    """Return what writes one line of JSON into a pipe."""
    return lambda said: (os.write(pipe, json.dumps(said).encode() + b"\n"), None)[1]
