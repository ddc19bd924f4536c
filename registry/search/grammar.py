"""The grammar of searches: from text to a tree, or to an error that points at the place."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

import lark

from registry.errors import InvalidQuery
from registry.search import syntax

MAX_CHARACTERS = 10_000
MAX_NESTING = 15  # SQLite's own parser takes about 19 levels of what these become
MAX_TESTS = 200
MAX_VALUES = 1_000
_SHOWN_AROUND = 60

GRAMMAR = r"""
?search: any
?any: all (_OR all)* -> any
?all: negation (_AND negation)* -> all
?negation: NOT* test -> negation
?test: "(" any ")"
    | FIELD COMPARES value -> comparison
    | FIELD [NOT] _IN "(" value ("," value)* ")" -> membership
    | FIELD [NOT] _LIKE value -> like
    | FIELD [NOT] _BETWEEN value _AND value -> between
    | FIELD _IS [NOT] NULL -> is_null
    | FIELD "(" value ")" -> call
    | FIELD -> truth
?value: TEXT -> text
    | NUMBER -> number
    | TRUE -> true
    | FALSE -> false
    | NULL -> null
    | FIELD -> bare_word

order: term ("," term)*
term: [MINUS] FIELD [DIRECTION]

COMPARES: "<=" | ">=" | "!=" | "<>" | "==" | "=" | "<" | ">"
MINUS: "-"
_AND.2: /and\b/i
_OR.2: /or\b/i
NOT.2: /not\b/i
_IN.2: /in\b/i
_LIKE.2: /like\b/i
_BETWEEN.2: /between\b/i
_IS.2: /is\b/i
NULL.2: /null\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
DIRECTION.2: /(asc|desc)\b/i
FIELD: /[A-Za-z_][A-Za-z0-9_]*(\.([A-Za-z0-9_][A-Za-z0-9_\/-]*|"([^"]|"")+"|'([^']|'')+'))*/
TEXT: /'([^']|'')*'|"([^"]|"")*"/
NUMBER: /[+-]?([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?[A-Za-z]*/
%ignore /\s+/
"""

# what a reader of an error is told may stand somewhere, by lark's terminals
_SAID = {
    "FIELD": "a field",
    "TEXT": "a value",
    "NUMBER": "a value",
    "COMPARES": "a comparison",
    "_AND": "`and`",
    "_OR": "`or`",
    "NOT": "`not`",
    "_IN": "`in`",
    "_LIKE": "`like`",
    "_BETWEEN": "`between`",
    "_IS": "`is`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "COMMA": "`,`",
    "MINUS": "`-`",
    "DIRECTION": "`asc`, `desc`",
    "$END": "the end",
}
_PART = re.compile(r"""\.?(?:"((?:[^"]|"")+)"|'((?:[^']|'')+)'|([^."']+))""")
_NUMBER = re.compile(r"([+-]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)")
_TEXTS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")


def parse_search(text: str) -> syntax.Test | None:
    """Read a search; None is one that says nothing and finds everything. Raises InvalidQuery."""
    _refuse_oversized(text)
    if not text.strip():
        return None
    test: syntax.Test = _parse(text, "search")
    return test


def parse_order(text: str) -> tuple[syntax.Order, ...]:
    """Read an order: `-metric.loss, model`. Raises InvalidQuery."""
    _refuse_oversized(text)
    terms: tuple[syntax.Order, ...] = _parse(text, "order") if text.strip() else ()
    return terms


def point_at(text: str, start: int) -> str:
    """Return the line of `text` that holds the offset `start`, cut to what is around, and a caret below the place."""
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    column = start - line_start
    first, last = max(0, column - _SHOWN_AROUND), column + _SHOWN_AROUND
    before = ("…" if first else "") + line[first:column]
    after = line[column:last] + ("…" if last < len(line) else "")
    shown = "".join(one if one.isprintable() else " " for one in before + after)
    return f"  {shown}\n  {' ' * _measure(before)}^"


def refuse(text: str, start: int, message: str, *, hint: str | None = None, **fields: Any) -> InvalidQuery:
    """Make the error that says `message` and points at the offset `start` of `text`."""
    return InvalidQuery(f"{message}\n{point_at(text, start)}", column=start + 1, hint=hint, **fields)


def _measure(text: str) -> int:
    """Count the columns that a terminal takes for `text`."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _refuse_oversized(text: str) -> None:
    """Keep within what both databases, and Python's stack, can take."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidQuery(
            f"The search has {len(text):,} characters; it may have {MAX_CHARACTERS:,}.", column=MAX_CHARACTERS + 1
        )
    depth = 0
    for match in re.finditer(r"[()]", _TEXTS.sub(lambda text: " " * len(text[0]), text)):
        depth += 1 if match[0] == "(" else -1
        if depth > MAX_NESTING:
            raise refuse(text, match.start(), f"Parentheses are nested more than {MAX_NESTING} deep.")


def _parse(text: str, start: str) -> Any:
    try:
        return _Reader(text).transform(_parser().parse(text, start=start))
    except lark.exceptions.VisitError as error:
        raise error.orig_exc from None
    except lark.UnexpectedCharacters as error:
        raise _explain_character(text, error) from None
    except lark.UnexpectedToken as error:
        at = error.token.start_pos
        ended = error.token.type == "$END" or at is None
        found = "it ends here" if ended else f"`{_shorten(error.token)}` stands here"
        raise _refuse_syntax(text, len(text.rstrip()) if ended else at or 0, found, error.accepts) from None


def _explain_character(text: str, error: lark.UnexpectedCharacters) -> InvalidQuery:
    at = error.pos_in_stream or 0
    if text[at] in "'\"":
        return refuse(text, at, "The text that begins here does not end.", hint=f"Close it with {text[at]}")
    return _refuse_syntax(text, at, f"`{text[at]}` stands here", error.allowed or ())


