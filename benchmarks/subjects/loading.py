"""Loading a network that is registered, against the ways in which people load one without us."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.checkpoints import Shape
from benchmarks.page import Bound, Entry, Line, Section, write_bytes
from benchmarks.plan import Plan
from benchmarks.subjects.loading_ways import WAYS
from benchmarks.timing import median_of
from benchmarks.worker import Outcome, WayFailed, Worker

OURS = "`registry.load(ref)`"
FIRST = f"{OURS}, the first time"
USUAL = "`HookedTransformer.from_pretrained(name)`"
LIMIT = "`safetensors.torch.load_file` and the network on the meta device"
STATE = "`HookedTransformer(cfg)`, `load_state_dict(torch.load(…))`"
BRIDGE = "`TransformerBridge.boot_transformers(folder)`, `enable_compatibility_mode()`"
# transformer-lens knows these names, and takes the folders of these names for what they mean
TINY_NAME, BIG_NAME = "EleutherAI/pythia-14m", "EleutherAI/pythia-1.4b"
TINY = Shape(n_layers=2, d_model=64, n_heads=4, d_vocab=300)
N_TOKENS = 50_254
COPIES = 6  # of the network's bytes on the disk: as made, stored, derived, exported twice, and one to spare


Target = tuple[str, object, object, list[Path]]
"""Of a way: its class in `loading_ways`, what it loads, what it warms up on, and where its files are."""


@dataclass(frozen=True)
class Size:
    """A network to load, and how often."""

    name: str
    shape: Shape
    n_warm: int
    n_cold: int


@dataclass
class _Taken:
    """What was seen of one way."""

    warm: list[float] = field(default_factory=list)
    warm_with_forward: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    cold_with_forward: list[float] = field(default_factory=list)
    private_bytes: int | None = None
    log_probs: list[float] | None = None
    missing: str | None = None

    def note(self, outcome: Outcome, *, cold: bool) -> None:
        seconds = outcome.seconds
        forward = seconds + outcome.details["forward_seconds"]
        (self.cold if cold else self.warm).append(seconds)
        (self.cold_with_forward if cold else self.warm_with_forward).append(forward)
        if self.private_bytes is None:
            self.private_bytes = outcome.private_bytes
        self.log_probs = outcome.details["log_probs"]

    def line(self, way: str, seconds: list[float]) -> Line:
        return Line(way, tuple(seconds), self.private_bytes, self.missing)


def measure_small(plan: Plan) -> Section:
    """Measure a network of the size of Pythia-160M, in float32."""
    shape = Shape(4, 128, 4, d_vocab=2000) if plan.quick else Shape(12, 768, 12)
    size = Size("160M", shape, n_warm=2 if plan.quick else 5, n_cold=1 if plan.quick else 3)
    return measure_size(plan, size, "loading-160m", with_tokenizer=True)


def measure_large(plan: Plan) -> Section:
    """Measure a GPT-NeoX of 1.5B parameters, in bfloat16."""
    shape = Shape(6, 128, 4, d_vocab=2000) if plan.quick else Shape(26, 2048, 16)
    size = Size("1.5B", Shape(**asdict(shape) | {"dtype": "bfloat16"}), n_warm=2 if plan.quick else 3, n_cold=1)
    return measure_size(plan, size, "loading-1.5b")


def measure_size(plan: Plan, size: Size, subject: str, *, with_tokenizer: bool = False) -> Section:
    """Make the network, load it in every way in turn, and delete it."""
    with plan.working_folder() as folder:
        needed = COPIES * size.shape.estimate_bytes()
        if shutil.disk_usage(folder).free < needed:
            raise WayFailed(f"needs {write_bytes(needed)} of disk")
        n_parameters = _make(plan, folder, size)
        targets = {
            OURS: ("Registered", "big", "tiny", [folder / "home"]),
            USUAL: ("FromPretrained", BIG_NAME, TINY_NAME, [folder / "hub"]),
            STATE: ("StateDict", folder / "out", folder / "tiny-out", [folder / "out" / "state.pt"]),
            BRIDGE: ("Bridge", folder / "hub" / BIG_NAME, folder / "hub" / TINY_NAME, [folder / "hub"]),
            LIMIT: ("Bare", folder / "out", folder / "tiny-out", [folder / "out" / "hooked.safetensors"]),
        }
        taken = {way: _Taken() for way in targets}
        n_bytes = size.shape.estimate_bytes()
        try:
            first = _first_load(plan, size, targets[OURS], folder)
            n_bytes = (folder / "out" / "hooked.safetensors").stat().st_size
        except WayFailed as failed:
            first = Line(FIRST, missing=str(failed))
            for way, why in ((OURS, str(failed)), (STATE, "needs ours to be exported"), (LIMIT, "needs ours too")):
                taken[way].missing = why
        tokenized = _measure_tokenizer(plan, size, folder) if with_tokenizer else []
        _take_turns(plan, size, {way: target for way, target in targets.items() if not taken[way].missing}, taken)
    section = _describe(size, subject, n_parameters, n_bytes, plan.memory_bytes, first, taken)
    return replace(section, entries=[*section.entries, *tokenized])


def _make(plan: Plan, folder: Path, size: Size) -> int:
    """Make and register the checkpoints; return the big one's number of parameters."""
    for out in ("out", "tiny-out"):
        (folder / out).mkdir()
    tiny = Shape(**asdict(TINY) | {"dtype": size.shape.dtype})
    hub = folder / "hub"
    with Worker(f"{WAYS}:MakeCheckpoint", plan.memory_bytes) as maker:
        maker.run(folder=str(hub / TINY_NAME), shape=json.dumps(asdict(tiny)))
        made = maker.run(folder=str(hub / BIG_NAME), shape=json.dumps(asdict(size.shape)))
    with Worker(f"{WAYS}:RegisterOnce", plan.memory_bytes, home=folder / "home") as registrar:
        for name, source in (("tiny", hub / TINY_NAME), ("big", hub / BIG_NAME)):
            registrar.run(name=name, source=str(source))
    return int(made.details["n_parameters"])


