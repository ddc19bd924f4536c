"""What changed between two versions, from what is recorded: field by field, and tensor by tensor from digests alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from registry.architecture import Architecture, Difference, find_differences
from registry.errors import RegistryError, TensorsUnknown, UnsupportedLayout
from registry.plain_text import escape
from registry.query import read_version
from registry.resolve import resolve_ref
from registry.results import make_frame
from registry.tensor_digests import TensorRecord, read_tensors
from registry.versions import Version

if TYPE_CHECKING:
    import pandas

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

    Facts are such as dtype, step, parents, tokenizer (the digest of its files) and tags. `tensors` is None where
    `obstacle`, an error that was not raised, says why they cannot be told.
    """

    a: str
    b: str
    facts: Mapping[str, tuple[Any, Any]]
    architecture: tuple[Difference, ...]
    tensors: ChangedTensors | None
    obstacle: RegistryError | None

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame with a row for each fact and each field of the architecture that differ."""
        rows = [["fact", name, *pair] for name, pair in self.facts.items()]
        rows += [["architecture", one.field, one.parent, one.checkpoint] for one in self.architecture]
        return make_frame(["kind", "name", "a", "b"], rows)


def read_diff(connection: Connection, a: str, b: str) -> RecordedDiff:
    """Compare what is recorded of the versions that two refs mean."""
    one, other = (read_version(connection, resolve_ref(connection, ref).id) for ref in (a, b))
    tensors, obstacle = None, None
    try:
        tensors = compare_tensors(connection, one, other)
    except (TensorsUnknown, UnsupportedLayout) as error:
        obstacle = error
    old, new = _list_facts(one), _list_facts(other)
    facts = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    return RecordedDiff(
        one.ref,
        other.ref,
        {name: pair for name, pair in facts.items() if pair[0] != pair[1]},
        find_differences(Architecture(one.architecture), Architecture(other.architecture)),
        tensors,
        obstacle,
    )


def _list_facts(version: Version) -> dict[str, Any]:
    """Return what is recorded of a version beside its architecture: also its files, its training, and its tags."""
    files = [(file.name, file.digest) for file in version.with_role("tokenizer")]
    parents = [f"{one.ref} ({one.relation})" for one in version.parents]
    parents += [f"{one.ref} ({one.relation}, absent)" for one in version.absent_parents if one.joined is None]
    merged = version.provenance.get("merge")
    return {
        **{name: getattr(version, name) for name in FACTS},
        "tokenizer": _digest(sorted(files)) if files else None,
        "parents": ", ".join(parents) or None,
        "repo": version.provenance.get("repo"),
        "commit": version.provenance.get("commit"),
        "merged adapter": json.dumps(merged, sort_keys=True) if merged else None,
        **{f"tag {key}": value for key, value in sorted(version.tags.items())},
    }


def _digest(files: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


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
