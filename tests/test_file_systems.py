"""On which file system a registry is, and that SQLite is refused where it loses rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry import Registry, file_systems
from registry.errors import UnsafeFileSystem
from registry.file_systems import Mount, find_mount
from tests.processes import needs_mounts, run_code
from tests.records import record

NETWORK = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "virtiofs", "fuse", "fuse.sshfs", "fuse.gcsfuse"]
LOCAL = ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "fuse.fuse-overlayfs", "fuse.gocryptfs"]


def _mount(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """Write a table of mounts, as the kernel does, in which these lines come after that of the root."""
    table = folder / "mounts"
    table.write_text("\n".join(["/dev/vda / ext4 rw,relatime 0 0", *lines, ""]))
    monkeypatch.setattr(file_systems, "MOUNTS", table)


def _line(point: Path, kind: str, options: str = "rw") -> str:
    return f"server:/x {str(point).replace(' ', chr(92) + '040')} {kind} {options} 0 0"


def test_the_deepest_mount_counts_and_the_last_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = tmp_path / "the team"
    _mount(
        monkeypatch, tmp_path, _line(team / "in", "nfs4", "ro,hard"), _line(team, "ext3"), _line(team, "cifs"), "broken"
    )
    assert find_mount(team / "in" / "not" / "there") == Mount(str(team / "in"), "nfs4", True)
    assert find_mount(team / "inside") == Mount(str(team), "cifs")
    assert find_mount(tmp_path / "the") == Mount("/", "ext4")
    (tmp_path / "link").symlink_to(team / "in")
    assert find_mount(tmp_path / "link" / "x").kind == "nfs4"  # type: ignore[union-attr]


def test_where_nothing_tells_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "none")
    assert find_mount(tmp_path) is None
    registry = Registry(str(tmp_path / "registry.db"), tmp_path)
    assert record(registry, "m").number == 1
    registry.close()


@pytest.mark.parametrize("kind", NETWORK)
def test_sqlite_on_a_network_is_refused_before_anything_is_made(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    _mount(monkeypatch, tmp_path, _line(home, kind))
    registry = Registry(str(home / "registry.db"), tmp_path / "store")
    for use in (registry.models, registry.upgrade, registry.status):
        with pytest.raises(UnsafeFileSystem, match=f"{home}.* {kind}:") as refused:
            use()
        assert refused.value.kind == kind
        assert "LENSREG_SQLITE_ON_NETWORK" in str(refused.value.hint)
    assert not home.exists()
    registry.close()
    monkeypatch.setenv("LENSREG_SQLITE_ON_NETWORK", "1")
    at_own_risk = Registry(str(home / "registry.db"), tmp_path / "store")
    assert record(at_own_risk, "m").number == 1
    at_own_risk.close()


@pytest.mark.parametrize("kind", LOCAL)
def test_disks_of_this_machine_are_taken(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _mount(monkeypatch, tmp_path, _line(tmp_path, kind))
    mount = find_mount(tmp_path)
    assert mount is not None
    assert not mount.is_network


def test_the_store_may_be_on_a_network_and_so_may_postgres(
    fresh_postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mount(monkeypatch, tmp_path, _line(tmp_path / "nfs", "nfs4"))
    for url in (str(tmp_path / "registry.db"), fresh_postgres):
        registry = Registry(url, tmp_path / "nfs" / "store")
        assert record(registry, "m").number == 1
        registry.close()


REAL = """
    import pathlib
    from registry import Registry, RegistryError, file_systems
    from tests.records import record
    folder = pathlib.Path(values["folder"])
    assert file_systems.find_mount(folder / "new" / "registry.db") == file_systems.Mount(str(folder), "tmpfs")
    registry = Registry(str(folder / "here.db"), folder)
    record(registry, "m")
    registry.close()
    file_systems._NETWORK |= {"tmpfs"}
    for name in ("here.db", "there.db"):
        try:
            Registry(str(folder / name), folder).models()
        except RegistryError as error:
            print(error.code, (folder / name).exists())
"""
READ_ONLY = """
    import pathlib
    from registry import Registry, RegistryError, file_systems
    file_systems._NETWORK |= {"tmpfs"}
    print(Registry(values["url"], values["url"]).resolve("m").ref)
"""


@needs_mounts
def test_real_mounts_are_told_from_the_kernel_s_own_table(tmp_path: Path) -> None:
    folder = tmp_path / "a mount"
    folder.mkdir()
    printed = run_code(REAL, mounts=f"mount -t tmpfs none '{folder}'", folder=folder)
    assert printed == ["unsafe-file-system True", "unsafe-file-system False"]


@needs_mounts
def test_what_nobody_can_write_to_is_read_on_any_file_system(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry.db"), tmp_path)
    record(registry, "m")
    registry.close()
    folder = tmp_path / "mount"
    folder.mkdir()
    copy = f"cp {tmp_path / 'registry.db'} {folder}"
    mounts = f"mount -t tmpfs none {folder} && {copy} && mount -o remount,ro {folder}"
    assert run_code(READ_ONLY, mounts=mounts, url=folder / "registry.db") == ["m@v1"]
    shutil.rmtree(folder)
