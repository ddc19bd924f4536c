"""Measure how often lineage is told right from weights: train small networks whose lineage is known, and ask.

    python benchmarks/lineage_rates.py [--seeds N] [--steps N]

Networks with other initialisations learn the Python of this repository, character by character; from each come children
of every kind, some of which learn its documents. Writes the tables into docs/lineage.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from registry import Registry
from registry.compare_sketches import RELATED_Z, Evidence, compare_sketches
from registry.quiet import quiet
from registry.save import save_network
from registry.sketch import Sketch
from registry.take_sketch import take_sketch

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "lineage.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
CODE, PROSE = ("registry/*.py", "tests/*.py"), ("*.md", "docs/*.md", "cli/demo/*.txt")
N_BATCH, N_CTX, RANK = 8, 48, 4
UNRELATED_TRUTHS = ("another base, or its child", "trained from another initialisation on the same data", "distilled")


@dataclass(frozen=True)
class Child:
    """A network with what is true of it: its kind, and the seeds of the bases that it comes from."""

    truth: str
    network: HookedTransformer
    seed: int


def main() -> None:
    """Train, ask, and write what came of it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250)
    given = parser.parse_args()
    torch.set_num_threads(1)  # such small networks gain nothing by more
    started = time.monotonic()
    bases = {seed: train(make_network(seed), CODE, given.steps, seed) for seed in range(given.seeds)}
    children = [child for seed, base in bases.items() for child in breed(seed, base, given.steps)]
    print(f"{len(bases)} bases, {len(children)} children trained in {time.monotonic() - started:.0f} s")
    sections = [measure_edges(bases, children), measure_answers(bases, children)]
    size = f"{len(bases)} bases, {len(children)} children, {given.steps} steps of training each"
    write_page("\n\n".join([f"Measured by `python benchmarks/lineage_rates.py`: {size}.", *sections]))
    print(f"written to {PAGE} after {time.monotonic() - started:.0f} s")


def make_network(seed: int) -> HookedTransformer:
    """Make an untrained network; the seed decides its initialisation."""
    cfg = HookedTransformerConfig(
        n_layers=3,
        d_model=48,
        n_heads=4,
        d_head=12,
        d_mlp=192,
        d_vocab=128,
        n_ctx=N_CTX,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        seed=seed,
    )
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        return HookedTransformer(cfg)


@cache
def read_tokens(patterns: tuple[str, ...]) -> torch.Tensor:
    """Read this repository's texts, one token for each byte of ASCII."""
    text = "".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()


