"""Measure `lensreg diff` on the demo's pair, SmolLM2-135M and its fine-tune, and write docs/comparison.md.

    python -m benchmarks.comparison [--folder .demo] [--report FILE]

Needs the registry that `lensreg demo --folder FOLDER` made there. Each comparison is a command in a process of its own,
as people run it. The figures go between the page's markers, and the pictures into docs/images/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
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
WAYS = (
    ("the libraries alone, imported", ["-c", LIBRARIES]),
    ("records", ["diff"]),
    ("records and weights", ["diff", "--weights"]),
    ("all of it, both in memory", ["diff", "--weights", "--prompts", PROMPTS, "--both-at-once"]),
    ("all of it, one at a time", ["diff", "--weights", "--prompts", PROMPTS, "--one-at-a-time"]),
    ("behaviour on 1,000 tokens of data", ["diff", "--data", DATA, "--max-tokens", "1000", "--both-at-once"]),
    ("the same, one at a time", ["diff", "--data", DATA, "--max-tokens", "1000", "--one-at-a-time"]),
)


def main() -> None:
    """Measure, draw, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the demo worked")
    parser.add_argument("--report", type=Path, help="keep the HTML page here")
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
    machine = describe_machine({})
    with tempfile.TemporaryDirectory(prefix="lensreg-bench-") as name:
        report = Path(name) / "report.html"
        drawn = ["--report", str(report), "--pictures", str(Path(name) / "pictures")]
        peaks = {}
        for what, arguments in WAYS:
            peaks[what] = watch(_command(arguments, drawn if "--prompts" in arguments else []), environment)
            print(what, peaks[what], flush=True)
        for old in IMAGES.glob("compare-*.png"):
            old.unlink()
        for picture in sorted((Path(name) / "pictures").iterdir()):
            shutil.copy(picture, IMAGES / f"compare-{picture.name}")
        if given.report:
            shutil.copy(report, given.report)
    write_page("\n".join([*machine[:3], machine[3], "", *_write_table(peaks)]))


def _command(arguments: list[str], drawn: list[str]) -> list[str]:
    if arguments[0] == "-c":
        return [sys.executable, *arguments]
    command, *options = arguments
    run = "import sys; from cli.main import main; main(sys.argv[1:])"
    return [sys.executable, "-c", run, command, BASE, TUNED, *options, *drawn]


def _write_table(peaks: dict[str, Peak]) -> list[str]:
    (_, none), *others = peaks.items()
    rows = [
        "| what | seconds | processor seconds | private | with mapped pages | beyond the libraries | × the model |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, one in [("the libraries alone, imported", none), *others]:
        more = max(0, one.resident - none.resident)
        rows.append(
            f"| {what} | {one.seconds:.0f} | {one.processor_seconds:.0f} | {write_bytes(one.private)} | "
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
