"""Commands as whole processes, against those of other registries that come nearest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import big_registry
from benchmarks.environments import find_program
from benchmarks.page import Bound, Entry, Line, Section, write_seconds
from benchmarks.plan import Plan
from benchmarks.subjects import command_rivals
from benchmarks.timing import median_of, take_turns
from registry import Registry

NAME = big_registry.name_model(0)
BOUNDS = {"--help": 0.15, "path": 0.45, "ls": 0.45, "show": 0.45}
# what a command cannot do without, as far as we know: measured beside it
IMPORTS = {
    "--help": "import click",
    "path": "import sqlalchemy",
    "ls": "import sqlalchemy",
    "show": "import sqlalchemy",
}


def measure(plan: Plan) -> Section:
    """Time `--help`, `path`, `ls` and `show`."""
    with plan.working_folder() as folder:
        commands = {way: _call(command) for way, command in _list_ours(folder).items()}
        for code in IMPORTS.values():
            commands[f"`python -c '{code}'`"] = _call([sys.executable, "-c", code])
        bare = "`python -c 'pass'`"
        commands[bare] = _call([sys.executable, "-c", "pass"])
        missing: dict[str, str] = {}
        rivals = command_rivals.RIVALS
        for rival in rivals:
            program = find_program(plan.folder, rival.environment, rival.program) if plan.rivals else None
            try:
                prepared = rival.prepare(folder, program) if program else None
            except subprocess.CalledProcessError as failed:
                print(failed.stderr, file=sys.stderr)
                prepared = None
            for kind, arguments in rival.commands.items():
                way = rival.write(kind)
                if prepared is None:
                    missing[way] = "could not be set up" if program else "not installed"
                else:
                    commands[way] = _call([str(program), *arguments], prepared.variables, prepared.folder)
        for way in [way for way, call in commands.items() if not _works(call, missing, way)]:
            del commands[way]
        seconds = take_turns(commands, 2 if plan.quick else 7)
    entries = []
    for kind in BOUNDS:
        ways = [f"`lensreg {kind}`", *(rival.write(kind) for rival in rivals if kind in rival.commands)]
        ways += [f"`python -c '{IMPORTS[kind]}'`", bare]
        lines = [Line(way, seconds.get(way, ()), missing=missing.get(way)) for way in ways]
        entries.append(Entry(kind, lines))
    text = [
        "Whole processes, from start to end. Where another registry has no such command, the nearest that it has is",
        "named; where nothing comes near, it is left out. `lensreg` asks a registry of 1,000 versions, and the others",
        "hold one model.",
    ]
    bounds = [_judge(entry, limit) for entry, limit in zip(entries, BOUNDS.values(), strict=True)]
    return Section("Commands", "python -m benchmarks --only commands", text, entries, bounds)


def _list_ours(folder: Path) -> dict[str, Sequence[str]]:
    """Fill a registry, with the bytes of one version, and say how to ask it."""
    home = folder / "home"
    registry = Registry(str(home / "registry.db"), home / "store")
    big_registry.fill(registry, big_registry.Spec(n_versions=1000, n_models=20, depth=25))
    registry.close()
    ref = command_rivals.register_bytes(home)
    program = Path(sys.executable).with_name("lensreg")
    lensreg = [str(program)] if program.is_file() else [sys.executable, "-m", "cli.main"]
    where = ["--registry", str(home / "registry.db"), "--store", str(home / "store")]
    return {
        "`lensreg --help`": [*lensreg, "--help"],
        "`lensreg path`": [*lensreg, *where, "path", ref],
        "`lensreg ls`": [*lensreg, *where, "ls"],
        "`lensreg show`": [*lensreg, *where, "show", NAME],
    }


def _call(
    command: Sequence[str], variables: Mapping[str, str] | None = None, folder: Path | None = None
) -> Callable[[], object]:
    environment = {**os.environ, **variables} if variables is not None else None

    def call() -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)

    return call


def _works(call: Callable[[], object], missing: dict[str, str], way: str) -> bool:
    try:
        call()
    except subprocess.CalledProcessError as failed:
        print(way, failed.stderr.decode(), file=sys.stderr)
        missing[way] = f"failed with {failed.returncode}"
        return False
    return True


def _judge(entry: Entry, limit: float) -> Bound:
    ours, imported, bare = (line.seconds for line in (entry.lines[0], *entry.lines[-2:]))
    why = (
        f"Beside it {entry.lines[-2].way} took {write_seconds(median_of(imported))} and {entry.lines[-1].way} "
        f"{write_seconds(median_of(bare))}; the bound is in seconds, so a busy or slower machine misses it first."
    )
    measured = median_of(ours) if ours else None
    return Bound(f"`lensreg {entry.what}` as a whole process", "at most", limit, measured, "s", why)
