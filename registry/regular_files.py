"""Open what should be a file: what else is found there, a pipe, a device, a folder, is refused and never waited for.

Between looking at a name and opening it, somebody may put something else there; so what was opened is looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path

_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # opening a pipe waits for who writes to it
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: Path, *, follow: bool = True) -> FileIO:
    """Open a file for reading, unbuffered; `follow` says whether `path` itself may be a symbolic link.

    Raises OSError, also for what is no file.
    """

    def open_it(name: str, flags: int) -> int:
        return os.open(name, flags | _NO_WAITING | (0 if follow else _NO_LINK))

    file = FileIO(os.fspath(path), "rb", opener=open_it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file
