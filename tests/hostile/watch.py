"""What this process does from now on, by Python's audit events: what it runs, what it writes, what it reads where.

What libraries in C++ and Rust open by themselves raises no events; that is seen by what the store holds afterwards.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),), "os.setxattr": ((0, None),),
}  # fmt: skip
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.startfile"}
_ASKS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}
# the one child that the registry starts: see registry/sources/pickles.py
_GIT = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false"]
_OUR_CHILD = "from registry.sources.unpickle import main"


class Watch:
    """Notes in `breaches` what must not happen: code run, the network asked, files written or read elsewhere.

    `source` must not be written to and nothing in it run; `written` are where files may be written; nothing within
    `bait` may be opened.
    """

    def __init__(self, source: Path, written: Sequence[Path], bait: Path) -> None:
        self.breaches: list[str] = []
        self._source = os.path.realpath(source)
        self._written = tuple(os.path.realpath(one) for one in written)
        self._bait = os.path.realpath(bait)
        self._is_on = False
        self._is_inside = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> Watch:
        self._is_on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._is_on or self._is_inside:
            return
        self._is_inside = True  # looking at a path may raise events too
        try:
            what = self._judge(event, args)
        finally:
            self._is_inside = False
        if what and what not in self.breaches:
            self.breaches.append(what)

    def _judge(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._judge_open(*args)
        if event in _CHANGES:
            for path, folder in _CHANGES[event]:
                real = _find_real(args[path], args[folder] if folder is not None else -1, follow=False)
                if real is not None and not self._may_write(real):
                    return f"{event} at {real}"
        if event in _RUNS or event in _ASKS or event == "pickle.find_class":
            return f"{event} {args!r:.200}"
        if event == "subprocess.Popen" and not _is_ours(*args[:2]):
            return f"{event} {args!r:.200}"
        return self._judge_code(event, args)

    def _judge_code(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Say so if what is imported, compiled or run comes out of the source."""
        file: Any = None
        if event in ("import", "compile", "ctypes.dlopen"):
            file = args[0] if event == "ctypes.dlopen" else args[1]
        elif event == "exec":
            file = args[0].co_filename
        if isinstance(file, bytes):
            file = os.fsdecode(file)
        if (
            isinstance(file, str)
            and not file.startswith("<")
            and _is_within(os.path.realpath(file), (self._source, self._bait))
        ):
            return f"{event} of {file}"
        return None

    def _judge_open(self, path: Any, mode: str | None, flags: int) -> str | None:
        real = _find_real(path, -1, follow=True)
        if real is None:
            return None
        if _is_within(real, (self._bait,)):
            return f"opened {real}"
        if flags & _WRITING and not self._may_write(real):
            return f"opened {real} for writing"
        if real.endswith(".py") and _is_within(real, (self._source,)):
            return f"opened {real}"
        return None

    def _may_write(self, real: str) -> bool:
        return real == os.devnull or (_is_within(real, self._written) and not _is_within(real, (self._source,)))


def _is_ours(program: Any, command: Sequence[str]) -> bool:
    """Whether this is the child that reads pickles, or git, asked for the commit of the folder that this works in."""
    ours = program == sys.executable and any(_OUR_CHILD in one for one in command)
    return ours or (command[:4] == _GIT and command[-3:] == ["rev-parse", "--verify", "HEAD"])


def _find_real(path: Any, folder: Any, *, follow: bool) -> str | None:
    """Return what a path leads to, or None for what is no path: a file that is open already."""
    if isinstance(path, int):
        return None
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not text.startswith("/"):
        text = f"{Path(f'/proc/self/fd/{folder}').readlink()}/{text}"
    if "\0" in text:
        return None
    if follow:
        return os.path.realpath(text)
    return f"{os.path.realpath(Path(text).parent)}/{Path(text).name}"


def _is_within(real: str, folders: Sequence[str]) -> bool:
    return any(real == folder or real.startswith(folder + "/") for folder in folders)


def forget_peak() -> None:
    """Let the peak of this process's memory begin with what it uses now.

    What malloc holds though nothing uses it is given back first: whoever took that would not be seen to take anything.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> int:
    """Return the most memory that this process had at once, in bytes."""
    return _read_status("VmHWM")


def read_memory() -> int:
    """Return the memory that this process has now, in bytes."""
    return _read_status("VmRSS")


def _read_status(key: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(key)).split()[1]) * 1024
