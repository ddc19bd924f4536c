"""`verify`: every fault that is made is found and named, with who needs the blob; nothing else, and it only reads."""

from __future__ import annotations

import gc
import json
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from cli.main import main
from registry import Registry, verify_records, verify_store
from registry.errors import InvalidInput, UnknownRef
from registry.record import record_version
from registry.verify_records import Fault
from registry.verify_store import Verification
from registry.versions import StoredFile
from tests.contents import read_contents
from tests.processes import run_code
from tests.records import digest_of, make_draft


def _content(name: object) -> bytes:
    return random.Random(repr(name)).randbytes(3000)


def _add(registry: Registry, model: str, *names: str, lazy: bool = False) -> None:
    """Register a version that needs a blob for each name, and the one that all of them share."""
    source = registry.store.root.parent / "sources"
    source.mkdir(exist_ok=True)
    stored, staged = [], []
    with registry.store.stage() as folder:
        for name in ("shared", *names):
            (source / name).write_bytes(_content(name))
            one = registry.store.copy_in(source / name, folder / name)
            role = "config" if name == "shared" else "weights"
            stored.append(StoredFile(name, role, one.digest, one.size_bytes))
            if not (lazy and role == "weights"):
                staged.append(one)
        registry.store.publish(staged)
    draft = replace(make_draft(model), files=stored)
    if lazy:
        draft = replace(draft, weights_digest=None, measurements=[])
    with registry.database.write() as connection:
        record_version(connection, draft)


@pytest.fixture
def kept(any_registry: Registry) -> Registry:
    """Three versions with five blobs between them, and one whose weights were left on the Hub."""
    _add(any_registry, "m", "a", "b")
    _add(any_registry, "m", "b", "c")
    _add(any_registry, "other", "d")
    _add(any_registry, "far", "e", lazy=True)
    return any_registry


def _blob(registry: Registry, name: str) -> Path:
    return next(
        registry.store.blob_path(file.digest)
        for version in registry.history("m")
        for file in registry.version(version.ref).files
        if file.name == name
    )


def _codes(done: Verification) -> list[str]:
    return sorted(fault.code for fault in done.faults)


def _overwrite(blob: Path, content: bytes) -> None:
    blob.chmod(0o644)
    blob.write_bytes(content)


