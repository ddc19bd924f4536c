"""Lists of results that turn into a pandas DataFrame in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from registry.errors import PackageMissing
from registry.plain_text import escape
from registry.versions import VersionSummary

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")


class Results(list[T]):
    """A list of frozen dataclasses, all of the class `kind`."""

    def __init__(self, rows: Iterable[T], kind: type[T]) -> None:
        super().__init__(rows)
        self._kind = kind

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame with a row for each result and a column for each field, `ref` first if it has one.

        Raises PackageMissing without pandas.
        """
        names = [one.name for one in fields(self._kind) if one.name != "values"]  # type: ignore[arg-type]
        if hasattr(self._kind, "ref") and "ref" not in names:
            names.insert(0, "ref")
        more = list(dict.fromkeys(name for row in self for name in getattr(row, "values", {}) if name not in names))
        rows = [
            [getattr(row, name) for name in names] + [getattr(row, "values", {}).get(name) for name in more]
            for row in self
        ]
        return make_frame([*names, *more], rows)


@dataclass(frozen=True)
class FoundVersion(VersionSummary):
    """A version that a search found; `values` holds the fields that were ordered by or shown."""

    values: Mapping[str, Any] = field(default_factory=dict)


class SearchResult(Results[FoundVersion]):
    """The versions that a search found.

    `after` is what to give to `search(…, after=…)` for the next page, None on the last one; `notes` say what may
    explain that nothing was found.
    """

    def __init__(self, rows: Iterable[FoundVersion], *, after: str | None = None, notes: tuple[str, ...] = ()) -> None:
        super().__init__(rows, FoundVersion)
        self.after = after
        self.notes = notes

    @property
    def refs(self) -> list[str]:
        """The refs of what was found."""
        return [one.ref for one in self]

    def _repr_html_(self) -> str:
        names = list(self[0].values) if self else []
        heading = "".join(f"<th>{escape(name)}</th>" for name in ("version", "step", "family", "aliases", *names))
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td>{'' if cell is None else escape(str(cell))}</td>"
                for cell in (one.ref, one.step, one.family, ", ".join(one.aliases), *one.values.values())
            )
            + "</tr>"
            for one in self
        )
        return f"<table><tr>{heading}</tr>{rows}</table>"


def make_frame(names: list[str], rows: list[list[Any]]) -> pandas.DataFrame:
    """Make a DataFrame whose columns have nullable types, so that a missing step leaves steps whole numbers."""
    try:
        import pandas
    except ImportError:
        raise PackageMissing(
            "pandas is not installed.", package="pandas", hint="Install it: pip install 'lens-registry[pandas]'"
        ) from None
    return pandas.DataFrame(rows, columns=names, dtype=object).convert_dtypes()
