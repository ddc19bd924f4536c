"""Following a run: known answers on constructed runs, agreement with plain TransformerLens code, pictures, the page."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import select, update

from registry import Registry
from registry.errors import InvalidInput, UnknownRef, WorkerMismatch
from registry.report.trace_page import save_picture, save_trace_report, write_trace_report
from registry.report.trajectory import draw_layers, draw_loss, draw_trajectory
from registry.sources.trainer_state import read_log, read_trainer_state
from registry.tables import validations
from registry.trajectory.measure_step import StepOptions, StepTask, measure_step
from registry.trajectory.results import Trace
from tests.browser import draw_page, needs_browser
from tests.checkpoints import make_tokenizer
from tests.trace_runs import LOG, STEPS, make_run, register_run, write_state

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")

PROMPTS = ["w1 w2 w3 w4", "w9 w8 w7 w6 w5 w4"]
TEXTS = ["w5 w17 w3 w200 w9", "w1 w2 w3 w4 w5 w6 w7"]
Answer = tuple[str, str, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """A registry's folder, with `base` and the three steps of `run`, and TEXTS beside it."""
    folder = tmp_path_factory.mktemp("traced")
    base = make_checkpoint("gpt2")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    registry.register("base", base, parity="skip")
    register_run(registry, make_run(base, folder / "run"))
    registry.close()
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


@pytest.fixture
def followed(folder: Path, tmp_path: Path) -> Iterator[Registry]:
    """A copy of that registry, to be changed."""
    shutil.copyfile(folder / "registry.db", tmp_path / "registry.db")
    shutil.copytree(folder / "store", tmp_path / "store", symlinks=True)
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    yield registry
    registry.close()


@pytest.fixture(scope="module")
def measured(folder: Path) -> Iterator[Trace]:
    """The run, followed in every way; nothing is changed."""
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry.trace("run", weights=True, prompts=PROMPTS)
    registry.close()


# --- from records


def test_what_is_recorded_is_followed_without_reading_weights(followed: Registry) -> None:
    shutil.rmtree(followed.store.root / "derived", ignore_errors=True)
    found = followed.trace("run")
    assert (found.base, found.notes, found.drift, found.layers) == ("base@v1", (), None, [])
    assert [(one.ref, one.step, one.epoch, one.loss, one.eval_loss, one.learning_rate) for one in found.steps] == [
        ("run@v1", 10, 1.0, 3.5, 3.6, 8e-5),
        ("run@v2", 20, 2.0, 3.0, None, 5e-5),
        ("run@v3", 30, 3.0, 2.5, 2.75, 0.0),
    ]
    assert [(one.n_tensors, one.n_changed, one.n_changed_from_base) for one in found.steps] == [
        (28, None, 0),
        (28, 12, 12),
        (28, 12, 12),
    ]
    assert [one.from_base for one in found.steps] == [None] * 3
    frame = found.to_pandas()
    assert list(frame["step"]) == list(STEPS)
    assert list(frame["loss"]) == [3.5, 3.0, 2.5]


def test_the_whole_log_of_trainer_is_kept(followed: Registry) -> None:
    log = followed.trace("run").log
    assert [(one.step, one.values.get("loss"), one.values.get("eval_loss")) for one in log] == [
        (5, 4.0, None),
        (10, 3.5, None),
        (10, None, 3.6),
        (18, 3.0, None),
        (30, 2.5, None),
        (30, None, 2.75),
    ]
    assert {name for one in log for name in one.values} == {"epoch", "grad_norm", "learning_rate", "loss", "eval_loss"}
    assert list(log.to_pandas()["loss"].dropna()) == [4.0, 3.5, 3.0, 2.5]


