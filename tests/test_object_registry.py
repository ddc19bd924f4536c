"""Whole registries whose store is a bucket, from two machines: the same database, a cache each."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
import torch

from cli.main import main
from registry import Registry
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    InvalidInput,
    StoreDenied,
    StoreInconsistent,
    StoreUnavailable,
)
from registry.settings import read_settings
from registry.store import LocalStore, open_store, signed, uploads
from registry.store.object_url import parse_object_url
from registry.store.objects import ObjectStore
from tests.object_server import CREDENTIALS, ObjectServer

Open = Callable[[str], Registry]


@pytest.fixture
def open_on(
    objects: ObjectServer, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Return a function that opens the registry as the machine of that name does."""
    opened: list[Registry] = []

    def open_one(machine: str) -> Registry:
        monkeypatch.setenv("LENSREG_STORE_CACHE", str(tmp_path / machine / "stores"))
        monkeypatch.setenv("LENSREG_STAMPS", str(tmp_path / machine / "stamps"))
        opened.append(Registry(database_url, objects.url()))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_what_one_machine_registers_another_loads(
    open_on: Open, objects: ObjectServer, make_checkpoint: Callable[..., Path]
) -> None:
    here, there = open_on("here"), open_on("there")
    done = here.register("base", make_checkpoint("gpt2"))
    assert done.version is not None and f"store={objects.url()!r}" in repr(here)
    n_sent = objects.proxy.count("^PUT .*/blobs/")
    assert n_sent == len({file.digest for file in done.version.files}) == len(list(here.store.list_blobs()))
    assert here.verify(read_data=True).ok
    tokens = torch.arange(20)[None]
    expected = here.load("base")(tokens)
    shown: list[tuple[str, int, int]] = []
    network = there.load("base", progress=lambda *step: shown.append(step))
    assert torch.equal(network(tokens), expected)
    assert {"downloading", "checking"} <= {stage for stage, _, _ in shown}
    n_got = objects.proxy.count("^GET .*/blobs/")
    assert torch.equal(there.load("base")(tokens), expected)
    assert objects.proxy.count("^GET .*/blobs/") == n_got  # mapped from the cache

    folder = there.path("base")
    assert {path.name for path in folder.iterdir()} == {file.name for file in done.version.files}
    assert all((folder / file.name).stat().st_size == file.size_bytes for file in done.version.files)
    there.register("copy", folder)  # the same files under another name: nothing is sent
    assert objects.proxy.count("^PUT .*/blobs/") == n_sent
    assert here.verify().ok and there.verify(read_data=True).ok


def test_verify_asks_the_bucket_and_not_the_cache(
    open_on: Open, objects: ObjectServer, make_checkpoint: Callable[..., Path]
) -> None:
    here = open_on("here")
    version = here.register("base", source := make_checkpoint("gpt2"), parity="skip").version
    assert version is not None
    weights = version.with_role("weights")[0]
    key = next(f"/{key}" for key in objects.keys() if weights.digest in key)  # noqa: SIM118
    n_got = objects.proxy.count("^GET .*/blobs/")
    assert here.verify().ok and objects.proxy.count("^GET .*/blobs/") == n_got  # nothing is downloaded for it

    content = bytearray(here.store.blob_path(weights.digest).read_bytes())
    content[-1] ^= 1
    objects.ask("PUT", key, bytes(content))
    assert here.verify().ok
    assert [fault.code for fault in here.verify(read_data=True).faults] == ["artifact-corrupt"]
    with pytest.raises(ArtifactCorrupt):
        open_on("there").path("base")
    objects.ask("DELETE", key)
    faults = here.verify().faults
    assert [(fault.code, fault.subject, fault.versions) for fault in faults] == [
        ("artifact-missing", weights.digest, ("base@v1",))
    ]
    with pytest.raises(ArtifactMissing):
        open_on("there").path("base")
    here.path("base")  # it has its copy
    assert here.register("base", source, parity="skip").outcome == "unchanged"  # which heals it
    assert here.verify(read_data=True).ok
    open_on("there").path("base")


def test_what_cannot_be_asked_is_no_fault_of_the_blobs(
    open_on: Open, objects: ObjectServer, make_checkpoint: Callable[..., Path]
) -> None:
    here = open_on("here")
    here.register("base", make_checkpoint("gpt2"), parity="skip")
    objects.proxy.strike("status", "^HEAD", times=999, status=403, code="AccessDenied")
    with pytest.raises(StoreDenied):
        here.verify()


