"""A fork waits for other threads in the middle of SQLite, and neither for ever nor for itself."""

from __future__ import annotations

import threading
import time

import pytest

from registry import Registry, forks
from tests.faults.inside import Interrupt
from tests.patience import PATIENCE_SECONDS
from tests.processes import run_code
from tests.records import record

FORK_IN_WRITE = """
    import threading, time
    from registry import Registry, engines
    from tests.records import record, add_version
    engines.BUSY_SECONDS = 5
    registry = Registry(values["url"], values["store"])
    record(registry, "m")
    inside = threading.Event()
    def write():
        with registry.database.write() as connection:
            add_version(connection, "m")
            inside.set()
            time.sleep(0.5)
    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    child = os.fork()
    ref = record(registry, "child" if child == 0 else "m").ref
    if child == 0:
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    thread.join()
    print(ref, status, registry.resolve("child").ref, registry.verify_events())
    registry.close()
"""


def test_a_child_forked_while_a_thread_writes_can_write(registry: Registry) -> None:
    """SQLite's memory of the other thread's lock would be copied into it, and stay there."""
    registry.close()
    url = str(registry._unprepared.url.database)
    assert run_code(FORK_IN_WRITE, url=url, store=registry.store.root) == ["m@v3 0 child@v1 None"]


def test_a_fork_does_not_wait_for_ever_and_not_for_its_own_thread(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "PATIENCE_SECONDS", 2)
    record(registry, "m")

    def seconds_until_forked() -> float:
        started = time.monotonic()
        forks._wait_for_others()
        forks._go_on()
        return time.monotonic() - started

    assert seconds_until_forked() < 2
    with registry.database.read():
        assert seconds_until_forked() < 2
        found: list[float] = []
        other = threading.Thread(target=lambda: found.append(seconds_until_forked()))
        other.start()
        other.join()
        assert 2 <= found[0] < PATIENCE_SECONDS
    assert seconds_until_forked() < 2


def test_an_interrupt_at_any_step_keeps_neither_threads_nor_forks_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lock, it stayed locked for good where the interrupt came between the block's end and the lock's."""

    def use() -> None:
        with forks.keep_from_forking():
            pass

    monkeypatch.setattr(forks, "PATIENCE_SECONDS", 2 * PATIENCE_SECONDS)  # or a fork that waits would give up in time
    counter = Interrupt()
    counter.run(use)
    for n in range(1, counter.n_seen + 1):
        kept = Interrupt(n).run(use)
        assert isinstance(kept, KeyboardInterrupt | None)
        del kept
        for work in (use, lambda: (forks._wait_for_others(), forks._go_on())):
            other = threading.Thread(target=work, daemon=True)
            other.start()
            other.join(timeout=PATIENCE_SECONDS)
            assert not other.is_alive(), f"after an interrupt at step {n}"
