"""Which cases of a large corpus this run takes: others in every run, the same for the same seed.

All processes of a run share $LENSREG_TEST_SEED, which pytest prints; with $LENSREG_TEST_SHARE=1 (`make test-long`)
every case is taken.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

Case = TypeVar("Case")
SEED = os.environ.setdefault("LENSREG_TEST_SEED", str(random.SystemRandom().randrange(10**6)))
SHARE = float(os.environ.setdefault("LENSREG_TEST_SHARE", "0.2"))


def is_sampled(case: str, times: float = 1.0) -> bool:
    """Say whether this run takes the case of this name; with `times` that is so many times likelier than the share."""
    return random.Random(f"{SEED} {case}").random() < SHARE * times


def take_sample(cases: Sequence[Case], name: Callable[[Case], str]) -> list[Case]:
    """Return the cases that this run takes, one at least."""
    return [one for one in cases if is_sampled(name(one))] or [cases[int(SEED) % len(cases)]]
