"""The hooked layout: TransformerLens state dicts and networks in memory are registered and come back as they were."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import update
from transformer_lens import HookedTransformer, HookedTransformerConfig

from registry import ArchitectureMismatch, Registry, RegistryError, save_network
from registry.architecture import FIELDS
from registry.convert import RAW, Processing, build_hooked_network
from registry.errors import (
    InvalidInput,
    MalformedArtifact,
    ProcessingConflict,
    UnsupportedConfig,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from registry.hooked_config import KNOWN, NEUTRAL, ONLY, describe_hooked_config
from registry.processing import tell_processing
from registry.tables import versions
from tests.checkpoints import make_tokenizer
from tests.contents import read_contents
from tests.networks import CUSTOM, assert_identical, compare, log_probs, make_hooked, save_state_dict, train

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
FAMILIES = ["gpt2", "llama"]
BOUND = 1e-4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Iterator[Registry]:
    """A registry with a base of each family; what tests add to it does not matter to others."""
    folder = tmp_path_factory.mktemp("hooked")
    one = Registry(str(folder / "registry.db"), folder / "store")
    for family in FAMILIES:
        one.register(family, make_checkpoint(family))
    yield one
    one.close()


@pytest.fixture(scope="module", params=[(family, processed) for family in FAMILIES for processed in (True, False)],
                ids=lambda param: f"{param[0]}-{'processed' if param[1] else 'raw'}")  # fmt: skip
def trained(request: pytest.FixtureRequest, shared: Registry) -> HookedTransformer:
    """A network that was loaded, processed or raw, and trained for a few steps."""
    family, processed = request.param
    network = shared.load(family, processed=processed)
    train(network)
    return network


def family_of(network: HookedTransformer) -> str:
    return network.cfg.model_name.partition("@")[0]


def is_folded(network: HookedTransformer) -> bool:
    return network.cfg.normalization_type.endswith("Pre")


def rebuild(network: HookedTransformer, registry: Registry, ref: str) -> HookedTransformer:
    """Load the version in the form in which it was registered."""
    return registry.load(ref, processed=is_folded(network))


# --- every form in which a network comes -----------------------------------------------------------------------


def as_file(network: HookedTransformer, folder: Path) -> Path:
    return save_state_dict(folder / "mine.safetensors", network.state_dict())


def as_pickle(network: HookedTransformer, folder: Path) -> Path:
    return save_state_dict(folder / "mine.pt", network.state_dict())


def as_nest(network: HookedTransformer, folder: Path) -> Path:
    tensors = {f"module._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": tensors, "step": 3, "optimizer": {"lr": 0.1}}, folder / "mine.bin")
    return folder / "mine.bin"


def as_parameters_alone(network: HookedTransformer, folder: Path) -> Path:
    return save_state_dict(folder / "mine.pth", dict(network.named_parameters()), prefix="model.")


def as_folder(network: HookedTransformer, folder: Path) -> Path:
    (folder / "run").mkdir()
    as_file(network, folder / "run")
    make_tokenizer().save_pretrained(folder / "run")
    return folder / "run"


def as_folder_of_pickle(network: HookedTransformer, folder: Path) -> Path:
    (folder / "run").mkdir()
    as_pickle(network, folder / "run")
    return folder / "run"


FORMS = [as_file, as_pickle, as_nest, as_parameters_alone, as_folder, as_folder_of_pickle]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_state_dict_comes_back_as_it_was(
    trained: HookedTransformer, shared: Registry, tmp_path: Path, form: Callable[..., Path]
) -> None:
    family = family_of(trained)
    done = shared.register(form.__name__, form(trained, tmp_path), parent=family)
    assert done.version is not None
    assert (done.version.layout, done.version.family) == ("hooked", family)
    assert done.version.is_verified
    assert done.architecture.fingerprint == shared.version(family).fingerprint
    loaded = rebuild(trained, shared, done.version.ref)
    assert_identical(loaded, trained)
    assert loaded.cfg.normalization_type == trained.cfg.normalization_type
    assert loaded.to_tokens("w5 w6").tolist() == trained.to_tokens("w5 w6").tolist() == [[0, 5, 6]]


def test_all_forms_have_one_weights_digest(trained: HookedTransformer, registry: Registry, tmp_path: Path) -> None:
    """Buffers, prefixes and containers count for nothing, and one flipped bit does."""
    config = tmp_path / "config"
    save_network(trained, config)
    digests = set()
    for form in FORMS:
        folder = tmp_path / form.__name__
        folder.mkdir()
        plan = registry.register("m", form(trained, folder), config=config / "hooked_config.json", dry_run=True)
        digests.add(plan.weights_digest)
    digests.add(registry.register("m", config, dry_run=True).weights_digest)
    digests.add(registry.register_network("m", trained, dry_run=True).weights_digest)
    assert len(digests) == 1
    tensors = load_file(config / "model.safetensors")
    tensors["unembed.b_U"].view(torch.int32)[5] ^= 1
    save_file(tensors, config / "model.safetensors")
    assert registry.register("m", config, dry_run=True).weights_digest not in digests


def test_a_network_in_memory_comes_back_as_it_was(trained: HookedTransformer, registry: Registry) -> None:
    done = registry.register_network("mine", trained, step=40, note="trained here", tags={"lr": "1e-3"})
    assert done.version is not None
    assert (done.version.source_location, done.version.source_kind) == ("HookedTransformer in memory", "hooked")
    assert (done.version.step, done.version.note, dict(done.version.tags)) == (40, "trained here", {"lr": "1e-3"})
    loaded = rebuild(trained, registry, "mine@step-40")
    assert_identical(loaded, trained)
    assert loaded.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
    assert registry.register_network("mine", trained).outcome == "unchanged"


def test_a_saved_folder_is_read_back(trained: HookedTransformer, registry: Registry, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    folder = save_network(trained, tmp_path / "new" / "saved")
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    assert {"hooked_config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    done = registry.register("mine", folder)
    assert done.version is not None and done.version.family == family_of(trained)
    assert_identical(rebuild(trained, registry, "mine"), trained)
    assert registry.register_network("mine", trained).outcome == "unchanged"


def test_what_was_trained_on_can_be_trained_on_and_has_a_lineage(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """A second generation has a hooked parent; a Hugging Face checkpoint may have one, too."""
    registry.register("base", make_checkpoint("gpt2"))
    network = registry.load("base")
    for step in (1, 2):
        train(network, n_steps=1)
        registry.register_network("mine", network, parent="base" if step == 1 else "mine", step=step)
    assert [one.version.ref for one in registry.lineage("mine").ancestors()] == ["mine@v1", "base@v1"]
    assert_identical(registry.load("mine@step-2"), network)
    back = registry.register("back", make_checkpoint("gpt2", seed=1), parent="mine")
    assert back.version is not None and back.version.layout == "huggingface"


def test_a_state_dict_has_its_parents_tokenizer_and_a_folder_its_own(
    shared: Registry, registry: Registry, tmp_path: Path
) -> None:
    network = shared.load("gpt2")
    done = shared.register("alone", as_file(network, tmp_path), parent="gpt2")
    assert done.version is not None
    assert {f.name: f.digest for f in done.version.with_role("tokenizer")} == {
        f.name: f.digest for f in shared.version("gpt2").with_role("tokenizer")
    }
    assert done.version.provenance == {"tokenizer_of": "gpt2@v1"}
    assert "parent-tokenizer" in {finding.code for finding in done.findings}
    network.tokenizer = None
    none = shared.register_network("none", network, parent="gpt2")
    assert "no-tokenizer" in {finding.code for finding in none.findings}
    assert shared.load("none").tokenizer is None


# --- raw or processed ------------------------------------------------------------------------------------------

FLAGS = {
    "fold_ln": Processing(True, False, False, False),
    "center_writing_weights": Processing(False, True, False, False),
    "center_unembed": Processing(False, False, True, False),
    "fold_value_biases": Processing(False, False, False, True),
    "refactor_factored_attn_matrices": Processing(True, True, True, True, True),
    "all": Processing(),
    "none": RAW,
}


def tell(network: HookedTransformer) -> tuple[str, ...]:
    architecture = describe_hooked_config(network.cfg)
    return tell_processing(dict(network.named_parameters()), architecture, is_folded(network)).flags


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("processing", FLAGS.values(), ids=FLAGS)
def test_processing_is_told_from_the_tensors(shared: Registry, processing: Processing, dtype: torch.dtype) -> None:
    """Flag by flag, for a family whose biases are all there."""
    network = shared.load("gpt2", processed=False, dtype=dtype, **vars(processing))
    expected = set(processing.active)
    if processing.fold_ln and not processing.fold_value_biases:
        assert "fold_value_biases" not in tell(network)
    assert set(tell(network)) == expected


def test_processing_is_told_for_rms_norms_too(shared: Registry) -> None:
    """They are never centred on the writing side; value biases are not there, so folding them changed nothing."""
    assert tell(shared.load("llama")) == ("fold_ln", "center_unembed", "fold_value_biases")
    assert tell(shared.load("llama", processed=False)) == ()


def test_training_after_processing_is_told(shared: Registry, registry: Registry) -> None:
    """SGD keeps what is centred centred; AdamW does not, and then it stands between."""
    network = shared.load("gpt2")
    train(network, n_steps=10, lr=1e-3, optimizer="SGD")
    assert {"fold_ln", "center_writing_weights", "center_unembed"} <= set(tell(network))
    train(network, n_steps=10, lr=1e-3)
    done = registry.register_network("mine", network)
    assert done.version is not None
    assert done.version.processing == ("fold_ln", "center_writing_weights", "center_unembed")
    assert "trained-after-processing" in {finding.code for finding in done.findings}


def test_what_is_processed_is_never_processed_again(trained: HookedTransformer, registry: Registry) -> None:
    """However it is asked for, and also by way of a second registration."""
    registry.register_network("mine", trained)
    if is_folded(trained):
        assert_identical(registry.load("mine"), trained)
        assert_identical(registry.load("mine", processed=False, fold_ln=True), trained)
        assert registry.register_network("mine", registry.load("mine")).outcome == "unchanged"
        for options in ({"processed": False}, {"fold_ln": False}):
            with pytest.raises(ProcessingConflict, match="cannot be undone") as refused:
                registry.load("mine", **options)
            assert "fold_ln" in refused.value.applied
    else:
        processed = registry.load("mine")
        assert is_folded(processed) and compare(processed, trained) < BOUND
        assert registry.register_network("processed", processed).outcome == "registered"
        assert_identical(registry.load("processed"), processed)


def test_flags_asked_for_by_name_are_not_done_to_trained_weights(registry: Registry, shared: Registry) -> None:
    network = shared.load("gpt2", center_unembed=False)
    registry.register_network("mine", network)
    with pytest.warns(UserWarning, match="center_unembed was not applied to mine@v1: it would rewrite"):
        assert_identical(registry.load("mine", center_unembed=True), network)
    with pytest.warns(UserWarning, match="center_writing_weights had been applied to mine@v1 already"):
        assert_identical(registry.load("mine", center_writing_weights=False), network)
    assert_identical(registry.load("mine", fold_ln=True, center_writing_weights=True), network)


def test_what_was_centred_before_training_is_not_centred_again(registry: Registry, shared: Registry) -> None:
    """Norms that are not folded are folded as usual; that leaves W_E as it was trained."""
    network = shared.load("gpt2", processed=False, center_writing_weights=True)
    train(network, n_steps=5)
    done = registry.register_network("mine", network)
    assert done.version is not None and done.version.processing == ("center_writing_weights",)
    loaded = registry.load("mine")
    assert is_folded(loaded)
    assert torch.equal(loaded.W_E, network.W_E)
    assert compare(loaded, network) < BOUND
    assert_identical(registry.load("mine", processed=False), network)


def test_an_altered_record_of_the_processing_is_noticed(trained: HookedTransformer, registry: Registry) -> None:
    """Whoever alters the row changes neither the stored file nor the event."""
    done = registry.register_network("mine", trained)
    assert done.version is not None and done.version.processing is not None
    applied = done.version.processing
    assert registry.events()[0].details["processing"] == list(applied)
    for altered in ([*applied, "center_unembed", "fold_ln"], list(applied[1:]) if applied else None):
        with registry.database.write() as connection:
            connection.execute(update(versions).values(processing=altered))
        with pytest.raises(ProcessingConflict, match=r"mine@v1 is recorded as .* hooked_config.json says") as refused:
            registry.load("mine")
        assert "audit verify" in str(refused.value.hint) and refused.value.applied == applied
    with registry.database.write() as connection:
        connection.execute(update(versions).values(processing=list(applied)))
    assert_identical(rebuild(trained, registry, "mine"), trained)


def test_processing_is_idempotent(shared: Registry) -> None:
    once = shared.load("gpt2")
    tensors = {name: tensor.detach().clone() for name, tensor in once.named_parameters()}
    architecture = describe_hooked_config(once.cfg)
    again = Processing(False, True, True, True)
    twice = build_hooked_network(tensors, architecture, again, folded=True, dtype=torch.float32)
    for name, tensor in twice.named_parameters():
        assert float((tensor - tensors[name]).detach().abs().max()) < 1e-6, name


def test_single_flags_are_honoured_for_raw_weights(registry: Registry, shared: Registry) -> None:
    registry.register_network("raw", shared.load("gpt2", processed=False))
    for flag, processing in FLAGS.items():
        loaded, expected = (
            one.load(ref, processed=False, **vars(processing)) for one, ref in ((registry, "raw"), (shared, "gpt2"))
        )
        if not processing.refactor_factored_attn_matrices:  # singular vectors are unique up to their sign
            names = dict(expected.named_parameters())
            assert all(torch.allclose(one, names[name], atol=1e-5) for name, one in loaded.named_parameters()), flag
        assert compare(loaded, expected) < BOUND, flag


# --- the architecture ------------------------------------------------------------------------------------------


def test_without_parent_or_config_nothing_is_guessed(
    trained: HookedTransformer, registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedSource, match="never guessed"):
        registry.register("mine", as_file(trained, tmp_path))
    assert registry.models() == []


def test_the_config_may_be_hugging_faces(
    trained: HookedTransformer, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    family = family_of(trained)
    config = make_checkpoint(family) / "config.json"
    done = registry.register("given", as_file(trained, tmp_path), config=config)
    assert done.version is not None and done.version.family == family
    assert_identical(rebuild(trained, registry, "given"), trained)
    (tmp_path / "config.json").write_text(config.read_text())
    assert registry.register("given", tmp_path).outcome == "unchanged"


def test_a_config_that_is_not_the_networks_is_refused(
    trained: HookedTransformer, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    other = make_checkpoint(
        family_of(trained), **{"gpt2": {"n_layer": 3}, "llama": {"num_hidden_layers": 3}}[family_of(trained)]
    )
    with pytest.raises(WeightsMismatch, match=r"config\.json"):
        registry.register("mine", as_file(trained, tmp_path), config=other / "config.json")
    saved = save_network(trained, tmp_path / "saved")
    with pytest.raises(UnsupportedSource, match="another config was given"):
        registry.register("mine", saved, config=other / "config.json")


def resize_vocabulary(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embed.W_E"] = torch.cat([tensors["embed.W_E"], tensors["embed.W_E"][:5]])
    for name in ("unembed.W_U", "unembed.b_U"):
        tensors[name] = torch.cat([tensors[name], tensors[name][..., :5]], -1)


def test_a_resized_vocabulary_is_named_and_can_be_allowed(shared: Registry, tmp_path: Path) -> None:
    tensors = shared.load("llama", processed=False).state_dict()
    resize_vocabulary(tensors)
    path = save_state_dict(tmp_path / "mine.safetensors", tensors)
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("resized", path, parent="llama")
    assert [(one.field, one.parent, one.checkpoint) for one in refused.value.differences] == [
        ("d_vocab", 211, 216),
        ("d_vocab_out", 211, 216),
    ]
    done = shared.register("resized", path, parent="llama", allow=["d_vocab"])
    assert done.architecture["d_vocab"] == 216
    assert torch.equal(shared.load("resized", processed=False).W_E, tensors["embed.W_E"])


SHAPES: dict[str, dict[str, Any]] = {
    "n_layers": {"n_layers": 3},
    "d_mlp": {"d_mlp": 128},
    "n_ctx": {"n_ctx": 48},
    "n_heads": {"n_heads": 8, "d_head": 4},
    "d_head": {"d_head": 16},
    "d_model": {"d_model": 16},
    "d_vocab": {"d_vocab": 216},
    "d_vocab_out": {"d_vocab_out": 7},
    "n_key_value_heads": {"n_key_value_heads": 2},
    "gated_mlp": {"gated_mlp": True, "normalization_type": "RMS"},
    "normalization_type": {"normalization_type": "RMS"},
}


@pytest.fixture(scope="module")
def custom(shared: Registry) -> Registry:
    """The registry, with a HookedTransformer of nobody's family."""
    shared.register_network("custom", make_hooked())
    return shared


