"""What `make bench` measures with and writes: fits, bounds, memory and page cache; and the whole of it, quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import SUBJECTS
from benchmarks.cache import chill, count_cached, list_files, warm
from benchmarks.environments import PINS, RIVALS, find_rivals
from benchmarks.page import Bound, Entry, Line, Section, write_page, write_seconds
from benchmarks.pictures import fit_line, fit_power
from benchmarks.timing import take_turns, time_many
from benchmarks.worker import Way, WayFailed, Worker

ROOT = Path(__file__).parent.parent
MB = 10**6


class Allocates(Way):
    """Fills so many bytes of memory, gives them back, and fails when it is asked to."""

    def run(self, request: Mapping[str, Any]) -> Any:
        if request.get("fails"):
            raise ValueError("as it was asked to")
        bytearray(b"x" * request["n_bytes"])

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        os.write(1, b"what a library prints is no answer\n")
        return {"asked": request["n_bytes"]}


ALLOCATES = "tests.test_benchmarks:Allocates"


def test_a_worker_measures_the_memory_that_was_taken_meanwhile() -> None:
    with Worker(ALLOCATES, 10**10) as worker:
        small, large = worker.run(n_bytes=1000), worker.run(n_bytes=200 * MB)
    assert large.details == {"asked": 200 * MB}
    assert small.private_bytes < 20 * MB
    assert 200 * MB <= large.private_bytes < 450 * MB  # the bytes, and the bytearray of them
    assert 0 < small.seconds < large.seconds


def test_a_worker_says_why_it_failed_and_stops_at_its_limit_of_memory() -> None:
    with Worker(ALLOCATES, 10**10) as worker, pytest.raises(WayFailed, match="ValueError: as it was asked to"):
        worker.run(fails=True)
    with Worker(ALLOCATES, 150 * MB) as worker, pytest.raises(WayFailed, match="stopped at 0 GB of private memory"):
        worker.run(n_bytes=2000 * MB)


def test_files_go_into_the_page_cache_and_out_of_it(on_disk: Path) -> None:
    file = on_disk / "folder" / "file"
    file.parent.mkdir()
    file.write_bytes(os.urandom(3 * MB))
    (on_disk / "link").symlink_to(file)
    files = list_files(on_disk)
    assert files == [file]
    warm(files)
    assert count_cached(file) == (733, 733)
    try:
        chill(files)
    except OSError:
        pytest.skip("the temporary folder is in memory, which no file can leave")
    assert count_cached(file)[0] < 74


def test_ways_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abababab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


def test_short_calls_are_fewer_when_the_budget_is_spent() -> None:
    assert len(time_many({"": lambda: None}, 70)[""]) == 70
    assert len(time_many({"": lambda: None}, 10**9, budget_seconds=0.01)[""]) < 10**6


def test_fits_find_what_made_the_points() -> None:
    assert fit_power({n: 0.5 * n**1.5 for n in (1, 10, 100)}) == pytest.approx((0.5, 1.5))
    assert fit_line({n: 0.5 + 0.25 * n for n in (1, 10, 100)}) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize(
    ("sense", "measured", "held"), [("at most", 1.5, True), ("at most", 2.5, False), ("at least", 1.5, False)]
)
def test_a_missed_bound_says_by_how_much_and_why(sense: Any, measured: float, held: bool) -> None:
    bound = Bound("loading", sense, 2, measured, "times", "Because of this.")
    assert bound.held is held
    page = write_page([], [Section("Loading", "python -m benchmarks", bounds=[bound])], quick=False)
    assert ("Because of this." in page) is not held
    assert ("missed by 25% of the bound" in page) is not held


def test_what_was_not_measured_says_why() -> None:
    lines = [Line("ours", (0.5, 0.25, 1.0), 12 * MB), Line("theirs", missing="not installed"), Line("other", (1.0,))]
    section = Section(
        "Loading", "command", entries=[Entry("warm", lines)], bounds=[Bound("it", "at most", 1, None, "", "")]
    )
    page = write_page([], [section], quick=True)
    assert "| **lensreg** | ours | 500 ms | 250 ms – 1.00 s (3) | 12.0 MB |  |" in page
    assert "|  | theirs | — | not installed | | |" in page
    assert "|  | other | 1.00 s | 1.00 s – 1.00 s (1) |  | 2 |" in page
    assert "not measured" in page and "say nothing" in page


def test_times_have_three_digits_and_a_unit() -> None:
    assert [write_seconds(one) for one in (2.5e-7, 4.06e-5, 0.1234, 12.3)] == ["250 ns", "40.6 µs", "123 ms", "12.3 s"]


def test_every_rival_is_pinned_whole(tmp_path: Path) -> None:
    for rival in RIVALS:
        (tmp_path / rival).mkdir()
        (tmp_path / rival / "ready").write_text((PINS / f"{rival}.txt").read_text())
    assert list(find_rivals(tmp_path)) == list(RIVALS)
    for pins in PINS.glob("*.txt"):
        assert all(line.count("==") == 1 for line in pins.read_text().splitlines()), pins


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_whole_page_is_written_with_every_row(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--without-rivals", "--page", str(page)]
    left_by_others = set((ROOT / ".bench").glob("part-*"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "Not measured" not in text, text
    for subject in SUBJECTS:
        assert f"`python -m benchmarks --only {subject}`" in text
    rows = [line for line in text.splitlines() if line.startswith("| **lensreg** |")]
    # loading twice and with a tokenizer, registering, resolving and searching, commands, growth
    assert len(rows) == 2 * 5 + 1 + 3 + 8 + 4 + 9
    for row in rows:
        assert "—" not in row.split("|")[3], row
    for what in ("HookedTransformer.from_pretrained", "torch.load", "enable_compatibility_mode", "load_file"):
        measured = [line for line in text.splitlines() if line.startswith("|  |") and what in line]
        assert measured and not any("| — |" in line for line in measured), measured
    for rival in ("MLflow", "mlflow", "hf", "dvc", "gto", "bentoml", "trackio"):
        assert any(rival in line and "not installed" in line for line in text.splitlines()), rival
    for name in ("load", "resolve", "lineage"):
        assert f"![{name} against" in text
        assert (tmp_path / "images" / f"bench-{name}.svg").read_text().startswith("<?xml")
    assert set((ROOT / ".bench").glob("part-*")) <= left_by_others
