"""Versions that are on their way between two registries while whoever moves them is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from registry import Registry
from registry.transfer import receive as receiving
from tests.faults.invariant import find_breaches
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.transfers import add, add_all, open_registry

N_VERSIONS = 10


def strike_killed(chance: Chance) -> Outcome:
    """Kill a push (and, every other time, an import of a tar) at a random moment; then it is repeated, and is whole."""
    receiving.PUBLISHED_AT_ONCE, receiving.WRITTEN_AT_ONCE = 3, 4
    laptop = open_registry(chance.folder / "laptop")
    add(laptop, "run")
    add_all(laptop, [{"model": "run", "parents": [f"run@v{n}"], "step": n} for n in range(1, N_VERSIONS)])
    tar = chance.folder / "run.tar"
    laptop.export_versions("run", target=tar)
    random_moment, struck, partly, broken, took = random.Random(chance.seed), 0, 0, [], 1.0
    trial = 0
    while not chance.must_end(struck):
        folder = chance.folder / f"team{trial % 2}"
        shutil.rmtree(folder, ignore_errors=True)
        open_registry(folder).models()
        start = time.monotonic()
        if (child := os.fork()) == 0:
            _move(laptop, folder, tar if trial % 2 else None)
            os._exit(0)
        if trial > 1:
            time.sleep(random_moment.uniform(0, took))
            os.kill(child, signal.SIGKILL)
        was_killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        took = took if was_killed else time.monotonic() - start
        struck += was_killed
        team = open_registry(folder)
        broken += find_breaches(team)
        partly += 0 < sum(one.n_versions for one in team.models()) < N_VERSIONS
        refs = _move(laptop, folder, tar if trial % 2 else None)
        broken += find_breaches(team, refs)
        team.close()
        trial += 1
    laptop.close()
    return Outcome(struck, tuple(broken), f"{partly} times some versions had arrived and others not")


def _move(laptop: Registry, folder: Path, tar: Path | None) -> list[str]:
    team = open_registry(folder)
    done = laptop.push("run", to=team) if tar is None else team.import_versions(tar)
    team.close()
    return [one.ref for one in done.moves]


SCENARIOS = [
    Scenario(
        "transfer killed", "F2", "SIGKILL while versions are pushed or imported, then repeated", strike_killed, 0.5
    )
]
