"""Exports that were altered, cut, forged or made to harm: refused with a typed error, and nothing is visible."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import Registry, RegistryError
from registry.audit import digest_event
from registry.errors import InvalidInput, MalformedExport, SourceNotFound, StorageError, TransferConflict
from registry.transfer.folder import MANIFEST
from registry.transfer.form import encode
from tests.faults.invariant import find_breaches
from tests.transfers import add, fill, open_registry

Record = dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export as a folder, as a tar, and the store's blobs."""
    home = tmp_path_factory.mktemp("exports")
    laptop = open_registry(home / "laptop")
    fill(laptop)
    laptop.export_versions("merge", target=home / "folder")
    laptop.export_versions("merge", target=home / "merge.tar")
    laptop.close()
    return home


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Registry]:
    one = open_registry(tmp_path / "team")
    one.models()
    yield one
    one.close()


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported / "folder", tmp_path / "folder"))


def _refuse(
    team: Registry, source: Path, match: str | None = None, kind: type[RegistryError] = MalformedExport
) -> None:
    with pytest.raises(kind, match=match) as refused:
        team.import_versions(source)
    assert refused.value.message.isprintable()
    assert list(team.models()) == [] and list(team.events()) == []


def test_a_folder_and_a_tar_arrive_alike(exported: Path, team: Registry, tmp_path: Path) -> None:
    done = team.import_versions(exported / "folder")
    assert len(done.received) == 5 and find_breaches(team) == []
    assert team.import_versions(exported / "merge.tar").unchanged
    third = open_registry(tmp_path / "third")
    assert third.import_versions(exported / "merge.tar", aliases=True).digest == done.digest
    assert third.version("merge@best").ref == "merge@v1" and find_breaches(third) == []
    third.close()


