"""What every event says of where the change came from: program, commit, job, packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry import Registry
from registry.environment import describe_program, observe_git
from tests.processes import ROOT
from tests.records import record


def _git(folder: Path, *command: str) -> str:
    told = ["git", "-c", "user.name=ann", "-c", "user.email=ann@example.org", *command]
    return subprocess.run(told, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit, which is the working folder."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "train.py").write_text("print(1)\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("registry.environment.FRESH_SECONDS", 0.0)
    return folder


def test_an_event_names_the_commit_and_whether_files_differ_from_it(any_registry: Registry, checkout: Path) -> None:
    commit = _git(checkout, "rev-parse", "HEAD")
    record(any_registry, "m")
    (checkout / "notes.txt").write_text("not tracked")
    record(any_registry, "m")
    (checkout / "train.py").write_text("print(2)\n")
    record(any_registry, "m")
    found = [event.environment["git"] for event in reversed(any_registry.events())]
    assert found == [{"commit": commit, "dirty": dirty} for dirty in (False, False, True)]
    assert any_registry.verify_events() is None


def test_outside_of_git_there_is_no_commit(
    any_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(any_registry, "m")
    assert any_registry.events()[0].environment["git"] is None


def test_a_folder_without_commits_without_git_or_gone_is_none_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    _git(fresh, "init", "-q")
    monkeypatch.chdir(fresh)
    assert observe_git() is None
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert observe_git() is None
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert observe_git() is None


def test_git_runs_no_program_that_the_folder_names_for_it(checkout: Path) -> None:
    ran = checkout / "ran"
    hook = checkout / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    _git(checkout, "config", "core.fsmonitor", str(hook))
    assert observe_git() is not None
    assert not ran.exists()
    _git(checkout, "status")
    assert ran.exists(), "git alone runs it"


PROGRAMS = [
    (["/usr/bin/lensreg", "add", "a b", "x"], "lensreg add 'a b' x"),
    (
        ["lensreg", "ls", "--registry", "postgresql://ann:pw@host/db"],
        "lensreg ls --registry postgresql://ann:***@host/db",
    ),
    (["lensreg", "--registry=postgresql://ann:se@cret@host/db"], "lensreg --registry=postgresql://ann:***@host/db"),
    (
        ["lensreg", "--registry=postgresql://host/db?user=ann&password=pw&x=y"],
        "lensreg '--registry=postgresql://host/db?user=ann&password=***&x=y'",
    ),
    (["runs/train.py", "--token", "secret"], "train.py"),
    ([""], "python"),
    ([], "python"),
    (["lensreg", "caf\udce9"], "lensreg 'caf?'"),
]


@pytest.mark.parametrize(("arguments", "shown"), PROGRAMS)
def test_a_program_is_named_without_secrets(arguments: list[str], shown: str) -> None:
    assert describe_program(arguments) == shown


def test_a_command_is_in_its_event(tmp_path: Path) -> None:
    """The real command, in a process of its own."""
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    record(registry, "m")
    command = ["lensreg", "alias", "set", "m@best", "m@v1"]
    where = {"LENSREG_URL": str(tmp_path / "registry.db"), "LENSREG_STORE": str(tmp_path / "store")}
    code = f"import sys; sys.argv = {command}; from cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | where, check=True, capture_output=True)
    event = registry.events()[0]
    assert (event.action, event.environment["program"]) == ("alias.set", "lensreg alias set m@best m@v1")
    registry.close()
