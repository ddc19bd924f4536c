"""Measure every family on a randomised network and write docs/families.md: `make families`.

Fails when a bound is passed. A test fails when the page is older than what it measured.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from registry import Registry
from registry.errors import RegistryError
from registry.families import BRIDGED_FAMILIES, FAMILIES
from registry.families.family import Family
from registry.quiet import quiet
from registry.registration import Registration
from registry.verify import BOUND, make_probe
from tests.checkpoints import save_checkpoint

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
MEASURED = [
    "registry/architecture.py", "registry/convert.py", "registry/networks.py", "registry/verify.py", "registry/load.py",
    "registry/bridge.py", "registry/verify_weights.py", "registry/routing.py", "registry/attention.py",
    "tests/checkpoints.py", "docs/write_families.py",
]  # fmt: skip
LIBRARIES = ("torch", "transformers", "transformer-lens")
# raw or processed, these hold the same numbers: folding and centring move the same function between other tensors
SHARED_HOOKS = (
    "hook_q", "hook_k", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern",
    "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post",
)  # fmt: skip
COLUMNS = (
    "family", "class", "precision", "raw", "processed", "floor", "bound", "bridge", "compatibility", "activations",
    "hooks",
)  # fmt: skip
BRIDGED_COLUMNS = ("family", "class", "precision", "bridge", "floor", "bound", "compatibility")
# transformer-lens processes in float32 whatever the dtype, so that is as near as raw and processed can come
ACTIVATION_BOUND = {"float64": 1e-5, "float32": 1e-3}


@dataclass(frozen=True)
class Measured:
    """What was measured of one family; differences of log-probs in nats, of activations relative to the largest."""

    family: str
    class_name: str
    dtype: str
    raw: float
    processed: float
    noise_floor: float
    bound: float
    bridge: float | str
    compatibility: float | str
    activations: float
    n_hooks: int

    @property
    def faults(self) -> list[str]:
        """Say which bounds are passed."""
        checks = [("raw", self.raw), ("processed", self.processed)]
        checks += [("bridge", self.bridge)] if isinstance(self.bridge, float) else []
        checks += [("compatibility", self.compatibility)] if isinstance(self.compatibility, float) else []
        found = [
            f"{self.family}: {name} {value:.1e} > {self.bound:.1e}" for name, value in checks if value > self.bound
        ]
        limit = ACTIVATION_BOUND[self.dtype]
        if not self.activations <= limit:
            found.append(f"{self.family}: activations {self.activations:.1e} > {limit:.1e}")
        return found


@dataclass(frozen=True)
class MeasuredBridge:
    """What was measured of a family that only a bridge can run; differences of log-probs from its source, in nats."""

    family: str
    class_name: str
    dtype: str
    bridge: float
    noise_floor: float
    bound: float
    compatibility: float | str

    @property
    def faults(self) -> list[str]:
        """Say which bounds are passed."""
        checks = {"bridge": self.bridge, "compatibility": self.compatibility}
        return [
            f"{self.family}: {name} {value:.1e} > {self.bound:.1e}"
            for name, value in checks.items()
            if isinstance(value, float) and not value <= self.bound
        ]


def measure_bridged_family(family: Family) -> MeasuredBridge:
    """Register a randomised network of a family that only a bridge can run, which measures the bridge."""
    with open_registry() as registry:
        done = register_randomised(registry, family)
        parity = done.parity
        if parity is None or parity.bridge is None:
            raise RuntimeError(f"{family.name} was not verified")
        probe = make_probe(done.architecture)[:2]
        source = registry.load_hf(family.name, dtype="float64")
        with torch.inference_mode():
            expected = source(probe).logits
        return MeasuredBridge(
            family=family.name,
            class_name=family.class_name,
            dtype=parity.dtype,
            bridge=parity.bridge,
            noise_floor=parity.noise_floor,
            bound=parity.bound,
            compatibility=measure_bridge(registry, family.name, probe, expected, "float64", compatibility=True),
        )


def register_randomised(registry: Registry, family: Family) -> Registration:
    """Register a randomised network of the family, under its name."""
    folder = Path(registry.store.root).parent / "source"
    with quiet():
        save_checkpoint(folder, family.name, seed=7, tokenizer=False)
    return registry.register(family.name, folder)


def measure_family(family: Family) -> Measured:
    """Register a randomised network of the family, load it in every way, and compare."""
    with open_registry() as registry:
        name = family.name
        done = register_randomised(registry, family)
        if done.parity is None or done.version is None:
            raise RuntimeError(f"{name} was not verified")
        dtype = done.parity.dtype
        probe = make_probe(done.architecture)[:2]
        raw = registry.load(name, processed=False, dtype=dtype)
        processed = registry.load(name, dtype=dtype)
        with torch.inference_mode():
            expected, raw_cache = raw.run_with_cache(probe)
            _, processed_cache = processed.run_with_cache(probe)
        activations, n_hooks = compare_activations(raw_cache, processed_cache)
        return Measured(
            family=name,
            class_name=family.class_name,
            dtype=dtype,
            raw=done.parity.raw,
            processed=done.parity.processed,
            noise_floor=done.parity.noise_floor,
            bound=done.parity.bound,
            bridge=measure_bridge(registry, name, probe, expected, dtype, compatibility=False),
            compatibility=measure_bridge(registry, name, probe, expected, dtype, compatibility=True),
            activations=activations,
            n_hooks=n_hooks,
        )


def measure_bridge(
    registry: Registry, name: str, probe: torch.Tensor, expected: torch.Tensor, dtype: str, *, compatibility: bool
) -> float | str:
    """Return how far the bridge's log-probs are from those of the `expected` logits, or why there is no such bridge."""
    try:
        bridge = registry.load_bridge(name, compatibility=compatibility, dtype=dtype)
    except RegistryError as error:
        return error.code
    with torch.inference_mode():
        log_probs = bridge(probe).log_softmax(-1)
    return float((log_probs - expected.log_softmax(-1)).abs().max())


