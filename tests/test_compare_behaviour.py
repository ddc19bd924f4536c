"""What two networks do on the same tokens: against plain TransformerLens code, and on pairs with known answers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry
from registry.compare.results import BehaviourComparison
from registry.errors import (
    InvalidInput,
    ProcessingConflict,
    UnsupportedFamily,
    VocabularyMismatch,
)
from tests.checkpoints import edit_config, edit_weights, make_tokenizer

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")

PROMPTS = ["w5 w17 w3 w200", "w1 w2 w3 w4 w5 w6 w7", "w100 w50 w25 w12"]


def _compare(registry: Registry, a: str, b: str, **options: Any) -> BehaviourComparison:
    found = registry.compare(a, b, prompts=PROMPTS, **options).behaviour
    assert found is not None
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2", "mixtral"])
@pytest.mark.parametrize("processed", [True, False])
def test_figures_are_those_of_run_with_cache(
    registry: Registry, make_checkpoint: Callable[..., Path], family: str, processed: bool
) -> None:
    for seed in (0, 1):
        registry.register("m", make_checkpoint(family, seed=seed), parity="skip")
    found = _compare(registry, "m@v1", "m@v2", processed=processed)
    a, b = (registry.load(ref, processed=processed) for ref in ("m@v1", "m@v2"))
    close = {"rel": 1e-5, "abs": 1e-5}
    tokens = [a.to_tokens(prompt) for prompt in PROMPTS]
    runs = [[network.run_with_cache(one) for network in (a, b)] for one in tokens]
    n_tokens = sum(one.numel() for one in tokens)
    assert (found.n_prompts, found.n_tokens) == (3, n_tokens)

    def mean(values: list[torch.Tensor]) -> float:
        return float(torch.cat([value.detach().flatten() for value in values]).double().mean())

    log_probs = [[logits.double().log_softmax(-1) for logits, _ in pair] for pair in runs]
    kls = [(old.exp() * (old - new)).sum(-1) for old, new in log_probs]
    assert found.kl == pytest.approx(mean(kls), **close)
    agreed = [(old.argmax(-1) == new.argmax(-1)).double() for old, new in log_probs]
    assert found.top1_agreement == pytest.approx(mean(agreed))
    for one in found.positions:
        assert one.kl == pytest.approx(mean([kl[:, one.position] for kl in kls if kl.shape[1] > one.position]), **close)
        assert one.n_tokens == sum(kl.shape[1] > one.position for kl in kls)
    for which, loss in enumerate((found.loss_a, found.loss_b)):
        expected = [
            -pair[which][0, :-1].gather(-1, one[0, 1:, None]) for one, pair in zip(tokens, log_probs, strict=True)
        ]
        assert loss == pytest.approx(mean(expected), **close)
    for layer in found.layers:
        name = "blocks.0.hook_resid_pre" if layer.layer == 0 else f"blocks.{layer.layer - 1}.hook_resid_post"
        residual = [[cache[name] for _, cache in pair] for pair in runs]
        cosines = [torch.cosine_similarity(old.double(), new.double(), dim=-1) for old, new in residual]
        assert layer.cosine == pytest.approx(mean(cosines), **close)
        assert layer.norm_b == pytest.approx(mean([new.norm(dim=-1) for _, new in residual]), **close)
        lens = [
            [
                network.unembed(network.ln_final(stream)).double().log_softmax(-1)
                for network, stream in zip((a, b), pair, strict=True)
            ]
            for pair in residual
        ]
        assert layer.logit_lens_kl == pytest.approx(mean([(o.exp() * (o - n)).sum(-1) for o, n in lens]), **close)
    assert len(found.layers) == a.cfg.n_layers + 1
    for head in found.heads:
        patterns = [[cache["pattern", head.layer][:, head.head].double() for _, cache in pair] for pair in runs]
        jsds = []
        for p, q in patterns:
            middle = (p + q) / 2
            jsds.append(sum(torch.where(one > 0, one * (one / middle).log(), 0.0).sum(-1) for one in (p, q)) / 2)
        assert head.pattern_jsd == pytest.approx(mean(jsds), **close)
    assert len(found.heads) == a.cfg.n_layers * a.cfg.n_heads


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2"])
def test_attributions_add_up_to_the_logits_and_are_those_of_logit_attrs(
    registry: Registry, make_checkpoint: Callable[..., Path], family: str
) -> None:
    for seed in (0, 1):
        registry.register("m", make_checkpoint(family, seed=seed), parity="skip")
    (prompt,) = prompts = [PROMPTS[1]]
    found = registry.compare("m@v1", "m@v2", prompts=prompts).behaviour
    assert found is not None
    for which, ref in (("a", "m@v1"), ("b", "m@v2")):
        network = registry.load(ref)
        tokens = network.to_tokens(prompt)
        _, cache = network.run_with_cache(tokens)
        normed = cache["ln_final.hook_normalized"] if "w" not in dict(network.ln_final.named_parameters()) else None
        targets = tokens[0, 1:]
        total = sum(getattr(one, which) for one in found.attributions)
        logits = network.unembed(network.ln_final(cache["resid_post", -1]))[0, :-1] - network.unembed.b_U
        bias = getattr(network.ln_final, "b", None)
        if bias is not None:
            logits = logits - bias @ network.W_U
        assert total == pytest.approx(float(logits.gather(-1, targets[:, None]).detach().double().mean()), abs=1e-4)
        if normed is not None and not network.cfg.final_rms:
            parts, labels = cache.decompose_resid(return_labels=True, mode="all")
            plain = cache.logit_attrs(parts[..., :-1, :], tokens=targets[None], pos_slice=(0, -1), has_batch_dim=True)
            by_label = dict(zip(labels, plain.mean(dim=(1, 2)).tolist(), strict=True))
            for one in found.attributions:
                if one.component != "embed":
                    label = f"{one.layer}_{'attn' if one.component == 'attention' else 'mlp'}_out"
                    assert getattr(one, which) == pytest.approx(by_label[label], abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_heads_add_what_transformer_lens_says_and_together_what_attention_does(
    registry: Registry, make_checkpoint: Callable[..., Path], family: str
) -> None:
    for seed in (0, 1):
        registry.register("m", make_checkpoint(family, seed=seed), parity="skip")
    found = registry.compare("m@v1", "m@v2", prompts=[PROMPTS[1]]).behaviour
    assert found is not None
    for which, ref in (("a", "m@v1"), ("b", "m@v2")):
        network = registry.load(ref)
        tokens = network.to_tokens(PROMPTS[1])
        _, cache = network.run_with_cache(tokens)
        cache.compute_head_results()
        heads, labels = cache.stack_head_results(return_labels=True)
        plain = cache.logit_attrs(heads[..., :-1, :], tokens=tokens[:, 1:], pos_slice=(0, -1), has_batch_dim=True)
        by_label = dict(zip(labels, plain.mean(dim=(1, 2)).tolist(), strict=True))
        assert len(found.head_attributions) == network.cfg.n_layers * network.cfg.n_heads
        for one in found.head_attributions:
            assert getattr(one, which) == pytest.approx(by_label[f"L{one.layer}H{one.head}"], abs=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_heads_have_no_share_where_a_norm_follows_them(
    registry: Registry, make_checkpoint: Callable[..., Path], family: str
) -> None:
    registry.register("m", make_checkpoint(family), parity="skip")
    found = _compare(registry, "m", "m")
    assert found.head_attributions == []
    assert found.attributions


def test_patterns_are_those_of_the_heads_that_moved_most_where_they_did(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    for seed in (0, 1):
        registry.register("m", make_checkpoint("gpt2", seed=seed), parity="skip")
    prompts = [*PROMPTS, " ".join(f"w{1 + 3 * index % 200}" for index in range(60))]
    found = registry.compare("m@v1", "m@v2", prompts=prompts).behaviour
    assert found is not None
    ranked = sorted(found.heads, key=lambda one: -one.pattern_jsd)
    assert [(one.layer, one.head) for one in found.patterns] == [(one.layer, one.head) for one in ranked[:3]]
    for one in found.patterns:
        assert one.tokens[1:] == tuple(prompts[-1].split()[:39])  # 40 tokens of the longest, with BOS
        for ref, pattern in (("m@v1", one.a), ("m@v2", one.b)):
            _, cache = registry.load(ref).run_with_cache(prompts[-1])
            plain = cache["pattern", one.layer][0, one.head, :40, :40]
            assert torch.allclose(torch.tensor(pattern), plain, atol=1e-4)
        frame = one.to_pandas()
        assert len(frame) == 40 * 41 / 2
        row = frame[(frame["query"] == 7) & (frame["key"] == 3)].iloc[0]
        assert (row["a"], row["b"], row["query_token"]) == (one.a[7][3], one.b[7][3], one.tokens[7])


def test_results_are_frames_and_go_from_process_to_process(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    for seed in (0, 1):
        registry.register("m", make_checkpoint("gpt2", seed=seed), parity="skip")
    found = registry.compare("m@v1", "m@v2", weights=True, prompts=PROMPTS)
    assert pickle.loads(pickle.dumps(found)) == found
    assert found.behaviour is not None
    for name in ("positions", "layers", "heads", "attributions", "head_attributions", "patterns"):
        assert len(getattr(found.behaviour, name).to_pandas()) == len(getattr(found.behaviour, name)) > 0
    assert list(found.records.to_pandas().columns) == ["kind", "name", "a", "b"]


def test_equal_networks_do_the_same(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("m", make_checkpoint("gpt2"), parity="skip")
    found = _compare(registry, "m", "m")
    assert (found.kl, found.top1_agreement) == (0.0, 1.0)
    assert found.loss_a == found.loss_b
    assert all(one.kl == 0.0 and one.top1_agreement == 1.0 for one in found.positions)
    assert all(one.logit_lens_kl == 0.0 and one.norm_a == one.norm_b for one in found.layers)
    assert all(one.cosine == pytest.approx(1.0, abs=1e-12) for one in found.layers)
    assert all(one.pattern_jsd == 0.0 for one in found.heads)
    assert all(one.difference == 0.0 for one in found.attributions)


def test_one_altered_head_shows_in_its_pattern_alone(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_checkpoint("llama")

    def alter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.q_proj.weight"][2 * 16 : 3 * 16] *= 1.5

    registry.register("base", base, parity="skip")
    registry.register("altered", edit_weights(base, tmp_path / "altered", alter), parity="skip")
    found = _compare(registry, "base", "altered")
    assert [(one.layer, one.head) for one in found.heads if one.pattern_jsd > 0] == [(1, 2)]
    assert [one.layer for one in found.layers if one.logit_lens_kl > 0] == [2]
    changed = [(one.component, one.layer) for one in found.attributions if abs(one.difference) > 1e-6]
    assert ("attention", 1) in changed
    assert ("attention", 0) not in changed or found.kl > 0  # the last norm's scale is everybody's


@pytest.mark.parametrize("processed", [True, False])
def test_the_logit_lens_sees_another_last_norm_in_equal_streams(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path, processed: bool
) -> None:
    base = make_checkpoint("llama")

    def alter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][::2] *= 1.5

    registry.register("base", base, parity="skip")
    registry.register("altered", edit_weights(base, tmp_path / "altered", alter), parity="skip")
    found = _compare(registry, "base", "altered", processed=processed)
    assert all(one.norm_a == one.norm_b and one.logit_lens_kl > 1e-3 for one in found.layers)
    assert found.layers[-1].logit_lens_kl == pytest.approx(found.kl, rel=1e-6)


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_a_network_whose_last_layer_was_cut_off(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path, one_at_a_time: bool
) -> None:
    whole = make_checkpoint("llama")

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.1.")]:
            del tensors[name]

    shorter = edit_config(edit_weights(whole, tmp_path / "cut", cut), num_hidden_layers=1)
    registry.register("whole", whole, parity="skip")
    registry.register("cut", shorter, parity="skip")  # with the last norm and the unembedding of the other
    for refs in (("whole", "cut"), ("cut", "whole")):
        found = _compare(registry, *refs, one_at_a_time=one_at_a_time)
        for loss, ref in zip((found.loss_a, found.loss_b), refs, strict=True):
            network = registry.load(ref)
            tokens = [network.to_tokens(prompt) for prompt in PROMPTS]
            losses = [network(one, return_type="loss", loss_per_token=True)[0] for one in tokens]
            assert loss == pytest.approx(float(torch.cat(losses).detach().double().mean()), abs=1e-5)


def test_what_is_not_comparable_is_said(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("a", make_checkpoint("gpt2"), parity="skip")
    registry.register("b", make_checkpoint("gpt2", n_layer=3, n_head=2, n_embd=32, vocab_size=230), parity="skip")
    found = _compare(registry, "a", "b")
    assert len(found.layers) == 3
    assert all(one.cosine is None for one in found.layers)
    assert found.heads == []
    said = " ".join(found.notes)
    for word in ("2 and 3 layers", "d_model is 64 and 32", "n_heads is 4 and 2", "d_vocab is 211 and 230"):
        assert word in said
    assert found.kl > 0


def test_bad_prompts_are_refused(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("m", make_checkpoint("gpt2"), parity="skip")
    registry.register("bare", make_checkpoint("gpt2", tokenizer=False), parity="skip")
    for prompts, said in (
        ([[]], "nothing to compare on"),
        ([[1, 2, 211]], "211"),
        ([[1] * 97], "97 tokens, and n_ctx is 96"),
    ):
        with pytest.raises(InvalidInput, match=said):
            registry.compare("m", "m", prompts=prompts)
    with pytest.raises(InvalidInput, match="without a tokenizer"):
        registry.compare("bare", "m", prompts=["w1"])
    assert registry.compare("bare", "m", prompts=[[1, 2, 3]]).behaviour is not None


def test_tokens_that_mean_other_things_are_refused(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("a", make_checkpoint("gpt2"), parity="skip")
    other = make_checkpoint("gpt2", seed=1)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(other)
    path = other / "tokenizer.json"
    text = path.read_text().replace('"w7":7', '"w8":7', 1).replace('"w8":8', '"w7":8', 1)
    text = text.replace('"w7": 7', '"w8": 7', 1).replace('"w8": 8', '"w7": 8', 1)
    path.write_text(text)
    registry.register("b", other, parity="skip")
    with pytest.raises(VocabularyMismatch, match="2 tokens of a@v1 and b@v1 mean different things: 7 is 'w7'"):
        registry.compare("a", "b", prompts=["w1"])
    with pytest.raises(VocabularyMismatch):
        registry.load_pair("b", "a")
    both = registry.compare("a", "b", weights=True, prompts=["w1"])  # what can be compared is
    assert both.weights is not None and both.weights.n_changed
    assert both.behaviour is None
    assert [type(one) for one in both.obstacles] == [VocabularyMismatch]


def test_what_only_a_bridge_runs_has_its_weights_compared(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    for seed in (0, 1):
        registry.register("stable", make_checkpoint("stablelm", seed=seed), parity="skip")
    found = registry.compare("stable@v1", "stable@v2", weights=True, prompts=PROMPTS)
    assert found.weights is not None and found.weights.n_changed
    (obstacle,) = found.obstacles
    assert isinstance(obstacle, UnsupportedFamily)
    assert "lensreg diff A B --weights" in str(obstacle.hint)
    with pytest.raises(UnsupportedFamily, match="cannot be loaded as a HookedTransformer"):
        registry.load_pair("stable@v1", "stable@v2")


def test_a_pair_is_processed_alike_and_shares_what_is_equal(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_checkpoint("gpt2")

    def alter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weight"] *= 1.01

    registry.register("base", base, parity="skip")
    registry.register("tuned", edit_weights(base, tmp_path / "t", alter), parent="base", parity="skip")
    pair = registry.load_pair("tuned")
    assert (pair.child_ref, pair.parent_ref) == ("tuned@v1", "base@v1")
    assert "fold_ln" in pair.processing
    changed = 2  # W_in, and b_in, into which the bias of the norm is folded through it
    assert pair.n_shared == sum(1 for _ in pair.child.parameters()) - changed
    for ref, network in (("tuned", pair.child), ("base", pair.parent)):
        alone = registry.load(ref).state_dict()
        assert all(torch.equal(tensor, alone[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():  # what is written to one stays there
        pair.child.W_E[3] = 7.0
    assert torch.equal(pair.parent.W_E, registry.load("base").W_E)
    assert torch.equal(registry.load("tuned").W_E, registry.load("base").W_E)


def test_a_folded_version_gives_its_parent_folded(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    network = registry.load("base", fold_value_biases=False)
    registry.register_network("folded", network, parent="base", parity="skip")
    pair = registry.load_pair("folded", processed=False)
    assert set(pair.processing) == {"fold_ln", "center_writing_weights", "center_unembed"}
    tokens = pair.child.to_tokens(PROMPTS[0])
    assert torch.allclose(pair.child(tokens), pair.parent(tokens), atol=1e-4)
    registry.register_network("other", registry.load("base", center_unembed=False), parity="skip")
    with pytest.raises(ProcessingConflict, match="cannot be processed alike"):
        registry.load_pair("folded", "other")


def test_the_parent_of_a_pair_has_to_be_known(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    with pytest.raises(InvalidInput, match="base@v1 has no registered parents"):
        registry.load_pair("base")