@pytest.mark.parametrize("field", SHAPES)
def test_a_difference_that_shapes_tell_is_a_difference_of_architecture(
    custom: Registry, tmp_path: Path, field: str
) -> None:
    path = save_state_dict(tmp_path / "mine.safetensors", make_hooked(**SHAPES[field]).state_dict())
    before = read_contents(custom)
    with pytest.raises(ArchitectureMismatch) as refused:
        custom.register("other", path, parent="custom")
    assert field in {one.field for one in refused.value.differences}
    assert read_contents(custom) == before


def test_what_else_a_difference_changed_is_not_guessed(custom: Registry, tmp_path: Path) -> None:
    """Other heads mean another attention scale, perhaps; `--allow` is not enough, but a config is."""
    network = make_hooked(n_heads=8, d_head=4)
    path = save_state_dict(tmp_path / "mine.safetensors", network.state_dict())
    allowed = ["n_heads", "n_key_value_heads", "d_head", "attn_scale"]
    with pytest.raises(ArchitectureMismatch, match="--config"):
        custom.register("other", path, parent="custom", allow=allowed)
    config = save_network(network, tmp_path / "saved") / "hooked_config.json"
    done = custom.register("other", path, parent="custom", allow=allowed, config=config)
    assert {one.field for one in done.admitted_differences} == set(allowed)
    assert_identical(custom.load("other", processed=False), network)


