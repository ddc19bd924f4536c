"""Many versions at once, in threads and processes: measured once each, as they were meant when they were sent."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from registry import Registry
from registry.errors import (
    ClusterUnavailable,
    InvalidInput,
    RegistryError,
    SchemaOutdated,
    UnknownRef,
    VersionRetired,
    VocabularyMismatch,
    WorkerError,
    WorkerLost,
    WorkerMismatch,
)
from registry.executors import Place, Task, run_tasks
from registry.methods.comparing import compare_one
from registry.orders import carry_out, give_orders
from registry.progress import Progress, no_progress
from registry.worker import Pin, add_work, close_opened, describe_registry, run_in_worker
from tests.conftest import make_database
from tests.patience import must_not_hang
from tests.waiting_suite import Waiting, install_waiting, list_measured, wait_until_gone

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")

REFS = [f"m@v{number}" for number in range(1, 5)]


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return install_waiting(tmp_path, monkeypatch)


@pytest.fixture
def many(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry with four versions of `m`."""
    for seed in range(len(REFS)):
        registry.register("m", make_checkpoint("gpt2", seed=seed), parity="skip")
    return registry


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_opened()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def _is_told(registry: Registry, given: list[tuple[str, int, int]]) -> Progress:
    return lambda stage, done, total: given.append((stage, done, total))


@pytest.mark.slow
def test_processes_measure_what_one_process_measures(many: Registry, waiting: Waiting) -> None:
    waiting.spoil("m@v2")
    given: list[tuple[str, int, int]] = []
    came: list[str] = []
    options: dict[str, Any] = {"parameters": waiting.parameters, "require": ["norm < 1"]}
    runs = many.validate(
        ["m@v3", "m@v2", "m", "m@v1"],
        "waiting",
        workers=2,
        progress=_is_told(many, given),
        done=lambda run: came.append(run.ref),
        **options,
    )
    assert [run.ref for run in runs] == ["m@v3", "m@v2", "m@v4", "m@v1"], "in the order in which they were named"
    assert sorted(came) == REFS
    assert [run.error for run in runs] == [None, "ZeroDivisionError: as it was told", None, None]
    assert [run.passed for run in runs] == [False] * 4
    assert all(run.is_new and run.is_recorded for run in runs)
    assert os.getpid() not in {process for _, process in waiting.started()}
    assert [one for one in given if one[0] == "versions"] == [("versions", number, 4) for number in range(5)]
    assert [one for one in given if one[0] == "failed"][-1] == ("failed", 1, 4)
    there = list_measured(many, REFS)
    n_started = len(waiting.started())
    again = many.validate(["m@v1", "m@v3", "m@v4"], "waiting", workers=2, **options)
    assert [run.is_new for run in again] == [False] * 3, "it goes on where it was"
    assert len(waiting.started()) == n_started
    here = many.validate(REFS, "waiting", again=True, **options)
    now = list_measured(many, REFS)
    assert len(now) == 2 * len(there)
    assert [run.ref for run in here] == REFS
    for index, one in enumerate(there):
        mine = now[2 * index + 1]
        assert mine[:3] == one[:3]
        if one[2] != "failed":
            assert mine == one
    assert many.verify_events() is None


