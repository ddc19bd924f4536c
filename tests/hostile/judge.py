"""Hand a case to a registry, in a process of its own, and say what came of it and what was wrong with that."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import stat
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from registry import Registry, RegistryError
from registry.quiet import quiet
from registry.register import Registration
from tests.contents import Contents, read_contents
from tests.hostile.case import ACCEPTED, BASES, SECRET, SNAPSHOT, Case, Place, make_place, save_whole
from tests.hostile.watch import Watch, forget_peak, read_peak

TIMEOUT_SECONDS = 60
PEAK_BYTES = 200 * 2**20
_NOBODY = 65534


@dataclass(frozen=True)
class Judgement:
    """What the registry said to a case, and every fault in how it came to that, in words."""

    verdict: str
    message: str
    seconds: float
    peak_bytes: int
    faults: tuple[str, ...]


def judge(case: Case) -> Judgement:
    """Make the case and hand it to a registry; both in a child of this process, which should be warm."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="lensreg-hostile-") as name:
        root = Path(name)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _answer(writer, lambda: _judge_here(case, root))
        os.close(writer)
        return _await(case, child, reader)


@cache
def warm_up() -> Path:
    """Import all that judging needs, and return the folder of a registry that cases start from."""
    root = Path(tempfile.mkdtemp(prefix="lensreg-warm-"))
    registry = _open(root)
    with quiet():
        registry.register("base", save_whole("huggingface"), parity="skip")
        for base in BASES:
            _hand_over(
                registry, Case(base, "", lambda _: None, ACCEPTED, base=base), _find_source(save_whole(base), base)
            )
    registry.close()
    fresh = root / "fresh"
    registry = _open(fresh)
    with quiet():
        registry.register("base", save_whole("huggingface"), parity="skip")
    registry.close()
    return fresh


def _open(root: Path) -> Registry:
    root.mkdir(exist_ok=True)
    return Registry(str(root / "registry.db"), root / "store")


def _answer(writer: int, work: Callable[[], Judgement]) -> None:
    """Send what `work` gives to the parent, and end this process without running anything of the parent's."""
    try:
        with os.fdopen(writer, "w") as pipe:
            json.dump(asdict(work()), pipe)
    except BaseException:  # noqa: BLE001 (a fork must not go on)
        traceback.print_exc()
    finally:
        os._exit(0)


def _await(case: Case, child: int, reader: int) -> Judgement:
    deadline, text = time.monotonic() + TIMEOUT_SECONDS, b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 2**16)
        if not part:
            break
        text += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if not text:
        died = f"no verdict within {TIMEOUT_SECONDS} s" if os.WIFSIGNALED(status) else "the process gave no verdict"
        return Judgement("none", "", TIMEOUT_SECONDS, 0, (f"{case.name}: {died} (status {status})",))
    found = json.loads(text)
    return Judgement(**{**found, "faults": tuple(found["faults"])})


def _judge_here(case: Case, root: Path) -> Judgement:
    warnings.simplefilter("ignore")  # making such files warns
    place = make_place(root, case.base)
    given = case.make(place)
    source = given if given is not None else _find_source(place.source, case.base)
    scratch = root / "tmp"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    os.environ["TMPDIR"] = str(scratch)
    shutil.copytree(warm_up(), root / "registry", symlinks=True)
    os.chdir(place.source)  # where an import or a name without a folder would find what lies there
    forget_peak()
    if case.as_nobody:
        _give_to_nobody(root)
    registry = _open(root / "registry")
    before, listing = read_contents(registry), _list_tree(place.source)
    watch = Watch(place.source, [root / "registry", scratch, Path(os.environ["LENSREG_STAMPS"])], place.outside)
    peak = read_peak()
    with watch:
        said = _hand_over(registry, case, source)
    peak = read_peak() - peak
    faults = [*said.faults, *watch.breaches, *_find_traces(registry, place, scratch, before, listing, said)]
    faults += _compare(case, said)
    if peak > PEAK_BYTES:
        faults.append(f"it took {peak / 2**20:.0f} MB of memory")
    registry.close()
    return Judgement(said.verdict, said.message, said.slowest, peak, tuple(f"{case.name}: {one}" for one in faults))


