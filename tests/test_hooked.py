"""Weights in the hooked layout: state dicts of HookedTransformers are registered and come back as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import update
from transformer_lens import HookedTransformer

from registry import ArchitectureMismatch, Registry, save_network
from registry.convert import RAW, Processing, build_hooked_network
from registry.errors import (
    ProcessingConflict,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from registry.hooked_config import describe_hooked_config
from registry.processing import tell_processing
from registry.tables import versions
from tests.checkpoints import make_tokenizer
from tests.contents import read_contents
from tests.networks import assert_identical, compare, make_hooked, save_state_dict, train

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
FAMILIES = ["gpt2", "llama"]
BOUND = 1e-4


@pytest.fixture(scope="module", params=[(family, processed) for family in FAMILIES for processed in (True, False)],
                ids=lambda param: f"{param[0]}-{'processed' if param[1] else 'raw'}")  # fmt: skip
def trained(request: pytest.FixtureRequest, families: Registry) -> HookedTransformer:
    """A network that was loaded, processed or raw, and trained for a few steps."""
    family, processed = request.param
    network = families.load(family, processed=processed)
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
    trained: HookedTransformer, families: Registry, tmp_path: Path, form: Callable[..., Path]
) -> None:
    family = family_of(trained)
    done = families.register(form.__name__, form(trained, tmp_path), parent=family)
    assert done.version is not None
    assert (done.version.layout, done.version.family) == ("hooked", family)
    assert done.version.is_verified
    assert done.architecture.fingerprint == families.version(family).fingerprint
    loaded = rebuild(trained, families, done.version.ref)
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
    families: Registry, registry: Registry, tmp_path: Path
) -> None:
    network = families.load("gpt2")
    done = families.register("alone", as_file(network, tmp_path), parent="gpt2")
    assert done.version is not None
    assert {f.name: f.digest for f in done.version.with_role("tokenizer")} == {
        f.name: f.digest for f in families.version("gpt2").with_role("tokenizer")
    }
    assert done.version.provenance == {"tokenizer_of": "gpt2@v1"}
    assert "parent-tokenizer" in {finding.code for finding in done.findings}
    network.tokenizer = None
    none = families.register_network("none", network, parent="gpt2")
    assert "no-tokenizer" in {finding.code for finding in none.findings}
    assert families.load("none").tokenizer is None


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
def test_processing_is_told_from_the_tensors(families: Registry, processing: Processing, dtype: torch.dtype) -> None:
    """Flag by flag, for a family whose biases are all there."""
    network = families.load("gpt2", processed=False, dtype=dtype, **vars(processing))
    expected = set(processing.active)
    if processing.fold_ln and not processing.fold_value_biases:
        assert "fold_value_biases" not in tell(network)
    assert set(tell(network)) == expected


def test_processing_is_told_for_rms_norms_too(families: Registry) -> None:
    """They are never centred on the writing side; value biases are not there, so folding them changed nothing."""
    assert tell(families.load("llama")) == ("fold_ln", "center_unembed", "fold_value_biases")
    assert tell(families.load("llama", processed=False)) == ()


def test_training_after_processing_is_told(families: Registry, registry: Registry) -> None:
    """SGD keeps what is centred centred; AdamW does not, and then it stands between."""
    network = families.load("gpt2")
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


def test_flags_asked_for_by_name_are_not_done_to_trained_weights(registry: Registry, families: Registry) -> None:
    network = families.load("gpt2", center_unembed=False)
    registry.register_network("mine", network)
    with pytest.warns(UserWarning, match="center_unembed was not applied to mine@v1: it would rewrite"):
        assert_identical(registry.load("mine", center_unembed=True), network)
    with pytest.warns(UserWarning, match="center_writing_weights had been applied to mine@v1 already"):
        assert_identical(registry.load("mine", center_writing_weights=False), network)
    assert_identical(registry.load("mine", fold_ln=True, center_writing_weights=True), network)


def test_what_was_centred_before_training_is_not_centred_again(registry: Registry, families: Registry) -> None:
    """Norms that are not folded are folded as usual; that leaves W_E as it was trained."""
    network = families.load("gpt2", processed=False, center_writing_weights=True)
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


def test_processing_is_idempotent(families: Registry) -> None:
    once = families.load("gpt2")
    tensors = {name: tensor.detach().clone() for name, tensor in once.named_parameters()}
    architecture = describe_hooked_config(once.cfg)
    again = Processing(False, True, True, True)
    twice = build_hooked_network(tensors, architecture, again, folded=True, dtype=torch.float32)
    for name, tensor in twice.named_parameters():
        assert float((tensor - tensors[name]).detach().abs().max()) < 1e-6, name


def test_single_flags_are_honoured_for_raw_weights(registry: Registry, families: Registry) -> None:
    registry.register_network("raw", families.load("gpt2", processed=False))
    for flag, processing in FLAGS.items():
        loaded, expected = (
            one.load(ref, processed=False, **vars(processing)) for one, ref in ((registry, "raw"), (families, "gpt2"))
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


def test_a_resized_vocabulary_is_named_and_can_be_allowed(families: Registry, tmp_path: Path) -> None:
    tensors = families.load("llama", processed=False).state_dict()
    resize_vocabulary(tensors)
    path = save_state_dict(tmp_path / "mine.safetensors", tensors)
    with pytest.raises(ArchitectureMismatch) as refused:
        families.register("resized", path, parent="llama")
    assert [(one.field, one.parent, one.checkpoint) for one in refused.value.differences] == [
        ("d_vocab", 211, 216),
        ("d_vocab_out", 211, 216),
    ]
    done = families.register("resized", path, parent="llama", allow=["d_vocab"])
    assert done.architecture["d_vocab"] == 216
    assert torch.equal(families.load("resized", processed=False).W_E, tensors["embed.W_E"])


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


@pytest.mark.parametrize("field", SHAPES)
def test_a_difference_that_shapes_tell_is_a_difference_of_architecture(
    families: Registry, tmp_path: Path, field: str
) -> None:
    path = save_state_dict(tmp_path / "mine.safetensors", make_hooked(**SHAPES[field]).state_dict())
    before = read_contents(families)
    with pytest.raises(ArchitectureMismatch) as refused:
        families.register("other", path, parent="custom")
    assert field in {one.field for one in refused.value.differences}
    assert read_contents(families) == before


def test_what_else_a_difference_changed_is_not_guessed(families: Registry, tmp_path: Path) -> None:
    """Other heads mean another attention scale, perhaps; `--allow` is not enough, but a config is."""
    network = make_hooked(n_heads=8, d_head=4)
    path = save_state_dict(tmp_path / "mine.safetensors", network.state_dict())
    allowed = ["n_heads", "n_key_value_heads", "d_head", "attn_scale"]
    with pytest.raises(ArchitectureMismatch, match="--config"):
        families.register("other", path, parent="custom", allow=allowed)
    config = save_network(network, tmp_path / "saved") / "hooked_config.json"
    done = families.register("other", path, parent="custom", allow=allowed, config=config)
    assert {one.field for one in done.admitted_differences} == set(allowed)
    assert_identical(families.load("other", processed=False), network)


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
