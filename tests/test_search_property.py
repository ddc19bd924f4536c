"""Random searches, evaluated by a naive evaluator in Python, get the same answer from SQLite and from Postgres."""

from __future__ import annotations

import operator
import re
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from registry import Registry
from registry.search.fields import ARCHITECTURE, VERSION_FIELDS
from tests.search_registry import FIRST, SPECS, fill

TEXT_FIELDS = ["model", "family", "note", "layout", "tag.lr", "tag.LR", "tag.x.y/z-1", "tag.no", "act_fn"]
NUMBER_FIELDS = ["version", "step", "n_parameters", "size", "depth", "metric.loss", "metric.held-out.loss"]
NUMBER_FIELDS += ["metric.parity.raw", "metric.nothing.loss", "d_model", "eps", "attn_scale", "window_size", "d_mlp"]
NUMBER_FIELDS += ["rotary_base", "attn_scores_soft_cap"]
BOOLEAN_FIELDS = ["verified", "retired", "gated_mlp", "tie_word_embeddings", "yarn_truncate"]
NAME_FIELDS = ["alias", "relation"]
WHOLE = {"version", "step", "n_parameters", "size", "depth"}

TEXTS = ["", "gpt2", "llama", "Llama", "base", "run", "team/a", "Team/merge", "1e-4", "3e-4", "it's", "IT'S", "%", "aa"]
TEXTS += [
    "100% of a_b",
    'say "no"',
    "Ünïcode 日本 \\ [x]*?",
    "line\nline",
    "huggingface",
    "silu",
    "zeta",
    "é",
    "\U0001f3f4",
]
NUMBERS: list[int | float] = [0, 1, 2, 3, 5, 100, 200, 300, 64, 768, 10**9, 2**40, 2**53, 2**53 + 1, 2**63 - 1, -1]
NUMBERS += [3.1, 3.2, 2.9, 3.5, 1e-6, 1e-5, 11.313708498984761, 1.5, 99.99, 500000, 50.0, -(2**63)]
NAMES = ["best", "Best", "last-good", "x_y", "finetuned", "continued", "merged", "nothing", ""]
PATTERNS = [
    "%",
    "_",
    "",
    "%a%",
    "run",
    "R%",
    "i_'s",
    "I%",
    "%\\%%",
    "%a\\_b",
    "%[x]%",
    "%*?",
    "%日本%",
    "team/_",
    "%\n%",
    "be%",
]
INSTANTS = ["2026-01-30", "2026-01-30T12:00", "2026-01-31T01:00+01:00", "2026-02-01T00:00:00.000001Z", "1999-12-31"]
OPERATORS = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
REFS = [f"{spec.model}@v{sum(one.model == spec.model for one in SPECS[: at + 1])}" for at, spec in enumerate(SPECS)]

Test = tuple[Any, ...]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_texts = st.tuples(st.sampled_from(TEXT_FIELDS), st.sampled_from(list(OPERATORS)), st.sampled_from(TEXTS))
_numbers = st.tuples(st.sampled_from(NUMBER_FIELDS), st.sampled_from(list(OPERATORS)), st.sampled_from(NUMBERS))
_instants = st.tuples(st.just("created_at"), st.sampled_from(list(OPERATORS)), st.sampled_from(INSTANTS))
_tests: st.SearchStrategy[Test] = st.one_of(
    st.tuples(st.just("compare"), st.one_of(_texts, _numbers, _instants)),
    st.tuples(st.just("in"), st.sampled_from(TEXT_FIELDS), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)),
    st.tuples(
        st.just("in"), st.sampled_from(NUMBER_FIELDS), st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3)
    ),
    st.tuples(st.just("between"), st.sampled_from(TEXT_FIELDS), st.sampled_from(TEXTS), st.sampled_from(TEXTS)),
    st.tuples(st.just("between"), st.sampled_from(NUMBER_FIELDS), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS)),
    st.tuples(st.just("like"), st.sampled_from(TEXT_FIELDS), st.sampled_from(PATTERNS)),
    st.tuples(
        st.just("null"), st.sampled_from([*TEXT_FIELDS, *NUMBER_FIELDS, *NAME_FIELDS, "attn_types", "gated_mlp"])
    ),
    st.tuples(st.just("true"), st.sampled_from(BOOLEAN_FIELDS)),
    st.tuples(st.just("is"), st.sampled_from(BOOLEAN_FIELDS), st.sampled_from(["=", "!="]), st.booleans()),
    st.tuples(st.just("name"), st.sampled_from(NAME_FIELDS), st.sampled_from(["=", "!="]), st.sampled_from(NAMES)),
    st.tuples(
        st.just("names in"), st.sampled_from(NAME_FIELDS), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
    ),
    st.tuples(st.just("names like"), st.sampled_from(NAME_FIELDS), st.sampled_from(PATTERNS)),
    st.tuples(st.just("descends_from"), st.sampled_from([*REFS, "base@*", "run@*"])),
    st.tuples(st.just("ancestor_of"), st.sampled_from([*REFS, "zeta@*", "run@last"])),
)
_searches: st.SearchStrategy[Test] = st.recursive(
    _tests,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.just("and"), st.lists(inner, min_size=2, max_size=3)),
        st.tuples(st.just("or"), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)
_ORDERED = ["model", "note", "step", "metric.loss", "depth", "created_at", "verified", "eps", "tag.lr"]
_orders = st.lists(st.tuples(st.sampled_from(_ORDERED), st.booleans()), max_size=3, unique_by=lambda term: str(term[0]))


