"""Say what it was measured on, without naming the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "transformer-lens", "safetensors", "sqlalchemy", "huggingface-hub", "click")


def describe_machine(rivals: Mapping[str, str]) -> list[str]:
    """Write lines of Markdown; `rivals` are the versions of what was installed beside us."""
    ours = ", ".join(f"{name} {version(name)}" for name in ("lens-registry", *PACKAGES))
    theirs = ", ".join(f"{name} {what}" for name, what in rivals.items()) or "none"
    return [
        f"- measured {datetime.now(UTC):%Y-%m-%d}, commit {_read_commit()}",
        f"- {_read_processor()}, {os.cpu_count()} cores, {_read_memory_gb():.0f} GB of memory; load average at the",
        f"  start {os.getloadavg()[0]:.1f}",
        f"- Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
        f"- {ours}",
        f"- beside us, each in an environment of its own: {theirs}",
    ]


def _read_commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    changed = ", with changes" if git("status", "--porcelain", "--", "registry", "cli", "migrations") else ""
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


def _read_processor() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def read_free_bytes() -> int:
    """Return how much memory can be had without taking it from others."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _read_memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
