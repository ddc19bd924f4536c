"""HookedTransformers in memory are registered as they are; what is more than config and weights is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from registry import ArchitectureMismatch, Registry, RegistryError, save_network
from registry.errors import InvalidInput, UnsupportedConfig, UnsupportedSource, UnusableWeights, WeightsMismatch
from tests.contents import read_contents
from tests.networks import assert_identical, compare, log_probs, make_hooked

BOUND = 1e-4
ODD: dict[str, dict[str, Any]] = {
    "solu_ln": {"act_fn": "solu_ln"},
    "attn_only": {"attn_only": True},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "alibi": {"positional_embedding_type": "alibi"},
    "no norms": {"normalization_type": None},
    "final_rms": {"final_rms": True},
    "bidirectional": {"attention_dir": "bidirectional"},
    "parallel": {"parallel_attn_mlp": True},
    "one group a head": {"n_key_value_heads": 4},
    "grouped": {"n_key_value_heads": 2},
    "local": {"use_local_attn": True, "window_size": 5, "attn_types": ["global", "local"]},
    "d_vocab_out": {"d_vocab_out": 7},
    "experts": {"num_experts": 4, "experts_per_token": 2, "gated_mlp": True, "normalization_type": "RMS"},
    "experts LN": {"num_experts": 4, "experts_per_token": 2, "gated_mlp": True},
    "gated LN": {"gated_mlp": True},
    "partly rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "yarn": {"positional_embedding_type": "rotary", "use_yarn_rope": True, "yarn_factor": 4.0,
             "yarn_original_max_position_embeddings": 16},
    "no scale": {"use_attn_scale": False},
    "post_embedding_ln": {"post_embedding_ln": True},
    "soft caps": {"output_logits_soft_cap": 3.0, "attn_scores_soft_cap": 5.0},
    "sinks": {"use_attention_sinks": True},
    "post-norm": {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS",
                  "positional_embedding_type": "rotary", "gated_mlp": True},
    "never raw": {"normalization_type": "LNPre"},
}  # fmt: skip
SHORT = torch.arange(60).reshape(2, 30) * 3 % 211


@pytest.mark.parametrize("name", ODD)
def test_networks_of_no_family_come_back_as_they_were(registry: Registry, name: str) -> None:
    """What processing would change in them is left out, so that both forms compute what the network does."""
    network = make_hooked(**ODD[name])
    done = registry.register_network("mine", network)
    assert done.version is not None
    assert (done.version.family, done.version.is_verified) == (
        "custom" if name != "post-norm" else done.version.family, True,
    )  # fmt: skip
    loaded = registry.load("mine")
    assert compare(loaded, network) < BOUND
    if name == "never raw":
        assert_identical(loaded, network)
    elif name == "one group a head":
        assert torch.equal(registry.load("mine", processed=False).W_K, network.W_K)
    elif name == "alibi":  # see below
        assert compare(registry.load("mine", processed=False), network) == 0.0
    else:
        assert_identical(registry.load("mine", processed=False), network)


def test_what_nothing_reads_is_not_kept(registry: Registry) -> None:
    """With ALiBi, `pos_embed.W_pos` is memory that nobody initialised: HAZARDS.md §1.3, BLOOM."""
    digests = set()
    for filling in (0.0, 5.0):
        network = make_hooked(positional_embedding_type="alibi")
        network.pos_embed.W_pos.data.fill_(filling)
        digests.add(registry.register_network("mine", network, dry_run=True).weights_digest)
    assert len(digests) == 1


def test_what_attention_remembers_of_longer_texts_counts_for_nothing(registry: Registry) -> None:
    """The ALiBi biases of a longer text differ by a constant; that is rounded otherwise, and nothing more."""
    network = make_hooked(positional_embedding_type="alibi", n_ctx=128)
    log_probs(network, torch.arange(100)[None])
    kept = network.blocks[0].attn.alibi
    registry.register_network("mine", network)
    assert network.blocks[0].attn.alibi is kept
    rotary = make_hooked(positional_embedding_type="rotary", n_ctx=4096)
    log_probs(rotary, torch.zeros(1, 2100, dtype=torch.long))
    assert rotary.blocks[0].attn.rotary_sin.shape[0] > 2048
    registry.register_network("rotary", rotary)


def test_what_the_tokenizer_remembers_of_the_last_text_counts_for_nothing(
    registry: Registry, families: Registry
) -> None:
    network = families.load("gpt2")
    registry.register_network("mine", network)
    network.to_tokens(["w5", "w6 w7"])
    backend = network.tokenizer.backend_tokenizer
    remembered = backend.truncation, backend.padding
    assert any(remembered)
    assert registry.register_network("mine", network).outcome == "unchanged"
    assert (backend.truncation, backend.padding) == remembered


def test_switches_of_hook_points_change_nothing(registry: Registry, families: Registry) -> None:
    network = families.load("llama")
    plain = registry.register_network("plain", network)
    network.set_use_attn_result(True)
    network.set_use_split_qkv_input(True)
    network.set_use_hook_mlp_in(True)
    network.set_ungroup_grouped_query_attention(True)
    switched = registry.register_network("switched", network)
    assert switched.architecture.fingerprint == plain.architecture.fingerprint == families.version("llama").fingerprint
    assert switched.weights_digest == plain.weights_digest
    ungrouped = families.load("gpt2")
    registry.register_network("ungrouped", ungrouped)
    ungrouped.set_use_attn_in(True)
    assert registry.register_network("ungrouped", ungrouped).outcome == "unchanged"


def test_tanh_approximations_of_gelu_are_one_function(registry: Registry) -> None:
    fingerprints = set()
    for act_fn in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        network = make_hooked(act_fn=act_fn)
        fingerprints.add(registry.register_network(act_fn, network).architecture.fingerprint)
        assert compare(registry.load(act_fn, processed=False), network) < BOUND
    assert len(fingerprints) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_kept(registry: Registry, dtype: torch.dtype) -> None:
    network = make_hooked(dtype=dtype)
    done = registry.register_network("mine", network)
    assert done.version is not None and done.version.dtype == str(dtype).removeprefix("torch.")
    assert_identical(registry.load("mine", processed=False, dtype=dtype), network)


def test_whether_text_gets_bos_is_kept(registry: Registry, families: Registry) -> None:
    network = families.load("gpt2")
    network.cfg.default_prepend_bos = False
    registry.register_network("mine", network)
    assert registry.load("mine").to_tokens("w5").tolist() == network.to_tokens("w5").tolist() == [[5]]


def test_a_network_of_another_architecture_than_its_parents_is_refused(families: Registry) -> None:
    with pytest.raises(ArchitectureMismatch) as refused:
        families.register_network("other", make_hooked(eps=1e-3, act_fn="relu"), parent="custom")
    assert {one.field for one in refused.value.differences} == {"eps", "act_fn"}
    done = families.register_network("other", make_hooked(eps=1e-3), parent="custom", allow=["eps"])
    assert [one.field for one in done.admitted_differences] == ["eps"]


class Subclass(HookedTransformer):
    """One that computes what it likes."""


def add_hook(network: HookedTransformer) -> None:
    network.add_hook("blocks.0.hook_resid_post", lambda value, hook: value * 0)


def add_permanent_hook(network: HookedTransformer) -> None:
    network.add_perma_hook("hook_embed", lambda value, hook: value * 2)


def add_torch_hook(network: HookedTransformer) -> None:
    network.blocks[0].mlp.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def patch_forward(network: HookedTransformer) -> None:
    network.blocks[1].mlp.forward = lambda value: value  # type: ignore[method-assign]


def exchange_module(network: HookedTransformer) -> None:
    network.blocks[0].mlp = torch.nn.Identity()  # type: ignore[assignment]


def add_adapter(network: HookedTransformer) -> None:
    network.blocks[0].attn.lora_A = torch.nn.Parameter(torch.zeros(4, 32))


def parametrize(network: HookedTransformer) -> None:
    torch.nn.utils.parametrizations.orthogonal(network.unembed, "W_U")


def make_subclass(network: HookedTransformer) -> None:
    network.__class__ = Subclass


def edit_eps(network: HookedTransformer) -> None:
    network.cfg.eps = 0.5


def edit_scale(network: HookedTransformer) -> None:
    network.blocks[1].attn.attn_scale = 1.0


def edit_mask_value(network: HookedTransformer) -> None:
    network.blocks[0].attn.IGNORE.fill_(-1.0)


def remove_a_block(network: HookedTransformer) -> None:
    del network.blocks[1]


def cast_behind_the_config(network: HookedTransformer) -> None:
    torch.nn.Module.double(network)


def let_it_diverge(network: HookedTransformer) -> None:
    network.blocks[0].attn.W_Q.data[0, 0, 0] = float("nan")


def load_in_4bit(network: HookedTransformer) -> None:
    network.cfg.load_in_4bit = True


def add_a_config_field(network: HookedTransformer) -> None:
    network.cfg.rope_flavour = "new"


EDITS: dict[Callable[[HookedTransformer], None], tuple[type[RegistryError], str]] = {
    add_hook: (UnsupportedSource, r"blocks\.0\.hook_resid_post has hooks"),
    add_permanent_hook: (UnsupportedSource, "hook_embed has hooks"),
    add_torch_hook: (UnsupportedSource, r"blocks\.0\.mlp has hooks"),
    patch_forward: (UnsupportedSource, r"blocks\.1\.mlp has a forward of its own"),
    exchange_module: (UnsupportedSource, r"blocks\.0\.mlp is a Identity"),
    add_adapter: (UnsupportedSource, r"blocks\.0\.attn\.lora_A"),
    parametrize: (UnsupportedSource, "unembed is a ParametrizedUnembed"),
    make_subclass: (UnsupportedSource, "Subclass cannot be saved"),
    edit_eps: (UnsupportedSource, "computes something else than its config"),
    edit_scale: (UnsupportedSource, "computes something else than its config"),
    edit_mask_value: (WeightsMismatch, "IGNORE"),
    remove_a_block: (UnsupportedSource, r"blocks\.1 is missing"),
    cast_behind_the_config: (UnusableWeights, r"torch\.float64"),
    let_it_diverge: (UnusableWeights, "NaN"),
    load_in_4bit: (UnsupportedConfig, "load_in_4bit"),
    add_a_config_field: (UnsupportedConfig, "rope_flavour"),
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_network_that_is_more_than_config_and_weights_is_refused(
    registry: Registry, edit: Callable[[HookedTransformer], None], tmp_path: Path
) -> None:
    network = make_hooked()
    edit(network)
    error, text = EDITS[edit]
    with pytest.raises(error, match=text):
        registry.register_network("mine", network)
    with pytest.raises(error, match=text):
        save_network(network, tmp_path / "saved")
    assert read_contents(registry) == (frozenset(), (), 0)
    assert not (tmp_path / "saved").exists()


def test_something_else_than_a_hookedtransformer_is_refused(registry: Registry) -> None:
    for other in (torch.nn.Linear(2, 2), {"embed.W_E": torch.zeros(2, 2)}, torch.nn.DataParallel(make_hooked())):
        with pytest.raises(UnsupportedSource, match="cannot be saved"):
            registry.register_network("mine", other)  # type: ignore[arg-type]


def test_hooks_that_were_taken_off_are_forgotten(registry: Registry) -> None:
    network = make_hooked()
    add_hook(network)
    add_permanent_hook(network)
    network.reset_hooks(including_permanent=True)
    assert registry.register_network("mine", network).outcome == "registered"


def test_a_network_is_saved_in_a_folder_of_its_own(tmp_path: Path) -> None:
    network = make_hooked()
    save_network(network, tmp_path / "one")
    for path in (tmp_path / "one", tmp_path / "one" / "model.safetensors"):
        with pytest.raises(InvalidInput, match="no empty folder"):
            save_network(network, path)
