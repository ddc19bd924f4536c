"""With transformer-lens 4, which has no HookedTransformer: what transformer-lens 3.9 registered loads as a bridge.

`make tl4` runs this in an environment of its own, after tests/tl4/write_reference.py has run in the main one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry
from registry.errors import HookedTransformerMissing
from tests.sampling import is_sampled

FOLDER = Path(os.environ["LENSREG_TL4_FOLDER"])
# tokens and log-probs by family, in float32; two networks in it differ by 1e-5 here, and a wrong one by more than 0.1
EXPECTED: dict[str, dict[str, torch.Tensor]] = torch.load(FOLDER / "expected.pt", weights_only=True)
BOUND = 1e-3
# every other family, others in every run; all with $LENSREG_TEST_SHARE=1
NAMES = [name for name in sorted(EXPECTED) if is_sampled(f"{name} with transformer-lens 4", times=2.5)]


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    one = Registry(str(FOLDER / "registry.db"), FOLDER / "store")
    yield one
    one.close()


def measure(network: Any, name: str) -> float:
    with torch.inference_mode():
        output = network(EXPECTED[name]["tokens"])
    log_probs = getattr(output, "logits", output).log_softmax(-1)
    return float((log_probs - EXPECTED[name]["log_probs"]).abs().max())


def test_this_is_transformer_lens_4() -> None:
    assert version("transformer-lens").startswith("4.")


@pytest.mark.parametrize("compatibility", [False, True], ids=["raw", "compatibility"])
@pytest.mark.parametrize("name", NAMES)
def test_the_bridge_has_the_log_probs_of_the_hooked_transformer(
    name: str, compatibility: bool, registry: Registry
) -> None:
    bridge = registry.load_bridge(name, compatibility=compatibility)
    assert measure(bridge, name) <= BOUND
    assert torch.equal(bridge.to_tokens("w1 w2"), EXPECTED[name]["text"])


@pytest.mark.parametrize("name", NAMES)
def test_the_hugging_face_network_has_them_too(name: str, registry: Registry) -> None:
    assert measure(registry.load_hf(name), name) <= BOUND
    tokenizer = registry.tokenizer(name)
    assert tokenizer is not None
    assert tokenizer("w1 w2", add_special_tokens=False)["input_ids"] == EXPECTED[name]["text"][0, 1:].tolist()


def test_loading_and_registering_explain_what_is_missing(registry: Registry) -> None:
    for attempt in (
        lambda: registry.load("gpt2"),
        lambda: registry.register("other", FOLDER / "sources" / "gpt2"),
        lambda: registry.register("other", FOLDER / "sources" / "gpt2", dry_run=True),
    ):
        with pytest.raises(
            HookedTransformerMissing, match=r"transformer-lens 4\..* has no HookedTransformer"
        ) as refused:
            attempt()
        assert refused.value.code == "hooked-transformer-missing"
        assert "load_bridge" in str(refused.value.hint) and "--parity skip" in str(refused.value.hint)
    assert {model.name for model in registry.models()} == set(EXPECTED)


@pytest.mark.filterwarnings("ignore:.*registered without verification")
def test_records_and_weights_are_compared_and_behaviour_says_why_not(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    for name in ("gpt2", "llama"):
        registry.register(name, FOLDER / "sources" / name, parity="skip")
    same = registry.compare("gpt2", "gpt2", weights=True, prompts=["w1 w2"])
    assert same.weights is not None and len(same.weights.tensors) > 20 and same.weights.n_changed == 0
    (obstacle,) = same.obstacles
    assert isinstance(obstacle, HookedTransformerMissing) and "lensreg diff A B --weights" in str(obstacle.hint)
    assert registry.compare("gpt2", "llama").records.architecture
    with pytest.raises(HookedTransformerMissing):
        registry.compare("gpt2", "gpt2", prompts=["w1 w2"])
    registry.close()


def test_what_is_registered_without_verification_says_so(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    done = registry.register("m", FOLDER / "sources" / "gpt2", parity="skip")
    assert done.version is not None and not done.version.is_verified
    with pytest.warns(UserWarning, match="registered without verification"):
        assert measure(registry.load_bridge("m"), "gpt2") <= BOUND
    registry.close()


def test_importing_the_library_works() -> None:
    import registry.bridge
    import registry.convert
    import registry.load
    import registry.networks
    import registry.register
    import registry.verify  # noqa: F401
