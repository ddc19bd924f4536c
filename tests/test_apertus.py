"""Apertus: its activation's numbers are weights, kept as such and never made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.convert import RAW, Processing, convert_network, convert_weights
from registry.errors import WeightsMismatch
from registry.networks import make_hooked_config, make_hooked_network
from registry.verify import refuse_disparity
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]

BETA = "model.layers.1.mlp.act_fn.beta"
EPS = "model.layers.0.mlp.act_fn.eps"


@pytest.fixture
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    """A checkpoint whose xIELU has another beta and eps than transformers and transformer-lens begin with."""
    made = make_checkpoint("apertus")
    tensors = load_file(made / "model.safetensors")
    tensors |= {BETA: torch.tensor(0.8), EPS: torch.tensor(-0.05)}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.mark.parametrize("processing", [RAW, Processing()])
def test_beta_and_eps_are_the_file_s(folder: Path, processing: Processing) -> None:
    opened = read_checkpoint(folder)
    refuse_disparity(opened.measure(), "here")
    network: Any = convert_network(opened.build(), opened.family, opened.architecture, processing, dtype=torch.float32)
    assert float(network.blocks[1].mlp.act_fn.beta) == pytest.approx(0.8)
    assert float(network.blocks[0].mlp.act_fn.beta) == pytest.approx(0.5)
    assert float(network.blocks[0].mlp.act_fn.eps) == pytest.approx(-0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_registered_one_is_loaded_with_them(folder: Path, dtype: str, registry: Registry) -> None:
    registry.register("apertus", folder)
    network: Any = registry.load("apertus", dtype=dtype)
    for block in network.blocks:
        numbers = [*block.mlp.act_fn.parameters(), *block.mlp.act_fn.buffers()]
        assert len(numbers) == 4
        assert {number.dtype for number in numbers} == {getattr(torch, dtype)}
    assert float(network.blocks[1].mlp.act_fn.beta) == pytest.approx(0.8, rel=1e-2)


@pytest.mark.parametrize("name", ["alpha_p", "alpha_n", "beta", "eps"])
def test_none_of_the_four_may_be_missing(folder: Path, name: str) -> None:
    opened = read_checkpoint(folder)
    tensors = convert_weights(opened.build(), opened.family, opened.architecture, RAW)
    cfg = make_hooked_config(opened.architecture, opened.family, folded=False, dtype=torch.float32, device="cpu")
    del tensors[f"blocks.1.mlp.act_fn.{name}"]
    with pytest.raises(WeightsMismatch) as refused:
        make_hooked_network(cfg, tensors)
    assert refused.value.missing == (f"blocks.1.mlp.act_fn.{name}",)
