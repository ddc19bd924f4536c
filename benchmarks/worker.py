"""Run one way to do something in a process of its own, and see from outside how much private memory it takes.

What a way imports, and what it does once to warm up, is over before anything is measured. Private memory is what the
kernel counts as anonymous (RssAnon): pages of a mapped file are not in it, until somebody writes to them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.plan import ROOT

SAMPLE_EVERY_SECONDS = 0.004
_forks = False


class WayFailed(Exception):
    """A way could not do what it should; the message is for the page."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run: seconds, the most private memory over what was there before, and the way's own details."""

    seconds: float
    private_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)


class Way:
    """What a worker runs: `prepare` and `finish` are outside the time; subclasses import and warm up in `__init__`."""

    def prepare(self, request: Mapping[str, Any]) -> None:
        """Put things as they shall be before a run."""

    def run(self, request: Mapping[str, Any]) -> Any:
        """Do what is measured."""
        raise NotImplementedError

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Look at what came of it, and put things back."""
        return {}


class Worker:
    """A process that runs `MODULE:CLASS(**arguments)` when it is asked to; `python` may be another environment's."""

    def __init__(
        self, target: str, memory_bytes: int, /, *, python: str | Path = sys.executable, **arguments: Any
    ) -> None:
        self._memory_bytes = memory_bytes
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        written = json.dumps(arguments, default=str)
        self._process: _Fork | subprocess.Popen[bytes] = (
            _Fork(target, written, self._log)
            if _forks and python == sys.executable
            else subprocess.Popen(
                [str(python), "-m", "benchmarks.worker", target, written],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=ROOT,
                bufsize=0,
            )
        )
        self._left = b""
        try:
            self._listen(None)
        except WayFailed:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def run(self, **request: Any) -> Outcome:
        """Run it once. Raises WayFailed if it fails or takes too much memory."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise WayFailed(self._explain()) from None
        before = self._listen(None)["private_bytes"]
        peak = [before]
        answer = self._listen(peak)
        most = max(*peak, answer["private_bytes"])
        return Outcome(answer["seconds"], most - before, self._listen(None)["details"])

    def stop(self) -> None:
        """End the process."""
        with self._process as process:  # which closes its pipes and waits
            process.kill()
        self._log.close()

    def _listen(self, samples: list[int] | None) -> dict[str, Any]:
        """Return what it says next, meanwhile sampling its memory."""
        assert self._process.stdout is not None
        while b"\n" not in self._left:
            if select.select([self._process.stdout], [], [], SAMPLE_EVERY_SECONDS if samples else None)[0]:
                said = os.read(self._process.stdout.fileno(), 1 << 16)
                if not said:
                    raise WayFailed(self._explain())
                self._left += said
            elif samples:
                samples.append(read_private_bytes(self._process.pid))
                if samples[-1] > self._memory_bytes:
                    self._process.kill()
                    raise WayFailed(f"stopped at {self._memory_bytes / 1e9:.0f} GB of private memory")
        line, _, self._left = self._left.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _explain(self) -> str:
        """Say why it ended: the last line it wrote."""
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return (lines[-1] if lines else f"ended with {self._process.returncode}").replace(str(ROOT), "…")[:300]


def read_private_bytes(pid: int | str = "self") -> int:
    """Return the anonymous memory of a process."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def settle_memory() -> None:
    """Give back what is free, so that what comes next is not hidden in it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def fork_workers() -> None:
    """Let workers be forks of this process from now on: they start at once, and what they measure means nothing."""
    global _forks
    import transformer_lens  # noqa: F401 (it takes seconds, and nearly all of them import it)

    _forks = True


class _Fork:
    """A fork of this process that serves requests: as much of a Popen as a Worker asks of it."""

    def __init__(self, target: str, arguments: str, log: IO[bytes]) -> None:
        requests, ours = os.pipe()
        answered, answers = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(ours)  # or its requests would never end
            for theirs, place in ((requests, 0), (answers, 1), (log.fileno(), 2)):
                os.dup2(theirs, place)
            sys.stdin = os.fdopen(0)
            try:
                serve(target, arguments)
            except BaseException:  # noqa: BLE001 (a fork must not go on)
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        os.close(requests)
        os.close(answers)
        self.stdin, self.stdout = os.fdopen(ours, "wb", buffering=0), os.fdopen(answered, "rb", buffering=0)
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stdin.close()
        self.stdout.close()
        self.wait()

    def kill(self) -> None:
        """End it; it may have ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def main() -> None:
    """Serve what the command line names."""
    serve(*sys.argv[1:])


def serve(target: str, arguments: str) -> None:
    """Serve the requests that come line by line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    module, _, name = target.partition(":")
    way: Way = getattr(import_module(module), name)(**json.loads(arguments))
    say(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        way.prepare(request)
        settle_memory()
        say(private_bytes=read_private_bytes())
        start = time.perf_counter()
        result = way.run(request)
        seconds = time.perf_counter() - start
        say(seconds=seconds, private_bytes=read_private_bytes())
        details = way.finish(result, request)
        del result
        settle_memory()  # and let go of the files that it had mapped, or nobody could drop them from the page cache
        say(details=details)


if __name__ == "__main__":
    main()
