"""Open what people hand in: find out what kind of source it is, and read its config and headers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from registry.errors import InvalidInput, RegistryError, SourceNotFound, UnsupportedSource
from registry.sources.adapter import read_adapter
from registry.sources.adapter_files import is_adapter
from registry.sources.gguf import read_gguf
from registry.sources.hooked_files import find_hooked_weights
from registry.sources.hub import find_shadowed, open_hub
from registry.sources.hub_id import HubId, parse_hub_id
from registry.sources.huggingface import read_folder
from registry.sources.links import find_real_file, refuse_foreign_links
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
        if is_folder or is_file:
            path = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long; the home of a user whom nobody knows; NUL in it
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
    try:
        if is_folder:
            return _open_folder(path, hub_id, str(location), scratch, parents, options)
        if is_file:
            return _open_file(path, str(location), scratch, parents, options)
    except OSError as error:
        raise _type_error(error, scratch) from error
    if hub_id is not None:
        return _open_hub(hub_id, location, scratch, parents, options)
    raise SourceNotFound(
        f"There is nothing at {location}.",
        hint="Give the path of a Hugging Face folder or of a .gguf file, or a Hub id: ORG/NAME[@REVISION].",
        path=str(location),
    )


def _open_folder(
    folder: Path,
    hub_id: HubId | None,
    location: str,
    scratch: Path,
    parents: Sequence[ParentVersion],
    options: SourceOptions,
) -> Source:
    refuse_foreign_links(folder)
    if is_adapter(folder):
        source = read_adapter(folder, location, scratch, parents, options)
    elif (hooked := find_hooked_weights(folder)) is not None:
        from registry.sources.hooked import read_hooked

        source = read_hooked(folder, hooked, location, scratch, parents, options)
    else:
        source = read_folder(folder, location, scratch, options)
        source = replace(source, findings=(*source.findings, *find_shadowed(hub_id, folder)))
    # as they are now: what is put in their place afterwards is not followed
    files = (replace(file, path=_find_real(file.path, folder, scratch)) for file in source.files)
    return replace(source, files=tuple(files))


def _open_file(
    path: Path, location: str, scratch: Path, parents: Sequence[ParentVersion], options: SourceOptions
) -> Source:
    if find_hooked_weights(path) is not None:
        from registry.sources.hooked import read_hooked

        return read_hooked(path, path, location, scratch, parents, options)
    if path.suffix == ".gguf":
        return read_gguf(path, location, scratch)
    raise UnsupportedSource(
        f"{location} is a file of a kind that cannot be registered.",
        hint="Give a folder with config.json and model.safetensors, a .gguf file, or a TransformerLens state dict "
        "(.safetensors, .pt).",
        path=location,
    )


def _find_real(path: Path, folder: Path, scratch: Path) -> Path:
    if path.is_relative_to(folder):
        return find_real_file(path, folder)
    return path if path.is_relative_to(scratch) else path.resolve()  # a parent's is a link to its blob


def _type_error(error: OSError, scratch: Path) -> RegistryError | OSError:
    """Say that a file of the source's cannot be read; what went wrong in `scratch` is for whoever owns that."""
    if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(scratch):
        return error
    return SourceNotFound(
        f"{os.fsdecode(error.filename)!r} cannot be read: {error.strerror}.",
        hint="Check its permissions, and that nothing moves or deletes it meanwhile.",
        path=os.fsdecode(error.filename),
    )


def _open_hub(
    hub_id: HubId, location: str | Path, scratch: Path, parents: Sequence[ParentVersion], options: SourceOptions
) -> Source:
    def open_folder(folder: Path) -> Source:
        return open_source(folder, scratch, parents, options)

    return open_hub(hub_id, str(location), options, open_folder, scratch)
