"""Resolving refs and reading models and versions, with the same answers on SQLite and on Postgres."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from registry import AmbiguousRef, Registry, UnknownRef
from registry.errors import InvalidInput, InvalidName, InvalidRef, VersionRetired
from registry.resolve import resolve_ref
from tests.records import digest_of, record, record_all, record_copies


@pytest.fixture
def pirates(any_registry: Registry) -> Registry:
    """`pirate` v1 to v4 at steps 100, 200, 200, 300, of which v4 is retired; `team/parrot` has v1 only."""
    record_all(
        any_registry,
        {"model": "pirate", "step": 100, "weights_digest": "aaaa11" + "0" * 58},
        {"model": "pirate", "step": 200, "weights_digest": "aaaa22" + "0" * 58},
        {"model": "pirate", "step": 200, "weights_digest": "bbbb33" + "0" * 58},
        {"model": "pirate", "step": 300, "weights_digest": "ff" + "f" * 62},
        {"model": "team/parrot", "weights_digest": "aaaa11" + "0" * 57 + "1", "verified": False},
    )
    any_registry.set_alias("pirate@best", "pirate@v2")
    any_registry.set_alias("pirate@first", "pirate@v1")
    any_registry.retire("pirate@v4")
    return any_registry


MEANINGS = [
    ("pirate", "pirate@v3"),  # the newest that is not retired
    ("team/parrot", "team/parrot@v1"),
    ("pirate@v1", "pirate@v1"),
    ("pirate@v4", "pirate@v4"),  # by number a retired one is still itself
    ("pirate@best", "pirate@v2"),
    ("pirate@step-100", "pirate@v1"),
    ("pirate@step-300", "pirate@v4"),
    ("sha256:aaaa22", "pirate@v2"),
    ("sha256:bbbb330000", "pirate@v3"),
    ("sha256:" + "f" * 64, "pirate@v4"),
    ("sha256:ffffff", "pirate@v4"),
    ("sha256:aaaa11" + "0" * 58, "pirate@v1"),
]


def test_a_ref_means_one_version(pirates: Registry, subtests: pytest.Subtests) -> None:
    for ref, version in MEANINGS:
        with subtests.test(ref=ref):
            assert pirates.resolve(ref).ref == version
            assert pirates.version(ref).ref == version


AMBIGUOUS = [
    ("pirate@step-200", ("pirate@v2", "pirate@v3")),
    ("sha256:aaaa11", ("pirate@v1", "team/parrot@v1")),
]


def test_a_ref_that_could_mean_several_is_refused_with_all_of_them(
    pirates: Registry, subtests: pytest.Subtests
) -> None:
    for ref, candidates in AMBIGUOUS:
        with subtests.test(ref=ref):
            with pytest.raises(AmbiguousRef) as refused:
                pirates.resolve(ref)
            assert refused.value.candidates == candidates
            assert all(candidate in refused.value.message for candidate in candidates)
            assert "@vN" in str(refused.value.hint)


def test_a_retired_version_makes_no_ref_ambiguous(pirates: Registry) -> None:
    pirates.retire("pirate@v3")
    assert pirates.resolve("pirate@step-200").ref == "pirate@v2"
    pirates.retire("pirate@v2", force=True)
    with pytest.raises(AmbiguousRef):
        pirates.resolve("pirate@step-200")


def test_many_retired_versions_do_not_hide_that_two_are_left(any_registry: Registry) -> None:
    """Sixty evaluations of one step: an answer from the first fifty rows would pick one of the two that are in use."""
    record_all(any_registry, *({"model": "m", "step": 7, "weights_digest": digest_of("same")} for _ in range(60)))
    for number in range(1, 61):
        if number not in (50, 51):
            any_registry.retire(f"m@v{number}")
    for ref in ("m@step-7", f"sha256:{digest_of('same')}"):
        with pytest.raises(AmbiguousRef) as refused:
            any_registry.resolve(ref)
        assert refused.value.candidates == ("m@v50", "m@v51")


NEAREST = [
    ("0", 100), ("100", 100), ("149", 100), ("150", 100), ("151", 200), ("251", 300), ("999999999999999", 300),
]  # fmt: skip


def test_the_nearest_step_and_the_last(any_registry: Registry, subtests: pytest.Subtests) -> None:
    """Of two that are as near, the lower; other models' steps and versions without one play no part."""
    record_all(any_registry, *({"model": "run", "step": step} for step in (300, 100, None, 200)))
    record_all(any_registry, {"model": "other", "step": 151}, {"model": "other", "step": 9000}, {"model": "none"})
    for near, step in NEAREST:
        with subtests.test(near=near):
            assert any_registry.version(f"run@step~{near}").step == step
    assert any_registry.version("run@last").step == 300
    any_registry.retire("run@step-300")
    assert any_registry.resolve("run@last").ref == any_registry.resolve("run@step~500").ref == "run@v4"
    record(any_registry, "run", step=200)
    for ref in ("run@last", "run@step~180"):
        with pytest.raises(AmbiguousRef) as refused:
            any_registry.resolve(ref)
        assert refused.value.candidates == ("run@v4", "run@v5")
    for ref in ("none@last", "none@step~1"):
        with pytest.raises(UnknownRef, match="no version with a step") as missed:
            any_registry.resolve(ref)
        assert "lensreg history none" in str(missed.value.hint)


