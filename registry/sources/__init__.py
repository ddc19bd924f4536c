"""Open what people hand in: find out what kind of source it is, and read its config and headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from registry.errors import SourceNotFound, UnsupportedSource
from registry.sources.gguf import read_gguf
from registry.sources.hooked_files import find_hooked_weights
from registry.sources.huggingface import read_folder
from registry.sources.source import Finding, ParentVersion, Source, SourceFile, SourceOptions

__all__ = ["Finding", "ParentVersion", "Source", "SourceFile", "SourceOptions", "open_source"]


def open_source(
    location: str | Path,
    scratch: Path,
    parents: Sequence[ParentVersion] = (),
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Source:
    """Open a Hugging Face folder, a GGUF file or a TransformerLens state dict.

    `scratch` is an empty folder for what must be unpacked.

    Raises a SourceError: SourceNotFound, UnsupportedSource, MalformedArtifact, UnsafeArtifact, UnusableWeights …
    """
    try:
        path = Path(location).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long; the home of a user whom nobody knows
        raise SourceNotFound(
            f"{str(location)[:200]!r} cannot be a path: {error}.", hint="Check how it is written.", path=str(location)
        ) from error
    hooked = find_hooked_weights(path.absolute()) if is_folder or is_file else None
    if hooked is not None:
        from registry.sources.hooked import read_hooked

        return read_hooked(path.absolute(), hooked, str(location), scratch, parents, options)
    if is_folder:
        return read_folder(path.absolute(), str(location), scratch, options)
    if is_file and path.suffix == ".gguf":
        return read_gguf(path.absolute(), str(location), scratch)
    if is_file:
        raise UnsupportedSource(
            f"{location} is a file of a kind that cannot be registered.",
            hint="Give a folder with config.json and model.safetensors, a .gguf file, or a TransformerLens state dict "
            "(.safetensors, .pt).",
            path=str(location),
        )
    raise SourceNotFound(
        f"There is nothing at {location}.",
        hint="Give the path of a Hugging Face folder or of a .gguf file. "
        "A Hub model must be on disk first: hf download ORG/NAME --local-dir FOLDER.",
        path=str(location),
    )
