"""Mutate real files, judge what the registry says to each, and print a table; fail on a single fault.

python -m tests.hostile.fuzz [--cases 100000] [--seconds S] [--seed N] [--case N] [--paths 10000] [--write]
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
# in memory where there is room: nobody waits for a disk, then
_MEMORY = Path("/dev/shm")
_HAS_MEMORY = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2**30
_FOLDER = Path(tempfile.mkdtemp(prefix="lensreg-fuzz-", dir=_MEMORY if _HAS_MEMORY else None))
tempfile.tempdir = str(_FOLDER)
os.environ["LENSREG_STAMPS"] = str(_FOLDER / "stamps")

import argparse  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

from tests.hostile.fuzz.judging import judge_batch, warm_up  # noqa: E402
from tests.hostile.fuzz.paths import find_ways_out  # noqa: E402
from tests.hostile.fuzz.running import fuzz, make_table  # noqa: E402
from tests.reliability_page import write_section  # noqa: E402

_SHOWN = 30


def main() -> int:
    """Do what the command line asks for; return 1 if anything was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile.fuzz",
        description="Mutate real files, and look for what is neither refused nor right.",
    )
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=None, help="end after so many, however many cases were judged")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    parser.add_argument("--case", type=int, default=None, help="judge this one only, in this process")
    parser.add_argument("--paths", type=int, default=10_000, help="how many names and paths try to lead elsewhere")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**9) if asked.seed is None else asked.seed
    warm_up()
    if asked.case is not None:
        (_FOLDER / "one").mkdir()
        judge_batch(seed, [asked.case], _FOLDER / "one", lambda said: print(json.dumps(said)))
        return 0
    began = time.monotonic()
    verdicts = fuzz(seed, asked.cases, _FOLDER, asked.jobs, asked.seconds)
    seconds = max(1.0, time.monotonic() - began)
    table = make_table(verdicts)
    print(table)
    speed = f"{len(verdicts):,} cases in {seconds:.0f} s, {len(verdicts) / seconds:.0f} a second, seed {seed}"
    print(speed, flush=True)
    ways = find_ways_out(seed, asked.paths)
    print(ways.describe())
    for breach in ways.breaches[:_SHOWN]:
        print(f"FAULT {breach}")
    n_faults = sum(bool(one.fault) for one in verdicts) + len(ways.breaches)
    if asked.write and not n_faults:
        write_section("fuzz", f"The last run that was written down: {speed}.\n\n{table}\n\n{ways.describe()}")
    if n_faults:
        print(f"{n_faults} faults. The files lie in {_FOLDER}/findings; to repeat one: --seed {seed} --case N")
        return 1
    shutil.rmtree(_FOLDER, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
