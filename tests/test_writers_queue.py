"""The queue in front of SQLite's lock: turns in order, places that are left, and owners that die."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.writers_queue import wait_for_turn
from tests.patience import must_not_hang, wait_for
from tests.processes import run_at_once, run_code, start

HOLD_SECONDS = 0.02


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[str]:
    before = _count_what_is_kept()
    yield str(tmp_path / "lock")
    assert wait_for(lambda: _count_what_is_kept() <= before), "a thread or a descriptor stays"


def _count_what_is_kept() -> int:
    return threading.active_count() + len(list(Path("/proc/self/fd").iterdir()))


def _take_turns(index: int, lock: str, n: int) -> list[int]:
    """Return how many turns others had, each time, between asking for one and having it; a byte stands for a turn."""
    had = Path(f"{lock}.had")
    had.touch()
    overtaken = []
    for _ in range(n):
        before = had.stat().st_size
        with wait_for_turn(lock, 60):
            overtaken.append(had.stat().st_size - before)
            with had.open("ab") as file:
                file.write(b".")
            time.sleep(HOLD_SECONDS)
    return overtaken


def _be_busy() -> None:
    while True:
        pass


@contextlib.contextmanager
def _busy_machine() -> Iterator[None]:
    """Have more at work than there are cores, so that whoever is woken does not run at once."""
    processes = [start(_be_busy) for _ in range(8)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def test_nobody_waits_much_longer_than_all_others_take(tmp_path: Path) -> None:
    """Had by polling, or by a lock that whoever gave it back can have again, some wait for nearly all turns of all."""
    n_processes, n = 16, 10
    with _busy_machine():
        taken = run_at_once(_take_turns, str(tmp_path / "lock"), n, n=n_processes)
    overtaken = [one for some in taken for one in some]
    assert len(overtaken) == n_processes * n
    assert max(overtaken) < 4 * n_processes


def test_turns_are_one_at_a_time_in_threads_too(lock: str) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with wait_for_turn(lock, 60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@contextlib.contextmanager
def _held_elsewhere(lock: str) -> Iterator[None]:
    """Have another thread hold the turn: one that asks for it twice would have been cut off in between."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with wait_for_turn(lock, 1):
            is_held.set()
            is_over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(60)
    yield
    is_over.set()
    thread.join()


def test_whoever_asks_anew_was_cut_off_and_ends_the_turn_he_had(lock: str) -> None:
    cut_off = wait_for_turn(lock, 1)
    cut_off.__enter__()
    with wait_for_turn(lock, 0.5):
        pass


def test_a_place_that_was_left_does_not_keep_the_turn(lock: str) -> None:
    with _held_elsewhere(lock):
        started = time.perf_counter()
        with must_not_hang(), pytest.raises(TimeoutError), wait_for_turn(lock, 0.1):
            pass
        assert time.perf_counter() - started >= 0.1
    with wait_for_turn(lock, 5):
        pass


def test_whoever_is_interrupted_while_waiting_leaves(lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _held_elsewhere(lock):
        monkeypatch.setattr(threading.Event, "wait", _interrupt)
        with pytest.raises(KeyboardInterrupt), wait_for_turn(lock, 5):
            pass
        monkeypatch.undo()
    with wait_for_turn(lock, 5):
        pass


def _interrupt(self: threading.Event, timeout: float | None = None) -> bool:
    if self._flag:  # type: ignore[attr-defined]  # that of a thread that has started
        return True
    raise KeyboardInterrupt


def _hold(lock: str, told: str) -> None:
    with wait_for_turn(lock, 5):
        Path(told).touch()
        time.sleep(60)


def test_a_process_that_is_killed_gives_its_turn_back(tmp_path: Path, lock: str) -> None:
    holder = start(_hold, lock, str(tmp_path / "told"))
    while not (tmp_path / "told").exists():
        time.sleep(0.01)
    with pytest.raises(TimeoutError), wait_for_turn(lock, 0.1):
        pass
    holder.kill()
    holder.join()
    holder.close()
    with wait_for_turn(lock, 5):
        pass


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_turn(tmp_path: Path) -> None:
    code = """
        import time
        from registry.writers_queue import wait_for_turn
        with wait_for_turn(values["lock"], 5):
            child = os.fork()
            if not child:
                time.sleep(60)
        with wait_for_turn(values["lock"], 1):
            print("again")
        os.kill(child, 9)
        os.waitpid(child, 0)
    """
    assert run_code(code, lock=tmp_path / "lock") == ["again"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_child_that_was_forked_as_a_file_was_opened_does_not_keep_the_turn(tmp_path: Path, number: int) -> None:
    """Another thread may fork at any moment, also before the file is known as one that the child must close."""
    code = """
        import time
        from io import FileIO
        from registry import writers_queue

        children, opened = [], []

        class ForkingFile(FileIO):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                opened.append(1)
                if len(opened) == values["number"]:
                    children.append(os.fork())
                    if not children[0]:
                        time.sleep(60)

        writers_queue.FileIO = ForkingFile
        for _ in range(2):
            with writers_queue.wait_for_turn(values["lock"], 1):
                print("mine")
        os.kill(children[0], 9)
        os.waitpid(children[0], 0)
    """
    assert run_code(code, lock=tmp_path / "lock", number=number) == ["mine", "mine"]


def test_a_lock_file_is_not_followed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError), wait_for_turn(str(tmp_path / "lock"), 1):
        pass
    assert not (tmp_path / "victim").exists()
