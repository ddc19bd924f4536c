"""Aliases: set, moved, removed, and what each meant at any time."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest

from registry import Registry, UnknownRef
from registry.errors import InvalidInput, InvalidRef, VersionRetired
from tests.records import record, record_all


@pytest.fixture
def pirates(any_registry: Registry) -> Registry:
    """`pirate` with three versions, and `parrot` with one."""
    record_all(any_registry, *({"model": "pirate", "step": step} for step in (1, 2, 3)), {"model": "parrot"})
    return any_registry


def test_an_alias_is_set_moved_and_removed(pirates: Registry) -> None:
    span = pirates.set_alias("pirate@best", "pirate@v1")
    assert (span.ref, span.version, span.removed_at) == ("pirate@best", "pirate@v1", None)
    assert pirates.resolve("pirate@best").ref == "pirate@v1"
    pirates.set_alias("pirate@best", "pirate")
    assert pirates.resolve("pirate@best").ref == "pirate@v3"
    assert [one.aliases for one in pirates.history("pirate")] == [("best",), (), ()]
    removed = pirates.remove_alias("pirate@best")
    assert (removed.version, removed.removed_at is None) == ("pirate@v3", False)
    with pytest.raises(UnknownRef):
        pirates.resolve("pirate@best")
    assert pirates.aliases() == []


def test_an_alias_can_follow_any_kind_of_ref(pirates: Registry) -> None:
    digest = pirates.version("pirate@v2").weights_digest
    for ref in ("pirate@v2", "pirate@step-2", f"sha256:{digest[:20]}", "pirate@a"):
        pirates.set_alias("pirate@a", ref)
        assert pirates.resolve("pirate@a").ref == "pirate@v2"


def test_an_alias_stays_where_it_is_when_a_newer_version_comes(pirates: Registry) -> None:
    pirates.set_alias("pirate@best", "pirate")
    record(pirates, "pirate")
    assert pirates.resolve("pirate").ref == "pirate@v4"
    assert pirates.resolve("pirate@best").ref == "pirate@v3"


def test_setting_an_alias_to_what_it_means_changes_nothing(pirates: Registry) -> None:
    first = pirates.set_alias("pirate@best", "pirate@v1")
    events = pirates.events()
    assert pirates.set_alias("pirate@best", "pirate@step-1") == first
    assert pirates.events() == events
    assert len(pirates.aliases("pirate@best", history=True)) == 1


def test_every_change_of_an_alias_is_an_event(pirates: Registry) -> None:
    pirates.set_alias("pirate@best", "pirate@v1")
    pirates.set_alias("pirate@best", "pirate@v2")
    pirates.remove_alias("pirate@best")
    newest = pirates.events("pirate", limit=3)
    assert [(one.action, one.subject, one.details) for one in reversed(newest)] == [
        ("alias.set", "pirate@v1", {"alias": "pirate@best", "before": None}),
        ("alias.set", "pirate@v2", {"alias": "pirate@best", "before": "pirate@v1"}),
        ("alias.removed", "pirate@v2", {"alias": "pirate@best"}),
    ]


def test_history_tells_what_an_alias_meant_and_until_when(pirates: Registry) -> None:
    for version in ("v1", "v2", "v1"):
        pirates.set_alias("pirate@best", f"pirate@{version}")
    pirates.remove_alias("pirate@best")
    pirates.set_alias("pirate@best", "pirate@v3")
    spans = pirates.aliases("pirate@best", history=True)
    assert [span.version for span in spans] == ["pirate@v1", "pirate@v2", "pirate@v1", "pirate@v3"]
    for earlier, later in itertools.pairwise(spans[:3]):
        assert earlier.removed_at == later.set_at
    assert spans[2].removed_at is not None and spans[2].removed_at <= spans[3].set_at
    assert spans[3].removed_at is None
    assert [span.version for span in pirates.aliases("pirate@best")] == ["pirate@v3"]


def test_what_an_alias_meant_at_an_instant(pirates: Registry) -> None:
    pirates.set_alias("pirate@best", "pirate@v1")
    pirates.set_alias("pirate@best", "pirate@v2")
    pirates.remove_alias("pirate@best")
    first, second = pirates.aliases("pirate@best", history=True)
    tick = timedelta(microseconds=1)
    assert second.removed_at is not None

    def meaning(at: datetime) -> list[str]:
        return [span.version for span in pirates.aliases("pirate", at=at)]

    assert meaning(first.set_at - tick) == []
    assert meaning(first.set_at) == ["pirate@v1"]
    assert meaning(second.set_at - tick) == ["pirate@v1"]
    assert meaning(second.set_at) == ["pirate@v2"]
    assert meaning(second.removed_at - tick) == ["pirate@v2"]
    assert meaning(second.removed_at) == []
    elsewhere = timezone(timedelta(hours=-7))
    assert meaning(first.set_at.astimezone(elsewhere)) == ["pirate@v1"]


def test_an_instant_must_say_its_time_zone(pirates: Registry) -> None:
    with pytest.raises(InvalidInput, match="time zone"):
        pirates.aliases(at=datetime(2026, 1, 1))


def test_aliases_are_listed_for_one_model_or_for_all(pirates: Registry) -> None:
    pirates.set_alias("pirate@b", "pirate@v1")
    pirates.set_alias("pirate@a", "pirate@v1")
    pirates.set_alias("parrot@a", "parrot")
    assert [span.ref for span in pirates.aliases()] == ["parrot@a", "pirate@a", "pirate@b"]
    assert [span.ref for span in pirates.aliases("pirate")] == ["pirate@a", "pirate@b"]
    assert [span.ref for span in pirates.aliases("pirate@b")] == ["pirate@b"]
    assert pirates.aliases("nobody") == []
    assert all(span.set_at <= datetime.now(UTC) for span in pirates.aliases())


def test_what_cannot_be_an_alias_is_refused_and_changes_nothing(pirates: Registry, subtests: pytest.Subtests) -> None:
    pirates.retire("pirate@v2")
    events = pirates.events()
    for alias, ref, error in [
        ("parrot@best", "pirate@v1", InvalidRef),  # another model's version
        ("nobody@best", "pirate@v1", InvalidRef),
        ("pirate@best", "pirate@v2", VersionRetired),
        ("pirate@best", "pirate@v9", UnknownRef),
        ("pirate@best", "nobody", UnknownRef),
        ("pirate@v7", "pirate@v1", InvalidRef),
        ("pirate@step-1", "pirate@v1", InvalidRef),
        ("pirate@latest", "pirate@v1", InvalidRef),
        ("pirate", "pirate@v1", InvalidRef),
        ("sha256:abcdef", "pirate@v1", InvalidRef),
    ]:
        with subtests.test(alias=alias, ref=ref), pytest.raises(error) as refused:
            pirates.set_alias(alias, ref)
        assert refused.value.hint
    assert pirates.aliases(history=True) == []
    assert pirates.events() == events


def test_removing_an_alias_that_is_not_there_says_which_are(pirates: Registry) -> None:
    pirates.set_alias("pirate@best", "pirate@v1")
    pirates.set_alias("parrot@bert", "parrot")
    with pytest.raises(UnknownRef) as refused:
        pirates.remove_alias("pirate@bests")
    assert refused.value.candidates == ("pirate@best",)
    assert "Did you mean pirate@best?" in str(refused.value.hint)
    for ref, error in [("pirate@zzz", UnknownRef), ("nobody@best", UnknownRef), ("pirate@v1", InvalidRef)]:
        with pytest.raises(error):
            pirates.remove_alias(ref)
    pirates.remove_alias("pirate@best")
    with pytest.raises(UnknownRef):
        pirates.remove_alias("pirate@best")
