"""Take the sketch of a Hugging Face network: of the raw HookedTransformer that it converts to, if there is one."""

from __future__ import annotations

from transformers import PreTrainedModel

from registry.architecture import Architecture
from registry.convert import RAW, convert_weights
from registry.families.family import Family
from registry.sketch import Sketch
from registry.take_sketch import take_sketch


def sketch_network(network: PreTrainedModel, family: Family, architecture: Architecture) -> Sketch:
    """Sample the network, in whatever dtype it is; raw tensors are views of its own, so that it costs next to nothing.

    Raises HookedTransformerMissing where transformer-lens cannot convert it.
    """
    if family.convert is None:
        return take_sketch(network.state_dict())
    return take_sketch(convert_weights(network, family, architecture, RAW))
