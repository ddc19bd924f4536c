"""The built wheel, installed outside the checkout, does the main job: migrations and all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_with_what_it_requires_alone(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    """What it requires is linked from here and not installed again: setting up this environment has done that."""
    checkpoint = make_checkpoint("gpt2")
    run(tmp_path, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("lens_registry-*.whl")
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(tmp_path, *pip, "install", "--quiet", "--no-compile", "--no-deps", wheel)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (installed,) = distributions(path=[str(packages)])
    linked = link_requirements(installed, packages)
    assert "torch" in linked and "pytest" not in linked and "moto" not in linked
    run(tmp_path, *pip, "check")
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


def link_requirements(package: Distribution, target: Path) -> set[str]:
    """Link all that `package` requires, and what that requires, into `target`; return the names."""
    linked: set[tuple[str, frozenset[str]]] = set()
    left = [(package, frozenset({""}))]
    while left:
        one, extras = left.pop()
        for requirement in map(Requirement, one.requires or []):
            marker, wanted = requirement.marker, (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if wanted in linked or (marker and not any(marker.evaluate({"extra": extra}) for extra in extras)):
                continue
            linked.add(wanted)
            required = distribution(requirement.name)
            left.append((required, frozenset({"", *requirement.extras})))
            for name in {file.parts[0] for file in required.files or []} - {"..", "__pycache__"}:
                if not (target / name).exists():
                    (target / name).symlink_to(required.locate_file(name))
    return {name for name, _ in linked}


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
