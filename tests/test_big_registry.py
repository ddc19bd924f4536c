"""The generator of big registries: what it makes is what recording would have made."""

from __future__ import annotations

from sqlalchemy import func, select

from benchmarks.big_registry import BASE, Spec, fill, name_model
from registry import Registry
from registry.tables import versions
from tests.records import record


def test_a_big_registry_is_whole_and_can_grow(any_registry: Registry) -> None:
    fill(any_registry, Spec(n_versions=50, n_models=3, depth=10))
    name = name_model(0)
    with any_registry.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(versions)).scalar() == 50
    assert [one.n_versions for one in any_registry.models()] == [1, 17, 16, 16]
    assert any_registry.verify_events() is None
    assert any_registry.version(f"{name}@best").ref == any_registry.version(name).ref == f"{name}@v17"
    assert any_registry.resolve(f"{name}@step-30").number == 3
    assert any_registry.version(name).is_verified
    assert [one.version.ref for one in any_registry.lineage(f"{name}@v10").ancestors()][-1] == f"{BASE}@v1"
    assert len(any_registry.lineage(f"{name}@v10").ancestors()) == 10  # depth
    assert len(any_registry.aliases(name, history=True)) == 3
    assert record(any_registry, name, parents=[name]).ref == f"{name}@v18"
    assert any_registry.set_alias(f"{name}@best", name).version == f"{name}@v18"
    assert any_registry.verify_events() is None
