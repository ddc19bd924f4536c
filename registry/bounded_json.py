"""JSON that nobody vouches for, parsed within bounds of memory and depth: no key twice, no NaN, no half characters.

Python needs 64 bytes for `[]`, and four for every letter of a text in which one is an emoji: three megabytes become
a hundred. So values are counted before they are made.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

MAX_DEPTH = 64
MAX_WIDE_BYTES = 6 * 2**20


class BadJsonError(ValueError):
    """What is wrong, as the end of a sentence that begins with what holds the JSON."""


def parse_json(content: bytes, *, max_values: int, constants: bool = False) -> Any:
    """Parse JSON in UTF-8 that holds at most about `max_values` values, or raise BadJsonError.

    `constants` lets NaN and infinities pass.
    """
    count_values(content, max_values)
    if len(content) > MAX_WIDE_BYTES and not content.isascii():
        raise BadJsonError(f"has {len(content):,} bytes that are not all ASCII")
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_make_unique,
            parse_constant=float if constants else _refuse_constant,
            parse_float=float if constants else _parse_float,
        )
    except RecursionError:
        raise BadJsonError("is nested too deeply") from None
    except BadJsonError:
        raise
    except ValueError as error:
        raise BadJsonError(f"is not JSON ({error})") from None
    _check_values(value)
    return value


def count_values(content: bytes, max_values: int) -> None:
    """Raise BadJsonError if there may be more values; commas and brackets within texts count, too."""
    # each value but the first follows one of these, or a colon, before which there was one of these
    n_values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if n_values > max_values:
        raise BadJsonError(f"holds more than {max_values:,} values")


def _check_values(value: Any) -> None:
    """Refuse what is nested deeply, which whoever walks through it may not survive, and text that cannot be written."""
    layer, depth = [value], 0
    while layer:
        if depth > MAX_DEPTH:
            raise BadJsonError("is nested too deeply")
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner += one
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and not one.isascii():
                _check_text(one)
        layer, depth = inner, depth + 1


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadJsonError("holds half of a character (a lone surrogate)") from None


def _make_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise BadJsonError(f"has the key {twice[:80]!r} twice")
    return unique


def _parse_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        _refuse_constant(text)
    return number


def _refuse_constant(text: str) -> None:
    raise BadJsonError(f"holds {text[:40]}")
