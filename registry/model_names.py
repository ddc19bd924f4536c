"""Names for new models, beside those that are there: no two may differ in nothing but upper and lower case.

Where file systems do not tell case apart, such twins would be one folder; and people do not tell them apart, either.
Names that are there already stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, func, select

from registry.errors import InvalidName
from registry.refs import check_new_model_name
from registry.tables import models

_PAGE = 500


def check_new_model(connection: Connection, name: str) -> None:
    """Raise InvalidName if `name` is no model's yet, and a new one may not have it."""
    if connection.execute(select(models.c.id).where(models.c.name == name)).scalar() is not None:
        return
    check_new_model_name(name)
    twins = find_case_twins(connection, [name])
    if twins:
        raise InvalidName(
            f"{name!r} cannot name a new model: {twins[name]!r} is there, and differs only in upper and lower case.",
            hint=f"Register it as a version of {twins[name]!r}, or choose a name that differs in more.",
            name=name,
            twin=twins[name],
        )


def find_case_twins(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Return, for those of `names` that have one, a model that is there and differs from it in nothing but case."""
    found: dict[str, list[str]] = {}
    lowered = sorted({name.lower() for name in names})
    for start in range(0, len(lowered), _PAGE):
        query = select(models.c.name).where(func.lower(models.c.name).in_(lowered[start : start + _PAGE]))
        for there in connection.execute(query).scalars():
            found.setdefault(there.lower(), []).append(there)
    twins = {name: _choose_other(name, found.get(name.lower(), ())) for name in names}
    return {name: twin for name, twin in twins.items() if twin is not None}


def _choose_other(name: str, there: Iterable[str]) -> str | None:
    return next((one for one in sorted(there) if one != name), None)
