"""F1, F4: SIGKILL, ENOSPC and EIO at every system call by which one registration changes what is on disk, by strace."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry import RegistryError
from tests.faults.faulty import put_rows_first
from tests.faults.invariant import read_acknowledged
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.faults.workload import Home, find_untyped, fork, inspect, make_home, prepare, register

_CALLS = (
    "openat", "write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "sync_file_range", "rename", "renameat",
    "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir",
    "ftruncate", "truncate", "fallocate", "chmod", "fchmod", "fchmodat", "copy_file_range", "sendfile", "utimensat",
)  # fmt: skip
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
# what these can say when a disk is full, or breaks
TYPED = {"storage-full", "store-unavailable", "database-unavailable", "database-read-only", "database-error"}
_SECONDS = 30
_LEAST = 50


Work = Callable[[Home], None]


@dataclass(frozen=True)
class Point:
    """The k-th call of that name, and what it was for in the run that was only watched."""

    call: str
    k: int
    was: str


def strike_kill(chance: Chance) -> Outcome:
    """SIGKILL instead of the call's return."""
    return _strike(chance, "signal=SIGKILL")


def strike_full(chance: Chance) -> Outcome:
    """ENOSPC instead of the call."""
    return _strike(chance, "error=ENOSPC")


def strike_broken_disk(chance: Chance) -> Outcome:
    """EIO instead of the call."""
    return _strike(chance, "error=EIO")


def strike_rows_first(chance: Chance) -> Outcome:
    """The control: rows before blobs, and SIGKILL at each call."""
    return _strike(chance, "signal=SIGKILL", leave_out=put_rows_first, until_broken=True)


def _strike(
    chance: Chance, fault: str, leave_out: Callable[[], None] = lambda: None, until_broken: bool = False
) -> Outcome:
    refuse_without_strace()
    work = _register(leave_out)
    points = list_points(make_home(chance.folder / "watched"), work)
    rng = random.Random(chance.seed)
    rng.shuffle(points)
    # of the many pages that SQLite writes, one is much like the other, so they come last
    points.sort(key=lambda point: point.call == "pwrite64")
    broken: list[str] = []
    ends: Counter[str] = Counter()
    n_struck = 0
    for number, point in enumerate(points):
        home = make_home(chance.folder / f"{number}-{point.call}-{point.k}")
        if trace(home, work, f"inject={point.call}:{fault}:when={point.k}"):
            n_struck += 1
            found = [f"{home.folder}: {one}, at {point.was}" for one in _judge(home, fault, ends)]
            broken += found
        else:
            found = []
        if not found:
            shutil.rmtree(home.folder)
        if chance.must_end(n_struck) or (until_broken and broken):
            break
    told = ", ".join(f"{n} {end}" for end, n in ends.most_common())
    return Outcome(n_struck, tuple(broken), f"of {len(points)} calls; {told}")


def _judge(home: Home, fault: str, ends: Counter[str]) -> list[str]:
    """Return what the fault broke: here, or for whoever registers next."""
    said = home.folder / "said"
    told = read_acknowledged(home.folder / "told")
    codes = [one.split(":")[0].removeprefix("typed ") for one in read_acknowledged(said) if one.startswith("typed")]
    ends.update(codes or (["registered"] if told else ["killed"]))
    broken = find_untyped(said)
    broken += [f"{fault} was called {code}" for code in codes if code not in TYPED]
    if "error" in fault and not told and not codes and not broken:
        broken.append(f"after {fault} there was neither a version nor an error")
    broken += inspect(home, home.folder / "told")
    if broken:
        return broken
    try:
        with home.open() as registry:
            register(registry, "new", prepare().sources[1])
    except RegistryError as error:
        broken.append(f"nothing can be registered afterwards: {error.message}")
    return broken


def _register(leave_out: Callable[[], None]) -> Work:
    """Return what registers in a child."""

    def work(home: Home) -> None:
        leave_out()
        with home.open() as registry:
            register(registry, "new", prepare().sources[1], home.folder / "told")

    return work


def list_points(home: Home, work: Work) -> list[Point]:
    """Watch one piece of work, and return its calls that change something of the registry."""
    trace(home, work, f"trace={','.join(_CALLS)}")
    folder = home.folder
    counted: Counter[str] = Counter()
    points = []
    for line in (folder / "strace").read_text().splitlines():
        match = _LINE.match(line)
        if match is None or match[2] not in _CALLS:
            continue
        counted[match[2]] += 1
        changes = match[2] != "openat" or "O_CREAT" in match[3]
        if changes and str(folder) in match[3] and not _is_note(match[3]):
            points.append(Point(match[2], counted[match[2]], line.replace(str(folder), "HOME")[:200]))
    return points


def trace(home: Home, work: Work, *expressions: str) -> bool:
    """Do the work in a child under strace; return whether a fault was injected into something of the registry."""
    reader, writer = os.pipe()

    def wait_and_work() -> None:
        os.read(reader, 1)
        work(home)

    child = fork(wait_and_work, home.folder / "said")
    log = home.folder / "strace"
    options = [part for one in expressions for part in ("-e", one)]
    command = ["strace", "-qq", "-f", "-y", *options, "-o", str(log), "-p", str(child)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_for_tracer(child, tracer)
        os.write(writer, b".")
        os.waitpid(child, 0)
    except NotHereError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
        os.close(writer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.communicate(timeout=_SECONDS)
        tracer.kill()
    struck = [line for line in log.read_text().splitlines() if "INJECTED" in line or "+++ killed by SIGKILL" in line]
    return bool(struck) and not any(_is_note(line) for line in struck)


def _is_note(arguments: str) -> bool:
    """Whether a call is about the files in which children note what they were told."""
    return any(f"/{name}" in arguments for name in ("told", "said", "done"))


def _wait_for_tracer(child: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS
    status = Path(f"/proc/{child}/status")
    while "TracerPid:\t0" in status.read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            said = tracer.stderr.read().decode() if tracer.stderr else ""
            raise NotHereError(f"strace cannot attach to a process: {' '.join(said.split())}")
        time.sleep(0.001)


def refuse_without_strace() -> None:
    if shutil.which("strace") is None:
        raise NotHereError("strace is not installed")


SCENARIOS = [
    Scenario("inject-kill", "F1", "SIGKILL at each changing system call", strike_kill, share=2, least=_LEAST),
    Scenario("inject-full", "F4", "ENOSPC at each changing system call", strike_full, share=2, least=_LEAST),
    Scenario("inject-broken", "F4", "EIO at each changing system call", strike_broken_disk, share=2, least=_LEAST),
    Scenario(
        "inject-control", "F1", "SIGKILL at each, with rows before blobs", strike_rows_first, 1, _LEAST, is_control=True
    ),
]
