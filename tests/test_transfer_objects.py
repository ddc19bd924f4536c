"""Versions move to, from and between buckets, over a network that fails: whole, once, and only what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import moto.s3.models
import pytest
from click.testing import CliRunner

from cli.main import lensreg
from cli.options import Session
from registry import Registry
from registry.errors import ArtifactCorrupt, ArtifactMissing, StoreDenied, StoreUnavailable
from registry.store import bucket
from tests.faults.invariant import find_breaches
from tests.object_server import CREDENTIALS, ObjectServer
from tests.processes import start
from tests.sampling import take_sample
from tests.transfers import add, fill, open_registry

_PART_BYTES = 512  # so that weights of these small files go in parts
Open = Callable[..., Registry]


@pytest.fixture
def open_team(objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return a function that opens a registry on a bucket, with a cache of its own, as a machine of that name does."""
    monkeypatch.setattr(bucket, "PART_BYTES", _PART_BYTES)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    opened: list[Registry] = []

    def open_one(machine: str = "team", url: str | None = None, prefix: str = "team", timeout: float = 2) -> Registry:
        monkeypatch.setenv("LENSREG_STORE_CACHE", str(tmp_path / machine / "stores"))
        monkeypatch.setenv("LENSREG_STAMPS", str(tmp_path / machine / "stamps"))
        opened.append(Registry(url or str(tmp_path / f"{prefix}.db"), objects.url(prefix, timeout)))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Registry]:
    one = open_registry(tmp_path / "laptop")
    yield one
    one.close()


def _count(registry: Registry) -> tuple[int, int]:
    """Return how many blobs and bytes all versions have: after `fill`, a merge and its ancestors."""
    refs = [one.ref for model in registry.models() for one in registry.history(model.name)]
    blobs = {file.digest: file.size_bytes for one in refs for file in registry.version(one).files}
    return len(blobs), sum(blobs.values())


def _weights_key(registry: Registry, ref: str, prefix: str = "team") -> str:
    digest = registry.version(ref).with_role("weights")[0].digest
    return f"/{prefix}/blobs/{digest[:2]}/{digest}"


@pytest.mark.parametrize("way", ["laptop to team", "team to laptop", "team to team"])
def test_a_merge_arrives_whole_and_the_second_time_nothing_moves(
    way: str, open_team: Open, laptop: Registry, objects: ObjectServer, database_url: str
) -> None:
    team = open_team(url=database_url)
    sender, receiver = {
        "laptop to team": (laptop, team),
        "team to laptop": (team, laptop),
        "team to team": (team, open_team("other", prefix="other")),
    }[way]
    fill(sender)
    if sender is team:
        shutil.rmtree(sender.store.root)  # as on a machine that has nothing of it yet
    n_blobs, n_bytes = _count(sender)
    objects.proxy.put_bytes = objects.proxy.got_bytes = 0
    done = receiver.pull("merge", source=sender)
    assert (done.n_sent, done.sent_bytes) == (n_blobs, n_bytes) and len(done.received) == 5
    assert objects.proxy.put_bytes == (0 if receiver is laptop else n_bytes), "each blob is sent once"
    assert objects.proxy.got_bytes == (0 if sender is laptop else n_bytes), "and fetched once"
    assert find_breaches(receiver, [one.ref for one in done.received]) == []
    assert receiver.verify(read_data=True).ok and receiver.verify_events() is None
    assert receiver.version("merge").weights_digest == sender.version("merge").weights_digest
    assert [one.ref for one in receiver.version("run@v2").parents] == ["run@v1"]
    assert receiver.path("merge").is_dir() and objects.uploads() == []

    head = receiver.events_head()
    objects.proxy.put_bytes = objects.proxy.got_bytes = 0
    again = sender.push("merge", to=receiver)
    assert again.unchanged and (again.n_sent, objects.proxy.put_bytes, objects.proxy.got_bytes) == (0, 0, 0)
    assert receiver.events_head() == head
    add(receiver, "merge", seed=6, parents=["merge@v1"])
    back = receiver.push("merge", to=sender)
    assert [one.ref for one in back.received] == ["merge@v2"] and back.n_sent == 1
    assert sender.verify(read_data=True).ok


