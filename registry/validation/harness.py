"""The suite `lm-eval`: tasks of EleutherAI's evaluation harness, run on the registered network itself."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, ClassVar

from registry.errors import InvalidInput, PackageMissing, RegistryError, SourceUnreachable, UnusableTokenizer
from registry.quiet import quiet
from registry.texts import TextCut
from registry.validation.metric import Direction, Measured, Metric
from registry.validation.subject import Subject

PACKAGE = "lm-eval"
_Z = 1.959964  # 95 % of a normal distribution
_N_BOOTSTRAPS = 1000
_MAX_NAME = 64
_SHARES = {"acc", "acc_norm", "acc_bytes", "exact_match"}
_NOT_RUN = "multiple_choice, loglikelihood, loglikelihood_rolling and greedy generate_until are run here."


@dataclass(frozen=True)
class LmEval:
    """The metrics of lm-eval tasks, named `task.metric`, as its own `hf` model measures them.

    Texts are tokenized as the registered tokenizer does by default, which is lm-eval's way and not transformer-lens's:
    where it adds no BOS, none is added.

    Args:
        tasks: names of tasks or groups, with commas.
        limit: only so many questions of each task, or below 1 that share of them.
        num_fewshot: how many solved examples stand before each question; None: as the task says.
        batch_size: how many texts run at once; halved where memory runs out.
        include_path: a folder with tasks of your own, as YAML; they can run code.
        seed: for the choice of examples.
    """

    name: ClassVar[str] = "lm-eval"
    version: ClassVar[str] = "1"

    tasks: str
    limit: int | float | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    include_path: str | None = field(default=None, metadata={"path": True, "runs_code": True})
    seed: int = 1234

    def prepare(self) -> None:
        """Raise PackageMissing without lm-eval, and InvalidInput for tasks that it does not know."""
        if importlib.util.find_spec("lm_eval") is None:
            raise PackageMissing(
                "lm-eval is not installed.", package=PACKAGE, hint="Install it: pip install 'lens-registry[lm-eval]'"
            )
        if (self.limit is not None and self.limit <= 0) or (self.num_fewshot or 0) < 0 or self.batch_size < 1:
            raise InvalidInput("limit, num_fewshot and batch_size cannot be so small.", hint="Leave them out.")
        with quiet():
            self._name_tasks()

    def digest_data(self, extent: Mapping[str, Any] | None) -> str | None:
        """Return the digest of the questions as they would be asked now."""
        with quiet():
            tasks = self._load()["tasks"]
            for task in tasks.values():
                self._build(task)
        return _combine(digest_task(task) for _, task in sorted(tasks.items()))

    def run(self, subject: Subject) -> Measured:
        """Measure every metric of every task and group."""
        from lm_eval.evaluator import evaluate

        from registry.validation.harness_network import HarnessNetwork

        tokenizer = subject.load_tokenizer()
        if tokenizer is None:
            raise UnusableTokenizer("This version was registered without a tokenizer.", hint="Tasks are texts.")
        with quiet():
            loaded = self._load()
        network = HarnessNetwork(subject.load(), tokenizer, self.batch_size, subject.progress)
        with quiet(), _in_one_process():
            results = evaluate(
                lm=network,
                task_dict=loaded,
                limit=self.limit,
                log_samples=False,
                bootstrap_iters=_N_BOOTSTRAPS,
            )
        digests = {name: digest_task(task) for name, task in loaded["tasks"].items()}
        extra: dict[str, int] = {}
        if network.n_truncated:
            extra["n_truncated"] = network.n_truncated
            warnings.warn(
                f"{network.n_truncated:,} texts were longer than the context, and lost their beginning as in lm-eval.",
                TextCut,
                stacklevel=2,
            )
        metrics = list(_describe(results, loaded["groups"], digests, extra))
        if not metrics:
            raise InvalidInput(f"{self.tasks} measure nothing.", hint="A group without metrics of its own? Name tasks.")
        whole = _combine(digests[name] for name in sorted(digests))
        return Measured(metrics, whole, self.seed, extent={"is_whole": True}, packages=[PACKAGE])

    def _name_tasks(self) -> list[str]:
        """Return the names that were given. Raises InvalidInput for those that neither lm-eval nor the folder knows."""
        names = [name.strip() for name in self.tasks.split(",") if name.strip()]
        own = set() if self.include_path is None else {*_index_own(self.include_path).all_tasks}
        unknown = [name for name in names if name not in own and name not in _index_defaults().task_index]
        if unknown or not names:
            near = get_close_matches(unknown[0], [*own, *_index_defaults().all_tasks], 3) if unknown else []
            raise InvalidInput(
                f"lm-eval has no task {', '.join(unknown)}." if unknown else "No task was named.",
                hint=f"Did you mean {', '.join(near)}?"
                if near
                else "Give names with commas; tasks of your own need include_path. See: lm-eval ls tasks",
            )
        return names

    def _load_tasks(self, names: list[str]) -> Any:
        """Load tasks from the folder alone if they are all there: to look through lm-eval's own takes seconds."""
        if self.include_path is None:
            return _index_defaults().load(names)
        own = _index_own(self.include_path)
        try:
            if all(name in own.task_index for name in names):
                return own.load(names)
        except KeyError:  # a group of theirs may name tasks of lm-eval's
            pass
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self.include_path).load(names)

    def _load(self) -> Any:
        """Load the tasks with their documents, and set what lm-eval's own command would."""
        names = self._name_tasks()
        try:
            loaded = self._load_tasks(names)
        except Exception as error:  # a task is anybody's YAML and code, and loading its documents raises anything
            raise _explain(self.tasks, error) from error
        for name, task in loaded["tasks"].items():
            _refuse_other_kinds(name, task)
            # a task that says 0 means it, as in lm-eval's own command
            if self.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=self.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=self.seed)
        return loaded

    def _build(self, task: Any) -> None:
        from lm_eval.evaluator_utils import get_sample_size

        task.build_all_requests(limit=get_sample_size(task, self.limit))


