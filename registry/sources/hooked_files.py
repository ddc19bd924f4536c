"""Find hooked weights: in a file by itself, or in a folder, told from the names of its tensors."""

from __future__ import annotations

from pathlib import Path

from registry.errors import MalformedArtifact, SourceNotFound, UnsupportedSource
from registry.hooked_names import are_hooked
from registry.sources.distributed import refuse_partitioned
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.sources.weight_files import has_weights
from registry.weights import read_header

PICKLES = (".pt", ".pth", ".bin")
WEIGHTS = "model.safetensors"


def find_hooked_weights(path: Path) -> Path | None:
    """Return the file at or in `path` that holds a HookedTransformer's tensors, or None if that is something else.

    A file by itself is nothing else. What a pickle in a folder holds shows only when it is read; it is taken for hooked
    unless it has a name that Hugging Face gives.
    """
    if path.is_file():
        return path if path.suffix in (".safetensors", *PICKLES) else None
    if (path / HOOKED_CONFIG).is_file():
        if not (path / WEIGHTS).is_file():
            raise SourceNotFound(f"{path} has {HOOKED_CONFIG} and no {WEIGHTS}.", hint="Save it again.", path=str(path))
        return path / WEIGHTS
    files = sorted(one for one in path.iterdir() if one.suffix in (".safetensors", *PICKLES) and one.is_file())
    if len(files) != 1:
        return None
    if files[0].suffix in PICKLES:
        if has_weights(path):
            return None
        refuse_partitioned(path)
        return files[0]
    return files[0] if are_hooked(_read_names(files[0])) else None


def _read_names(path: Path) -> list[str]:
    """Return the tensors' names, or none if the file cannot be read: whoever opens it says what is wrong with it."""
    try:
        return list(read_header(path))
    except MalformedArtifact:
        return []


def refuse_names(path: Path) -> UnsupportedSource:
    """Make the error for a state dict whose names are not a HookedTransformer's."""
    return UnsupportedSource(
        f"{path.name} does not hold a HookedTransformer's tensors, such as embed.W_E and blocks.0.attn.W_Q.",
        hint="If it is a Hugging Face state dict, save the model with save_pretrained and give that folder, with "
        "config.json and the tokenizer.",
        path=str(path),
    )
