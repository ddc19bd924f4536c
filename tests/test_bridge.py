"""Versions as TransformerBridges and as Hugging Face networks: of the same bytes, with the same log-probs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from registry import Registry
from registry.architecture import describe_architecture
from registry.bridge import build_checked_bridge
from registry.convert import Processing, guard_processing
from registry.errors import UnsupportedBridge, UnsupportedLayout
from registry.families import FAMILIES, find_family_by_name
from registry.load import load_bridge_network, load_source_network
from registry.load_options import UnverifiedVersion
from registry.quiet import quiet
from registry.verify import BOUND, make_probe, measure_reference
from tests.checkpoints import CLASSES, make_network

MakeCheckpoint = Callable[..., Path]
# where a processing would change the function it is left out, and says so
pytestmark = pytest.mark.filterwarnings("ignore:.* would change what .* computes; it was left out")
NAMES = [family.name for family in FAMILIES.values()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Iterator[Registry]:
    """A registry with one version of each family."""
    folder = tmp_path_factory.mktemp("bridges")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    for name in NAMES:
        registry.register(name, make_checkpoint(name))
    yield registry
    registry.close()


def log_probs(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        output = network(tokens)
    return getattr(output, "logits", output).double().log_softmax(-1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max())


@pytest.mark.sampled
@pytest.mark.parametrize("compatibility", [False, True], ids=["raw", "compatibility"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bridge_has_the_log_probs_of_the_hooked_transformer(name: str, compatibility: bool, shared: Registry) -> None:
    dtype = measure_dtype(name)
    hooked = shared.load(name, processed=compatibility, dtype=dtype)
    tokens = make_probe(describe(shared, name))
    expected = log_probs(hooked, tokens)
    bridge = shared.load_bridge(name, compatibility=compatibility, dtype=dtype)
    source = shared.load_hf(name, dtype=dtype)
    assert isinstance(bridge, TransformerBridge) and isinstance(hooked, HookedTransformer)
    bound = measure_reference(source, find_family_by_name(name), describe(shared, name)).bound
    assert bound <= 10 * BOUND[dtype], "the noise of this network would hide a wrong bridge"
    assert difference(log_probs(bridge, tokens), expected) <= bound
    assert difference(log_probs(source, tokens), expected) <= bound


def measure_dtype(name: str) -> torch.dtype:
    """The dtype that the family is verified in."""
    family = next(family for family in FAMILIES.values() if family.name == name)
    return getattr(torch, getattr(family, "parity_dtype", "float64"))


def describe(registry: Registry, name: str) -> Any:
    return describe_architecture(**registry.version(name).architecture)


@pytest.mark.sampled
@pytest.mark.parametrize("compatibility", [False, True], ids=["raw", "compatibility"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bridge_in_bfloat16_is_as_good_as_the_hooked_transformer_in_it(
    name: str, compatibility: bool, shared: Registry
) -> None:
    """All that bfloat16 can be held to: no further off than the other network in it, by a factor of two."""
    tokens = make_probe(describe(shared, name))
    exact = log_probs(shared.load_hf(name), tokens)
    hooked = shared.load(name, processed=compatibility, dtype="bfloat16")
    bridge = shared.load_bridge(name, compatibility=compatibility, dtype="bfloat16")
    assert {parameter.dtype for parameter in bridge.parameters()} == {torch.bfloat16}
    assert bridge.cfg.dtype == torch.bfloat16 and bridge(tokens).dtype == torch.bfloat16
    assert 0 < difference(log_probs(bridge, tokens), exact) <= 2 * difference(log_probs(hooked, tokens), exact)


@pytest.mark.parametrize("name", NAMES)
def test_a_bridge_reads_texts_as_the_registered_tokenizer_does(name: str, shared: Registry) -> None:
    hooked, bridge, tokenizer = shared.load(name), shared.load_bridge(name), shared.tokenizer(name)
    assert tokenizer is not None and type(tokenizer) is type(hooked.tokenizer)
    ids = tokenizer("w1 w2", add_special_tokens=False)["input_ids"]
    assert bridge.to_tokens("w1 w2").tolist() == [[tokenizer.bos_token_id or tokenizer.eos_token_id, *ids]]
    texts = ["w1 w2 w3", "", "<bos> w4", "unknown", ["w1", "w5 w6 w7"]]
    for text in texts:
        for options in ({}, {"prepend_bos": False}, {"padding_side": "left"}):
            assert torch.equal(bridge.to_tokens(text, **options), hooked.to_tokens(text, **options)), (text, options)
    assert bridge.cfg.n_ctx == hooked.cfg.n_ctx
    assert bridge.cfg.model_name == hooked.cfg.model_name == f"{name}@v1"
    assert torch.equal(
        bridge.generate("w1 w2", max_new_tokens=4, do_sample=False, verbose=False, return_type="tokens"),
        hooked.generate("w1 w2", max_new_tokens=4, do_sample=False, verbose=False, return_type="tokens"),
    )


def test_a_bridge_without_a_tokenizer_has_none(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """HAZARDS.md §6: for want of files the bridge makes one up, of one token."""
    registry.register("bare", make_checkpoint("gpt2", tokenizer=False))
    assert registry.load_bridge("bare").tokenizer is None
    assert registry.tokenizer("bare") is None


def test_hidden_activations_of_a_bridge_are_those_of_the_hooked_transformer(shared: Registry) -> None:
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]])
    for compatibility in (False, True):
        hooked = shared.load("gpt2", processed=compatibility, dtype="float64")
        bridge = shared.load_bridge("gpt2", compatibility=compatibility, dtype="float64")
        _, expected = hooked.run_with_cache(tokens)
        _, found = bridge.run_with_cache(tokens)
        for name in ("blocks.0.hook_resid_pre", "blocks.1.attn.hook_pattern", "blocks.1.hook_resid_post"):
            assert difference(found[name], expected[name]) < 1e-5, (name, compatibility)


def test_compatibility_mode_changes_no_one_else_s_network(shared: Registry) -> None:
    """HAZARDS.md §6: it processes the weights of the network that it was given, in place."""
    before = {name: tensor.clone() for name, tensor in shared.load_hf("gpt2").state_dict().items()}
    first = shared.load_bridge("gpt2", compatibility=True)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    after = shared.load_hf("gpt2").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert bool(shared.load_bridge("gpt2")(torch.tensor([[1, 2]])).any())


def test_a_hugging_face_network_names_no_path_and_is_ready_to_be_read(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("llama", tokenizer=False, eos_token_id=7)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.5, "do_sample": true}')
    registry.register("m", folder)
    network = registry.load_hf("m", dtype="float64")
    assert type(network) is transformers.LlamaForCausalLM
    assert not network.training and all(parameter.requires_grad for parameter in network.parameters())
    text = network.config.to_json_string() + str(network.name_or_path) + str(network.generation_config.to_dict())
    assert str(registry.store.root) not in text and str(folder) not in text
    assert network.config.eos_token_id == 7 and network.generation_config.eos_token_id == [7, 9]
    own = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(log_probs(network, tokens), log_probs(own, tokens))
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}
    assert torch.equal(network.generate(tokens, **greedy), own.generate(tokens, **greedy))


def test_what_was_not_verified_says_so_in_every_form(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    registry.register("m", make_checkpoint("gpt2"), parity="skip")
    for load in (registry.load, registry.load_bridge, registry.load_hf):
        with pytest.warns(UnverifiedVersion, match="m@v1 was registered without verification") as seen:
            load("m")
        assert seen[0].filename == __file__


def test_hooked_weights_make_no_bridge_and_no_hugging_face_network(shared: Registry) -> None:
    version = replace(shared.version("gpt2"), layout="hooked")
    place: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    for refuse in (
        lambda: load_bridge_network(shared.store, version, compatibility=False, **place),
        lambda: load_source_network(shared.store, version, **place),
    ):
        with pytest.raises(UnsupportedLayout, match="in TransformerLens's layout") as refused:
            refuse()
        assert refused.value.code == "unsupported-layout" and "Registry.load " in str(refused.value.hint)


# --- bridges that would be wrong: what the comparison is for


def make_bloom(**config: Any) -> Any:
    bloom = transformers.BloomConfig(vocab_size=211, hidden_size=64, n_layer=2, n_head=4, **config)
    network = transformers.BloomForCausalLM(bloom)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.15 * noise)
    return network.eval()


BLOOM = replace(FAMILIES["GPT2LMHeadModel"], name="bloom", class_name="BloomForCausalLM")
BLOOM_ARCHITECTURE = describe_architecture(
    d_model=64,
    n_layers=2,
    n_heads=4,
    d_head=16,
    d_mlp=256,
    d_vocab=211,
    n_ctx=64,
    act_fn="gelu_new",
    normalization_type="LN",
    eps=1e-5,
    positional_embedding_type="alibi",
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(("residual_after_norm", "compatibility"), [(False, False), (False, True), (True, False)])
def test_bloom_s_bridge_is_right_but_in_one_case(residual_after_norm: bool, compatibility: bool) -> None:
    network = make_bloom(apply_residual_connection_post_layernorm=residual_after_norm)
    build_checked_bridge(network, BLOOM, BLOOM_ARCHITECTURE, None, name="m@v1", compatibility=compatibility)


def test_bloom_s_wrong_compatibility_mode_is_refused() -> None:
    """HAZARDS.md §6: with the residual taken after the norm, silently wrong."""
    network = make_bloom(apply_residual_connection_post_layernorm=True)
    with pytest.raises(UnsupportedBridge, match=r"bridge of m@v1 computes something else: .* off its own") as refused:
        build_checked_bridge(network, BLOOM, BLOOM_ARCHITECTURE, None, name="m@v1", compatibility=True)
    assert refused.value.code == "unsupported-bridge"
    assert "without compatibility mode" in str(refused.value.hint)


def test_lora_layers_in_a_network_are_refused() -> None:
    """HAZARDS.md §6: the raw bridge of one computes neither the adapter nor the base, silently."""
    import peft

    network = make_network("gpt2")
    with quiet():
        adapted = peft.get_peft_model(
            network, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
        )
    family = FAMILIES["GPT2LMHeadModel"]
    architecture = describe_tiny("gpt2")
    for compatibility in (False, True):
        with pytest.raises(UnsupportedBridge):
            source = copy.deepcopy(adapted.base_model.model)
            build_checked_bridge(source, family, architecture, None, name="m@v1", compatibility=compatibility)


def describe_tiny(name: str) -> Any:
    from registry.families.family import check_config

    class_name, config_name, fields = CLASSES[name]
    config = getattr(transformers, config_name)(**fields).to_dict()
    family = FAMILIES[class_name]
    known = {key: value for key, value in config.items() if key in family.fields}
    return family.describe(check_config(family, known))


def test_a_bridge_folds_no_value_biases_where_patterns_do_not_sum_to_one() -> None:
    """HAZARDS.md §6: GPT-OSS in compatibility mode is wrong as transformer-lens does it; not with the guards."""
    network = make_gpt_oss()
    sinks = describe_architecture(**{**vars(BLOOM_ARCHITECTURE)["fields"], "use_attention_sinks": True})
    family = replace(BLOOM, name="gpt_oss", class_name="GptOssForCausalLM")
    build_checked_bridge(copy.deepcopy(network), family, sinks, None, name="m@v1", compatibility=True)
    assert not guard_processing(sinks, Processing()).fold_value_biases
    with pytest.raises(UnsupportedBridge, match="computes something else"):
        build_checked_bridge(network, family, BLOOM_ARCHITECTURE, None, name="m@v1", compatibility=True)


def make_gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        vocab_size=211,
        max_position_embeddings=96,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    network = transformers.GptOssForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.15 * noise)
    return network.eval()
