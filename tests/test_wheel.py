"""The built wheel, installed outside the checkout, does the main job: migrations and all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint("gpt2")
    run(tmp_path, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("lens_registry-*.whl")
    run(tmp_path, sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(tmp_path, python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    lensreg = tmp_path / "venv" / "bin" / "lensreg"
    added = json.loads(run(tmp_path, lensreg, "add", "base", checkpoint, "--output", "json"))
    assert added["ref"] == "base@v1" and added["parity"]["passed"]
    code = (
        "import registry; network = registry.Registry().load('base');"
        "print(registry.__file__, network.to_tokens('w1 w2').tolist())"
    )
    where, tokens = run(tmp_path, python, "-c", code).strip().split(" ", 1)
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert json.loads(tokens) == [[0, 1, 2]]


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in `folder`, away from the checkout, with a registry of its own; return its stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LENSREG"))}
    environment["LENSREG_HOME"] = str(folder / "home")
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_with_transformer_lens_4_has_what_the_package_requires() -> None:
    """`make tl4` installs the package without its dependencies: one of them excludes the other environment's."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "tests" / "tl4" / "requirements.txt").read_text().splitlines()
    installed = {line for line in lines if line and not line.startswith("#")}
    expected = {"transformer-lens==4.3.*" if line.startswith("transformer-lens") else line for line in required}
    assert expected <= installed
    assert {line.partition(">")[0] for line in installed - expected} == {"pytest", "pytest-timeout"}
