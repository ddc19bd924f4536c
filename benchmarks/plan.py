"""How much to measure, and where to write: what every subject is given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
        """Make a folder, and delete it with all that is in it."""
        with tempfile.TemporaryDirectory(prefix="part-", dir=self.work) as name:
            yield Path(name)