@lru_cache
def _index_defaults() -> Any:
    """Return lm-eval's own tasks, which stay the same while the process lives."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _index_own(folder: str) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=False)


def digest_task(task: Any) -> str:
    """Digest a task's documents and what is asked of each: texts as they are handed to the network, examples included.

    So other examples, another prompt, or another limit are other data.
    """
    total = hashlib.sha256()
    for one in task.instances:
        line = json.dumps([one.doc, one.request_type, list(one.args)], sort_keys=True, ensure_ascii=False, default=str)
        total.update(f"{line}\n".encode(errors="surrogatepass"))
    return total.hexdigest()


def _combine(digests: Iterator[str]) -> str:
    found = list(digests)
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _describe(
    results: Mapping[str, Any], groups: Mapping[str, Any], digests: Mapping[str, str], extra: Mapping[str, Any]
) -> Iterator[Metric]:
    """Make a metric of each figure; the documents of a group are those of its tasks."""
    for name, figures in results["results"].items():
        higher = results["higher_is_better"].get(name) or {}
        if name in groups:
            digest = _combine(digests[one] for one in sorted(task.task_name for task in groups[name].get_all_tasks()))
            n_samples = figures.get("sample_len")
        else:
            digest, n_samples = digests[name], results["n-samples"][name]["effective"]
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = _read_number(figures.get(f"{metric}_stderr,{filtered}"))
            number = _read_number(value)
            details: dict[str, Any] = {
                "n_fewshot": results["n-shot"].get(name),
                "task_version": results["versions"].get(name),
                **extra,
            }
            if error is not None and number is not None:
                details |= {"stderr": error, "low": number - _Z * error, "high": number + _Z * error}
                details |= {"confidence": 0.95}
            whole = f"{name}.{metric}" + ("" if filtered == "none" else f".{filtered}")
            yield Metric(
                _shorten(whole),
                number,
                "share" if metric in _SHARES else "bits per byte" if metric == "bits_per_byte" else None,
                _read_direction(higher.get(metric)),
                n_samples,
                details=details if len(whole) <= _MAX_NAME else {**details, "name": whole},
                dataset_digest=digest,
            )


def _read_number(value: Any) -> float | None:
    """Read a figure; lm-eval writes N/A for what it could not compute."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _read_direction(higher: bool | None) -> Direction | None:
    return None if higher is None else "higher" if higher else "lower"


def _shorten(name: str) -> str:
    """Cut a name to what is stored; the end of it is a digest then, so that two stay two."""
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _refuse_other_kinds(name: str, task: Any) -> None:
    """Refuse tasks whose samples nobody here would draw alike, those with pictures, and those that run what is written.

    Raises InvalidInput.
    """
    sampled = (task.get_config("generation_kwargs") or {}).get("do_sample")
    for refused, said in (
        (getattr(task, "MULTIMODAL", False), "has more than text"),
        (getattr(task, "UNSAFE_CODE", False), "runs code that the network writes"),
        (task.OUTPUT_TYPE == "generate_until" and sampled, "samples"),
    ):
        if refused:
            raise InvalidInput(f"The lm-eval task {name} {said}.", hint=_NOT_RUN)


def _explain(tasks: str, error: Exception) -> RegistryError:
    """Say what kept a task from being loaded; most of lm-eval's fetch their documents from the Hub."""
    said = f"{type(error).__name__}: {error}"[:500]
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 10:
        causes.append(cause)
    named = {kind.__name__ for one in causes for kind in type(one).__mro__}
    if named & {"ConnectionError", "DatasetNotFoundError", "OfflineModeIsEnabled", "HTTPError", "TimeoutException"}:
        return SourceUnreachable(
            f"The documents of {tasks} cannot be had from the Hub: {said}",
            hint="Fetch them once where there is a network (they are kept in a cache), or give tasks of your own with "
            "local data: --set include_path=FOLDER.",
        )
    return InvalidInput(f"lm-eval cannot load {tasks}: {said}", hint="Look at the task's YAML and its data.")


@contextmanager
def _in_one_process() -> Iterator[None]:
    """Keep lm-eval from starting processes for its intervals, which a worker of a cluster must not."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
