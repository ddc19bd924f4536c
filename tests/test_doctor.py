"""The doctor finds what is wrong, says what to do, changes nothing, and works when nothing can be opened."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version
from sqlalchemy import text

from cli.main import main
from registry import Registry, file_systems
from registry.database import Database
from registry.doctor import Finding, databases, packages, places
from registry.doctor.packages import TESTED, examine_packages, examine_sqlite_library
from tests.processes import ROOT, needs_mounts, run_code
from tests.records import record


def _find(findings: list[Finding], check: str) -> Finding:
    (found,) = [one for one in findings if one.check == check]
    return found


def _states(findings: list[Finding]) -> Mapping[str, str]:
    """Return what is not ok, leaving aside how old this machine's SQLite is."""
    return {one.check: one.state for one in findings if one.state != "ok" and one.check != "SQLite"}


def _list(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def test_a_registry_in_order_has_no_fault(any_registry: Registry) -> None:
    record(any_registry, "m")
    with any_registry.store.stage():
        pass
    findings = any_registry.doctor()
    assert "fault" not in _states(findings).values()
    assert all(one.found for one in findings)
    assert all(one.to_do for one in findings if one.state in ("warning", "fault"))
    assert f"sha256:{any_registry.events_head().digest}" in _find(findings, "audit trail").found
    ours = "SQLite file" if any_registry.database.is_sqlite else "collation"
    assert _find(findings, ours).state == "ok"


def test_it_says_which_registry_it_is_and_what_was_meant_to_say_so(
    any_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENSREG_STOR", "/elsewhere")
    monkeypatch.setenv("LENSREG_REGISTRY", "/elsewhere")
    monkeypatch.setenv("LENSREG_URL", str(any_registry.database))
    findings = any_registry.doctor()
    ours = any_registry.database.file or any_registry.database.url.database
    found = _find(findings, "registry").found
    assert f"{ours}" in found and str(any_registry.store.root) in found
    other, misspelled = [one for one in findings if one.check == "environment"]
    assert other.found.startswith("LENSREG_REGISTRY is set") and "lensreg doctor --help" in other.to_do
    assert misspelled.found.startswith("LENSREG_STOR is set") and misspelled.to_do == "Did you mean LENSREG_STORE?"


def test_nothing_is_changed_or_made(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    record(registry, "m")
    with registry.store.stage():
        pass
    registry.close()
    before = _list(tmp_path)
    registry.doctor()
    registry.close()
    assert _list(tmp_path) == before
    nowhere = Registry(str(tmp_path / "new" / "registry.db"), tmp_path / "new" / "store")
    assert _states(nowhere.doctor())["schema"] == "note"
    assert not (tmp_path / "new").exists()


# --- packages ---

AFFECTED = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 50, 6), (3, 51, 0), (3, 51, 2)]
CORRECTED = [(3, 6, 23), (3, 44, 6), (3, 44, 9), (3, 50, 7), (3, 51, 3), (3, 52, 0), (4, 0, 0)]


def test_the_releases_of_sqlite_that_may_lose_a_commit() -> None:
    assert [examine_sqlite_library(one).state for one in AFFECTED] == ["warning"] * len(AFFECTED)
    assert [examine_sqlite_library(one).state for one in CORRECTED] == ["ok"] * len(CORRECTED)
    assert sqlite3.sqlite_version in examine_sqlite_library().found


INSTALLED = {
    "torch 2.9.1": ("torch", "2.9.1", "fault"),
    "torch 2.10 for CPUs": ("torch", "2.10.0+cpu", "ok"),
    "torch 2.99": ("torch", "2.99.0", "note"),
    "no torch": ("torch", None, "fault"),
    "transformers 4": ("transformers", "4.57.0", "fault"),
    "transformer-lens 4": ("transformer-lens", "4.0.0", "warning"),
    "sqlalchemy 2.0": ("sqlalchemy", "2.0.40", "fault"),
    "no safetensors": ("safetensors", None, "fault"),
}


@pytest.mark.parametrize(("name", "release", "state"), INSTALLED.values(), ids=INSTALLED.keys())
def test_releases_are_held_against_what_is_required(
    name: str, release: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = metadata.version

    def read_version(package: str) -> str:
        if package != name:
            return truth(package)
        if release is None:
            raise metadata.PackageNotFoundError(package)
        return release

    monkeypatch.setattr(metadata, "version", read_version)
    found = _find(list(examine_packages()), name)
    assert found.state == state
    assert release is None or release in found.found
    assert state == "ok" or found.to_do


def test_what_is_installed_here_is_what_was_tested() -> None:
    """Whoever updates a package runs the tests with it, and says so in TESTED."""
    for name, tested in TESTED.items():
        assert Version(metadata.version(name)).release[:2] == Version(tested).release[:2], name
    assert [one for one in examine_packages() if one.state in ("warning", "fault")] == []


def test_a_transformer_lens_without_hooked_transformer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformer_lens").mkdir()
    (tmp_path / "transformer_lens" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "transformer_lens", raising=False)
    found = _find(list(examine_packages()), "HookedTransformer")
    assert found.state == "warning" and "load_bridge" in found.to_do


def test_neither_torch_nor_a_registry_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from cli.main import main\n"
        "try: main(['doctor', '-o', 'json'])\n"
        "finally: print(sorted({'torch', 'transformers', 'transformer_lens'} & sys.modules.keys()), file=sys.stderr)"
    )
    environment = os.environ | {"LENSREG_HOME": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert json.loads(done.stdout)["ok"] is True


# --- a registry that cannot be opened ---


def _break_schema(statement: str) -> Callable[[Registry], None]:
    def apply(registry: Registry) -> None:
        with registry.database.write() as connection:
            connection.execute(text(statement))

    return apply


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("UPDATE alembic_version SET version_num = 'r99'", "pip install --upgrade"),
        ("UPDATE alembic_version SET version_num = '0001'", "lensreg db upgrade"),
        ("DROP TABLE alembic_version", "restore a backup"),
    ],
)
def test_a_schema_that_is_not_ours_is_a_fault(
    any_registry: Registry, database_url: str, statement: str, hint: str
) -> None:
    record(any_registry, "m")
    _break_schema(statement)(any_registry)
    again = Registry(database_url, any_registry.store.root)
    found = _find(again.doctor(), "schema")
    assert found.state == "fault" and hint in found.to_do
    again.close()


