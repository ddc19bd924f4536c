"""Which files a version that comes from elsewhere may have: those that registering would have kept, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from registry.errors import MalformedExport
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.sources.huggingface import CONFIG, TOKENIZER_FILES
from registry.tables import ROLES
from registry.versions import StoredFile

GENERATION = "generation_config.json"
MAX_NAME_BYTES = 255
_RESERVED = frozenset("/\\:")


def find_config(layout: str) -> str:
    """Return the name of the file that says the architecture in this layout."""
    return HOOKED_CONFIG if layout == "hooked" else CONFIG


def check_files(files: Sequence[StoredFile], layout: str) -> None:
    """Raise MalformedExport for names that are no plain file names, and for files that play no known part."""
    names = [one.name for one in files]
    if len({name.casefold() for name in names}) != len(names):
        raise _malformed("two files have one name")
    for one in files:
        if not _is_plain(one.name) or not _may_play(one, layout):
            raise _malformed(f"the file {one.name[:80]!r} cannot be part of it as {one.role[:16]!r}")
    if [one.role for one in files if one.name == find_config(layout)] != ["config"]:
        raise _malformed(f"it has no {find_config(layout)}")
    if not any(one.role == "weights" for one in files):
        raise _malformed("it has no weights")


def _is_plain(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and not _RESERVED.intersection(name)
        and len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    )


def _may_play(file: StoredFile, layout: str) -> bool:
    suffix = PurePosixPath(file.name).suffix
    by_role = {
        "weights": suffix == ".safetensors",
        "config": file.name == find_config(layout) or file.name.endswith(".index.json"),
        "tokenizer": file.name in TOKENIZER_FILES,
        "generation": file.name == GENERATION,
        "original": suffix in (".safetensors", ".json", ".gguf", ".bin"),
    }
    return file.role in ROLES and by_role[file.role]


def _malformed(what: str) -> MalformedExport:
    return MalformedExport(
        f"The export cannot be received: {what}. Nothing was changed.",
        hint="It was altered, or made by another program than lensreg.",
    )