@pytest.mark.slow
def test_what_a_killed_process_had_is_measured_by_another_once(many: Registry, waiting: Waiting) -> None:
    waiting.hold("m@v2")

    def kill() -> None:
        os.kill(waiting.wait_for("m@v2"), signal.SIGKILL)
        waiting.release("m@v2")

    killer = threading.Thread(target=kill)
    killer.start()
    runs = many.validate(REFS, "waiting", parameters=waiting.parameters, workers=2)
    killer.join()
    assert [(run.ref, run.error, run.is_new) for run in runs] == [(ref, None, True) for ref in REFS]
    assert [one[0] for one in list_measured(many, REFS)] == REFS, "each is measured exactly once"
    assert [ref for ref, _ in waiting.started()].count("m@v2") == 2


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_is_an_error_and_repeating_goes_on(
    many: Registry, waiting: Waiting
) -> None:
    waiting.hold("m@v2")

    def kill() -> None:
        for n in (1, 2):
            os.kill(waiting.wait_for("m@v2", n), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerLost, match="before they were done with m@v2") as caught:
        many.validate(["m@v1", "m@v2"], "waiting", parameters=waiting.parameters, workers=1)
    killer.join()
    assert caught.value.tasks == ("m@v2",)
    waiting.release("m@v2")
    runs = many.validate(["m@v1", "m@v2"], "waiting", parameters=waiting.parameters)
    assert [run.is_new for run in runs] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_processes_end_with_whoever_started_them(many: Registry, waiting: Waiting, how: str) -> None:
    for ref in REFS:
        waiting.hold(ref)
    command = [sys.executable, "-m", "cli.main", "validate", *REFS, "--suite", "waiting", "--workers", "2"]
    command += ["--set", f"folder={waiting.folder}", "--registry", str(many.database.url.database)]
    sender = subprocess.Popen([*command, "--store", str(many.store)], stderr=subprocess.PIPE, text=True)
    started = [waiting.wait_for(ref) for ref in REFS[:2]]
    with must_not_hang():
        sender.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
        _, said = sender.communicate(timeout=60)
    assert wait_until_gone(started)
    assert "Traceback" not in said
    assert len(waiting.started()) == 2, "what was not started is not"
    assert list_measured(many, REFS) == []


def test_an_alias_that_moves_meanwhile_does_not_move_what_is_measured(
    many: Registry, waiting: Waiting, threads: ThreadPoolExecutor
) -> None:
    many.set_alias("m@best", "m@v2")
    waiting.hold("m@v1")

    def move() -> None:
        waiting.wait_for("m@v1")
        many.set_alias("m@best", "m@v3")
        waiting.release("m@v1")

    mover = threading.Thread(target=move)
    mover.start()
    with ThreadPoolExecutor(1) as one:
        runs = many.validate(["m@v1", "m@best"], "waiting", parameters=waiting.parameters, executor=one)
    mover.join()
    assert [run.ref for run in runs] == ["m@v1", "m@v2"]
    assert [one[0] for one in list_measured(many, REFS)] == ["m@v1", "m@v2"]
    runs = many.validate(["m@v3", "m@best"], "waiting", parameters=waiting.parameters, executor=threads)
    assert [run.ref for run in runs] == ["m@v3", "m@v3"]
    assert [one[0] for one in list_measured(many, REFS)] == ["m@v1", "m@v2", "m@v3"], "which are one version"