def test_two_registries_on_one_bucket_send_nothing(open_team: Open, tmp_path: Path, objects: ObjectServer) -> None:
    one = open_team("one")
    fill(one)
    other = open_team("two", str(tmp_path / "two.db"))
    put = objects.proxy.put_bytes
    done = one.push("merge", to=other)
    assert len(done.received) == 5 and done.n_sent == 0 and objects.proxy.put_bytes == put
    assert other.verify(read_data=True).ok
    claims = {one.registry_id for one in other.store.list_claims()}
    assert other.events()[-1].digest in claims, "so that no gc of the one takes what the other needs"


def test_a_dry_run_moves_no_bytes(open_team: Open, laptop: Registry, objects: ObjectServer) -> None:
    fill(laptop)
    team = open_team()
    laptop.push("base", to=team)
    keys, put, got = objects.keys(), objects.proxy.put_bytes, objects.proxy.got_bytes
    done = laptop.push("merge", to=open_team("machine"), dry_run=True)
    assert done.n_sent == _count(laptop)[0] - 2 and len(done.received) == 4
    assert (objects.keys(), objects.proxy.put_bytes, objects.proxy.got_bytes) == (keys, put, got)


@pytest.mark.parametrize("target", ["all.tar", "folder"])
def test_an_export_of_one_bucket_is_imported_into_another(
    target: str, open_team: Open, objects: ObjectServer, tmp_path: Path
) -> None:
    fill(open_team())
    n_blobs, n_bytes = _count(open_team())
    open_team("machine").export_versions("merge", target=tmp_path / target)
    other = open_team("other", prefix="other")
    objects.proxy.put_bytes = 0
    done = other.import_versions(tmp_path / target)
    assert done.n_sent == n_blobs and objects.proxy.put_bytes == n_bytes
    assert find_breaches(other, [one.ref for one in done.received]) == []
    assert other.import_versions(tmp_path / target).unchanged


# --- what goes wrong once


_PUT, _COMPLETE, _HEAD = "^PUT .*/blobs/", "^POST .*uploadId", "^HEAD .*/blobs/"