def train(
    network: HookedTransformer,
    patterns: tuple[str, ...],
    n_steps: int,
    seed: int,
    *,
    lr: float = 2e-3,
    teacher: HookedTransformer | None = None,
) -> HookedTransformer:
    """Train a network in place, on texts or on what a teacher makes of them."""
    tokens = read_tokens(patterns)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    for _ in range(n_steps):
        starts = torch.randint(0, len(tokens) - N_CTX, (N_BATCH,), generator=generator)
        batch = torch.stack([tokens[start : start + N_CTX] for start in starts])
        if teacher is None:
            loss = network(batch, return_type="loss")
        else:
            with torch.no_grad():
                wanted = teacher(batch).softmax(-1)
            loss = -(wanted * network(batch).log_softmax(-1)).sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def breed(seed: int, base: HookedTransformer, n_steps: int) -> list[Child]:
    """Make the children of a base, of every kind there is, and networks that are nearly its children."""
    other = 1000 + seed
    light = train(copy.deepcopy(base), PROSE, n_steps // 10, other, lr=1e-4)
    heavy = train(copy.deepcopy(base), PROSE, n_steps, other)
    heavier = train(copy.deepcopy(base), PROSE, 2 * n_steps, other + 1, lr=2e-2)
    second = train(copy.deepcopy(base), CODE, n_steps, other + 2)
    made: dict[str, HookedTransformer] = {
        "fine-tuned lightly": light,
        "fine-tuned heavily": heavy,
        "fine-tuned at ten times the rate, twice as long": heavier,
        "LoRA of rank 4, merged": change(base, lambda name, a: _cut(a, heavy, name)),
        "average of two fine-tunes": change(heavy, lambda name, a: (a + second.state_dict()[name]) / 2),
        "rounded to bfloat16": change(base, lambda name, a: a.bfloat16().float()),
        "one layer of three initialised anew, then trained": _replace_layer(base, n_steps, other),
        "same initialisation, other data": train(make_network(seed), PROSE, n_steps, other),
        "neurons and heads in another order": _permute(base, other),
        "trained from another initialisation on the same data": train(make_network(other), CODE, n_steps, seed),
        "distilled": train(make_network(other + 1), PROSE, n_steps, other, teacher=base),
    }
    return [Child(truth, network, seed) for truth, network in made.items()] + [
        Child("(second parent of the average)", second, seed)
    ]


def change(network: HookedTransformer, edit: Callable[[str, torch.Tensor], torch.Tensor]) -> HookedTransformer:
    """Copy a network with every tensor edited."""
    changed = copy.deepcopy(network)
    buffers = {name for name, _ in network.named_buffers()}
    state = {name: one if name in buffers else edit(name, one) for name, one in network.state_dict().items()}
    changed.load_state_dict(state)
    return changed


def _cut(one: torch.Tensor, tuned: HookedTransformer, name: str) -> torch.Tensor:
    """Change W_Q and W_V as much as a fine-tune did, cut to RANK."""
    if not name.endswith(("W_Q", "W_V")):
        return one
    delta = (tuned.state_dict()[name] - one).transpose(0, 1).reshape(one.shape[1], -1).double()
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    low = (u[:, :RANK] * s[:RANK] @ v[:RANK]).reshape(one.shape[1], one.shape[0], one.shape[2]).transpose(0, 1)
    return (one.double() + low).float()


def _replace_layer(base: HookedTransformer, n_steps: int, seed: int) -> HookedTransformer:
    fresh = make_network(seed).state_dict()
    changed = change(base, lambda name, a: fresh[name] if name.startswith("blocks.1.") else a)
    return train(changed, CODE, n_steps, seed)


def _permute(base: HookedTransformer, seed: int) -> HookedTransformer:
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randperm(base.cfg.n_heads, generator=generator)
    neurons = torch.randperm(base.cfg.d_mlp or 0, generator=generator)

    def reorder(name: str, one: torch.Tensor) -> torch.Tensor:
        if ".attn." in name and not name.endswith("b_O"):
            return one[heads]
        if name.endswith(("mlp.W_in", "mlp.b_in")):
            return one[..., neurons]
        return one[neurons] if name.endswith("mlp.W_out") else one

    return change(base, reorder)


def measure_edges(bases: dict[int, HookedTransformer], children: list[Child]) -> str:
    """Compare every child with its own base and with all others, as registering does."""
    own = {seed: sketch_network(base) for seed, base in bases.items()}
    found: dict[str, list[Evidence]] = defaultdict(list)
    for child in children:
        sketch = sketch_network(child.network)
        if not child.truth.startswith("("):
            found[child.truth].append(compare_sketches(own[child.seed], sketch))
        found[UNRELATED_TRUTHS[0]] += [compare_sketches(one, sketch) for seed, one in own.items() if seed != child.seed]
    rows = [
        "| truth | pairs | said to be unrelated | correlation | relative distance | z |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for truth, evidence in found.items():
        n = sum(one.verdict == "unrelated" for one in evidence)
        correlations, distances, z = (
            [value for one in evidence if (value := getattr(one, name)) is not None]
            for name in ("correlation", "distance", "z")
        )
        rows.append(
            f"| {truth} | {len(evidence)} | {n} | {statistics.median(correlations):.3f} "
            f"| {statistics.median(distances):.3g} | {min(z):.1f} to {max(z):.1f} |"
        )
    wrong = [one.z for one in found[UNRELATED_TRUTHS[0]] if one.z is not None]
    spread = f"mean {statistics.mean(wrong):.2f}, standard deviation {statistics.stdev(wrong):.2f}"
    spread += f", least {min(wrong):.1f} and largest {max(wrong):.1f}"
    return "\n".join([*rows, "", f"z of the {len(wrong)} wrong parents: {spread}; below {RELATED_Z:g} it is refused."])


def sketch_network(network: HookedTransformer) -> Sketch:
    """Take the sketch of a network in memory."""
    return take_sketch(network.state_dict())


def measure_answers(bases: dict[int, HookedTransformer], children: list[Child]) -> str:
    """Register the bases and what averages are made of, and ask `identify` what each child is."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as name:
        registry = Registry(str(Path(name) / "registry.db"), Path(name) / "store")
        for seed, base in bases.items():
            registry.register_network(f"base/{seed}", base)
        parents = [one for one in children if one.truth in ("fine-tuned heavily", "(second parent of the average)")]
        for one in parents:
            registry.register_network(
                f"tuned/{one.seed}-{'ab'[one.truth.startswith('(')]}", one.network, parent=f"base/{one.seed}"
            )
        for number, child in enumerate(one for one in children if one not in parents):
            found = registry.identify(save_network(child.network, Path(name) / f"{number}"))
            best = found.matches[0]
            kind = best.kind if found.mixture is None or best.kind == "unrelated" else "merge"
            of = best.ref.partition("@")[0]
            family = {f"base/{child.seed}", f"tuned/{child.seed}-a", f"tuned/{child.seed}-b"}
            answers[child.truth][
                _describe(kind, of, family, set(found.mixture.shares) if found.mixture else set())
            ] += 1
        registry.close()
    rows = ["| truth | what `identify` says |", "|---|---|"]
    for truth, counted in answers.items():
        rows.append(f"| {truth} | {', '.join(f'{n} x {answer}' for answer, n in counted.most_common())} |")
    return "\n".join(rows)


def _describe(kind: str, of: str, family: set[str], shares: set[str]) -> str:
    if kind == "unrelated":
        return "unrelated"
    if kind == "merge":
        names = {ref.partition("@")[0] for ref in shares}
        return (
            "merge of the right two" if names == {one for one in family if one[0] == "t"} else f"merge of {len(names)}"
        )
    return f"{kind}, of the right family" if of in family else f"{kind}, of a wrong family"


def write_page(text: str) -> None:
    """Put the tables between the page's markers."""
    page = PAGE.read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
