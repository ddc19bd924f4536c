"""Resolving in one statement without a transaction: the same answers, of one moment, whoever writes or forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from benchmarks.big_registry import Spec, digest_of, fill, name_model
from registry import Registry, RegistryError
from registry.resolve import resolve_ref
from tests.records import record_all

M = name_model(1)
REFS = [M, f"{M}@v3", f"{M}@step-40", f"{M}@best", f"sha256:{digest_of((f'{M}@v5', 'weights'))[:12]}"]
MISSES = ["nothing", f"{M}@v99", f"{M}@step-41", f"{M}@bst", "sha256:000000000000", "m"]


@contextmanager
def statements_of() -> Iterator[list[str]]:
    said: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        said.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_it_answers_as_in_a_transaction(database_url: str, tmp_path: Path) -> None:
    with statements_of() as said:  # before the engine is made, or it would not notice
        registry = Registry(database_url, tmp_path)
        fill(registry, Spec(n_versions=41, n_models=4, depth=5))
        record_all(registry, {"model": "m"})
        registry.retire("m")
        for ref in REFS:
            said.clear()
            found = registry.resolve(ref)
            assert [one.split()[0] for one in said] == ["SELECT"]
            with registry.database.read() as connection:
                assert found == resolve_ref(connection, ref)
        for ref in MISSES:
            with pytest.raises(RegistryError) as here:
                registry.resolve(ref)
            with pytest.raises(RegistryError) as there, registry.database.read() as connection:
                resolve_ref(connection, ref)
            assert (type(here.value), str(here.value)) == (type(there.value), str(there.value))
    registry.close()


def test_an_alias_that_is_moved_always_means_something(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "m"}, {"model": "m"})
    any_registry.set_alias("m@best", "m@v1")
    seen: list[int] = []
    faults: list[Exception] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                seen.append(any_registry.resolve("m@best").number)
            except RegistryError as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(40):
        any_registry.set_alias("m@best", f"m@v{2 - i % 2}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert set(seen) == {1, 2}


def test_a_forked_child_resolves_on_a_connection_of_its_own(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "m"}, {"model": "m"})
    assert any_registry.resolve("m").number == 2
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if {any_registry.resolve("m@v1").number for _ in range(200)} == {1} else 2
        finally:
            os._exit(code)
    assert {any_registry.resolve("m").number for _ in range(200)} == {2}
    assert os.waitpid(child, 0)[1] == 0
