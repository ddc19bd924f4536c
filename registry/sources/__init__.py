"""Open what people hand in: find out what kind of source it is, and read its config and headers."""

from __future__ import annotations

from pathlib import Path

from registry.errors import SourceNotFound, UnsupportedSource
from registry.sources.gguf import read_gguf
from registry.sources.huggingface import read_folder
from registry.sources.source import Finding, Source, SourceFile

__all__ = ["Finding", "Source", "SourceFile", "open_source"]


def open_source(location: str | Path, scratch: Path) -> Source:
    """Open a Hugging Face folder or a GGUF file; `scratch` is an empty folder for what must be unpacked.

    Raises SourceNotFound, UnsupportedSource or MalformedArtifact.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        return read_folder(path.absolute(), str(location))
    if path.suffix == ".gguf" and path.is_file():
        return read_gguf(path.absolute(), str(location), scratch)
    if path.is_file():
        raise UnsupportedSource(
            f"{location} is a file of a kind that cannot be registered.",
            hint="Give a folder with config.json and model.safetensors, or a .gguf file.",
            path=str(location),
        )
    raise SourceNotFound(
        f"There is nothing at {location}.",
        hint="Give the path of a Hugging Face folder or of a .gguf file. "
        "A Hub model must be on disk first: hf download ORG/NAME --local-dir FOLDER.",
        path=str(location),
    )
