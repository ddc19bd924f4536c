"""What a source is said to come from, by its weights alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.compare_sketches import Evidence
from registry.errors import UnusableWeights
from tests.adapters import make_adapted, save_adapter
from tests.checkpoints import UNRELATED, edit_config
from tests.networks import save_state_dict
from tests.test_sketch import forget_sketches

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, target: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """Copy a checkpoint with other weights."""
    shutil.copytree(folder, target)
    save_file(edit(load_file(folder / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture
def base(any_registry: Registry, make_checkpoint: MakeCheckpoint) -> Path:
    """A base, and two others that are none."""
    folder = make_checkpoint("gpt2")
    any_registry.register("base", folder)
    for number in (0, 1):
        any_registry.register(f"other/{number}", make_checkpoint("gpt2", seed=UNRELATED + number))
    return folder


def test_identical_unchanged_finetuned_and_unrelated(
    any_registry: Registry, base: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    found = any_registry.identify(base)
    assert [one.kind for one in found.matches] == ["identical-weights", "unrelated", "unrelated"]
    assert found.verdict == "identical weights to base@v1" and found.n_compared == 3 and found.unsketched == ()
    norms = rewrite(base, tmp_path / "norms", lambda all_: {k: v * 2 if "ln_1" in k else v for k, v in all_.items()})
    found = any_registry.identify(norms)
    assert found.matches[0].kind == "unchanged" and "every matrix that was sampled" in found.verdict
    found = any_registry.identify(make_checkpoint("gpt2", seed=5))
    assert (found.matches[0].ref, found.matches[0].kind) == ("base@v1", "finetuned")
    assert found.verdict.startswith("likely a fine-tune of base@v1")
    found = any_registry.identify(make_checkpoint("gpt2", seed=UNRELATED + 7))
    assert {one.kind for one in found.matches} == {"unrelated"} and found.verdict.startswith("unrelated to everything")
    found = any_registry.identify(make_checkpoint("llama"))
    assert found.matches == () and found.n_compared == 0 and found.verdict.startswith("nothing that is registered")


def test_equal_weights_beside_another_config_are_not_the_same_network(
    any_registry: Registry, base: Path, tmp_path: Path
) -> None:
    other = edit_config(rewrite(base, tmp_path / "other", lambda all_: all_), layer_norm_epsilon=0.1)
    found = any_registry.identify(other)
    assert found.verdict == "identical weights to base@v1; in another architecture: eps 1e-05 → 0.1"
    assert [one.field for one in found.matches[0].differences] == ["eps"]
    any_registry.register("other", other)
    found = any_registry.identify(other)
    assert [one.ref for one in found.matches[:2]] == ["other@v1", "base@v1"]
    assert found.verdict == "identical weights to other@v1"


def test_a_partial_change_is_said_in_numbers(any_registry: Registry, base: Path, tmp_path: Path) -> None:
    def change_one(tensors: Tensors) -> Tensors:
        name = "transformer.h.1.mlp.c_fc.weight"
        return {**tensors, name: tensors[name] + 0.1 * torch.randn(tensors[name].shape)}

    some = rewrite(base, tmp_path / "some", change_one)
    found = any_registry.identify(some)
    assert found.verdict == "likely a fine-tune of base@v1 (or the other way round): 1 of 12 matrices changed"
    evidence = found.matches[0].evidence
    assert evidence.distance == 0.0 and evidence.correlation == pytest.approx(1)
    assert evidence.changed_distance is not None and 0.3 < evidence.changed_distance < 2
    any_registry.register("some", some, parent="base")
    (parent,) = any_registry.version("some").parents
    assert parent.evidence == evidence.as_dict() and Evidence.from_dict(parent.evidence) == evidence
    assert str(evidence).startswith("related: 1 of 12 matrices changed, by a relative distance of 0.")


def test_an_adapter_merged_into_a_base(any_registry: Registry, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", make_adapted("gpt2", r=3))
    match = any_registry.identify(adapter, parent="base").matches[0]
    assert (match.ref, match.kind, match.rank) == ("base@v1", "adapter", 3)
    assert 0 < match.evidence.n_unchanged < match.evidence.n_matrices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_of_two_and_one_in_fewer_bits(
    dtype: torch.dtype, any_registry: Registry, base: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    tuned = make_checkpoint("gpt2", seed=5)
    any_registry.register("tuned", tuned, parent="base")
    any_registry.register("third", make_checkpoint("gpt2", seed=6), parent="base")
    other = load_file(tuned / "model.safetensors")
    merged = rewrite(
        base, tmp_path / "merged", lambda all_: {k: (0.3 * v + 0.7 * other[k]).to(dtype) for k, v in all_.items()}
    )
    mixture = any_registry.identify(merged).mixture
    assert mixture is not None and set(mixture.shares) == {"base@v1", "tuned@v1"}
    assert mixture.shares["tuned@v1"] == pytest.approx(0.7, abs=0.01)
    rounded = rewrite(base, tmp_path / "rounded", lambda all_: {k: v.to(dtype) for k, v in all_.items()})
    found = any_registry.identify(rounded)
    kind = "identical-weights" if dtype == torch.float32 else "finetuned"
    assert (found.matches[0].ref, found.matches[0].kind, found.mixture) == ("base@v1", kind, None)
    fourth = any_registry.identify(make_checkpoint("gpt2", seed=8))
    assert fourth.mixture is None and fourth.matches[0].kind == "finetuned"


def test_a_hooked_network_is_found_raw_and_processed(any_registry: Registry, base: Path, tmp_path: Path) -> None:
    for processed in (False, True):
        network = any_registry.load("base", processed=processed)
        network.blocks[1].mlp.W_out.data *= 1.01
        any_registry.register_network(f"mine/{processed}", network, parent="base")
        match = any_registry.identify(base).matches[1]
        assert (match.ref in ("mine/True@v1", "mine/False@v1") and match.kind == "adapter") or match.kind == "finetuned"
    state = save_state_dict(
        tmp_path / "state.safetensors", dict(any_registry.load("base", processed=False).named_parameters())
    )
    assert any_registry.identify(state, parent="base").matches[0].kind == "unchanged"


def test_what_was_not_converted_is_read_when_asked(
    any_registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2")
    any_registry.register("base", folder, parity="skip")
    forget_sketches(any_registry)
    found = any_registry.identify(folder)
    assert found.matches == () and found.unsketched == ("base@v1",)
    found = any_registry.identify(folder, read=True)
    assert found.matches[0].kind == "identical-weights" and found.unsketched == ()


def test_nothing_is_registered_and_broken_sources_are_refused(
    any_registry: Registry, base: Path, tmp_path: Path
) -> None:
    before = [one.sequence for one in any_registry.events()]
    nan = rewrite(base, tmp_path / "nan", lambda all_: {k: v * float("nan") for k, v in all_.items()})
    with pytest.raises(UnusableWeights):
        any_registry.identify(nan)
    any_registry.identify(base)
    assert [one.sequence for one in any_registry.events()] == before
