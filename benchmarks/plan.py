"""How much to measure, and where to write: what every subject is given."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_numbers = itertools.count()


@dataclass(frozen=True)
class Plan:
    """`quick` takes small sizes, to see that everything works; its numbers mean nothing."""

    quick: bool = False
    rivals: bool = True
    folder: Path = ROOT / ".bench"
    """Holds the rivals' environments."""
    work: Path = ROOT / ".bench"
    """Holds what is measured, as long as it is: it must be on a disk, not in memory."""
    images: Path = ROOT / "docs" / "images"
    memory_bytes: int = 10**10
    """A way that takes more private memory than this is stopped, and its line says so."""

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """Make a folder, and delete it with all that is in it.

        Its name is a number: transformer-lens takes a path with `t5` in it, say, for a T5.
        """
        path = self.work / f"part-{os.getpid()}-{next(_numbers)}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