def _start(plan: Plan, size: Size, target: Target) -> Worker:
    kind, what, tiny, places = target
    arguments = {"what": str(what), "tiny": str(tiny), "places": [str(place) for place in places]}
    return Worker(f"{WAYS}:{kind}", plan.memory_bytes, dtype=size.shape.dtype, **arguments)


def _first_load(plan: Plan, size: Size, target: Target, folder: Path) -> Line:
    """Load it for the first time, when nothing has been derived from it yet, and export it for the other ways."""
    with _start(plan, size, target) as worker:
        outcome = worker.run(cold=False, forward=False, export=str(folder / "out"))
        worker.run(cold=False, forward=False, what="tiny", export=str(folder / "tiny-out"))
    return Line(FIRST, (outcome.seconds,), outcome.private_bytes)


def _take_turns(plan: Plan, size: Size, targets: Mapping[str, Target], taken: dict[str, _Taken]) -> None:
    workers: dict[str, Worker] = {}

    def attempt(way: str, call: Callable[[], None]) -> None:
        try:
            call()
        except WayFailed as failed:
            taken[way].missing = str(failed)
            if way in workers:
                workers.pop(way).stop()

    def start(way: str) -> None:
        workers[way] = _start(plan, size, targets[way])

    def load(way: str, *, cold: bool) -> None:
        taken[way].note(workers[way].run(cold=cold), cold=cold)

    try:
        for way in targets:
            attempt(way, lambda way=way: start(way))
        for cold in [False] * size.n_warm + [True] * size.n_cold:
            for way in list(workers):
                attempt(way, lambda way=way, cold=cold: load(way, cold=cold))
    finally:
        for worker in workers.values():
            worker.stop()


def _measure_tokenizer(plan: Plan, size: Size, folder: Path) -> list[Entry]:
    """Load the same weights with a tokenizer of a usual size, and that tokenizer alone."""
    hub, n_tokens = folder / "hub-tokenizer", 300 if plan.quick else N_TOKENS
    source, tokenizer = hub / BIG_NAME, "`AutoTokenizer.from_pretrained(folder)`, the tokenizer alone"
    shutil.copytree(folder / "hub", hub, copy_function=os.link)
    with Worker(f"{WAYS}:MakeCheckpoint", plan.memory_bytes) as maker:
        maker.run(tokenizer=str(source), n_tokens=n_tokens)
    with Worker(f"{WAYS}:RegisterOnce", plan.memory_bytes, home=folder / "home") as registrar:
        registrar.run(name="tokenized", source=str(source))
    targets: dict[str, Target] = {
        OURS: ("Registered", "tokenized", "tiny", [folder / "home"]),
        USUAL: ("FromPretrained", BIG_NAME, TINY_NAME, [hub]),
        tokenizer: ("Tokenizer", source, source, [source / "tokenizer.json"]),
    }
    seconds: dict[str, list[float]] = {way: [] for way in targets}
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(_start(plan, size, target)) for way, target in targets.items()}
        for turn in range(4):
            for way, worker in workers.items():
                outcome = worker.run(cold=False, forward=False, text="some text")
                if turn:  # the first time it may be derived
                    seconds[way].append(outcome.seconds)
    lines = [Line(way, tuple(taken)) for way, taken in seconds.items()]
    return [Entry(f"{size.name} with a tokenizer of {n_tokens:,} tokens, warm load and a first text", lines)]


