"""Run work in other processes: several at once, one to be killed, or one with mounts of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# forked from a small server, so they start fast and share nothing with pytest
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


def run_code(code: str, *, mounts: str | None = None, with_rights: bool = True, **values: Any) -> list[str]:
    """Run `code` in a fresh interpreter, where `values` holds the keywords; return the lines it prints.

    `mounts` are shell commands that mount something, which only that process sees. Without rights, root has to respect
    the permissions of files like anybody else.
    """
    code = f"import json, os\nvalues = json.loads(os.environ['VALUES'])\n{textwrap.dedent(code)}"
    command = [sys.executable, "-W", "error", "-c", code]
    if mounts is not None:
        command = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]
    if not with_rights and os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    environment = os.environ | {"VALUES": json.dumps(values, default=str)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _can_mount() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-m", "true"], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="mounts of one's own need Linux and the right to make them")
