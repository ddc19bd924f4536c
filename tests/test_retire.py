"""Retiring takes a version out of use by name, keeps every byte of it, and can be undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry import Registry, UnknownRef
from registry.errors import VersionInUse, VersionRetired
from tests.records import record, record_all


@pytest.fixture
def family(any_registry: Registry) -> Registry:
    """`base` ← `tuned` v1 ← `tuned` v2 ← `child`; `base@prod` and `base@best` mean `base`."""
    record_all(
        any_registry,
        {"model": "base"},
        {"model": "tuned", "parents": ["base"]},
        {"model": "tuned", "parents": ["tuned@v1"]},
        {"model": "child", "parents": ["tuned@v2"]},
    )
    any_registry.set_alias("base@prod", "base")
    any_registry.set_alias("base@best", "base")
    return any_registry


def test_a_version_in_use_is_not_retired(family: Registry) -> None:
    events = family.events()
    with pytest.raises(VersionInUse) as refused:
        family.retire("base")
    assert refused.value.users == ("base@best", "base@prod", "tuned@v1", "tuned@v2", "child@v1")
    assert "--force" in str(refused.value.hint)
    assert family.resolve("base").retired_at is None
    assert family.events() == events


def test_a_descendant_counts_though_all_between_are_retired(family: Registry) -> None:
    family.retire("tuned@v2", force=True)
    with pytest.raises(VersionInUse) as refused:
        family.retire("tuned@v1")
    assert refused.value.users == ("child@v1",)
    family.retire("child@v1")
    family.retire("tuned@v1")
    assert family.history("tuned")[1].retired_at is not None


def test_force_removes_aliases_and_leaves_lineage_as_it_is(family: Registry) -> None:
    lineage = family.lineage("child")
    retired = family.retire("base", force=True, reason="trained on the test set")
    assert retired.retired_at is not None
    assert family.aliases("base") == []
    assert [span.name for span in family.aliases("base", history=True)] == ["best", "prod"]
    assert [one.version.ref for one in family.lineage("child").ancestors()] == ["tuned@v2", "tuned@v1", "base@v1"]
    assert family.lineage("child").edges == lineage.edges
    assert family.version("tuned@v1").parents[0].ref == "base@v1"
    newest, *removed = family.events("base", limit=3)
    assert (newest.action, newest.details) == ("version.retired", {"reason": "trained on the test set", "forced": True})
    assert [one.action for one in removed] == ["alias.removed", "alias.removed"]


def test_many_users_are_all_named_but_not_all_in_the_message(any_registry: Registry) -> None:
    record(any_registry, "base")
    record_all(any_registry, *({"model": "tuned", "parents": ["base"]} for _ in range(40)))
    with pytest.raises(VersionInUse) as refused:
        any_registry.retire("base")
    assert len(refused.value.users) == 40
    assert "tuned@v10 and 30 more" in refused.value.message


def test_a_retired_version_is_passed_by_and_can_still_be_asked_about(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "m"}, {"model": "m"})
    any_registry.retire("m")
    assert any_registry.resolve("m").ref == "m@v1"
    assert any_registry.resolve("m@v2").retired_at is not None
    assert any_registry.version("m@v2").retired_at is not None
    assert record(any_registry, "m").ref == "m@v3", "a number is never given twice"


def test_retiring_and_restoring_twice_changes_nothing(any_registry: Registry) -> None:
    record(any_registry, "m")
    first = any_registry.retire("m@v1")
    assert any_registry.retire("m@v1") == first
    assert [one.action for one in any_registry.events("m")] == ["version.retired", "version.registered"]
    restored = any_registry.restore("m@v1")
    assert restored.retired_at is None
    assert any_registry.restore("m@v1") == restored
    assert [one.action for one in any_registry.events("m", limit=2)] == ["version.restored", "version.retired"]
    assert any_registry.resolve("m").ref == "m@v1"
    assert any_registry.verify_events() is None


def test_restoring_by_a_bare_name_needs_a_version_in_use(any_registry: Registry) -> None:
    record(any_registry, "m")
    any_registry.retire("m")
    with pytest.raises(VersionRetired):
        any_registry.restore("m")
    with pytest.raises(UnknownRef):
        any_registry.restore("m@v2")
    any_registry.restore("m@v1")
    assert any_registry.resolve("m").ref == "m@v1"


def test_a_retired_version_is_not_loaded_and_not_built_on(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    folder = make_checkpoint("gpt2")
    registry.register("base", folder, parity="skip")
    files = sorted((registry.store.root / "blobs").rglob("*"))
    registry.retire("base")
    for ref in ("base@v1", f"sha256:{registry.version('base@v1').weights_digest}"):
        with pytest.raises(VersionRetired, match=r"base@v1 was retired on 2\d\d\d-"):
            registry.load(ref)
    with pytest.raises(VersionRetired):
        registry.load("base")
    with pytest.raises(VersionRetired):
        registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base@v1", parity="skip")
    assert sorted((registry.store.root / "blobs").rglob("*")) == files
    registry.restore("base@v1")
    with pytest.warns(UserWarning, match="without verification"):
        registry.load("base")


def test_registering_what_was_retired_makes_a_new_version(
    registry: Registry, make_checkpoint: Callable[..., Path]
) -> None:
    folder = make_checkpoint("gpt2")
    registry.register("base", folder, parity="skip")
    registry.retire("base")
    again = registry.register("base", folder, parity="skip")
    assert again.outcome == "registered"
    assert registry.resolve("base").ref == "base@v2"