# --- networks in memory ----------------------------------------------------------------------------------------

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


def test_what_the_tokenizer_remembers_of_the_last_text_counts_for_nothing(registry: Registry, shared: Registry) -> None:
    network = shared.load("gpt2")
    registry.register_network("mine", network)
    network.to_tokens(["w5", "w6 w7"])
    backend = network.tokenizer.backend_tokenizer
    remembered = backend.truncation, backend.padding
    assert any(remembered)
    assert registry.register_network("mine", network).outcome == "unchanged"
    assert (backend.truncation, backend.padding) == remembered


def test_switches_of_hook_points_change_nothing(registry: Registry, shared: Registry) -> None:
    network = shared.load("llama")
    plain = registry.register_network("plain", network)
    network.set_use_attn_result(True)
    network.set_use_split_qkv_input(True)
    network.set_use_hook_mlp_in(True)
    network.set_ungroup_grouped_query_attention(True)
    switched = registry.register_network("switched", network)
    assert switched.architecture.fingerprint == plain.architecture.fingerprint == shared.version("llama").fingerprint
    assert switched.weights_digest == plain.weights_digest
    ungrouped = shared.load("gpt2")
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


def test_whether_text_gets_bos_is_kept(registry: Registry, shared: Registry) -> None:
    network = shared.load("gpt2")
    network.cfg.default_prepend_bos = False
    registry.register_network("mine", network)
    assert registry.load("mine").to_tokens("w5").tolist() == network.to_tokens("w5").tolist() == [[5]]


