"""Suites of validations: figures against plain code; what goes wrong is recorded; what is done is not done again."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry
from registry.errors import (
    ArtifactMissing,
    InvalidInput,
    MalformedArtifact,
    RegistryError,
    SourceNotFound,
    StoreNotOwned,
)
from registry.thresholds import FAILED, parse_threshold
from registry.validate import ValidationRun
from registry.validation.accuracy import wilson_interval
from registry.validation.batches import run_batches
from registry.validation.data import Data
from registry.validation.loss import estimate_error
from registry.validation.metric import Metric, judge
from registry.validation.suites import list_suites, make_suite
from tests.checkpoints import edit_weights

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")

TEXTS = ["w5 w17 w3 w200 w9", "w1 w2 w3 w4 w5 w6 w7", "w100 w50 w25 w12 w6 w3"]


@pytest.fixture
def base(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry with `base` and its fine-tune `tuned`."""
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base", parity="skip")
    return registry


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """TEXTS as JSON lines."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def _metrics(run: ValidationRun) -> dict[str, Metric]:
    return {one.name: one for one in run.metrics}


def test_the_loss_is_that_of_plain_code(base: Registry, texts: Path) -> None:
    (run,) = base.validate("base", "loss", data=texts, parameters={"batch_size": 2})
    network = base.load("base")
    losses = []
    for text in TEXTS:
        tokens = network.to_tokens(text)
        log_probs = network(tokens).detach().double().log_softmax(-1)[0, :-1]
        losses.append(-log_probs.gather(-1, tokens[0, 1:, None])[:, 0])
    plain = torch.cat(losses)
    found = _metrics(run)
    assert found["loss"].value == pytest.approx(float(plain.mean()), rel=1e-6)
    assert found["loss"].n_samples == len(plain)
    assert found["perplexity"].value == pytest.approx(math.exp(float(plain.mean())), rel=1e-6)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"].value == pytest.approx(float(plain.sum()) / math.log(2) / n_bytes, rel=1e-6)
    assert found["loss"].details["low"] < found["loss"].value < found["loss"].details["high"]
    assert found["loss"].direction == "lower"


def test_long_texts_are_cut_into_windows_that_are_all_predicted(base: Registry, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"w{1 + index % 200}" for index in range(250)))
    (run,) = base.validate("base", "loss", data=tmp_path / "long.txt", parameters={"length": 33})
    network = base.load("base")
    tokens = network.to_tokens((tmp_path / "long.txt").read_text(), truncate=False)[0]
    bos, rest = tokens[:1], tokens[1:]
    losses = []
    for start in range(0, len(rest), 32):
        window = torch.cat([bos, rest[start : start + 32]])[None]
        log_probs = network(window).detach().double().log_softmax(-1)[0, :-1]
        losses.append(-log_probs.gather(-1, window[0, 1:, None]))
    assert _metrics(run)["loss"].value == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    assert _metrics(run)["loss"].n_samples == 250
    (run,) = base.validate("base", "loss", data=tmp_path / "long.txt", parameters={"length": 33, "max_tokens": 50})
    assert _metrics(run)["loss"].n_samples == 50


def test_the_interval_of_the_loss_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        level = 3 + 0.5 * torch.randn(60, generator=generator)  # a text's own, which makes its tokens dependent
        totals = []
        for one in level.tolist():
            n = int(torch.randint(5, 40, (1,), generator=generator))
            totals.append([float((one + torch.randn(n, generator=generator)).sum()), n])
        error = estimate_error(totals)
        assert error is not None
        mean = sum(loss for loss, _ in totals) / sum(n for _, n in totals)
        covered += abs(mean - 3) <= 1.96 * error
    assert 0.90 <= covered / 400 <= 0.98
    assert estimate_error([[3.0, 2]]) is None


def test_accuracy_of_multiple_choice_is_that_of_plain_code(base: Registry, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"w{index} w{index + 1}", "choices": [f" w{index + 2} w3", f" w{index + 3}"], "answer": index % 2}
        for index in range(1, 12)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = base.validate("base", "accuracy", data=path, parameters={"batch_size": 3})
    network = base.load("base")
    n_right, n_right_per_byte = 0, 0
    for row in rows:
        scores = []
        for choice in row["choices"]:
            tokens = network.to_tokens(row["prompt"] + choice)
            n_prompt = network.to_tokens(row["prompt"]).shape[1]
            log_probs = network(tokens).detach().double().log_softmax(-1)[0, :-1]
            scores.append(float(log_probs.gather(-1, tokens[0, 1:, None])[n_prompt - 1 :].sum()))
        per_byte = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        n_right += scores.index(max(scores)) == row["answer"]
        n_right_per_byte += per_byte.index(max(per_byte)) == row["answer"]
    found = _metrics(run)
    assert found["accuracy"].value == n_right / len(rows)
    assert found["accuracy_per_byte"].value == n_right_per_byte / len(rows)
    assert (found["accuracy"].details["low"], found["accuracy"].details["high"]) == wilson_interval(n_right, len(rows))


def test_a_cloze_is_right_if_every_token_is_the_likeliest(base: Registry, tmp_path: Path) -> None:
    network = base.load("base")
    words = "w4 w9"
    for _ in range(2):
        best = int(network(network.to_tokens(words))[0, -1].argmax())
        words += f" w{best}" if best else " <bos>"
    prompt, right = words[: len("w4 w9")], words[len("w4 w9") :]
    path = tmp_path / "cloze.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for answer in (right, " w1 w1")))
    (run,) = base.validate("base", "accuracy", data=path)
    assert _metrics(run)["accuracy"].value == 0.5
    assert list(_metrics(run)) == ["accuracy"]


def test_drift_is_what_compare_measures(base: Registry, texts: Path) -> None:
    (run,) = base.validate("tuned", "drift", data=texts)
    found = base.compare("base", "tuned", prompts=TEXTS).behaviour
    assert found is not None
    assert _metrics(run)["kl"].value == pytest.approx(found.kl, rel=1e-6)
    assert _metrics(run)["top1_agreement"].value == pytest.approx(found.top1_agreement)
    (same,) = base.validate("tuned", "drift", data=texts, parameters={"parent": "tuned"})
    assert (_metrics(same)["kl"].value, _metrics(same)["top1_agreement"].value) == (0.0, 1.0)


def test_structure_finds_dead_and_constant_tensors(
    base: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.mlp.c_fc.weight"].zero_()
        tensors["transformer.wpe.weight"].fill_(0.5)

    (run,) = base.validate("base", "structure")
    assert run.passed is True
    assert {name: one.value for name, one in _metrics(run).items()} == {
        "n_nonfinite": 0,
        "n_dead": 0,
        "n_constant": 0,
        "tokenizer_fits": 1,
    }
    base.register("spoilt", edit_weights(make_checkpoint("gpt2"), tmp_path / "s", spoil), parity="skip")
    (run,) = base.validate("spoilt", "structure")
    found = _metrics(run)
    assert run.passed is False
    assert (found["n_dead"].value, found["n_dead"].details["tensors"]) == (1, ["blocks.0.mlp.W_in"])
    assert (found["n_constant"].value, found["n_constant"].details["tensors"]) == (1, ["pos_embed.W_pos"])


def test_parity_is_measured_again_and_in_other_dtypes(base: Registry, make_checkpoint: Callable[..., Path]) -> None:
    base.register("verified", make_checkpoint("gpt2"))
    before = base.version("verified").parity
    (run,) = base.validate("verified", "parity")
    assert run.passed is True
    assert _metrics(run)["raw"].value == before["raw"].value
    (low,) = base.validate("verified", "parity", dtype="bfloat16")
    assert low.suite == "parity-bfloat16"
    assert _metrics(low)["raw"].value > 1e-3
    assert base.version("verified").is_verified
    assert not base.validate("verified", "parity", dtype=torch.bfloat16)[0].is_new
    assert [one.dtype for one in base.validations("verified") if one.suite == "parity"] == ["float64"] * 2


def test_what_failed_since_it_was_measured_is_measured_again(base: Registry, texts: Path) -> None:
    good = texts.read_text()
    base.validate("base", "loss", data=texts)
    texts.write_text("not JSON")
    assert base.validate("base", "loss", data=texts)[0].error is not None
    assert not base.check_requirements("base", ["loss < 100"])[0].met
    texts.write_text(good)
    assert base.validate("base", "loss", data=texts)[0].is_new
    assert base.check_requirements("base", ["loss < 100"])[0].met


def test_a_dtype_that_is_none_is_refused_before_anything_is_measured(base: Registry) -> None:
    for dtype in ("float33", "int8", torch.int8):
        with pytest.raises(InvalidInput, match="no floating-point dtype"):
            base.validate("base", "structure", dtype=dtype, again=True)
    assert not any(one.suite == "structure" for one in base.validations("base"))


def test_parity_that_fails_in_one_dtype_says_nothing_of_another(
    base: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry.validation.subject import Subject

    base.validate("base", "parity")
    with monkeypatch.context() as patched:
        patched.setattr(Subject, "load_source", _never_fits)
        (run,) = base.validate("base", "parity", dtype="bfloat16")
    assert (run.suite, run.error) == ("parity-bfloat16", "OutOfMemoryError: CUDA out of memory")
    assert base.check_requirements("base", ["parity <= 1e-3"])[0].met


def test_parity_of_what_only_a_bridge_runs_is_measured_in_any_dtype(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    registry.register("falcon", make_checkpoint("falcon"), parity="skip")
    (run,) = registry.validate("falcon", "parity", dtype="bfloat16")
    assert (run.error, run.suite, list(_metrics(run))) == (None, "parity-bfloat16", ["bridge"])


def test_results_are_rows_that_are_added_with_an_event(base: Registry, texts: Path) -> None:
    base.validate("base", "loss", data=texts, require=["loss < 1"])
    base.validate("base", "loss", data=texts, again=True)
    rows = [one for one in base.version("base").validations if one.metric == "loss"]
    assert [one.passed for one in rows] == [False, None]
    assert rows[0].value == rows[1].value
    assert rows[0].bound == 1.0
    assert rows[0].dataset_digest == rows[1].dataset_digest is not None
    assert [event.details["suite"] for event in base.events("base@v1") if event.action == "version.validated"] == [
        "loss"
    ] * 2
    assert base.verify().ok
    assert base.search("metric.loss > 1").refs == ["base@v1"]


def test_what_is_measured_already_is_not_measured_again(base: Registry, texts: Path) -> None:
    (first,) = base.validate("base", "loss", data=texts)
    (second,) = base.validate("base", "loss", data=texts, require=["loss < 1"])
    assert (first.is_new, second.is_new) == (True, False)
    assert [one.value for one in first.metrics] == [one.value for one in second.metrics]
    assert _metrics(second)["loss"].passed is False  # thresholds are today's
    (other,) = base.validate("base", "loss", data=texts, parameters={"max_tokens": 4})
    assert other.is_new


def test_what_other_packages_measured_is_measured_again(
    base: Registry, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry import environment

    base.validate("base", "loss", data=texts)
    packages = dict(environment._packages())
    monkeypatch.setattr(environment, "_packages", lambda: packages | {"torch": "99.0"})
    assert base.validate("base", "loss", data=texts)[0].is_new


def test_a_suite_that_raises_is_recorded_and_the_others_go_on(
    base: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: Path
) -> None:
    _install_plugin(tmp_path, monkeypatch)
    runs = base.validate(["base", "tuned"], "bad-suite")
    assert [(run.ref, run.error) for run in runs] == [
        ("base@v1", "ZeroDivisionError: division by zero"),
        ("tuned@v1", "ZeroDivisionError: division by zero"),
    ]
    (row,) = [one for one in base.version("base").validations if one.suite == "bad-suite"]
    assert (row.metric, row.value, row.passed) == (FAILED, None, False)
    assert "division by zero" in row.details["traceback"]
    assert base.validate("base", "bad-suite")[0].is_new  # a failure is no result
    (run,) = base.validate("base", "drift", data=texts)
    assert run.error == "base@v1 has no registered parents."
    assert base.version("base").validations[-1].details["error"] == "invalid-input"


def test_a_store_that_is_another_one_says_nothing_of_a_version(base: Registry, tmp_path: Path) -> None:
    with Registry(str(base.database.file), tmp_path / "another") as astray:
        with pytest.raises(StoreNotOwned, match="holds nothing of") as refused:
            astray.validate("base", "parity")
        assert "--store WHERE" in str(refused.value.hint)
        with pytest.raises(ArtifactMissing, match="another") as refused:
            astray.load("base")
        assert "--store WHERE" in str(refused.value.hint)
    assert base.validations("base", all_runs=True) == []


def test_a_plugin_brings_its_suite_with_its_parameters(
    base: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_plugin(tmp_path, monkeypatch)
    assert {"norm-of-embedding", "bad-suite"} <= set(list_suites())
    assert list_suites()[0] == "parity"
    (run,) = base.validate("base", "norm-of-embedding", parameters={"order": "1"}, require=["norm > 0"])
    expected = float(base.load("base").W_E.detach().norm(p=1))
    assert _metrics(run)["norm"].value == pytest.approx(expected)
    assert run.passed is True
    with pytest.raises(InvalidInput, match="no parameter 'ordr'"):
        base.validate("base", "norm-of-embedding", parameters={"ordr": "1"})
    with pytest.raises(InvalidInput, match="order = 'x' is no int"):
        base.validate("base", "norm-of-embedding", parameters={"order": "x"})


def _install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package on the path as pip would: a module, and the metadata that name its entry points."""
    site = tmp_path / "site"
    info = site / "lens_registry_tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lens-registry-tiny\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lens_registry.suites]\nnorm-of-embedding = tiny_suites:Norm\n"
        "bad-suite = tiny_suites:Bad\nloss = tiny_suites:Bad\n"
    )
    (site / "tiny_suites.py").write_text(
        """
from dataclasses import dataclass
from typing import ClassVar
from registry.validation.metric import Measured, Metric

@dataclass(frozen=True)
class Norm:
    name: ClassVar[str] = "norm-of-embedding"
    version: ClassVar[str] = "2"
    order: int = 2

    def run(self, subject):
        return Measured([Metric("norm", float(subject.load().W_E.detach().norm(p=self.order)), None, "lower")])

@dataclass(frozen=True)
class Bad:
    name: ClassVar[str] = "bad-suite"
    version: ClassVar[str] = "1"

    def run(self, subject):
        return 1 / 0
"""
    )
    monkeypatch.syspath_prepend(str(site))
    sys.modules.pop("tiny_suites", None)


