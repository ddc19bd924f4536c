"""What events say that a version's rows hold: as it came in, with what came to it since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REGISTERED, RECEIVED, FETCHED, JOINED = "version.registered", "version.received", "version.fetched", "parent.joined"
WEIGHED = "parents.weighed"
CAME_IN = (REGISTERED, RECEIVED)
"""How a version comes in: one such event for every version."""
SAYING = (*CAME_IN, FETCHED, JOINED, WEIGHED)


def take_in(said: dict[str, Any] | None, action: str, details: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is said of a version after one more of its events; None is nothing yet."""
    if action in CAME_IN:
        return {"evidence": {}, **details}
    if said is None:
        return None
    evidence = details.get("evidence") or {}
    if action == FETCHED:
        said = {**said, "weights_digest": details.get("weights_digest")}
    parents, parent = said.get("parents", {}), details.get("parent")
    if action == JOINED and isinstance(parents, dict) and isinstance(parent, str):
        said = {**said, "parents": {**parents, parent: details.get("relation")}}
        evidence = {parent: evidence} if evidence else {}
    before = said.get("evidence")
    if isinstance(before, dict) and isinstance(evidence, dict):
        said = {**said, "evidence": {**before, **evidence}}
    return said
