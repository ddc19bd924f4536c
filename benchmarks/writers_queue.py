"""How long writers of SQLite wait for their turn: in the kernel's queue, as we do, and by asking again and again.

python -m benchmarks.writers_queue
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import filelock

from registry.writers_queue import wait_for_turn

N_PROCESSES, N_TURNS, HOLD_SECONDS, PATIENCE_SECONDS = 32, 15, 0.02, 120
_FORK = multiprocessing.get_context("fork")
WAYS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "filelock, every 50 ms": partial(filelock.FileLock, timeout=PATIENCE_SECONDS, poll_interval=0.05),
    "filelock, every 5 ms": partial(filelock.FileLock, timeout=PATIENCE_SECONDS, poll_interval=0.005),
    "the kernel's queue": partial(wait_for_turn, seconds=PATIENCE_SECONDS),
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


def main() -> None:
    """Print a line for each way."""
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