def _refuse_syntax(text: str, at: int, found: str, expected: Iterable[str]) -> InvalidQuery:
    terminals = set(expected)
    if "TEXT" in terminals:
        terminals -= {"FIELD"}  # it is read as a value only to be refused with a better reason
    *some, last = list(dict.fromkeys(said for name, said in _SAID.items() if name in terminals)) or ["nothing"]
    wanted = f"{', '.join(some)} or {last}" if some else last
    looks_like_date = re.search(r"[0-9]{4}$", text[:at]) and text[at : at + 1] == "-"
    hint = "Dates are written in quotes: '2026-01-31'." if looks_like_date else None
    return refuse(text, at, f"The search cannot be read: {found}, where {wanted} should be.", hint=hint)


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


@cache
def _parser() -> lark.Lark:
    return lark.Lark(GRAMMAR, parser="lalr", start=["search", "order"], maybe_placeholders=True)


def _read_name(token: lark.Token) -> syntax.Name:
    parts = []
    for double, single, plain in _PART.findall(token):
        parts.append(double.replace('""', '"') or single.replace("''", "'") or plain)
    return syntax.Name(tuple(parts), token.start_pos or 0)


class _Reader(lark.Transformer[lark.Token, Any]):
    """Turn lark's tree into ours, from the leaves up; lark calls the method of a rule's name with its children."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._n_tests = 0

    def FIELD(self, token: lark.Token) -> syntax.Name:  # noqa: N802 - lark's name of the terminal
        return _read_name(token)

    def any(self, tests: list[syntax.Test]) -> syntax.Test:
        return tests[0] if len(tests) == 1 else syntax.Any(tuple(tests))

    def all(self, tests: list[syntax.Test]) -> syntax.Test:
        return tests[0] if len(tests) == 1 else syntax.All(tuple(tests))

    def negation(self, children: list[Any]) -> syntax.Test:
        *negations, test = children
        return _negate(test, len(negations) % 2 == 1)

    def comparison(self, children: list[Any]) -> syntax.Test:
        field, operator, value = children
        return self._count(syntax.Comparison(field, _OPERATORS.get(str(operator), str(operator)), value))

    def membership(self, children: list[Any]) -> syntax.Test:
        field, negation, *values = children
        if len(values) > MAX_VALUES:
            raise refuse(self._text, values[MAX_VALUES].start, f"A list holds at most {MAX_VALUES:,} values.")
        return _negate(self._count(syntax.Membership(field, tuple(values))), negation)

    def like(self, children: list[Any]) -> syntax.Test:
        field, negation, pattern = children
        return _negate(self._count(syntax.Like(field, pattern)), negation)

    def between(self, children: list[Any]) -> syntax.Test:
        field, negation, low, high = children
        return _negate(self._count(syntax.Between(field, low, high)), negation)

    def is_null(self, children: list[Any]) -> syntax.Test:
        field, negation, _ = children
        return _negate(self._count(syntax.IsNull(field)), negation)

    def call(self, children: list[Any]) -> syntax.Test:
        function, argument = children
        return self._count(syntax.Call(function, argument))

    def truth(self, children: list[syntax.Name]) -> syntax.Test:
        return self._count(syntax.Truth(children[0]))

    def text(self, children: list[lark.Token]) -> syntax.Value:
        quote = children[0][0]
        return _take(children[0], children[0][1:-1].replace(quote * 2, quote))

    def true(self, children: list[lark.Token]) -> syntax.Value:
        return _take(children[0], True)

    def false(self, children: list[lark.Token]) -> syntax.Value:
        return _take(children[0], False)

    def null(self, children: list[lark.Token]) -> syntax.Value:
        return _take(children[0], None)

    def number(self, children: list[lark.Token]) -> syntax.Value:
        token = children[0]
        digits, unit = match.groups() if (match := _NUMBER.fullmatch(token)) else (str(token), "")
        try:
            value = float(digits) if any(one in digits for one in ".eE") else int(digits)
        except ValueError:  # 1__0, or thousands of digits
            value = math.inf
        if value in (math.inf, -math.inf):
            raise refuse(self._text, token.start_pos or 0, "This is no number that a computer can hold.")
        return syntax.Value(value, str(token), token.start_pos or 0, unit)

    def bare_word(self, children: list[syntax.Name]) -> syntax.Value:
        name = children[0]
        raise refuse(
            self._text,
            name.start,
            f"A value is wanted here, and {name} is none.",
            hint=f"Text is written in quotes: '{name}'. Fields are compared with values only.",
        )

    def order(self, terms: list[syntax.Order]) -> tuple[syntax.Order, ...]:
        return tuple(terms)

    def term(self, children: list[Any]) -> syntax.Order:
        minus, field, direction = children
        descending = str(direction).lower() == "desc"
        return syntax.Order(field, descending != (minus is not None))

    def _count(self, test: syntax.Test) -> syntax.Test:
        self._n_tests += 1
        if self._n_tests > MAX_TESTS:
            raise InvalidQuery(
                f"The search has more than {MAX_TESTS} tests.",
                column=MAX_TESTS,
                hint="Write field in (…) for many values of one field, or search in steps.",
            )
        return test


_OPERATORS: dict[str, Any] = {"==": "=", "<>": "!="}


def _negate(test: syntax.Test, negated: Any) -> syntax.Test:
    return syntax.Not(test) if negated else test


def _take(token: lark.Token, value: str | bool | None) -> syntax.Value:
    return syntax.Value(value, str(token), token.start_pos or 0)
