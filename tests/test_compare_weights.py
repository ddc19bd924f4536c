"""What changed in the weights: pairs that were made with a known change, which has to show there and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from registry import Registry
from registry.compare.change import measure_change
from registry.compare.components import find_component, find_layer
from registry.compare.weights import WeightComparison, compare_opened
from tests.adapters import make_adapted, save_adapter
from tests.checkpoints import edit_weights

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")


@pytest.fixture
def base(registry: Registry, make_checkpoint: Callable[..., Path]) -> Path:
    """A llama (grouped queries, rotary) registered as `base`."""
    folder = make_checkpoint("llama")
    registry.register("base", folder, parity="skip")
    return folder


def _compare(registry: Registry, folder: Path) -> WeightComparison:
    registry.register("other", folder, parent="base", parity="skip", allow=["unrelated-parent"])
    found = registry.compare("base", "other", weights=True).weights
    assert found is not None
    return found


def test_equal_weights_are_zeros_everywhere(registry: Registry, base: Path) -> None:
    found = registry.compare("base", "base", weights=True).weights
    assert found is not None
    assert found.tensors
    assert found.n_changed == 0
    assert found.relative_distance == 0.0
    for one in found.tensors:
        assert (one.relative_distance, one.largest_change, one.distance) == (0.0, 0.0, 0.0)
        assert one.rank in (0, None)
        assert one.cosine in (1.0, None)  # None: biases that the family does not have are zero
    assert all(head.relative_distance == 0.0 for head in found.heads)
    assert all(part.relative_distance == 0.0 and part.n_changed == 0 for part in found.parts)
    assert found.permuted == ()


def test_one_altered_head_shows_in_that_head_alone(registry: Registry, base: Path, tmp_path: Path) -> None:
    def alter(tensors: dict[str, torch.Tensor]) -> None:
        q = tensors["model.layers.1.self_attn.q_proj.weight"]  # (n_heads * d_head, d_model); d_head is 16
        q[2 * 16 : 3 * 16] *= 1.5

    found = _compare(registry, edit_weights(base, tmp_path / "altered", alter))
    changed = [(head.layer, head.head, head.name) for head in found.heads if head.relative_distance > 0]
    assert changed == [(1, 2, "blocks.1.attn.W_Q")]
    head = next(head for head in found.heads if head.relative_distance > 0)
    assert head.relative_distance == pytest.approx(0.5, rel=1e-6)
    assert head.cosine == pytest.approx(1.0, abs=1e-6)
    assert [one.name for one in found.tensors if one.largest_change > 0] == ["blocks.1.attn.W_Q"]
    parts = [(part.layer, part.component) for part in found.parts if part.relative_distance > 0]
    assert parts == [(1, "attention")]
    assert found.permuted == ()


def test_a_merged_lora_shows_its_rank_where_it_was_and_nowhere_else(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    adapted = make_adapted("llama", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    registry.register("other", save_adapter(tmp_path / "adapter", adapted), parent="base", parity="skip")
    found = registry.compare("base", "other", weights=True).weights
    assert found is not None
    _check_ranks(found, 4, ("attn.W_Q", "attn._W_V", "mlp.W_out"))


def test_rounding_to_bfloat16_does_not_hide_the_rank_of_an_adapter(
    registry: Registry, base: Path, tmp_path: Path
) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if "up_proj" in name:
                rows, columns = tensor.shape
                factors = torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator)
                tensor += 0.05 * factors[0] @ factors[1]
            tensors[name] = tensor.bfloat16()

    kept = edit_weights(
        base, tmp_path / "kept", lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()})
    )
    registry.register("kept", kept, parity="skip")
    registry.register("merged", edit_weights(base, tmp_path / "merged", add), parity="skip", parent="kept")
    found = registry.compare("kept", "merged", weights=True).weights
    assert found is not None
    _check_ranks(found, 3, ("mlp.W_in",))


def _check_ranks(found: WeightComparison, rank: int, touched: tuple[str, ...]) -> None:
    matrices = [one for one in found.tensors if one.rank is not None]
    assert {one.name for one in matrices if one.rank} == {one.name for one in matrices if one.name.endswith(touched)}
    assert {one.rank for one in matrices} == {0, rank}
    assert all((one.largest_change > 0) == one.name.endswith(touched) for one in found.tensors)


def test_heads_that_changed_places_are_told(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_checkpoint("gpt_neox")
    registry.register("base", base, parity="skip")
    order = [2, 0, 1, 3]

    def permute(tensors: dict[str, torch.Tensor]) -> None:
        prefix = "gpt_neox.layers.1.attention."
        for name in ("query_key_value.weight", "query_key_value.bias"):  # (heads * (q, k, v), …)
            tensor = tensors[prefix + name]
            heads = tensor.reshape(4, 48, -1)
            tensors[prefix + name] = heads[order].reshape(tensor.shape).contiguous()
        dense = tensors[prefix + "dense.weight"]  # (d_model, heads * d_head)
        tensors[prefix + "dense.weight"] = dense.reshape(64, 4, 16)[:, order].reshape(64, 64).contiguous()

    found = _compare(registry, edit_weights(base, tmp_path / "permuted", permute))
    (one,) = found.permuted
    assert (one.layer, one.kind, list(one.order)) == (1, "query", order)
    assert {head.layer for head in found.heads if head.relative_distance > 0} == {1}


def test_figures_are_those_of_plain_torch(registry: Registry, base: Path, make_checkpoint: Callable[..., Path]) -> None:
    found = _compare(registry, make_checkpoint("llama", seed=1))
    old, new = (registry.load(ref, processed=False).state_dict() for ref in ("base", "other"))
    for one in found.tensors:
        a, b = old[one.name].double(), new[one.name].double()
        assert one.distance == pytest.approx(float((b - a).norm()), rel=1e-9, abs=1e-12)
        assert one.largest_change == pytest.approx(float((b - a).abs().max()), rel=1e-9)
        if float(a.norm()) and float(b.norm()):
            assert one.relative_distance == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-9)
            cosine = float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
            assert one.cosine == pytest.approx(cosine, abs=1e-9)
    part = next(part for part in found.parts if (part.layer, part.component) == (0, "MLP"))
    names = [name for name in old if name.startswith("blocks.0.mlp.")]
    a, b = (torch.cat([state[name].double().flatten() for name in names]) for state in (old, new))
    assert part.relative_distance == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-9)
    assert part.n_tensors == len(names)


def test_a_folded_version_is_compared_folded(registry: Registry, base: Path) -> None:
    registry.register_network("folded", registry.load("base"), parity="skip")
    found = registry.compare("base", "folded", weights=True).weights
    assert found is not None
    assert "fold_ln" in found.processing
    assert max(one.relative_distance for one in found.tensors) < 1e-6


def test_what_only_a_bridge_runs_is_compared_by_its_own_names(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    for seed in (0, 1):
        registry.register("stable", make_checkpoint("stablelm", seed=seed), parity="skip")
    found = registry.compare("stable@v1", "stable@v2", weights=True).weights
    assert found is not None
    assert {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"} <= {
        one.name for one in found.tensors
    }
    assert {part.component for part in found.parts} == {"embed", "attention", "MLP", "norm", "unembed"}


def test_networks_of_other_shapes_are_compared_where_they_can_be(
    registry: Registry, base: Path, make_checkpoint: Callable[..., Path]
) -> None:
    registry.register("longer", make_checkpoint("llama", num_hidden_layers=3, vocab_size=230), parity="skip")
    found = registry.compare("base", "longer", weights=True).weights
    assert found is not None
    assert set(found.misshapen) == {"embed.W_E", "unembed.W_U", "unembed.b_U"}
    assert found.misshapen["embed.W_E"] == ((211, 64), (230, 64))
    assert found.only_a == ()
    assert all(name.startswith("blocks.2.") for name in found.only_b)


def test_results_are_frames(registry: Registry, base: Path, make_checkpoint: Callable[..., Path]) -> None:
    found = _compare(registry, make_checkpoint("llama", seed=1))
    assert list(found.tensors.to_pandas()["name"]) == [one.name for one in found.tensors]
    assert set(found.parts.to_pandas()["component"]) == {"embed", "attention", "MLP", "norm", "unembed"}
    assert len(found.heads.to_pandas()) == len(found.heads)


@pytest.mark.parametrize(("shape", "rank"), [((300, 70), 5), ((70, 300), 5), ((4, 40, 16), 3)])
def test_the_rank_is_that_of_the_difference_whatever_the_shape(shape: tuple[int, ...], rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "blocks.0.attn.W_Q" if len(shape) == 3 else "blocks.0.mlp.W_in"
    a = torch.randn(shape, generator=generator)
    rows, columns = (shape[1], shape[0] * shape[2]) if len(shape) == 3 else shape
    change = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator) * 1e-2
    if len(shape) == 3:
        change = change.reshape(shape[1], shape[0], shape[2]).permute(1, 0, 2)
    found = measure_change(name, a, a + change, roundoff=2.0**-24, ranks=True)
    assert found.rank == rank
    assert found.effective_rank is not None
    assert 1 < found.effective_rank <= rank + 1e-6


def test_a_changed_tensor_of_full_rank_has_full_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 40, generator=generator)
    found = measure_change("mlp.W_in", a, b, roundoff=2.0**-24, ranks=True)
    assert found.rank == 40
    assert measure_change("mlp.W_in", a, b, roundoff=2.0**-24, ranks=False).rank is None


def test_rounding_alone_has_no_rank() -> None:
    a = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    found = measure_change("mlp.W_in", a, a.bfloat16().float(), roundoff=2.0**-8, ranks=True)
    assert found.distance > 0
    assert found.rank == 0


def test_zeros_make_no_nonsense() -> None:
    zero, one = torch.zeros(3, 4), torch.ones(3, 4)
    found = compare_opened(lambda: ({"w": zero, "v": zero}, {"w": one, "v": zero}), refs=("a", "b"))
    by_name = {change.name: change for change in found.tensors}
    assert (by_name["w"].relative_distance, by_name["w"].cosine) == (math.inf, None)
    assert (by_name["v"].relative_distance, by_name["v"].cosine) == (0.0, None)


@pytest.mark.parametrize(
    ("name", "layer", "component"),
    [
        ("embed.W_E", None, "embed"),
        ("pos_embed.W_pos", None, "embed"),
        ("blocks.11.ln1.w", 11, "norm"),
        ("blocks.0.attn.q_norm.w", 0, "norm"),
        ("blocks.3.attn._W_K", 3, "attention"),
        ("blocks.3.mlp.W_gate", 3, "MLP"),
        ("blocks.3.mlp.experts.0.W_in.weight", 3, "MLP"),
        ("ln_final.w", None, "norm"),
        ("unembed.W_U", None, "unembed"),
        ("transformer.h.4.mlp.c_fc.weight", 4, "MLP"),
        ("model.layers.4.input_layernorm.weight", 4, "norm"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "unembed"),
        ("transformer.wte.weight", None, "embed"),
        ("backbone.layers.0.mixer.in_proj.weight", 0, "MLP"),
        ("something.else", None, "other"),
    ],
)
def test_tensors_belong_where_they_belong(name: str, layer: int | None, component: str) -> None:
    assert (find_layer(name), find_component(name)) == (layer, component)
