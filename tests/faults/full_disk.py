"""F5, F6: disks that are really full, of many sizes, and disks that nothing can be written to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from registry import Registry, RegistryError
from registry.files import open_files
from tests.faults.mounts import hide_mounts, mount_memory, run, unmount
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.faults.workload import Home, inspect, make_home, make_source, prepare, register

_ROOM = 80 * 2**10  # two or three registrations take more
_MUCH = 16 * 2**20
_PAGE = 4096
_TYPED = {"storage-full"}


def strike_full(chance: Chance) -> Outcome:
    """Register until the disk is full, look at what is there, fill it up to the last byte, read, make room."""
    hide_mounts()
    rng = random.Random(chance.seed)
    size = sum(_PAGE * (path.lstat().st_size // _PAGE + 1) for path in prepare().home.folder.rglob("*"))
    ends: Counter[str] = Counter()
    broken: list[str] = []
    n_struck = 0
    while not chance.must_end(n_struck):
        n_struck += 1
        place = mount_memory(chance.folder / f"disk{n_struck}", size + rng.randrange(_ROOM))
        try:
            home = make_home(place / "home")
            broken += [f"{place}: {one}" for one in _fill_and_free(home, chance.folder / "sources", rng, ends)]
        finally:
            unmount(place)
    told = ", ".join(f"{n} {end}" for end, n in ends.most_common())
    return Outcome(n_struck, tuple(broken), told)


def _fill_and_free(home: Home, sources: Path, rng: random.Random, ends: Counter[str]) -> list[str]:
    told = home.folder.parent.parent / f"{home.folder.parent.name}-told"
    broken = []
    try:
        with home.open() as registry:
            while True:
                register(registry, "base", make_source(sources / str(rng.randrange(10**12)), rng), told)
    except RegistryError as error:
        ends[error.code] += 1
        if error.code not in _TYPED:
            broken.append(f"a full disk is called {error.code}: {error.message}")
    fill = home.folder / "fill"
    _fill_up(fill)
    if Path(f"{home.database}.ballast").exists():  # without it SQLite cannot even read here
        broken += [f"on a full disk: {one}" for one in _read_all(home)]
    fill.unlink()
    run("mount", "-o", f"remount,size={_MUCH}", str(home.folder.parent))
    try:
        with home.open() as registry:
            register(registry, "base", prepare().sources[0], told)
    except RegistryError as error:
        broken.append(f"when there was room again: {error.message}")
    return broken + inspect(home, told)


def _fill_up(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(_PAGE)):
            pass


def _read_all(home: Home) -> list[str]:
    try:
        with home.open() as registry:
            found = [fault.message for fault in registry.verify(read_data=True).faults]
            open_files(registry.store, registry.version("base@v1"))
            return found if registry.models() else ["there is no model any more"]
    except RegistryError as error:
        return [f"{type(error).__name__}: {error.message}"]


def strike_read_only(chance: Chance) -> Outcome:
    """Do everything on disks where nothing, or only the database, or only the store can be written."""
    hide_mounts()
    ends: Counter[str] = Counter()
    broken: list[str] = []
    n_struck = 0
    for writable in ("nothing", "database", "store"):
        home = make_home(chance.folder / writable)
        place = home.store if writable == "database" else home.folder
        with _read_only(place, but=home.store if writable == "store" else None):
            for act in (_register, _set_alias, _retire):
                n_struck += 1
                end = _try(act, home)
                ends[end] += 1
                if (end == "done") != (writable == "database" and act is not _register):
                    broken.append(f"{act.__name__.strip('_')}, while only {writable} can be written to: {end}")
            broken += [f"only {writable} can be written to: {one}" for one in _read_all(home)]
        broken += inspect(home)
    told = ", ".join(f"{n} {end}" for end, n in ends.most_common())
    return Outcome(n_struck, tuple(broken), told)


def _try(act: Callable[[Registry], object], home: Home) -> str:
    try:
        with home.open() as registry:
            act(registry)
    except RegistryError as error:
        return error.code
    return "done"


def _register(registry: Registry) -> None:
    register(registry, "new", prepare().sources[1])


def _set_alias(registry: Registry) -> None:
    registry.set_alias("base@other", "base@v1")


def _retire(registry: Registry) -> None:
    registry.retire("base@v1", force=True)


@contextmanager
def _read_only(place: Path, but: Path | None) -> Iterator[None]:
    """Let nothing be written to a folder, but to one that is inside it."""
    mounted = [one for one in (place, but) if one is not None]
    for one in mounted:
        run("mount", "--bind", str(one), str(one))
    run("mount", "-o", "remount,ro,bind", str(place))
    try:
        yield
    finally:
        for one in reversed(mounted):
            unmount(one)


SCENARIOS = [
    Scenario("full-disk", "F5", "file systems of random sizes, filled up", strike_full, share=1.5, least=50),
    Scenario("read-only", "F6", "mounts that cannot be written to", strike_read_only, share=0.3, least=8),
]
