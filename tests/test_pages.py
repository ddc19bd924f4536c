"""Long lists, page by page: nothing is left out or told twice, and nothing waits for the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.big_registry import Spec, fill, name_model
from cli.main import main
from cli.pages import IN_A_TABLE, PAGE, read_pages
from registry import Registry, RegistryError
from tests.records import record, record_copies

M = name_model(1)


@pytest.fixture
def filled(any_registry: Registry) -> Registry:
    fill(any_registry, Spec(n_versions=121, n_models=6, depth=5))
    return any_registry


def test_pages_of_history_are_the_whole(filled: Registry) -> None:
    whole = filled.history(M)
    assert [one.number for one in whole] == list(range(20, 0, -1))
    assert filled.history(M, limit=7) == whole[:7]
    assert filled.history(M, limit=7, before=14) == whole[7:14]
    assert filled.history(M, before=7) == whole[14:]
    assert filled.history(M, before=1) == filled.history(M, limit=0) == []
    assert filled.count_versions(M) == 20


def test_pages_of_models_are_the_whole(filled: Registry) -> None:
    whole = filled.models()
    assert [one.name for one in whole] == ["base", *map(name_model, range(6))]
    assert filled.models(limit=2) == whole[:2]
    assert filled.models(limit=3, after=whole[1].name) == whole[2:5]
    assert filled.models(after=whole[-1].name) == []
    assert filled.count_models() == len(whole)


def test_pages_of_events_are_the_whole(filled: Registry) -> None:
    whole = filled.events()
    assert filled.events(limit=10) == whole[:10]
    assert filled.events(limit=10, before=whole[9].sequence) == whole[10:20]
    of_model = filled.events(M)
    assert of_model == [one for one in whole if one.subject.startswith(f"{M}@")]
    assert filled.events(M, 5, before=of_model[4].sequence) == of_model[5:10]


def test_events_of_a_model_are_not_those_of_its_namesakes(
    any_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.record.check_new_model", lambda *_: None)  # as older releases, which let in m and M
    for name in ("m", "M", "m-2", "m.2", "m/2", "m2", "mA", "ma", "m_"):
        record(any_registry, name)
    any_registry.set_alias("m@best", "m")
    assert [one.subject for one in any_registry.events("m")] == ["m@v1", "m@v1"]
    assert [one.subject for one in any_registry.events("M")] == ["M@v1"]


@pytest.mark.parametrize("limit", [-1, 2**31])
def test_a_limit_that_is_none_is_refused(registry: Registry, limit: int) -> None:
    record(registry, "m")
    for ask in (lambda: registry.history("m", limit=limit), lambda: registry.models(limit=limit)):
        with pytest.raises(RegistryError) as refused:
            ask()
        assert refused.value.code == "invalid-input"


def test_the_next_page_is_read_when_it_is_wanted() -> None:
    asked: list[tuple[int, int | None]] = []

    def read(n: int, before: int | None) -> Sequence[int]:
        asked.append((n, before))
        first = 2500 if before is None else before
        return range(first - 1, max(first - n, 0) - 1, -1)

    rows = read_pages(read, lambda row: row, None)
    assert next(rows) == 2499
    assert asked == [(PAGE, None)]
    assert list(rows) == list(range(2498, -1, -1))
    assert asked == [(PAGE, None), (PAGE, 1500), (PAGE, 500)]
    assert list(read_pages(read, lambda row: row, 1100)) == list(range(2499, 1399, -1))
    assert asked[3:] == [(PAGE, None), (100, 1500)]


def test_a_table_of_thousands_says_what_it_left_out(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = IN_A_TABLE + 1234
    record_copies(registry, "m", n)

    def run(*arguments: str) -> tuple[list[str], str]:
        main_and_return(["--registry", str(tmp_path / "registry.db"), *arguments])
        out, err = capsys.readouterr()
        return out.splitlines(), err

    lines, rest = run("history", "m")
    assert len(lines) == 1 + IN_A_TABLE
    assert lines[1].startswith(f"m@v{n} ")
    assert "1,234 more: say --limit N" in rest
    lines, rest = run("history", "m", "--limit", str(n))
    assert (len(lines), rest) == (1 + n, "")
    lines, rest = run("history", "m", "-o", "json")
    assert ([row["version"] for row in json.loads("\n".join(lines))["rows"]], rest) == (list(range(n, 0, -1)), "")
    assert run("history", "m", "-o", "ids", "--limit", "2") == ([f"m@v{n}", f"m@v{n - 1}"], "")
    assert len(run("ls")[0]) == 2


def main_and_return(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
