"""How long writers of SQLite wait for their turn on a busy machine: as ours do, and in the usual ways.

python -m benchmarks.writers_queue
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.queues
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import filelock

from registry.writers_queue import wait_for_turn

N_PROCESSES, N_TURNS, HOLD_SECONDS, PATIENCE_SECONDS = 32, 15, 0.02, 120
N_BUSY = 8
"""Processes at work beside them: whoever is woken does not run at once then, and another is there first."""
_FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def kernels_lock(path: str) -> Iterator[None]:
    """Have the turn by one lock that the kernel gives, without a timeout."""
    with Path(path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


WAYS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "filelock, every 50 ms": partial(filelock.FileLock, timeout=PATIENCE_SECONDS, poll_interval=0.05),
    "filelock, every 5 ms": partial(filelock.FileLock, timeout=PATIENCE_SECONDS, poll_interval=0.005),
    "the kernel's lock, flock": kernels_lock,
    "two of them, as here": partial(wait_for_turn, seconds=PATIENCE_SECONDS),
}


def take_turns(way: str, path: str, barrier: Barrier, sender: Any) -> None:
    """Take turns, and send how long each was waited for."""
    waits = []
    barrier.wait()
    for _ in range(N_TURNS):
        started = time.perf_counter()
        with WAYS[way](path):
            waits.append(time.perf_counter() - started)
            time.sleep(HOLD_SECONDS)
    sender.put(waits)


def be_busy() -> None:
    """Work on, until killed."""
    while True:
        pass


def main() -> None:
    """Print a line for each way."""
    busy = [_FORK.Process(target=be_busy, daemon=True) for _ in range(N_BUSY)]
    for process in busy:
        process.start()
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            barrier, queue = _FORK.Barrier(N_PROCESSES), _FORK.Queue()
            arguments = (way, str(Path(folder) / "lock"), barrier, queue)
            processes = [_FORK.Process(target=take_turns, args=arguments) for _ in range(N_PROCESSES)]
            for process in processes:
                process.start()
            waits = sorted(wait for _ in processes for wait in queue.get())
            for process in processes:
                process.join()
        p99, longest = waits[int(0.99 * len(waits))], waits[-1]
        print(f"{way}: {N_PROCESSES} processes, 99 of 100 waited at most {p99:.2f} s, the longest {longest:.2f} s")


if __name__ == "__main__":
    main()