def test_the_command_says_what_is_wrong_and_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    (tmp_path / "registry.db").write_bytes(b"no database, " * 1000)
    for url, check in ((str(tmp_path / "registry.db"), "schema"), ("mysql://host/db", "registry")):
        with subtests.test(url=url):
            with pytest.raises(SystemExit) as stopped:
                main(["--registry", url, "--store", str(tmp_path / "store"), "doctor", "-o", "json"])
            assert stopped.value.code == 3
            said = json.loads(capsys.readouterr().out)
            assert said["ok"] is False
            (fault,) = [row for row in said["rows"] if row["state"] == "fault"]
            assert fault["check"] == check and fault["to_do"]
            with pytest.raises(SystemExit) as stopped:
                main(["--registry", url, "doctor"])
            assert stopped.value.code == 3
            printed = capsys.readouterr()
            assert fault["found"] in printed.out and "1 fault" in printed.err


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    for _ in range(30):
        record(registry, "m", note="x" * 2000)
    registry.close()
    with (tmp_path / "registry.db").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(8 * 4096))
    again = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    assert "fault" in {one.state for one in again.doctor() if one.check.startswith("SQLite")}
    again.close()


def test_a_postgres_that_does_not_answer_is_one_fault(tmp_path: Path) -> None:
    registry = Registry("postgresql://ann:secret@127.0.0.1:9/registry", tmp_path)
    findings = registry.doctor()
    assert [one.check for one in findings if one.state == "fault"] == ["schema"]
    assert "secret" not in str(findings)


# --- places ---


