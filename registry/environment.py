"""Who changes something, and from where: user and host, program, job, git commit, and the versions of what converts."""

from __future__ import annotations

import getpass
import re
import shlex
import socket
import subprocess
import sys
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from registry.settings import read_ci_variables

GIT_SECONDS = 2.0
FRESH_SECONDS = 10.0
PROGRAM_LENGTH = 1000
_PASSWORD = re.compile(r"((?<=://)[^\s/:@]*:)\S+(?=@)|((?<=password=))[^&\s']+")


def describe_actor() -> str:
    """Write the user and the host."""
    # a name from the environment may hold bytes that are no text
    return f"{_user()}@{socket.gethostname()}"[:255].encode(errors="replace").decode()


def describe_environment() -> dict[str, Any]:
    """Name the program, what the environment says of the job, the commit of the working folder, and the packages."""
    return {
        "packages": read_packages(),
        "job": read_ci_variables(),
        "program": describe_program(sys.argv),
        "git": observe_git(),
    }


def read_packages() -> dict[str, str | None]:
    """Name the versions of the packages that decide what a network computes here; None for what is not installed."""
    return dict(_packages())


def describe_program(arguments: list[str]) -> str:
    """Write a command of ours whole, without passwords in URLs; of other programs the name alone, which tells enough.

    Their arguments may hold what is not meant for a shared registry.
    """
    name = Path(arguments[0]).name if arguments else ""
    text = shlex.join([name, *arguments[1:]]) if name == "lensreg" else name
    shown = _PASSWORD.sub(r"\1***", text) or "python"
    return shown[:PROGRAM_LENGTH].encode(errors="replace").decode()


def observe_git() -> dict[str, Any] | None:
    """Return the commit of the working folder, and whether tracked files differ from it; None outside of git.

    What was seen some seconds ago is good enough: `Database.write` asks before it makes others wait.
    """
    try:
        folder = str(Path.cwd())
    except OSError:  # it was deleted
        return None
    seen = _seen_git.get(folder)
    if seen is None or time.monotonic() - seen[0] > FRESH_SECONDS:
        _seen_git.clear()
        seen = _seen_git[folder] = (time.monotonic(), _ask_git(folder))
    return seen[1]


_seen_git: dict[str, tuple[float, dict[str, Any] | None]] = {}


def _ask_git(folder: str) -> dict[str, Any] | None:
    commit = _run_git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "dirty": None if changes is None else bool(changes.strip())}


def _run_git(folder: str, *command: str) -> str | None:
    # the folder's own settings may name programs to run; this one git would run unasked
    git = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", folder, *command]
    try:
        done = subprocess.run(git, capture_output=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a folder too big to look through
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def describe_packages(*more: str) -> dict[str, str | None]:
    """Return the releases of the packages that convert, and of `more`; None is not installed."""
    known = _packages()
    return {**known, **{name: find_release(name) for name in more if name not in known}}


@lru_cache
def _packages() -> dict[str, str | None]:
    return {name: find_release(name) for name in ("lens-registry", "torch", "transformers", "transformer-lens")}


@lru_cache
def find_release(package: str) -> str | None:
    """Return the release of a package, None if it is not installed; its metadata are read once."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