def _flip(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[1234] ^= 0x04
    _overwrite(blob, bytes(content))


# --- nothing is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_data", [False, True])
def test_a_sound_registry_has_no_fault_and_is_left_as_it_is(kept: Registry, read_data: bool) -> None:
    before = read_contents(kept)
    done = kept.verify(read_data=read_data)
    assert done.ok, done.faults
    assert (done.n_versions, done.n_blobs, done.n_events) == (4, 5, 4)  # e was left on the Hub
    assert (done.n_read, done.read_bytes) == ((5, 15_000) if read_data else (0, 0))
    assert done.part is None
    assert read_contents(kept) == before


def test_an_empty_registry_has_no_fault(any_registry: Registry) -> None:
    assert any_registry.verify(read_data=True).ok


def test_aliases_retired_versions_and_fetched_ones_are_no_fault(kept: Registry) -> None:
    from registry.record import record_fetched

    kept.set_alias("m@best", "m@v1")
    kept.retire("m@v2")
    kept.restore("m@v2")
    kept.retire("other")
    with kept.database.write() as connection:
        record_fetched(connection, kept.resolve("far").id, digest_of("fetched"), [])
    done = kept.verify()
    assert _codes(done) == ["artifact-missing"]  # the event says that it was fetched; this test fetched nothing
    assert done.faults[0].versions == ("far@v1",)


# --- blobs -----------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "deleted": (lambda blob: blob.unlink(), "artifact-missing", False),
    "truncated": (lambda blob: _overwrite(blob, blob.read_bytes()[:-1]), "artifact-corrupt", False),
    "grown": (lambda blob: _overwrite(blob, blob.read_bytes() + b"\x00"), "artifact-corrupt", False),
    "emptied": (lambda blob: _overwrite(blob, b""), "artifact-corrupt", False),
    "flipped": (_flip, "artifact-corrupt", True),
    "zeroed": (lambda blob: _overwrite(blob, bytes(3000)), "artifact-corrupt", True),
    "linked": (lambda blob: (shutil.move(blob, blob.with_name("x")), blob.symlink_to("x")), "artifact-corrupt", False),
    "folder": (lambda blob: (blob.unlink(), blob.mkdir()), "artifact-missing", False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_blob_is_found_and_names_who_needs_it(kept: Registry, fault: str) -> None:
    damage, code, needs_reading = FAULTS[fault]
    blob = _blob(kept, "b")
    damage(blob)
    assert kept.verify().ok is needs_reading
    done = kept.verify(read_data=True)
    assert done.n_faults == len(done.faults) == 1
    found = done.faults[0]
    assert (found.code, found.subject) == (code, blob.name)
    assert (found.versions, found.n_versions) == (("m@v1", "m@v2"), 2)
    assert blob.name in found.message
    assert "Register the same source again" in found.hint
    assert kept.verify("m@v1", read_data=True).faults[0].versions == ("m@v1",)
    assert kept.verify("other", "far", read_data=True).ok


def test_several_faults_are_all_found(kept: Registry) -> None:
    for name, fault in (("a", "deleted"), ("b", "flipped"), ("c", "truncated")):
        FAULTS[fault][0](_blob(kept, name))
    FAULTS["flipped"][0](_blob(kept, "shared"))
    done = kept.verify(read_data=True)
    assert _codes(done) == ["artifact-corrupt"] * 3 + ["artifact-missing"]
    (of_all,) = (fault for fault in done.faults if fault.subject == _blob(kept, "shared").name)
    assert of_all.versions == ("m@v1", "m@v2", "other@v1", "far@v1")
    assert done.n_read == 3  # what is missing or torn need not be read


def test_a_store_that_is_gone_is_a_fault_of_every_blob(kept: Registry) -> None:
    shutil.rmtree(kept.store.root)
    assert _codes(kept.verify()) == ["artifact-missing"] * 5


UNREADABLE = """
    from registry import Registry
    registry = Registry(values["database"], values["store"])
    for read_data in (False, True):
        for fault in registry.verify(read_data=read_data).faults:
            print(read_data, fault.code, fault.subject, fault.versions, "Permission denied" in fault.message)
    registry.close()
"""


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_blob_that_may_not_be_read_is_a_fault(registry: Registry, of: str) -> None:
    _add(registry, "m", "a", "b")
    blob = _blob(registry, "a")
    closed = blob if of == "file" else blob.parent
    closed.chmod(0)
    try:
        printed = run_code(
            UNREADABLE, with_rights=False, database=registry.database.url.database, store=registry.store.root
        )
    finally:
        closed.chmod(0o755)
    line = f"store-unavailable {blob.name} ('m@v1',) True"
    assert printed == ([f"True {line}"] if of == "file" else [f"False {line}", f"True {line}"])


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7])
def test_the_parts_together_read_every_blob_once(kept: Registry, n_parts: int) -> None:
    _flip(_blob(kept, "b"))
    runs = [kept.verify(read_data=(n + 1, n_parts)) for n in range(n_parts)]
    assert sum(done.n_read for done in runs) == 5
    assert sum(done.read_bytes for done in runs) == 15_000
    assert sum(done.n_faults for done in runs) == 1
    assert all(done.n_blobs == 5 for done in runs)
    assert [done.part for done in runs] == [None if n_parts == 1 else (n + 1, n_parts) for n in range(n_parts)]


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0), (-1, 3), (1, 2**31)])
def test_a_part_that_there_is_not_is_refused(kept: Registry, part: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match=f"no part {part[0]} of {part[1]}"):
        kept.verify(read_data=part)


