"""Progress bars on a terminal, and quiet in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.progress import Progress


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Give a function that shows each stage as a bar on stderr, for as long as the block runs."""
    from registry.progress import no_progress

    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(file=sys.stderr)  # holds on to the stream while the libraries' own chatter is turned away
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        waiting = bars.add_task("reading", total=None)
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            bars.update(waiting, visible=False)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
