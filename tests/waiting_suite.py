"""A suite that says where it runs and waits until it may go on, as a package that other processes find, too."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry import Registry
from tests.patience import wait_for

_SUITE = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from registry.validation.metric import Measured, Metric

@dataclass(frozen=True)
class Waiting:
    name: ClassVar[str] = "waiting"
    version: ClassVar[str] = "1"
    folder: str

    def run(self, subject):
        folder = Path(self.folder)
        ref = subject.version.ref
        (folder / f"{ref} {os.getpid()} {time.monotonic_ns()}").touch()
        while (folder / f"hold {ref}").exists():
            time.sleep(0.02)
        if (folder / f"bad {ref}").exists():
            raise ZeroDivisionError("as it was told")
        network = subject.load()
        return Measured([Metric("norm", float(network.W_E.detach().norm()), None, "lower", network.cfg.d_vocab)])
"""


@dataclass(frozen=True)
class Waiting:
    """The suite `waiting`; its runs leave a file each in `folder`, and do what they find there."""

    site: Path
    folder: Path

    @property
    def parameters(self) -> dict[str, str]:
        return {"folder": str(self.folder)}

    def hold(self, ref: str) -> None:
        """Have runs on this version wait."""
        (self.folder / f"hold {ref}").touch()

    def release(self, ref: str) -> None:
        (self.folder / f"hold {ref}").unlink()

    def spoil(self, ref: str) -> None:
        """Have runs on this version raise."""
        (self.folder / f"bad {ref}").touch()

    def started(self) -> list[tuple[str, int]]:
        """List the runs that were started, as version and process, in order."""
        found = (re.fullmatch(r"(\S+@v\d+) (\d+) (\d+)", path.name) for path in self.folder.iterdir())
        return [(one[1], int(one[2])) for one in sorted((one for one in found if one), key=lambda one: int(one[3]))]

    def wait_for(self, ref: str, n: int = 1) -> int:
        """Wait until a run on this version was started for the n-th time, and return its process."""
        assert wait_for(lambda: Counter(one for one, _ in self.started())[ref] >= n, 120), f"{ref} was not started"
        return [process for one, process in self.started() if one == ref][n - 1]


def install_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """Put the suite on the path of this process and of those that it starts."""
    site, folder = tmp_path / "site", tmp_path / "runs"
    info = site / "lens_registry_waiting-1.0.dist-info"
    info.mkdir(parents=True)
    folder.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lens-registry-waiting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lens_registry.suites]\nwaiting = waiting_suite_for_tests:Waiting\n")
    (site / "waiting_suite_for_tests.py").write_text(_SUITE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    return Waiting(site, folder)


def list_measured(registry: Registry, refs: list[str]) -> list[tuple[object, ...]]:
    """List the rows of the suite `waiting`, without what differs from run to run."""
    return [
        (ref, one.suite, one.metric, one.value, one.passed, one.n_samples, one.dtype, one.details, one.bound)
        for ref in refs
        for one in registry.version(ref).validations
        if one.suite == "waiting"
    ]


def is_running(process: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(processes: list[int], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_running, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_running, processes))
