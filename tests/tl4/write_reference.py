"""Register a version of each family and save its log-probs: run by the main environment, read by the other one.

python -m tests.tl4.write_reference FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from registry import Registry
from registry.architecture import Architecture
from registry.families import FAMILIES
from registry.verify import make_probe
from tests.checkpoints import save_checkpoint


def write_reference(folder: Path) -> None:
    """Fill `folder` with a registry, and with the tokens and log-probs of each version's HookedTransformer."""
    registry = Registry(str(folder / "registry.db"), folder / "store")
    expected = {}
    for family in FAMILIES.values():
        registry.register(family.name, save_checkpoint(folder / "sources" / family.name, family.name))
        tokens = make_probe(Architecture(registry.version(family.name).architecture))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of processing that was left out
            network = registry.load(family.name)
        with torch.inference_mode():
            log_probs = network(tokens).log_softmax(-1)
        expected[family.name] = {"tokens": tokens, "log_probs": log_probs, "text": network.to_tokens("w1 w2")}
    torch.save(expected, folder / "expected.pt")
    registry.close()


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
