"""The other registries, each pinned in rivals/NAME.txt and installed in an environment of its own under .bench/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parent / "rivals"
RIVALS = ("mlflow", "huggingface-hub", "dvc", "gto", "bentoml", "trackio")


def make_environments(folder: Path) -> None:
    """Install what is not installed yet; what cannot be is left out, and its lines say so."""
    for name in RIVALS:
        pins, ready = PINS / f"{name}.txt", folder / name / "ready"
        if ready.is_file() and ready.read_text() == pins.read_text():
            continue
        print(f"installing {name} …", flush=True)
        with (folder / f"{name}.log").open("w") as log:
            python = folder / name / "bin" / "python"
            # all of it is pinned, so nothing is left to resolve
            install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", pins]
            for command in ([sys.executable, "-m", "venv", "--clear", folder / name], install):
                if subprocess.run(command, stdout=log, stderr=log).returncode:
                    print(f"{name} could not be installed; see {log.name}")
                    break
            else:
                ready.write_text(pins.read_text())


def find_rivals(folder: Path) -> dict[str, str]:
    """Return the versions of those that are installed."""
    versions = {}
    for name in RIVALS:
        pins = folder / name / "ready"
        if pins.is_file():
            pinned = dict(line.split("==") for line in pins.read_text().splitlines() if "==" in line)
            versions[name] = pinned[name]
    return versions


def find_program(folder: Path, rival: str, program: str) -> Path | None:
    """Return the path of a rival's program, or None if it is not installed."""
    return folder / rival / "bin" / program if (folder / rival / "ready").is_file() else None
