"""Results that no longer stand: named wherever they are shown, and repeated as they were asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry import Registry, environment
from registry.errors import RequirementsUnmet
from registry.stale import StaleMeasurement
from tests.records import record
from tests.test_gates import measure

pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")

TEXTS = ["w5 w17 w3 w200 w9", "w1 w2 w3 w4 w5 w6 w7", "w100 w50 w25 w12 w6 w3"]


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that has other releases of packages installed."""
    packages = dict(environment._packages())

    def install(**releases: str) -> None:
        changed = packages | {name.replace("_", "-"): release for name, release in releases.items()}
        monkeypatch.setattr(environment, "_packages", lambda: changed)

    return install


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.jsonl", TEXTS)


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def base(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry with `base`, of two versions, and its fine-tune `tuned`."""
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    registry.register("base", make_checkpoint("gpt2", seed=2), parity="skip")
    registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base@v1", parity="skip")
    return registry


def test_what_changed_is_named_wherever_results_are_shown(any_registry: Registry, upgrade: Callable[..., None]) -> None:
    record(any_registry, "m")
    record(any_registry, "m")
    measure(any_registry, "m@v1", "loss", {"loss": 2.5, "perplexity": 12.2}, direction="lower", run_id="a")
    assert {one.stale for one in any_registry.validations("m@v1") if one.suite == "loss"} == {None}
    upgrade(torch="99.0", transformers="98.0")
    measure(any_registry, "m@v2", "loss", {"loss": 3.5}, direction="lower", run_id="b")
    upgrade(torch="100.0", transformers="98.0")
    said = any_registry.validations("m@v2")[-1].stale
    assert said == "torch 99.0 → 100.0"
    ranks = any_registry.leaderboard("m", "loss").ranks
    assert [one.stale is None for one in ranks] == [False, False]
    assert ranks[1].stale == said
    (one,) = any_registry.check_requirements("m@v2", ["loss < 4"])
    assert (one.met, one.stale, one.reason) == (True, said, f"loss.loss is 3.5, stale: {said}")
    (one,) = any_registry.check_requirements("m@v2", ["loss < 4"], fresh=True)
    assert not one.met
    (one,) = any_registry.check_requirements("m@v2", ["loss < 1"])
    assert (one.met, one.stale) == (False, said)
    upgrade(torch="99.0", transformers="98.0")
    assert any_registry.validations("m@v2")[-1].stale is None
    assert any_registry.check_requirements("m@v2", ["loss < 4"], fresh=True)[0].met


def test_a_gate_that_is_met_by_what_is_stale_says_so(any_registry: Registry, upgrade: Callable[..., None]) -> None:
    record(any_registry, "m")
    measure(any_registry, "m", "loss", {"loss": 2.5})
    any_registry.set_gate("m@best", ["loss < 3"])
    upgrade(torch="99.0")
    with pytest.warns(StaleMeasurement, match="m@v1 meets loss < 3 by what is stale .torch .* → 99.0"):
        any_registry.set_alias("m@best", "m")
    assert any_registry.resolve("m@best").number == 1


def test_what_was_measured_of_other_weights_meets_nothing(any_registry: Registry) -> None:
    record(any_registry, "m")
    measure(any_registry, "m", "loss", {"loss": 2.5}, weights_digest="f" * 64)
    assert any_registry.validations("m")[-1].stale == "of other weights"
    assert any_registry.check_requirements("m", ["loss < 3"])[0].reason == "it was not measured"
    with pytest.raises(RequirementsUnmet):
        any_registry.load("m", require=["loss < 3"])


def test_the_newest_run_of_each_suite_is_shown(base: Registry, texts: Path, tmp_path: Path) -> None:
    others = write_texts(tmp_path / "others.jsonl", ["w1 w2 w3"])
    base.validate("base@v1", "loss", data=texts, require=["loss < 1"])
    base.validate("base@v1", "loss", data=texts, parameters={"batch_size": 2}, again=True)
    base.validate("base@v1", "loss", data=others)
    base.validate("base@v1", "structure")
    shown = base.validations("base@v1")
    assert [one.metric for one in shown].count("loss") == 2  # one for each data
    assert [one.passed for one in shown if one.metric == "loss"] == [None, None]
    assert len({one.run_id for one in shown}) == 3
    everything = base.validations(["base@v1", "base@v1"], all_runs=True)
    assert [one.threshold for one in everything if one.metric == "loss"] == ["loss < 1", None, None]
    frame = shown.to_pandas()
    assert list(frame.columns[:3]) == ["ref", "suite", "metric"]
    assert set(frame["ref"]) == {"base@v1"}
    loss = next(one for one in shown if one.metric == "loss")
    assert loss.value is not None and loss.low is not None and loss.high is not None
    assert loss.low < loss.value < loss.high
    assert (loss.unit, loss.n_samples, loss.dtype, loss.device) == ("nats per token", 18, "float32", "cpu")


def test_only_what_is_stale_is_repeated_as_it_was_asked_for(
    base: Registry, texts: Path, upgrade: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"max_tokens": 6, "length": 5}
    base.validate(["base@v1", "tuned"], "loss", data="texts.jsonl", parameters=asked, require=["loss < 1"])
    upgrade(torch="99.0")
    base.validate("tuned", "structure")
    monkeypatch.chdir("/")  # the path was recorded whole
    stale = base.find_stale()
    assert [(one.ref, one.suite, one.obstacle) for one in stale] == [
        ("base@v1", "loss", None),
        ("tuned@v1", "loss", None),
    ]
    assert stale[0].stale.startswith("torch ") and stale[0].stale.endswith("→ 99.0")
    assert [one.ref for one in base.find_stale("tuned")] == ["tuned@v1"]
    assert base.find_stale(suites=["structure"]) == []
    runs = base.repeat_stale(stale[:1])
    (before, after) = [one for one in base.validations("base@v1", all_runs=True) if one.metric == "loss"]
    assert runs[0].is_new and after.value == before.value
    assert (after.parameters, after.threshold, after.passed) == (before.parameters, "loss < 1", False)
    assert (before.stale is None, after.stale) == (False, None)
    assert [one.ref for one in base.find_stale()] == ["tuned@v1"]  # so that an interrupted repetition goes on
    with ThreadPoolExecutor(1) as threads:
        base.repeat_stale(base.find_stale(), executor=threads)
    assert base.find_stale() == []
    assert base.verify().ok


def test_a_name_is_all_versions_of_its_model(base: Registry, texts: Path, upgrade: Callable[..., None]) -> None:
    base.validate(["base@v1", "base@v2", "tuned"], "loss", data=texts)
    upgrade(torch="99.0")
    assert [one.ref for one in base.find_stale("base")] == ["base@v1", "base@v2"]
    assert [one.ref for one in base.find_stale(["base@v2", "tuned"])] == ["base@v2", "tuned@v1"]
    base.retire("base@v1", force=True)
    assert [one.ref for one in base.find_stale()] == ["base@v2", "tuned@v1"]


def test_data_that_changed_make_results_stale(base: Registry, texts: Path) -> None:
    (first,) = base.validate("base@v1", "loss", data=texts)
    assert base.find_stale() == []
    write_texts(texts, [*TEXTS, "w7 w8 w9"])
    assert base.validations("base@v1")[0].stale is None  # no path is opened to show what is recorded
    (one,) = base.find_stale()
    assert (one.stale, one.dataset_digest) == ("the data changed", first.dataset_digest)
    (again,) = base.validate("base@v1", "loss", data=texts)
    assert again.is_new and again.dataset_digest != first.dataset_digest
    assert base.find_stale() == []


def test_data_are_known_by_their_rows_and_not_by_their_place(base: Registry, texts: Path, tmp_path: Path) -> None:
    base.validate("base@v1", "loss", data=texts)
    moved = texts.rename(tmp_path / "moved.ndjson")
    assert not base.validate("base@v1", "loss", data=moved)[0].is_new
    # of what was read in part, the part counts
    base.validate("base@v1", "loss", data=moved, parameters={"max_tokens": 4})
    write_texts(moved, [TEXTS[0], "w1 w1 w1"])
    assert not base.validate("base@v1", "loss", data=moved, parameters={"max_tokens": 4})[0].is_new
    assert base.validate("base@v1", "loss", data=moved)[0].is_new
    # and rows that were added count where all were read
    base.validate("base@v1", "loss", data=moved, parameters={"max_tokens": 1000})
    write_texts(moved, [TEXTS[0], "w1 w1 w1", "w2 w3"])
    assert base.validate("base@v1", "loss", data=moved, parameters={"max_tokens": 1000})[0].is_new


def test_what_cannot_be_repeated_says_why_and_the_rest_is(
    base: Registry, texts: Path, tmp_path: Path, upgrade: Callable[..., None]
) -> None:
    gone = write_texts(tmp_path / "gone.jsonl", TEXTS[:2])
    base.validate("base@v1", "loss", data=texts)
    base.validate("base@v1", "loss", data=gone)
    measure(base, "base@v1", "of-a-plugin", {"x": 1.0}, run_id="a", parameters={"dtype": None, "device": None})
    measure(base, "base@v1", "structure", {"n_dead": 0.0}, run_id="b", parameters={"device": "cuda:7"}, device="cuda:7")
    moved = gone.rename(tmp_path / "moved.jsonl")
    assert base.find_stale() == []  # nothing says that they changed
    upgrade(torch="99.0")
    stale = base.find_stale()
    obstacles = [one.obstacle for one in stale]
    assert obstacles == [
        None,
        f"{gone} is not there.",
        "there is no suite of-a-plugin: install the package that brings it",
        "there is no device cuda:7 here",
    ]
    assert [run.suite for run in base.repeat_stale(stale)] == ["loss"]
    (one,) = base.find_stale(suites=["loss"], parameters={"data": str(moved)})
    assert (one.obstacle, one.parameters["data"]) == (None, str(moved))
    (one,) = base.find_stale(suites=["loss"], parameters={"data": str(texts)})
    assert one.obstacle == f"{texts} holds other data"


def test_what_registering_measured_is_repeated_too(
    registry: Registry, make_checkpoint: Callable[..., Path], upgrade: Callable[..., None]
) -> None:
    registry.register("base", make_checkpoint("gpt2"))
    before = registry.validations("base")
    upgrade(torch="99.0")
    (one,) = registry.find_stale()
    assert (one.suite, one.dtype, one.obstacle) == ("parity", "float64", None)
    (run,) = registry.repeat_stale([one])
    after = registry.validations("base")
    assert run.passed and [one.value for one in after] == [one.value for one in before]
    assert [one.dtype for one in after] == ["float64", "float64"]
    assert registry.version("base").is_verified and registry.find_stale() == []


def test_a_failure_is_not_stale_and_does_not_hide_what_is(
    base: Registry, texts: Path, upgrade: Callable[..., None]
) -> None:
    base.validate("base@v1", "drift", data=texts)  # it has no parent
    upgrade(torch="99.0")
    assert base.find_stale() == []
    base.validate("base@v2", "loss", data=texts)
    upgrade(torch="100.0")
    texts.write_text("not JSON")
    (one,) = base.find_stale()
    assert one.obstacle == "Line 1 of texts.jsonl is no JSON object."
    assert base.validate("base@v2", "loss", data=texts)[0].error == one.obstacle
    assert [one.ref for one in base.find_stale()] == ["base@v2"]


def test_only_what_was_measured_alike_is_ranked_together(any_registry: Registry) -> None:
    for parameters in ({"data": "a", "length": 8}, {"data": "b", "length": 8, "batch_size": 2}, {"length": 4}):
        ref = record(any_registry, "m").ref
        measure(any_registry, ref, "loss", {"loss": 2.0}, direction="lower", parameters=parameters)
    board = any_registry.leaderboard("m", "loss")
    assert ([one.ref for one in board.ranks], [one.ref for one in board.elsewhere]) == (["m@v1", "m@v2"], ["m@v3"])


def test_the_commands(
    tmp_path: Path,
    texts: Path,
    make_checkpoint: Callable[..., Path],
    upgrade: Callable[..., None],
    run: Callable[..., tuple[str, str, int]],
) -> None:
    registry = Registry()
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    assert run("validate", "base")[2] == 2
    assert run("validate", "base", "--suite", "loss", "--data", str(texts), "--dry-run")[2] == 2
    both = ("validate", "base", "--suite", "loss", "--suite", "structure", "--data", str(texts))
    assert run(*both, "--set", "max_tokens=9")[2] == 0  # structure takes neither
    out, err, code = run(*both, "--set", "max_tokns=9")
    assert (code, "has no parameter 'max_tokns'" in err) == (1, True)
    out, err, _ = run("show", "base")
    assert "stale" not in out + err and "loss.perplexity" in out
    assert run("validate", "--stale")[:3] == ("", "nothing is stale\n", 0)
    upgrade(torch="99.0")
    out, err, _ = run("show", "base")
    assert out.count("→ 99.0") == 6 and "lensreg validate --stale base@v1" in err
    shown = json.loads(run("show", "base", "-o", "json")[0])["validations"]
    assert {one["stale"][-4:] for one in shown} == {"99.0"}
    out, _, code = run("gate", "base", "--require", "loss < 100")
    assert (code, "→ 99.0" in out) == (0, True)
    assert run("gate", "base", "--require", "loss < 100", "--fresh")[2] == 3
    out, err, _ = run("leaderboard", "base", "--by", "loss")
    assert "→ 99.0" in out and "stale: 1 of 1" in err
    out, _, code = run("validate", "--stale", "base", "--dry-run")
    assert (code, len(out.splitlines()), out.count("yes")) == (0, 3, 2)
    texts.rename(tmp_path / "gone.jsonl")
    out, err, code = run("validate", "--stale", "-o", "json")
    assert {row["suite"] for row in json.loads(out)["rows"]} == {"structure"}
    assert (code, f"{texts} is not there." in err) == (3, True)
    out, _, code = run("validate", "--stale", "--data", str(tmp_path / "gone.jsonl"))
    assert (code, "loss.perplexity" in out) == (0, True)
    assert run("validate", "--stale", "--again")[2] == 2
    registry.close()
