"""Which cases of a large corpus this run takes: others for every commit, the same wherever a commit is tested.

So what fails somewhere fails for whoever looks into it. All processes of a run share $LENSREG_TEST_SEED, which pytest
prints; with $LENSREG_TEST_SHARE=1 (`make test-long`) every case is taken.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Case = TypeVar("Case")


def _choose_seed() -> str:
    """Return a number that goes by the files of the commit that is checked out; without one, any."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD^{tree}"]
    try:
        tree = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return str(random.SystemRandom().randrange(10**6))
    return str(int(tree, 16) % 10**6)


SEED = os.environ.get("LENSREG_TEST_SEED") or _choose_seed()
os.environ["LENSREG_TEST_SEED"] = SEED
SHARE = float(os.environ.setdefault("LENSREG_TEST_SHARE", "0.1"))


def is_sampled(case: str, times: float = 1.0) -> bool:
    """Say whether this run takes the case of this name; with `times` that is so many times likelier than the share."""
    return random.Random(f"{SEED} {case}").random() < SHARE * times


def take_sample(cases: Sequence[Case], name: Callable[[Case], str]) -> list[Case]:
    """Return the cases that this run takes, one at least."""
    return [one for one in cases if is_sampled(name(one))] or [cases[int(SEED) % len(cases)]]