UNKNOWN = [
    ("pirat", ["pirate"], "Did you mean pirate?"),
    ("Pirate", ["pirate"], "Did you mean pirate?"),
    ("team/parot@v1", ["team/parrot"], "Did you mean team/parrot?"),
    ("zzzzz", [], "lensreg ls"),
    ("pirate@v9", ["pirate@v4", "pirate@v3", "pirate@v2", "pirate@v1"], "pirate@v4"),
    ("pirate@besst", ["pirate@best", "pirate@first"], "pirate@best"),
    ("pirate@step-210", ["pirate@step-200", "pirate@step-300", "pirate@step-100"], "pirate@step-200"),
    ("team/parrot@best", [], "lensreg history team/parrot"),
    ("team/parrot@step-1", [], "lensreg history team/parrot"),
    ("sha256:012345", [], "lensreg ls"),
]


def test_a_ref_that_means_nothing_says_what_there_is(pirates: Registry, subtests: pytest.Subtests) -> None:
    for ref, candidates, hint in UNKNOWN:
        with subtests.test(ref=ref):
            with pytest.raises(UnknownRef) as refused:
                pirates.resolve(ref)
            assert sorted(refused.value.candidates) == sorted(candidates)
            assert hint in str(refused.value.hint)


def test_a_name_whose_versions_are_all_retired(pirates: Registry) -> None:
    pirates.retire("team/parrot@v1")
    with pytest.raises(VersionRetired) as refused:
        pirates.resolve("team/parrot")
    assert refused.value.candidates == ("team/parrot@v1",)
    assert "lensreg history team/parrot" in str(refused.value.hint)
    parrot = next(model for model in pirates.models() if model.name == "team/parrot")
    assert (parrot.newest, parrot.n_versions, parrot.verified) == (None, 0, None)


def test_history_lists_every_version_newest_first(pirates: Registry) -> None:
    history = pirates.history("pirate")
    assert [one.ref for one in history] == ["pirate@v4", "pirate@v3", "pirate@v2", "pirate@v1"]
    assert [one.retired_at is None for one in history] == [False, True, True, True]
    assert [one.aliases for one in history] == [(), (), ("best",), ("first",)]
    assert [one.step for one in history] == [300, 200, 200, 100]
    with pytest.raises(UnknownRef, match="pirat'"):
        pirates.history("pirat")
    with pytest.raises(InvalidName):
        pirates.history("pirate@v1")


