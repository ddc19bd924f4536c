"""Searching: what the language means, what it refuses and where, and pages; the same on SQLite and on Postgres."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from registry import Registry, UnknownRef
from registry.architecture import FIELDS
from registry.errors import InvalidInput, InvalidQuery
from registry.search.fields import ARCHITECTURE
from registry.search.grammar import MAX_CHARACTERS, MAX_NESTING, MAX_TESTS, MAX_VALUES, parse_order, parse_search
from registry.tables import architectures
from tests.processes import run_code
from tests.records import make_architecture, record, record_all
from tests.search_registry import fill


@pytest.fixture
def filled(any_registry: Registry) -> Registry:
    """The registry of tests/search_registry.py."""
    fill(any_registry)
    return any_registry


FOUND = [
    ("family = 'gpt2' and metric.loss < 3.2 and descends_from('base@v1')", ["run@v1"]),
    ("descends_from('base')", ["zeta@v2", "zeta@v1", "Team/merge@v1"]),  # a bare name is its newest version, base@v2
    ("descends_from('base@v1') and step is not null", ["zeta@v2", "zeta@v1", "run@v3", "run@v2", "run@v1"]),
    ("descends_from('base@*') and depth = 1", ["Team/merge@v1", "run@v1", "zeta@v1"]),
    ("ancestor_of('run@last')", ["run@v2", "run@v1", "base@v1"]),
    ("alias = 'best'", ["team/b@v1", "base@v1"]),
    ("alias = 'best' and alias = 'x_y'", ["team/b@v1"]),
    ("alias like 'b%' and alias != 'Best'", ["base@v1"]),
    ("relation in ('merged', 'distilled')", ["zeta@v1", "Team/merge@v1"]),
    ("tag.lr = '1e-4' or tag.LR is not null", ["zeta@v2", "team/a@v1", "run@v1"]),
    ('tag."x.y/z-1" = "" and tag.x.y/z-1 = \'\'', ["run@v1"]),
    ("metric.held-out.loss between 3.1 and 3.2", ["zeta@v2", "run@v1"]),
    ("metric.parity.raw <= 1e-6 and d_model = 768", ["zeta@v2", "team/b@v1", "base@v2"]),
    ("metric.loss > 1e300", ["Team/merge@v1"]),
    ("metric.loss = 0", ["team/a@v1"]),
    ("size >= 1GB and size < 1.0995116GB or size = 1TiB", ["team/b@v1", "base@v1"]),
    ("n_parameters > 124K and n_parameters <= 0.124B", ["base@v1"]),
    ("n_parameters = 9007199254740993", ["team/b@v1"]),
    ("n_parameters > 9007199254740992 and step != 5", ["team/b@v1"]),
    ("step = 1.5 or step = 999999999999999", ["team/b@v1"]),
    ("step < 0.5", ["team/a@v1"]),
    ("attn_scale = 11.313708498984761 and eps = 1e-6 and model = 'zeta'", ["zeta@v2"]),
    ("attn_types is not null and gated_mlp and not tie_word_embeddings", ["team/a@v1", "Team/merge@v1"]),
    (r"note like '%日本 \\ [x]*_'", ["run@v3"]),
    ("note like 'IT''S' or note = ''", ["zeta@v1"]),
    ("created_at >= '2026-02-01' and created_at < '2026-02-01T12:00+00:00'", ["Team/merge@v1", "team/a@v1"]),
    ("created_at = '2026-01-30T13:00+01:00'", ["base@v2", "base@v1"]),
    ("weights_digest is null", ["team/a@v1"]),
    ("retired", ["7ac3a97461@v1", "run@v4"]),
    ("retired_at > '2026-01-01' and not verified", ["run@v4"]),
    ("model = \"zeta\" And NOT (step <> 5)", ["zeta@v2", "zeta@v1"]),
    ("not not not verified", ["team/a@v1"]),
]  # fmt: skip


def test_what_is_found(filled: Registry, subtests: pytest.Subtests) -> None:
    for text, refs in FOUND:
        with subtests.test(text=text):
            assert sorted(filled.search_refs(text)) == sorted(refs)


REFUSED = [
    # text, column, what the message says, what the hint says
    ("dmodel = 3", 1, "no field dmodel", "Did you mean d_model?"),
    ("step = 1 and (famly = 'x')", 15, "no field famly", "Did you mean family?"),
    ("Step = 1", 1, "no field Step", "Did you mean step?"),
    ("metric < 3", 1, "no field metric", "metric.NAME"),
    ("model.name = 'x'", 1, "no field model.name", None),
    ("descends_fom('x')", 1, "no function descends_fom", "descends_from"),
    ("descends_from(3)", 15, "wants a ref in quotes", None),
    ("d_model = '768'", 11, "d_model is a number, and '768' is text", "without quotes"),
    ("family = 3", 10, "family is text, and 3 is a number", "in quotes: '3'"),
    ("tag.lr < 1e-3", 10, "tag.lr is text, and 1e-3 is a number", "in quotes: '1e-3'"),
    ("family = llama", 10, "llama is none", "in quotes: 'llama'"),
    ("verified = 1", 12, "verified is true or false, and 1 is a number", None),
    ("step = true", 8, "step is a whole number, and true is true or false", None),
    ("verified < true", 1, "verified is true or false", "not verified"),
    ("verified in (true)", 1, "verified is true or false", None),
    ("family = null", 10, "Nothing is equal to null", "family is null"),
    ("step in (1, null)", 13, "Nothing is equal to null", "step is null"),
    ("step", 1, "step is a whole number, and no test", "step is not null"),
    ("alias > 'a'", 1, "alias is any number of names", "`!=`"),
    ("attn_types = 'local'", 1, "attn_types is a list", None),
    ("step like '1%'", 1, "`like` compares text", None),
    ("note like 'a\\'", 11, "ends in a backslash", None),
    ("size > 1 GB", 10, "`GB` stands here", None),
    ("size > 1gB", 8, "gB is no unit", "GB"),
    ("step > 1GB", 8, "GB is no unit of a whole number", None),
    ("step < 9223372036854775808", 8, "beyond the 64 bits", None),
    ("n_parameters > 1e30", 16, "beyond the 64 bits", None),
    ("metric.loss < 1e999", 15, "no number that a computer can hold", None),
    ("step = 1__0", 8, "no number", None),
    ("created_at > 'yesterday'", 14, "no instant", "'2026-01-31'"),
    ("created_at > 2026-01-31", 18, "`-01` stands here", "in quotes: '2026-01-31'"),
    ("created_at > '0001-01-01T00:00+14:00'", 14, "no instant", None),
    ("created_at > 2026", 14, "created_at is an instant, and 2026 is a number", "in quotes"),
    ("note = 'a\x00b'", 8, "No field can hold", None),
    ("note = '\ud800'", 8, "No field can hold", None),
    ("metric.a.b.c = 1", 1, "too many parts", 'metric."a.b.c"'),
    ("step >> 3", 7, "`>` stands here, where a value should be", None),
    ("step = ", 7, "it ends here, where a value should be", None),
    ("family = 'llama", 10, "does not end", "Close it with '"),
    ("(step = 1", 10, "it ends here", None),
    ("step = 1)", 9, "`)` stands here", None),
    ("step = 1 step = 2", 10, "`step` stands here, where `and`, `or` or the end should be", None),
    ("step in ()", 10, "`)` stands here, where a value should be", None),
    ("step & 3", 6, "`&` stands here", None),
    ("日本 = 3", 1, "`日` stands here", None),
    ("3 = step", 1, "`3` stands here", None),
]


def test_what_cannot_be_meant_is_refused_and_pointed_at(filled: Registry, subtests: pytest.Subtests) -> None:
    for text, column, message, hint in REFUSED:
        with subtests.test(text=text):
            with pytest.raises(InvalidQuery) as refused:
                filled.search(text)
            assert message in refused.value.message
            assert (hint or "") in str(refused.value.hint or "")
            assert refused.value.column == column
            *_, shown, caret = refused.value.message.split("\n")
            assert caret.lstrip() == "^"
            if text.isascii() and text.isprintable():
                assert shown == f"  {text}"
                assert len(caret) == column + 2


def test_the_caret_stays_below_its_place_in_long_and_wide_and_broken_lines() -> None:
    for text, shown in [
        ("note = '日本' and x y", "  note = '日本' and x y\n                      ^"),
        ("step = 1\nand\tstep == 2 3\nor", "  and step == 2 3\n                ^"),
    ]:
        with pytest.raises(InvalidQuery) as refused:
            parse_search(text)
        assert refused.value.message.split("\n", 1)[1] == shown
    long = " and ".join(["step = 1"] * 50) + " and step == == 2 and " + " and ".join(["step = 1"] * 50)
    with pytest.raises(InvalidQuery) as refused:
        parse_search(long)
    line, caret = refused.value.message.split("\n")[1:]
    assert len(line) < 130 and line[len(caret) - 1 :].startswith("== 2")
    assert refused.value.column == long.index("== 2") + 1


def test_a_search_is_bounded(filled: Registry) -> None:
    """At each bound it works, on both databases; beyond it is refused before anything is compiled."""
    nested = "(" * MAX_NESTING + "step = 5" + " or not verified)" * MAX_NESTING
    assert filled.search_refs(nested) == ["zeta@v2", "zeta@v1", "team/a@v1"]
    nested = "not (verified and " * MAX_NESTING + "step = 5" + ")" * MAX_NESTING
    assert len(filled.search_refs(nested)) > 0
    many = " or ".join(["tag.lr = 'x'", "metric.loss < 0", "d_model = 1", "verified"] * (MAX_TESTS // 4))
    assert len(filled.search_refs(many)) == 9
    walks = " or ".join(["descends_from('run@v2')"] * 100)
    assert filled.search_refs(walks) == ["zeta@v2", "zeta@v1", "Team/merge@v1", "run@v3"]
    values = ", ".join(map(str, range(MAX_VALUES)))
    assert filled.search_refs(f"step in ({values}) and step >= 200") == ["run@v3", "run@v2"]
    assert filled.search_refs("not " * 1001 + "verified") == ["team/a@v1"]
    for text, message in [
        ("(" * (MAX_NESTING + 1) + "verified" + ")" * (MAX_NESTING + 1), "nested"),
        ("(" * 5000, "nested"),
        (" or ".join(["verified"] * (MAX_TESTS + 1)), "tests"),
        (f"step in ({values}, 1)", "values"),
        ("verified" + " " * MAX_CHARACTERS, "characters"),
        (f"note like '{'%' * 1001}'", "pattern"),
    ]:
        with pytest.raises(InvalidQuery, match=message):
            filled.search(text)


@given(st.text(max_size=60) | st.text("()'\"=<>!., andortisulkebw0123456789_-%\n", max_size=60))
def test_any_text_is_a_search_or_refused(text: str) -> None:
    for parse in (parse_search, parse_order):
        try:
            parse(text)
        except InvalidQuery as error:
            assert 1 <= error.column <= len(text) + 1


def test_retired_versions_are_found_only_when_asked_for(filled: Registry) -> None:
    assert "run@v4" not in filled.search_refs()
    assert filled.search_refs("model = 'run' and step = 300") == ["run@v3"]
    assert filled.search_refs("model = 'run' and step = 300 and (retired or not retired)") == ["run@v4", "run@v3"]
    assert "run@v4" in filled.search_refs("retired_at is null or retired_at is not null")


def test_order_and_pages(filled: Registry) -> None:
    assert filled.search_refs("model = 'run'") == ["run@v3", "run@v2", "run@v1"], "newest first"
    found = filled.search("metric.loss < 100", order_by="metric.loss desc, -version", show=["tag.lr", "note"])
    assert found.refs == ["base@v2", "zeta@v2", "run@v1", "team/a@v1"]
    assert found[1].values == {"metric.loss": 3.2, "version": 2, "tag.lr": "1e-4", "note": "aa"}
    everything = filled.search_refs(order_by=["-tag.lr", "model"])
    assert everything[:4] == ["run@v2", "run@v1", "zeta@v2", "Team/merge@v1"], "what has no value comes last"
    page = filled.search(order_by="-tag.lr, model", limit=3)
    assert (page.refs, page.after) == (everything[:3], everything[2])
    assert filled.search(order_by="-tag.lr, model", after=page.after).refs == everything[3:]
    assert filled.search(limit=len(everything)).after is None
    for arguments, message in [
        ({"order_by": "stp"}, "no field stp"),
        ({"order_by": "alias"}, "has no order"),
        ({"order_by": "attn_types"}, "has no order"),
        ({"order_by": "step,"}, "it ends here"),
        ({"show": ["relation"]}, "cannot be shown"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": True}, "limit is True"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            filled.search("", **arguments)  # type: ignore[arg-type]
    with pytest.raises(UnknownRef):
        filled.search(after="run@v99")


def test_what_a_function_names_must_be_there(filled: Registry) -> None:
    for text in ("descends_from('bse@v1')", "descends_from('bse@*')"):
        with pytest.raises(UnknownRef) as refused:
            filled.search(text)
        assert refused.value.candidates == ("base",)


def test_nothing_found_says_what_nobody_ever_recorded(filled: Registry) -> None:
    assert filled.search("metric.los < 3").notes == ("No version has metric.los. Did you mean metric.loss?",)
    assert filled.search("tag.nonsense = '3' and metric.loss > 0").notes == ("No version has tag.nonsense.",)
    assert filled.search("metric.loss < -1").notes == ()


def test_a_field_of_another_type_than_it_should_have_is_null(any_registry: Registry) -> None:
    """As somebody's hand, or a later version, may have written it; Postgres would fail on casting it."""
    record(any_registry, "m")
    fields: dict[str, Any] = {
        "d_model": "768",
        "eps": None,
        "act_fn": 3,
        "gated_mlp": 1,
        "n_ctx": True,
        "attn_types": "x",
    }
    with any_registry.database.write() as connection:
        connection.execute(update(architectures).values(fields=fields))
    for name in [*fields, "n_heads"]:
        assert any_registry.search_refs(f"{name} is null") == ["m@v1"], name


