"""Versions move between registries whole: with lineage, figures and events, once, and never under a wrong name."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event

from cli.main import lensreg
from cli.options import Session
from registry import Registry, Version
from registry.errors import ArtifactCorrupt, InvalidInput, StorageError, TransferConflict, UnknownRef
from registry.transfer import receive as receiving
from registry.transfer.form import RECEIVED
from tests.faults.invariant import find_breaches
from tests.transfers import add, add_all, fill, open_registry


@pytest.fixture(params=["to", "from"])
def pair(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[tuple[Registry, Registry]]:
    """A filled registry and an empty one, of which one is on SQLite and the other on SQLite or Postgres."""
    places = [open_registry(tmp_path / "laptop"), open_registry(tmp_path / "team", database_url)]
    sender, receiver = places if request.param == "to" else reversed(places)
    fill(sender)
    yield sender, receiver
    sender.close()
    receiver.close()


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Registry]:
    one = open_registry(tmp_path / "laptop")
    yield one
    one.close()


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Registry]:
    one = open_registry(tmp_path / "team")
    yield one
    one.close()


def _whole(version: Version) -> Version:
    """Leave out what is the receiver's own."""
    measured = tuple(
        replace(one, environment={key: value for key, value in one.environment.items() if key != RECEIVED})
        for one in version.validations
    )
    origin = {key: value for key, value in version.provenance.items() if key != RECEIVED}
    return replace(version, validations=measured, provenance=origin, aliases=())


def test_a_merge_arrives_with_all_that_it_came_from(pair: tuple[Registry, Registry]) -> None:
    sender, receiver = pair
    done = receiver.pull("merge", source=sender)
    refs = [one.ref for one in done.received]
    assert refs == [one.sent_as for one in done.moves] and refs[-1] == "merge@v1", "parents come first"
    assert set(refs) == {"base@v1", "run@v1", "run@v2", "other@v1", "merge@v1"}
    for ref in ("base@v1", "other@v1", "run@v1", "run@v2", "merge@v1"):
        ours, theirs = receiver.version(ref), sender.version(ref)
        assert _whole(ours) == _whole(theirs)
        assert ours.provenance[RECEIVED]["ref"] == ref
        assert all(RECEIVED in one.environment for one in ours.validations), "it says that it was measured elsewhere"
    assert receiver.version("run@v1").retired_at is not None
    assert receiver.aliases() == [], "aliases are the receiver's to set"
    assert find_breaches(receiver, [one.ref for one in done.received]) == []
    assert receiver.verify_events() is None


def test_the_second_time_nothing_changes(pair: tuple[Registry, Registry]) -> None:
    sender, receiver = pair
    first = sender.push("merge", to=receiver)
    assert not first.unchanged and first.n_sent == first.n_blobs == 6
    head = receiver.events_head()
    again = sender.push("merge", to=receiver)
    assert again.unchanged and again.n_sent == 0
    assert {one.outcome for one in again.moves} == {"there"}
    back = receiver.push("merge", to=sender)
    assert back.unchanged and {one.outcome for one in back.moves} == {"there"}, "it knows its own again"
    assert receiver.events_head() == head


def test_the_events_tell_the_whole_story(laptop: Registry, team: Registry, tmp_path: Path) -> None:
    fill(laptop)
    laptop.push("run@v2", to=team)
    (received,) = team.events("run@v1")
    there = laptop.events("run@v1")
    assert received.action == "version.received"
    assert [one["digest"] for one in received.details["events"]] == [one.digest for one in reversed(there)]
    assert [one["action"] for one in received.details["events"]] == ["version.registered", "version.retired"]
    head = laptop.events_head()
    origin = received.details["source"][RECEIVED]
    assert (origin["n_events"], origin["head"]) == (head.n_events, head.digest)
    third = open_registry(tmp_path / "third")
    third.pull("run", source=team)
    (again,) = third.events("run@v2")
    (hop,) = again.details["events"]
    assert hop["action"] == "version.received" and hop["details"]["events"][0]["action"] == "version.registered"
    assert find_breaches(third) == []
    third.close()


