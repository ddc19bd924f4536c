"""Read what a suite runs on: texts, JSON lines, or a dataset of the `datasets` library; a row at a time, digested.

The digest is of the rows that were read and not of the file, so that the same texts in another container are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from registry.errors import InvalidInput, MalformedArtifact, PackageMissing, SourceNotFound

PATH = {"path": True}
"""Metadata of a suite's field: a path, which is recorded whole so that it means the same from every folder."""
REF = {"ref": True}
"""Metadata of a suite's field: a ref, which is recorded as the version that it means."""
MAX_LINE_BYTES = 64 * 2**20
_PIECE_BYTES = 2**20


@dataclass
class Data:
    """A source of rows: `.txt` is one text, `.jsonl` has an object a line, a folder is what `datasets` saved.

    `digest` is that of all rows that have been read so far.
    """

    location: str
    _total: Any = field(default_factory=hashlib.sha256, repr=False)
    n_rows: int = 0
    is_whole: bool = False

    @property
    def digest(self) -> str | None:
        """The SHA-256, in hex, of the rows that were read; None if none was."""
        return self._total.hexdigest() if self.n_rows else None

    @property
    def extent(self) -> dict[str, Any]:
        """How far they were read: so many rows, and whether those are all."""
        return {"n_rows": self.n_rows, "is_whole": self.is_whole}

    def read_rows(self) -> Iterator[Mapping[str, Any]]:
        """Read one row after another. Raises SourceNotFound, MalformedArtifact, or PackageMissing for `datasets`."""
        path = Path(self.location).expanduser()
        if not path.exists():
            raise SourceNotFound(
                f"{self.location} is not there.", hint="Give a .txt or .jsonl file, or a saved dataset."
            )
        read = _read_saved if path.is_dir() else _READERS.get(path.suffix.lower())
        if read is None:
            raise InvalidInput(
                f"{path.name} is of no kind that is read here.",
                hint=f"Give {', '.join(_READERS)}, or a folder that datasets saved with save_to_disk.",
            )
        for row in read(path):
            self.n_rows += 1
            text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
            self._total.update(f"{text}\n".encode(errors="surrogatepass"))
            yield row
        self.is_whole = True

    def read_texts(self, column: str = "text") -> Iterator[str]:
        """Read the texts of one column; empty ones are left out. Raises InvalidInput if there is no such column."""
        for row in self.read_rows():
            if column not in row:
                raise InvalidInput(
                    f"{self.location} has no column {column!r}.", hint=f"It has {', '.join(map(repr, sorted(row)))}."
                )
            text = row[column]
            if not isinstance(text, str):
                raise MalformedArtifact(
                    f"Row {self.n_rows:,} of {self.location} has no text in {column!r}.", hint="It has to be a string."
                )
            if text.strip():
                yield text


def digest_again(location: str, extent: Mapping[str, Any] | None) -> str | None:
    """Return the digest of the data as they are now, read as far as `extent` says (None: all of them).

    Raises what reading raises.
    """
    n_rows = None if extent is None or extent["is_whole"] else int(extent["n_rows"])
    return _digest_rows(location, n_rows, _stamp(Path(location).expanduser()))


@lru_cache(maxsize=64)
def _digest_rows(location: str, n_rows: int | None, stamp: object) -> str | None:
    """Digest rows once for all versions that were measured on them; another `stamp` is another file."""
    data = Data(location)
    for _ in islice(data.read_rows(), n_rows):
        pass
    return data.digest


def _stamp(path: Path) -> object:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.exists()]
    return tuple((name, one.st_size, one.st_mtime_ns, one.st_ino) for name, one in stats)


def _read_text(path: Path) -> Iterator[dict[str, Any]]:
    """Read one text in pieces of whole paragraphs, so that memory stays small."""
    try:
        with path.open(encoding="utf-8") as file:
            waiting = ""
            while piece := file.read(_PIECE_BYTES):
                waiting += piece
                whole, cut, rest = waiting.rpartition("\n\n")
                if cut:
                    yield {"text": whole + cut}
                    waiting = rest
            if waiting:
                yield {"text": waiting}
    except UnicodeDecodeError as error:
        raise MalformedArtifact(f"{path.name} is no text in UTF-8: {error.reason}.", hint="Save it as UTF-8.") from None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise MalformedArtifact(
                    f"Line {number:,} of {path.name} is no JSON object.", hint="A .jsonl file has one object a line."
                )
            yield row


def _read_saved(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError:
        raise PackageMissing(
            "datasets is not installed.", package="datasets", hint="Install it: pip install 'lens-registry[datasets]'"
        ) from None
    try:
        saved = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise MalformedArtifact(
            f"{path.name} is no saved dataset: {error}", hint="Save it with save_to_disk."
        ) from None
    if not isinstance(saved, Dataset):
        raise InvalidInput(
            f"{path.name} holds several splits: {', '.join(saved)}.", hint=f"Give one: {path / next(iter(saved))}"
        )
    yield from saved


_READERS = {".txt": _read_text, ".md": _read_text, ".jsonl": _read_lines, ".ndjson": _read_lines}
