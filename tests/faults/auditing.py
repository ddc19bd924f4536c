"""Rows of the events' table edited, deleted, swapped, inserted, cut off: each is found, in a log of ten thousand."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

from registry import Registry
from registry.audit import append_event
from tests.faults.scenario import Chance, Outcome, Scenario

_N_EVENTS = 10_000
_COLUMNS = ("at", "actor", "action", "subject", "details", "environment", "digest", "previous_digest")


def strike(chance: Chance) -> Outcome:
    """Tamper with one row of the log, in one way or the other, and see that verifying finds it; put it back."""
    rng = random.Random(chance.seed)
    whole = chance.folder / "whole.db"
    registry = Registry(str(whole), chance.folder / "store")
    with registry.database.write() as connection:
        for number in range(_N_EVENTS):
            append_event(connection, "alias.set", f"m@v{number % 97}", {"alias": f"a{number}"})
    broken = [] if registry.verify_events() is None else ["a log that nobody touched does not hold"]
    head = registry.events_head()
    registry.close()
    ways: Counter[str] = Counter()
    while not chance.must_end(ways.total()) and not broken:
        path = Path(shutil.copy(whole, chance.folder / "altered.db"))
        way = ("edit", "delete", "reorder", "insert", "truncate")[ways.total() % 5]
        what = _tamper(path, way, rng)
        altered = Registry(str(path), chance.folder / "store")
        # what is cut off at its end leaves no trace in what is left: that takes a head that was kept elsewhere
        since = head.digest if way == "truncate" else None
        if altered.verify_events(since=since) is None:
            broken.append(f"{way} was not found: {what}")
        altered.close()
        ways[way] += 1
    return Outcome(ways.total(), tuple(broken), ", ".join(f"{n} {way}" for way, n in ways.items()))


def _tamper(path: Path, way: str, rng: random.Random) -> str:
    """Change one row, behind the registry's back, and return which and how."""
    row, other = rng.sample(range(1, _N_EVENTS + 1), 2)
    with sqlite3.connect(path) as connection:
        if way == "edit":
            column = rng.choice(_COLUMNS)
            (value,) = connection.execute(f"SELECT {column} FROM events WHERE sequence = ?", (row,)).fetchone()
            at = rng.randrange(len(value))
            edited = value[:at] + ("0" if value[at] != "0" else "1") + value[at + 1 :]
            connection.execute(f"UPDATE events SET {column} = ? WHERE sequence = ?", (edited, row))
            what = f"{column} of {row}: {edited!r:.200}"
        elif way == "delete":
            row = min(row, _N_EVENTS - 1)  # the last is cut off
            connection.execute("DELETE FROM events WHERE sequence = ?", (row,))
            if rng.random() < 0.5:  # and the others close up
                connection.execute("UPDATE events SET sequence = -sequence WHERE sequence > ?", (row,))
                connection.execute("UPDATE events SET sequence = -sequence - 1 WHERE sequence < 0")
            what = str(row)
        elif way == "reorder":
            for old, new in ((row, -1), (other, row), (-1, other)):
                connection.execute("UPDATE events SET sequence = ? WHERE sequence = ?", (new, old))
            what = f"{row} and {other}"
        elif way == "insert":
            connection.execute("UPDATE events SET sequence = -sequence WHERE sequence > ?", (row,))
            connection.execute("UPDATE events SET sequence = -sequence + 1 WHERE sequence < 0")
            connection.execute(
                "INSERT INTO events SELECT ?, ?, ?, at, actor, action, subject, details, environment FROM events"
                " WHERE sequence = 1",
                (row + 1, rng.randbytes(32).hex(), rng.randbytes(32).hex()),
            )
            what = f"behind {row}"
        else:
            connection.execute("DELETE FROM events WHERE sequence >= ?", (row,))
            what = f"from {row} on"
    connection.close()
    return what


SCENARIOS = [
    Scenario("audit", "F16", "one row of ten thousand events altered", strike, 0.7, 5, least_long=100),
]
