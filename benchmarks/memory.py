"""Measure the peak private memory of registering a network of about 1 GB, for every way to verify it.

`python -m benchmarks.memory [--dtype float32|bfloat16] [WAY …]` prints a Markdown table. Each registration runs in a
process of its own; what it holds privately (anonymous memory, so without files that are mapped) is sampled every 5 ms,
over what it held when the libraries were loaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from benchmarks.checkpoints import Shape, save_checkpoint
from registry.fetch import ParityChoice

SHAPE = Shape(n_layers=16, d_model=1024, n_heads=16)  # a GPT-NeoX of 305M parameters
WAYS = get_args(ParityChoice)
_CHILD = "from benchmarks.memory import register; import sys; register(*sys.argv[1:])"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="*", metavar="WAY", default=WAYS)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--folder", help="where to write, if not to the folder for temporary files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lensreg-bench-", dir=arguments.folder) as name:
        source = Path(name) / "source"
        save_checkpoint(source, replace(SHAPE, dtype=arguments.dtype))
        print("| dtype | bytes of weights | --parity | peak private memory, bytes | × of the weights |", flush=True)
        print("|---|---|---|---|---|", flush=True)
        size = (source / "model.safetensors").stat().st_size
        for way in arguments.ways:
            command = [sys.executable, "-c", _CHILD, str(source), str(Path(name) / way), way]
            peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            print(f"| {arguments.dtype} | {size:,} | {way} | {peak:,} | {peak / size:.2f} |", flush=True)


def register(source: str, home: str, way: str) -> None:
    """Register in this process and print by how much its private memory grew at most."""
    import registry.verify  # noqa: F401 (with torch, transformers and transformer-lens)
    from registry import Registry

    before = peak = _private_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    opened = Registry(f"{home}.db", f"{home}-store")
    opened.register("it", source, parity=cast(ParityChoice, way))
    done.set()
    watcher.join()
    print(peak - before)


def _private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this needs Linux")


if __name__ == "__main__":
    main()
