"""Copies of one tensor that take no memory of their own until they are written to."""

from __future__ import annotations

import os
import tempfile

import torch

_SMALL_BYTES = 2**14  # not worth a map each


def copy_lazily(tensor: torch.Tensor, n_copies: int) -> list[torch.Tensor]:
    """Return copies in the CPU's memory, each a private map of the same file, which is gone already.

    They are apart from each other like any copies: edits stay in one, and safetensors saves them. Where files cannot be
    mapped and deleted so, they are plain copies.
    """
    if n_copies < 2 or tensor.nbytes < _SMALL_BYTES or os.name != "posix":
        return [tensor.clone() for _ in range(n_copies)]
    try:
        with tempfile.NamedTemporaryFile(prefix="lensreg-") as file:
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            return [
                torch.from_file(file.name, shared=False, size=tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
                for _ in range(n_copies)
            ]
    except OSError:  # no room for temporary files
        return [tensor.clone() for _ in range(n_copies)]
