"""What was measured, and how it is written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.timing import median_of

MANY = 50  # of more calls than this, the spread is given without the outermost twentieths


@dataclass(frozen=True)
class Line:
    """One way to do something: the seconds of every call, or why it was not measured."""

    way: str
    seconds: tuple[float, ...] = ()
    private_bytes: int | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Entry:
    """One thing to do, and the ways to do it; the first is ours."""

    what: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Bound:
    """What issue 4 or the design demands; `why` is printed when it is missed."""

    what: str
    sense: Literal["at most", "at least"]
    limit: float
    measured: float | None
    unit: str
    why: str

    @property
    def held(self) -> bool | None:
        """None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.sense == "at most" else self.measured >= self.limit


@dataclass(frozen=True)
class Section:
    """What one subject measured; `command` makes it again."""

    title: str
    command: str
    text: Sequence[str] = ()
    entries: Sequence[Entry] = ()
    bounds: Sequence[Bound] = ()
    pictures: Sequence[str] = ()
    """Markdown of the pictures, and what was fitted."""


def write_page(machine: Sequence[str], sections: Sequence[Section], *, quick: bool) -> str:
    """Return the whole page."""
    warning = ["**Sizes for a quick look: these numbers say nothing.**", ""] if quick else []
    bounds = [bound for section in sections for bound in section.bounds]
    parts = [
        "# Benchmarks",
        "",
        "Written by `make bench` in one run. Each table names in its second column what was timed; the first line is",
        "lensreg's, and the last column says how many times as long the others took. Medians; the spread is lowest to",
        f"highest, or without the outermost twentieths where there were more than {MANY} calls. The sides of a table",
        "took turns, so that what else the machine did fell on all of them. Nothing that is imported or done once in a",
        "process is in the times, except where whole processes are timed.",
        "",
        *warning,
        *machine,
        "",
        "## Bounds",
        "",
        *_write_bounds(bounds),
        *(line for section in sections for line in _write_section(section)),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _write_bounds(bounds: Sequence[Bound]) -> list[str]:
    rows = ["| what | bound | measured | of the bound | |", "|---|---|---|---|---|"]
    missed = []
    for bound in bounds:
        limit = f"{bound.sense} {_number(bound.limit)} {bound.unit}"
        if bound.measured is None:
            rows.append(f"| {bound.what} | {limit} | not measured | | |")
            continue
        share = bound.measured / bound.limit
        held = "held" if bound.held else "**missed**"
        rows.append(f"| {bound.what} | {limit} | {_number(bound.measured)} {bound.unit} | {share:.2f} | {held} |")
        if not bound.held:
            by = share - 1 if bound.sense == "at most" else 1 - share
            missed.append(f"- **{bound.what}**: missed by {by:.0%} of the bound. {bound.why}")
    why = ["What was missed, and why:", "", *missed, ""] if missed else []
    return [*rows, "", *why]


def _write_section(section: Section) -> list[str]:
    lines = [f"## {section.title}", "", *section.text, "", f"`{section.command}`", ""]
    for entry in section.entries:
        lines += _write_entry(entry)
    for picture in section.pictures:
        lines += [picture, ""]
    return lines


def _write_entry(entry: Entry) -> list[str]:
    ours = median_of(entry.lines[0].seconds) if entry.lines[0].seconds else None
    memory = any(line.private_bytes is not None for line in entry.lines)
    rows = [
        f"| {entry.what} | | median | spread (calls) |{' private memory |' if memory else ''} times ours |",
        "|---|---|---|---|---|" + ("---|" if memory else ""),
    ]
    for index, line in enumerate(entry.lines):
        who = "**lensreg**" if index == 0 else ""
        if not line.seconds:
            rows.append(f"| {who} | {line.way} | — | {line.missing or 'not measured'} |{' |' if memory else ''} |")
            continue
        median = median_of(line.seconds)
        cells = [who, line.way, write_seconds(median), _write_spread(line.seconds)]
        if memory:
            cells.append(write_bytes(line.private_bytes) if line.private_bytes is not None else "")
        ratio = "" if index == 0 or not ours else _number(median / ours)
        rows.append("| " + " | ".join([*cells, ratio]) + " |")
    return [*rows, ""]


def write_seconds(seconds: float) -> str:
    """Write a time with three digits and its unit."""
    if seconds < 1e-6:
        return f"{_digits(seconds * 1e9)} ns"
    if seconds < 1e-3:
        return f"{_digits(seconds * 1e6)} µs"
    return f"{_digits(seconds * 1e3)} ms" if seconds < 1 else f"{_digits(seconds)} s"


def write_bytes(size: int) -> str:
    """Write a size in MB or GB."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _write_spread(seconds: tuple[float, ...]) -> str:
    ordered = sorted(seconds)
    cut = len(ordered) // 20 if len(ordered) > MANY else 0
    low, high = ordered[cut], ordered[-1 - cut]
    return f"{write_seconds(low)} – {write_seconds(high)} ({len(seconds):,})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
