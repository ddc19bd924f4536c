"""`lensreg diff --weights --prompt`, as people and as programs read it."""

from __future__ import annotations

import json
import sys
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
    run: Callable[..., Answer],
) -> Callable[..., Answer]:
    """The command, on a registry that holds `base` and `lora`, merged into it with rank 4."""
    registry.register("base", make_checkpoint("llama"), parity="skip")
    adapter = save_adapter(tmp_path / "adapter", make_adapted("llama", r=4, target_modules=["q_proj"]))
    registry.register("lora", adapter, parent="base", parity="skip")
    return run


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
    assert set(answer) == {*plain, "weights", "behaviour", "obstacles"}
    assert answer["obstacles"] == []
    assert set(answer["weights"]) == {
        "n_changed", "relative_distance", "processing", "tensors", "parts", "heads", "permuted", "only_a", "only_b",
        "misshapen",
    }  # fmt: skip
    assert set(answer["behaviour"]) == {
        "a", "b", "n_prompts", "n_tokens", "tokens_digest", "kl", "top1_agreement", "loss_a", "loss_b", "positions",
        "layers", "heads", "attributions", "head_attributions", "patterns", "processing", "dtype", "data_digest",
        "notes",
    }  # fmt: skip
    pattern = answer["behaviour"]["patterns"][0]
    assert set(pattern) == {"layer", "head", "pattern_jsd", "tokens", "a", "b"}
    assert len(pattern["a"]) == len(pattern["tokens"]) == 3
    assert {"name", "rank", "relative_distance", "cosine", "largest_change"} <= answer["weights"]["tensors"][0].keys()


def test_a_file_without_prompts_is_wrong_usage(run: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    _, err, code = run("diff", "base", "lora", "--prompts", str(tmp_path / "empty.txt"))
    assert code == 2
    assert "holds no prompt" in err


def test_data_are_windows_and_both_ways_print_the_same(run: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(" ".join(f"w{1 + index % 200}" for index in range(60)))
    arguments = ("diff", "base", "lora", "--data", str(tmp_path / "it.txt"), "--length", "21", "--max-tokens", "50")
    out, _, code = run(*arguments, "--one-at-a-time")
    assert code == 0
    assert "behaviour on 3 prompts and windows of data, 53 tokens" in out
    assert "more to the logit of the next token" in out
    assert run(*arguments, "--both-at-once")[0] == out


@pytest.mark.parametrize(
    ("contents", "more", "code"),
    [("", (), "invalid-input"), ("w1 w2", ("--column", "body"), "invalid-input"), (None, (), "source-not-found")],
)
def test_data_that_cannot_be_read_are_typed_errors(
    run: Callable[..., Answer], tmp_path: Path, contents: str | None, more: tuple[str, ...], code: str
) -> None:
    if contents is not None:
        (tmp_path / "it.txt").write_text(contents)
    _, err, status = run("diff", "base", "lora", "--data", str(tmp_path / "it.txt"), *more, "-o", "json")
    assert (json.loads(err)["error"]["code"], status) == (code, 1)


def test_weights_are_compared_though_tokens_mean_other_things(
    run: Callable[..., Answer], registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    other = make_checkpoint("llama", seed=1)
    path = other / "tokenizer.json"
    text = path.read_text()
    changed = (
        text.replace('"w7": 7', '"w7": 999', 1).replace('"w8": 8', '"w8": 7', 1).replace('"w7": 999', '"w7": 8', 1)
    )
    assert changed != text
    path.write_text(changed)
    registry.register("other", other, parity="skip")
    out, err, code = run("diff", "base", "other", "--weights", "--prompt", "w1 w2")
    assert code == 0
    assert "weights: " in out and "behaviour" not in out
    assert "vocabulary-mismatch" in err
    answer = json.loads(run("diff", "base", "other", "--weights", "--prompt", "w1 w2", "-o", "json")[0])
    assert [one["code"] for one in answer["obstacles"]] == ["vocabulary-mismatch"]
    assert "behaviour" not in answer
    assert run("diff", "base", "other", "--prompt", "w1 w2")[2] == 1


def test_what_is_recorded_is_told(run: Callable[..., Answer]) -> None:
    out, _, _ = run("diff", "base", "lora")
    assert "parents" in out and "base@v1 (adapter-merged)" in out
    assert "merged adapter" in out
    assert "tokenizer" not in out  # both have the same


def test_pictures_are_written_into_a_folder(run: Callable[..., Answer], tmp_path: Path) -> None:
    _, err, code = run("diff", "base", "lora", "--prompt", "w1 w2 w3", "--pictures", str(tmp_path / "pictures"))
    assert code == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"weights-by-component.png", "weights-by-head.png", "residual-stream.png", "patterns-by-head.png"} <= names
    assert {"attributions.png", "attributions-by-head.png", "positions.png"} <= names
    assert sum(name.startswith("pattern-") for name in names) == 3
    assert f"wrote {len(names)} pictures" in err


def test_what_could_not_be_written_or_drawn_is_refused_before_anything_is_compared(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*refs: str, **options: object) -> None:
        raise AssertionError("compared")

    monkeypatch.setattr("registry.methods.comparing.Comparing.compare", compare)
    (tmp_path / "file").write_text("mine")
    for target in (
        ("--report", tmp_path / "nowhere" / "out.html"),
        ("--pictures", tmp_path / "file" / "below"),
    ):
        _, err, code = run("diff", "base", "lora", *map(str, target))
        assert (code, "storage-error" in err, str(target[1]) in err) == (1, True, True)
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (("diff", "base", "lora", "--report"), ("trace", "lora", "--picture")):
        _, err, code = run(*command, str(tmp_path / "out.svg"))
        assert (code, "pip install 'lens-registry[plots]'" in err) == (1, True)
