"""Which entries of a checkpoint's dictionary are the weights, where training saved more than those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from registry.errors import RegistryError, UnsupportedSource

NESTS = ("model", "state_dict", "model_state_dict", "module", "app")
_MAX_DEPTH = 4

IsTensor = Callable[[Any], bool]


@dataclass(frozen=True)
class Weights:
    """The tensors by name, the entries that lead to them, and the entries that are no weights."""

    tensors: Mapping[str, Any]
    nest: tuple[str, ...]
    left_out: tuple[str, ...]


def find_weights(checkpoint: object, is_tensor: IsTensor, file: str) -> Weights:
    """Find the one state dict in a checkpoint: at its top, or under `model`, `state_dict` and the like.

    Raises UnsupportedSource if there is none, or more than one that could be meant.
    """
    nest: list[str] = []
    left_out: list[str] = []
    while True:
        if not isinstance(checkpoint, Mapping):
            raise _refuse(file, f"it holds a {type(checkpoint).__name__} and no dictionary of tensors")
        inner = [key for key in NESTS if _holds_tensors(checkpoint.get(key), is_tensor)]
        tensors = {key: value for key, value in checkpoint.items() if is_tensor(value)}
        if not inner:
            break
        _refuse_rivals(file, checkpoint, inner, tensors, is_tensor)
        if len(nest) == _MAX_DEPTH:
            raise _refuse(file, "its dictionaries are nested too deeply")
        left_out += [str(key) for key in checkpoint if key != inner[0]]
        nest.append(inner[0])
        checkpoint = checkpoint[inner[0]]
    if not tensors:
        raise _refuse(file, "it holds no tensors")
    if not all(isinstance(name, str) for name in tensors):
        raise _refuse(file, "its tensors have numbers for names, as an optimizer's do")
    left_out += [str(key) for key in checkpoint if key not in tensors]
    return Weights(tensors, tuple(nest), tuple(left_out))


def _holds_tensors(value: object, is_tensor: IsTensor, depth: int = 0) -> bool:
    """Say whether a dictionary has tensors in it, or one of the nests that has."""
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return False
    return any(map(is_tensor, value.values())) or any(
        _holds_tensors(value.get(key), is_tensor, depth + 1) for key in NESTS
    )


def _refuse_rivals(
    file: str, checkpoint: Mapping[Any, Any], inner: list[str], tensors: Mapping[Any, Any], is_tensor: IsTensor
) -> None:
    """Refuse a second state dict: another nest, tensors beside the nest, or averaged weights of the same names."""
    rivals = list(inner)
    if any(len(tensor.shape) > 0 for tensor in tensors.values()):  # a step may be kept as a tensor of one number
        rivals.append("its top")
    names = {key for key, value in checkpoint[inner[0]].items() if is_tensor(value)}
    rivals += [
        str(key)
        for key, value in checkpoint.items()
        if key not in NESTS
        and isinstance(value, Mapping)
        and names & {name for name, one in value.items() if is_tensor(one)}
    ]
    if len(rivals) > 1:
        raise _refuse(
            file, f"it holds weights in {' and in '.join(rivals)[:200]}, and which are meant is never guessed"
        )


def _refuse(file: str, what: str) -> RegistryError:
    return UnsupportedSource(
        f"{file} cannot be registered: {what}.",
        hint="Save the one state dict that is meant: torch.save(network.state_dict(), …), or save_pretrained(…).",
        path=file,
    )
