"""Run every fault scenario within a time, print the table, and fail on a breach or on a control that found nothing.

python -m tests.faults [--seconds 180] [--only NAME …] [--seed N] [--write]
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# before anything reads them: nothing here may ask a network, or write to the user's cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # they are forked
os.environ.setdefault("OMP_NUM_THREADS", "1")
# in memory where there is room: a kill leaves the same behind there, and nobody waits for a disk
_MEMORY = Path("/dev/shm")
_HAS_MEMORY = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2**30
_FOLDER = Path(tempfile.mkdtemp(prefix="lensreg-faults-", dir=_MEMORY if _HAS_MEMORY else None))
tempfile.tempdir = str(_FOLDER)
os.environ["LENSREG_STAMPS"] = str(_FOLDER / "stamps")

import argparse  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402

from tests.faults.running import find_failures, find_scenarios, run_all  # noqa: E402
from tests.faults.table import make_table, print_table  # noqa: E402
from tests.reliability_page import write_section  # noqa: E402

_SHOWN = 30


def main() -> int:
    """Run what the command line asks for; return 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Provoke faults, and look for breaches."
    )
    parser.add_argument("--seconds", type=float, default=180, help="for all scenarios together")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="scenarios, or modules of them")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**9) if asked.seed is None else asked.seed
    scenarios = find_scenarios(asked.only)
    print(f"{len(scenarios)} scenarios in {asked.seconds:.0f} s, seed {seed}, in {_FOLDER}", flush=True)
    rows = run_all(scenarios, _FOLDER, seed, asked.seconds)
    print_table(rows)
    failures = find_failures(rows)
    for failure in failures[:_SHOWN]:
        print(failure)
    if asked.write:
        write_section("faults", make_table(rows, asked.seconds))
    if failures:
        print(f"{len(failures)} failures. What was broken lies in {_FOLDER}; to repeat: --seed {seed}")
    else:
        shutil.rmtree(_FOLDER, ignore_errors=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
