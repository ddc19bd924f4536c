"""Mounts that only this process and its children see, and that are gone when it ends."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

from tests.faults.scenario import NotHereError

_CLONE_NEWNS = 0x00020000


def hide_mounts() -> None:
    """Give this process mounts of its own; raises NotHereError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or shutil.which("mount") is None:
        raise NotHereError("mounts of one's own need Linux")
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise NotHereError(f"mounts of one's own are not allowed: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")


def mount_memory(folder: Path, size_bytes: int) -> Path:
    """Mount a file system in memory of that size."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    return folder


def unmount(folder: Path) -> None:
    """Take a mount away."""
    run("umount", str(folder))


def run(*command: str) -> None:
    """Run a command of the system's; what it cannot do here is NotHereError."""
    if shutil.which(command[0]) is None:
        raise NotHereError(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise NotHereError(f"{command[0]} failed here: {' '.join((done.stderr or done.stdout).split())}")
