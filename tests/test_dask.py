"""A real cluster: two Dask workers, Postgres and S3 for all; one is killed, others see the wrong registry."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from distributed import Client

from registry import Registry
from registry.errors import WorkerMismatch
from registry.orders import carry_out
from registry.worker import add_work, describe_registry, run_in_worker
from tests.object_server import ObjectServer
from tests.patience import wait_for
from tests.waiting_suite import Waiting, install_waiting, list_measured

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*registered without verification"),
]

REFS = [f"m@v{number}" for number in range(1, 7)]


@dataclass
class Cluster:
    """A scheduler and what it said to its log."""

    address: str
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self, name: str, variables: Mapping[str, str]) -> None:
        """Start a worker with a nanny that starts it again when it is killed, with nothing of ours but `variables`."""
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--name", name, "--nthreads", "1"]
        command += ["--no-dashboard", "--local-directory", str(self.log.parent), "--memory-limit", "0"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("LENSREG_", "PG", "AWS_"))}
        with self.log.open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, env={**clean, **variables}, stdout=log, stderr=log, start_new_session=True)
            )


@pytest.fixture
def patience() -> int:
    """How many deaths of workers a task may survive, beside one."""
    return 3


@pytest.fixture
def cluster(tmp_path: Path, waiting: Waiting, patience: int) -> Iterator[Cluster]:
    """A scheduler that has no workers yet."""
    log, place = tmp_path / "log", tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", str(place)]
    with log.open("ab") as file:
        variables = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(patience)}
        # a worker that dies is held against all that it was given, also what it had not begun
        variables["DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION"] = "1.0"
        scheduler = subprocess.Popen(command, env=variables, stdout=file, stderr=file, start_new_session=True)
    running = Cluster("", log, [scheduler])
    try:
        # the file is there before it is written
        assert wait_for(lambda: place.is_file() and place.read_text().endswith("}"), 120), log.read_text()
        running.address = json.loads(place.read_text())["address"]
        yield running
    finally:
        for one in running.processes:
            os.killpg(one.pid, signal.SIGKILL)  # with the workers of a nanny; it would wait for them to close
            one.wait()


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return install_waiting(tmp_path, monkeypatch)


@pytest.fixture
def shared(
    fresh_postgres: str, objects: ObjectServer, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> Iterator[Registry]:
    """A registry in Postgres and S3 with six versions of `m`."""
    registry = Registry(fresh_postgres, objects.url())
    for seed in range(len(REFS)):
        registry.register("m", make_checkpoint("gpt2", seed=seed), parity="skip")
    yield registry
    registry.close()


def _variables(registry: Registry, tmp_path: Path, name: str) -> dict[str, str]:
    """What a worker's environment holds: its own cache, and the credentials, which are not sent."""
    from tests.object_server import CREDENTIALS

    return {
        **CREDENTIALS,
        "LENSREG_URL": registry.database.url.render_as_string(hide_password=False),
        "LENSREG_STORE": str(registry.settings.store),
        "LENSREG_STORE_CACHE": str(tmp_path / name / "stores"),
        "LENSREG_STAMPS": str(tmp_path / name / "stamps"),
    }


