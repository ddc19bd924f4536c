"""Measure loading, registering and starting up against the usual ways, side by side in one run: `make bench`.

Writes docs/benchmarks.md. Ratios are what counts: machines are noisy, and both sides of a ratio share the noise.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformer_lens import HookedTransformer
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

from registry import Registry
from registry.families.family import check_config
from registry.families.gpt2 import FAMILY
from registry.networks import make_hooked_config
from registry.quiet import quiet

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
# 124M parameters, as gpt2-small
CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}


@dataclass(frozen=True)
class Row:
    """One comparison: median seconds of ours and of the other way, with the spread of ours."""

    what: str
    ours: list[float]
    other: str
    others: list[float]

    def as_markdown(self) -> str:
        """Write the row of a Markdown table."""
        ours, others = statistics.median(self.ours), statistics.median(self.others)
        spread = f"{min(self.ours):.2f}–{max(self.ours):.2f}"
        return f"| {self.what} | {ours:.2f} s ({spread}) | {self.other} | {others:.2f} s | {others / ours:.1f} |"


def main() -> None:
    """Run every comparison and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory(prefix="lensreg-bench-") as name:
        folder = Path(name)
        checkpoint = save_checkpoint(folder / "checkpoint")
        registry = Registry(str(folder / "registry.db"), folder / "store")
        registry.register("gpt2", checkpoint)
        rows = [
            compare_load(registry, checkpoint, repeat),
            compare_register(folder, checkpoint, repeat),
            *compare_commands(registry, folder, repeat),
        ]
        registry.close()
    PAGE.write_text(write_page(rows, repeat))
    print(PAGE.read_text())


def save_checkpoint(folder: Path) -> Path:
    """Save a GPT-2 of 124M parameters, as initialised."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    return folder


def compare_load(registry: Registry, checkpoint: Path, repeat: int) -> Row:
    """Compare `load` with transformer-lens's own recipe for the same weights."""
    architecture = FAMILY.describe(check_config(FAMILY, CONFIG))

    def recipe() -> object:
        with quiet():
            source = GPT2LMHeadModel.from_pretrained(checkpoint)
            cfg = make_hooked_config(architecture, FAMILY, folded=False, dtype=torch.float32, device="cpu")
            network = HookedTransformer(cfg)
            state = convert_gpt2_weights(source, cfg)
            state["unembed.b_U"] = torch.zeros(cfg.d_vocab)
            network.load_and_process_state_dict(state)
        return network

    ours, others = measure(lambda: registry.load("gpt2", device="cpu"), recipe, repeat)
    return Row("load, processed, every blob hashed", ours, "`load_and_process_state_dict` as `from_pretrained`", others)


def compare_register(folder: Path, checkpoint: Path, repeat: int) -> Row:
    """Compare registering (without verification) with hashing and copying the same bytes."""
    names = iter(range(10_000))

    def ours() -> object:
        name = f"copy-{next(names)}"
        registry = Registry(str(folder / f"{name}.db"), folder / f"{name}-store")
        done = registry.register(name, checkpoint, parity="skip")
        registry.close()
        shutil.rmtree(folder / f"{name}-store")
        return done

    def other() -> None:
        files = [str(path) for path in checkpoint.iterdir()]
        subprocess.run(["sha256sum", *files], check=True, capture_output=True)
        target = folder / "plain-copy"
        subprocess.run(["cp", "-r", str(checkpoint), str(target)], check=True)
        shutil.rmtree(target)

    mine, others = measure(ours, other, repeat)
    return Row("register, without verification", mine, "`sha256sum` + `cp`", others)


def compare_commands(registry: Registry, folder: Path, repeat: int) -> list[Row]:
    """Compare whole processes with importing what they might have imported."""
    lensreg = [sys.executable, "-m", "cli.main"]
    where = ["--registry", str(folder / "registry.db"), "--store", str(folder / "store")]

    def call(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run(command, check=True, capture_output=True)

    torch_import = call(sys.executable, "-c", "import torch")
    return [
        Row(f"`lensreg {shown}`", *_pair(measure(call(*lensreg, *command), torch_import, repeat), "`import torch`"))
        for shown, command in (
            ("--help", ["--help"]),
            ("ls", [*where, "ls"]),
            ("show gpt2", [*where, "show", "gpt2"]),
            ("path gpt2", [*where, "path", "gpt2"]),
        )
    ]


def measure(ours: Callable[[], object], other: Callable[[], object], repeat: int) -> tuple[list[float], list[float]]:
    """Time both in turn, after one call of each to warm up."""
    ours()
    other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for function, seconds in zip((ours, other), times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times


def write_page(rows: list[Row], repeat: int) -> str:
    """Return the page with all rows."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens", "sqlalchemy")
    )
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench`: medians of {repeat} warm runs (lowest–highest), both sides in turn in one run, on a",
        f"GPT-2 of 124M parameters. {platform.machine()}, Python {platform.python_version()}, {packages}.",
        "",
        "| what | lensreg | against | takes | times faster |",
        "|---|---|---|---|---|",
        *[row.as_markdown() for row in rows],
        "",
    ]
    return "\n".join(lines)


def _pair(times: tuple[list[float], list[float]], other: str) -> tuple[list[float], str, list[float]]:
    return times[0], other, times[1]


if __name__ == "__main__":
    main()
