"""Judge the whole corpus and print a table; `--write` puts it into docs/reliability.md, between its marks."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence

from tests.reliability_page import write_section


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    parser.add_argument("--only", default="", help="judge cases with this in their names only")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", LENSREG_STAMPS=tempfile.mkdtemp())
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked child waits for ever for threads that only its parent has
    try:
        table, faults = judge_all(options.only)
    finally:
        shutil.rmtree(os.environ["LENSREG_STAMPS"], ignore_errors=True)
    print(table)
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    if options.write and not faults and not options.only:
        write_section("hostile", table)
    return bool(faults)


def judge_all(only: str = "") -> tuple[str, list[str]]:
    """Judge every case; return the table, in Markdown, and all faults."""
    from tests.hostile.corpus import CASES
    from tests.hostile.judge import Judgement, judge

    groups: dict[str, list[Judgement]] = {}
    for case in CASES:
        if only in case.name:
            groups.setdefault(case.group, []).append(judge(case))
    groups = dict(sorted(groups.items()))
    rows = [_make_row(name, judged) for name, judged in groups.items()]
    every = [one for judged in groups.values() for one in judged]
    head = ["what", "files", "verdicts", "slowest verdict", "most memory"]
    rows = [head, ["---", "--:", "---", "--:", "--:"], *rows, _make_row("**all**", every)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), [fault for one in every for fault in one.faults]


def _make_row(name: str, judged: Sequence[object]) -> list[str]:
    from tests.hostile.judge import Judgement

    done = [one for one in judged if isinstance(one, Judgement)]
    verdicts = ", ".join(f"{code} {n}" for code, n in Counter(one.verdict for one in done).most_common())
    slowest, most = max(one.seconds for one in done), max(one.peak_bytes for one in done)
    return [name, str(len(done)), verdicts, f"{slowest:.1f} s", f"{most / 2**20:.0f} MB"]


if __name__ == "__main__":
    raise SystemExit(main())
