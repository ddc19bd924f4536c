"""Run a network on batches, and on smaller ones where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def run_batches(items: Iterable[T], run: Callable[[Sequence[T]], R], size: int) -> Iterator[tuple[Sequence[T], R]]:
    """Call `run` on `size` items at a time, and give the items with what came of them.

    Where memory runs out the batch is halved, and stays so; one item alone that does not fit raises.
    """
    source = iter(items)
    while batch := list(islice(source, size)):
        waiting = [batch]
        while waiting:
            part = waiting.pop(0)
            try:
                done = run(part)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                size = max(1, len(part) // 2)
                waiting = [part[start : start + size] for start in range(0, len(part), size)] + waiting
                _let_go()
                continue
            yield part, done


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is for want of memory; torch has a class for it on GPUs, and a message on the CPU."""
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in said


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