def test_a_worker_is_killed_and_every_version_is_measured_once(
    shared: Registry, cluster: Cluster, waiting: Waiting, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        cluster.start_worker(name, _variables(shared, tmp_path, name))
    waiting.hold("m@v2")
    waiting.spoil("m@v5")

    def kill() -> None:
        os.kill(waiting.wait_for("m@v2"), signal.SIGKILL)
        waiting.release("m@v2")

    killer = threading.Thread(target=kill)
    killer.start()
    options = {"parameters": waiting.parameters, "require": ["norm < 1"]}
    runs = shared.validate(REFS, "waiting", dask=cluster.address, **options)  # type: ignore[arg-type]
    killer.join()
    assert [run.ref for run in runs] == REFS
    assert [run.error for run in runs] == [None] * 4 + ["ZeroDivisionError: as it was told", None]
    assert all(run.is_new and run.is_recorded for run in runs)
    started = waiting.started()
    assert [ref for ref, _ in started].count("m@v2") == 2, "it was measured anew"
    assert len({process for _, process in started}) >= 2
    assert os.getpid() not in {process for _, process in started}
    there = list_measured(shared, REFS)
    assert [row[0] for row in there] == REFS, "each is recorded exactly once"
    shared.validate(REFS, "waiting", again=True, **options)  # type: ignore[arg-type]
    now = list_measured(shared, REFS)
    for index, row in enumerate(there):
        assert now[2 * index] == row
        assert now[2 * index + 1][:5] == row[:5]
        assert row[2] == "failed" or now[2 * index + 1] == row
    assert shared.verify_events() is None
    assert "a-secret-that-is-never-printed" not in cluster.log.read_text()


def test_a_run_is_verified_on_a_cluster_and_its_versions_are_compared_there(
    fresh_postgres: str, objects: ObjectServer, cluster: Cluster, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry(fresh_postgres, objects.url())
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    for name in ("one", "two"):
        cluster.start_worker(name, _variables(registry, tmp_path, name))
    steps = (30, 200, 1000)
    for seed, step in enumerate(steps, 1):
        shutil.copytree(make_checkpoint("gpt2", seed=seed), tmp_path / "run" / f"checkpoint-{step}")
    plan = registry.plan_run("run", tmp_path / "run", parent="base")
    stages: list[str] = []
    done = list(
        registry.register_run(plan, dask=cluster.address, progress=lambda stage, done, total: stages.append(stage))
    )
    assert [one.version.ref for _, one in done if one and one.version] == ["run@v1", "run@v2", "run@v3"]
    assert "verifying" not in stages, "that was done elsewhere"
    assert [one.step for one in reversed(registry.history("run"))] == list(steps)
    assert [parent.ref for parent in registry.version("run@v3").parents] == ["run@v2"]
    assert registry.version("run@v2").validations[0].passed is True
    refs = ["run@v3", "run@v1"]
    found = registry.compare_many("base", refs, weights=True, prompts=["w1 w2 w3"], dask=cluster.address)
    assert [(one.a, one.b, one.obstacles) for one in found] == [("base@v1", ref, ()) for ref in refs]
    here = registry.compare("base", "run@v3", weights=True, prompts=["w1 w2 w3"])
    assert found[0].weights == here.weights
    assert found[0].behaviour is not None
    assert here.behaviour is not None
    assert found[0].behaviour.kl == pytest.approx(here.behaviour.kl, rel=1e-5)
    registry.close()


@pytest.mark.parametrize("patience", [0])
def test_a_version_that_kills_its_workers_is_an_error_and_the_others_go_on(
    registry: Registry, cluster: Cluster, waiting: Waiting, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """The scheduler gives it up after as many deaths as it allows, here the first."""
    for seed in range(2):
        registry.register("m", make_checkpoint("gpt2", seed=seed), parity="skip")
    waiting.hold("m@v1")

    def start_and_kill() -> None:
        """Not before both wait for it: a worker that is there is given both at once, and they die together."""
        with Client(cluster.address, set_as_default=False) as client:
            assert wait_for(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 2, 60)
        cluster.start_worker("one", {})
        os.kill(waiting.wait_for("m@v1"), signal.SIGKILL)

    killer = threading.Thread(target=start_and_kill)
    killer.start()
    runs = registry.validate(["m@v1", "m@v2"], "waiting", parameters=waiting.parameters, dask=cluster.address)
    killer.join()
    assert "KilledWorker" in (runs[0].error or "")
    assert (runs[0].is_recorded, runs[1].error) == (False, None)
    assert [row[0] for row in list_measured(registry, ["m@v1", "m@v2"])] == ["m@v2"]


def test_what_a_worker_refuses_comes_back_as_it_is(
    registry: Registry, cluster: Cluster, waiting: Waiting, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Its environment names another registry: that is never written to, and what was sent is opened if it can be."""
    other = Registry(str(tmp_path / "other.db"), tmp_path / "other")
    for one in (registry, other):
        one.register("m", make_checkpoint("gpt2"), parity="skip")
    cluster.start_worker("one", _variables(other, tmp_path, "one"))
    with Client(cluster.address, set_as_default=False) as client:
        sent = describe_registry(registry) | {"url": f"sqlite:///{tmp_path / 'not' / 'here.db'}"}
        call = add_work(sent, Registry, carry_out, (), ())
        with pytest.raises(WorkerMismatch, match=r"does not see the file of .*registry\.db") as caught:
            client.submit(run_in_worker, call).result()
    assert caught.value.worker == f"sqlite:///{tmp_path / 'other.db'}"
    (run,) = registry.validate("m@v1", "waiting", parameters=waiting.parameters, dask=cluster.address)
    assert (run.error, run.is_new) == (None, True), "on this machine a worker sees a SQLite file as we do"
    assert list_measured(other, ["m@v1"]) == []
    assert len(list_measured(registry, ["m@v1"])) == 1
    other.close()
