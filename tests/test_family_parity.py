"""Every family converts to the same function, over a grid of configs; DESIGN.md §7 has the bounds."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry
from registry.architecture import describe_architecture, find_differences
from registry.families import FAMILIES
from registry.verify import make_probe, refuse_disparity
from tests.config_grid import (
    GRID,
    scaled,
)
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]
NAMES = [family.name for family in FAMILIES.values()]


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "config"), GRID)
def test_a_right_conversion_is_within_the_bound_raw_and_processed(
    name: str, config: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False, seed=3, **config))
    parity = opened.measure()
    refuse_disparity(parity, "here")
    assert parity.passed
    assert parity.dtype == "float64"
    assert parity.bound == max(1e-4, 10 * parity.noise_floor)
    # GPT-Neo's scores are not scaled and computed in float32: there is more noise, and all of the difference is noise
    in_float32 = name == "gpt_neo"
    assert not in_float32 or parity.raw <= 1.1 * parity.noise_floor
    # sequences are long where rope is scaled, and what the source leaves open there is measured, not guessed
    usual = 3 * parity.noise_floor if parity.n_tokens > 600 or in_float32 else 1e-4
    assert parity.noise_floor < 2e-4
    # where a token attends to itself alone, its weight is exactly 1 whatever the implementation and the positions
    attends = opened.architecture.get("window_size") != 1 and opened.architecture["clip_qkv"] != 0
    assert parity.noise_floor > 0 or not attends
    assert 0 < parity.raw < usual and 0 < parity.processed < usual
    assert parity.n_tokens >= 512


@pytest.mark.parametrize("name", NAMES)
def test_what_differs_is_shown_with_the_key_it_was_read_from(name: str, make_checkpoint: MakeCheckpoint) -> None:
    plain = read_checkpoint(make_checkpoint(name, tokenizer=False))
    named = {*plain.family.config_keys, "yarn_global_attn_only"}  # the latter comes with yarn, and is False
    for family, config in GRID:
        if family == name:
            other = read_checkpoint(make_checkpoint(name, tokenizer=False, **config)).architecture
            differing = {one.field for one in find_differences(plain.architecture, other)}
            assert differing <= named, config


@pytest.mark.parametrize("name", NAMES)
def test_parity_in_float32_has_its_own_bound(name: str, make_checkpoint: MakeCheckpoint) -> None:
    parity = read_checkpoint(make_checkpoint(name, tokenizer=False)).measure(dtype=torch.float32)
    assert parity.passed and parity.dtype == "float32" and parity.bound == 1e-3
    assert 0 < parity.raw < 1e-3 and 0 < parity.noise_floor < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_what_was_measured_is_recorded(name: str, registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    done = registry.register("base", make_checkpoint(name))
    parity, recorded = done.parity, registry.version("base")
    assert parity is not None and recorded.is_verified
    assert {metric: row.value for metric, row in recorded.parity.items()} == {
        "raw": parity.raw,
        "processed": parity.processed,
    }
    for row in recorded.parity.values():
        assert row.passed is True
        assert (row.bound, row.unit, row.dtype) == (parity.bound, "nats", "float64")
        assert (row.n_samples, row.dataset_digest) == (parity.n_tokens, parity.probe_digest)
        assert row.details["noise_floor"] == parity.noise_floor > 0
        assert row.details["processing"] == list(parity.processing) != []
        assert row.environment["versions"] == {
            package: version(package) for package in ("torch", "transformers", "transformer-lens")
        }


def test_without_verification_nothing_is_recorded_as_measured(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    done = registry.register("base", make_checkpoint("gpt2"), parity="skip")
    assert done.parity is None
    assert registry.version("base").parity == {} and not registry.version("base").is_verified


# --- the probe


def test_the_probe_is_always_the_same_and_within_the_vocabulary(make_checkpoint: MakeCheckpoint) -> None:
    architecture = read_checkpoint(make_checkpoint("gpt2", tokenizer=False)).architecture
    probe = make_probe(architecture)
    assert torch.equal(probe, make_probe(architecture))
    assert probe.shape == (6, 96)
    assert int(probe.min()) >= 0 and int(probe.max()) < architecture["d_vocab"]
    assert len(set(probe.flatten().tolist())) > 50


LEARNED = {"positional_embedding_type": "standard"}
ROTARY = {"positional_embedding_type": "rotary", "rotary_base": 1e4}
LINEAR_ROTARY = {**ROTARY, "rotary_scaling_factor": 4.0}


def local_attention(window: int) -> dict[str, Any]:
    return {"use_local_attn": True, "attn_types": ["local"], "window_size": window}


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({**LEARNED, "n_ctx": 1024}, (1, 512)),
        ({**LEARNED, "n_ctx": 150}, (4, 150)),
        ({**LEARNED, "n_ctx": 1}, (512, 1)),
        ({**LEARNED, "n_ctx": 1024, **local_attention(100)}, (1, 512)),
        ({**LEARNED, "n_ctx": 1024, **local_attention(600)}, (1, 664)),
        ({**LEARNED, "n_ctx": 1024, **local_attention(1000)}, (1, 1024)),
        ({**LEARNED, "n_ctx": 10**6, **local_attention(10**5)}, (1, 4160)),
        # plain rotary positions in shorter sequences; one position is left for the shift
        ({**ROTARY, "n_ctx": 1024}, (4, 128)),
        ({**ROTARY, "n_ctx": 96}, (6, 95)),
        ({**ROTARY, "n_ctx": 1024, **local_attention(200)}, (2, 264)),
        # beyond the context of the first training
        ({**LINEAR_ROTARY, "n_ctx": 1024}, (1, 512)),
        ({**LINEAR_ROTARY, "n_ctx": 4096}, (1, 1088)),
        ({**LINEAR_ROTARY, "n_ctx": 2**20}, (1, 4160)),
    ],
)
def test_the_probe_is_longer_than_a_window_and_than_the_first_context(
    fields: dict[str, Any], shape: tuple[int, int]
) -> None:
    plain = {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_head": 8, "d_mlp": 8, "d_vocab": 9, "act_fn": "relu"}
    plain |= {"normalization_type": "LN", "eps": 1e-5, "tie_word_embeddings": False}
    assert make_probe(describe_architecture(**plain, **fields)).shape == shape


def test_rotary_noise_is_part_of_the_floor(make_checkpoint: MakeCheckpoint) -> None:
    """Transformers computes angles in float32; far out, that is all a right conversion differs by."""
    far = scaled("yarn", factor=8.0, original_max_position_embeddings=900) | {"num_hidden_layers": 6}
    parity = read_checkpoint(make_checkpoint("llama", tokenizer=False, seed=3, **far)).measure()
    assert parity.passed and parity.n_tokens == 964
    assert parity.raw < 3 * parity.noise_floor
