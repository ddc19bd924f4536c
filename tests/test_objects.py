"""Stores in a bucket, on a real S3 server over HTTP, with a proxy in front that fails as networks and services do."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    SourceChanged,
    StoreUnavailable,
)
from registry.store import bucket, object_contents, uploads
from registry.store.contents import Claim
from registry.store.object_url import parse_object_url
from registry.store.objects import ObjectStore
from tests.kept import publish_bytes
from tests.object_server import CREDENTIALS, ObjectServer
from tests.processes import needs_mounts, run_at_once, run_code

_PART = bucket.PART_BYTES
_BIG = 2 * _PART + 12345


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _count_objects(server: ObjectServer) -> int:
    return len(server.keys())


@pytest.mark.parametrize("size", [0, 1, _PART, _PART + 1, _BIG])
def test_bytes_come_out_as_they_went_in_on_another_machine(objects: ObjectServer, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    digest = _digest(content)
    shown: list[tuple[str, int, int]] = []
    here, there = objects.open(tmp_path / "here"), objects.open(tmp_path / "there")
    with here.stage() as folder:
        (folder / "source").write_bytes(content)
        staged = here.copy_in(folder / "source", folder / "file")
        here.publish([staged], lambda *step: shown.append(step))
    assert shown[-1] == ("uploading", size, size)
    assert objects.keys() == [f"team/models/blobs/{digest[:2]}/{digest}"]
    assert objects.uploads() == []
    assert here.check(digest, size).read_bytes() == content

    done: list[int] = []
    path = there.check(digest, size, advance=done.append)
    assert path == there.blob_path(digest) and path.read_bytes() == content and sum(done) == size
    assert path.stat().st_mode & 0o777 == 0o444
    assert list((there.root / "tmp").iterdir()) == []
    n_requests = len(objects.proxy.lines)
    assert there.check(digest, size).read_bytes() == content
    assert len(objects.proxy.lines) == n_requests  # from the cache


def test_every_part_is_sent_with_its_digest_signed(objects: ObjectServer, tmp_path: Path) -> None:
    """S3 refuses a body that has another one; moto does not look."""
    for content in (os.urandom(1000), os.urandom(_BIG)):
        objects.proxy.signed_digests.clear()
        publish_bytes(objects.open(tmp_path / "cache"), content)
        parts = [content[start : start + _PART] for start in range(0, len(content), _PART)]
        assert sorted(objects.proxy.signed_digests) == sorted(map(_digest, parts))


def test_what_is_there_is_not_sent_again_unless_it_is_old_or_to_be_healed(
    objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = objects.open(tmp_path / "cache")
    staged = publish_bytes(store, b"weights")
    assert objects.proxy.count("^PUT .*/blobs/") == 1
    publish_bytes(objects.open(tmp_path / "other"), b"weights")
    assert objects.proxy.count("^PUT .*/blobs/") == 1
    publish_bytes(store, b"weights", replace=True)
    assert objects.proxy.count("^PUT .*/blobs/") == 2
    monkeypatch.setattr(object_contents, "FRESH", timedelta(0))
    publish_bytes(store, b"weights")
    assert objects.proxy.count("^PUT .*/blobs/") == 3
    before = objects.ask("GET", f"/team/models/blobs/{staged.digest[:2]}/{staged.digest}")
    store.renew([staged.digest])
    assert objects.ask("GET", f"/team/models/blobs/{staged.digest[:2]}/{staged.digest}") == before == b"weights"
    assert _count_objects(objects) == 1  # the copy beside is gone
    with pytest.raises(ArtifactMissing):
        store.renew([_digest(b"nothing")])


def test_a_dead_bucket_does_not_keep_from_reading_what_is_cached(objects: ObjectServer, tmp_path: Path) -> None:
    staged = publish_bytes(objects.open(tmp_path / "cache"), b"weights")
    objects.proxy.close()
    store = objects.open(tmp_path / "cache", timeout=1)
    assert store.check(staged.digest, 7).read_bytes() == b"weights"
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.verify(staged.digest, 7)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        publish_bytes(store, b"others")
    assert time.monotonic() - started < 2 * (3 * 1 + 1)


def test_what_is_missing_or_wrong_in_the_bucket_never_gets_into_the_cache(
    objects: ObjectServer, tmp_path: Path
) -> None:
    maker, store = objects.open(tmp_path / "maker"), objects.open(tmp_path / "cache")
    content = os.urandom(1000)
    digest = publish_bytes(maker, content).digest
    key = f"/team/models/blobs/{digest[:2]}/{digest}"
    for wrong in (content[:-1], content + b"x", b"", content[:-1] + bytes([content[-1] ^ 1])):
        objects.ask("PUT", key, wrong)
        with pytest.raises(ArtifactCorrupt) as caught:
            store.check(digest, 1000)
        assert caught.value.digest == digest and objects.url().partition("?")[0] in str(caught.value)
        with pytest.raises(ArtifactCorrupt):
            store.verify(digest, 1000, read=True)
        if len(wrong) == 1000:
            store.verify(digest, 1000)  # its size is right
    objects.ask("DELETE", key)
    with pytest.raises(ArtifactMissing) as missing:
        store.check(digest, 1000)
    assert missing.value.digest == digest
    with pytest.raises(ArtifactMissing):
        store.verify(digest, 1000)
    assert not store.blob_path(digest).exists() and list((store.root / "tmp").iterdir()) == []
    publish_bytes(maker, content)
    assert store.check(digest, 1000).read_bytes() == content


def test_registering_again_heals_what_is_wrong_in_the_bucket(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache")
    digest = publish_bytes(store, b"weights").digest
    objects.ask("PUT", f"/team/models/blobs/{digest[:2]}/{digest}", b"weighty")
    publish_bytes(store, b"weights", replace=True)
    store.verify(digest, 7, read=True)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "gone", "link"])
def test_a_cached_copy_that_is_not_whole_is_downloaded_again(objects: ObjectServer, tmp_path: Path, fault: str) -> None:
    store = objects.open(tmp_path / "cache")
    digest = publish_bytes(store, b"weights").digest
    path = store.blob_path(digest)
    path.unlink()
    if fault == "link":
        (tmp_path / "elsewhere").write_bytes(b"weights")
        path.symlink_to(tmp_path / "elsewhere")
    elif fault != "gone":
        path.write_bytes({"flipped": b"weighty", "truncated": b"weigh"}[fault])
    assert store.check(digest, 7).read_bytes() == b"weights"
    assert not path.is_symlink()


def test_a_link_that_is_written_to_while_it_is_sent_does_not_become_an_object(
    objects: ObjectServer, tmp_path: Path
) -> None:
    store = objects.open(tmp_path / "cache")
    for size in (100, _BIG):
        source = tmp_path / "source"
        source.write_bytes(os.urandom(size))
        with store.stage() as folder:
            staged = store.copy_in(source, folder / "file", link=True)
            source.write_bytes(os.urandom(size))
            with pytest.raises(SourceChanged):
                store.publish([staged])
        assert objects.keys() == [] and objects.uploads() == []
        assert not store.blob_path(staged.digest).exists()


# --- the cache's bound


def test_the_cache_keeps_to_its_bound_and_drops_what_was_unused_for_longest(
    objects: ObjectServer, tmp_path: Path
) -> None:
    maker = objects.open(tmp_path / "maker")
    blobs = [publish_bytes(maker, bytes([n]) * 1000).digest for n in range(6)]
    store = objects.open(tmp_path / "cache", max_bytes=3000, held=0)
    for digest in blobs[:3]:
        store.check(digest, 1000)
        time.sleep(0.02)
    opened = store.check(blobs[0], 1000).open("rb")  # used last, and open
    store.check(blobs[3], 1000)
    cached = {digest for digest in blobs if store.blob_path(digest).exists()}
    assert cached == {blobs[0], blobs[2], blobs[3]}
    for digest in blobs[4:] + blobs[2:3]:
        time.sleep(0.02)
        store.check(digest, 1000)
    assert sum(path.stat().st_size for path in store.root.glob("blobs/??/*")) == 3000
    assert not store.blob_path(blobs[0]).exists() and opened.read() == bytes(1000)
    opened.close()
    assert store.check(blobs[0], 1000).read_bytes() == bytes(1000)  # and it can be had again


def test_what_was_used_a_moment_ago_stays_though_the_bound_be_exceeded(objects: ObjectServer, tmp_path: Path) -> None:
    maker = objects.open(tmp_path / "maker")
    blobs = [(publish_bytes(maker, bytes([n]) * 1000).digest, 1000) for n in range(5)]
    store = objects.open(tmp_path / "cache", max_bytes=1500)
    shown: list[tuple[str, int, int]] = []
    store.bring(blobs, lambda *step: shown.append(step))
    assert shown[0] == ("downloading", 0, 5000) and shown[-1] == ("downloading", 5000, 5000)
    folder = store.link_folder((f"file-{n}", digest) for n, (digest, _) in enumerate(blobs))
    assert [(folder / f"file-{n}").read_bytes() for n in range(5)] == [bytes([n]) * 1000 for n in range(5)]


FULL = """
    import pathlib
    from registry import Registry
    from registry.errors import StorageFull
    registry = Registry(values["folder"] + "/registry.db", values["url"])
    store, folder = registry.store, pathlib.Path(values["folder"])
    def tell(work):
        try:
            work()
        except StorageFull as error:
            print(json.dumps([error.message, error.hint]))
        for left in (store.root / "tmp").iterdir():
            print("left:", left)
        print(json.dumps(sorted(path.name for path in store.root.glob("blobs/??/*"))))
    def put():
        with store.stage() as staging:
            store.publish([store.copy_in(folder / "source", staging / "file")])
    tell(lambda: store.check(values["small"], 1000))
    tell(lambda: store.check(values["big"], values["n_bytes"]))
    tell(put)
    print(store.check(values["small"], 1000).read_bytes() == b"s" * 1000)