def test_batches_are_halved_where_memory_runs_out() -> None:
    seen = []

    def run(items: Sequence[int]) -> int:
        seen.append(len(items))
        if len(items) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")
        return sum(items)

    done = list(run_batches(range(20), run, 8))
    assert [one for items, _ in done for one in items] == list(range(20))
    assert sum(total for _, total in done) == sum(range(20))
    assert seen.count(8) == 1
    with pytest.raises(torch.OutOfMemoryError):
        list(run_batches([1, 2], _never_fits, 2))
    with pytest.raises(RuntimeError, match="another"):
        list(run_batches([1, 2], _fails, 2))


def _never_fits(items: Sequence[int]) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _fails(items: Sequence[int]) -> None:
    raise RuntimeError("another error")


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("empty.jsonl", "", InvalidInput, "no text of two tokens"),
        ("empty.txt", " \n ", InvalidInput, "no text of two tokens"),
        ("other.jsonl", '{"prompt": "w1 w2"}\n', InvalidInput, "no column 'text'"),
        ("bad.jsonl", '{"text": "w1"}\n[1]\n', MalformedArtifact, "Line 2 of bad.jsonl"),
        ("number.jsonl", '{"text": 3}\n', MalformedArtifact, "no text in 'text'"),
        ("table.csv", "text\nw1\n", InvalidInput, "no kind that is read here"),
        ("latin.txt", None, MalformedArtifact, "no text in UTF-8"),
    ],
)
def test_data_that_cannot_be_used_are_said_to_be(
    base: Registry, tmp_path: Path, name: str, content: str | None, error: type[RegistryError], said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"caf\xe9 w1" if content is None else content.encode())
    (run,) = base.validate("base", "loss", data=path)
    assert run.error is not None and said in run.error
    assert base.version("base").validations[-1].details["error"] == error.code


