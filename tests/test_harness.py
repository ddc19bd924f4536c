"""The suite `lm-eval`: the same figures as lm-eval's own `hf` model on the same checkpoint, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry, environment
from registry.errors import InvalidInput, PackageMissing, SourceNotFound, SourceUnreachable, UnusableTokenizer
from registry.texts import TextCut
from registry.validate import ValidationRun
from registry.validation import harness_network
from registry.validation.metric import Metric
from registry.validation.subject import Subject
from tests.checkpoints import save_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*registered without verification"),
    pytest.mark.filterwarnings("ignore:::lm_eval.*"),
]

TASKS = {
    "choose": """
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: %s/choose.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
""",
    "texts": """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: %s/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
metadata: {version: 2.0}
""",
    "cloze": """
task: cloze
dataset_path: json
dataset_kwargs: {data_files: {test: %s/cloze.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{prompt}}"
doc_to_target: "{{last}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "write": """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: %s/write.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["w7"], do_sample: false, max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "both": """
group: both
task: [choose, cloze]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
""",
}


def _words(generator: random.Random, n: int) -> str:
    return " ".join(f"w{generator.randrange(1, 211)}" for _ in range(n))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task YAMLs with their documents beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    generator = random.Random(0)
    rows: dict[str, list[dict[str, Any]]] = {
        "choose": [
            {
                "prompt": _words(generator, 3 + index % 5),
                "choices": [_words(generator, 1 + index % 2), _words(generator, 1), _words(generator, 3)],
                "answer": index % 3,
            }
            for index in range(30)
        ],
        # longer than the context of 96, and empty before the text
        "texts": [{"text": _words(generator, n)} for n in (5, 40, 96, 97, 230)],
        "cloze": [{"prompt": _words(generator, n), "last": _words(generator, 2)} for n in (1, 4, 60, 100, 7)],
        "write": [{"prompt": _words(generator, n), "answer": "w1"} for n in (3, 3, 9, 30, 90)],
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("%s", str(folder)))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` writes out of the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def _metrics(run: ValidationRun) -> dict[str, Metric]:
    assert run.error is None, run.error
    return {one.name: one for one in run.metrics}


def _run(registry: Registry, ref: str, tasks: Path, names: str, **more: Any) -> ValidationRun:
    (run,) = registry.validate(ref, "lm-eval", parameters={"tasks": names, "include_path": tasks, **more})
    return run


def _measure_with_hf(checkpoint: Path, tasks: Path, names: list[str], dtype: torch.dtype, **more: Any) -> Any:
    """Return what lm-eval measures by its own `hf` model, and its answers to every request."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    network = HFLM(str(checkpoint), device="cpu", dtype=dtype, batch_size=4)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(network, tasks=names, task_manager=manager, bootstrap_iters=1000, **more)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with the GPT-2 `m`, which every test here may measure."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    registry.register("m", save_checkpoint(tmp_path_factory.mktemp("m"), "gpt2"), parity="skip")
    yield registry
    registry.close()


# transformers computes Llama's norms in float32 whatever is asked for
@pytest.mark.parametrize(("family", "tolerance"), [("gpt2", 1e-12), ("llama", 1e-5)])
@pytest.mark.filterwarnings("ignore::registry.texts.TextCut")
def test_the_figures_are_those_of_lm_evals_own_model(
    registry: Registry,
    make_checkpoint: Callable[..., Path],
    tasks: Path,
    family: str,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    checkpoint = make_checkpoint(family)
    registry.register("m", checkpoint, parity="skip")
    names = ["choose", "texts", "cloze", "write"]
    # in float64 and raw (transformer-lens processes in float32): rounding, another on every processor, hides nothing
    monkeypatch.setattr(Subject, "load", partialmethod(Subject.load, processed=False))
    asked = {"tasks": ",".join(names), "include_path": tasks}
    (run,) = registry.validate("m", "lm-eval", parameters=asked, dtype=torch.float64)
    found = _metrics(run)
    expected = _measure_with_hf(checkpoint, tasks, names, torch.float64)
    compared = 0
    for name in names:
        for key, value in expected["results"][name].items():
            metric, comma, _ = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            ours = found[f"{name}.{metric}"]
            assert ours.value is not None
            assert ours.value == pytest.approx(value, rel=tolerance), (name, metric)
            error = expected["results"][name][f"{metric}_stderr,none"]
            assert ours.details.get("stderr", "N/A") == (error if error == "N/A" else pytest.approx(error, rel=1e-4))
            compared += 1
    assert compared == 7
    assert 0 < expected["results"]["choose"]["acc,none"] < 1


def test_what_a_network_writes_is_what_transformers_writes(
    shared: Registry, tasks: Path, make_checkpoint: Callable[..., Path]
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    contexts = ["w1 w2 w3", "w9 w8 w7", "w4", " ".join(f"w{n}" for n in range(1, 80))]
    options = {"until": ["w7", "w19 "], "do_sample": False, "max_gen_toks": 20}
    requests = [Instance("generate_until", {}, (context, options), index) for index, context in enumerate(contexts)]
    tokenizer = shared.tokenizer("m")
    assert tokenizer is not None
    theirs = HFLM(str(make_checkpoint("gpt2")), device="cpu", dtype=torch.float32, batch_size=1)
    network = harness_network.HarnessNetwork(shared.load("m"), tokenizer, 2)
    ours = network.generate_until(requests)
    assert network.n_truncated == 1
    assert ours == theirs.generate_until(requests)
    assert len(set(ours)) > 1 and any(ours)


def test_what_is_recorded_of_tasks_and_groups(shared: Registry, tasks: Path) -> None:
    with pytest.warns(TextCut):
        run = _run(shared, "m", tasks, "both,texts")
    found = _metrics(run)
    assert sorted(found) == [
        "both.acc", "choose.acc", "choose.acc_norm", "cloze.acc", "cloze.perplexity",
        "texts.bits_per_byte", "texts.word_perplexity",
    ]  # fmt: skip
    acc = found["choose.acc"]
    assert acc.value is not None
    assert (acc.direction, acc.unit, acc.n_samples) == ("higher", "share", 30)
    spread = 1.959964 * acc.details["stderr"]
    assert (acc.details["low"], acc.details["high"]) == (acc.value - spread, acc.value + spread)
    assert (found["texts.bits_per_byte"].direction, found["texts.bits_per_byte"].unit) == ("lower", "bits per byte")
    assert found["both.acc"].n_samples == 35
    digests = {name: one.dataset_digest for name, one in found.items()}
    assert digests["choose.acc"] == digests["choose.acc_norm"] != digests["cloze.acc"]
    assert digests["both.acc"] not in (digests["choose.acc"], run.dataset_digest, None)
    rows = [one for one in shared.version("m").validations if one.run_id is not None and one.metric == "choose.acc"]
    assert rows[-1].environment["packages"]["lm-eval"]
    assert (rows[-1].seed, rows[-1].suite_version, rows[-1].dataset_digest) == (1234, "1", digests["choose.acc"])
    (one,) = shared.check_requirements("m", ["choose.acc >= 0"])
    assert (one.met, one.metric) == (True, "lm-eval.choose.acc")
    assert shared.leaderboard("m", "choose.acc").ranks[0].value == acc.value
    assert shared.search('metric."choose.acc" >= 0').refs == ["m@v1"]


def test_other_examples_are_other_data(shared: Registry, tasks: Path) -> None:
    none = _metrics(_run(shared, "m", tasks, "choose", limit=6))["choose.acc"]
    two = _metrics(_run(shared, "m", tasks, "choose", limit=6, num_fewshot=2))["choose.acc"]
    other = _metrics(_run(shared, "m", tasks, "choose", limit=6, num_fewshot=2, seed=7))["choose.acc"]
    assert none.n_samples == two.n_samples == 6
    assert len({none.dataset_digest, two.dataset_digest, other.dataset_digest}) == 3
    assert (none.details["n_fewshot"], two.details["n_fewshot"]) == (0, 2)


def test_it_is_stale_when_lm_eval_or_the_documents_change(
    shared: Registry, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(tasks, own)
    for file in own.glob("*.yaml"):
        file.write_text(file.read_text().replace(str(tasks), str(own)))
    asked: dict[str, Any] = {"suites": ["lm-eval"], "parameters": {"include_path": str(own)}}

    def find() -> list[tuple[str, str | None]]:
        found = [one for one in shared.find_stale(**asked) if one.parameters["include_path"] == str(own)]
        return [(one.stale, one.obstacle) for one in found if one.parameters.get("limit") == 5]

    assert _run(shared, "m", own, "choose", limit=5).is_new
    assert not _run(shared, "m", own, "choose", limit=5, batch_size=1).is_new
    assert find() == []
    rows = (own / "choose.jsonl").read_text().splitlines(keepends=True)
    (own / "choose.jsonl").write_text("".join([*rows[:5], rows[7]]))
    assert find() == []  # only the first five are asked
    (own / "choose.jsonl").write_text("".join(rows[1:]))
    assert find() == [("the data changed", None)]
    (own / "choose.jsonl").write_text("".join(rows))
    release = environment.find_release
    monkeypatch.setattr(environment, "find_release", lambda name: "9.9" if name == "lm-eval" else release(name))
    ((stale, obstacle),) = find()
    assert stale.startswith("lm-eval 0.") and stale.endswith("→ 9.9") and obstacle is None
    asked = {"suites": ["lm-eval"]}  # a record alone makes nobody run code
    ((_, obstacle),) = find()
    assert obstacle == f"it may run code from {own}: say so with --set include_path={own}"


def test_batches_are_halved_where_memory_runs_out(
    shared: Registry, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _metrics(_run(shared, "m", tasks, "choose,write", limit=4, seed=1))
    run_tokens, sizes = harness_network.run_tokens, []

    def run_short_of_memory(network: Any, tokens: torch.Tensor, **given: Any) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")
        return run_tokens(network, tokens, **given)

    monkeypatch.setattr(harness_network, "run_tokens", run_short_of_memory)
    halved = _metrics(_run(shared, "m", tasks, "choose,write", limit=4, seed=2))
    assert {4, 2, 1} <= set(sizes)
    assert {name: one.value for name, one in halved.items()} == pytest.approx(
        {name: one.value for name, one in whole.items()}
    )


def test_what_cannot_be_run_is_refused(
    shared: Registry, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(shared.version("m").validations)
    for parameters, error, said in (
        ({"tasks": "chose"}, InvalidInput, "lm-eval has no task chose"),
        ({"tasks": " , "}, InvalidInput, "No task was named"),
        ({"tasks": "choose", "limit": 0}, InvalidInput, "so small"),
        ({"tasks": "choose", "include_path": tmp_path / "nowhere"}, SourceNotFound, "nowhere is not there"),
    ):
        with pytest.raises(error, match=said):
            shared.validate("m", "lm-eval", parameters={"include_path": tasks, **parameters})
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(PackageMissing, match="lm-eval is not installed") as caught:
            _run(shared, "m", tasks, "choose")
    assert caught.value.hint == "Install it: pip install 'lens-registry[lm-eval]'"
    assert len(shared.version("m").validations) == before


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (("do_sample: false", "do_sample: true"), InvalidInput, "The lm-eval task write samples."),
        (("max_gen_toks: 12", "max_gen_toks: 200"), InvalidInput, "wants up to 200 tokens written, and n_ctx is 96"),
        (("write.jsonl", "none.jsonl"), InvalidInput, "lm-eval cannot load write: FileNotFoundError"),
        (("dataset_path: json", "dataset_path: nobody/nothing"), SourceUnreachable, "cannot be had from the Hub"),
    ],
)
def test_what_a_task_is_refused_for_is_recorded(
    shared: Registry, tasks: Path, tmp_path: Path, change: tuple[str, str], error: type[Exception], said: str
) -> None:
    (tmp_path / "write.yaml").write_text((tasks / "write.yaml").read_text().replace(*change))
    run = _run(shared, "m", tmp_path, "write")
    assert run.error is not None and said in run.error
    assert shared.version("m").validations[-1].details["error"] == error.code  # type: ignore[attr-defined]


def test_tasks_need_a_tokenizer(registry: Registry, tmp_path: Path, tasks: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "m", "gpt2")
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    registry.register("m", checkpoint, parity="skip")
    assert _run(registry, "m", tasks, "choose").error == "This version was registered without a tokenizer."
    assert registry.version("m").validations[-1].details["error"] == UnusableTokenizer.code