def test_an_alias_that_is_a_parameter_is_held_fast_too(many: Registry, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4 w5")
    many.set_alias("m@best", "m@v2")
    options: dict[str, Any] = {"data": tmp_path / "texts.txt", "parameters": {"parent": "m@best"}}
    (order,), _ = _order(many, "drift", {"data": str(tmp_path / "texts.txt"), "parent": "m@best"})
    many.set_alias("m@best", "m@v3")
    assert carry_out(many, order, no_progress).metrics[0].details["parent"] == "m@v2"
    (run,) = many.validate("m@v1", "drift", **options)
    assert (run.is_new, run.metrics[0].details["parent"]) == (True, "m@v3"), "against another parent it is another run"


def _order(registry: Registry, suite: str, parameters: dict[str, Any]) -> Any:
    versions = [registry.version("m@v1")]
    return give_orders(
        registry, versions, suite, parameters, require=(), dtype=None, device=None, again=False, is_sent=True
    )


def test_an_order_that_is_carried_out_twice_is_recorded_once(many: Registry, waiting: Waiting) -> None:
    """As a worker does that is thought lost and is not, and the one that takes its place."""
    (order,), _ = _order(many, "waiting", waiting.parameters)
    waiting.hold("m@v1")
    with ThreadPoolExecutor(2) as both:
        futures = [both.submit(carry_out, many, order, no_progress) for _ in range(2)]
        waiting.wait_for("m@v1", 2)
        waiting.release("m@v1")
        one, other = (future.result() for future in futures)
    assert one == other, "what is recorded is what both say"
    assert len(list_measured(many, REFS)) == 1
    assert len([event for event in many.events() if event.action == "version.validated"]) == 1
    assert carry_out(many, order, no_progress) == one
    assert len(waiting.started()) == 2


def test_a_version_that_cannot_be_measured_does_not_stop_the_others(
    many: Registry, waiting: Waiting, threads: ThreadPoolExecutor
) -> None:
    waiting.hold("m@v1")
    waiting.hold("m@v2")

    def retire() -> None:
        waiting.wait_for("m@v1")
        many.retire("m@v3", force=True)
        waiting.release("m@v1")
        waiting.release("m@v2")

    retiring = threading.Thread(target=retire)
    retiring.start()
    with ThreadPoolExecutor(1) as one:
        runs = many.validate(REFS, "waiting", parameters=waiting.parameters, executor=one)
    retiring.join()
    assert [run.error is None for run in runs] == [True, True, False, True]
    assert "retired" in (runs[2].error or "")
    assert (runs[2].is_recorded, runs[2].metrics[0].details["error"]) == (False, VersionRetired.code)
    with pytest.raises(UnknownRef):
        many.validate(["m@v1", "nobody"], "waiting", parameters=waiting.parameters, executor=threads)


class _Awkward(Exception):
    """Cannot be made again from its text, which is how exceptions are unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def raise_awkward(registry: Registry, number: int, progress: Progress) -> int:
    if number == 1:
        raise _Awkward("one", "other")
    if number == 2:
        raise InvalidInput("number two", hint="Take another.", number=number)
    return number


def test_errors_come_back_whole(many: Registry) -> None:
    outcomes = run_tasks(many, raise_awkward, [Task(str(number), (number,)) for number in range(4)], Place(workers=1))
    assert [one.value for one in outcomes] == [0, None, None, 3]
    awkward, ours = outcomes[1].error, outcomes[2].error
    assert type(awkward) is WorkerError
    assert awkward.message == "_Awkward: one other"
    assert "raise_awkward" in (awkward.hint or ""), "the traceback is that of the worker"
    assert type(ours) is InvalidInput
    assert (ours.message, ours.hint, ours.fields) == ("number two", "Take another.", {"number": 2})


def tell_ref(registry: Registry, ref: str, progress: Progress) -> str:
    return registry.version(ref).ref


def _make_call(registry: Registry, ref: str = "m@v1", digest: str | None = None) -> dict[str, Any]:
    """Make a call that finds nothing of its sender in this process, as in another one."""
    call = describe_registry(registry)
    return add_work({**call, "token": "of another process"}, Registry, tell_ref, (ref,), (Pin(ref, digest),))


def test_a_worker_that_has_other_code_says_so_before_it_reads_anything(many: Registry) -> None:
    assert run_in_worker(_make_call(many)) == "m@v1"
    call = _make_call(many) | {"code": "0.0.9", "schema": "0001", "work": b"something new"}
    with pytest.raises(WorkerMismatch, match=r"has lens-registry 0\.1\.0 .*is of lens-registry 0\.0\.9") as caught:
        run_in_worker(call)
    assert (caught.value.sender, "0.1.0" in (caught.value.worker or "")) == ("0.0.9 (0001)", True)
    with pytest.raises(WorkerMismatch, match="schema 0001"):
        run_in_worker(_make_call(many) | {"schema": "0001"})


def test_a_worker_that_sees_another_sqlite_file_refuses(
    many: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_checkpoint: Callable[..., Path]
) -> None:
    path = Path(str(many.database.url.database))
    call = _make_call(many)
    nowhere = tmp_path / "elsewhere" / "registry.db"
    with pytest.raises(WorkerMismatch, match="does not see the file of"):
        run_in_worker(call | {"url": f"sqlite:///{nowhere}"})
    assert not nowhere.parent.exists(), "and none is made"
    many.database.close()
    shutil.copyfile(path, tmp_path / "copy.db")
    with pytest.raises(WorkerMismatch, match="does not see the file of") as caught:
        run_in_worker(call | {"url": f"sqlite:///{tmp_path / 'copy.db'}"})
    assert "Postgres" in (caught.value.hint or "")
    with pytest.raises(WorkerMismatch, match="on another machine"):
        run_in_worker(
            call | {"file": ["another system", *call["file"][1:]]} | {"url": f"sqlite:///{path.parent}/./{path.name}"}
        )
    monkeypatch.setenv("LENSREG_URL", str(tmp_path / "copy.db"))  # of somebody else: what was sent is the right one
    assert run_in_worker(call | {"store": f"{many.store}/../{many.store.root.name}"}) == "m@v1"


def test_a_worker_that_sees_another_store_or_other_weights_refuses(
    many: Registry, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(WorkerMismatch, match=r"opens the store .*which is not there, or not"):
        run_in_worker(_make_call(many) | {"store": str(tmp_path / "nothing")})
    with pytest.raises(WorkerMismatch, match="m@v1 has other weights") as caught:
        run_in_worker(_make_call(many, digest="0" * 64))
    assert caught.value.worker == many.version("m@v1").weights_digest
    with pytest.raises(UnknownRef):
        run_in_worker(_make_call(many, "m@v9"))


def test_a_worker_that_sees_another_postgres_refuses(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_checkpoint: Callable[..., Path]
) -> None:
    with make_database(postgres_url) as url, make_database(postgres_url) as other_url:
        one, other = Registry(url, tmp_path / "store"), Registry(other_url, tmp_path / "other")
        one.register("m", make_checkpoint("gpt2"), parity="skip")
        call = _make_call(one)
        fresh = call | {"url": other_url}
        with pytest.raises(WorkerMismatch, match="which is another, and not"):
            run_in_worker(fresh)
        assert other.status()["schema"] is None, "and none is set up"
        other.register("m", make_checkpoint("gpt2", seed=1), parity="skip")
        with pytest.raises(WorkerMismatch, match="which is another, and not"):
            run_in_worker(fresh)
        with pytest.raises(WorkerMismatch, match="which is an older copy of it"):
            run_in_worker(call | {"head": "f" * 64})
        monkeypatch.setenv("LENSREG_URL", url)  # where the worker's own environment has the right one, that is opened
        monkeypatch.setenv("LENSREG_STORE", str(tmp_path / "store"))
        assert run_in_worker(call | {"url": "postgresql+psycopg://nobody@localhost:1/gone"}) == "m@v1"
        monkeypatch.delenv("LENSREG_URL")
        with pytest.raises(WorkerMismatch, match="cannot be used") as caught:
            run_in_worker(call | {"url": "postgresql+psycopg://nobody@localhost:1/gone2"})
        assert "Passwords are not sent" in (caught.value.hint or "")
        one.close()
        other.close()


def test_no_password_is_sent(tmp_path: Path, make_checkpoint: Callable[..., Path], fresh_postgres: str) -> None:
    import sqlalchemy

    secret = "pg-secret-that-is-never-sent"
    url = sqlalchemy.make_url(fresh_postgres)
    for given in (
        url.set(password=secret),
        url.update_query_dict({"password": secret}),
    ):
        registry = Registry(given.render_as_string(hide_password=False), tmp_path / "store")
        registry.register("m", make_checkpoint("gpt2"), parity="skip")
        assert secret not in repr(_make_call(registry)), "schedulers log what they are given"
        assert secret in repr(describe_registry(registry, with_password=True)), "and by a pipe it is"
        assert secret not in str(registry.database), "messages show it"
        registry.close()


def test_results_that_went_into_a_copy_are_found_out(
    many: Registry, tmp_path: Path, waiting: Waiting, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was made after sending knows all that the sender knows."""
    many.database.close()
    shutil.copyfile(str(many.database.url.database), tmp_path / "copy.db")
    copy = Registry(str(tmp_path / "copy.db"), many.store.root)

    class Astray(ThreadPoolExecutor):
        """Sends its work to where the copy is open."""

        def submit(self, function: Any, call: Any, /, *arguments: Any, **options: Any) -> Any:
            return super().submit(function, {**call, "token": describe_registry(copy)["token"]})

    with (
        Astray(1) as executor,
        pytest.raises(WorkerMismatch, match=r"recorded their results for m@v1, and .* has none"),
    ):
        many.validate("m@v1", "waiting", parameters=waiting.parameters, executor=executor)
    copy.close()


def test_other_data_at_the_same_path_is_refused(many: Registry, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("w1 w2 w3 w4 w5")
    (order,), _ = _order(many, "loss", {"data": str(path)})
    path.write_text("w1 w2 w3 w4 w6")  # as another machine's file is
    with pytest.raises(WorkerMismatch, match="holds other data"):
        carry_out(many, order, no_progress)
    gone = tmp_path / "gone.txt"
    gone.write_text("w1 w2 w3")
    (order,), _ = _order(many, "loss", {"data": str(gone)})
    gone.unlink()
    with pytest.raises(WorkerMismatch, match="is not there") as caught:
        carry_out(many, order, no_progress)
    assert "shared file system" in (caught.value.hint or "")


def test_versions_are_compared_on_the_data_that_the_sender_means(
    many: Registry, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("w1 w2 w3 w4 w5 w6")
    (found,) = many.compare_many("m@v1", ["m@v2"], data=path, executor=threads)
    assert found.behaviour is not None and found.behaviour.n_tokens > 0
    assert found == many.compare("m@v1", "m@v2", data=path)
    with pytest.raises(WorkerMismatch, match="holds other data"):
        compare_one(many, "m@v1", "m@v2", {"data": str(path)}, "0" * 64, no_progress)


def test_many_versions_are_compared_with_one(
    many: Registry,
    threads: ThreadPoolExecutor,
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    many.register("other", make_checkpoint("qwen2"), parity="skip")
    refs = ["m@v3", "other", "m", "m@v2"]
    options: dict[str, Any] = {"weights": True, "prompts": ["w1 w2 w3", [5, 6, 7]], "processed": False}
    came: list[str] = []
    found = many.compare_many("m@v1", refs, executor=threads, done=lambda one: came.append(one.b), **options)
    assert [(one.a, one.b) for one in found] == [("m@v1", ref) for ref in ["m@v3", "other@v1", "m@v4", "m@v2"]]
    assert sorted(came) == ["m@v2", "m@v3", "m@v4", "other@v1"]
    alike = [found[0], found[2], found[3]]
    assert pickle.loads(pickle.dumps(alike)) == alike
    for one in alike:
        assert one == many.compare("m@v1", one.b, **options)
        assert one.weights is not None
        assert one.weights.n_changed > 0
    said: list[tuple[str, int, int]] = []
    again = many.compare_many("m@v1", refs, progress=lambda *one: said.append(one), **options)
    assert ("failed", 1, 4) in said  # what could not be compared in part counts
    assert [again[0], again[2], again[3]] == alike
    for other in (found[1], pickle.loads(pickle.dumps(found[1])), again[1]):
        assert other.weights is not None, "what can be compared is"
        assert other.behaviour is None
        (obstacle,) = other.obstacles
        assert isinstance(obstacle, VocabularyMismatch)
        assert "tokens of m@v1 and other@v1 mean different things" in obstacle.message
    place = ["--registry", str(many.database.url.database), "--store", str(many.store)]
    with pytest.raises(SystemExit):
        main(["diff", "m@v1", *refs, "--raw", "--weights", "--prompt", "w1 w2 w3", *place])
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines[-4:]] == ["m@v3", "other@v1", "m@v4", "m@v2"]
    assert "other@v1: " in err
    with pytest.raises(SystemExit):
        main(["diff", "m@v1", *refs, "-o", "json", *place])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["b"], row["n_fields"] > 0, row["kl"]) for row in rows] == [
        (ref, ref == "other@v1", None) for ref in ("m@v3", "other@v1", "m@v4", "m@v2")
    ]


def test_places_that_cannot_be_meant_are_refused(many: Registry, threads: ThreadPoolExecutor) -> None:
    with pytest.raises(InvalidInput, match="exclude each other"):
        many.validate("m", "structure", workers=2, executor=threads)
    with pytest.raises(InvalidInput, match="0 is no number of workers"):
        many.validate("m", "structure", workers=0)
    with pytest.raises(ClusterUnavailable, match="No Dask scheduler"):
        many.validate("m", "structure", dask="nonsense://here")


def test_an_old_schema_is_the_workers_error(many: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import registry.schema
    import registry.worker

    call = _make_call(many) | {"store": f"{many.store}/."}
    monkeypatch.setattr(registry.schema, "SCHEMA_REVISION", "9999")
    with pytest.raises(RegistryError) as caught:
        run_in_worker(call)
    assert isinstance(caught.value, SchemaOutdated | WorkerMismatch)
