"""What every kind of source is read into: its config, its files with their roles, and its tensors' headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from registry.progress import Progress
from registry.versions import Version
from registry.weights import TensorHeader

Role = Literal["weights", "config", "tokenizer", "generation", "original"]
Layout = Literal["huggingface", "hooked"]


@dataclass(frozen=True)
class ParentVersion:
    """A registered parent, for sources that are not whole without one: its record, and how to get at its files.

    `open_folder` checks the parent's blobs and returns the folder that holds them under their own names.
    """

    version: Version
    open_folder: Callable[[], Path]


@dataclass(frozen=True)
class SourceOptions:
    """What the caller says of a source that the source itself leaves open."""

    weights: Literal["safetensors", "bin"] | None = None
    """Which one counts where a folder holds both."""
    config: Path | None = None
    """The config file of a bare state dict."""
    lazy: bool = False
    """Leave large files where they are, for the first load to fetch."""
    headers_only: bool = False
    """Read headers and nothing else, for a check that registers nothing."""
    parity: Literal["float64", "float32", "skip"] | None = None
    """In which precision networks are compared, where opening the source makes another network of it."""
    strict: bool = False
    """Refuse what brings code along or asks for some, instead of pointing it out."""


@dataclass(frozen=True)
class SourceFile:
    """One file that a version keeps: under which name, where it is now, and what it is for.

    `stated_digest` is its SHA-256, in hex, as whoever it was fetched from states it; other bytes are refused.
    """

    name: str
    path: Path
    role: Role
    stated_digest: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """One file that a version keeps and that is still elsewhere; its SHA-256 is None if none is stated there."""

    name: str
    role: Role
    size_bytes: int
    stated_digest: str | None


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about a version that is no fault, with a stable code."""

    code: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """Give the finding as plain data."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been opened: nothing but headers and config.json has been read of it.

    `location` is what the caller wrote, kept as provenance. `tensors` are named as in the files. `step` and `relation`
    are what the source says of itself, for callers who say nothing; `provenance` is recorded with the version.
    `remote` are files that have not been fetched yet, and `fetch` fetches those that are named.
    """

    kind: str
    location: str
    config: Mapping[str, Any]
    files: tuple[SourceFile, ...]
    tensors: Mapping[str, TensorHeader]
    findings: tuple[Finding, ...] = field(default=())
    layout: Layout = "huggingface"
    step: int | None = None
    relation: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    remote: tuple[RemoteFile, ...] = ()
    fetch: Callable[[Iterable[str], Progress], Mapping[str, Path]] | None = None

    @property
    def size_bytes(self) -> int:
        """The bytes of all files together."""
        return sum(file.path.stat().st_size for file in self.files)

    def with_role(self, role: Role) -> tuple[SourceFile, ...]:
        """Return the files that play `role`."""
        return tuple(file for file in self.files if file.role == role)