def test_what_cannot_be_meant_is_refused_before_anything_is_measured(base: Registry, texts: Path) -> None:
    for refs, suite, options in (
        ("base", "los", {}),
        ("base", "loss", {}),
        ("base", "loss", {"data": texts, "parameters": {"batch_size": "many"}}),
        ("base", "structure", {"require": ["n_dead = 0"]}),
        ([], "structure", {}),
    ):
        with pytest.raises(InvalidInput):
            base.validate(refs, suite, **options)  # type: ignore[arg-type]
    with pytest.raises(SourceNotFound):
        list(Data("nowhere.txt").read_rows())
    assert base.version("base").validations == ()


@pytest.mark.parametrize(("text", "value", "holds"), [
    ("loss < 3.2", 3.1, True), ("loss < 3.2", 3.2, False), ("loss<=3.2", 3.2, True), ("loss > -1e-3", 0.0, True),
    ("loss >= 5", 4.0, False), ("loss < 3", math.nan, False), ("loss < 3", None, False),
])  # fmt: skip
def test_thresholds(text: str, value: float | None, holds: bool) -> None:
    assert parse_threshold(text).holds(value) is holds


def test_a_threshold_concerns_the_metric_it_names() -> None:
    metrics = [Metric("loss", 1.0), Metric("perplexity", 2.7)]
    assert [one.passed for one in judge("loss", metrics, [parse_threshold("loss < 2")])] == [True, None]
    assert [one.passed for one in judge("loss", metrics, [parse_threshold("loss.perplexity < 2")])] == [None, False]
    parity = [Metric("raw", 1e-6), Metric("processed", 1e-2)]
    assert [one.passed for one in judge("parity", parity, [parse_threshold("parity <= 1e-3")])] == [True, False]
    for bad in ("loss", "loss < x", "loss == 3", "< 3", "loss < 3 extra"):
        with pytest.raises(InvalidInput):
            parse_threshold(bad)


def test_the_digest_is_of_the_rows_whatever_holds_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w1", "id": 1}\n{"id": 2, "text": "w2"}\n')
    (tmp_path / "b.ndjson").write_text('{"id":1,"text":"w1"}\n\n{"text":"w2","id":2}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "w1", "id": 1}\n{"id": 2, "text": "w3"}\n')

    def digest(name: str) -> Any:
        data = Data(str(tmp_path / name))
        assert data.digest is None
        list(data.read_rows())
        return data.digest

    assert digest("a.jsonl") == digest("b.ndjson") != digest("c.jsonl")


def test_parameters_are_read_by_their_types() -> None:
    suite: Any = make_suite("loss", {"data": "x.txt", "length": "none", "max_tokens": "12"})
    assert (suite.data, suite.length, suite.max_tokens) == (str(Path("x.txt").absolute()), None, 12)
    with pytest.raises(InvalidInput, match="needs data"):
        make_suite("loss", {})
    with pytest.raises(InvalidInput, match="batch_size = True"):
        make_suite("loss", {"data": "x", "batch_size": True})