def _write(test: Test) -> str:  # noqa: C901 - a case for each kind of test
    """Write a test as people would."""
    match test:
        case ("compare", (field, sign, value)):
            return f"{field} {sign} {_literal(value)}"
        case ("in" | "names in", field, values):
            return f"{field} IN ({', '.join(map(_literal, values))})"
        case ("between", field, low, high):
            return f"{field} between {_literal(low)} And {_literal(high)}"
        case ("like" | "names like", field, pattern):
            return f"{field} Like {_quote(pattern)}"
        case ("null", field):
            return f"{field} is null"
        case ("true", field):
            return str(field)
        case ("is", field, sign, value):
            return f"{field} {sign} {str(value).lower()}"
        case ("name", field, sign, value):
            return f"{field} {sign} {_quote(value)}"
        case ("not", inner):
            return f"not ({_write(inner)})"
        case ("and" | "or" as word, tests):
            return f" {word} ".join(f"({_write(one)})" for one in tests)
        case (function, ref):
            return f"{function}({_quote(ref)})"
    raise AssertionError(test)


def _literal(value: str | int | float) -> str:
    return _quote(value) if isinstance(value, str) else repr(value)


def _holds(test: Test, row: dict[str, Any], rows: list[dict[str, Any]]) -> bool | None:  # noqa: C901 - as `_write`
    """Evaluate a test of one row, naively, in three-valued logic."""
    match test:
        case ("compare", (field, sign, value)):
            bound = _instant(value) if field == "created_at" else value
            return None if row[field] is None else OPERATORS[sign](row[field], bound)
        case ("in", field, values):
            return None if row[field] is None else row[field] in values
        case ("between", field, low, high):
            return None if row[field] is None else low <= row[field] <= high
        case ("like", field, pattern):
            return None if row[field] is None else _like(row[field], pattern)
        case ("null", field):
            return not row[field] if isinstance(row[field], set) else row[field] is None
        case ("true", field):
            return row[field]  # type: ignore[no-any-return]
        case ("is", field, sign, value):
            return None if row[field] is None else OPERATORS[sign](row[field], value)
        case ("name", field, sign, value):
            return (value in row[field]) == (sign == "=")
        case ("names in", field, values):
            return bool(row[field] & set(values))
        case ("names like", field, pattern):
            return any(_like(one, pattern) for one in row[field])
        case ("not", inner):
            found = _holds(inner, row, rows)
            return None if found is None else not found
        case ("and", tests):
            found_all = [_holds(one, row, rows) for one in tests]
            return False if False in found_all else None if None in found_all else True
        case ("or", tests):
            found_all = [_holds(one, row, rows) for one in tests]
            return True if True in found_all else None if None in found_all else False
        case ("descends_from", ref):
            return bool(row["ancestors"] & _meant(ref, rows))
        case ("ancestor_of", ref):
            return bool(row["descendants"] & _meant(ref, rows))
    raise AssertionError(test)


def _meant(ref: str, rows: list[dict[str, Any]]) -> set[str]:
    if ref == "run@last":
        return {"run@v3"}
    return {row["ref"] for row in rows if row["ref"] == ref or ref == f"{row['model']}@*"}


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _like(text: str, pattern: str) -> bool:
    parts = re.findall(r"\\.|[^\\]", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return bool(re.fullmatch("".join(wild.get(one) or re.escape(one[-1]) for one in parts), text, re.DOTALL))


def _mentions_retired(test: Test) -> bool:
    return "retired" in re.sub(r"'[^']*'", "", _write(test))


def _sort(rows: list[dict[str, Any]], order: list[tuple[str, bool]]) -> list[dict[str, Any]]:
    found = sorted(rows, key=lambda row: row["id"], reverse=True)
    for field, descending in reversed(order):
        there = sorted((row for row in found if row[field] is not None), key=lambda row: row[field], reverse=descending)
        found = there + [row for row in found if row[field] is None]
    return found


def test_any_search_finds_what_a_naive_evaluator_finds(any_registry: Registry) -> None:
    rows = fill(any_registry)
    assert {row["created_at"] for row in rows} > {FIRST}

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_searches, _orders, st.integers(1, 5))
    def check(test: Test, order: list[tuple[str, bool]], limit: int) -> None:
        text = _write(test)
        shown = rows if _mentions_retired(test) else [row for row in rows if not row["retired"]]
        expected = [row["ref"] for row in _sort([row for row in shown if _holds(test, row, rows) is True], order)]
        event(f"{min(len(expected), 3)} found")
        order_by = ", ".join(("-" if descending else "") + field for field, descending in order)
        assert any_registry.search_refs(text, order_by=order_by) == expected
        pages, after = [], None
        while True:
            page = any_registry.search(text, order_by=order_by, limit=limit, after=after)
            pages += page.refs
            after = page.after
            if after is None:
                break
        assert pages == expected

    check()


def test_the_fields_of_the_property_are_those_of_every_kind() -> None:
    kinds = {field.kind for field in (*VERSION_FIELDS.values(), *ARCHITECTURE.values())}
    tested = {*TEXT_FIELDS, *NUMBER_FIELDS, *BOOLEAN_FIELDS, *NAME_FIELDS, "created_at", "attn_types", "weights_digest"}
    assert kinds == {(VERSION_FIELDS | ARCHITECTURE)[name].kind for name in tested if "." not in name}