def test_a_network_of_another_architecture_than_its_parents_is_refused(custom: Registry) -> None:
    with pytest.raises(ArchitectureMismatch) as refused:
        custom.register_network("other", make_hooked(eps=1e-3, act_fn="relu"), parent="custom")
    assert {one.field for one in refused.value.differences} == {"eps", "act_fn"}
    done = custom.register_network("other", make_hooked(eps=1e-3), parent="custom", allow=["eps"])
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


# --- the config of a HookedTransformer -------------------------------------------------------------------------


def test_every_field_of_the_config_is_declared() -> None:
    theirs = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    assert theirs == KNOWN
    groups = [FIELDS - {"block_variant"}, set(ONLY), {"use_attn_scale", "original_architecture"}, *NEUTRAL.values()]
    assert sum(map(len, groups)) == len(theirs) == 87


OTHER_VALUES: dict[str, Any] = {
    "act_fn": "relu", "attention_dir": "bidirectional", "normalization_type": "RMS",
    "positional_embedding_type": "standard", "attn_types": ["local", "local"],
    "original_architecture": "Olmo3ForCausalLM",
    "clip_qkv": 3.0, "num_experts": 8, "rotary_base_local": 77.0, "attn_scores_soft_cap": 9.0,
    "output_logits_soft_cap": 9.0, "n_key_value_heads": 1, "d_vocab_out": 99,
}  # fmt: skip
FULL: dict[str, Any] = {
    **CUSTOM, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "use_local_attn": True, "window_size": 5,
    "attn_types": ["global", "local"], "num_experts": 4, "experts_per_token": 2, "use_yarn_rope": True,
    "use_NTK_by_parts_rope": True, "use_logn_attn": True, "use_dynamic_ntk_rope": True, "train_seq_length": 16,
    "rotary_base_local": 10.0, "rotary_dim": 8,
}  # fmt: skip


