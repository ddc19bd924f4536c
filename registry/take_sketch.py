"""Take the sketch of tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from registry.sketch import Samples, Sketch, choose_indices, name_sampled

_LARGEST = float(np.finfo(np.float32).max)


def take_sketch(tensors: Mapping[str, torch.Tensor], processing: Sequence[str] = ()) -> Sketch:
    """Sample the matrices of a HookedTransformer, or of a network that there is none of under its tensors' own names.

    Only the sampled elements are read and copied.
    """
    shapes, samples = {}, {}
    for name, tensor in tensors.items():
        sampled = name_sampled(name, tuple(tensor.shape))
        if sampled is not None:
            shapes[sampled] = tuple(tensor.shape)
            samples[sampled] = _sample(sampled, tensor)
    return Sketch(shapes, samples, tuple(processing))


def _sample(name: str, tensor: torch.Tensor) -> Samples:
    indices = tuple(torch.from_numpy(np.ascontiguousarray(one)) for one in choose_indices(name, tuple(tensor.shape)))
    chosen = tensor.detach()[tuple(one.to(tensor.device) for one in indices)]
    samples: Samples = chosen.double().clamp(-_LARGEST, _LARGEST).float().cpu().numpy()
    return samples
