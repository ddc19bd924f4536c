"""Write weights that had to be read and laid out anew."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors. Raises OSError, as whatever else writes there, and not the library's own error."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