def test_a_ref_that_means_nothing_is_refused(kept: Registry) -> None:
    with pytest.raises(UnknownRef):
        kept.verify("m", "m@v9")


def test_bytes_are_counted_as_they_are_read(kept: Registry) -> None:
    seen: list[tuple[str, int, int]] = []
    kept.verify(read_data=True, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("reading", 15_000, 15_000)


# --- rows and events -------------------------------------------------------------------------------------------

ALTERED = {
    "weights_digest": f"UPDATE versions SET weights_digest = '{'0' * 64}' WHERE number = 2",
    "step": "UPDATE versions SET step = 7 WHERE number = 2",
    "files": "UPDATE version_files SET name = 'x' WHERE name = 'c'",
    "a file more": (
        "INSERT INTO version_files (version_id, name, role, digest) "
        "SELECT v.id, 'x', 'config', b.digest FROM versions v, blobs b WHERE v.number = 2 LIMIT 1"
    ),
    "a file less": "DELETE FROM version_files WHERE name = 'c'",
    "parents": (
        "INSERT INTO version_parents (version_id, parent_id, relation, admitted_differences) "
        "SELECT a.id, b.id, 'merged', '[]' "
        "FROM versions a, versions b WHERE a.number = 2 AND b.number = 1 AND b.model_id = a.model_id"
    ),
    "renamed": "UPDATE models SET name = 'n' WHERE name = 'm'",
    "renumbered": "UPDATE versions SET number = 5 WHERE number = 2",
}


@pytest.mark.parametrize("what", ALTERED)
def test_rows_that_do_not_say_what_their_event_says_are_a_fault(kept: Registry, what: str) -> None:
    with kept.database.write() as connection:
        connection.execute(text(ALTERED[what]))
    done = kept.verify()
    assert set(_codes(done)) == {"record-altered"}
    assert all("backup" in fault.hint for fault in done.faults)
    subjects = {fault.subject for fault in done.faults}
    if what == "renamed":
        assert subjects == {"m@v1", "m@v2", "n@v1", "n@v2"}
    elif what == "renumbered":
        assert subjects == {"m@v2", "m@v5"}
    else:
        assert subjects == {"m@v2"}


def test_a_version_that_was_deleted_is_missed(kept: Registry) -> None:
    with kept.database.write() as connection:
        id_ = connection.execute(text("SELECT id FROM versions WHERE number = 2")).scalar()
        for table in ("version_files", "validations"):
            connection.execute(text(f"DELETE FROM {table} WHERE version_id = {id_}"))
        connection.execute(text(f"DELETE FROM versions WHERE id = {id_}"))
    (fault,) = kept.verify().faults
    assert (fault.code, fault.subject) == ("record-altered", "m@v2")
    assert "gone" in fault.message
    assert kept.verify("m@v1").ok


@pytest.mark.parametrize("fields", ['{"d_model": 1}', "{", "[]", "null"])
def test_an_architecture_that_was_altered_is_a_fault(kept: Registry, fields: str) -> None:
    if fields == "{" and not kept.database.is_sqlite:
        return  # Postgres keeps nothing that is no JSON
    with kept.database.write() as connection:
        connection.execute(text("UPDATE architectures SET fields = :fields"), {"fields": fields})
    (fault,) = kept.verify().faults
    assert (fault.code, "altered" in fault.message) == ("record-altered", True)


@pytest.mark.parametrize("column", ["details", "actor"])
def test_a_chain_that_is_broken_is_a_fault_and_blobs_are_checked_all_the_same(kept: Registry, column: str) -> None:
    _blob(kept, "a").unlink()
    with kept.database.write() as connection:
        connection.execute(text(f"UPDATE events SET {column} = '\"x\"' WHERE sequence = 2"))
    done = kept.verify()
    assert _codes(done) == ["artifact-missing", "chain-broken"]
    (broken,) = (fault for fault in done.faults if fault.code == "chain-broken")
    assert "event 2 was altered" in broken.message


# --- many ------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """25 pages and 100 take about the same memory, and nothing is passed over at their edges."""
    for module in (verify_store, verify_records):
        monkeypatch.setattr(module, "_PAGE", 20)
        monkeypatch.setattr(module, "MAX_FAULTS", 30)
    peaks = []
    for n in (500, 1500):
        with registry.database.write() as connection:
            for number in range(n):
                files = [StoredFile("w", "weights", digest_of((n, number)), 10)]
                record_version(connection, replace(make_draft("m"), files=files))
        registry.verify()  # so that what SQLAlchemy keeps for later is there already
        gc.collect()
        tracemalloc.start()
        done = registry.verify()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (done.n_versions, done.n_blobs, done.n_faults, len(done.faults)) == (2000, 2000, 2000, 30)
    assert peaks[1] < peaks[0] + 500_000  # 2 kB for each would be 3 MB; the digests that are missing are 0.2


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(
    kept: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    url = kept.database.url.render_as_string(hide_password=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["verify", "--registry", url, "--store", str(kept.store.root), *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capsys.readouterr())

    return call


def test_the_command_says_what_was_looked_at(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run() == (0, "4 versions, 5 blobs, 4 events: nothing is wrong\n", "")
    code, out, _ = run("--read-data")
    assert (code, "5 of them read (15.0 kB)" in out) == (0, True)
    assert [run("--read-data", "m")[1], run("m", "--read-data")[1]] == [
        "1 version, 3 blobs, 3 of them read (9.0 kB), 4 events: nothing is wrong\n"
    ] * 2
    assert run("--read-data=1/2")[0] == 0
    assert run("--read-data=3/2")[0] == 1
    assert run("m@v7")[0] == 1


def test_a_fault_is_exit_code_3_in_every_format(kept: Registry, run: Callable[..., tuple[int, str, str]]) -> None:
    blob = _blob(kept, "b")
    _flip(blob)
    assert run()[0] == 0
    code, out, err = run("--read-data")
    assert (code, "artifact-corrupt" in out, "m@v1, m@v2" in out) == (3, True, True)
    assert f"sha256:{blob.name} was altered" in err
    assert "Register the same source again" in err
    code, out, err = run("--read-data", "-o", "json")
    answer = json.loads(out)
    assert (code, answer["ok"], answer["n_faults"], answer["part"]) == (3, False, 1, None)
    assert set(answer) == {
        "schema_version", "ok", "n_versions", "n_blobs", "n_events", "n_read", "read_bytes", "part", "n_faults",
        "faults",
    }  # fmt: skip
    assert set(answer["faults"][0]) == set(Fault.__dataclass_fields__)
    assert json.loads(run("--read-data=1/1", "-o", "json")[1]) == answer
    code, out, _ = run("--read-data", "-o", "csv")
    assert (code, out.splitlines()[0]) == (3, "code,subject,message,hint,versions,n_versions")
    assert run("--read-data", "-o", "ids")[:2] == (3, f"{blob.name}\n")


def test_what_a_source_heals_is_no_longer_a_fault(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """With a real checkpoint: every blob in turn is damaged, found, and healed as the hint says."""
    source = make_checkpoint("gpt2")
    registry.register("base", source, parity="skip")
    assert registry.verify(read_data=True).ok
    for number, file in enumerate(registry.version("base").files):
        damage, _, needs_reading = list(FAULTS.values())[number % 5]
        blob = registry.store.blob_path(file.digest)
        if needs_reading:
            content = blob.read_bytes()
            _overwrite(blob, content[:-1] + bytes([content[-1] ^ 1]))
        else:
            damage(blob)
        (fault,) = registry.verify(read_data=True).faults
        assert (fault.subject, fault.versions) == (file.digest, ("base@v1",))
        assert registry.register("base", source, parity="skip").outcome == "unchanged"
        assert registry.verify(read_data=True).ok
    assert not list((registry.store.root / "tmp").iterdir())
