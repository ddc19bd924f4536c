"""Children that read pickles, forked from a process that has imported torch already, which takes them seconds each.

All but the start is as it is elsewhere: the task, the limits, the answer, what is left on stderr and the exit code.
tests/test_pickles.py and the hostile tests are about the child itself, and start interpreters as the registry does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path


class WarmChildren:
    """Runs tasks as `registry.sources.pickles.run_python` does, one after the other."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import serve; serve({theirs.fileno()})"]
        with theirs:
            self._server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=Path(__file__).parent.parent
            )
        self._pipe = ours.makefile("rwb", buffering=0)
        ours.close()
        self._turn = threading.Lock()

    def run(self, task_file: Path, errors: Path, seconds: float) -> int:
        """Do the task in a child, and return its exit code. How long it may take is not looked at."""
        with self._turn:
            self._pipe.write(json.dumps([str(task_file), str(errors)]).encode() + b"\n")
            return int(self._pipe.readline())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._server.wait()


def serve(descriptor: int) -> None:
    """Fork a child for each task, until there are no more."""
    import registry.sources.unpickle  # noqa: F401

    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb", buffering=0) as pipe:
        for line in pipe:
            child = os.fork()
            if not child:
                _work(*json.loads(line))
            _, status = os.waitpid(child, 0)
            pipe.write(b"%d\n" % os.waitstatus_to_exitcode(status))


def _work(task_file: str, errors: str) -> None:
    """Do the task as a process of its own would."""
    from registry.sources.unpickle import main

    code = 0
    for flags, path, descriptor in ((os.O_WRONLY, os.devnull, 1), (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, errors, 2)):
        os.dup2(os.open(path, flags), descriptor)
    try:
        main(task_file)
    except BaseException:  # noqa: BLE001 (a fork must not go on)
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)
