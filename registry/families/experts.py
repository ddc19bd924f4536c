"""Experts: the names and shapes that the tensors of a mixture of experts have in files and in transformers's networks.

transformers 5 keeps the experts of a layer in two tensors, `experts.gate_up_proj` (n_experts, 2·d_mlp, d_model) and
`experts.down_proj` (n_experts, d_model, d_mlp). Checkpoints hold three matrices per expert, and save_pretrained writes
those (transformers 5.23 `conversion_mapping.py`: MergeModulelist and Concatenate, and back). The numbers lie in the
same order in both, so a fused tensor is nothing but its experts' matrices one after the other, and without reading one
of them both forms get the same names, shapes and digests: those of the files, one per expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from registry.families.fields import refuse_value
from registry.weights import TensorHeader

# more experts than any network has; what claims more is left whole, and refused for its name
_MAX_EXPERTS = 4096
_FUSED = re.compile(r"(model\.layers\.\d+\.)\w+\.experts\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class ExpertNames:
    """What files call a block with experts and the three matrices of one expert."""

    block: str
    gate: str
    up: str
    down: str

    def rename(self, name: str) -> str:
        """Return a tensor's name with the block's name in files: transformers's networks call it `mlp`."""
        return re.sub(r"^(model\.layers\.\d+\.)mlp\.", rf"\1{self.block}.", name)

    def split(self, name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
        """List names and shapes of the matrices that a fused tensor holds, in the order of its bytes.

        A tensor that is not fused is returned as it is.
        """
        fused = _FUSED.fullmatch(name)
        if not fused or len(shape) != 3 or not 1 <= shape[0] <= _MAX_EXPERTS:
            return [(name, shape)]
        layer, kind = fused.groups()
        n_experts, n_rows, n_columns = shape
        if kind == "down_proj":
            matrices, rows = [self.down], n_rows
        elif n_rows % 2 == 0:
            matrices, rows = [self.gate, self.up], n_rows // 2
        else:
            return [(name, shape)]
        return [
            (f"{layer}{self.block}.experts.{expert}.{matrix}.weight", (rows, n_columns))
            for expert in range(n_experts)
            for matrix in matrices
        ]


def split_header(names: ExpertNames | None, header: TensorHeader) -> Iterator[TensorHeader]:
    """Give the headers of the matrices that a tensor in a file holds, each with the place of its own bytes."""
    parts = names.split(header.name, header.shape) if names else [(header.name, header.shape)]
    size_bytes = header.size_bytes // len(parts)
    for index, (name, shape) in enumerate(parts):
        start = header.start + index * size_bytes
        yield replace(header, name=name, shape=shape, start=start, size_bytes=size_bytes)


def read_experts(config: Mapping[str, Any], key: str, *, norm_topk_prob: bool) -> dict[str, Any]:
    """Return the fields of a mixture of experts; `key` is the field that counts them."""
    n_experts, n_chosen = config[key], config["num_experts_per_tok"]
    if n_chosen > n_experts:
        raise refuse_value("num_experts_per_tok", n_chosen, f"there are only {key} = {n_experts} to choose from")
    return {"num_experts": n_experts, "experts_per_token": n_chosen, "norm_topk_prob": norm_topk_prob}
