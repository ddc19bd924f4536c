"""How times grow: loading with layers, resolving with versions, lineage with depth; each fitted and drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks import big_registry
from benchmarks.checkpoints import Shape
from benchmarks.page import Bound, Entry, Line, Section, write_seconds
from benchmarks.pictures import Curve, draw_curves, fit_line, fit_power
from benchmarks.plan import Plan
from benchmarks.subjects.loading_ways import WAYS
from benchmarks.timing import median_of, time_many
from benchmarks.worker import Worker
from registry import Registry
from registry.ancestry import Relative

OURS = "`registry.load(ref)`, warm"
USUAL = "`HookedTransformer.from_pretrained(name)`, warm"
BASE_NAME, TINY_NAME = "EleutherAI/pythia-1b", "EleutherAI/pythia-14m"
ANCESTORS = "`registry.lineage(ref, down=False).ancestors()`"
LINEAGE_BOUND = 20.0  # ms; DESIGN.md §7


def measure(plan: Plan) -> Section:
    """Measure the three curves."""
    layers, versions, depths = (
        ((2, 4, 8), (100, 300, 1000), (10, 30, 100))
        if plan.quick
        else ((2, 4, 8, 16, 32, 64), (100, 1000, 10_000, 100_000), (10, 30, 100, 300, 1000))
    )
    loading = _grow_layers(plan, layers)
    resolving = _grow_versions(plan, versions)
    lineage = _grow_depth(plan, depths, versions[-1])
    entries, pictures = [], []
    for name, of, curves in (
        ("load", "layers", loading),
        ("resolve", "versions", resolving),
        ("lineage", "generations", lineage),
    ):
        entries += _list_entries(of, curves)
        pictures += _draw(plan, name, of, curves)
    text = [
        "Each curve is fitted by least squares: as a power on logarithms (n^0 is no growth, n^1 is linear), which is",
        "drawn, and as a straight line.",
        "Layers: a GPT-NeoX of `d_model` 256, in float32. Versions: as above, in 100 models. Depth: the ancestors of a",
        f"version that is so many generations below its base, in a registry of {versions[-1]:,} versions.",
    ]
    deepest = median_of(lineage[ANCESTORS][depths[-1]])
    bound = Bound(
        f"ancestors of a version {depths[-1]:,} generations deep, among {versions[-1]:,} versions",
        "at most",
        LINEAGE_BOUND,
        deepest * 1e3,
        "ms",
        "Reading one summary for each ancestor is in it, not only the edges.",
    )
    return Section("Growth", "python -m benchmarks --only growth", text, entries, [bound], pictures)


Measured = Mapping[str, Mapping[int, tuple[float, ...]]]


def _grow_layers(plan: Plan, layers: tuple[int, ...]) -> Measured:
    """Load networks of more and more layers, all in one process for each way."""
    seconds: dict[str, dict[int, tuple[float, ...]]] = {OURS: {}, USUAL: {}}
    rounds = 2 if plan.quick else 5
    with plan.working_folder() as folder:
        home = folder / "home"
        with (
            Worker(f"{WAYS}:MakeCheckpoint", plan.memory_bytes) as maker,
            Worker(f"{WAYS}:RegisterOnce", plan.memory_bytes, home=home) as registrar,
        ):
            maker.run(folder=str(folder / "tiny" / TINY_NAME), shape=json.dumps(asdict(Shape(2, 64, 4, d_vocab=300))))
            registrar.run(name="tiny", source=str(folder / "tiny" / TINY_NAME))
            for n_layers in layers:
                shape = Shape(n_layers, 256, 4, d_vocab=5000)
                source = folder / f"hub-{n_layers}" / BASE_NAME
                maker.run(folder=str(source), shape=json.dumps(asdict(shape)))
                registrar.run(name=f"layers-{n_layers}", source=str(source))
        ours = {"what": "tiny", "tiny": "tiny", "dtype": "float32", "places": [str(home)]}
        theirs = {"what": TINY_NAME, "tiny": TINY_NAME, "dtype": "float32", "places": [str(folder / "tiny")]}
        with (
            Worker(f"{WAYS}:Registered", plan.memory_bytes, **ours) as worker,
            Worker(f"{WAYS}:FromPretrained", plan.memory_bytes, **theirs) as rival,
        ):
            for n_layers in layers:
                runs: dict[str, list[float]] = {OURS: [], USUAL: []}
                for turn in range(rounds + 1):
                    first = worker.run(cold=False, forward=False, what=f"layers-{n_layers}")
                    place = str(folder / f"hub-{n_layers}")
                    second = rival.run(cold=False, forward=False, what=BASE_NAME, place=place)
                    if turn:
                        runs[OURS].append(first.seconds)
                        runs[USUAL].append(second.seconds)
                for way, taken in runs.items():
                    seconds[way][n_layers] = tuple(taken)
    return seconds


def _grow_versions(plan: Plan, sizes: tuple[int, ...]) -> Measured:
    """Resolve in registries of more and more versions."""
    seconds: dict[str, dict[int, tuple[float, ...]]] = {}
    for n_versions in sizes:
        with plan.working_folder() as folder:
            registry = _fill(folder, n_versions)
            name = big_registry.name_model(0)
            ways = {
                '`registry.resolve("NAME@v1")`': partial(registry.resolve, f"{name}@v1"),
                '`registry.resolve("NAME@best")`': partial(registry.resolve, f"{name}@best"),
                '`registry.resolve("NAME")`': partial(registry.resolve, name),
            }
            for way, taken in time_many(ways, 100 if plan.quick else 2000).items():
                seconds.setdefault(way, {})[n_versions] = taken
            registry.close()
    return seconds


def _grow_depth(plan: Plan, depths: tuple[int, ...], n_versions: int) -> Measured:
    """Read the ancestors of versions deeper and deeper in one chain."""
    seconds: dict[int, tuple[float, ...]] = {}
    with plan.working_folder() as folder:
        registry = _fill(folder, n_versions, n_models=n_versions // depths[-1] or 1)
        name = big_registry.name_model(0)
        for depth in depths:
            way = partial(_read_ancestors, registry, f"{name}@v{depth}")
            found = len(way())
            if found < depth - 1:
                raise ValueError(f"{found} ancestors where {depth} are")
            seconds[depth] = time_many({"": way}, 10 if plan.quick else 50)[""]
        registry.close()
    return {ANCESTORS: seconds}


def _read_ancestors(registry: Registry, ref: str) -> list[Relative]:
    return registry.lineage(ref, down=False).ancestors()  # until it is asked, a lineage reads nothing


def _fill(folder: Path, n_versions: int, n_models: int = 100) -> Registry:
    registry = Registry(str(folder / "registry.db"), folder / "store")
    big_registry.fill(registry, big_registry.Spec(n_versions, min(n_models, n_versions - 1), depth=1000))
    return registry


def _list_entries(of: str, curves: Measured) -> list[Entry]:
    sizes = list(next(iter(curves.values())))
    return [Entry(f"{n:,} {of}", [Line(way, taken[n]) for way, taken in curves.items()]) for n in sizes]


def _draw(plan: Plan, name: str, of: str, curves: Measured) -> list[str]:
    """Draw the curves, and say what was fitted."""
    drawn = [
        Curve(way.replace("`", ""), {n: median_of(taken) for n, taken in one.items()}) for way, one in curves.items()
    ]
    fitted = []
    for way, curve in zip(curves, drawn, strict=True):
        factor, exponent = fit_power(curve.points)
        start, slope = fit_line(curve.points)
        fitted.append(
            f"- {way}: {write_seconds(factor)} · n^{exponent:.2f}, or in a straight line {_write_signed(start)} and "
            f"{_write_signed(slope)} for each of the {of}"
        )
    file = plan.images / f"bench-{name}.svg"
    try:
        draw_curves(file, f"{name}: time against number of {of}", of, drawn)
    except ModuleNotFoundError as missing:
        picture = f"(No picture: {missing.name} is not installed.)"
    else:
        picture = f"![{name} against {of}](images/{file.name})"
    return [f"**{name.capitalize()} against the number of {of}**", "\n".join(fitted), picture]


def _write_signed(seconds: float) -> str:
    return f"−{write_seconds(-seconds)}" if seconds < 0 else write_seconds(seconds)
