"""What changed between two versions, from what is recorded: field by field, and tensor by tensor from digests alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from registry.architecture import Architecture, Difference, find_differences
from registry.errors import RegistryError, TensorsUnknown, UnsupportedLayout
from registry.plain_text import escape
from registry.query import read_version
from registry.resolve import resolve_ref
from registry.tensor_digests import TensorRecord, read_tensors
from registry.versions import Version

FACTS = ("family", "layout", "processing", "dtype", "n_parameters", "vocabulary_digest", "step")


@dataclass(frozen=True)
class TensorChange:
    """One tensor that both versions have, and that is not the same."""

    name: str
    a: TensorRecord
    b: TensorRecord


@dataclass(frozen=True)
class ChangedTensors:
    """Which tensors are equal, changed, added in `b`, or gone from it, by name; equal ones have the same bytes."""

    a: str
    b: str
    equal: tuple[str, ...]
    changed: tuple[TensorChange, ...]
    added: Mapping[str, TensorRecord]
    gone: Mapping[str, TensorRecord]

    def __str__(self) -> str:
        n = {name: len(getattr(self, name)) for name in ("equal", "changed", "added", "gone")}
        return ", ".join(f"{number:,} {name}" for name, number in n.items() if number) or "none"

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {
            "equal": list(self.equal),
            "changed": [asdict(one) for one in self.changed],
            "added": [{"name": name, **asdict(one)} for name, one in self.added.items()],
            "gone": [{"name": name, **asdict(one)} for name, one in self.gone.items()],
        }

    def _repr_html_(self) -> str:
        rows = [(one.name, "changed") for one in self.changed]
        rows += [(name, what) for what in ("added", "gone") for name in getattr(self, what)]
        cells = "".join(f"<tr><td>{escape(name)}</td><td>{what}</td></tr>" for name, what in rows[:100])
        more = f"<p>and {len(rows) - 100:,} more</p>" if len(rows) > 100 else ""
        title = f"{escape(self.a)} → {escape(self.b)}: {self}"
        return f"<div><table><caption>{title}</caption><tr><th>tensor</th><th></th></tr>{cells}</table>{more}</div>"


@dataclass(frozen=True)
class RecordedDiff:
    """What the records say of two versions: facts and architecture fields that differ, and the tensors.

    `tensors` is None where `obstacle`, an error that was not raised, says why they cannot be told.
    """

    a: str
    b: str
    facts: Mapping[str, tuple[Any, Any]]
    architecture: tuple[Difference, ...]
    tensors: ChangedTensors | None
    obstacle: RegistryError | None


def read_diff(connection: Connection, a: str, b: str) -> RecordedDiff:
    """Compare what is recorded of the versions that two refs mean."""
    one, other = (read_version(connection, resolve_ref(connection, ref).id) for ref in (a, b))
    tensors, obstacle = None, None
    try:
        tensors = compare_tensors(connection, one, other)
    except (TensorsUnknown, UnsupportedLayout) as error:
        obstacle = error
    facts = {name: (getattr(one, name), getattr(other, name)) for name in FACTS}
    return RecordedDiff(
        one.ref,
        other.ref,
        {name: pair for name, pair in facts.items() if pair[0] != pair[1]},
        find_differences(Architecture(one.architecture), Architecture(other.architecture)),
        tensors,
        obstacle,
    )


def compare_tensors(connection: Connection, a: Version, b: Version) -> ChangedTensors:
    """Compare two versions tensor by tensor, by their digests, reading no weights.

    Raises TensorsUnknown if they are not recorded, and UnsupportedLayout if the two name tensors differently.
    """
    if a.layout != b.layout:
        raise UnsupportedLayout(
            f"{a.ref} has the tensors of a {a.layout} checkpoint, and {b.ref} those of a {b.layout} one: "
            "they have other names and shapes, and so other digests.",
            hint="Compare what they compute: load both.",
        )
    old, new = (_read(connection, one) for one in (a, b))
    both = sorted(old.keys() & new.keys())
    return ChangedTensors(
        a.ref,
        b.ref,
        equal=tuple(name for name in both if old[name] == new[name]),
        changed=tuple(TensorChange(name, old[name], new[name]) for name in both if old[name] != new[name]),
        added={name: new[name] for name in sorted(new.keys() - old.keys())},
        gone={name: old[name] for name in sorted(old.keys() - new.keys())},
    )


def _read(connection: Connection, version: Version) -> dict[str, TensorRecord]:
    if version.weights_digest is None:
        raise TensorsUnknown(
            f"The weights of {version.ref} were left on the Hub, and only their files' digests are known.",
            hint=f"Fetch them: lensreg fetch {version.ref}",
        )
    tensors = read_tensors(connection, version.weights_digest)
    if tensors is None:
        raise TensorsUnknown(
            f"{version.ref} was registered before the digests of single tensors were kept.",
            hint="Read its weights once, and they are kept: lensreg diff A B --read",
        )
    return tensors