def test_the_kinds_of_architecture_fields_are_those_of_their_values() -> None:
    everything = make_architecture(
        positional_embedding_type="rotary", rotary_base=1e4, use_local_attn=True, window_size=4, attn_types=["local"],
        use_NTK_by_parts_rope=True, NTK_by_parts_low_freq_factor=1.0, NTK_by_parts_high_freq_factor=4.0,
        NTK_by_parts_factor=8.0, NTK_original_ctx_len=8192, use_yarn_rope=True, yarn_factor=2.0,
        yarn_attention_factor=1.0, yarn_beta_fast=32.0, yarn_beta_slow=1.0, yarn_original_max_position_embeddings=64,
        use_logn_attn=True, use_dynamic_ntk_rope=True, train_seq_length=64, num_experts=4, experts_per_token=2,
        rotary_base_local=1e4, clip_qkv=8.0, block_variant="gpt_oss",
    ).fields  # fmt: skip
    assert set(everything) == set(ARCHITECTURE) == FIELDS
    kinds = {str: "text", bool: "boolean", int: "number", float: "number", list: "list"}
    assert {name: kinds[type(value)] for name, value in everything.items()} == {
        name: field.kind for name, field in ARCHITECTURE.items()
    }


def test_the_parser_is_imported_only_to_search(registry: Registry) -> None:
    record_all(registry, {"model": "m", "step": 1})
    code = """
import sys
from registry import Registry
one = Registry(values["url"], values["store"])
one.resolve("m"), one.history("m"), one.lineage("m")
before = "lark" in sys.modules
assert one.search_refs("step = 1") == ["m@v1"]
print(before, "lark" in sys.modules, "torch" in sys.modules, "sqlalchemy.orm" in sys.modules)
"""
    url = registry.database.url.database
    assert run_code(code, url=url, store=registry.store.root) == ["False True False False"]