def test_models_are_listed_with_their_newest_version(pirates: Registry) -> None:
    assert [(one.name, one.n_versions, one.newest, one.verified) for one in pirates.models()] == [
        ("pirate", 3, "pirate@v3", True),
        ("team/parrot", 1, "team/parrot@v1", False),
    ]


def test_names_are_sorted_by_code_point_and_case_makes_another_name(any_registry: Registry) -> None:
    """Postgres would sort by the rules of its server's language: a-b, ab, _x, Zoo."""
    names = ["zeta", "Zoo", "a-b", "ab", "a.b", "a_b", "_x", "A/c", "a/b", "0", "9", "10", "aa", "å".encode().hex()]
    record_all(any_registry, *({"model": name, "tags": dict.fromkeys("bBa_A", "")} for name in names))
    for alias in ("b", "B", "a-b", "ab", "_", "a"):
        any_registry.set_alias(f"zeta@{alias}", "zeta@v1")
    assert [model.name for model in any_registry.models()] == sorted(names)
    spans = [span.name for span in any_registry.aliases("zeta")]
    assert spans == sorted(spans) == list(any_registry.version("zeta").aliases)
    assert list(any_registry.version("zeta").tags) == sorted("bBa_A")
    assert any_registry.resolve("Zoo").model == "Zoo"


def test_text_columns_that_are_compared_ignore_the_server_s_language(fresh_postgres: str, tmp_path: Path) -> None:
    """In Danish `aa` sorts after `z`, and the range that finds a digest's prefix would miss it."""
    registry = Registry(fresh_postgres, tmp_path)
    with registry.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE collation_name = 'C'"
        ).scalars()
        assert set(rows) >= {
            "models.name",
            "aliases.name",
            "tags.key",
            "version_files.name",
            "versions.weights_digest",
        }
    registry.close()


AWKWARD = [
    "",
    "100 % of a_b",
    "%",
    "_",
    "π ≈ 3 🏴‍☠️",
    "cafe\u0301",
    "café",
    "a\nb\tc",
    "'; DROP TABLE tags; --",
    "\\",
    "\u202e",
]


def test_awkward_values_come_back_as_they_went_in(any_registry: Registry) -> None:
    for note in [*AWKWARD, "x" * 10_000]:
        stored = record(any_registry, "m", note=note, tags={"k": note, "long/" + "k" * 120: "v"})
        read = any_registry.version(stored.ref)
        assert (read.note, read.tags["k"]) == (note, note)
        assert any_registry.history("m")[0].note == note
        assert any_registry.events("m", limit=1)[0].details["note"] == note
    assert any_registry.verify_events() is None