def test_a_disk_that_cannot_be_read_is_not_the_exports_fault(
    laptop: Registry, team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(laptop)
    laptop.export_versions("run@v2", target=tmp_path / "export")
    plainly = os.open

    def fail(path: Any, *options: Any) -> int:
        if str(path).endswith("lensreg-export.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plainly(path, *options)

    monkeypatch.setattr("registry.transfer.folder.os.open", fail)
    with pytest.raises(StorageError, match=r"cannot be read: Input/output error\. Nothing was changed") as caught:
        team.import_versions(tmp_path / "export")
    assert caught.value.code == "storage-error"


def test_a_number_that_is_taken_is_never_given_twice(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    add(team, "run", seed=77)
    done = laptop.push("run@v2", to=team)
    names = {one.sent_as: one.ref for one in done.moves}
    assert names == {"base@v1": "base@v1", "run@v1": "run@v2", "run@v2": "run@v3"}
    assert team.version("run@v1").weights_digest not in {laptop.version(f"run@v{n}").weights_digest for n in (1, 2)}
    assert [parent.ref for parent in team.version("run@v3").parents] == ["run@v2"]
    assert [one.ref for one in team.search("received_as = 'run@v2'")] == ["run@v3"]
    registry_id = laptop.events()[-1].digest
    assert len(list(team.search(f"received_from = '{registry_id}'"))) == 2, "and one that is retired"
    assert laptop.push("run@v2", to=team).unchanged
    assert find_breaches(team) == []


def test_another_name(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    add(team, "run", seed=77)
    done = laptop.push("run@v2", to=team, name="org/run")
    assert {one.sent_as: one.ref for one in done.moves}["run@v2"] == "org/run@v2"
    assert laptop.push("run@v2", to=team).unchanged, "it is there, whatever it is called"
    with pytest.raises(InvalidInput, match="one model at a time"):
        laptop.push("merge", "run", to=team, name="x")
    with pytest.raises(InvalidInput, match="cannot stand for"):
        laptop.push("merge", to=team, name="other")


def test_what_was_registered_on_both_sides_is_the_same(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    add(team, "base", seed=1)
    done = laptop.push("run@v2", to=team)
    outcomes = {one.sent_as: (one.ref, one.outcome) for one in done.moves}
    assert outcomes == {
        "base@v1": ("base@v1", "identical"), "run@v1": ("run@v1", "received"), "run@v2": ("run@v2", "received"),
    }  # fmt: skip
    assert [parent.ref for parent in team.version("run@v1").parents] == ["base@v1"]
    assert [one.ref for one in team.history("base")] == ["base@v1"]
    assert laptop.push("run@v2", to=team).unchanged


def test_the_same_weights_with_other_parents_are_another_version(laptop: Registry, team: Registry) -> None:
    add(laptop, "base", seed=1)
    add(laptop, "tuned", seed=2, parents=["base"])
    add(team, "tuned", seed=2)
    done = laptop.push("tuned", to=team)
    assert [(one.ref, one.outcome) for one in done.moves] == [("base@v1", "received"), ("tuned@v2", "received")]


def test_a_step_that_is_taken_by_other_weights(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    add(team, "run", seed=99, step=20)
    with pytest.raises(TransferConflict, match="run@v2 is step 20, for which run@v1 has other weights") as caught:
        laptop.push("merge", to=team)
    assert len(caught.value.conflicts) == 1
    assert [model.name for model in team.models()] == ["run"]
    team.retire("run@v1")
    assert not laptop.push("merge", to=team).unchanged
    add(laptop, "run", seed=98, step=20, parents=["run@v2"])
    done = laptop.push("run", to=team)
    assert done.received[-1].ref == "run@v4", "what came from the same registry may have newer weights for its step"


def test_lineage_is_not_lost(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    with pytest.raises(TransferConflict, match="run@v2 comes from run@v1, which is not here and not sent"):
        laptop.push("run@v2", to=team, alone=True)
    assert list(team.models()) == []
    laptop.push("run@v1", to=team)
    done = laptop.push("run@v2", to=team, alone=True)
    assert [one.ref for one in done.moves] == ["run@v2"]
    assert [parent.ref for parent in team.version("run@v2").parents] == ["run@v1"]


def test_aliases_come_only_when_they_are_asked_for(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    laptop.push("merge", to=team)
    done = laptop.push("merge", to=team, aliases=True)
    assert done.aliases == (("merge@best", "merge@v1"),) and not done.received
    assert team.version("merge@best").ref == "merge@v1"
    assert laptop.push("merge", to=team, aliases=True).unchanged
    add(laptop, "merge", seed=44)
    laptop.set_alias("merge@best", "merge@v2")
    with pytest.raises(TransferConflict, match="merge@best means v1 here, and would mean v2"):
        laptop.push("merge@v2", to=team, aliases=True)
    assert [one.ref for one in team.history("merge")] == ["merge@v1"]


def test_weights_that_were_left_on_the_hub_stay_there(laptop: Registry, team: Registry) -> None:
    add(laptop, "base", lazy=True)
    add(laptop, "tuned", parents=["base"])
    done = laptop.push("tuned", to=team)
    assert done.n_blobs == 2, "the config of both, and the weights of one"
    assert team.version("base").weights_digest is None
    assert team.version("base").provenance["commit"] == "c" * 40
    assert find_breaches(team) == []


def test_absent_parents_are_joined_on_arrival(laptop: Registry, team: Registry) -> None:
    commit = "b" * 40
    add(team, "student", absent=[f"org/teacher@{commit}"])
    add(laptop, "child", absent=[f"org/teacher@{commit}"])
    origin = {"repo": "org/teacher", "revision": "main", "commit": commit}
    add(laptop, "teacher", provenance=origin)
    assert [one.ref for one in laptop.version("child").parents] == ["teacher@v1"], "a parent younger than its child"
    laptop.push("child", to=team)
    (edge,) = team.version("child").parents
    assert (edge.ref, edge.declared) == ("teacher@v1", f"hf://org/teacher@{commit}")
    assert team.version("child").absent_parents[0].joined == "teacher@v1"
    assert [one.ref for one in team.version("student").parents] == ["teacher@v1"]
    assert find_breaches(team) == []


def test_a_blob_that_was_altered_is_not_sent(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    digest = laptop.version("merge").with_role("weights")[0].digest
    blob = laptop.store.blob_path(digest)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match="which is to be sent, was altered"):
        laptop.push("merge", to=team)
    assert list(team.models()) == []


def test_sending_heals_what_is_damaged_there(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    laptop.push("merge", to=team)
    digest = team.version("merge").with_role("weights")[0].digest
    team.store.blob_path(digest).unlink()
    assert laptop.push("merge", to=team).n_sent == 1
    assert team.verify(read_data=True).ok


def test_a_dry_run_changes_nothing(laptop: Registry, team: Registry) -> None:
    fill(laptop)
    add(team, "run", seed=5)
    head, files = team.events_head(), sorted(team.store.root.rglob("*"))
    done = laptop.push("merge", to=team, dry_run=True, aliases=True)
    assert {one.sent_as: one.ref for one in done.moves}["run@v2"] == "run@v3"
    assert done.dry_run and done.aliases == (("merge@best", "merge@v1"),)
    assert (team.events_head(), sorted(team.store.root.rglob("*"))) == (head, files)


def test_a_registry_is_not_sent_to_itself(laptop: Registry) -> None:
    fill(laptop)
    with pytest.raises(InvalidInput, match="one and the same"):
        laptop.push("merge", to=laptop)
    with pytest.raises(UnknownRef):
        laptop.push("nothing", to=open_registry(laptop.store.root.parent / "x"))


def test_what_is_interrupted_goes_on(laptop: Registry, team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception after the k-th blob: those before it stay, nothing is visible, and only the rest is sent again."""
    monkeypatch.setattr(receiving, "PUBLISHED_AT_ONCE", 2)
    fill(laptop)
    n_blobs, there = 6, 0
    for k in (0, 1, 0, 2):
        seen = 0

        def stop(stage: str, done: int, total: int, at: int = k) -> None:
            nonlocal seen
            seen += stage == "receiving" and done > 0  # each of these tiny blobs is one step
            if seen > at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            laptop.push("merge", to=team, progress=stop)
        assert list(team.models()) == []
        before, there = there, sum(path.is_file() for path in (team.store.root / "blobs").rglob("*"))
        assert there == before + k
    done = laptop.push("merge", to=team)
    assert done.n_sent == n_blobs - there < n_blobs
    assert find_breaches(team, [one.ref for one in done.moves]) == []


def _push_by_steps(laptop: Registry, folder: Path, fuse: int = -1) -> int:
    """Push the run, count its steps (of progress, and statements of either database), and be killed at one of them."""
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == fuse:
            os.kill(os.getpid(), signal.SIGKILL)

    team = open_registry(folder)
    team.models()
    event.listen(Engine, "before_cursor_execute", step)
    try:
        laptop.push("run", to=team, progress=step)
    finally:
        event.remove(Engine, "before_cursor_execute", step)
        team.close()
    return steps


def test_a_sender_that_is_killed_at_a_random_step(
    laptop: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # who is killed leaves there what he worked in
    monkeypatch.setattr(receiving, "PUBLISHED_AT_ONCE", 3)
    monkeypatch.setattr(receiving, "WRITTEN_AT_ONCE", 4)
    add(laptop, "run")
    add_all(laptop, [{"model": "run", "parents": [f"run@v{number}"], "step": number} for number in range(1, 12)])
    steps, partly = _push_by_steps(laptop, tmp_path / "whole"), 0
    for trial, fuse in enumerate(random.Random(0).sample(range(1, steps), 8)):
        folder = tmp_path / f"team{trial}"
        child = os.fork()
        if child == 0:
            try:
                _push_by_steps(laptop, folder, fuse)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        team = open_registry(folder)
        assert find_breaches(team) == []
        partly += 0 < sum(one.n_versions for one in team.models()) < 12
        laptop.push("run", to=team)
        assert [one.number for one in team.history("run")] == list(range(12, 0, -1))
        assert find_breaches(team) == []
        team.close()
    assert partly >= 1


@pytest.mark.slow
def test_a_thousand_versions(laptop: Registry, tmp_path: Path) -> None:
    """No query for each version: ten times as many take about as many statements for every hundred."""
    counted: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        counted.append(statement)

    add(laptop, "run")
    add_all(laptop, [{"model": "run", "parents": [f"run@v{number}"], "step": number} for number in range(1, 1000)])
    event.listen(Engine, "before_cursor_execute", note)
    try:
        few, many = open_registry(tmp_path / "few"), open_registry(tmp_path / "many")
        few.models(), many.models()
        counted.clear()
        assert len(laptop.push("run@v100", to=few).received) == 100
        n_few = len(counted)
        counted.clear()
        assert len(laptop.push("run", to=many).received) == 1000
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(counted) < 11 * n_few and len(counted) < 1000, (len(counted), n_few)
    assert many.version("run@v1000").parents[0].ref == "run@v999"
    assert laptop.push("run", to=many).unchanged
    assert many.verify().ok
    few.close()
    many.close()


def _run(folder: Path, *arguments: str) -> Any:
    options = ["--registry", str(folder / "registry.db"), "--store", str(folder / "store")]
    return CliRunner().invoke(lensreg, [*arguments, *options], obj=Session())


def test_the_commands(laptop: Registry, tmp_path: Path) -> None:
    fill(laptop)
    home, team = tmp_path / "laptop", tmp_path / "team"
    done = _run(home, "push", "merge", "--to", str(team / "registry.db"), "--as", "soup")
    assert done.exit_code == 0, done.output
    assert "5 of 5 versions received, 6 of 6 blobs sent" in done.stderr and "1 have another name" in done.stderr
    assert "soup@v1" in done.stdout
    done = _run(home, "push", "merge", "--to", str(team / "registry.db"), "-o", "json")
    said = json.loads(done.stdout)
    assert set(said) == {
        "schema_version", "registry_id", "location", "digest", "moves", "aliases", "n_blobs", "n_sent", "sent_bytes",
        "dry_run", "unchanged",
    }  # fmt: skip
    assert said["unchanged"] and said["moves"][-1] == {"sent_as": "merge@v1", "ref": "soup@v1", "outcome": "there"}
    shown = _run(team, "show", "soup").stdout
    assert "as merge@v1 from sqlite:///" in shown and "measured elsewhere" in shown
    assert "there: #" in shown and "version.registered" in shown
    done = _run(home, "pull", "soup", "--from", str(team / "registry.db"))
    assert "nothing has changed" in done.stderr
    done = _run(home, "push", "merge", "--to", "postgresql://nowhere/x")
    assert done.exit_code == 2 and "--to-store" in done.stderr
    exported = _run(home, "export", "merge", str(tmp_path / "merge.tar"))
    digest = exported.stdout.strip()
    third = tmp_path / "third"
    refused = _run(third, "import", str(tmp_path / "merge.tar"), "--expect", "0" * 64)
    assert refused.exit_code == 1 and "not the one that was expected" in str(refused.exception)
    done = _run(third, "import", str(tmp_path / "merge.tar"), "--expect", digest)
    assert done.exit_code == 0 and "5 of 5 versions received" in done.stderr
