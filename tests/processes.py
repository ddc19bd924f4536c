"""Run work in several processes at once; they are forked from a small server, so they start fast and share nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.records", "alembic.command", "psycopg"])
_SECONDS = 120


def run_at_once(work: Callable[..., Any], *args: Any, n: int = 8) -> list[Any]:
    """Call `work(index, *args)` in `n` processes, let go at one moment; return the results, or raise what one raised.

    `work` is a function of a module.
    """
    barrier = _CONTEXT.Barrier(n)
    with _CONTEXT.Pool(n, _set_barrier, (barrier,)) as pool:
        results = pool.starmap_async(_wait_and_work, [(work, index, *args) for index in range(n)], chunksize=1)
        return results.get(_SECONDS)


def start(work: Callable[..., Any], *args: Any) -> ForkServerProcess:
    """Start `work(*args)` in a process of its own, to be killed or waited for."""
    process = _CONTEXT.Process(target=work, args=args, daemon=True)
    process.start()
    return process


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _wait_and_work(work: Callable[..., Any], index: int, *args: Any) -> Any:
    _barrier.wait(_SECONDS)
    return work(index, *args)
