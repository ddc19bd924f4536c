"""Versions that an older lens-registry registered: after an upgrade they load, and are parents and listed as before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import alembic.command
import pytest
from sqlalchemy import func, insert, select, update

from registry import ArchitectureMismatch, Registry
from registry.architecture import Architecture
from registry.errors import TensorsUnknown
from registry.schema import make_alembic_config, migration_connection
from registry.tables import architectures, events, versions
from tests.records import record_all


def _age(registry: Registry) -> None:
    """Put the database back to schema 0001, in which architectures with RMS norms had `final_rms`."""
    with registry.database.write() as connection:
        for row in connection.execute(select(architectures)).all():
            if row.fields["normalization_type"] != "RMS":
                continue
            old = Architecture({**row.fields, "final_rms": True})
            connection.execute(insert(architectures).values(fingerprint=old.fingerprint, fields=dict(old.fields)))
            of_it = versions.c.fingerprint == row.fingerprint
            connection.execute(update(versions).where(of_it).values(fingerprint=old.fingerprint))
            connection.execute(architectures.delete().where(architectures.c.fingerprint == row.fingerprint))
    with migration_connection(registry.database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0001")


def test_versions_of_the_first_schema_load_and_are_parents(
    any_registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    llama, gpt2 = make_checkpoint("llama"), make_checkpoint("gpt2")
    before = [
        any_registry.register("base", llama, parity="skip").version,
        any_registry.register("other", gpt2, parity="skip").version,
    ]
    _age(any_registry)

    any_registry.upgrade()

    assert [any_registry.version("base"), any_registry.version("other")] == before
    with pytest.warns(UserWarning, match="without verification"):
        any_registry.load("base")
    again = any_registry.register("base", llama, parity="skip")
    assert again.outcome == "unchanged"
    tuned = shutil.copytree(llama, tmp_path / "tuned")
    child = any_registry.register("tuned", tuned, parent="base", parity="skip")
    assert child.admitted_differences == ()
    with any_registry.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(architectures)).scalar() == 2
        last = connection.execute(select(events).where(events.c.action == "schema.upgraded")).one()
    assert list(last.details["fingerprints"].values()) == [child.architecture.fingerprint]
    assert any_registry.verify_events() is None


def test_what_the_upgrade_is_for(any_registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    """Without it such a version is refused: the test above can fail."""
    any_registry.register("base", make_checkpoint("llama"), parity="skip")
    _age(any_registry)
    with migration_connection(any_registry.database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0002")
        alembic.command.stamp(config, "0003")
        alembic.command.upgrade(config, "head")
    with pytest.raises(ArchitectureMismatch, match="another architecture"):
        any_registry.load("base")


def test_lineage_of_the_schema_before_absent_parents_stays(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a"}, {"model": "b", "parents": ["a"]}, {"model": "c", "parents": ["b", "a"]})
    before = any_registry.lineage("c").edges
    _migrate(any_registry, alembic.command.downgrade, "0003")
    any_registry.upgrade()
    assert any_registry.lineage("c").edges == before
    assert any_registry.version("c").absent_parents == ()
    with pytest.raises(TensorsUnknown, match="before the digests of single tensors were kept"):
        any_registry.changed_tensors("a", "b")


def test_absent_parents_are_not_forgotten_by_a_downgrade(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a", "absent": ["org/name@main"]})
    with pytest.raises(ValueError, match="would be forgotten"):
        _migrate(any_registry, alembic.command.downgrade, "0003")
    assert [one.ref for one in any_registry.version("a").absent_parents] == ["hf://org/name@main"]


def _migrate(registry: Registry, command: Callable[..., None], revision: str) -> None:
    with migration_connection(registry.database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        command(config, revision)