"""


@needs_mounts
def test_a_full_disk_under_the_cache_is_said_to_be_that(objects: ObjectServer, tmp_path: Path) -> None:
    maker = objects.open(tmp_path / "maker")
    small, big = publish_bytes(maker, b"s" * 1000).digest, publish_bytes(maker, os.urandom(_BIG)).digest
    (tmp_path / "source").write_bytes(os.urandom(_PART))
    cache = Path(os.environ["LENSREG_STORE_CACHE"])
    cache.mkdir(exist_ok=True)
    mounts = f"mount -t tmpfs -o size=4m none {cache}"
    keys = objects.keys()
    lines = run_code(FULL, mounts=mounts, folder=tmp_path, url=objects.url(), small=small, big=big, n_bytes=_BIG)
    assert [json.loads(lines[0]), json.loads(lines[2]), json.loads(lines[4])] == [[small]] * 3, lines
    assert lines[5] == "True" and objects.keys() == keys
    for line in (lines[1], lines[3]):
        message, hint = json.loads(line)
        assert f"no space left at {cache}" in message and f"the cache of s3://{objects.bucket}/team" in message
        assert "at most 0.0 GB" in message and "$LENSREG_STORE_CACHE=" in hint and "$LENSREG_STORE_CACHE_BYTES" in hint
        assert "--store" not in hint and "lensreg gc" not in hint


@needs_mounts
def test_a_cache_that_cannot_be_written_to_is_said_to_be_that(objects: ObjectServer, tmp_path: Path) -> None:
    digest = publish_bytes(objects.open(tmp_path / "maker"), b"weights").digest
    cache = Path(os.environ["LENSREG_STORE_CACHE"])
    cache.mkdir(exist_ok=True)
    code = """
        from registry import Registry
        from registry.errors import StoreUnavailable
        try:
            Registry(values["folder"] + "/registry.db", values["url"]).store.check(values["digest"], 7)
        except StoreUnavailable as error:
            print(json.dumps([error.message, error.hint]))
    """
    mounts = f"mount -t tmpfs -o ro none {cache}"
    (line,) = run_code(code, mounts=mounts, folder=tmp_path, url=objects.url(), digest=digest)
    message, hint = json.loads(line)
    assert "The cache of s3://" in message and "Read-only file system" in message and "$LENSREG_STORE_CACHE" in hint


# --- many at once


def _publish_same(index: int, url: str, folder: str, content: bytes) -> str:
    os.environ.update(CREDENTIALS)  # the server that processes are forked from may be older than the test
    store = ObjectStore(bucket.Bucket(parse_object_url(url)), Path(folder) / str(index % 4))
    return publish_bytes(store, content).digest


def test_sixteen_processes_that_publish_the_same_make_one_object(objects: ObjectServer, tmp_path: Path) -> None:
    for n, size in ((16, 100_000), (4, _PART + 100)):  # the bigger one in parts
        content = os.urandom(size)
        found = run_at_once(_publish_same, objects.url(timeout=60), str(tmp_path), content, n=n)
        assert set(found) == {_digest(content)}
        objects.open(tmp_path / "other").verify(_digest(content), size, read=True)
    assert _count_objects(objects) == 2 and objects.uploads() == []


def _check_same(index: int, url: str, folder: str, digest: str, size: int) -> bytes:
    os.environ.update(CREDENTIALS)  # the server that processes are forked from may be older than the test
    return ObjectStore(bucket.Bucket(parse_object_url(url)), Path(folder)).check(digest, size).read_bytes()[-8:]


def test_processes_of_one_machine_download_a_blob_once(objects: ObjectServer, tmp_path: Path) -> None:
    content = os.urandom(1000)
    digest = publish_bytes(objects.open(tmp_path / "maker"), content).digest
    url = objects.url(timeout=60)
    found = run_at_once(_check_same, url, str(tmp_path / "cache"), digest, 1000, n=8)
    assert set(found) == {content[-8:]}
    assert objects.proxy.count("^GET .*/blobs/") == 1


def test_a_forked_process_is_told_so_and_does_not_hang(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache")
    digest = publish_bytes(store, b"weights").digest
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "nothing"
        try:
            store.verify(digest, 7)
        except StoreUnavailable as error:
            said = error.message
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert b"was forked from one" in os.read(reader, 1000)
    os.close(reader)


# --- for gc


def test_what_the_bucket_holds_is_listed_and_deleted(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache")
    digests = {publish_bytes(store, bytes([n]) * (n + 1)).digest: n + 1 for n in range(3)}
    for key in ("blobs/zz/other", f"blobs/00/{_digest(b'x')}", "notes.txt"):
        objects.ask("PUT", f"/team/models/{key}", b"not ours")
    found = list(store.list_blobs())
    assert {one.digest: one.size_bytes for one in found} == digests
    assert all(abs(one.modified_at - datetime.now(UTC)) < timedelta(minutes=1) for one in found)
    gone = found[0].digest
    assert store.find_blob(gone) == found[0]
    store.delete_blob(gone)
    store.delete_blob(gone)
    assert store.find_blob(gone) is None and not store.blob_path(gone).exists()
    with pytest.raises(ArtifactMissing):
        store.check(gone, digests[gone])
    assert _count_objects(objects) == 5


def test_uploads_that_were_never_finished_are_listed_and_given_up(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache")
    digest = _digest(b"never finished")
    objects.ask("POST", f"/team/models/blobs/{digest[:2]}/{digest}?uploads")
    objects.ask("POST", "/somebody/elses?uploads")
    assert len(objects.uploads()) == 2
    left = [one for one in store.list_leftovers() if one.kind == "upload"]
    assert len(left) == 1 and left[0].place.startswith(f"team/models/blobs/{digest[:2]}/{digest}")
    assert left[0].modified_at < datetime.now(UTC)
    assert store.delete_leftover(left[0])
    assert store.delete_leftover(left[0])  # also when it is gone
    assert [one for one in store.list_leftovers() if one.kind == "upload"] == [] and len(objects.uploads()) == 1


def test_more_uploads_than_one_answer_holds_are_listed(
    objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = objects.open(tmp_path / "cache")
    begun = "<Initiated>2026-01-02T03:04:05.000Z</Initiated>"
    upload = f"<Upload><Key>team/models/blobs/00/{{0}}</Key><UploadId>{{0}}</UploadId>{begun}</Upload>"
    next_page = "<NextKeyMarker>a/{0}</NextKeyMarker><NextUploadIdMarker>u{0}</NextUploadIdMarker>"
    asked: list[dict[str, str]] = []

    def answer(bucket: object, method: str, path: str, query: dict[str, str]) -> bytes:
        asked.append(dict(query))
        n = len(asked)
        more = f"<IsTruncated>{'true' if n < 3 else 'false'}</IsTruncated>" + next_page.format(n)
        return f'<R xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{more}{upload.format(n)}</R>'.encode()

    monkeypatch.setattr(uploads, "ask_service", answer)  # moto gives all in one answer
    assert [one.place[-1] for one in uploads.list_uploads(store.bucket)] == ["1", "2", "3"]
    assert [one.get("key-marker") for one in asked] == [None, "a/1", "a/2"]
    assert asked[2]["upload-id-marker"] == "u2"


def test_a_corrupt_blob_is_moved_aside(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache")
    digest = publish_bytes(store, b"weights").digest
    assert store.quarantine(digest, 7) is None
    objects.ask("PUT", f"/team/models/blobs/{digest[:2]}/{digest}", b"weighty")
    assert store.quarantine(digest, 7)
    assert store.find_blob(digest) is None
    left = [one for one in store.list_leftovers() if one.kind == "quarantined"]
    assert [one.digests for one in left] == [(digest,)]
    assert store.delete_leftover(left[0]) and not store.delete_leftover(left[0])
    assert store.quarantine(digest, 7) is None


def test_claims_are_kept_in_the_bucket(objects: ObjectServer, tmp_path: Path) -> None:
    store, other = objects.open(tmp_path / "cache"), objects.open(tmp_path / "other")
    assert store.list_claims() == []
    one, two = Claim("a" * 64, "here", "1" * 64), Claim("b" * 64, "there", "2" * 64)
    store.write_claim(one)
    store.write_claim(two)
    store.write_claim(one)
    assert other.list_claims() == [one, two]
    objects.ask("PUT", f"/team/models/registries/{'a' * 64}.json", b"{}")
    with pytest.raises(StoreUnavailable, match="altered"):
        other.list_claims()
