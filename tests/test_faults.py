"""The fault suite's runner: it must not pass over a breach, a blind control, a scenario that fails or hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.running import Row, find_failures, find_scenarios, run_all
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.faults.table import make_table, print_table


def strike_well(chance: Chance) -> Outcome:
    (chance.folder / "left").write_text("something")
    return Outcome(3, notes=f"seed {chance.seed}")


def find_breach(chance: Chance) -> Outcome:
    (chance.folder / "left").write_text("something")
    return Outcome(3, ("a version is half there",))


def be_elsewhere(chance: Chance) -> Outcome:
    raise NotHereError("this machine has no such thing")


def fail(chance: Chance) -> Outcome:
    raise ValueError("a mistake of the scenario's own")


def hang(chance: Chance) -> Outcome:
    time.sleep(600)
    return Outcome(1)


WELL = Scenario("well", "F1", "well", strike_well)
BREACH = Scenario("breach", "F1", "a breach", find_breach)
ELSEWHERE = Scenario("elsewhere", "F1", "not here", be_elsewhere)
SEEING = Scenario("seeing", "F1", "a control", find_breach, is_control=True)
BLIND = Scenario("blind", "F1", "a control", strike_well, is_control=True)
RARE = Scenario("rare", "F1", "too few", strike_well, least=4)
FAILING = Scenario("failing", "F1", "fails", fail)
FAILING_CONTROL = Scenario("failing-control", "F1", "fails", fail, is_control=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    scenarios = [WELL, BREACH, ELSEWHERE, SEEING, BLIND, RARE, FAILING, FAILING_CONTROL]
    folder = tmp_path_factory.mktemp("faults")
    return {row.scenario.name: row for row in run_all(scenarios, folder, 7, 10, warm_up=lambda: None)}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("breach", "a version is half there"),
        ("blind", "the suite is blind"),
        ("rare", "struck 3 times instead of 4"),
        ("failing", "a mistake of the scenario's own"),
        ("failing-control", "a mistake of the scenario's own"),
    ],
)
def test_failure_is_told(rows: dict[str, Row], name: str, said: str) -> None:
    (failure,) = find_failures([rows[name]])
    assert failure.startswith(f"{name}: ")
    assert said in failure


@pytest.mark.parametrize("name", ["well", "elsewhere", "seeing"])
def test_no_failure(rows: dict[str, Row], name: str) -> None:
    assert find_failures([rows[name]]) == []


def test_skip_is_listed_with_its_reason(rows: dict[str, Row], capsys: pytest.CaptureFixture[str]) -> None:
    print_table(list(rows.values()))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "skipped: this machine has no such thing" in lines["elsewhere"]
    assert "BLIND" in lines["blind"]
    assert "1 found" in lines["seeing"]
    assert "FAILED" in lines["failing"]


def test_a_long_run_has_to_strike_more_often(tmp_path: Path) -> None:
    many = Scenario("many", "F1", "as often as is promised", strike_well, least=2, least_long=4)
    seen = Scenario("seen", "F1", "a control that tries up to nine times", find_breach, least=9, is_control=True)
    assert (many.count_least(180), many.count_least(1800)) == (2, 4)
    assert find_failures(run_all([many, seen], tmp_path, 7, 10, warm_up=lambda: None)) == []
    (row,) = run_all([many], tmp_path / "long", 7, 1800, warm_up=lambda: None)
    assert find_failures([row]) == ["many: struck 3 times instead of 4 at least."]


def test_a_chance_ends_once_enough_was_struck(tmp_path: Path) -> None:
    over = Chance(tmp_path, 0, time.monotonic() - 1, least=5, overtime=60)
    assert not over.must_end(4) and over.must_end(5)
    assert Chance(tmp_path, 0, time.monotonic() - 1, least=5, overtime=0).must_end(4)
    assert not Chance(tmp_path, 0, time.monotonic() + 60, least=5).must_end(9)


def test_what_was_broken_is_kept(tmp_path: Path) -> None:
    run_all([WELL, BREACH], tmp_path, 7, 10, warm_up=lambda: None)
    assert (tmp_path / "breach" / "left").exists()
    assert not (tmp_path / "well").exists()


def test_same_seed_gives_same_chances(tmp_path: Path) -> None:
    notes = [
        run_all([WELL], tmp_path / str(index), seed, 10, warm_up=lambda: None)[0].outcome.notes
        for index, seed in enumerate((7, 7, 8))
    ]
    assert notes[0] == notes[1] != notes[2]


def test_hanging_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.running.PATIENCE", 0.1)
    monkeypatch.setattr("tests.faults.running.OVERTIME", 0)
    (row,) = run_all([Scenario("hang", "F1", "hangs", hang)], tmp_path, 7, 1, warm_up=lambda: None)
    assert "did not end" in find_failures([row])[0]


def test_a_scenario_that_was_skipped_says_why_in_the_table(rows: dict[str, Row]) -> None:
    text = make_table(list(rows.values()), 180)
    assert "| elsewhere | F1 | not here | – | – | skipped: this machine has no such thing |" in text


def test_names_of_scenarios_are_unique_and_known() -> None:
    names = [one.name for one in find_scenarios()]
    assert len(names) == len(set(names))
    assert [one.name for one in find_scenarios(["kill"])] == ["kill"]
    with pytest.raises(SystemExit, match="no scenario kil"):
        find_scenarios(["kil"])


@pytest.mark.slow
def test_command_runs() -> None:
    command = [sys.executable, "-m", "tests.faults", "--seconds", "5", "--only", "kill-control", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=250)
    assert "kill-control" in done.stdout
    assert done.returncode == ("BLIND" in done.stdout), done.stdout + done.stderr
