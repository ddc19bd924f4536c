"""The grammar of names: what may be written, what is refused, and that nothing else ever comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidInput, InvalidName, InvalidRef
from registry.refs import (
    Ref,
    check_alias_name,
    check_model_name,
    check_tag_key,
    check_text,
    find_similar,
    parse_ref,
)

GOOD_NAMES = ["gpt2", "GPT2", "team/pirate-gpt2", "_x", "0", "a.b", "a-b_c.d", "v3", "best", "x" * 96, "o/" + "x" * 96]
BAD_NAMES = [
    "",
    ".",
    "..",
    "/x",
    "x/",
    "a//b",
    "a/b/c",
    "a/../b",
    "../b",
    "a/..",
    "a..b",
    ".hidden",
    "a/.hidden",
    "-x",
    "a/-x",
    "trailing.",
    "a/trailing.",
    "a b",
    " a",
    "a ",
    "a\n",
    "a\x00",
    "a\tb",
    "a\\b",
    "C:x",
    "a%2e%2e",
    "a?b",
    "a#b",
    "a;b",
    "a*",
    "~a",
    "$a",
    "a@b",
    "a:b",
    "x" * 97,
    "x" * 10_000,
    "0123456789abcdef" * 4,
    "0123456789ABCDEF" * 4,
    "gрt2",  # a Cyrillic letter
    "café",
    "cafe\u0301",
    "ｇｐｔ２",
    "gpt\u00b2",
    "\u0663",  # an Arabic-Indic digit
    "\u202egpt2",
    "gpt2\u200b",
    "\udcff",
]
BAD_ALIASES = ["", "v3", "V3", "v", "v0", "v99999999999", "step", "step-10", "STEP-1", "step.x", "latest", "Latest"]
BAD_ALIASES += ["last", "Last", "step~5", "a/b", "a b", "-a", ".a", "a.", "a..b", "a\n", "best\x00", "x" * 97, "ｂest"]
GOOD_ALIASES = [
    "best",
    "v1.0",
    "prod",
    "v3x",
    "version3",
    "steps",
    "step_1",
    "latest-2",
    "lasting",
    "2026-01-31",
    "x" * 96,
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_taken_as_it_is(name: str) -> None:
    assert check_model_name(name) == name
    assert parse_ref(name) == Ref("newest", model=name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:40])
def test_a_bad_name_is_refused_by_itself_and_within_a_ref(name: str) -> None:
    with pytest.raises(InvalidName) as refused:
        check_model_name(name)
    assert refused.value.hint
    assert refused.value.fields["name"] == name
    assert len(refused.value.message) < 300, "a long name must not fill the screen"
    for ref in (f"{name}@v1", f"{name}@best"):
        with pytest.raises(InvalidRef) as refused_ref:
            parse_ref(ref)
        assert len(str(refused_ref.value)) < 900


@pytest.mark.parametrize("alias", GOOD_ALIASES)
def test_a_good_alias_is_taken_as_it_is(alias: str) -> None:
    assert check_alias_name(alias) == alias
    assert parse_ref(f"org/m@{alias}") == Ref("alias", model="org/m", alias=alias)


@pytest.mark.parametrize("alias", BAD_ALIASES, ids=lambda alias: repr(alias)[:40])
def test_what_means_something_else_already_is_no_alias(alias: str) -> None:
    with pytest.raises(InvalidName):
        check_alias_name(alias)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("m", Ref("newest", model="m")),
        ("m@v1", Ref("number", model="m", number=1)),
        ("org/m@v999999999", Ref("number", model="org/m", number=999_999_999)),
        ("m@step-0", Ref("step", model="m", step=0)),
        ("m@step-999999999999999", Ref("step", model="m", step=10**15 - 1)),
        ("m@step~0", Ref("nearest", model="m", step=0)),
        ("org/m@step~1500", Ref("nearest", model="org/m", step=1500)),
        ("m@last", Ref("last", model="m")),
        ("m@best", Ref("alias", model="m", alias="best")),
        ("sha256:abc123", Ref("digest", digest_prefix="abc123")),
        ("sha256:" + "a" * 64, Ref("digest", digest_prefix="a" * 64)),
    ],
)
def test_each_kind_of_ref(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "@v1",
        "m@",
        "m@v0",
        "m@v01",
        "m@V1",
        "m@v1000000000",
        "m@v٣",
        "m@step-",
        "m@step-01",
        "m@step--1",
        "m@step-1e3",
        "m@step-1000000000000000",
        "m@latest",
        "m@Last",
        "m@step~",
        "m@step~01",
        "m@step~-1",
        "m@step~1000000000000000",
        "m@last~1",
        "m@a@b",
        "m@v1\n",
        "m@best/x",
        "sha256:",
        "sha256:abc12",
        "sha256:ABC123",
        "sha256:" + "a" * 65,
        "sha256:abc123\n",
        "sha256:../../x",
        "SHA256:abc123",
        "sha512:abc123",
    ],
)
def test_a_ref_that_is_almost_right_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidRef) as refused:
        parse_ref(text)
    assert refused.value.hint
    assert refused.value.fields["ref"] == text


@given(st.text() | st.from_regex(r"[a-z/.@:v0-9~-]{0,20}", fullmatch=True))
def test_any_text_is_a_ref_or_refused(text: str) -> None:
    try:
        ref = parse_ref(text)
    except (InvalidRef, InvalidName):
        return
    assert _write(ref) == text


_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,10}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,10}[a-z])?", fullmatch=True)
_refs = st.one_of(
    st.builds(Ref, st.just("newest"), model=_names),
    st.builds(Ref, st.just("number"), model=_names, number=st.integers(1, 999_999_999)),
    st.builds(Ref, st.just("step"), model=_names, step=st.integers(0, 10**15 - 1)),
    st.builds(Ref, st.just("nearest"), model=_names, step=st.integers(0, 10**15 - 1)),
    st.builds(Ref, st.just("last"), model=_names),
    st.builds(Ref, st.just("alias"), model=_names, alias=st.sampled_from(GOOD_ALIASES)),
    st.builds(Ref, st.just("digest"), digest_prefix=st.text("0123456789abcdef", min_size=6, max_size=64)),
)


@given(_refs.filter(lambda ref: ".." not in (ref.model or "")))
def test_a_ref_that_was_written_out_parses_back(ref: Ref) -> None:
    assert parse_ref(_write(ref)) == ref


def _write(ref: Ref) -> str:
    selector = {
        "newest": "",
        "number": f"@v{ref.number}",
        "step": f"@step-{ref.step}",
        "nearest": f"@step~{ref.step}",
        "last": "@last",
        "alias": f"@{ref.alias}",
        "digest": f"sha256:{ref.digest_prefix}",
    }[ref.kind]
    return (ref.model or "") + selector


@pytest.mark.parametrize("key", ["lr", "train/lr", "_a", "A.b-c", "x" * 128])
def test_a_good_tag_key(key: str) -> None:
    assert check_tag_key(key) == key


@pytest.mark.parametrize("key", ["", "=", "a=b", "a b", "-a", "/a", "a\n", "é", "a\x00", "x" * 129])
def test_a_bad_tag_key(key: str) -> None:
    with pytest.raises(InvalidName):
        check_tag_key(key)


@pytest.mark.parametrize(
    "text", ["", "π ≈ 3 🏴‍☠️", "100 % of a_b", "line\nline\ttab", "'; DROP TABLE models; --", "x" * 10_000]
)
def test_text_that_every_database_keeps(text: str) -> None:
    assert check_text(text, "note") == text


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "a\udfff", "x" * 10_001, 3, 1e-4, None, b"bytes"])
def test_text_that_some_database_would_not_keep(text: object) -> None:
    with pytest.raises(InvalidInput, match="note"):
        check_text(text, "note")  # type: ignore[arg-type]


def test_similar_names_are_found_whatever_their_case_and_nothing_else_is() -> None:
    names = ["gpt2-small", "gpt2-medium", "pirate", "Llama"]
    assert find_similar("gpt2-smal", names)[0] == "gpt2-small"
    assert find_similar("llama", names) == ["Llama"]
    assert find_similar("zzz", names) == []
