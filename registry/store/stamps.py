"""What this machine remembers of files it has hashed: while a file's stamp has not changed, its digest stands.

A stamp is size, modification and change time to the nanosecond, inode and device; one small file for each file that was
hashed, in a folder of the user's. Whatever is wrong with a stamp leads to hashing, never to trust: it stands only if
all of it is equal to what the file has now, so a store that was copied to another machine is hashed there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Literal, get_args

from registry.permissions import create_file, file_mode, make_folder
from registry.weights import Advance, digest_file

Verify = Literal["always", "changed", "never"]
"""When a file is hashed before it is used: each time, when its stamp has changed, or not at all."""
VERIFY: tuple[str, ...] = get_args(Verify)
# File systems keep times in steps, of 4 ms (ext4) to 2 s (FAT). What is written again within the step in which it was
# hashed may keep its time, so files that are younger are hashed, and hashed again next time.
SETTLED_NS = 2_000_000_000


class Stamps:
    """The stamps in `folder`; None remembers nothing, so every file is hashed each time."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def agrees(self, path: Path, digest: str, verify: Verify = "always", advance: Advance | None = None) -> bool:
        """Say whether the file has this SHA-256, reading it if `verify` asks for that; `never` says yes unread."""
        if verify == "never" or (verify == "changed" and self._stands(path, digest)):
            return True
        before = path.stat()
        if digest_file(path, advance) != digest:
            return False
        self.record(path, digest, before)
        return True

    def record(self, path: Path, digest: str, before: os.stat_result) -> None:
        """Remember that the file had this digest when its status was `before`.

        Nothing is remembered of a file that is too young to tell a later write from the one before, or that was
        written to meanwhile. Where nothing can be written, nothing is remembered.
        """
        stamp = _describe(path, digest, before)
        settled = before.st_mtime_ns < time.time_ns() - SETTLED_NS
        if self._folder is None or not settled or stamp != _describe(path, digest, path.stat()):
            return
        target = self._place(path)
        beside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            make_folder(target.parent)
            try:
                with create_file(beside, file_mode(target.parent)) as file:
                    file.write(json.dumps(stamp).encode())
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)

    def _stands(self, path: Path, digest: str) -> bool:
        if self._folder is None:
            return False
        try:
            found = json.loads(self._place(path).read_bytes())
        except (OSError, ValueError, RecursionError):  # there is none, or it is no stamp
            return False
        return bool(found == _describe(path, digest, path.stat()))

    def _place(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        return Path(self._folder or "") / name[:2] / name


def _describe(path: Path, digest: str, status: os.stat_result) -> dict[str, str | int]:
    return {
        "path": os.fsencode(path.absolute()).hex(),
        "sha256": digest,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }
