"""`lensreg diff --weights --prompt`, as people and as programs read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import Registry
from tests.adapters import make_adapted, save_adapter

Answer = tuple[str, str, int]
# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")


@pytest.fixture
def run(
    registry: Registry,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Answer]:
    """The command, on a registry that holds `base` and `lora`, merged into it with rank 4."""
    from cli.main import main

    registry.register("base", make_checkpoint("llama"), parity="skip")
    adapter = save_adapter(tmp_path / "adapter", make_adapted("llama", r=4, target_modules=["q_proj"]))
    registry.register("lora", adapter, parent="base", parity="skip")
    monkeypatch.setenv("LENSREG_URL", str(tmp_path / "registry.db"))
    monkeypatch.setenv("LENSREG_STORE", str(tmp_path / "store"))

    def run_command(*arguments: str) -> Answer:
        capsys.readouterr()
        code = 0
        try:
            main([*arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (*capsys.readouterr(), code)

    return run_command


def test_weights_are_printed_by_layer_and_by_tensor(run: Callable[..., Answer]) -> None:
    out, _, code = run("diff", "base", "lora", "--weights")
    assert code == 0
    lines = out.splitlines()
    assert "weights: 2 of 34 tensors changed" in lines
    heading = next(line for line in lines if line.startswith("layer"))
    assert heading.split() == ["layer", "embed", "attention", "MLP", "norm", "unembed"]
    changed = [line.split() for line in lines if line.startswith("blocks.")]
    assert {(line[0], line[4]) for line in changed} == {("blocks.0.attn.W_Q", "4"), ("blocks.1.attn.W_Q", "4")}


def test_behaviour_is_printed_on_prompts_of_the_line_and_of_a_file(run: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("w1 w2\n\nw3 w4 w5\n")
    out, _, code = run("diff", "base", "lora", "--prompt", "w9", "--prompts", str(tmp_path / "prompts.txt"))
    assert code == 0
    assert "behaviour on 3 prompts, 9 tokens" in out  # each with its beginning-of-sequence token
    assert "KL of the next token" in out
    assert "attention pattern, JSD in nats" in out


def test_json_has_what_was_asked_for(run: Callable[..., Answer]) -> None:
    plain = json.loads(run("diff", "base", "lora", "-o", "json")[0])
    assert not {"weights", "behaviour"} & plain.keys()
    answer = json.loads(run("diff", "base", "lora", "--weights", "--prompt", "w1 w2", "-o", "json")[0])
    assert set(answer) == {*plain, "weights", "behaviour"}
    assert set(answer["weights"]) == {
        "n_changed", "relative_distance", "processing", "tensors", "parts", "heads", "permuted", "only_a", "only_b",
        "misshapen",
    }  # fmt: skip
    assert set(answer["behaviour"]) == {
        "a", "b", "n_prompts", "n_tokens", "tokens_digest", "kl", "top1_agreement", "loss_a", "loss_b", "positions",
        "layers", "heads", "attributions", "processing", "dtype", "notes",
    }  # fmt: skip
    assert {"name", "rank", "relative_distance", "cosine", "largest_change"} <= answer["weights"]["tensors"][0].keys()


def test_a_file_without_prompts_is_wrong_usage(run: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    _, err, code = run("diff", "base", "lora", "--prompts", str(tmp_path / "empty.txt"))
    assert code == 2
    assert "holds no prompt" in err