@pytest.mark.parametrize(
    ("action", "place"),
    [
        *((action, _PUT) for action in ("cut-request", "lost-reply", "cut-reply", "status", "hang")),
        *((action, _COMPLETE) for action in ("lost-reply", "status")),
        ("status", _HEAD),
    ],
)
def test_a_push_during_which_a_request_breaks_ends_well(
    action: str, place: str, open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    add(laptop, "base", seed=1)
    team = open_team(timeout=1 if action == "hang" else 5)
    fault = objects.proxy.strike(action, place)  # type: ignore[arg-type]
    done = laptop.push("base", to=team)
    assert fault.struck and [one.ref for one in done.received] == ["base@v1"]
    assert find_breaches(team, ["base@v1"]) == [] and team.verify(read_data=True).ok
    assert laptop.push("base", to=team).unchanged


@pytest.mark.parametrize("action", ["lost-reply", "cut-reply", "status", "hang"])
def test_a_pull_during_which_a_request_breaks_ends_well(
    action: str, open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    add(open_team(), "base", seed=1)
    fault = objects.proxy.strike(action, "^GET .*/blobs/")  # type: ignore[arg-type]
    done = laptop.pull("base", source=open_team("machine", timeout=1 if action == "hang" else 5))
    assert fault.struck and [one.ref for one in done.received] == ["base@v1"]
    assert laptop.verify(read_data=True).ok


# --- what goes wrong for good, and is repeated


@pytest.mark.parametrize(
    ("status", "code", "error"), [(503, "SlowDown", StoreUnavailable), (403, "AccessDenied", StoreDenied)]
)
@pytest.mark.parametrize("n_before", take_sample([0, 1, 5], "broken off after {}".format))
def test_a_push_that_is_broken_off_goes_on_where_it_stopped(
    n_before: int, status: int, code: str, error: type, open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    """Only what is missing is sent, also by a machine whose cache is empty."""
    fill(laptop)
    team = open_team(timeout=1)
    n_blobs, n_bytes = _count(laptop)
    team.models()

    def break_off(line: str) -> None:
        if len([key for key in objects.keys() if "/blobs/" in key]) == n_before and not objects.proxy.faults:  # noqa: SIM118
            objects.proxy.strike("status", "/blobs/", times=9999, status=status, code=code)

    break_off("")
    objects.proxy.on_request = break_off
    with pytest.raises(error):
        laptop.push("merge", to=team)
    objects.proxy.on_request = None
    objects.proxy.faults.clear()
    assert team.models() == [] and list(team.store.root.glob("tmp/*")) == []
    there = [one.size_bytes for one in team.store.list_blobs()]
    assert len(there) == n_before
    objects.proxy.put_bytes = objects.proxy.got_bytes = 0
    done = laptop.push("merge", to=open_team("another machine"))
    assert done.n_sent == n_blobs - n_before and len(done.received) == 5
    assert objects.proxy.put_bytes == n_bytes - sum(there)
    assert objects.proxy.got_bytes == sum(there), "what was there is read once, to be believed"
    assert find_breaches(open_team()) == [] and team.verify(read_data=True).ok


def test_a_pull_that_is_broken_off_goes_on_where_it_stopped(
    open_team: Open, laptop: Registry, objects: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_team())
    n_bytes = _count(open_team())[1]
    objects.proxy.got_bytes = 0
    broken = open_team("machine", timeout=1)

    def break_off(line: str) -> None:
        if objects.proxy.got_bytes > n_bytes // 2:
            objects.proxy.strike("status", "^GET .*/blobs/", times=9999)

    objects.proxy.on_request = break_off
    with pytest.raises(StoreUnavailable, match="fewer requests"):
        laptop.pull("merge", source=broken)
    objects.proxy.on_request = None
    objects.proxy.faults.clear()
    assert laptop.models() == []
    n_there = sum(one.size_bytes for one in laptop.store.list_blobs())
    assert n_there > 0
    objects.proxy.got_bytes = 0
    done = laptop.pull("merge", source=open_team("a third machine"))
    assert objects.proxy.got_bytes == done.sent_bytes == n_bytes - n_there
    assert find_breaches(laptop, [one.ref for one in done.received]) == []


def _push(laptop: str, database: str, store: str, cache: str) -> None:
    os.environ |= {**CREDENTIALS, "LENSREG_STORE_CACHE": cache, "LENSREG_STAMPS": cache}
    bucket.PART_BYTES = _PART_BYTES
    open_registry(Path(laptop)).push("merge", to=Registry(database, store))


@pytest.mark.parametrize("at", take_sample([1, 9, 16], "killed at {}".format))
def test_a_push_that_is_killed_and_repeated_sends_only_the_rest(
    at: int, open_team: Open, laptop: Registry, objects: ObjectServer, tmp_path: Path, database_url: str
) -> None:
    fill(laptop)
    team = open_team(url=database_url)
    n_bytes = _count(laptop)[1]
    team.models()
    n_put, hit = 0, []

    def kill(line: str) -> None:
        nonlocal n_put
        n_put += line.startswith("PUT") and "/blobs/" in line
        if n_put == at and not hit:
            hit.append(line)
            process.kill()

    objects.proxy.on_request = kill
    process = start(_push, str(tmp_path / "laptop"), database_url, objects.url("team", 2), str(tmp_path / "killed"))
    process.join(60)
    objects.proxy.on_request = None
    assert hit and process.exitcode == -9
    assert find_breaches(team) == [] and team.models() == []
    there = sum(one.size_bytes for one in team.store.list_blobs())
    objects.proxy.put_bytes = 0
    done = laptop.push("merge", to=team)
    assert objects.proxy.put_bytes == n_bytes - there and done.sent_bytes == n_bytes - there
    assert find_breaches(team, [one.ref for one in done.received]) == [] and team.verify(read_data=True).ok
    assert laptop.push("merge", to=team).unchanged


# --- objects that are not what they should be


@pytest.mark.parametrize("fault", take_sample(["flipped", "cut", "gone"], "a blob that is {}".format))
@pytest.mark.parametrize("to", ["laptop", "team"])
def test_what_is_corrupt_in_the_sender_s_bucket_is_not_received(
    fault: str, to: str, open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    fill(open_team())
    key = _weights_key(open_team(), "merge")
    content = bytearray(objects.ask("GET", key))
    if fault == "gone":
        objects.ask("DELETE", key)
    else:
        content[-1] ^= 1
        objects.ask("PUT", key, bytes(content[:-7] if fault == "cut" else content))
    receiver = laptop if to == "laptop" else open_team("other", prefix="other")
    with pytest.raises(ArtifactMissing if fault == "gone" else ArtifactCorrupt) as refused:
        receiver.pull("merge", source=open_team("machine"))
    assert f"s3://{objects.bucket}/team" in refused.value.message and refused.value.hint
    assert receiver.models() == [] and receiver.events() == []
    assert all(one.digest not in key for one in receiver.store.list_blobs())
    objects.ask("PUT", key, bytes([*content[:-1], content[-1] ^ (fault != "gone")]))
    assert len(receiver.pull("merge", source=open_team("machine")).received) == 5
    assert receiver.verify(read_data=True).ok


def test_a_damaged_copy_in_the_sender_s_cache_is_fetched_again(
    open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    team = open_team()
    fill(team)
    path = team.store.blob_path(team.version("merge").with_role("weights")[0].digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    assert len(laptop.pull("merge", source=open_team()).received) == 5
    assert laptop.verify(read_data=True).ok


def test_what_is_corrupt_in_the_receiver_s_bucket_is_replaced(
    open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    add(laptop, "base", seed=1)
    file = laptop.version("base").with_role("weights")[0]
    objects.ask("PUT", _weights_key(laptop, "base"), bytes(file.size_bytes))  # of the right size, and all zeros
    team = open_team()
    assert laptop.push("base", to=team).n_sent == 2
    assert team.verify(read_data=True).ok
    objects.ask("DELETE", _weights_key(laptop, "base"))
    assert laptop.push("base", to=team).n_sent == 1, "sending heals, though it is in the cache"
    assert team.verify(read_data=True).ok


def test_a_bucket_that_cannot_be_asked_is_no_bucket_that_lacks_blobs(
    open_team: Open, laptop: Registry, objects: ObjectServer
) -> None:
    fill(laptop)
    team = open_team(timeout=1)
    objects.proxy.strike("status", "^HEAD|list-type", times=9999, status=403, code="AccessDenied")
    with pytest.raises(StoreDenied):
        laptop.push("merge", to=team, dry_run=True)
    assert objects.proxy.count("^PUT") == 0


# --- the commands


def test_the_commands(open_team: Open, laptop: Registry, objects: ObjectServer, tmp_path: Path) -> None:
    fill(laptop)
    team, store = str(tmp_path / "team.db"), objects.url("team")

    def run(*args: str) -> str:
        done = CliRunner().invoke(lensreg, args, obj=Session())
        assert done.exit_code == 0, done.output
        return done.output

    here = ["--registry", str(tmp_path / "laptop" / "registry.db"), "--store", str(tmp_path / "laptop" / "store")]
    assert "5 of 5 versions received, 6 of 6 blobs sent" in run(
        "push", "merge", "--to", team, "--to-store", store, *here
    )
    assert "nothing has changed" in run("push", "merge", "--to", team, "--to-store", store, *here)
    there = ["--registry", str(tmp_path / "third.db"), "--store", str(tmp_path / "third")]
    assert "6 of 6 blobs sent" in run("pull", "merge", "--from", team, "--from-store", store, *there)
    assert "merge" in run("ls", *there)
