"""Zeros and ones lent to modules that have no bias or gain, while one of transformer-lens's converters reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def lend_missing(network: torch.nn.Module) -> Iterator[None]:
    """Give every Linear and LayerNorm a zero bias, and every LayerNorm a gain of one, if it has none.

    HookedTransformer has these parameters whatever the source has, and some converters take them for granted.
    Afterwards the network is as it was.
    """
    import torch

    dtype = next(network.parameters()).dtype
    lent: list[tuple[torch.nn.Module, str]] = []

    def lend(module: torch.nn.Module, name: str, values: torch.Tensor) -> None:
        lent.append((module, name))
        setattr(module, name, torch.nn.Parameter(values, requires_grad=False))

    try:
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                if module.weight is None:
                    lend(module, "weight", torch.ones(module.normalized_shape, dtype=dtype))
                if module.bias is None:
                    lend(module, "bias", torch.zeros(module.normalized_shape, dtype=dtype))
            elif isinstance(module, torch.nn.Linear) and module.bias is None:
                lend(module, "bias", torch.zeros(module.out_features, dtype=dtype))
        yield
    finally:
        for module, name in lent:
            setattr(module, name, None)