def test_file_systems_over_a_network(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(registry, "m")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(file_systems, "MOUNTS", mounts)
    findings = registry.doctor()
    found = _find(findings, "database file system")
    assert found.state == "fault" and "LENSREG_SQLITE_ON_NETWORK" in found.to_do
    assert _find(findings, "store file system").state == "note"
    monkeypatch.setenv("LENSREG_SQLITE_ON_NETWORK", "1")
    again = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    assert _find(again.doctor(), "database file system").state == "warning"
    again.close()


@needs_mounts
def test_a_full_and_a_read_only_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    code = """
        import pathlib, subprocess
        from registry import Registry
        from tests.records import record
        registry = Registry(values["folder"] + "/registry.db", values["folder"] + "/store")
        record(registry, "m")
        registry.store.root.mkdir(exist_ok=True)
        registry.close()
        def tell(*checks):
            again = Registry(values["folder"] + "/registry.db", values["folder"] + "/store")
            print(json.dumps({one.check: one.state for one in again.doctor() if one.check in checks}))
            again.close()
        tell("store free space")
        pathlib.Path(values["folder"], "filler").write_bytes(bytes(14 * 2**20))
        tell("store free space", "database free space")
        subprocess.run(["mount", "-o", "remount,ro", values["folder"]], check=True)
        tell("database file system", "store permissions", "schema")
    """
    mounts = f"mount -t tmpfs -o size=20m none {folder}"
    assert [json.loads(line) for line in run_code(code, mounts=mounts, folder=folder)] == [
        {"store free space": "warning"},
        {"database free space": "fault", "store free space": "fault"},
        {"database file system": "note", "schema": "ok", "store permissions": "note"},
    ]


@pytest.mark.parametrize(
    ("mode", "state"), [(0o700, "ok"), (0o2770, "ok"), (0o777, "warning"), (0o775, "note"), (0o1777, "ok")]
)
def test_who_may_write_to_a_folder(mode: int, state: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(mode)
    found = list(places.examine_folder("store", tmp_path / "store", is_database=False))
    assert _find(found, "store permissions").state == state


def test_who_can_read_the_database(registry: Registry, tmp_path: Path) -> None:
    record(registry, "m")
    path = tmp_path / "registry.db"
    assert list(places.examine_database_file(path)) == []
    for mode, state in ((0o644, "note"), (0o666, "warning")):
        path.chmod(mode)
        assert [one.state for one in places.examine_database_file(path)] == [state]


@pytest.mark.parametrize("ability", places._ABILITIES)
def test_what_a_file_system_cannot_do_is_told(ability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setitem(places._ABILITIES, ability, refuse)
    states = {
        is_database: _find(list(places.examine_folder("x", tmp_path, is_database=is_database)), "x abilities").state
        for is_database in (True, False)
    }
    always = ability in ("fsync", "fsync of a folder", "rename over a file")
    assert states == {
        True: "fault" if always or ability == "flock" else "note",
        False: "fault" if always else "note",
    }
    assert list(tmp_path.iterdir()) == []


def test_old_leftovers_are_told_and_young_ones_are_not(registry: Registry) -> None:
    tmp = registry.store.root / "tmp"
    tmp.mkdir(parents=True)
    (tmp / "young").mkdir()
    assert _find(registry.doctor(), "leftovers").state == "ok"
    (tmp / "old").mkdir()
    os.utime(tmp / "old", (0, time.time() - 100_000))
    found = _find(registry.doctor(), "leftovers")
    assert found.state == "note" and found.found.startswith("1 ")


def test_room_is_held_against_the_largest_version(any_registry: Registry) -> None:
    record(any_registry, "m")
    assert databases.read_largest_version(any_registry.database) == 4300
    for needed, state in ((0, "ok"), (10**18, "warning")):
        assert [one.state for one in places.examine_room("store", any_registry.store.root, needed)] == [state]


# --- clocks, settings, rights ---


def test_a_clock_that_went_back_is_told(any_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    record(any_registry, "m")
    assert _find(any_registry.doctor(), "clock").state == "ok"
    with any_registry.database.write() as connection:
        connection.execute(text("UPDATE events SET at = '2999-01-01T00:00:00.000000+00:00'"))
    found = _find(any_registry.doctor(), "clock")
    assert found.state == "warning" and "behind the newest event" in found.found


def test_a_file_system_with_another_clock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(places.time, "time", lambda: now - 100)
    found = list(places.examine_folder("store", tmp_path, is_database=False))
    assert _find(found, "store clock").state == "warning"


def test_settings_of_sqlite_that_are_not_safe_are_a_fault(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    record(registry, "m")
    registry.close()
    monkeypatch.setattr("registry.engines._set_up_sqlite", lambda connection, record: None)
    again = Registry(str(registry.database.url.database), registry.store.root)
    found = {one.check: one.state for one in again.doctor()}
    assert found["SQLite foreign_keys"] == "fault"
    again.close()


def test_a_postgres_that_is_set_up_otherwise(fresh_postgres: str, tmp_path: Path) -> None:
    registry = Registry(fresh_postgres, tmp_path)
    record(registry, "m")
    name = registry.database.url.database
    with registry.database.write() as connection:
        for setting in ("synchronous_commit = off", "default_transaction_isolation = 'serializable'"):
            connection.execute(text(f"ALTER DATABASE {name} SET {setting}"))
        connection.execute(text('ALTER TABLE absent_parents ALTER COLUMN repo TYPE varchar(200) COLLATE "default"'))
    registry.close()
    again = Registry(fresh_postgres, tmp_path)
    findings = again.doctor()
    assert _find(findings, "Postgres synchronous_commit").state == "warning"
    assert _find(findings, "isolation").state == "fault"
    collation = _find(findings, "collation")
    assert collation.state == "fault" and "absent_parents.repo" in collation.found
    again.close()


def test_a_role_that_may_only_read_and_one_that_may_not_even_that(fresh_postgres: str, tmp_path: Path) -> None:
    owner = Registry(fresh_postgres, tmp_path)
    record(owner, "m")
    role = f"guest_{os.urandom(4).hex()}"
    with owner.database.write() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
    url = owner.database.url.set(username=role, password="guest").render_as_string(hide_password=False)
    guest = Registry(url, tmp_path)
    found = _find(guest.doctor(), "rights")
    assert found.state == "note" and "nothing can be registered" in found.found
    with owner.database.write() as connection:
        connection.execute(text(f"REVOKE SELECT ON blobs FROM {role}"))
    assert _find(guest.doctor(), "rights").state == "fault"
    guest.close()
    with owner.database.write() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    owner.close()


def test_a_database_object_by_itself_can_be_examined(database_url: str, tmp_path: Path) -> None:
    from registry.doctor.examine import examine_registry

    database = Database(database_url)
    assert "schema" in {one.check for one in examine_registry(database, tmp_path / "store")}
    database.close()
    assert packages.OURS == "lens-registry"
