"""Measure registering a folder of 1, 4 and 16 files against hashing and copying the same bytes, in turn in one run.

`python benchmarks/registering.py [--repeat N] [--only N_FILES …]` prints a Markdown table. Registering is without
parity, and the search for NaN and infinities that remains is measured by itself. Seconds of both sides share the
machine's noise, so that the ratio is what counts; CPU seconds (user and system, children too) are less noisy still.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from registry import Registry, verify
from registry.quiet import quiet

CONFIG = LlamaConfig(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=32000,
)


@dataclass(frozen=True)
class Taken:
    """The seconds of one call, by the clock and of the processors."""

    wall: float
    cpu: float


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--folder", help="where to write, if not to the folder for temporary files")
    arguments = parser.parse_args()
    print("| files | bytes | | s | CPU s | × of `sha256sum` + `cp` | × CPU |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="lensreg-bench-", dir=arguments.folder) as name:
        for n_files in arguments.only:
            source = save_checkpoint(Path(name) / f"source-{n_files}", n_files)
            compare(Path(name), source, n_files, arguments.repeat)
            shutil.rmtree(source)


def save_checkpoint(folder: Path, n_files: int, dtype: torch.dtype = torch.float32) -> Path:
    """Save a Llama of 270M parameters, in `n_files` files of about the same size."""
    torch.manual_seed(0)
    with quiet():
        network = LlamaForCausalLM(CONFIG).to(dtype)
    folder.mkdir()
    config = {**network.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = network.state_dict()
    per_file = sum(tensor.nbytes for tensor in tensors.values()) / n_files
    weight_map: dict[str, str] = {}
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(n_files)]
    filled = 0.0
    for key, tensor in tensors.items():
        number = min(int((filled + tensor.nbytes / 2) / per_file), n_files - 1)
        shards[number][key] = tensor
        weight_map[key] = f"model-{number + 1:05}-of-{n_files:05}.safetensors"
        filled += tensor.nbytes
    if n_files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number + 1:05}-of-{n_files:05}.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def compare(folder: Path, source: Path, n_files: int, repeat: int) -> None:
    """Measure every way `repeat` times, in turn, and print a row for each."""
    files = [str(path) for path in sorted(source.iterdir())]
    finite: list[Taken] = []
    check = verify.check_finite

    def check_and_time(tensors: Mapping[str, torch.Tensor]) -> None:
        finite.append(measure(lambda: check(tensors)))

    verify.check_finite = check_and_time
    target = folder / "target"
    ways: dict[str, Callable[[], object]] = {
        "`sha256sum` + `cp`": lambda: (run("sha256sum", *files), copy(files, target)),
        "`openssl dgst -sha256` + `cp`": lambda: (run("openssl", "dgst", "-sha256", *files), copy(files, target)),
        "`openssl` + `cp` + `sync`": lambda: (
            run("openssl", "dgst", "-sha256", *files),
            copy(files, target),
            run("sync", *map(str, target.iterdir())),
        ),
        "registered": lambda: register(folder, source),
        "registered, linked": lambda: register(folder, source, link=True),
        "registered again": lambda: register(folder, source, again=True),
    }
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    for turn in range(repeat + 1):  # the first to warm up
        for way, call in ways.items():
            if way == "registered again":
                register(folder, source)
            os.sync()
            one = measure(call)
            if turn:
                taken[way].append(one)
            clear(folder)
    verify.check_finite = check
    taken["of that, the search for NaN"] = finite[1:]
    rival = next(iter(taken.values()))
    size = sum(Path(file).stat().st_size for file in files)
    for way, times in taken.items():
        wall, cpu = (statistics.median(getattr(one, kind) for one in times) for kind in ("wall", "cpu"))
        walls, cpus = (statistics.median(getattr(one, kind) for one in rival) for kind in ("wall", "cpu"))
        print(
            f"| {n_files} | {size:,} | {way} | {wall:.2f} | {cpu:.2f} | {wall / walls:.2f} | {cpu / cpus:.2f} |",
            flush=True,
        )


def register(folder: Path, source: Path, *, link: bool = False, again: bool = False) -> None:
    """Register the source in a registry of its own, or once more in the one that holds it already."""
    registry = Registry(str(folder / "registry.db"), folder / "store")
    done = registry.register("it", source, parity="skip", link=link)
    assert done.outcome == ("unchanged" if again else "registered")
    registry.close()


def clear(folder: Path) -> None:
    """Delete what was written."""
    for path in (folder / "target", folder / "store"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("registry.db*"):
        path.unlink()


def copy(files: list[str], target: Path) -> None:
    """Copy with `cp`."""
    target.mkdir()
    run("cp", *files, str(target))


def run(*command: str) -> None:
    """Run a command."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(call: Callable[[], object]) -> Taken:
    """Take the time of one call."""
    before, start = _cpu_seconds(), time.perf_counter()
    call()
    return Taken(time.perf_counter() - start, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
