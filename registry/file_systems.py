"""Which kind of file system a path is on, by the kernel's table of mounts, and which kinds SQLite cannot be trusted to.

SQLite relies on locks and, in WAL mode, on memory that all processes share. Over a network neither holds: two machines
write at once, and rows are lost without an error (https://www.sqlite.org/wal.html, "does not work over a network").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# the kernel's names, as in /proc/mounts. Those of virtual machines hand files through from the machine around them
_NETWORK = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
))  # fmt: skip
# FUSE may be anything; these work on a disk of this machine
_LOCAL_FUSE = ("fuse-overlayfs", "overlayfs", "ntfs-3g", "ntfs", "exfat", "gocryptfs", "encfs", "bindfs", "ext4")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, its kind in the kernel's words, and whether it can be written to."""

    point: str
    kind: str
    is_read_only: bool = False

    @property
    def is_network(self) -> bool:
        """Whether its files may be another machine's, so that locks and shared memory cannot be relied on."""
        kind, _, of_fuse = self.kind.partition(".")
        return kind in _NETWORK or (kind == "fuse" and of_fuse not in _LOCAL_FUSE)


def find_mount(path: Path) -> Mount | None:
    """Return what `path`, or the folder that it would be made in, is mounted from; None where nothing tells."""
    try:
        text = MOUNTS.read_text(errors="surrogateescape")
    except OSError:  # not Linux
        return None
    whole = path.resolve()
    holding = [one for one in _parse(text.splitlines()) if whole.is_relative_to(one.point)]
    # the deepest one; of several at one place the last hides the others
    return max(enumerate(holding), key=lambda one: (len(Path(one[1].point).parts), one[0]))[1] if holding else None


def _parse(lines: Iterable[str]) -> list[Mount]:
    fields = [line.split(" ") for line in lines]
    return [Mount(_unescape(one[1]), one[2], "ro" in one[3].split(",")) for one in fields if len(one) >= 4]


def _unescape(text: str) -> str:
    """Undo how the kernel writes spaces and the like: by three octal digits."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
