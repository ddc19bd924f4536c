"""Single values out of JSON that nobody vouches for: each is of its kind and within bounds, or MalformedExport."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from registry.errors import InvalidInput, MalformedExport
from registry.plain_text import clean_line
from registry.refs import parse_ref
from registry.transfer.form import encode
from registry.weights import MAX_DIMENSIONS, MAX_NAME_BYTES

MAX_BYTES = 64 * 2**20
"""Of a manifest, and of a record."""
MAX_LISTED = 1_000_000
MAX_DEPTH = 100
MAX_NUMBER = 2**62
_LONG_TEXT = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")

T = TypeVar("T")


def load(text: bytes, what: str) -> Any:
    """Read canonical JSON of bounded size and depth, which holds nothing that a database stores otherwise."""
    if len(text) > MAX_BYTES:
        raise malformed(f"{what} has {len(text):,} bytes")
    try:
        value = json.loads(text)
        if encode(value) != text:
            raise malformed(f"{what} is not written in the canonical form, so it was altered")
    except RecursionError:
        raise malformed(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise malformed(f"{what} is not JSON ({error})") from None
    _check_values(value, what)
    return value


def _check_values(value: Any, what: str) -> None:
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise malformed(f"{what} is nested too deeply")
        if isinstance(one, dict):
            waiting += [(part, depth + 1) for item in one.items() for part in item]
        elif isinstance(one, list):
            waiting += [(part, depth + 1) for part in one]
        elif isinstance(one, str) and _UNSTORABLE.search(one):
            raise malformed(f"{what} holds text that not every database can store")
        elif type(one) is int and not -MAX_NUMBER < one < MAX_NUMBER:
            raise malformed(f"{what} holds a number that is too big")


def fields(value: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    """Return an object that has exactly these fields."""
    found = plain_object(value, what)
    if set(found) != set(names):
        odd = ", ".join(sorted(set(found) ^ set(names))[:5])
        raise malformed(f"{what} does not have the fields that it should: {odd[:200]}")
    return found


def plain_object(value: Any, what: str) -> dict[str, Any]:
    """Return an object, whatever is in it."""
    if not isinstance(value, dict):
        raise malformed(f"{what} is no JSON object")
    return value


def list_of(value: Any, what: str, each: Callable[[Any], T], limit: int = MAX_LISTED) -> tuple[T, ...]:
    """Return what `each` makes of every member of a list."""
    if not isinstance(value, list) or len(value) > limit:
        raise malformed(f"{what} is no list, or too long a list")
    return tuple(each(one) for one in value)


def maybe(value: Any, parse: Callable[[Any], T]) -> T | None:
    """Return None for null, else what `parse` makes of it."""
    return None if value is None else parse(value)


def string(value: Any, what: str, limit: int = _LONG_TEXT) -> str:
    """Return text of at most `limit` characters."""
    if not isinstance(value, str) or len(value) > limit:
        raise malformed(f"{what} is no text, or too long a text")
    return value


def matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    """Return text that is wholly what the pattern says."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise malformed(f"{what} is called {str(value)[:80]!r}")
    return value


def digest(value: Any, what: str) -> str:
    """Return a SHA-256 in lower-case hex."""
    return matching(_DIGEST, value, f"the digest of {what}")


def is_commit(value: Any) -> bool:
    """Say whether it is a Git commit's SHA-1."""
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


def ref(value: Any) -> str:
    """Return a ref of the kind NAME@vN."""
    text = string(value, "a ref", 300)
    try:
        kind = parse_ref(text).kind
    except InvalidInput as error:
        raise malformed(error.message) from None
    if kind != "number":
        raise malformed(f"{text!r} is not NAME@vN")
    return text


def one_of(value: Any, known: tuple[str, ...], what: str) -> str:
    """Return text that is one of those known."""
    if not isinstance(value, str) or value not in known:
        raise malformed(f"{what} is {str(value)[:80]!r}, and not one of {', '.join(known[:20])}")
    return value


def number(value: Any, what: str, least: int = 0, most: int = MAX_NUMBER) -> int:
    """Return a whole number within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise malformed(f"{what} is {str(value)[:80]}")
    return value


def real(value: Any, what: str) -> float:
    """Return a number."""
    if type(value) not in (int, float):
        raise malformed(f"{what} is {str(value)[:80]!r}, which is no number")
    return float(value)


def boolean(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise malformed(f"{str(value)[:80]!r} is neither true nor false")
    return value


def instant(value: Any) -> datetime:
    """Return an instant, in UTC."""
    try:
        instant = datetime.fromisoformat(string(value, "an instant", 40))
        if instant.tzinfo is None:
            raise ValueError("no time zone")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise malformed(f"{str(value)[:40]!r} is no instant with a time zone") from None


def shape(value: Any) -> tuple[int, ...]:
    """Return a tensor's shape."""
    return list_of(value, "a shape", lambda one: number(one, "a shape"), MAX_DIMENSIONS)


def tensor_name(value: Any) -> str:
    """Return the name of a tensor, in which nothing is hidden."""
    name = string(value, "a tensor's name", MAX_NAME_BYTES)
    if not name.isprintable() or not name:
        raise malformed("a tensor's name is empty or holds control characters")
    return name


def malformed(what: str) -> MalformedExport:
    """Return the error that says what is wrong."""
    return MalformedExport(
        f"The export cannot be received: {clean_line(what)[:1000]}. Nothing was changed.",
        hint="Ask whoever made it to export it again, and compare the digest that lensreg export printed: "
        "lensreg import SOURCE --expect sha256:…",
    )