def test_percent_and_underscore_in_names_are_no_wildcards(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a_c"}, {"model": "abc"}, {"model": "abc"})
    any_registry.set_alias("a_c@x_z", "a_c@v1")
    any_registry.set_alias("abc@xyz", "abc@v2")
    assert any_registry.resolve("a_c").ref == "a_c@v1"
    assert any_registry.resolve("a_c@x_z").ref == "a_c@v1"
    assert [span.ref for span in any_registry.aliases("a_c")] == ["a_c@x_z"]
    assert [one.ref for one in any_registry.history("a_c")] == ["a_c@v1"]


ILLEGAL_TEXT = ["a\x00b", "\ud800", "\udfff", "x" * 10_001]


def test_what_one_database_would_not_keep_is_refused_before_either_sees_it(
    any_registry: Registry, subtests: pytest.Subtests
) -> None:
    record(any_registry, "m")
    events = any_registry.events()
    for text in ILLEGAL_TEXT:
        with subtests.test(text=text[:10]):
            _refuse_everywhere(any_registry, text)
    assert any_registry.events() == events


def _refuse_everywhere(any_registry: Registry, text: str) -> None:
    for refused in (
        lambda: any_registry.register("m", "/nowhere", note=text),
        lambda: any_registry.register("m", "/nowhere", tags={"k": text}),
        lambda: any_registry.register("m", "/nowhere", tags={text: "v"}),
        lambda: any_registry.register("m", text),
        lambda: any_registry.register(text, "/nowhere"),
        lambda: any_registry.retire("m", reason=text),
        lambda: any_registry.resolve(text),
        lambda: any_registry.history(text),
        lambda: any_registry.lineage(f"m@{text}"),
        lambda: any_registry.aliases(text),
        lambda: any_registry.set_alias(f"m@{text}", "m"),
        lambda: any_registry.remove_alias(f"{text}@a"),
        lambda: any_registry.events(text),
    ):
        with pytest.raises(InvalidInput):
            refused()


NO_STEPS = [-1, 10**15, 1.5, "7", True]


def test_what_is_no_step_is_refused(any_registry: Registry, subtests: pytest.Subtests) -> None:
    for step in NO_STEPS:
        with subtests.test(step=step), pytest.raises(InvalidInput, match="training step"):
            any_registry.register("m", "/nowhere", step=step)  # type: ignore[arg-type]


def test_a_tag_s_value_must_be_text(any_registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="tag lr"):
        any_registry.register("m", "/nowhere", tags={"lr": 1e-4})  # type: ignore[dict-item]


NO_LIMITS = [-1, 2**63]


def test_a_number_of_events_that_makes_no_sense_is_refused(any_registry: Registry, subtests: pytest.Subtests) -> None:
    for limit in NO_LIMITS:
        with subtests.test(limit=limit), pytest.raises(InvalidInput):
            any_registry.events(limit=limit)


def test_reads_are_of_one_moment(any_registry: Registry) -> None:
    record(any_registry, "m")
    with any_registry.database.read() as connection:
        assert resolve_ref(connection, "m").number == 1
        other = Registry(any_registry.database.url.render_as_string(hide_password=False), any_registry.store.root)
        record(other, "m")
        other.close()
        assert resolve_ref(connection, "m").number == 1
    assert any_registry.resolve("m").number == 2


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """2,000 versions of one model beside 500 of another, on SQLite, which tells its plan without statistics."""
    folder = tmp_path_factory.mktemp("crowded")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    record_copies(registry, "m", 2000)
    record_copies(registry, "other", 500)
    registry.set_alias("m@best", "m@v77")
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("ref", "number"),
    [
        ("m", 2000),
        ("m@v1234", 1234),
        ("m@step-5670", 567),
        ("m@best", 77),
        (f"sha256:{digest_of(('m', 900))[:12]}", 900),
    ],
)
def test_resolving_searches_indexes_and_scans_nothing(crowded: Registry, ref: str, number: int) -> None:
    statements: list[tuple[str, Any]] = []
    with crowded.database.read() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
        assert resolve_ref(connection, ref).number == number
        ((statement, parameters),) = statements
        plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert plan
    assert [line for line in plan if "SCAN" in line] == []


def test_the_hints_name_the_refs_that_work(pirates: Registry) -> None:
    """Whatever is offered as a candidate resolves, or is ambiguous, but is never unknown itself."""
    for ref in ("pirate@v9", "pirate@besst", "pirate@step-210", "pirat"):
        with pytest.raises(UnknownRef) as refused:
            pirates.resolve(ref)
        for candidate in refused.value.candidates:
            with contextlib.suppress(AmbiguousRef):
                pirates.resolve(candidate)


NONSENSE = ["pirate@", "pirate@latest", "/etc/passwd", os.sep * 2, "sha256:zz"]


def test_nonsense_is_invalid_rather_than_unknown(any_registry: Registry, subtests: pytest.Subtests) -> None:
    for ref in NONSENSE:
        with subtests.test(ref=ref), pytest.raises(InvalidRef):
            any_registry.resolve(ref)
