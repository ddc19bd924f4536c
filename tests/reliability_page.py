"""docs/reliability.md, where the suites of faults, hostile files and mutated ones write what came of a run."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put a text between the marks of that name, in place of what is there."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = page.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise SystemExit(f"{page} has no {opening} … {closing}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