def _describe(
    size: Size,
    subject: str,
    n_parameters: int,
    n_bytes: int,
    memory_bytes: int,
    first: Line,
    taken: dict[str, _Taken],
) -> Section:
    shape = size.shape
    text = [
        f"A GPT-NeoX of {n_parameters / 1e6:,.0f} M parameters ({shape.n_layers} layers, `d_model` {shape.d_model},",
        f"vocabulary {shape.d_vocab:,}) with random weights in {shape.dtype}, {write_bytes(n_bytes)} as a processed",
        "HookedTransformer, without a tokenizer. Every way runs in a process of its own, which has imported everything",
        "and has loaded a tiny network of the family before. Private memory is the most that the process had over what",
        "it had before the first load, without the pages of mapped files. *Cold* is after the page cache has dropped",
        "the files (`posix_fadvise`, checked with `mincore`); what lies under the machine's disk may still have them.",
        "A map reads nothing before it is used, so the tables with a first forward pass (16 tokens) say what a load is",
        "worth. `load_state_dict` is of what `from_pretrained` made, into a network that was not initialised. Ours was",
        "registered without verification, and had been loaded once before.",
        f"A way is stopped when it takes more than {write_bytes(memory_bytes)} of private memory.",
        *_compare(taken),
    ]
    kinds = (
        ("warm load", lambda one: one.warm),
        ("warm load and a first forward pass", lambda one: one.warm_with_forward),
        ("cold load", lambda one: one.cold),
        ("cold load and a first forward pass", lambda one: one.cold_with_forward),
    )
    entries = [
        Entry(f"{size.name}, {what}", [one.line(way, seconds(one)) for way, one in taken.items()])
        for what, seconds in kinds
    ]
    entries.append(Entry(f"{size.name}, first load of a version", [first]))
    return Section(
        f"Loading {size.name}",
        f"python -m benchmarks --only {subject}",
        text,
        entries,
        _judge(size, n_bytes, taken),
    )


def _compare(taken: Mapping[str, _Taken]) -> list[str]:
    """Say how far the networks are from each other: they must be the same."""
    ours = taken[OURS].log_probs
    said = []
    for way, one in taken.items():
        if way != OURS and ours and one.log_probs:
            difference = max(abs(a - b) for a, b in zip(ours, one.log_probs, strict=True))
            said.append(f"{difference:.1e} ({way})")
    return [f"Largest difference of log-probs from lensreg's network: {', '.join(said)}."] if said else []


def _judge(size: Size, n_bytes: int, taken: Mapping[str, _Taken]) -> list[Bound]:
    ours, usual, limit = (taken[way] for way in (OURS, USUAL, LIMIT))

    def ratio(one: list[float], other: list[float]) -> float | None:
        return median_of(tuple(one)) / median_of(tuple(other)) if one and other else None

    share = None if ours.private_bytes is None else 100 * ours.private_bytes / n_bytes
    return [
        Bound(
            f"{size.name}: warm load, against `from_pretrained` with processing",
            "at least",
            50,
            ratio(usual.warm, ours.warm),
            "times faster",
            "What a load costs beside the map is building the network's modules, which `from_pretrained` does as well.",
        ),
        Bound(
            f"{size.name}: warm load, against `load_file` and the network on the meta device",
            "at most",
            2,
            ratio(ours.warm, limit.warm),
            "times",
            "Beside those two, a load resolves the name, looks at every file of the version, derives the architecture "
            "from the config again and compares fingerprints.",
        ),
        Bound(
            f"{size.name}: private memory of a warm load, over the mapped file",
            "at most",
            5,
            share,
            "% of the weights",
            "It is more than modules and buffers: something of the weights was copied.",
        ),
    ]
