"""Where tests put their files: in memory where there is room, so that nobody waits for a disk."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 8 * 2**30
DISK = Path("/var/tmp")
"""For what needs a disk: to be mapped without taking memory, or to leave the page cache."""


def prefer_memory() -> None:
    """Have files of this process, and of those that it starts, made in memory, unless $TMPDIR says where.

    Pytest's folders of tests that failed stay there until the next run. Whatever is synced is synced there too; what a
    power cut would leave of it is looked at by tests/faults/power.py.
    """
    has_room = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
    if not has_room or "TMPDIR" in os.environ:
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
    folder, owner = tempfile.mkdtemp(prefix="lensreg-tests-", dir=_MEMORY), os.getpid()
    Path(folder).chmod(0o755)  # some cases are judged without root's rights
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


def find_other_file_system(path: Path) -> Path | None:
    """Return a folder that can be written to and lies on another file system than `path`, if there is one."""
    others = (one for one in (_MEMORY, DISK) if one.is_dir() and os.access(one, os.W_OK))
    return next((one for one in others if one.stat().st_dev != path.stat().st_dev), None)