def test_equal_exports_are_equal_bytes(exported: Path, tmp_path: Path) -> None:
    laptop = open_registry(exported / "laptop")
    manifest = laptop.export_versions("merge", target=tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (exported / "merge.tar").read_bytes()
    with tarfile.open(tmp_path / "again.tar") as tar:  # any tar reads it
        names = tar.getnames()
    assert names[0] == MANIFEST and len(names) == 1 + 5 + 6
    assert manifest.digest == hashlib.sha256((exported / "folder" / MANIFEST).read_bytes()).hexdigest()
    with pytest.raises(TransferConflict, match="is there already"):
        laptop.export_versions("merge", target=tmp_path / "again.tar")
    laptop.close()


def test_an_export_goes_on_and_overwrites_nothing(exported: Path, folder: Path, team: Registry) -> None:
    laptop = open_registry(exported / "laptop")
    blobs = sorted((folder / "blobs").rglob("*"))
    lost = next(path for path in blobs if path.is_file())
    lost.unlink()
    (folder / MANIFEST).unlink()
    _refuse(team, folder, "is no export, or one that was not finished", SourceNotFound)
    laptop.export_versions("merge", target=folder)
    assert lost.is_file() and len(team.import_versions(folder).received) == 5
    with pytest.raises(TransferConflict, match="another export"):
        laptop.export_versions("base", target=folder)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(TransferConflict, match=r"other files, such as mine\.txt"):
        laptop.export_versions("merge", target=folder)
    laptop.close()


def test_places_that_cannot_be_written_or_read(exported: Path, team: Registry, tmp_path: Path) -> None:
    laptop = open_registry(exported / "laptop")
    (tmp_path / "file").write_text("x")
    for target in (
        tmp_path / "file" / "export",
        tmp_path / "file" / "x.tar",
        tmp_path / "no" / "x.tar",
        "/dev/full/x.tar",
    ):
        with pytest.raises(StorageError, match="cannot be used"):
            laptop.export_versions("merge", target=target)
    with pytest.raises(SourceNotFound):
        team.import_versions(tmp_path / "nothing.tar")
    _refuse(team, tmp_path / "file")
    laptop.close()


def test_another_digest_than_expected(exported: Path, team: Registry) -> None:
    with pytest.raises(InvalidInput, match="not the one that was expected"):
        team.import_versions(exported / "folder", expect="sha256:" + "0" * 64)


def test_every_file_with_one_byte_changed(exported: Path, folder: Path, team: Registry) -> None:
    chance, tried = random.Random(0), 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        for _ in range(4):
            altered = bytearray(content)
            altered[chance.randrange(len(altered))] ^= 1 << chance.randrange(8)
            path.chmod(0o644)
            path.write_bytes(altered)
            _refuse(team, folder)
            tried += 1
        path.write_bytes(content)
    assert tried == 48
    assert len(team.import_versions(folder).received) == 5, "and unaltered it is received"


def test_a_tar_with_one_byte_changed(exported: Path, team: Registry, tmp_path: Path) -> None:
    content, chance = (exported / "merge.tar").read_bytes(), random.Random(1)
    for _ in range(60):
        altered = bytearray(content)
        altered[chance.randrange(len(altered))] ^= 1 << chance.randrange(8)
        (tmp_path / "x.tar").write_bytes(altered)
        _refuse(team, tmp_path / "x.tar")
        shutil.rmtree(team.store.root / "blobs", ignore_errors=True)  # what was whole is not read a second time


def test_a_tar_that_was_cut_or_that_goes_on(exported: Path, team: Registry, tmp_path: Path) -> None:
    content, chance = (exported / "merge.tar").read_bytes(), random.Random(2)
    for size in [0, 1, 511, 512, len(content) - 1, *(chance.randrange(len(content)) for _ in range(20))]:
        (tmp_path / "x.tar").write_bytes(content[:size])
        _refuse(team, tmp_path / "x.tar")
        shutil.rmtree(team.store.root / "blobs", ignore_errors=True)
    (tmp_path / "x.tar").write_bytes(content + b"PK\x05\x06")
    _refuse(team, tmp_path / "x.tar", "follows the end")


def _make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _members(**changes: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(changes.pop("name", "x"))
    for name, value in changes.items():
        setattr(member, name, value)
    return member


HOSTILE_MEMBERS: dict[str, dict[str, Any]] = {
    "absolute": {"name": "/etc/cron.d/x"},
    "upwards": {"name": "../../x"},
    "symlink": {"name": "blobs", "type": tarfile.SYMTYPE, "linkname": "/etc"},
    "hard link": {"name": "x", "type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
    "device": {"name": "x", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "fifo": {"name": "x", "type": tarfile.FIFOTYPE},
    "folder": {"name": "blobs", "type": tarfile.DIRTYPE},
    "long name": {"name": "x" * 3000},
    "manifest as a link": {"name": MANIFEST, "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "manifest with another owner": {"name": MANIFEST, "uid": 7},
}


@pytest.mark.parametrize("name", HOSTILE_MEMBERS)
@pytest.mark.parametrize("place", ["first", "behind the manifest", "at the end"])
def test_tars_with_other_members(name: str, place: str, exported: Path, team: Registry, tmp_path: Path) -> None:
    outside = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with tarfile.open(exported / "merge.tar") as tar:
        ours = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    hostile = (_members(**HOSTILE_MEMBERS[name]), b"")
    at = {"first": 0, "behind the manifest": 1, "at the end": len(ours)}[place]
    members = [*ours[:at], hostile, *ours[at:]]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        _refuse(team, _make_tar(tmp_path / "x.tar", *members, format=format))
    (tmp_path / "x.tar").unlink()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.keys() == outside.keys()


def test_sizes_that_are_claimed(team: Registry, tmp_path: Path) -> None:
    """A header that announces terabytes is refused before anything of it is read."""
    for size in (2**40, 2**33, 2**62):
        member = tarfile.TarInfo(MANIFEST)
        member.size, member.mode = size, 0o444
        (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"{}" * 1000)
        _refuse(team, tmp_path / "x.tar", "no tar that lensreg export wrote")


def test_links_and_devices_in_a_folder(folder: Path, team: Registry, tmp_path: Path) -> None:
    for path in [
        folder / MANIFEST,
        *sorted((folder / "records").iterdir())[:1],
        *sorted(folder.rglob("blobs/??/*"))[:1],
    ]:
        kept = path.rename(tmp_path / "kept")
        path.symlink_to(kept)
        _refuse(team, folder)
        path.unlink()
        os.mkfifo(path)
        _refuse(team, folder)
        path.unlink()
        path.mkdir()
        _refuse(team, folder)
        path.rmdir()
        kept.rename(path)
    records = (folder / "records").rename(tmp_path / "records")
    (folder / "records").symlink_to(records)
    _refuse(team, folder)


def _forge(folder: Path, change: Callable[[Record, Record], Any], *, ref: str = "run@v2") -> None:
    """Change a record or the manifest, and make all digests of records right again, as whoever forges would."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    entry = next(one for one in manifest["records"] if one["ref"] == ref)
    path = folder / "records" / f"{entry['digest']}.json"
    record = json.loads(path.read_bytes())
    path.unlink()
    change(record, manifest)
    text = encode(record)
    entry |= {"digest": hashlib.sha256(text).hexdigest(), "size_bytes": len(text)}
    (folder / "records" / f"{entry['digest']}.json").write_bytes(text)
    (folder / MANIFEST).write_bytes(encode(manifest))


def _forge_event(record: Record, **details: Any) -> None:
    """Change what the first event says, too, with its digest made right."""
    event = record["events"][0]
    event["details"] |= details
    event["digest"] = digest_event(event)


def _set(**changes: Any) -> Callable[[Record, Record], None]:
    return lambda record, manifest: record.update(changes)


def _set_file(place: int = 0, **changes: Any) -> Callable[[Record, Record], None]:
    def change(record: Record, manifest: Record) -> None:
        record["files"][place] |= changes
        _forge_event(record, files={one["name"]: one["digest"] for one in record["files"]})

    return change


def _swap_weights(record: Record, manifest: Record) -> None:
    record["weights_digest"] = "1" * 64
    _forge_event(record, weights_digest="1" * 64)


def _other_architecture(record: Record, manifest: Record) -> None:
    from registry.architecture import Architecture

    record["architecture"]["eps"] = 0.5
    record["fingerprint"] = Architecture(record["architecture"]).fingerprint
    _forge_event(record, fingerprint=record["fingerprint"])


def _other_parent(record: Record, manifest: Record) -> None:
    other = next(one for one in manifest["records"] if one["ref"] == "other@v1")
    record["parents"][0] |= {"operation_id": other["operation_id"]}


def _own_parent(record: Record, manifest: Record) -> None:
    record["parents"].append({**record["parents"][0], "operation_id": record["operation_id"], "ref": "run@v2"})


def _turn_around(record: Record, manifest: Record) -> None:
    manifest["records"].reverse()


def _nest(record: Record, manifest: Record) -> None:
    nested: Any = 1
    for _ in range(300):
        nested = [nested]
    record["provenance"] = {"x": nested}


FORGED: dict[str, Callable[[Record, Record], Any]] = {
    "an unknown field": _set(extra=1),
    "a field of escapes": _set(**{"\x1b[2J": 1}),
    "a missing field": lambda record, manifest: record.pop("note"),
    "a name with a path": _set(model="../../etc/x"),
    "a name that is a digest": _set(model="a" * 64),
    "another number": _set(number=7),
    "a number that is true": _set(number=True),
    "a huge number": _set(n_parameters=2**70),
    "NUL in a note": _set(note="a\x00b"),
    "half a surrogate": _set(note="\ud800"),
    "text for a number": _set(step="20"),
    "another step": _set(step=21),
    "no weights digest": _set(weights_digest=None),
    "another weights digest": _set(weights_digest="1" * 64),
    "another weights digest, in its event, too": _swap_weights,
    "an architecture of another fingerprint": lambda record, manifest: record["architecture"].update(eps=0.5),
    "another architecture, in its event, too": _other_architecture,
    "another family": _set(family="llama"),
    "another layout": _set(layout="hooked"),
    "processing in the wrong layout": _set(processing=["fold_ln"]),
    "other n_parameters": _set(n_parameters=5),
    "another dtype": _set(dtype="float64"),
    "a file with a path": _set_file(name="../config.json"),
    "a file with a backslash": _set_file(name="a\\b.safetensors"),
    "code beside the weights": _set_file(1, name="modeling.py", role="tokenizer"),
    "a pickle as weights": _set_file(1, name="pytorch_model.bin"),
    "a file in an unknown role": _set_file(role="code"),
    "a file of another size": _set_file(1, size_bytes=3),
    "no digest but a path": _set_file(1, digest="../../../etc/passwd" + "0" * 45),
    "a blob that is not listed": _set_file(1, digest="2" * 64),
    "two files of one name": lambda record, manifest: record["files"].append(record["files"][0]),
    "no parents": _set(parents=[]),
    "another parent": _other_parent,
    "itself as a parent": _own_parent,
    "children before parents": _turn_around,
    "an unknown relation": lambda record, manifest: record["parents"][0].update(relation="stolen"),
    "no events": _set(events=[]),
    "an event that was altered": lambda record, manifest: record["events"][0].update(actor="somebody else"),
    "an event of the future": lambda record, manifest: manifest["registry"].update(n_events=1),
    "an event about something else": lambda record, manifest: record["events"][0].update(subject="run@v1"),
    "parity that passed and did not": lambda record, manifest: record["validations"][0].update(value=3.0),
    "parity without a figure": lambda record, manifest: record["validations"][0].update(value=None),
    "NaN as text": lambda record, manifest: record["validations"][0].update(bound="NaN"),
    "a date without a zone": _set(created_at="2026-01-01T00:00:00"),
    "a tag with a strange key": _set(tags={"a b": "c"}),
    "an alias that is a number": _set(aliases=["v7"]),
    "a sketch of too few samples": lambda record, manifest: record["sketch"].update(samples="AAAA"),
    "a sketch of a gigantic matrix": lambda record, manifest: record["sketch"].update(shapes=[["a", [2**40, 2**40]]]),
    "deep nesting": _nest,
    "another operation": _set(operation_id="f" * 32),
    "an operation that is a path": _set(operation_id="../x"),
    "another format": lambda record, manifest: manifest.update(format="other"),
    "a newer format": lambda record, manifest: manifest.update(format_version=2),
    "what was named is missing": lambda record, manifest: manifest.update(named=["gone@v1"]),
    "blobs that nobody needs": lambda record, manifest: manifest["blobs"].append({"digest": "f" * 64, "size_bytes": 1}),
    "a size that is negative": lambda record, manifest: manifest["blobs"][0].update(size_bytes=-1),
    "a record that is listed twice": lambda record, manifest: manifest["records"].append(manifest["records"][0]),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_forged_contradicts_itself_or_its_files(name: str, folder: Path, team: Registry) -> None:
    _forge(folder, FORGED[name])
    _refuse(team, folder)


def test_a_forged_version_does_not_stand_for_one_that_is_here(exported: Path, folder: Path, team: Registry) -> None:
    """An operation that is known here, with other content: not the same, whatever it says."""
    team.import_versions(exported / "folder")
    head = team.events_head()

    def forge(record: Record, manifest: Record) -> None:
        record["step"] = 99
        _forge_event(record, step=99)

    _forge(folder, forge)
    with pytest.raises(TransferConflict, match="run@v2 is run@v2 here, with other content"):
        team.import_versions(folder)
    assert team.events_head() == head


def test_text_that_is_not_canonical(folder: Path, team: Registry) -> None:
    """A second text with the same meaning, such as one with a key twice, is not what the digest stands for."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for text in (
        json.dumps(manifest),
        '{"format":"x",' + encode(manifest).decode()[1:],
        encode(manifest).decode() + "\n",
    ):
        (folder / MANIFEST).write_text(text)
        _refuse(team, folder, "canonical|not JSON")
    for text in ("", "[" * 10**6, "1" * 10**4, "NaN", '"\\ud800"', "\xff"):
        (folder / MANIFEST).write_bytes(text.encode("latin-1"))
        _refuse(team, folder)


def test_two_that_receive_at_once(exported: Path, team: Registry, tmp_path: Path) -> None:
    """Rows are decided about inside the transaction: whoever is second finds everything there."""
    pids = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                open_registry(tmp_path / "team").import_versions(exported / "folder")
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert len(team.history("run")) == 2 and find_breaches(team) == []


def test_names_here_are_not_taken_by_an_import(exported: Path, team: Registry) -> None:
    add(team, "merge", seed=1234)
    before = team.version("merge@v1")
    done = team.import_versions(exported / "folder")
    assert team.version("merge@v1") == before
    assert done.moves[-1].ref == "merge@v2"
