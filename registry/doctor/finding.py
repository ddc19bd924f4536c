"""What one check of the doctor's came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from registry.errors import RegistryError

State = Literal["ok", "note", "warning", "fault"]
STATES: tuple[State, ...] = ("ok", "note", "warning", "fault")


@dataclass(frozen=True)
class Finding:
    """What was checked, how it is, what was found, and what to do about it.

    A note is worth knowing; with a warning the registry works, and something may go wrong; a fault keeps it from
    working, or puts at risk what is registered.
    """

    check: str
    state: State
    found: str
    to_do: str = ""


def report_errors(check: str, examine: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run a check; what it cannot get past is its finding."""
    findings: list[Finding] = []
    try:
        findings += examine()
    except RegistryError as error:
        findings.append(Finding(check, "fault", error.message, error.hint or ""))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        findings.append(Finding(check, "fault", f"{error.strerror or error}{where}.", "Check the permissions there."))
    return findings
