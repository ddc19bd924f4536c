"""Postgres when the network or the server fails: waits are bounded, changes are done once or not, and told which."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import text

from registry import Registry, Version
from registry.errors import ConnectionLost, DatabaseUnavailable, OutcomeUnknown, QueryTimeout, RegistryBusy
from registry.postgres import BoundedConnection
from registry.query import read_version
from registry.record import record_version
from tests.patience import must_not_hang
from tests.postgres_proxy import PostgresProxy, Strike
from tests.records import make_draft, record


@pytest.fixture
def proxy(fresh_postgres: str) -> Iterator[PostgresProxy]:
    with PostgresProxy(fresh_postgres) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: PostgresProxy, tmp_path: Path) -> Iterator[Registry]:
    """A registry behind the proxy, with one version `m@v1`, that gives up within seconds."""
    url = proxy.url(connect_timeout="2", statement_timeout="2s", lock_timeout="1s")
    registry = Registry(url, tmp_path / "store")
    record(registry, "m")
    yield registry
    registry.close()


def _add(registry: Registry) -> Version:
    draft = make_draft("m")
    return registry.database.change(lambda connection: read_version(connection, record_version(connection, draft)))


STEPS = ["BEGIN", "pg_advisory_xact_lock", "INSERT INTO versions", "INSERT INTO events", "COMMIT"]
CHANGES: dict[str, Callable[[Registry], object]] = {
    "register": _add,
    "set_alias": lambda registry: registry.set_alias("m@best", "m@v1"),
    "retire": lambda registry: registry.retire("m@v1"),
    "protect": lambda registry: registry.protect("m"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_cut_at_any_step_registers_once(behind: Registry, proxy: PostgresProxy, step: str, when: str) -> None:
    strike = proxy.strike(Strike(step, when))
    assert _add(behind).ref == "m@v2"
    assert strike.struck.is_set()
    assert [one.number for one in behind.history("m")] == [2, 1]
    assert [event.subject for event in behind.events(action="version.registered")] == ["m@v2", "m@v1"]
    assert behind.verify_events() is None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_lost_commit_of_any_change_is_done_once(
    behind: Registry, proxy: PostgresProxy, change: str, when: str
) -> None:
    n = len(behind.events())
    proxy.strike(Strike("COMMIT", when))
    CHANGES[change](behind)
    assert len(behind.events()) == n + 1
    assert behind.verify_events() is None


def test_without_an_event_a_lost_commit_is_told_as_unknown(behind: Registry, proxy: PostgresProxy) -> None:
    proxy.strike(Strike("COMMIT", "after"))
    with pytest.raises(OutcomeUnknown), behind.database.write() as connection:
        connection.execute(text("UPDATE models SET protected_at = NULL"))


def test_when_the_server_is_gone_after_commit_the_outcome_is_unknown(behind: Registry, proxy: PostgresProxy) -> None:
    """It was registered; nobody may be told that it failed. Repeating it gives the version that is there."""
    draft = make_draft("m", operation_id="0123456789abcdef")

    def work(connection: sqlalchemy.Connection) -> Version:
        return read_version(connection, record_version(connection, draft))

    strike = proxy.strike(Strike("COMMIT", "after", "hang"))
    with must_not_hang(), pytest.raises(OutcomeUnknown, match="lost"):
        proxy.swallow_after(strike)
        behind.database.change(work)
    proxy.swallows_all = False
    assert behind.database.change(work).ref == "m@v2"
    assert len(behind.history("m")) == 2


def test_a_connection_that_is_lost_again_and_again_is_given_up(behind: Registry, proxy: PostgresProxy) -> None:
    n = 0

    def work(connection: sqlalchemy.Connection) -> None:
        nonlocal n
        n += 1
        proxy.strike(Strike("SELECT 1", "before"))
        connection.execute(text("SELECT 1"))

    with pytest.raises(ConnectionLost) as refused:
        behind.database.change(work)
    assert 2 <= n <= 4
    assert ".." not in refused.value.message


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_gets_no_answer_waits_no_longer_than_configured(behind: Registry, proxy: PostgresProxy, when: str) -> None:
    proxy.strike(Strike("SELECT", when, "hang"))
    started = time.perf_counter()
    with must_not_hang(), pytest.raises(DatabaseUnavailable, match="did not answer within"):
        behind.resolve("m")
    assert time.perf_counter() - started > 1.9
    assert behind.resolve("m").number == 1, "the next one gets a connection that works"


def test_who_cannot_get_in_waits_no_longer_than_configured(proxy: PostgresProxy, tmp_path: Path) -> None:
    proxy.swallows_all = True
    registry = Registry(proxy.url(connect_timeout="2"), tmp_path)
    with must_not_hang(), pytest.raises(DatabaseUnavailable):
        registry.models()
    registry.close()


def test_who_finds_no_server_reads_whole_sentences(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"TCP/IP connections\."):
        Registry("postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2", tmp_path).models()


def test_the_server_bounds_a_statement_itself(behind: Registry) -> None:
    with must_not_hang(), pytest.raises(QueryTimeout) as refused, behind.database.read() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    assert "statement_timeout" in str(refused.value.hint)


def test_a_writer_that_waits_too_long_for_its_turn_is_told_so(behind: Registry, fresh_postgres: str) -> None:
    holder = Registry(fresh_postgres, behind.store.root)
    with holder.database.write(), must_not_hang(), pytest.raises(RegistryBusy):
        behind.set_alias("m@best", "m")
    holder.close()


def test_a_writer_that_is_cut_off_holds_up_others_only_so_long(
    behind: Registry, proxy: PostgresProxy, fresh_postgres: str
) -> None:
    """Its server process knows nothing of the cut, and has the writers' turn."""
    url = sqlalchemy.make_url(fresh_postgres).update_query_dict({"idle_in_transaction_session_timeout": "1s"})
    impatient = PostgresProxy(url.render_as_string(hide_password=False))
    cut_off = Registry(impatient.url(statement_timeout="1s", idle_in_transaction_session_timeout="1s"), "store")
    impatient.strike(Strike("INSERT INTO events", "before", "hang"))
    with pytest.raises(ConnectionLost), cut_off.database.write() as connection:
        record_version(connection, make_draft("m"))
    patient = Registry(fresh_postgres, behind.store.root)
    with must_not_hang():
        patient.set_alias("m@best", "m")
    assert len(patient.history("m")) == 1
    for one in (patient, cut_off, impatient):
        one.close()


