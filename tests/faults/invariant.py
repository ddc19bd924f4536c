"""What must hold after any fault: versions whole, numbers without gaps, events one chain, nothing acknowledged lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from registry import Registry
from registry.said import CAME_IN


def find_breaches(registry: Registry, acknowledged: Iterable[str] = ()) -> list[str]:
    """Return every breach in words; `acknowledged` are the refs of versions that somebody was told are registered."""
    done = registry.verify(read_data=True)
    broken = [f"{fault.code} {fault.subject[:16]}: {fault.message}" for fault in done.faults]
    there: set[str] = set()
    for model in registry.models():
        numbers = sorted(version.number for version in registry.history(model.name))
        there |= {f"{model.name}@v{number}" for number in numbers}
        if numbers != list(range(1, len(numbers) + 1)):
            broken.append(f"the versions of {model.name} have gaps: {numbers}")
    broken += [f"{ref} was acknowledged and is lost" for ref in sorted(set(acknowledged) - there)]
    events = registry.events()
    registered = [event.subject for event in events if event.action in CAME_IN]
    if sorted(registered) != sorted(there):
        broken.append(f"{len(registered)} events registered {len(there)} versions")
    return broken


def read_acknowledged(path: Path) -> list[str]:
    """Return the refs that a process wrote to `path`, a line each, after it was told; a torn last line is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
