"""The grammar of names: models, versions, steps, aliases and digests, as people write them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from registry.errors import InvalidInput, InvalidName, InvalidRef

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_NUMBER = re.compile(r"v([1-9][0-9]{0,8})")
_STEP = re.compile(r"step([-~])(0|[1-9][0-9]{0,14})")
_DIGEST = re.compile(r"sha256:([0-9a-f]{6,64})")
_HEX64 = re.compile(r"[0-9a-fA-F]{64}")
_RESERVED_ALIAS = re.compile(r"(v\d*|step\b.*|latest|last)", re.IGNORECASE)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# devices on Windows, whatever follows the first dot (`aux.txt`): no folder or file of such a name can be made
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_RESERVED_MODELS = ("latest", "last")  # what people write behind the @
_TAG_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}")

RefKind = Literal["newest", "number", "step", "nearest", "last", "alias", "digest"]


@dataclass(frozen=True)
class Ref:
    """One parsed ref: a model with what picks its version, or a weights digest's prefix.

    `step` is the step of kind "step", and what the step of kind "nearest" shall be near to.
    """

    kind: RefKind
    model: str | None = None
    number: int | None = None
    step: int | None = None
    alias: str | None = None
    digest_prefix: str | None = None


def check_model_name(name: str) -> str:
    """Return `name` if it may name a model: `name` or `org/name` of letters, digits, `.`, `_` and `-`."""
    segments = name.split("/")
    legal = len(segments) <= 2 and all(_is_legal_segment(segment) for segment in segments)
    if not legal or _HEX64.fullmatch(name):
        raise InvalidName(
            f"{_show(name)} cannot name a model.",
            hint="Use one or two segments, `name` or `org/name`, of letters, digits, `.`, `_` and `-`, "
            "starting with a letter, a digit or `_`.",
            name=name,
        )
    return name


def check_new_model_name(name: str) -> str:
    """Return `name` if a new model may have it; what is stricter here than `check_model_name` leaves old ones be."""
    check_model_name(name)
    segments = name.split("/")
    device = next((segment for segment in segments if _DEVICE.fullmatch(segment)), None)
    if device is not None:
        raise InvalidName(
            f"{name!r} cannot name a new model: {device!r} is the name of a device on Windows.",
            hint="Choose another name, such as one with a word before it: my-" + device,
            name=name,
        )
    if name.lower() in _RESERVED_MODELS or any(_HEX64.fullmatch(segment) for segment in segments):
        raise InvalidName(
            f"{name!r} cannot name a new model: it would be taken for a version or a digest.",
            hint="Choose a name that says what it is; NAME@last and sha256:PREFIX mean something already.",
            name=name,
        )
    return name


def check_alias_name(name: str) -> str:
    """Return `name` if it may be an alias; `v3`, `step-10`, `latest` and `last` have a meaning already."""
    if not _is_legal_segment(name) or _RESERVED_ALIAS.fullmatch(name):
        raise InvalidName(
            f"{_show(name)} cannot be an alias.",
            hint="Use letters, digits, `.`, `_` and `-`; names like `v3`, `step-10`, `latest` and `last` are taken.",
            name=name,
        )
    return name


def check_tag_key(key: str) -> str:
    """Return `key` if it may be the key of a tag."""
    if not _TAG_KEY.fullmatch(key):
        raise InvalidName(
            f"{_show(key)} cannot be a tag's key.",
            hint="Use letters, digits, `.`, `_`, `/` and `-`; write a tag as key=value.",
            name=key,
        )
    return key


def check_text(text: str, what: str, limit: int = 10_000) -> str:
    """Return `text` if every database stores it alike: no NUL, no lone surrogates, at most `limit` characters."""
    is_text = isinstance(text, str)  # a tag's value is easily given as a number
    if not is_text or len(text) > limit or _UNSTORABLE.search(text):
        raise InvalidInput(
            f"The {what} cannot be stored.",
            hint=f"It must be text without NUL or lone surrogates, of at most {limit:,} characters.",
        )
    return text


def check_limit(limit: int | None) -> int | None:
    """Return `limit` if it may bound a list; None is no bound."""
    if limit is not None and not (type(limit) is int and 0 <= limit < 2**31):
        raise InvalidInput(f"{str(limit)[:100]!r} is no number of rows.", hint="Leave it out to have all of them.")
    return limit


def check_count(count: int, what: str) -> int:
    """Return `count` if it is a whole number that every database can hold."""
    if type(count) is not int or not -(2**63) <= count < 2**63:
        raise InvalidInput(f"{str(count)[:100]!r} is no {what}.", hint="It is a whole number of at most 64 bits.")
    return count


def check_instant(instant: datetime) -> datetime:
    """Return an instant in UTC, in which everything is kept."""
    if instant.tzinfo is None:
        raise InvalidInput(f"{instant.isoformat()} says no time zone.", hint="Say which one, as in 2026-01-31T12:00Z.")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(
            f"{instant.isoformat()} is beyond the years 1 to 9999 in UTC.", hint="Give another one."
        ) from None


def parse_ref(text: str) -> Ref:
    """Parse `NAME`, `NAME@vN`, `NAME@step-N`, `NAME@step~N`, `NAME@last`, `NAME@ALIAS` or `sha256:PREFIX`."""
    if match := _DIGEST.fullmatch(text):
        return Ref("digest", digest_prefix=match[1])
    if text.startswith("sha256:"):
        raise InvalidRef(
            f"{_show(text)} is not a digest.",
            hint="Write sha256: and at least 6 of its 64 lower-case hex digits.",
            ref=text,
        )
    name, at, selector = text.partition("@")
    try:
        check_model_name(name)
    except InvalidName as error:
        raise InvalidRef(f"{_show(text)} is not a ref: {error.message}", hint=error.hint, ref=text) from None
    if not at:
        return Ref("newest", model=name)
    if match := _NUMBER.fullmatch(selector):
        return Ref("number", model=name, number=int(match[1]))
    if match := _STEP.fullmatch(selector):
        return Ref("step" if match[1] == "-" else "nearest", model=name, step=int(match[2]))
    if selector == "last":
        return Ref("last", model=name)
    try:
        return Ref("alias", model=name, alias=check_alias_name(selector))
    except InvalidName:
        raise InvalidRef(
            f"{_show(text)} is not a ref: nothing can be called {_show(selector)}.",
            hint="Write NAME, NAME@vN, NAME@step-N, NAME@step~N, NAME@last, NAME@ALIAS or sha256:PREFIX.",
            ref=text,
        ) from None


def find_similar(text: str, names: Iterable[str]) -> list[str]:
    """Return the few of `names` that somebody who wrote `text` may have meant, best first."""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(text.lower(), by_lower, n=3, cutoff=0.6)
    return [by_lower[name] for name in close]


def _show(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:100]!r}… ({len(text):,} characters)"


def _is_legal_segment(segment: str) -> bool:
    return bool(_SEGMENT.fullmatch(segment)) and ".." not in segment and not segment.endswith(".")
