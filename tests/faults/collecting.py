"""F18: gc beside writers who register, link what is there already, retire and abandon; gc killed; gc on a full disk."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import select

from registry import Registry
from registry.errors import ArtifactMissing, RegistryError
from registry.tables import version_files
from tests.faults.invariant import find_breaches, read_acknowledged
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.kept import keep, put

_N_CONTENTS = 12  # few, so that what is left over by one is what the next relies on
_ROUND_SECONDS, _N_WRITERS = 1.5, 4
_CLONE_NEWNS = 0x00020000
_GRACES = (timedelta(0), timedelta(seconds=0.3))


def strike_beside_writers(chance: Chance) -> Outcome:
    """Collect again and again beside four writers; with no grace at all in every other round.

    Without a grace a registration may be told that its blobs are gone; none may come to be that lacks them.
    """
    return _race(chance, _collect_again)


def strike_naively(chance: Chance) -> Outcome:
    """The control: a gc that does not look again at what it found to be unneeded a moment ago."""
    return _race(chance, _delete_unnamed_again, until_broken=True)


def strike_killed(chance: Chance) -> Outcome:
    """Kill gc at any moment, then let another finish: what versions need is there, and nothing else."""
    rng = random.Random(chance.seed)
    registry = _open(chance.folder / "home")
    keep(registry, "m", *(rng.randbytes(2000) for _ in range(4)))
    registry.close()
    struck, broken, longest = 0, [], 0.02
    while not chance.must_end(struck) and not broken:
        for n in range(30):
            digest = rng.randbytes(32).hex()
            blob = registry.store.blob_path(digest)
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(b"orphan")
            registry.store.link_folder([("orphan", digest)])
            (registry.store.root / "tmp" / f"crashed-{n}").mkdir(exist_ok=True)
        registry.close()
        began = time.monotonic()
        child = _fork(lambda: _collect_once(_open(chance.folder / "home")), chance.folder / "said")
        time.sleep(rng.uniform(0, 1.15 * longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            struck += 1
        else:
            longest = max(longest, time.monotonic() - began)
        longest *= 1.02  # until it does come to an end now and then
        broken = find_breaches(registry, ["m@v1"])
        _collect_once(registry)
        broken += find_breaches(registry, ["m@v1"])
        plan = registry.plan_gc(grace=timedelta(0))
        if plan.blobs or plan.leftovers or len(list(registry.store.list_blobs())) != 4:
            broken.append(f"gc left {len(plan.blobs)} blobs and {len(plan.leftovers)} leftovers")
    registry.close()
    return Outcome(struck, (*broken, *read_acknowledged(chance.folder / "said")), f"{struck} kills")


def strike_on_full_disk(chance: Chance) -> Outcome:
    """Fill a disk to its last byte, at another size each time, and collect there."""
    rng = random.Random(chance.seed)
    _try_mounting(chance.folder / "disk")
    struck = 0
    said = chance.folder / "said"
    while not chance.must_end(struck) and not said.exists():
        size = rng.randrange(700, 1500)
        os.waitpid(_fork(partial(_fill_and_collect, chance.folder / "disk", size), said), 0)
        struck += 1
    return Outcome(struck, tuple(read_acknowledged(said)), f"{struck} full disks")


def _race(chance: Chance, collector: Callable[[Path, timedelta, float], None], until_broken: bool = False) -> Outcome:
    rng = random.Random(chance.seed)
    n_rounds = n_versions = n_refused = n_deleted = 0
    broken: list[str] = []
    while not chance.must_end(n_rounds if until_broken else n_deleted) and not broken:
        folder = chance.folder / f"round{n_rounds}"
        grace = timedelta(0) if until_broken else _GRACES[n_rounds % 2]
        registry = _open(folder)
        keep(registry, "m", b"first")
        registry.close()
        until = time.monotonic() + _ROUND_SECONDS
        seeds = [rng.randrange(2**32) for _ in range(_N_WRITERS)]
        # whoever brings in again what was lost heals it: the control is to see what nobody heals
        n_contents = 10**9 if until_broken else _N_CONTENTS
        works = [partial(_write_again, folder, seed, until, n_contents) for seed in seeds]
        works += [partial(collector, folder, grace, until)] * 2
        children = [_fork(work, folder / "said") for work in works]
        for child in children:
            os.waitpid(child, 0)
        told = read_acknowledged(folder / "told")
        broken += find_breaches(registry, told) + read_acknowledged(folder / "said")
        n_deleted += sum(event.details["blobs"] for event in registry.events(action="store.collected"))
        registry.close()
        n_versions += len(told)
        n_refused += len(read_acknowledged(folder / "refused"))
        n_rounds += 1
        shutil.rmtree(folder)
    raced = f"{n_rounds * _ROUND_SECONDS:.0f} s of {_N_WRITERS} writers"
    notes = f"{n_versions} versions, {n_deleted} blobs deleted meanwhile, {n_refused} refused for want of a grace"
    return Outcome(n_deleted if not until_broken else n_rounds, tuple(broken), f"{raced}, {notes}")


def _write_again(folder: Path, seed: int, until: float, n_contents: int) -> None:
    """Register, or only bring blobs in, as a registration does that comes to nothing; retire now and then."""
    rng = random.Random(seed)
    registry = _open(folder)
    scratch = folder / f"scratch-{seed}"
    while time.monotonic() < until:
        content = f"content {rng.randrange(n_contents)}".encode() * 50
        link = rng.random() < 0.7
        if rng.random() < 0.5:
            put(registry.store, scratch, content, link=link)
            continue
        model = f"m{rng.randrange(40)}"
        try:
            keep(registry, f"{model}-{seed}", content, link=link)
        except ArtifactMissing:
            _note(folder / "refused", model)
            continue
        _note(folder / "told", registry.history(f"{model}-{seed}")[0].ref)
        if rng.random() < 0.3:
            registry.retire(f"{model}-{seed}")
    registry.close()


def _collect_again(folder: Path, grace: timedelta, until: float) -> None:
    registry = _open(folder)
    while time.monotonic() < until:
        registry.gc(registry.plan_gc(grace=grace))
    registry.close()


def _delete_unnamed_again(folder: Path, grace: timedelta, until: float) -> None:
    registry = _open(folder)
    while time.monotonic() < until:
        with registry.database.read() as connection:
            named = set(connection.execute(select(version_files.c.digest)).scalars())
        unnamed = [blob.digest for blob in registry.store.list_blobs() if blob.digest not in named]
        time.sleep(0.02)  # many blobs take that long, and here there are few
        for digest in unnamed:
            registry.store.delete_blob(digest)
    registry.close()


def _collect_once(registry: Registry) -> None:
    registry.gc(registry.plan_gc(grace=timedelta(0)))
    registry.close()


def _fill_and_collect(disk: Path, size_kb: int) -> None:
    _mount(disk, size_kb)
    registry = _open(disk / "home")
    keep(registry, "m", b"needed")
    put(registry.store, disk / "orphan", b"o" * 5000)
    registry.close()
    filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    for n_bytes in (4096, 1):
        try:
            while True:
                os.write(filler, b"x" * n_bytes)
        except OSError:
            continue
    try:
        registry.models()
    except RegistryError as error:
        if "lensreg gc" not in str(error.hint):
            raise
    _collect_once(registry)
    os.truncate(disk / "filler", 0)
    broken = find_breaches(registry, ["m@v1"])
    if broken or len(list(registry.store.list_blobs())) != 1 or registry.events()[0].action != "store.collected":
        raise RuntimeError(f"{size_kb} kB: {broken}")
    registry.close()


def _try_mounting(disk: Path) -> None:
    disk.mkdir()
    said = disk.parent / "cannot"
    os.waitpid(_fork(lambda: _mount(disk, 700), said), 0)
    if said.exists():
        raise NotHereError("mounts of one's own need Linux and the right to make them")


def _mount(disk: Path, size_kb: int) -> None:
    """Mount a disk that only this process sees, and that is gone with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
    options = f"size={size_kb}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True)


def _open(folder: Path) -> Registry:
    return Registry(str(folder / "registry.db"), folder / "store")


def _fork(work: Callable[[], None], said: Path) -> int:
    """Do `work` in a child; what it raises is a breach, noted in the file `said`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.fsync = lambda fd: None  # no power is cut here, and without it there are ten times as many races
    try:
        work()
    except BaseException:  # noqa: BLE001 (whatever it is, nothing of the parent may go on in the child)
        _note(said, traceback.format_exc())
    os._exit(0)


def _note(path: Path, what: str) -> None:
    with path.open("a") as file:
        file.write(json.dumps(what) + "\n")


SCENARIOS = [
    Scenario(
        "gc-beside-writers", "F18", "two gcs beside writers, links, retirement", strike_beside_writers, 1.5, least=5
    ),
    Scenario("gc-killed", "F18", "SIGKILL at any moment of gc", strike_killed, 1.0, least=5),
    Scenario("gc-full-disk", "F5", "gc on a disk that is full to the last byte", strike_on_full_disk, 0.7, least=3),
    Scenario("gc-naive", "F18", "control: gc that does not look again", strike_naively, 0.5, is_control=True),
]
