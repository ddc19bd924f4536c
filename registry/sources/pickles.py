"""Read pickles without running what is in them: in a child process that is limited and knows tensors only.

The child loads with weights_only, which is an allow-list and no sandbox; so it may use only memory and time in
proportion to the files, and whatever becomes of it, all that it can hand back are safetensors files, whose headers are
checked like anybody's, and one line of JSON.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact, SourceChanged, UnsafeArtifact, UnsupportedSource
from registry.sources.json_file import read_json_object
from registry.sources.pickle_file import check_pickle_file, printable
from registry.sources.source import Finding
from registry.weights import digest_file

_ROOT = Path(__file__).parent.parent.parent
# isolated: neither the working folder nor PYTHONPATH decides what is imported
_START = (
    "import sys; task = sys.argv[1]; sys.path[:] = sys.argv[2:]; from registry.sources.unpickle import main; main(task)"
)
_REFUSALS = {error.__name__: error for error in (MalformedArtifact, UnsafeArtifact, UnsupportedSource)}
_MEMORY_BYTES = 512 * 2**20
_OUTPUT_BYTES = 64 * 2**20
_CPU_SECONDS, _WALL_SECONDS = 60, 180
_SLOWEST_BYTES_PER_SECOND = 10 * 2**20
_RESAVE = "Load it where you trust it, and save it again with save_pretrained(…), which writes safetensors."


@dataclass(frozen=True)
class Unpickled:
    """One pickle that was read: `weights` is the safetensors file that holds its tensors now.

    `nest` are the entries that led to them, `left_out` those that are no weights.
    """

    pickle: Path
    digest: str
    weights: Path
    nest: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class UnpickledWeights:
    """The pickles of one checkpoint, in the order given, and the prefix that was taken off all of their tensors."""

    files: tuple[Unpickled, ...]
    prefix: str


def unpickle_weights(
    pickles: Sequence[Path], targets: Sequence[Path], scratch: Path, *, keep_prefix: bool = False
) -> UnpickledWeights:
    """Write each pickle's tensors into the safetensors file of the same place in `targets`.

    `scratch` is a folder for what passes between the processes. What wrappers put before all names is taken off, or
    with `keep_prefix` left where it is. Raises MalformedArtifact, UnsafeArtifact, UnsupportedSource or SourceChanged.
    """
    for pickle in pickles:
        check_pickle_file(pickle)
    before = [_identify(pickle) for pickle in pickles]
    sizes = [pickle.stat().st_size for pickle in pickles]
    done = run_child(
        {
            "work": "pickles",
            "keep_prefix": keep_prefix,
            "files": [
                [str(pickle.absolute()), str(target.absolute())]
                for pickle, target in zip(pickles, targets, strict=True)
            ],
        },
        scratch,
        name=pickles[0].name if len(pickles) == 1 else f"{pickles[0].name} or another shard",
        n_bytes=sum(sizes),
        n_bytes_at_once=max(sizes),
    )
    digests = [digest_file(pickle) for pickle in pickles]
    if before != [_identify(pickle) for pickle in pickles]:
        raise SourceChanged(
            f"{pickles[0].name} was written to while it was being read.",
            hint="Register it again when nothing writes to it any more. Nothing was stored.",
        )
    files = tuple(
        Unpickled(pickle, digest, target, tuple(read["nest"]), tuple(read["left_out"]))
        for pickle, digest, target, read in zip(pickles, digests, targets, done["files"], strict=True)
    )
    return UnpickledWeights(files, done["prefix"])


def run_child(
    task: Mapping[str, Any], scratch: Path, *, name: str, n_bytes: int, n_bytes_at_once: int
) -> dict[str, Any]:
    """Let a limited child do `task`, and return what it answers, or raise what it refuses or dies of.

    `name` is the file's, for people; the limits grow with `n_bytes` and with `n_bytes_at_once`, the largest file's.
    """
    answer, task_file, errors = (scratch / name for name in ("answer.json", "task.json", "errors.txt"))
    answer.unlink(missing_ok=True)
    slow = n_bytes // _SLOWEST_BYTES_PER_SECOND
    limits = {
        "memory_bytes": _MEMORY_BYTES + 3 * n_bytes_at_once,
        "seconds": _CPU_SECONDS + slow,
        "output_bytes": _OUTPUT_BYTES + 2 * n_bytes,
        "answer": str(answer.absolute()),
        "name": name,
    }
    task_file.write_text(json.dumps({**task, **limits}))
    try:
        code = run_python(task_file.absolute(), errors, _WALL_SECONDS + 2 * slow)
    except subprocess.TimeoutExpired as error:
        raise UnsafeArtifact(f"{name} took too long to be read.", hint=_RESAVE) from error
    if code or not answer.exists():
        raise UnsafeArtifact(f"{name} cannot be read safely: {_describe_death(code, errors)}.", hint=_RESAVE)
    return _read_answer(answer, name)


def run_python(task_file: Path, errors: Path, seconds: float) -> int:
    """Run `unpickle.main` in an interpreter of its own, and return its exit code; raises TimeoutExpired."""
    command = [sys.executable, "-I", "-W", "ignore", "-c", _START, str(task_file), *_list_import_paths()]
    with errors.open("wb") as stderr:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, timeout=seconds, check=False
        ).returncode


def note_pickles(unpickled: UnpickledWeights) -> list[Finding]:
    """Tell that the weights come out of pickles, out of which ones, and what else was in them."""
    files = unpickled.files
    first = f"{files[0].pickle.name} (SHA-256 {files[0].digest})"
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    findings = [
        Finding(
            "from-pickle", f"The weights were read from {first}{others}, and are kept as safetensors, not as pickle."
        )
    ]
    left_out = list(dict.fromkeys(name for file in files for name in file.left_out))
    if left_out:
        where = f"its entry {'.'.join(files[0].nest)}" if files[0].nest else "its tensors"
        findings.append(
            Finding("left-out", f"Of the pickle only {where} was read; left out: {', '.join(left_out)[:500]}.")
        )
    return findings


def _read_answer(answer: Path, name: str) -> dict[str, Any]:
    found = read_json_object(answer)
    if "failed" in found:
        number, text = found["failed"]
        raise OSError(number, text)
    if "refused" in found:
        kind, message, hint = found["refused"]
        raise _REFUSALS.get(kind, UnsafeArtifact)(message, hint=hint)
    done: dict[str, Any] = found["done"]
    return done


def _describe_death(code: int, errors: Path) -> str:
    if code < 0:
        return (
            f"reading it ended by a signal ({signal.strsignal(-code)}), which damage can do, or too much memory or time"
        )
    with errors.open("rb") as file:
        lines = file.read(2**20).decode(errors="replace").strip().splitlines()
    return f"the process that read it ended with {code} ({printable(lines[-1] if lines else 'no message')})"


def _list_import_paths() -> list[str]:
    """Give the child our own folders of packages, but never the working folder, which may be the checkpoint's."""
    here = Path.cwd()
    given = [Path(entry) for entry in sys.path if entry]
    return [str(_ROOT), *(str(path) for path in given if path.is_absolute() and path not in (here, _ROOT))]


def _identify(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
