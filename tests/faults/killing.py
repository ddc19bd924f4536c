"""F2: SIGKILL at any moment of registering and of what is done to versions, one process or four at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from registry import Registry, RegistryError
from tests.faults.faulty import put_rows_first
from tests.faults.invariant import read_acknowledged
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.faults.workload import (
    Home,
    acknowledge,
    collect,
    find_untyped,
    fork,
    inspect,
    make_home,
    make_source,
    prepare,
    register,
)

_KILLS_PER_HOME = 32
_NAMES = ("base", "tuned", "org/other")


def strike_alone(chance: Chance) -> Outcome:
    """Kill one process after another."""
    return _strike(chance, at_once=1)


def strike_four(chance: Chance) -> Outcome:
    """Kill four at once, which wait for each other's locks."""
    return _strike(chance, at_once=4)


def strike_rows_first(chance: Chance) -> Outcome:
    """The control: rows before blobs, so that a kill between them leaves a version without its blobs."""
    return _strike(chance, at_once=2, per_home=6, leave_out=put_rows_first, until_broken=True)


def _strike(
    chance: Chance,
    at_once: int,
    per_home: int = _KILLS_PER_HOME,
    leave_out: Callable[[], None] = lambda: None,
    until_broken: bool = False,
) -> Outcome:
    rng = random.Random(chance.seed)
    n_struck = n_told = 0
    broken: list[str] = []
    while not chance.must_end(n_struck) and not (until_broken and broken):
        home = make_home(chance.folder / f"home{n_struck}")
        duration = _measure(home, at_once)
        for _ in range(per_home // at_once):
            seeds = [rng.randrange(2**32) for _ in range(at_once)]
            n_struck += _kill(home, seeds, rng.uniform(0, 1.15 * duration), leave_out)
            if chance.must_end(n_struck):
                break
        found = inspect(home, home.folder / "told") + find_untyped(home.folder / "said") + _find_lost_aliases(home)
        found += [] if found else collect(home) + _register_again(home)
        broken += [f"{home.folder}: {one}" for one in found]
        n_told += len(read_acknowledged(home.folder / "told"))
        if not found:
            shutil.rmtree(home.folder)
    return Outcome(n_struck, tuple(broken), f"{n_told:,} registrations acknowledged")


def _measure(home: Home, at_once: int) -> float:
    """Let so many children register at once, and return how long that took from their beginning."""
    began = time.monotonic()
    children = [fork(lambda n=n: _register_once(home, n), home.folder / "said") for n in range(at_once)]
    for child in children:
        os.waitpid(child, 0)
    return time.monotonic() - began


def _register_once(home: Home, index: int) -> None:
    with home.open() as registry:
        register(registry, f"measured{index}", prepare().sources[index], home.folder / "told")


def _kill(home: Home, seeds: list[int], delay: float, leave_out: Callable[[], None]) -> int:
    """Let so many children begin, kill them together after a while; return how many were still at work."""
    reader, writer = os.pipe()
    said = home.folder / "said"
    children = [fork(lambda seed=seed: _act(home, seed, writer, leave_out), said) for seed in seeds]
    os.close(writer)
    for _ in seeds:
        os.read(reader, 1)
    time.sleep(delay)
    for child in children:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    return sum(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child in children)


def _act(home: Home, seed: int, begun: int, leave_out: Callable[[], None]) -> None:
    """Register first, then whatever comes, until this process is killed."""
    leave_out()
    rng = random.Random(seed)
    os.write(begun, b".")
    with home.open() as registry:
        _register_any(registry, home, rng)
        while True:
            rng.choice((_register_any, _register_any, _set_alias, _retire))(registry, home, rng)


def _register_any(registry: Registry, home: Home, rng: random.Random) -> None:
    # what is there already is healed, and nothing recorded
    is_new = rng.random() < 0.7
    place = home.folder / f"source{rng.randrange(10**12)}"
    source = make_source(place, rng) if is_new else rng.choice(prepare().sources)
    register(registry, rng.choice(_NAMES), source, home.folder / "told")


def _set_alias(registry: Registry, home: Home, rng: random.Random) -> None:
    alias = f"base@a{rng.randrange(10**9)}"
    registry.set_alias(alias, "base@v1")
    acknowledge(home.folder / "aliases", alias)


def _retire(registry: Registry, home: Home, rng: random.Random) -> None:
    ref = f"{rng.choice(_NAMES)}@v{rng.randrange(1, 5)}"
    with suppress(RegistryError):  # there is none, or it is retired or in use
        rng.choice((registry.retire, registry.restore))(ref)


def _find_lost_aliases(home: Home) -> list[str]:
    lost = []
    with home.open() as registry:
        for alias in read_acknowledged(home.folder / "aliases"):
            try:
                registry.version(alias)
            except RegistryError as error:
                lost.append(f"{alias} was acknowledged and is lost: {error.message}")
    return lost


def _register_again(home: Home) -> list[str]:
    """Register what may be half there already."""
    try:
        with home.open() as registry:
            for source in prepare().sources[:2]:
                register(registry, "afterwards", source)
    except RegistryError as error:
        return [f"nothing can be registered afterwards: {error.message}"]
    return []


SCENARIOS = [
    Scenario("kill", "F2", "SIGKILL at a random moment of one process", strike_alone, share=2, least=150),
    Scenario("kill-four", "F2", "SIGKILL of four processes at once", strike_four, share=2, least=350),
    Scenario("kill-control", "F2", "the same, with rows before blobs", strike_rows_first, 0.5, 200, is_control=True),
]