@pytest.mark.sampled
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_field_of_the_config_is_seen_neutral_or_refused(name: str) -> None:
    cfg = HookedTransformerConfig(**FULL)
    before = describe_hooked_config(cfg)
    value = getattr(cfg, name)
    if name in OTHER_VALUES:
        other = OTHER_VALUES[name]
    elif isinstance(value, bool):
        other = not value
    else:
        other = value + 1 if isinstance(value, (int, float)) else "something"
    cfg = dataclasses.replace(cfg)
    setattr(cfg, name, other)
    if name in ONLY:
        with pytest.raises(UnsupportedConfig) as refused:
            describe_hooked_config(cfg)
        assert refused.value.field == name
    elif any(name in names for names in NEUTRAL.values()):
        assert describe_hooked_config(cfg) == before
    elif name == "n_heads":  # 5 heads have no 2 groups
        with pytest.raises(UnsupportedConfig, match="n_key_value_heads"):
            describe_hooked_config(cfg)
    elif name == "use_normalization_before_and_after":  # not for LayerNorm
        with pytest.raises(UnsupportedConfig, match=name):
            describe_hooked_config(cfg)
    elif name == "n_layers":
        with pytest.raises(UnsupportedConfig, match="attn_types"):
            describe_hooked_config(cfg)
    else:
        assert describe_hooked_config(cfg).fingerprint != before.fingerprint


