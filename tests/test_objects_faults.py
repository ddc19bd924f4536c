"""Stores in a bucket whose network and service fail on the way: each fault ends well, or as a typed error."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from registry.errors import (
    StorageError,
    StoreDenied,
    StoreUnavailable,
)
from registry.store import bucket
from registry.store.object_url import parse_object_url
from registry.store.objects import ObjectStore
from tests.kept import publish_bytes
from tests.object_server import ObjectServer

_PART = bucket.PART_BYTES
_BIG = 2 * _PART + 12345


@pytest.mark.parametrize("size", [1000, _BIG])
@pytest.mark.parametrize("action", ["cut-request", "lost-reply", "cut-reply", "hang", "status"])
def test_an_upload_that_breaks_once_ends_well(objects: ObjectServer, tmp_path: Path, action: str, size: int) -> None:
    store = objects.open(tmp_path / "cache", timeout=1.5)
    content = os.urandom(size)
    for method in ("PUT .*/blobs/", "POST .*uploads", "POST .*uploadId") if size > _PART else ("PUT .*/blobs/",):
        fault = objects.proxy.strike(action, f"^{method}")  # type: ignore[arg-type]
        content = content[1:] + b"x"
        try:
            staged = publish_bytes(store, content)
        except StorageError as error:
            assert isinstance(error, StoreUnavailable), error
            assert objects.keys() == [] or all(
                objects.ask("GET", f"/{key}")
                for key in objects.keys()  # noqa: SIM118
            )
            staged = publish_bytes(store, content)  # and then it does
        assert fault.struck == 1, method
        objects.open(tmp_path / "other").verify(staged.digest, size, read=True)


@pytest.mark.parametrize("action", ["cut-request", "lost-reply", "cut-reply", "hang", "status"])
def test_a_download_that_breaks_once_ends_well(objects: ObjectServer, tmp_path: Path, action: str) -> None:
    content = os.urandom(_BIG)
    digest = publish_bytes(objects.open(tmp_path / "maker"), content).digest
    for method in ("HEAD", "GET"):
        store = objects.open(tmp_path / method, timeout=1.5)
        fault = objects.proxy.strike(action, f"^{method} .*/blobs/")  # type: ignore[arg-type]
        assert store.check(digest, _BIG).read_bytes() == content
        assert fault.struck == 1


@pytest.mark.parametrize("action", ["short-reply", "altered-reply"])
def test_a_reply_that_lies_is_found_out(objects: ObjectServer, tmp_path: Path, action: str) -> None:
    content = os.urandom(_BIG)
    digest = publish_bytes(objects.open(tmp_path / "maker"), content).digest
    store = objects.open(tmp_path / "cache", timeout=1.5)
    objects.proxy.strike(action, "^GET .*/blobs/", times=99)  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        store.check(digest, _BIG)
    assert not store.blob_path(digest).exists() and list((store.root / "tmp").iterdir()) == []
    objects.proxy.faults.clear()
    assert store.check(digest, _BIG).read_bytes() == content


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "AccessDenied", StoreDenied, "access is denied"),
        (403, "InvalidAccessKeyId", StoreDenied, "access key is not known"),
        (403, "SignatureDoesNotMatch", StoreDenied, "secret key is wrong"),
        (400, "ExpiredToken", StoreDenied, "expired"),
        (403, "RequestTimeTooSkewed", StoreUnavailable, "clock"),
        (301, "PermanentRedirect", StoreUnavailable, "another region"),
        (503, "SlowDown", StoreUnavailable, "fewer requests"),
        (500, "InternalError", StoreUnavailable, "failed within"),
        (409, "ConditionalRequestConflict", StoreUnavailable, "409|ConditionalRequestConflict"),
        (412, "PreconditionFailed", StoreUnavailable, "412|PreconditionFailed"),
        (418, "Teapot", StoreUnavailable, "Teapot|418"),
    ],
)
def test_what_the_service_says_becomes_a_typed_error(
    objects: ObjectServer, tmp_path: Path, status: int, code: str, kind: type[StorageError], words: str
) -> None:
    store = objects.open(tmp_path / "cache", timeout=1.5)
    objects.proxy.strike("status", "^(PUT|POST|GET)", times=999, status=status, code=code)
    started = time.monotonic()
    for work in (lambda: publish_bytes(store, b"weights"), lambda: list(store.list_blobs())):
        with pytest.raises(StorageError, match=words) as caught:
            work()
        assert type(caught.value) is kind and caught.value.hint
        assert "a-secret" not in repr(caught.value) + str(caught.value)
    assert time.monotonic() - started < 2 * (1.5 + 1.5 + 1)
    objects.proxy.faults.clear()
    assert objects.keys() == []


def test_a_service_that_hangs_is_given_up_in_time(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache", timeout=0.7)
    objects.proxy.strike("hang", times=999)
    for work in (
        lambda: publish_bytes(store, b"weights"),
        lambda: store.verify("0" * 64, 7),
        lambda: list(store.list_blobs()),
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.7 s"):
            work()
        assert time.monotonic() - started < 3 * 0.7 + 1


def test_ctrl_c_is_heard_while_a_service_hangs(objects: ObjectServer, tmp_path: Path) -> None:
    store = objects.open(tmp_path / "cache", timeout=20)
    publish_bytes(store, b"others")
    objects.proxy.strike("hang", times=999)
    for work in (lambda: publish_bytes(store, b"weights"), lambda: store.verify("0" * 64, 7)):
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            work()
        timer.join()
        assert time.monotonic() - started < 10


def test_a_bucket_that_is_not_there_is_no_missing_blob(objects: ObjectServer, tmp_path: Path) -> None:
    url = objects.url().replace(objects.bucket, "no-such-bucket")
    store = ObjectStore(bucket.Bucket(parse_object_url(url)), tmp_path / "cache")
    for work in (
        lambda: store.check("0" * 64, 7),
        lambda: store.verify("0" * 64, 7),
        lambda: publish_bytes(store, b"weights"),
        lambda: publish_bytes(store, bytes(_BIG)),
        lambda: list(store.list_blobs()),
    ):
        with pytest.raises(StoreUnavailable, match="no such bucket"):
            work()


def test_without_credentials_it_says_what_to_set(
    objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    # or it would ask the machine's metadata service
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/credentials")
    store = objects.open(tmp_path / "cache", timeout=0.5)
    with pytest.raises(StoreDenied, match="AWS_ACCESS_KEY_ID"):
        publish_bytes(store, b"weights")
    assert objects.proxy.lines == []
