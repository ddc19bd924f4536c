"""Comparing on data, and with one network in memory at a time: the same numbers, and less memory."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import Registry
from registry.compare import kept_files
from registry.compare.behaviour import Side, choose_one_at_a_time
from registry.compare.memory import _read_group_bytes, have_room, read_available_bytes
from registry.compare.results import BehaviourComparison
from registry.errors import InvalidInput, MalformedArtifact, SourceNotFound, StorageFull

# parity is not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*registered without verification")

TEXTS = [
    " ".join(f"w{1 + (index * step) % 200}" for index in range(length)) for step, length in ((3, 90), (7, 5), (11, 1))
]


@pytest.fixture
def pair(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry with `a` and `b`, of other weights."""
    for name, seed in (("a", 0), ("b", 1)):
        registry.register(name, make_checkpoint("gpt2", seed=seed), parity="skip")
    return registry


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """TEXTS as JSON lines."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def _compare(registry: Registry, **options: Any) -> BehaviourComparison:
    found = registry.compare("a", "b", **options).behaviour
    assert found is not None
    return found


def test_data_are_windows_of_tokens_each_like_a_prompt(pair: Registry, lines: Path) -> None:
    found = _compare(pair, data=lines, length=33)
    network = pair.load("a")
    windows = []
    for text in TEXTS:
        bos, *rest = network.to_tokens(text)[0].tolist()
        windows += [[bos, *rest[start : start + 32]] for start in range(0, len(rest), 32)]
    assert len(windows) == 5
    by_hand = _compare(pair, prompts=windows)
    assert found.data_digest is not None and by_hand.data_digest is None
    for name in ("n_prompts", "n_tokens", "tokens_digest", "kl", "loss_b", "layers", "heads", "head_attributions"):
        assert getattr(found, name) == getattr(by_hand, name)
    assert _compare(pair, data=lines, length=33) == found  # again, the same
    both = _compare(pair, data=lines, length=33, prompts=["w1 w2"])
    assert both.n_tokens == found.n_tokens + 3


def test_a_text_file_a_column_and_a_bound_on_tokens(pair: Registry, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(TEXTS[0])
    (tmp_path / "it.jsonl").write_text(json.dumps({"other": TEXTS[0]}))
    plain = _compare(pair, data=tmp_path / "it.txt", max_tokens=40)
    assert (plain.n_prompts, plain.n_tokens) == (1, 41)
    assert _compare(pair, data=str(tmp_path / "it.jsonl"), column="other", max_tokens=40).kl == plain.kl


def test_a_folder_that_datasets_saved(pair: Registry, tmp_path: Path, lines: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert _compare(pair, data=tmp_path / "saved") == _compare(pair, data=lines)


@pytest.mark.parametrize(
    ("name", "contents", "options", "error", "said"),
    [
        ("empty.txt", "", {}, InvalidInput, "no text of two tokens"),
        ("empty.jsonl", "\n", {}, InvalidInput, "no text of two tokens"),
        ("short.jsonl", '{"text": " "}\n', {}, InvalidInput, "no text of two tokens"),
        ("column.jsonl", '{"body": "w1 w2"}\n', {}, InvalidInput, "has no column 'text'"),
        ("broken.jsonl", '{"text": \n', {}, MalformedArtifact, "Line 1 of broken.jsonl"),
        ("kind.csv", "text\nw1 w2", {}, InvalidInput, "of no kind that is read here"),
        ("long.txt", "w1 w2", {"length": 97}, InvalidInput, "Windows of 97 tokens"),
        ("none.txt", "w1 w2", {"length": 1}, InvalidInput, "Windows of 1 tokens"),
        ("zero.txt", "w1 w2", {"max_tokens": 0}, InvalidInput, "max_tokens cannot be 0"),
    ],
)
def test_data_that_cannot_be_compared_on_are_refused(
    pair: Registry, tmp_path: Path, name: str, contents: str, options: dict[str, Any], error: type, said: str
) -> None:
    (tmp_path / name).write_text(contents)
    with pytest.raises(error, match=said):
        _compare(pair, data=tmp_path / name, **options)


def test_data_that_are_not_there_are_said_not_to_be(pair: Registry) -> None:
    with pytest.raises(SourceNotFound, match=r"nowhere\.txt is not there"):
        _compare(pair, data="nowhere.txt")


def test_windows_with_tokens_of_one_vocabulary_are_left_out(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    registry.register("a", make_checkpoint("gpt2"), parity="skip")
    registry.register("b", make_checkpoint("gpt2", vocab_size=150, tokenizer=False, seed=1), parity="skip")
    texts = ["w1 w2 w3", "w1 w180", "w4 w5"]
    (tmp_path / "it.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = _compare(registry, data=tmp_path / "it.jsonl")
    assert found.n_prompts == 2
    assert "1 windows of data hold tokens that only one has, and were left out." in found.notes
    (tmp_path / "it.jsonl").write_text(json.dumps({"text": texts[1]}))
    with pytest.raises(InvalidInput, match="Every window"):
        _compare(registry, data=tmp_path / "it.jsonl")


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])  # the latter caps its logits
def test_one_at_a_time_gives_the_same_numbers(
    registry: Registry, make_checkpoint: Callable[..., Path], lines: Path, family: str
) -> None:
    registry.register("a", make_checkpoint(family), parity="skip")
    registry.register("b", make_checkpoint(family, seed=1), parity="skip")
    together, in_turn = (
        _compare(registry, data=lines, prompts=["w9 w8 w7"], one_at_a_time=one) for one in (False, True)
    )
    assert together == in_turn  # bit by bit
    assert together.kl > 0


def test_one_at_a_time_networks_of_other_depths(
    registry: Registry, make_checkpoint: Callable[..., Path], lines: Path
) -> None:
    registry.register("a", make_checkpoint("gpt2"), parity="skip")
    registry.register("b", make_checkpoint("gpt2", n_layer=3, n_embd=32, seed=1), parity="skip")
    for pair in (("a", "b"), ("b", "a")):
        together, in_turn = (registry.compare(*pair, data=lines, one_at_a_time=one).behaviour for one in (False, True))
        assert together == in_turn
        assert together is not None and len(together.layers) == 3


def test_one_at_a_time_holds_one_network(registry: Registry, make_checkpoint: Callable[..., Path], lines: Path) -> None:
    """Measured by the pages of the mapped weights, which are resident once they were read, and by live networks."""
    from registry.hooked_transformer import HookedTransformer

    def count_networks() -> int:
        gc.collect()
        return sum(issubclass(type(one), HookedTransformer) for one in gc.get_objects())

    wide = {"n_layer": 6, "n_embd": 512, "n_head": 8, "vocab_size": 211}
    size = 0
    for name, seed in (("a", 0), ("b", 1)):
        registry.register(name, make_checkpoint("gpt2", seed=seed, **wide), parity="skip")
        size = sum(one.nbytes for one in registry.load(name).parameters())
    assert size > 70e6
    peaks, alive = {}, {}
    for one_at_a_time in (False, True):
        seen, n_alive, of_others = [0], [0], count_networks()

        def note(stage: str, done: int, total: int, n_alive: list[int] = n_alive, of_others: int = of_others) -> None:
            if stage == "comparing behaviour":
                n_alive.append(count_networks() - of_others)

        with _watching(seen, registry.store.root):
            _compare(registry, data=lines, one_at_a_time=one_at_a_time, progress=note)
        peaks[one_at_a_time], alive[one_at_a_time] = max(seen), max(n_alive)
    assert alive == {False: 2, True: 1}
    assert peaks[True] < 1.1 * size and peaks[False] > 1.7 * size


class _watching:  # noqa: N801
    """Note again and again how much of the files below a folder is mapped and resident."""

    def __init__(self, seen: list[int], folder: Path) -> None:
        self._seen, self._folder, self._done = seen, folder, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._seen.append(_count_resident(self._folder))


def _count_resident(folder: Path) -> int:
    total, is_below = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_below = str(folder) in line
        elif is_below and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_activations_that_have_no_room_are_refused_before_anything_runs(
    pair: Registry, lines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kept_files, "MAX_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(StorageFull, match=r"would take 0\.0 GB") as refused:
        _compare(pair, data=lines, one_at_a_time=True)
    assert all(word in str(refused.value.hint) for word in ("max_tokens", "length", "TMPDIR", "one_at_a_time=False"))
    assert not list(tmp_path.glob("lensreg-compare-*"))


def test_files_are_gone_whatever_comes(
    pair: Registry, lines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "comparing behaviour" and done:
            assert list(tmp_path.glob("lensreg-compare-*/0.safetensors"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _compare(pair, data=lines, one_at_a_time=True, progress=interrupt)
    assert not list(tmp_path.glob("lensreg-compare-*"))


def test_by_itself_it_takes_what_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(n_bytes: int, kept_bytes: int) -> bool:
        side = Side("a@v1", {}, lambda: None, n_bytes)  # type: ignore[arg-type,return-value]
        return choose_one_at_a_time(side, side, kept_bytes, "cpu")

    assert choose(1000, 999) and not choose(1000, 1001)
    assert choose(10**18, 10**19), "both have no room"
    monkeypatch.setattr(kept_files, "MAX_BYTES", 10)
    assert not choose(1000, 999), "the files have no room"


def test_what_has_room_is_told_by_what_is_available() -> None:
    assert have_room(79, "cpu", 100) and not have_room(81, "cpu", 100)
    available = read_available_bytes("cpu")
    assert available is not None and available > 0
    assert read_available_bytes("meta") is None and have_room(10**18, "meta")
    assert not have_room(10**18, "cpu")


def test_a_control_group_bounds_what_is_available(tmp_path: Path) -> None:
    job = tmp_path / "slurm" / "job_1"
    job.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/slurm/job_1/step_0\n")  # a folder that is not seen from here
    for folder, limit in ((job, "1000"), (job.parent, "max")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 400\nfile 300\n")
    assert _read_group_bytes(tmp_path, own) == 600
    (job.parent / "memory.max").write_text("800\n")
    assert _read_group_bytes(tmp_path, own) == 400
    own.write_text("5:cpuset,memory:/slurm/job_1\n")
    old = tmp_path / "memory" / "slurm" / "job_1"
    old.mkdir(parents=True)
    for name, value in (("limit_in_bytes", 500), ("usage_in_bytes", 450)):
        (old / f"memory.{name}").write_text(f"{value}\n")
    (old / "memory.stat").write_text("total_cache 25\n")
    assert _read_group_bytes(tmp_path, own) == 75
    assert _read_group_bytes(tmp_path, tmp_path / "none") is None


def test_attention_diverges_by_what_the_definition_says() -> None:
    from registry.compare.divergence import diverge

    sure, other = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(diverge(sure, other)) == pytest.approx(float(torch.tensor(2.0).log()))
    assert float(diverge(sure, sure)) == 0.0
