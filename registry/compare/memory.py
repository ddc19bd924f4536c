"""Whether two networks have room in memory beside each other."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
_VERSION_2 = ("memory.max", "memory.current", "file")
_SPARE = 0.8
"""What may be taken of what is free: other processes want some, and estimates are estimates."""


def have_room(wanted_bytes: int, device: str, available_bytes: int | None = None) -> bool:
    """Say whether `wanted_bytes` fit on a device; where nobody can tell, they do."""
    available = read_available_bytes(device) if available_bytes is None else available_bytes
    return available is None or wanted_bytes <= available * _SPARE


def read_available_bytes(device: str) -> int | None:
    """Return how much memory a device has left; for the CPU also within the limits of the control group it is in."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if torch.device(device).type != "cpu" or not _MEMINFO.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    group = _read_group_bytes()
    return min([*free, *([] if group is None else [group])], default=None)


def _read_group_bytes(root: Path = _GROUPS, own: Path = _OWN_GROUPS) -> int | None:
    """Return what the control groups that this process is in leave it, of version 2 or 1; None without limits."""
    left = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = _VERSION_1 if controllers else _VERSION_2
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):  # each of them bounds those within
            left.append(_read_left(folder, *names))
            if folder == base:
                break
    return min((one for one in left if one is not None), default=None)


def _read_left(folder: Path, limit: str, current: str, files: str) -> int | None:
    try:
        most, taken = ((folder / name).read_text().strip() for name in (limit, current))
        kept = re.search(rf"^{files} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # the root group has no limit, and in a container the path may be another
        return None
    if not most.isdigit():
        return None
    return max(0, int(most) - int(taken) + (int(kept[1]) if kept else 0))  # the pages of files can be let go
