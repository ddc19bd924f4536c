"""The activations of one network in temporary files, while the other takes its place in memory."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from registry.compare.capture import Kept, Part
from registry.errors import StorageError, StorageFull

MAX_BYTES = 32 * 10**9
_SHARE = 0.5  # of what the disk has left


class KeptFiles:
    """A file for each batch, below a folder of this process that is gone in the end; each is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._attributed: list[Mapping[Part, float]] = []

    def write(self, kept: Kept) -> None:
        """Write what is kept of the next batch. Raises StorageFull or StorageError."""
        path = self._folder / f"{len(self._attributed)}.safetensors"
        try:
            save_file({name: tensor.contiguous() for name, tensor in kept.activations.items()}, path)
        except (OSError, SafetensorError) as error:
            kind = StorageFull if shutil.disk_usage(self._folder).free < 2**20 else StorageError
            raise kind(f"Activations could not be written to {self._folder}: {error}.", hint=_HINT) from error
        self._attributed.append(kept.attributed)

    def take(self, index: int) -> Kept:
        """Map what was kept of batch `index`; its file is gone as soon as nobody holds it."""
        path = self._folder / f"{index}.safetensors"
        kept = Kept(load_file(path), self._attributed[index])
        path.unlink()
        return kept


def read_room_bytes() -> int:
    """Return how much temporary files may take."""
    return min(MAX_BYTES, int(shutil.disk_usage(tempfile.gettempdir()).free * _SHARE))


@contextlib.contextmanager
def open_kept_files(wanted_bytes: int) -> Iterator[KeptFiles]:
    """Give files for `wanted_bytes` of activations, or raise StorageFull before anything is run."""
    with tempfile.TemporaryDirectory(prefix="lensreg-compare-") as name:
        room = read_room_bytes()
        if wanted_bytes > room:
            raise StorageFull(
                f"The activations of one network would take {wanted_bytes / 1e9:,.1f} GB in {tempfile.gettempdir()}, "
                f"where {room / 1e9:,.1f} GB may be taken.",
                hint=_HINT,
            )
        yield KeptFiles(Path(name))


_HINT = (
    "Compare on fewer tokens (max_tokens) or shorter windows (length), let TMPDIR name a folder on a larger disk, or "
    "hold both networks in memory (one_at_a_time=False)."
)