def test_a_connection_that_rested_long_is_asked_before_it_is_used(
    behind: Registry, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that forgot the connection says nothing to either side."""
    from registry import postgres

    monkeypatch.setattr(postgres, "PING_AFTER_SECONDS", 0.1)
    behind.resolve("m")
    time.sleep(0.2)
    strike = proxy.strike(Strike("", "before", "hang"))
    before = proxy.n_connections
    assert behind.resolve("m").number == 1
    assert strike.struck.is_set()
    assert proxy.n_connections == before + 1


def test_what_the_url_says_reaches_libpq_and_the_server(fresh_postgres: str, tmp_path: Path) -> None:
    url = sqlalchemy.make_url(fresh_postgres).update_query_dict(
        {
            "statement_timeout": "5min",
            "lock_timeout": "7000",
            "application_name": "training",
            "keepalives_idle": "11",
            "sslmode": "allow",
            "options": "-c work_mem=8MB",
            "search_path": '"of a team", public',
        }
    )
    registry = Registry(url.render_as_string(hide_password=False), tmp_path)
    registry.models()
    with registry.database.read() as connection:
        said = {
            name: connection.execute(text(f"SHOW {name}")).scalar()
            for name in ("statement_timeout", "lock_timeout", "application_name", "work_mem", "search_path")
        }
        driver = connection.connection.driver_connection
    assert said == {
        "statement_timeout": "5min",
        "lock_timeout": "7s",
        "application_name": "training",
        "work_mem": "8MB",
        "search_path": '"of a team", public',
    }
    assert isinstance(driver, BoundedConnection)
    assert driver.info.get_parameters()["keepalives_idle"] == "11"
    assert driver.info.get_parameters()["sslmode"] == "allow"
    assert driver.info.get_parameters()["tcp_user_timeout"] == "30000"
    assert "password" not in str(registry.database)
    registry.close()


def test_several_hosts_are_tried_in_turn(proxy: PostgresProxy, tmp_path: Path) -> None:
    url = sqlalchemy.make_url(proxy.url())
    several = url.set(host=None, port=None).update_query_dict({"host": [f"127.0.0.1:{1}", f"127.0.0.1:{url.port}"]})
    registry = Registry(several.render_as_string(hide_password=False), tmp_path)
    assert registry.models() == []
    registry.close()


@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "connect_timeout"])
def test_a_bound_that_is_no_time_is_refused(fresh_postgres: str, tmp_path: Path, name: str) -> None:
    url = sqlalchemy.make_url(fresh_postgres).update_query_dict({name: "soon"}).render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnavailable, match=name):
        Registry(url, tmp_path).models()


def test_a_migration_is_not_bounded_as_a_question_is(fresh_postgres: str, tmp_path: Path) -> None:
    from registry.schema import migration_connection

    url = sqlalchemy.make_url(fresh_postgres).update_query_dict({"statement_timeout": "100ms"})
    registry = Registry(url.render_as_string(hide_password=False), tmp_path)
    registry.models()
    with migration_connection(registry.database) as connection:
        connection.execute(text("SELECT pg_sleep(1)"))
    with registry.database.read() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "100ms"
    registry.close()