def compare_activations(one: Any, other: Any) -> tuple[float, int]:
    """Return the largest relative difference over the hooks that must agree, and how many there were."""
    hooks = [hook for hook in one if hook.endswith(SHARED_HOOKS)]
    differences = []
    for hook in hooks:
        mine, theirs = one[hook].double(), other[hook].double()
        finite = mine.isfinite()  # masked scores are -inf on both sides
        if not torch.equal(finite, theirs.isfinite()):
            return float("inf"), len(hooks)
        differences.append(float((mine - theirs)[finite].abs().max() / mine[finite].abs().max()))
    return max(differences), len(hooks)


@contextmanager
def open_registry() -> Iterator[Registry]:
    """Give a registry in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="lensreg-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry = Registry(str(Path(folder) / "registry.db"), Path(folder) / "store")
        try:
            yield registry
        finally:
            registry.close()


def digest_inputs() -> str:
    """Return the SHA-256, in hex, of the code and the library versions that decide what is measured."""
    total = hashlib.sha256()
    families = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "registry" / "families").glob("*.py"))
    for name in [*MEASURED, *families]:
        total.update(f"{name}\n".encode() + (ROOT / name).read_bytes())
    for library in LIBRARIES:
        total.update(f"{library} {version(library)}\n".encode())
    return total.hexdigest()


def write_page(rows: list[Measured], bridged: list[MeasuredBridge]) -> str:
    """Return the page."""
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    lines = [
        "# Families",
        "",
        "Written by `make families` on networks with randomised norms and biases, about 60,000 parameters each, with",
        f"{versions}.",
        "",
        "Differences are the largest of any log-prob, in nats: of the HookedTransformer (raw, and processed as",
        "`from_pretrained` does) from the Hugging Face network, and of the TransformerBridge (raw, and in",
        "compatibility mode) from the HookedTransformer. The floor is what the source itself leaves open (see",
        "[architecture.md](architecture.md)); the bound is the larger of "
        f"{BOUND[torch.float64]:.0e} (float32: {BOUND[torch.float32]:.0e}) and ten times the floor.",
        "Activations: the largest relative difference, raw against processed, over all hooks that must agree",
        "(queries, keys, scores, patterns, MLP).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in rows:
        numbers = [row.raw, row.processed, row.noise_floor, row.bound, row.bridge, row.compatibility, row.activations]
        shown = [row.family, f"`{row.class_name}`", row.dtype, *map(show, numbers), str(row.n_hooks)]
        lines.append("| " + " | ".join(shown) + " |")
    lines += [
        "",
        "## Families that only a TransformerBridge can run",
        "",
        "transformer-lens has no converter for these, so there is no HookedTransformer. What is measured when they are",
        "registered is the bridge: how far its log-probs are from the Hugging Face network's.",
        "",
        f"| {' | '.join(BRIDGED_COLUMNS)} |",
        "|---" * len(BRIDGED_COLUMNS) + "|",
    ]
    for one in bridged:
        numbers = [one.bridge, one.noise_floor, one.bound, one.compatibility]
        lines.append(f"| {one.family} | `{one.class_name}` | {one.dtype} | {' | '.join(map(show, numbers))} |")
    return "\n".join([*lines, "", f"<!-- measured: {digest_inputs()} -->", ""])


def show(value: float | str) -> str:
    """Show a difference, or the code of the error that there was instead."""
    return f"{value:.1e}" if isinstance(value, float) else f"refused ({value})"


def main() -> None:
    """Measure, write, and fail when a bound is passed."""
    rows = []
    for family in sorted(FAMILIES.values(), key=lambda one: one.name):
        rows.append(measure_family(family))
        print(f"{family.name:12} raw {rows[-1].raw:.1e} processed {rows[-1].processed:.1e} bridge {rows[-1].bridge}")
    bridged = []
    for family in sorted(BRIDGED_FAMILIES.values(), key=lambda one: one.name):
        bridged.append(measure_bridged_family(family))
        print(f"{family.name:12} bridge {bridged[-1].bridge:.1e} compatibility {bridged[-1].compatibility}")
    faults = [fault for row in (*rows, *bridged) for fault in row.faults]
    if faults:
        raise SystemExit("\n".join(faults))
    PAGE.write_text(write_page(rows, bridged))


if __name__ == "__main__":
    main()
