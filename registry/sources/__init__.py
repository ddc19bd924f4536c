"""Open what people hand in: find out what kind of source it is, and read its config and headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from registry.errors import InvalidInput, SourceNotFound, UnsupportedSource
from registry.sources.adapter import read_adapter
from registry.sources.adapter_files import is_adapter
from registry.sources.gguf import read_gguf
from registry.sources.hooked_files import find_hooked_weights
from registry.sources.hub import find_shadowed, open_hub
from registry.sources.hub_id import HubId, parse_hub_id
from registry.sources.huggingface import read_folder
from registry.sources.source import Finding, ParentVersion, RemoteFile, Source, SourceFile, SourceOptions

__all__ = ["Finding", "ParentVersion", "RemoteFile", "Source", "SourceFile", "SourceOptions", "open_source"]


def open_source(
    location: str | Path,
    scratch: Path,
    parents: Sequence[ParentVersion] = (),
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Source:
    """Open a folder, a file or a model on the Hub; `scratch` is an empty folder for what must be unpacked.

    What is there as a path is that path, even if a Hub id is spelled alike; hf://… always means the Hub. Raises a
    SourceError: SourceNotFound, UnsupportedSource, MalformedArtifact, UnsafeArtifact, UnusableWeights …, and for the
    Hub SourceUnreachable or AccessDenied.
    """
    hub_id = parse_hub_id(str(location))
    if hub_id is not None and hub_id.explicit:
        return _open_hub(hub_id, location, scratch, parents, options)
    try:
        path = Path(location).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long; the home of a user whom nobody knows
        raise SourceNotFound(
            f"{str(location)[:200]!r} cannot be a path: {error}.", hint="Check how it is written.", path=str(location)
        ) from error
    if options.lazy and (is_folder or is_file):
        raise InvalidInput(
            f"{location} is here already: only what is on the Hub can be left there.",
            hint=f"Leave out --lazy, or write hf://{location} if the Hub's is meant."
            if hub_id
            else "Leave out --lazy.",
        )
    if is_folder and is_adapter(path):
        return read_adapter(path.absolute(), str(location), scratch, parents, options)
    hooked = find_hooked_weights(path.absolute()) if is_folder or is_file else None
    if hooked is not None:
        from registry.sources.hooked import read_hooked

        return read_hooked(path.absolute(), hooked, str(location), scratch, parents, options)
    if is_folder:
        source = read_folder(path.absolute(), str(location), scratch, options)
        return replace(source, findings=(*source.findings, *find_shadowed(hub_id, path.absolute())))
    if is_file and path.suffix == ".gguf":
        return read_gguf(path.absolute(), str(location), scratch)
    if is_file:
        raise UnsupportedSource(
            f"{location} is a file of a kind that cannot be registered.",
            hint="Give a folder with config.json and model.safetensors, a .gguf file, or a TransformerLens state dict "
            "(.safetensors, .pt).",
            path=str(location),
        )
    if hub_id is not None:
        return _open_hub(hub_id, location, scratch, parents, options)
    raise SourceNotFound(
        f"There is nothing at {location}.",
        hint="Give the path of a Hugging Face folder or of a .gguf file, or a Hub id: ORG/NAME[@REVISION].",
        path=str(location),
    )


def _open_hub(
    hub_id: HubId, location: str | Path, scratch: Path, parents: Sequence[ParentVersion], options: SourceOptions
) -> Source:
    def open_folder(folder: Path) -> Source:
        return open_source(folder, scratch, parents, options)

    return open_hub(hub_id, str(location), options, open_folder, scratch)
