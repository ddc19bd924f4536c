"""Run a command and watch what memory its process takes."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_SECONDS = 0.01
_PSS_EVERY = 20  # counting what is shared takes longer


@dataclass(frozen=True)
class Peak:
    """What a process took: seconds by the clock and of processors, and bytes at their highest.

    `private` is memory of its own (RssAnon, looked at every 10 ms), `resident` all of it with the pages of mapped files
    (ru_maxrss, exact), and `proportional` the same with shared pages divided among those who share them (PSS, looked at
    every 200 ms).
    """

    seconds: float
    processor_seconds: float
    private: int
    resident: int
    proportional: int


def watch(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Peak:
    """Run a command to its end; raises CalledProcessError if it fails. Needs Linux."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    private = proportional = turn = 0
    while True:
        private = max(private, _find("RssAnon", _read(process.pid, "status")))
        if turn % _PSS_EVERY == 0:
            proportional = max(proportional, _find("Pss", _read(process.pid, "smaps_rollup")))
        turn += 1
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(_EVERY_SECONDS)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Peak(seconds, used.ru_utime + used.ru_stime, private, used.ru_maxrss * 1024, proportional)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:  # it is gone
        return ""


def _find(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
