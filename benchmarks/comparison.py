"""Measure `lensreg diff` on the demo's pair, SmolLM2-135M and its fine-tune, and write docs/comparison.md.

    python -m benchmarks.comparison [--folder .demo] [--report FILE] [--parallel N]

Needs the registry that `lensreg demo --folder FOLDER` made there. Each comparison is a command in a process of its own,
as people run it. The figures go between the page's markers, and the pictures into docs/images/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.page import write_bytes
from benchmarks.processes import Peak, watch

ROOT = Path(__file__).parent.parent
PAGE, IMAGES = ROOT / "docs" / "comparison.md", ROOT / "docs" / "images"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PROMPTS, DATA = "benchmarks/prompts.txt", "cli/demo/pirate.txt"
BASE, TUNED = "smollm2", "pirate"
MODEL_BYTES = 134_515_008 * 4
LIBRARIES = "import registry.load, registry.hooked_transformer, matplotlib.figure"
ALL, SOME_DATA = ["diff", "--weights", "--prompts", PROMPTS], ["diff", "--data", DATA, "--max-tokens", "500"]
NONE = "the libraries alone, imported"
DRAWN = "all of it, both in memory"
WAYS = {
    NONE: ["-c", LIBRARIES],
    DRAWN: [*ALL, "--both-at-once"],
    "all of it, one at a time": [*ALL, "--one-at-a-time"],
    "500 tokens of data, both in memory": [*SOME_DATA, "--both-at-once"],
    "500 tokens of data, one at a time": [*SOME_DATA, "--one-at-a-time"],
}


def main() -> None:
    """Measure, draw, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the demo worked")
    parser.add_argument("--report", type=Path, help="keep the HTML page here")
    parser.add_argument("--parallel", type=int, default=1, help="how many commands run at once")
    given = parser.parse_args()
    workshop = given.folder.resolve() / "lensreg-tour"
    if not (workshop / "registry.db").exists():
        raise SystemExit(f"There is no demo in {given.folder}: lensreg demo --folder {given.folder}")
    environment = {
        **os.environ,
        "LENSREG_URL": str(workshop / "registry.db"),
        "LENSREG_STORE": str(workshop / "store"),
        "PYTHONPATH": str(ROOT),
    }
    machine = describe_machine({})[:4]
    with tempfile.TemporaryDirectory(prefix="lensreg-bench-") as name:

        def measure(way: str) -> Peak:
            folder = Path(name) / str(list(WAYS).index(way))
            drawn = ["--report", str(folder / "report.html"), "--pictures", str(folder)]
            folder.mkdir()
            peak = watch(_command(WAYS[way], drawn if "--weights" in WAYS[way] else []), environment)
            print(f"{way}: {peak}", flush=True)
            return peak

        with ThreadPoolExecutor(given.parallel) as pool:
            peaks = dict(zip(WAYS, pool.map(measure, WAYS), strict=True))
        folder = Path(name) / str(list(WAYS).index(DRAWN))
        _keep_pictures(folder)
        if given.report:
            shutil.copy(folder / "report.html", given.report)
    said = (
        f"- {given.parallel} of these commands at a time, each on {_count_threads()} threads; load average at the end"
    )
    write_page("\n".join([*machine, said, f"  {os.getloadavg()[0]:.1f}", "", *_write_table(peaks)]))


def _keep_pictures(folder: Path) -> None:
    for old in IMAGES.glob("compare-*.png"):
        old.unlink()
    patterns = sorted(folder.glob("pattern-*.png"), key=lambda path: path.stat().st_mtime_ns)
    for picture in folder.glob("*.png"):
        if picture not in patterns:
            shutil.copy(picture, IMAGES / f"compare-{picture.name}")
    shutil.copy(patterns[0], IMAGES / "compare-pattern-most.png")  # they are drawn in the order of how far they moved


def _count_threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _command(arguments: list[str], drawn: list[str]) -> list[str]:
    if arguments[0] == "-c":
        return [sys.executable, *arguments]
    command, *options = arguments
    run = "import sys; from cli.main import main; main(sys.argv[1:])"
    return [sys.executable, "-c", run, command, BASE, TUNED, *options, *drawn]


def _write_table(peaks: dict[str, Peak]) -> list[str]:
    rows = [
        "| what | seconds | processor seconds | private | with mapped pages | beyond the libraries | × the model |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, one in peaks.items():
        more = one.resident - peaks[NONE].resident
        rows.append(
            f"| {way} | {one.seconds:.0f} | {one.processor_seconds:.0f} | {write_bytes(one.private)} | "
            f"{write_bytes(one.resident)} | {write_bytes(more)} | {more / MODEL_BYTES:.2f} |"
        )
    return rows


def write_page(text: str) -> None:
    """Put the figures between the page's markers."""
    page = PAGE.read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
