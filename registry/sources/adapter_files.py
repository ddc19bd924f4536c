"""The tensors of an adapter's folder: its safetensors file, or what a limited process makes of its pickle.

Where a folder holds both, the rule is that of weights: they must be the same, or the caller says which one counts.
"""

from __future__ import annotations

from pathlib import Path

from registry.errors import SourceNotFound, UnsupportedSource, UnusableWeights
from registry.sources.adapter_config import CONFIG
from registry.sources.pickles import note_pickles, unpickle_weights
from registry.sources.source import SourceFile, SourceOptions
from registry.sources.weight_files import FolderWeights, compare_pickles
from registry.weights import read_header

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_FLOATS = {"F16", "BF16", "F32", "F64"}


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter, be there a model beside it or not."""
    return any((folder / name).exists() for name in (CONFIG, WEIGHTS, PICKLE))


def read_adapter_weights(folder: Path, scratch: Path, options: SourceOptions) -> FolderWeights:
    """Return the one safetensors file of the adapter's tensors, in `scratch` if it was a pickle, and their headers.

    Raises SourceNotFound, UnsupportedSource, MalformedArtifact, UnsafeArtifact or UnusableWeights.
    """
    _refuse_model(folder)
    has_safetensors, has_pickle = (folder / WEIGHTS).is_file(), (folder / PICKLE).is_file()
    if options.weights == "bin" or (has_pickle and not has_safetensors and options.weights is None):
        _check_there(folder, PICKLE)
        weights = _read_pickle(folder, scratch)
    else:
        _check_there(folder, WEIGHTS)
        weights = FolderWeights((_keep(folder / WEIGHTS),), read_header(folder / WEIGHTS))
        if has_pickle and options.weights is None:
            weights = compare_pickles(folder, weights, PICKLE, lambda: _read_pickle(folder, scratch))
    _refuse_integers(weights)
    return weights


def _read_pickle(folder: Path, scratch: Path) -> FolderWeights:
    unpacked = scratch / "unpickled"
    unpacked.mkdir()
    target = unpacked / WEIGHTS
    # what peft puts before every name is no wrapper's here: it is how peft finds the layers
    unpickled = unpickle_weights([folder / PICKLE], [target], unpacked, keep_prefix=True)
    digests = {file.pickle.name: file.digest for file in unpickled.files}
    return FolderWeights(
        (_keep(target),), read_header(target), tuple(note_pickles(unpickled)), provenance={"pickles": digests}
    )


def _keep(file: Path) -> SourceFile:
    return SourceFile(file.name, file, "original")


def _refuse_model(folder: Path) -> None:
    """Refuse a folder that also holds a model, or no config of the adapter."""
    models = sorted(path.name for pattern in ("model*.safetensors*", "pytorch_model*") for path in folder.glob(pattern))
    if models:
        raise UnsupportedSource(
            f"{folder} holds an adapter and a model ({models[0]}), and loaders differ in which one they take.",
            hint="Move one of them into a folder of its own, and register that: the model by itself, "
            "or the adapter with --parent.",
            path=str(folder),
        )
    if not (folder / CONFIG).is_file():
        raise UnsupportedSource(
            f"{folder} has the tensors of an adapter and no {CONFIG}, without which they mean nothing.",
            hint="Copy the one that was saved with them.",
            path=str(folder),
        )


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise SourceNotFound(
            f"{folder} has no {name}.",
            hint="Save the adapter with model.save_pretrained(folder), and give that folder.",
            path=str(folder),
        )


def _refuse_integers(weights: FolderWeights) -> None:
    wrong = sorted(name for name, tensor in weights.tensors.items() if tensor.dtype not in _FLOATS)
    if wrong or not weights.tensors:
        raise UnusableWeights(
            f"{len(wrong)} of the adapter's tensors are not floating-point numbers, such as {wrong[0]}."
            if wrong
            else "The adapter holds no tensors.",
            tensors=wrong,
            hint="Save the adapter again with save_pretrained, in float32 or bfloat16.",
        )
