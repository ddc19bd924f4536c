"""F3: the power goes: everything is killed, and only what had reached the disk is there afterwards.

The registry lies on an ext4 image that is mounted by a loop device. After SIGKILL the image's file is copied while the
file system is still mounted: what was written and not synced is in the kernel's memory only, and not in the copy. The
copy is then mounted and looked at. What was acknowledged is noted outside.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry import RegistryError
from tests.faults.faulty import (
    commit_without_sync,
    keep_no_replaced_blobs,
    sync_folders_late,
    sync_no_folders,
    sync_nothing,
)
from tests.faults.invariant import read_acknowledged
from tests.faults.mounts import hide_mounts, run, unmount
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.faults.workload import Home, find_untyped, fork, inspect, make_source, prepare, register

_N_CHILDREN = 2
_IMAGE_BYTES = 24 * 2**20
_WAIT_SECONDS = 20
_TRIALS_PER_IMAGE = 6  # what is registered stays, and each trial looks at all of it


@dataclass(frozen=True)
class _Disk:
    """An ext4 file system in a file, and where it is mounted."""

    image: Path
    mount: Path
    has_journal: bool

    def make(self) -> None:
        self.mount.mkdir(parents=True, exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        journal = [] if self.has_journal else ["-O", "^has_journal"]
        run("mkfs.ext4", "-q", "-F", *journal, str(self.image))
        run("mount", "-o", "loop", str(self.image), str(self.mount))

    def cut(self, copy: Path) -> None:
        """Keep what has reached the disk by now, as the copy."""
        run("cp", "--sparse=always", str(self.image), str(copy))
        if not self.has_journal:  # as a machine does when it starts again
            subprocess.run(["e2fsck", "-fy", str(copy)], capture_output=True, stdin=subprocess.DEVNULL, check=False)


def strike_journal(chance: Chance) -> Outcome:
    """Cut the power of ext4 as it usually is."""
    return _strike(chance, has_journal=True)


def strike_no_journal(chance: Chance) -> Outcome:
    """Cut the power of a file system that keeps no order of its own, and is slow at syncing folders."""
    return _strike(chance, has_journal=False, change=sync_folders_late)


def forget_blobs(chance: Chance) -> Outcome:
    """The control: nothing is synced but the database."""
    return _strike(chance, has_journal=True, leave_out=sync_nothing)


def forget_folders(chance: Chance) -> Outcome:
    """The control: no folder is synced, on a file system that does not do it by itself."""
    return _strike(chance, has_journal=False, leave_out=sync_no_folders)


def free_replaced(chance: Chance) -> Outcome:
    """The control: what a blob takes the place of is deleted at once."""
    return _strike(chance, has_journal=False, leave_out=keep_no_replaced_blobs)


def forget_commits(chance: Chance) -> Outcome:
    """The control: SQLite with synchronous=NORMAL."""
    return _strike(chance, has_journal=True, leave_out=commit_without_sync)


def _strike(
    chance: Chance,
    has_journal: bool,
    change: Callable[[], None] | None = None,
    leave_out: Callable[[], None] | None = None,
) -> Outcome:
    """Cut the power again and again; children `change` or `leave_out` something first, the latter for a control."""
    hide_mounts()
    rng = random.Random(chance.seed)
    broken: list[str] = []
    n_cut = n_told = 0
    while not chance.must_end(n_cut) and not (leave_out and broken):
        folder = chance.folder / f"disk{n_cut}"
        folder.mkdir()
        disk = _Disk(folder / "image", folder / "mount", has_journal)
        disk.make()
        try:
            with Home(disk.mount / "deep" / "home").open() as registry:  # its folders too are made here
                register(registry, "base", prepare().sources[0], folder / "told")
            for _ in range(_TRIALS_PER_IMAGE):
                found = _cut_once(disk, folder, rng, change or leave_out or _change_nothing)
                n_cut += 1
                broken += [f"{folder}: {one}" for one in found]
                if broken or chance.must_end(n_cut):
                    break
        finally:
            unmount(disk.mount)
        n_told += len(read_acknowledged(folder / "told"))
        if not broken:
            shutil.rmtree(folder)
    return Outcome(n_cut, tuple(broken), f"{n_told:,} registrations acknowledged")


def _cut_once(disk: _Disk, folder: Path, rng: random.Random, change: Callable[[], None]) -> list[str]:
    home, said = Home(disk.mount / "deep" / "home"), folder / "said"
    reader, writer = os.pipe()
    seeds = [rng.randrange(2**32) for _ in range(_N_CHILDREN)]
    children = [fork(lambda seed=seed: _act(home, folder / "told", seed, writer, change), said) for seed in seeds]
    os.close(writer)
    for _ in seeds:
        os.read(reader, 1)
    began = time.monotonic()
    _wait_until_told(folder / "told")
    time.sleep(rng.uniform(0, time.monotonic() - began))
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    os.close(reader)
    copy, after = folder / "copy", folder / "after"
    disk.cut(copy)
    return _look(copy, after, folder) + find_untyped(said)


def _wait_until_told(told: Path) -> None:
    """Wait until somebody was told once more that something is registered."""
    n_before, deadline = len(read_acknowledged(told)), time.monotonic() + _WAIT_SECONDS
    while len(read_acknowledged(told)) == n_before and time.monotonic() < deadline:
        time.sleep(0.002)


def _act(home: Home, told: Path, seed: int, begun: int, change: Callable[[], None]) -> None:
    """Register until the power goes."""
    change()
    rng = random.Random(seed)
    os.write(begun, b".")
    with home.open() as registry:
        while True:
            source = make_source(told.parent / f"source{rng.randrange(10**9)}", rng)
            register(registry, "base", source, told)


def _look(copy: Path, mount: Path, folder: Path) -> list[str]:
    """Mount what is left, and return what is broken in it, or keeps the next from registering."""
    mount.mkdir(exist_ok=True)
    try:
        run("mount", "-o", "loop", str(copy), str(mount))
    except NotHereError as error:
        return [f"the file system itself is broken: {error}"]
    home = Home(mount / "deep" / "home")
    try:
        told = read_acknowledged(folder / "told")
        if not home.database.exists():
            return [f"the database is gone, and {len(told)} versions were acknowledged"] if told else []
        return inspect(home, folder / "told") or _register_again(home)
    finally:
        unmount(mount)


def _register_again(home: Home) -> list[str]:
    try:
        with home.open() as registry:
            register(registry, "afterwards", prepare().sources[0])
    except RegistryError as error:
        return [f"nothing can be registered afterwards: {type(error).__name__} {error.message}"]
    return inspect(home)


def _change_nothing() -> None:
    """Do as we do."""


SCENARIOS = [
    Scenario("power", "F3", "power cut, ext4", strike_journal, share=1.5, least=10, least_long=100),
    Scenario("power-no-journal", "F3", "power cut, ext4 without a journal", strike_no_journal, 1.5, 10, least_long=100),
    Scenario("power-no-sync", "F3", "power cut, and no blob is synced", forget_blobs, 0.5, 10, is_control=True),
    Scenario("power-no-folders", "F3", "power cut, and no folder is synced", forget_folders, 0.5, 10, is_control=True),
    Scenario("power-not-kept", "F3", "power cut, replaced blobs freed", free_replaced, 0.5, 60, is_control=True),
    Scenario("power-normal", "F3", "power cut, synchronous=NORMAL", forget_commits, 0.5, 10, is_control=True),
]