def test_a_config_that_transformer_lens_made_has_its_familys_architecture(shared: Registry) -> None:
    """The way from cfg to architecture is the way back from architecture to cfg."""
    for family in FAMILIES:
        for processed in (True, False):
            cfg = shared.load(family, processed=processed).cfg
            assert describe_hooked_config(cfg).fingerprint == shared.version(family).fingerprint


# --- hooked_config.json ----------------------------------------------------------------------------------------


def break_config(folder: Path, **changes: Any) -> None:
    path = folder / "hooked_config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        target = config if name in config else config["architecture"]
        if value is ...:
            target.pop(name)
        else:
            target[name] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"format": "other"}, Exception, "architectures"),
        ({"format_version": 2}, MalformedArtifact, "version 2"),
        ({"processing": ["fold_ln"]}, MalformedArtifact, "says that the weights have gone through fold_ln"),
        ({"processing": ["melted"]}, MalformedArtifact, "melted"),
        ({"processing": None}, MalformedArtifact, "processing"),
        ({"family": 3}, MalformedArtifact, "family"),
        ({"default_prepend_bos": "yes"}, MalformedArtifact, "default_prepend_bos"),
        ({"architecture": []}, MalformedArtifact, "architecture"),
        ({"versions": ...}, MalformedArtifact, "versions"),
        ({"eps": ...}, UnsupportedConfig, "eps"),
        ({"n_heads": "4"}, UnsupportedConfig, "n_heads"),
        ({"n_heads": 3}, UnsupportedConfig, "n_key_value_heads"),
        ({"act_fn": "tanh"}, UnsupportedConfig, "tanh"),
        ({"attn_scale": 0}, UnsupportedConfig, "attn_scale"),
        ({"n_layers": 10**9}, WeightsMismatch, "1,000,000,000 layers"),
        ({"n_layers": 3}, WeightsMismatch, "missing"),
        ({"d_model": 10**12}, RegistryError, None),
        ({"positional_embedding_type": "rotary"}, UnsupportedConfig, "rotary"),
        ({"act_fn": "gelu_fast"}, MalformedArtifact, "canonical"),
        ({"eps": 1e400}, RegistryError, None),
    ],
    ids=str,
)
def test_a_hooked_config_that_makes_no_sense_is_refused(
    registry: Registry, tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str | None
) -> None:
    folder = save_network(make_hooked(), tmp_path / "saved")
    break_config(folder, **changes)
    with pytest.raises(RegistryError, match=text) as refused:
        registry.register("mine", folder)
    assert isinstance(refused.value, error)
    assert registry.models() == []