@pytest.mark.filterwarnings("ignore")
def test_what_trainer_itself_writes_is_read(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A real run of Hugging Face's Trainer: four steps, logged each, saved and evaluated every other."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in torch.randint(211, (8, 6))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=4, logging_steps=1, save_steps=2, eval_steps=2, use_cpu=True,
        eval_strategy="steps", save_only_model=True, report_to=[], disable_tqdm=True, per_device_train_batch_size=4,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(make_checkpoint("gpt2"))
    trainer = Trainer(network, arguments, train_dataset=rows, eval_dataset=rows)  # type: ignore[arg-type]
    trainer.train()
    register_run(registry, tmp_path / "run", parent=None)
    history = {step: [one for one in trainer.state.log_history if one["step"] == step] for step in (1, 2, 3, 4)}
    found = registry.trace("run")
    assert [(one.step, one.epoch) for one in found.steps] == [(2, 1.0), (4, 2.0)]
    for one in found.steps:
        training, evaluation, *_ = history[one.step]
        assert (one.loss, one.eval_loss) == (training["loss"], evaluation["eval_loss"])
        assert one.learning_rate == training["learning_rate"]
    assert [entry.step for entry in found.log] == [1, 2, 2, 3, 4, 4]
    assert found.steps[1].n_changed == found.steps[1].n_tensors


def test_training_facts_are_recorded_with_each_version(followed: Registry) -> None:
    assert followed.version("base").training == {}
    facts = followed.version("run@step-20").training
    assert facts == {"epoch": 2.0, "loss": 3.0, "learning_rate": 5e-5, "grad_norm": 1.0}
    last = followed.version("run@step-30")
    assert str(last.training["grad_norm"]) == "nan"
    assert followed.verify_events() is None
    for told in ([1], {"loss": "much", "epoch": True, "deep": {}}):  # what an import may hold
        assert replace(last, provenance={"training": told}).training == {}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, []),
        ({"loss": 1}, []),
        ([1, None, {"loss": 1.0}, {"step": -1, "loss": 1.0}, {"step": "7"}], []),
        ([{"step": 7, "loss": "x", "more": 10**400, "n": 3, "is": True, "a" * 65: 1.0}], [(7, {"n": 3.0})]),
        ([{"step": 7, "train_runtime": 1.0, "train_loss": 2.0}], []),
    ],
)
def test_a_log_that_makes_no_sense_is_read_as_far_as_it_does(history: object, expected: list[object]) -> None:
    assert [(one.step, one.values) for one in read_log({"log_history": history})] == expected


def test_a_log_of_very_many_names_does_not_fill_the_record(tmp_path: Path) -> None:
    log = [{"step": 1, **{f"m{number}": 1.0 for number in range(1000)}}]
    write_state(tmp_path, 1, log)
    assert len(read_trainer_state([tmp_path]).provenance["training"]) == 64


