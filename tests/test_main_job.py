"""The whole way through: a checkpoint goes in, comes back by name, computes the same, and has a lineage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from registry import ArchitectureMismatch, Registry
from registry.errors import InvalidInput
from tests.checkpoints import edit_config

MakeCheckpoint = Callable[..., Path]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_registered_name_gives_the_network_that_was_registered(
    any_registry: Registry, make_checkpoint: MakeCheckpoint, family: str
) -> None:
    folder = make_checkpoint(family)
    done = any_registry.register("base", folder)
    assert done.outcome == "registered"
    assert done.parity is not None and done.parity.passed
    source = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        expected = source(tokens).logits.log_softmax(-1)
        for processed in (True, False):
            network = any_registry.load("base", processed=processed)
            assert float((network(tokens).log_softmax(-1) - expected).abs().max()) < 1e-4
            assert network.cfg.normalization_type.endswith("Pre") is processed


def test_registering_again_changes_nothing(any_registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2")
    first = any_registry.register("base", folder)
    again = any_registry.register("base", folder)
    assert again.outcome == "unchanged"
    assert again.version == first.version
    assert len(any_registry.history("base")) == 1


def test_a_checkpoint_of_another_architecture_is_refused_and_nothing_is_stored(
    any_registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    any_registry.register("base", make_checkpoint("llama"))
    other = edit_config(make_checkpoint("llama", seed=1), rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    blobs = sorted(any_registry.store.root.rglob("*"))
    with pytest.raises(ArchitectureMismatch) as refused:
        any_registry.register("tuned", other, parent="base")
    assert [difference.field for difference in refused.value.differences] == ["rotary_base"]
    assert sorted(any_registry.store.root.rglob("*")) == blobs
    assert [model.name for model in any_registry.models()] == ["base"]
    done = any_registry.register("tuned", other, parent="base", allow=["rotary_base"])
    assert [difference.field for difference in done.admitted_differences] == ["rotary_base"]


def test_lineage_is_there_to_be_asked(any_registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    any_registry.register("base", make_checkpoint("gpt2"))
    any_registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base", step=100)
    any_registry.register("tuned", make_checkpoint("gpt2", seed=2), parent="tuned@v1", relation="continued", step=200)
    lineage = any_registry.lineage("tuned@step-200")
    assert [(one.version.ref, one.depth) for one in lineage.ancestors()] == [("tuned@v1", 1), ("base@v1", 2)]
    assert [one.version.ref for one in any_registry.lineage("base").descendants()] == ["tuned@v1", "tuned@v2"]


def test_the_wanted_dtype_and_single_flags_are_honoured(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    registry.register("base", make_checkpoint("llama"), parity="float64")
    exact = registry.load("base", dtype="float64")
    short = registry.load("base", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in short.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float64}
    difference = (exact.W_E - short.W_E.double()).detach()
    assert 0 < float(difference.abs().max()) < 0.02
    only_centred = registry.load("base", processed=False, center_unembed=True)
    assert only_centred.cfg.normalization_type == "RMS"
    assert float(only_centred.W_U.detach().mean(-1).abs().max()) < 1e-6
    with pytest.raises(InvalidInput):
        registry.load("base", dtype="int8")


def test_what_was_not_verified_says_so(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    done = registry.register("base", make_checkpoint("gpt2"), parity="skip")
    assert done.version is not None and not done.version.is_verified and done.version.validations == ()
    with pytest.warns(UserWarning, match="base@v1 was registered without verification"):
        registry.load("base")


def test_identical_weights_under_another_name_or_step_are_pointed_out(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("gpt2")
    registry.register("run", folder, step=1)
    other_step = registry.register("run", folder, step=2)
    other_name = registry.register("copy", folder)
    assert [finding.code for finding in other_step.findings] == ["identical-weights"]
    assert "run@v1, run@v2" in other_name.findings[0].message