def test_an_edited_folder_is_another_architecture_to_its_parent(custom: Registry, tmp_path: Path) -> None:
    folder = save_network(make_hooked(), tmp_path / "saved")
    break_config(folder, eps=0.1)
    with pytest.raises(ArchitectureMismatch) as refused:
        custom.register("edited", folder, parent="custom")
    assert [one.field for one in refused.value.differences] == ["eps"]


# --- what was measured -----------------------------------------------------------------------------------------


def test_what_was_measured_is_recorded_and_the_rest_is_not(trained: HookedTransformer, registry: Registry) -> None:
    """Both ways of loading the same tensors give the same numbers, so the difference is zero and was measured."""
    done = registry.register_network("mine", trained)
    assert done.parity is not None and done.parity.dtype == "float64"
    version = registry.version("mine")
    if is_folded(trained):
        assert (done.parity.raw, done.parity.processed) == (None, 0.0)
        assert set(version.parity) == {"processed"}
    else:
        assert done.parity.raw == 0.0 and 0 < (done.parity.processed or 0) < BOUND
        assert set(version.parity) == {"raw", "processed"}
    assert version.is_verified
    assert registry.history("mine")[0].verified


def test_unverified_hooked_weights_say_so_and_are_still_searched_for_nan(registry: Registry, tmp_path: Path) -> None:
    network = make_hooked()
    registry.register_network("mine", network, parity="skip")
    assert not registry.version("mine").is_verified
    with pytest.warns(UserWarning, match="without verification"):
        registry.load("mine")
    tensors = network.state_dict()
    tensors["blocks.1.attn.b_K"][0, 0] = float("inf")
    config = save_network(make_hooked(), tmp_path / "saved") / "hooked_config.json"
    with pytest.raises(UnusableWeights, match="NaN or infinite"):
        registry.register("bad", save_state_dict(tmp_path / "x.safetensors", tensors), config=config, parity="skip")


def test_loading_warns_of_nothing(trained: HookedTransformer, registry: Registry) -> None:
    registry.register_network("mine", trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.load("mine")