def test_a_log_that_was_begun_anew_is_read_with_what_came_before(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    """Training that was continued without its state: the last file does not know of the beginning."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    write_state(run / "checkpoint-30", 30, [entry for entry in LOG if entry["step"] > 20])
    register_run(registry, run, parent=None)
    assert [one.step for one in registry.trace("run").log] == [5, 10, 10, 18, 30, 30]


def test_a_log_whose_file_is_gone_is_said_to_be(followed: Registry) -> None:
    for number in (1, 2, 3):
        (file,) = followed.version(f"run@v{number}").with_role("original")
        followed.store.blob_path(file.digest).unlink()
    found = followed.trace("run")
    assert found.log == []
    assert len(found.notes) == 3 and "The training log of run@v3 cannot be read" in found.notes[0]
    assert [one.loss for one in found.steps] == [3.5, 3.0, 2.5], "they are in the records"
    assert draw_loss(found) is not None


def test_adapters_keep_what_trainer_logged_too(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.adapters import make_adapted, save_adapter

    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    for seed, step in enumerate((10, 20)):
        write_state(save_adapter(tmp_path / "run" / f"checkpoint-{step}", make_adapted("gpt2", seed=seed)), step, LOG)
    register_run(registry, tmp_path / "run")
    found = registry.trace("run")
    assert (found.base, [one.loss for one in found.steps], len(found.log)) == ("base@v1", [3.5, 3.0], 4)


# --- which versions


def test_a_ref_is_walked_back_to_what_it_was_trained_from(followed: Registry, folder: Path) -> None:
    assert [one.ref for one in followed.trace("run@step-20").steps] == ["run@v1", "run@v2"]
    assert followed.trace("run@step-20").base == "base@v1"
    assert followed.trace("run", base="run@v2").base == "run@v2"
    # another model that goes on from there, with steps of its own
    followed.register(
        "more", folder / "run" / "checkpoint-10", parent="run@v3", relation="continued", step=5, parity="skip"
    )
    assert [one.ref for one in followed.trace("more@v1").steps] == ["more@v1"]
    assert followed.trace("more").base == "run@v3"


def test_retired_versions_are_left_out_and_what_they_came_from_is_found(followed: Registry) -> None:
    followed.retire("run@v1", force=True)
    for name in ("run", "run@v3"):
        found = followed.trace(name)
        assert [one.ref for one in found.steps] == ["run@v2", "run@v3"]
        assert (found.base, found.notes) == ("base@v1", ("Left out, retired: run@v1.",))
    followed.retire("base@v1", force=True)
    found = followed.trace("run")
    assert found.base == "run@v2"
    assert "base@v1, which the run set out from, was retired" in found.notes[-1]


def test_the_newest_of_a_step_counts_and_what_has_none_is_left_out(followed: Registry, folder: Path) -> None:
    again = folder / "run" / "checkpoint-30"
    followed.register("run", again, parent="run@v1", step=20, parity="skip")
    assert followed.register("run", folder / "run" / "checkpoint-20", step=40, parity="skip").outcome == "registered"
    found = followed.trace("run")
    assert [(one.step, one.ref) for one in found.steps] == [
        (10, "run@v1"), (20, "run@v4"), (30, "run@v3"), (40, "run@v5")
    ]  # fmt: skip
    assert found.notes == ("Left out, older ones of the same step: run@v2.",)


def test_a_run_without_a_parent_is_compared_with_its_first_step(registry: Registry, folder: Path) -> None:
    register_run(registry, folder / "run", parent=None)
    found = registry.trace("run")
    assert found.base == "run@v1"
    assert found.notes == ("The run has no registered parent: compared with its first step, run@v1.",)
    assert [one.n_changed_from_base for one in found.steps] == [0, 12, 12]


def test_one_step_alone_is_said_to_be(followed: Registry) -> None:
    found = followed.trace("run@v1", weights=True)
    assert found.notes == ("run@v1 is the only step of the run.",)
    assert [(one.from_base, one.from_previous) for one in found.steps] == [(0.0, None)]


def test_what_is_no_run_is_refused(followed: Registry, make_checkpoint: Callable[..., Path]) -> None:
    for name in ("base", "base@v1"):
        with pytest.raises(InvalidInput, match="no version in use with a training step"):
            followed.trace(name)
    with pytest.raises(UnknownRef, match="no model 'rum'"):
        followed.trace("rum")
    with pytest.raises(UnknownRef):
        followed.trace("run", base="nothing")
    with pytest.raises(InvalidInput, match="both prompts and data"):
        followed.trace("run", prompts=["w1"], data="texts.jsonl")


# --- metrics


def test_metrics_that_were_measured_are_followed(followed: Registry, folder: Path) -> None:
    runs = followed.validate([f"run@v{number}" for number in (1, 3)], "loss", data=folder / "texts.jsonl")
    followed.validate("run@v2", "structure")
    found = followed.trace("run")
    assert [one.name for one in found.metrics] == ["loss.loss", "loss.perplexity", "loss.bits_per_byte"]
    assert found.metrics[0].unit == "nats per token"
    losses = [run.metrics[0].value for run in runs]
    assert [one.values["loss.loss"] for one in found.steps] == [losses[0], None, losses[1]]
    assert list(found.to_pandas()["loss.loss"].dropna()) == losses
    for asked, names in (
        ("perplexity", ["loss.perplexity"]),
        ("loss.bits_per_byte", ["loss.bits_per_byte"]),
        ("loss", ["loss.loss"]),
        ("structure", None),
    ):
        got = [one.name for one in followed.trace("run", metrics=[asked]).metrics]
        assert got == names if names else all(name.startswith("structure.") for name in got) and len(got) > 2
    assert followed.trace("run", metrics=["loss"]).steps[0].stale == ()


def test_an_unknown_metric_is_refused_with_what_was_meant(followed: Registry, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="No step of the run has a value for 'loss'") as refused:
        followed.trace("run", metrics=["loss"])
    assert "lensreg validate" in str(refused.value)
    followed.validate("run@v1", "loss", data=folder / "texts.jsonl")
    with pytest.raises(InvalidInput, match="Did you mean perplexity or"):
        followed.trace("run", metrics=["perplexitty"])
    with pytest.raises(InvalidInput, match=r"There are loss\.bits_per_byte, "):
        followed.trace("run", metrics=["zzz"])


def test_values_on_other_data_are_left_out(followed: Registry, folder: Path, tmp_path: Path) -> None:
    followed.validate(["run@v1", "run@v2"], "loss", data=folder / "texts.jsonl")
    (tmp_path / "other.txt").write_text("w1 w2 w3 w4")
    followed.validate("run@v3", "loss", data=tmp_path / "other.txt")
    found = followed.trace("run", metrics=["loss"])
    assert [one.values["loss.loss"] is None for one in found.steps] == [False, False, True]
    assert found.notes == ("loss.loss was measured on other data, and left out: run@v3.",)


def test_stale_values_are_marked(followed: Registry, folder: Path) -> None:
    followed.validate(["run@v1", "run@v2"], "loss", data=folder / "texts.jsonl")

    def age(connection: object) -> None:
        row = connection.execute(select(validations).order_by(validations.c.id)).first()  # type: ignore[attr-defined]
        environment = {**row.environment, "packages": {**row.environment["packages"], "torch": "2.0"}}
        changed = update(validations).where(validations.c.run_id == row.run_id).values(environment=environment)
        connection.execute(changed)  # type: ignore[attr-defined]

    followed.database.change(age)
    found = followed.trace("run", metrics=["loss", "perplexity"])
    assert [one.stale for one in found.steps] == [("loss.loss", "loss.perplexity"), (), ()]
    assert "*" in write_trace_report(found)


# --- weights


def test_layer_1_moves_by_one_and_two_percent_and_nothing_else_does(measured: Trace) -> None:
    places = {(one.step, one.layer): (one.from_base, one.from_previous) for one in measured.layers}
    assert list(places) == [(step, layer) for step in STEPS for layer in (0, 1, None)]
    for layer in (0, None):
        assert [places[step, layer] for step in STEPS] == [(0.0, None), (0.0, 0.0), (0.0, 0.0)]
    assert places[10, 1] == (0.0, None)
    assert places[20, 1] == pytest.approx((0.01, 0.01), rel=1e-5)
    assert places[30, 1] == pytest.approx((0.02, 0.01 / 1.01), rel=1e-5)
    parts = {one.component: one.from_base for one in measured.parts if (one.step, one.layer) == (30, 1)}
    assert set(parts) == {"attention", "MLP", "norm"}
    assert all(value == pytest.approx(0.02, rel=1e-5) for value in parts.values())


def test_all_weights_together_moved_as_the_comparison_of_two_versions_says(measured: Trace, folder: Path) -> None:
    registry = Registry(str(folder / "registry.db"), folder / "store")
    pairs = (("base", "run@v3"), ("run@v2", "run@v3"))
    expected = [registry.compare(a, b, weights=True, ranks=False).weights for a, b in pairs]
    registry.close()
    last = measured.steps[-1]
    assert [last.from_base, last.from_previous] == [one.relative_distance for one in expected if one is not None]


def test_one_step_is_measured_by_plain_data_alone(followed: Registry) -> None:
    """So that it can go to another process, and its answer back."""
    options = StepOptions(weights=True, prompts=("w1 w2", (3, 4, 5)))
    task = pickle.loads(pickle.dumps(StepTask("run@v3", "base@v1", "run@v2", options)))
    function = pickle.loads(pickle.dumps(measure_step))
    found = function(followed, task)
    assert pickle.loads(pickle.dumps(found)) == found
    assert found.from_base[1, None] == pytest.approx(0.02, rel=1e-5)
    assert found.drift is not None and found.drift.n_tokens == 6


def test_steps_are_measured_by_workers_as_they_are_here(followed: Registry, measured: Trace) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = followed.trace("run", weights=True, prompts=PROMPTS, executor=threads)
    assert replace(found, log=measured.log) == measured  # the log has a NaN, which equals nothing


def test_a_worker_with_other_data_measures_nothing(followed: Registry, folder: Path) -> None:
    options = StepOptions(data=str(folder / "texts.jsonl"), data_digest="0" * 64)
    with pytest.raises(WorkerMismatch, match="holds other data"):
        measure_step(followed, StepTask("run@v3", "base@v1", None, options))


# --- drift


def test_the_drift_is_that_of_plain_transformerlens_code(measured: Trace, folder: Path) -> None:
    registry = Registry(str(folder / "registry.db"), folder / "store")
    networks = [registry.load(ref) for ref in ("base", "run@v1", "run@v2", "run@v3")]
    registry.close()
    logits = [torch.cat([network(prompt)[0] for prompt in PROMPTS]).detach().double() for network in networks]
    base = logits[0].log_softmax(-1)
    for one, other in zip(measured.steps, logits[1:], strict=True):
        kl = (base.exp() * (base - other.log_softmax(-1))).sum(-1).mean()
        agreed = (base.argmax(-1) == other.argmax(-1)).double().mean()
        assert one.kl == pytest.approx(float(kl), abs=1e-5)
        assert one.top1_agreement == pytest.approx(float(agreed))
    assert measured.steps[0].kl == 0.0
    assert measured.steps[2].kl is not None and measured.steps[2].kl > 1e-4, "a drift of nothing would prove nothing"
    assert measured.drift is not None and measured.drift.n_tokens == len(logits[0])


def test_the_drift_on_data_is_that_of_the_suite(followed: Registry, folder: Path) -> None:
    (run,) = followed.validate("run@v3", "drift", data=folder / "texts.jsonl", parameters={"parent": "base"})
    last = followed.trace("run", data=folder / "texts.jsonl", metrics=["drift"]).steps[-1]
    assert [last.kl, last.top1_agreement] == [one.value for one in run.metrics]
    assert last.values == {"drift.kl": last.kl, "drift.top1_agreement": last.top1_agreement}
    few = followed.trace("run", data=folder / "texts.jsonl", max_tokens=3).drift
    assert few is not None and few.n_tokens == 4


def test_what_cannot_be_compared_is_said_and_the_rest_is(
    followed: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    """A base that reads texts otherwise, and one with more tokens."""
    other = make_checkpoint("gpt2")
    make_tokenizer().save_pretrained(other)
    path = other / "tokenizer.json"
    text = path.read_text()
    for spaced in ('"{}":{}', '"{}": {}'):
        text = text.replace(spaced.format("w7", 7), "<7>", 1).replace(spaced.format("w8", 8), "<8>", 1)
    path.write_text(text.replace("<7>", '"w8": 7').replace("<8>", '"w7": 8'))
    followed.register("elsewise", other, parity="skip")
    found = followed.trace("run", base="elsewise", weights=True, prompts=["w1 w2"])
    assert [one.kl for one in found.steps] == [None] * 3
    assert found.steps[-1].from_base is not None
    assert found.drift is None
    assert "2 tokens of run@v3 and elsewise@v1 mean different things" in found.notes[-1]

    followed.register("larger", make_checkpoint("gpt2", vocab_size=230), parity="skip")
    found = followed.trace("run", base="larger", weights=True, prompts=["w1 w2"])
    assert found.notes == (
        "run@v1, run@v2, run@v3: other shapes than in larger@v1, and not compared: embed.W_E, unembed.W_U, "
        "unembed.b_U.",
    )
    assert all(one.kl is not None for one in found.steps)


def test_prompts_that_cannot_be_run_are_refused(followed: Registry) -> None:
    with pytest.raises(InvalidInput, match="Prompt 2 has 97 tokens"):
        followed.trace("run", prompts=["w1", [1] * 97])
    with pytest.raises(InvalidInput, match="Prompt 1 has 0 tokens"):
        followed.trace("run", prompts=[[]])


# --- the command


@pytest.fixture
def run(run: Callable[..., Answer], followed: Registry) -> Callable[..., Answer]:
    """The command, on the registry with the run."""
    return run


def test_the_command_prints_a_line_for_each_step(run: Callable[..., Answer], tmp_path: Path) -> None:
    out, err, code = run("trace", "run")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["step", "version", "epoch", "loss", "eval", "loss", "changed", "changed", "from", "base"],
        ["10", "run@v1", "1", "3.5", "3.6", "0", "of", "28"],
        ["20", "run@v2", "2", "3", "12", "of", "28", "12", "of", "28"],
        ["30", "run@v3", "3", "2.5", "2.75", "12", "of", "28", "12", "of", "28"],
    ]
    assert "compared with base@v1" in err
    out, err, code = run(
        "trace", "run", "--weights", "--drift", "--prompt", "w1 w2", "--picture", str(tmp_path / "p.svg")
    )
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[5:] == [
        ["layer", "step", "10", "step", "20", "step", "30"],
        ["0", "0", "0", "0"],
        ["1", "0", "1.00%", "2.00%"],
        ["outside", "0", "0", "0"],
    ]
    assert "KL in nats, on 3 tokens" in err
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_the_command_gives_json_and_csv(run: Callable[..., Answer]) -> None:
    answer = json.loads(run("trace", "run", "-o", "json")[0])
    assert set(answer) == {
        "schema_version", "name", "base", "metrics", "rows", "log", "layers", "parts", "drift", "notes"
    }  # fmt: skip
    assert answer["rows"][2]["loss"] == 2.5
    assert answer["log"][4]["values"]["grad_norm"] == "NaN"
    heading, first, *_ = run("trace", "run", "-o", "csv")[0].splitlines()
    assert heading.startswith("ref,step,epoch,loss,")
    assert first.startswith("run@v1,10,1.0,3.5,")


def test_the_command_says_what_is_missing_before_it_measures(run: Callable[..., Answer], tmp_path: Path) -> None:
    _, err, code = run("trace", "run", "--drift")
    assert code == 2 and "--drift needs something to run on" in err
    _, err, code = run("trace", "run", "--prompt", "w1")
    assert code == 2 and "for --drift" in err
    _, err, code = run("trace", "run", "--weights", "--picture", str(tmp_path / "p.gif"))
    assert code == 1 and ".svg or .png" in err
    _, err, code = run("trace", "run", "--picture", str(tmp_path / "nowhere" / "p.png"))
    assert code == 1 and "cannot be written" in err


# --- pictures and the page


def test_pictures_are_the_same_for_the_same_run(measured: Trace, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg", "one.png"):
        save_picture(measured, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "currentColor" in (tmp_path / "one.svg").read_text()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_has_a_row_for_each_layer_and_a_column_for_each_step(measured: Trace) -> None:
    figure = draw_layers(measured, since="base")
    assert figure is not None
    (mesh,) = figure.axes[0].collections
    values = mesh.get_array()
    assert values is not None and values.shape == (3, 3)
    assert values[1].tolist() == pytest.approx([0.0, 0.01, 0.02], rel=1e-5)
    assert values[0].tolist() == values[2].tolist() == [0.0] * 3


def test_the_loss_is_drawn_by_training_step(measured: Trace) -> None:
    figure = draw_loss(measured)
    assert figure is not None
    training, evaluation, *checkpoints = figure.axes[0].lines
    assert list(training.get_xdata()) == [5, 10, 18, 30]
    assert list(training.get_ydata()) == [4.0, 3.5, 3.0, 2.5]
    assert list(evaluation.get_xdata()) == [10, 30]
    assert len(checkpoints) == 3


def test_nothing_is_drawn_of_nothing(registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    registry.register("bare", make_checkpoint("gpt2"), step=1, parity="skip")
    found = registry.trace("bare")
    assert draw_trajectory(found) is None
    with pytest.raises(InvalidInput, match="Nothing of bare can be drawn"):
        save_picture(found, tmp_path / "p.png")
    page = write_trace_report(found)
    assert "<svg" not in page and "bare@v1 is the only step" in page


def test_the_page_says_what_was_found_and_loads_nothing(measured: Trace) -> None:
    page = write_trace_report(measured)
    for said in ("run, step by step", "3 steps, 10 to 30, compared with base@v1", "<h2>Training</h2>", "2.75"):
        assert said in page
    assert page.count("<svg") == 4
    assert not re.search("<(script|img|image|link|iframe)", page)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it_readable_in_the_light_and_in_the_dark(measured: Trace, tmp_path: Path, scheme: str) -> None:
    import numpy as np

    save_trace_report(measured, tmp_path / "report.html")
    pixels = draw_page(tmp_path / "report.html", tmp_path, scheme, 2400)
    ground = pixels[5, 5]
    assert (ground.mean() > 0.9) == (scheme == "light")
    assert np.abs(pixels[20:80, 20:400] - ground).max() > 0.7  # ink on that ground
    colours = (pixels.reshape(-1, 3) * 255).round().astype(int)
    for colour in ((68, 1, 84), (59, 130, 246)):  # of the heat map, and of the lines
        assert (np.abs(colours - colour).max(axis=1) < 4).sum() > 200
