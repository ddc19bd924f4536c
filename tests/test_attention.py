"""The second implementation of attention computes what transformers's eager one does, soft caps and sinks included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from registry.attention import Float64Attention, attend, choose_second_attention
from tests.checkpoints import make_network


class Attention(torch.nn.Module):
    """What an implementation reads from a layer of transformers."""

    def __init__(self, n_groups: int, n_heads: int) -> None:
        super().__init__()
        self.num_key_value_groups = n_heads // n_groups
        self.sinks = torch.nn.Parameter(torch.randn(n_heads, dtype=torch.float64))


def make_inputs(n_groups: int, n_heads: int, window: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (
        torch.randn(2, n, 20, 8, generator=generator, dtype=torch.float64) for n in (n_heads, n_groups, n_groups)
    )
    distance = torch.arange(20)[:, None] - torch.arange(20)[None]
    seen = (distance >= 0) & (distance < window)
    mask = torch.zeros(2, 1, 20, 20, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    return query, key, value, mask


@pytest.mark.parametrize(("n_groups", "n_heads"), [(1, 4), (2, 4), (4, 4)])
@pytest.mark.parametrize("window", [1, 7, 20])
@pytest.mark.parametrize("options", [{}, {"softcap": 0.7}, {"softcap": 50.0}])
def test_it_is_gemma_2_s_eager_attention(n_groups: int, n_heads: int, window: int, options: dict[str, Any]) -> None:
    inputs = make_inputs(n_groups, n_heads, window)
    module = Attention(n_groups, n_heads)
    expected = modeling_gemma2.eager_attention_forward(module, *inputs, scaling=0.3, **options)[0]
    ours = attend(module, *inputs, scaling=0.3, **options)[0]
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-6, rtol=0)  # theirs takes the softmax in float32
    if "softcap" in options and window > 1:
        other = attend(module, *inputs, scaling=0.3)[0]
        assert not torch.allclose(other, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_it_is_the_eager_attention_of_gpt_oss(n_groups: int) -> None:
    inputs = make_inputs(n_groups, 4, 7)
    module = Attention(n_groups, 4)
    expected = modeling_gpt_oss.eager_attention_forward(module, *inputs, scaling=0.3)[0]
    ours = attend(module, *inputs, scaling=0.3, s_aux=module.sinks)[0]
    assert torch.allclose(ours, expected, atol=1e-12, rtol=0)
    assert not torch.allclose(attend(module, *inputs, scaling=0.3)[0], expected, atol=1e-3, rtol=0)


class InFloat32(torch.nn.Module):
    """Attention as GPT-Neo, GPT-J and BLOOM write it."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend, computing scores and softmax in float32."""
        scores = torch.matmul(query.to(torch.float32), key.to(torch.float32).transpose(-1, -2))
        weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        return torch.matmul(weights, value)


def test_in_float64_no_step_of_attention_is_in_float32() -> None:
    query, key, value, _ = make_inputs(4, 4, 20)
    exact = torch.softmax(query @ key.transpose(-1, -2), -1) @ value
    with Float64Attention():
        wide = InFloat32()(query, key, value)
    assert wide.dtype == torch.float64
    assert (
        float((wide - exact).abs().max()) < 1e-14 < 1e-9 < float((InFloat32()(query, key, value) - exact).abs().max())
    )


def test_in_float32_the_products_are_exact_and_then_rounded() -> None:
    query, key, value = (tensor.float() for tensor in make_inputs(4, 4, 20)[:3])
    with Float64Attention():
        scores = torch.matmul(query, key.transpose(-1, -2))
        attended = InFloat32()(query, key, value)
    assert scores.dtype == attended.dtype == torch.float32
    assert torch.equal(scores, (query.double() @ key.double().transpose(-1, -2)).float())
    assert not torch.equal(attended, InFloat32()(query, key, value))


@pytest.mark.parametrize("name", ["bloom", "gpt_neo", "gptj"])
def test_where_attention_cannot_be_exchanged_its_steps_are(name: str) -> None:
    network = make_network(name)
    assert isinstance(choose_second_attention(network), Float64Attention)
    tokens = torch.arange(40)[None]
    for dtype, least in ((torch.float64, 1e-8), (torch.float32, 1e-7)):
        network.to(dtype)
        with torch.inference_mode():
            one = network(tokens).logits
            with Float64Attention():
                other = network(tokens).logits
        assert one.dtype == other.dtype == dtype
        assert least < float((one - other).abs().max()) < 1e-3


def test_where_it_can_be_exchanged_it_is() -> None:
    assert choose_second_attention(make_network("gpt_neox")) == "sdpa"