@dataclass
class _Said:
    """What `register` said, and what was wrong with what it, `check` or `identify` said."""

    verdict: str
    message: str
    findings: tuple[str, ...]
    slowest: float
    faults: list[str]


def _hand_over(registry: Registry, case: Case, source: Path) -> _Said:
    """Register, check and identify the source. What fails with another error than one of ours is a fault."""
    options: dict[str, Any] = dict(case.options)
    parent = "base" if case.base == "adapter" else case.parent
    if parent:
        options["parent"] = parent
    faults: list[str] = []
    slowest = 0.0

    def ask(what: str, question: Callable[[], Any]) -> Any:
        nonlocal slowest
        started = time.monotonic()
        try:
            return question()
        except RegistryError as error:
            return error
        except BaseException as error:  # noqa: BLE001 (that any other comes through is what is looked for)
            place = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{what} raised {type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})")
            return error
        finally:
            slowest = max(slowest, time.monotonic() - started)

    done = ask("register", lambda: registry.register("case", source, parity="skip", **options))
    if not case.only_register:
        for what, question in {
            "check": lambda: registry.check(source, **options),
            "identify": lambda: registry.identify(source, **options),
        }.items():
            other = ask(what, question)
            fault = other if isinstance(other, RegistryError) else getattr(other, "fault", None)
            if fault is not None and isinstance(done, Registration):
                faults.append(f"{what} refuses what was registered: {fault.code}")
    if isinstance(done, Registration):
        return _Said(ACCEPTED, "", tuple(one.code for one in done.findings), slowest, faults)
    code = done.code if isinstance(done, RegistryError) else type(done).__name__
    message = done.message if isinstance(done, RegistryError) else str(done)
    return _Said(code, message, (), slowest, faults)


def _compare(case: Case, said: _Said) -> list[str]:
    faults = []
    if said.verdict != case.verdict:
        faults.append(f"{said.verdict} instead of {case.verdict}: {said.message}")
    if case.words not in said.message:
        faults.append(f"{case.words!r} is not in {said.message!r}")
    if case.finding and case.finding not in said.findings:
        faults.append(f"there is no finding {case.finding}, only {said.findings}")
    if not said.message.isprintable() or len(said.message) > 2000:
        faults.append(f"its message is no line for a terminal: {said.message[:200]!r}")
    return faults


def _find_traces(
    registry: Registry, place: Place, scratch: Path, before: Contents, listing: list[Any], said: _Said
) -> list[str]:
    """Find what should not be there afterwards."""
    faults = []
    if place.sentinel.exists():
        faults.append("the sentinel was touched")
    if _list_tree(place.source) != listing:
        faults.append("the source was changed")
    if left := sorted(path.name for path in scratch.iterdir()):
        faults.append(f"left in the folder for temporary files: {left[:5]}")
    after = read_contents(registry)
    if said.verdict != ACCEPTED and after != before:
        faults.append(f"the registry was changed: {sorted(map(str, after.store ^ before.store))[:5]} {after[1:]}")
    for path in registry.store.root.rglob("*"):
        if "tmp" in path.parts[-2:-1]:
            faults.append(f"left in the store: {path}")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20 and SECRET in path.read_bytes():
            faults.append(f"the secret is in the store: {path}")
    return faults


def _list_tree(folder: Path) -> list[Any]:
    listed = []
    for place, folders, files in os.walk(os.fsencode(folder)):
        for name in sorted([*folders, *files]):
            found = os.lstat(place + b"/" + name)
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            listed.append((name, found.st_ino, found.st_mode, size, found.st_mtime_ns))
    return sorted(listed)


def _find_source(folder: Path, base: str) -> Path:
    if base == "gguf":
        return folder / "model.gguf" if folder.is_dir() else folder
    return folder / SNAPSHOT if base == "hub-cache" else folder


def _give_to_nobody(root: Path) -> None:
    """Give up root's rights, keeping only what the registry needs."""
    for path in [root, *root.rglob("*")]:
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    root.chmod(0o755)
    os.environ["LENSREG_STAMPS"] = str(root / "tmp")
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