def test_an_upload_that_fails_registers_nothing(
    open_on: Open, objects: ObjectServer, make_checkpoint: Callable[..., Path]
) -> None:
    here = open_on("here")
    source = make_checkpoint("gpt2")
    objects.proxy.strike("status", "^PUT .*/blobs/", times=999, status=403, code="AccessDenied")
    with pytest.raises(StoreDenied, match="access is denied"):
        here.register("base", source, parity="skip")
    assert here.models() == [] and objects.keys() == []
    objects.proxy.faults.clear()
    assert here.register("base", source, parity="skip").version is not None
    assert here.verify(read_data=True).ok


def test_nothing_secret_is_printed_or_recorded(
    objects: ObjectServer,
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LENSREG_STORE_CACHE", str(tmp_path / "stores"))
    where = ["--registry", str(tmp_path / "registry.db"), "--store", objects.url(timeout=0.3)]
    for arguments in (
        ["add", "base", str(make_checkpoint("gpt2")), "--parity", "skip"],
        ["show", "base", "--output", "json"],
        ["path", "base"],
        ["db", "status"],
        ["verify", "--read-data"],
        ["audit", "log", "--output", "json"],
    ):
        with pytest.raises(SystemExit) as done:
            main([*arguments, *where])
        assert not done.value.code, arguments
    objects.proxy.strike("status", times=999, status=403, code="SignatureDoesNotMatch")
    with pytest.raises(SystemExit):
        main(["verify", *where])
    said = capsys.readouterr()
    assert objects.bucket in said.out and "the secret key is wrong" in said.err
    for text in (said.out, said.err, *(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*.db*"))):
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in text and CREDENTIALS["AWS_ACCESS_KEY_ID"] not in text


# --- where a store is


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://my.bucket-1/team/models",
        "gs://bucket/prefix",
        "az://container/prefix",
        "s3://bucket/p?endpoint=http://minio:9000&region=eu-west-1",
        "s3://bucket/p?endpoint=https://host/s3",
        "s3://bucket/p?anonymous=true&timeout=2.5",
    ],
)
def test_a_url_is_read_and_written_the_same(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("LENSREG_STORE_CACHE", str(tmp_path))
    assert str(parse_object_url(url)) == url
    store = open_store(read_settings(store=url))
    assert isinstance(store, ObjectStore) and str(store) == url and store.root.parent == tmp_path
    store.bucket.connect()  # obstore takes it, too
    assert parse_object_url(f"{url}{'&' if '?' in url else '?'}timeout=7").cache_name == store.root.name
    assert not store.root.exists()  # nothing is made before it is needed


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "no bucket"),
        ("s3:///prefix", "no bucket"),
        ("s3://bucket/a/../b", "no prefix"),
        ("s3://bucket/a//b", "no prefix"),
        ("s3://bucket/a%2fb", "no prefix"),
        ("s3://bucket/a b", "no prefix"),
        ("s3://bucket#x", "no bucket"),
        ("ftp://host/x", "no stores at"),
        ("file:///tmp/x", "no stores at"),
        ("https://bucket.s3.amazonaws.com/x", "no stores at"),
        ("s3://key:hunter2@bucket/x", "credentials"),
        ("s3://bucket/x?aws_secret_access_key=hunter2", "credentials"),
        ("s3://bucket?endpoint=http://key:hunter2@host", "endpoint"),
        ("s3://bucket?endpoint=minio:9000", "endpoint"),
        ("s3://bucket?colour=red", "no option colour"),
        ("s3://bucket?anonymous=yes", "anonymous"),
        ("s3://bucket?timeout=0", "seconds"),
        ("s3://bucket?timeout=forever", "seconds"),
        ("gs://bucket?region=eu", "region"),
        ("s3://bucket?region", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_and_no_password_repeated(url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        Registry("sqlite://", url)
    assert "hunter2" not in str(caught.value)


def test_different_places_have_different_caches() -> None:
    urls = ["s3://b", "s3://b/p", "s3://b/q", "gs://b/p", "s3://b/p?endpoint=http://h"]
    assert len({parse_object_url(url).cache_name for url in urls}) == len(urls)


def test_a_url_made_into_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="made into a path"):
        Registry("sqlite://", Path("s3://bucket/prefix"))
    assert isinstance(open_store(read_settings(store=str(tmp_path))), LocalStore)


def test_neither_importing_nor_listing_loads_obstore(tmp_path: Path) -> None:
    code = (
        "import sys; from registry import Registry; "
        f"r = Registry({str(tmp_path / 'r.db')!r}, 's3://bucket/prefix'); r.models(); "
        "print('obstore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- requests that obstore signs for us


def test_the_signature_of_a_request_for_uploads_is_that_of_the_specification(
    objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signature Version 4 of Amazon's documentation, for query strings, by hand: moto takes any signature."""
    asked: list[str] = []
    monkeypatch.setattr(signed, "urlopen", lambda request, timeout: asked.append(request.full_url) or 1 / 0)
    store = objects.open(tmp_path)
    for work in (
        lambda: list(uploads.list_uploads(store.bucket)),
        lambda: signed.ask_service(store.bucket, "GET", "/a/b c", {"uploadId": "x/y+z=="}),
    ):
        with pytest.raises(ZeroDivisionError):
            work()
    for url in asked:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        signature = query.pop("X-Amz-Signature")
        listed = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
        canonical = f"GET\n{parts.path}\n{listed}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
        scope = query["X-Amz-Credential"].split("/", 1)[1]
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{digest}"
        key = b"AWS4" + CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode()
        for one in scope.split("/"):
            key = hmac.new(key, one.encode(), hashlib.sha256).digest()
        assert signature == hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), url


def test_a_service_that_does_not_list_uploads_keeps_nobody_from_tidying_up(
    objects: ObjectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = objects.open(tmp_path, timeout=0.5)
    objects.proxy.strike("status", r"\?uploads", status=403, code="AccessDenied")
    assert list(store.list_leftovers()) == []
    assert "cannot be listed" in caplog.text and "Signature" not in caplog.text
    objects.proxy.close()
    with pytest.raises(StoreUnavailable):
        list(store.list_leftovers())


# --- gc


def test_gc_deletes_from_the_bucket_what_no_version_needs(
    open_on: Open, objects: ObjectServer, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = open_on("here"), open_on("there")
    here.register("base", make_checkpoint("gpt2"), parity="skip")
    kept = {blob.digest for blob in here.store.list_blobs()}
    with there.store.stage() as folder:
        (folder / "source").write_bytes(b"of a registration that was killed")
        there.store.publish([orphan := there.store.copy_in(folder / "source", folder / "file")])
    objects.ask("POST", f"/team/models/blobs/{'0' * 2}/{'0' * 64}?uploads")
    assert len(objects.uploads()) == 1
    young = there.plan_gc()
    assert not young.blobs and young.n_young == 1  # within its grace; moto's uploads say that they are of 2010
    plan = there.plan_gc(grace=timedelta(0))
    assert [blob.digest for blob in plan.blobs] == [orphan.digest]
    assert "upload" in {leftover.kind for leftover in plan.leftovers}
    done = there.gc(plan)
    assert done.n_blobs == 1 and not done.n_skipped
    assert {blob.digest for blob in here.store.list_blobs()} == kept and objects.uploads() == []
    assert not there.store.blob_path(orphan.digest).exists()
    assert here.verify(read_data=True).ok and there.verify(read_data=True).ok

    # what another machine has deleted is not taken for kept because it is in the cache here
    n_events = len(here.events())
    real = here.store.publish

    def publish_late(*args: Any, **options: Any) -> None:
        real(*args, **options)
        for blob in list(here.store.list_blobs()):
            if blob.digest not in kept:
                there.store.delete_blob(blob.digest)

    monkeypatch.setattr(here.store, "publish", publish_late)
    with pytest.raises(ArtifactMissing):
        here.register("other", make_checkpoint("gpt2", seed=5), parity="skip")
    assert len(here.events()) == n_events and here.verify(read_data=True).ok


def test_gc_refuses_when_the_bucket_lacks_what_versions_need(
    open_on: Open, objects: ObjectServer, make_checkpoint: Callable[..., Path]
) -> None:
    here = open_on("here")
    version = here.register("base", make_checkpoint("gpt2"), parity="skip").version
    assert version is not None
    here.store.bucket.delete(f"blobs/{version.files[0].digest[:2]}/{version.files[0].digest}")  # type: ignore[attr-defined]
    with pytest.raises(StoreInconsistent):
        here.plan_gc(grace=timedelta(0))
