"""The folders of the database and the store: file system, what it can do, permissions, room, clock, leftovers."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from registry.database import Database
from registry.doctor.finding import Finding
from registry.file_systems import find_mount
from registry.permissions import is_shared
from registry.settings import find_unknown_variables
from registry.syncing import sync

BALLAST = ".ballast"  # beside the database: what gc throws off when a disk is full
_LITTLE_BYTES = 100 * 10**6
_LITTLE_FILES = 1000
_SKEW_SECONDS = 2.0
_OLD_SECONDS = 86_400


def examine_settings(database: Database, store: Path | str) -> Iterator[Finding]:
    """Say which registry this is, and what in the environment was meant to say so and does not."""
    yield Finding("registry", "ok", f"{database.file or database}, with its blobs in {store}")
    for name, meant in find_unknown_variables().items():
        to_do = f"Did you mean {meant[0]}?" if meant else "lensreg doctor --help names the variables for the registry."
        yield Finding("environment", "warning", f"{name} is set, and means nothing.", to_do)


def examine_folder(
    what: str, folder: Path, *, is_database: bool, at_own_risk: bool = False, read_only: bool = False
) -> Iterator[Finding]:
    """Check the folder that the database (`is_database`) or the store is in; with `read_only` nothing is tried."""
    yield _examine_mount(what, folder, is_database, at_own_risk)
    if folder.exists() and not folder.is_dir():
        yield Finding(f"{what} folder", "fault", f"{folder} is no folder.", "Say where the folder is.")
        return
    if not folder.is_dir():
        yield Finding(f"{what} folder", "note", f"{folder} is not there yet.", "It is made when something is written.")
        return
    yield from _examine_permissions(what, folder)
    if not read_only and os.access(folder, os.W_OK | os.X_OK):
        yield from _try_abilities(what, folder, is_database)


def _examine_mount(what: str, folder: Path, is_database: bool, at_own_risk: bool) -> Finding:
    check = f"{what} file system"
    mount = find_mount(folder)
    if mount is None:
        return Finding(check, "note", "This system does not tell of which kind it is.", "It must be a local disk.")
    found = f"{mount.kind} at {mount.point}" + (", read-only" if mount.is_read_only else "")
    if not mount.is_network:
        return Finding(check, "note" if mount.is_read_only else "ok", found)
    if not is_database:
        to_do = "That is fine for a store; loading is as fast as it is. What was changed elsewhere may show late."
        return Finding(check, "note", f"{found}, over a network", to_do)
    return Finding(
        check,
        "warning" if at_own_risk else "fault",
        f"{found}: SQLite loses rows over a network.",
        "Put the database on a disk of this machine, or use Postgres."
        + ("" if at_own_risk else " LENSREG_SQLITE_ON_NETWORK=1 lets it be, at your own risk."),
    )


def _examine_permissions(what: str, folder: Path) -> Iterator[Finding]:
    check = f"{what} permissions"
    mode = stat.S_IMODE(folder.stat().st_mode)
    found = f"{folder} has {mode:04o}"
    if not os.access(folder, os.R_OK | os.X_OK):
        yield Finding(check, "fault", f"{found} and cannot be read.", "Ask its owner, or whoever administers it.")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(check, "note", f"{found}; it can be read, and nothing can be registered.")
    elif mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield Finding(check, "warning", f"{found}: everybody may write to it.", f"chmod o-w {folder}")
    elif is_shared(folder):
        yield Finding(check, "ok", f"{found}: shared with its group")
    elif mode & stat.S_IWGRP and not mode & stat.S_ISVTX:
        to_do = f"To share what is made there with the group: chmod g+s {folder}. If not: chmod g-w {folder}"
        yield Finding(check, "note", f"{found}: the group may write to it, and cannot read what is made there.", to_do)
    else:
        yield Finding(check, "ok", f"{found}: what is made there is for you alone")


def examine_database_file(path: Path) -> Iterator[Finding]:
    """Check the permissions of the SQLite file and of what lies beside it."""
    for one in (path, *(Path(f"{path}{end}") for end in ("-wal", "-shm", ".lock", ".lock.next"))):
        if not one.exists():
            continue
        mode = stat.S_IMODE(one.stat().st_mode)
        if not os.access(one, os.R_OK):
            yield Finding("database permissions", "fault", f"{one} ({mode:04o}) cannot be read.", "Ask its owner.")
        elif not os.access(one, os.W_OK):
            yield Finding("database permissions", "note", f"{one} ({mode:04o}) can be read, not written.")
        elif mode & stat.S_IWOTH:
            yield Finding("database permissions", "warning", f"Everybody may write to {one}.", f"chmod o-w {one}")
        elif mode & 0o077 and not is_shared(one.parent):
            to_do = f"If that is not meant: chmod go-rwx {one}"
            yield Finding("database permissions", "note", f"{one} has {mode:04o}: others can read it.", to_do)


def _try_abilities(what: str, folder: Path, is_database: bool) -> Iterator[Finding]:
    """Try in a temporary folder there what writing relies on."""
    place = folder / "tmp" if (folder / "tmp").is_dir() and not is_database else folder
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    except OSError as error:
        yield Finding(f"{what} abilities", "fault", f"Nothing can be made in {place}: {error.strerror}.", "Make room.")
        return
    try:
        file = scratch / "file"
        file.write_bytes(b"x")
        yield from _compare_clocks(what, file)
        failed = [name for name, ability in _ABILITIES.items() if not _can(ability, file)]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    needed = {"fsync", "fsync of a folder", "rename over a file", *({"flock"} if is_database else ())}
    if broken := [name for name in failed if name in needed]:
        to_do = "Put it on another file system: what is written here may be lost or torn."
        yield Finding(f"{what} abilities", "fault", f"There is no {', '.join(broken)}.", to_do)
    elif failed:
        to_do = "Copies are made instead of links, and derived files are not kept without flock."
        yield Finding(f"{what} abilities", "note", f"There is no {', '.join(failed)}.", to_do)
    else:
        yield Finding(f"{what} abilities", "ok", ", ".join(_ABILITIES))


def _can(ability: Callable[[Path], None], file: Path) -> bool:
    try:
        ability(file)
    except (OSError, ImportError, NotImplementedError):
        return False
    return True


def _rename_over(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"y")
    other.replace(file)
    if file.read_bytes() != b"y":
        raise OSError("the old file is still there")


def _lock(file: Path) -> None:
    import fcntl

    with file.open("rb") as one, file.open("rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise OSError("a lock that two hold")


def _freeze(file: Path) -> None:
    file.chmod(0o400)
    if stat.S_IMODE(file.stat().st_mode) != 0o400:
        raise OSError("permissions are not kept")


_ABILITIES: dict[str, Callable[[Path], None]] = {
    "fsync": sync,
    "fsync of a folder": lambda file: sync(file.parent),
    "rename over a file": _rename_over,
    "flock": _lock,
    "hard links": lambda file: os.link(file, file.with_name("link")),
    "symbolic links": lambda file: file.with_name("symlink").symlink_to(file.name),
    "permissions": _freeze,
}


def _compare_clocks(what: str, file: Path) -> Iterator[Finding]:
    skew = file.stat().st_mtime - time.time()
    if abs(skew) > _SKEW_SECONDS:
        yield Finding(
            f"{what} clock",
            "warning",
            f"The file system's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's.",
            "Set the clocks (NTP). What was hashed may be hashed again, and leftovers seem older or younger.",
        )


def examine_room(what: str, folder: Path, needed_bytes: int, ballast: Path | None = None) -> Iterator[Finding]:
    """Check the free space against the largest version that was registered."""
    check = f"{what} free space"
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:,.1f} GB are free at {folder}"
    n_files = os.statvfs(folder).f_favail if hasattr(os, "statvfs") else _LITTLE_FILES
    has_files = n_files >= _LITTLE_FILES or os.statvfs(folder).f_files == 0  # zero where they are not counted
    to_do = "Make room: lensreg gc, lensreg cache prune."
    if what == "cache":
        to_do = (
            "Make room, have it keep less ($LENSREG_STORE_CACHE_BYTES), or keep it elsewhere ($LENSREG_STORE_CACHE)."
        )
    if free < _LITTLE_BYTES // 10:
        yield Finding(check, "fault", found, to_do)
    elif free < _LITTLE_BYTES or free < needed_bytes:
        about = f"; the largest version takes {needed_bytes / 1e9:,.1f} GB" if free < needed_bytes else ""
        yield Finding(check, "warning", f"{found}{about}.", to_do)
    elif not has_files:
        yield Finding(check, "warning", f"Only {n_files:,} more files can be made at {folder}.", to_do)
    else:
        yield Finding(check, "ok", found)
    if ballast is not None and not ballast.exists():
        to_do = "It is set aside when the schema is upgraded, or by lensreg gc."
        yield Finding("ballast", "note", "There is no ballast that gc could throw off on a full disk.", to_do)


def examine_leftovers(root: Path) -> Iterator[Finding]:
    """Look for what crashes left in the store's temporary folder."""
    folder = root / "tmp"
    old = []
    with contextlib.suppress(FileNotFoundError):
        for one in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
                if one.lstat().st_mtime < time.time() - _OLD_SECONDS:
                    old.append(one)
    if old:
        found = f"{len(old):,} of what is in {folder} is older than a day: work that was cut off."
        yield Finding("leftovers", "note", found, "lensreg gc removes it.")
    else:
        yield Finding("leftovers", "ok", "none")
