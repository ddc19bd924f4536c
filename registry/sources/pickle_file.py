"""What a file that should be a pickle of PyTorch's is, told from its first bytes and its zip directory, without torch.

torch.load reads zip files that are compressed, that list one entry twice, and that claim more than they hold: 4 MB that
unpack to 4 GB. torch.save writes none of these, so they are refused here, before torch sees them.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

from registry.errors import MalformedArtifact, RegistryError, UnsafeArtifact, UnsupportedSource

ZIP = b"PK\x03\x04"
MAX_DIRECTORY_BYTES = 8 * 2**20
MAX_PICKLE_BYTES = 64 * 2**20
_COPY_AGAIN = "Copy or save the checkpoint again; the file may not have been written to its end."
# first bytes -> what the file is, and what to do
_OTHERS = (
    (b"version https://git-lfs", "it is a Git LFS pointer and not the file itself", "Fetch the file: git lfs pull."),
    (b"<", "it is a web page", "Download it again; the server seems to have answered with an error."),
    (b"{", "it is JSON", "Download it again; the server seems to have answered with an error."),
    (b"GGUF", "it is a GGUF file", "Give it the ending .gguf and register it by its path."),
    (b"\x89HDF", "it is an HDF5 file", "Save the model with save_pretrained, which writes safetensors."),
)


def check_pickle_file(path: Path) -> None:
    """Refuse what is no pickle of PyTorch's or a dangerous one, as far as that shows without unpickling.

    Raises MalformedArtifact, UnsupportedSource or UnsafeArtifact.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise MalformedArtifact(f"{path.name} is empty.", hint=_COPY_AGAIN, path=str(path))
    for first, what, hint in _OTHERS:
        if start.lstrip().startswith(first):
            raise MalformedArtifact(f"{path.name} is no pickle: {what}.", hint=hint, path=str(path))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        raise MalformedArtifact(
            f"{path.name} is no pickle: it is a safetensors file.",
            hint="Rename it to model.safetensors.",
            path=str(path),
        )
    if start.startswith(ZIP):
        _check_zip(path, size)


def _check_zip(path: Path, size: int) -> None:
    entries = _read_directory(path)
    names = [entry.filename for entry in entries]
    leaves = [name.partition("/")[2] for name in names]
    if "constants.pkl" in leaves or any(leaf.startswith("code/") for leaf in leaves):
        raise _unsupported(path, "it is a TorchScript program")
    if "data.pkl" not in leaves:
        raise _unsupported(path, "it is a zip file that torch.save did not write")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _unsafe(path, f"it has the entry {_shorten(twice)} twice")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise _unsafe(path, f"its entry {_shorten(entry.filename)} is compressed")
        if entry.flag_bits & 1:
            raise _unsafe(path, f"its entry {_shorten(entry.filename)} is encrypted")
        if entry.filename.endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise _unsafe(
                path, f"its entry {_shorten(entry.filename)} has {entry.file_size:,} bytes beside the tensors"
            )
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise _unsafe(path, f"its entries claim {claimed:,} bytes, and it has {size:,}")


class _BoundedFile(io.FileIO):
    """A file whose zip directory is not read if it is huge: a million entries would fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory has {size:,} bytes")
        return super().read(size) or b""


def _read_directory(path: Path) -> list[zipfile.ZipInfo]:
    with _BoundedFile(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError) as error:
            raise MalformedArtifact(
                f"{path.name} cannot be read: it is damaged or not whole ({printable(error)}).",
                hint=_COPY_AGAIN,
                path=str(path),
            ) from error


def _unsafe(path: Path, what: str) -> RegistryError:
    return UnsafeArtifact(
        f"{path.name} is refused: {what}, which torch.save never writes.",
        hint="Load it where you trust it, and save it again with torch.save or as safetensors.",
        path=str(path),
    )


def _unsupported(path: Path, what: str) -> RegistryError:
    return UnsupportedSource(
        f"{path.name} holds no weights to be read: {what}.",
        hint="Save the network's state_dict() with torch.save, or better the model with save_pretrained.",
        path=str(path),
    )


def printable(value: object) -> str:
    """Show a text that comes out of a file: one line of at most 200 characters that no terminal acts on."""
    text = " ".join(str(value).split())
    return "".join(one if one.isprintable() else "?" for one in text)[:200]


def _shorten(name: str) -> str:
    return repr(printable(name)[:80])
