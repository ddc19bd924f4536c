"""Tables for people: aligned by what is seen, and never wider than the terminal."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len

from cli.output import print_json, print_rows
from cli.table import Column, lay_out

COLUMNS = [Column("name", "name"), Column("n", "n", right=True), Column("note", "note")]


def _lay_out(*rows: tuple[str, str, str], room: int | None = None) -> list[str]:
    return list(lay_out([dict(zip(("name", "n", "note"), row, strict=True)) for row in rows], COLUMNS, room))


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert _lay_out(("a", "1", "x"), ("long name", "100", "")) == [
        "name         n  note",
        "a            1  x",
        "long name  100",
    ]


def test_a_column_with_nothing_in_it_is_left_out() -> None:
    assert _lay_out(("a", "1", "")) == ["name  n", "a     1"]


def test_wide_characters_take_two_cells() -> None:
    _, wide, plain = _lay_out(("模型", "1", "x"), ("abcd", "1", "x"))
    assert cell_len(wide) == len(plain)


@pytest.mark.parametrize("room", [30, 40, 79, 200])
def test_a_terminal_takes_from_the_widest_columns(room: int) -> None:
    name, note = "short", "模" * 60
    lines = _lay_out((name, "12345", note), (name, "1", "x"), room=room)
    assert max(map(cell_len, lines)) <= room
    assert all(line.startswith(name) for line in lines[1:])
    assert ("…" in lines[1]) == (room < 200)


def test_rows_are_written_as_they_come_just_as_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for rows in ([], [{"a": 1}], [{"a": [1, {"b": "\u2028x\ny"}]}, {"a": None}]):
        print_json({"rows": rows})
        at_once = capsys.readouterr().out
        print_rows(iter(rows), [], "json", "", "a")
        assert capsys.readouterr().out == at_once
        assert json.loads(at_once)["rows"] == rows
