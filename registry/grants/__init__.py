"""What a role of a Postgres database is granted, as SQL for its administrator: to read, to register, or everything."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal, get_args

from registry.errors import InvalidInput, InvalidName
from registry.refs import check_text

Role = Literal["read", "register", "admin"]
# longer ones Postgres cuts in silence
MAX_NAME_BYTES = 63


def write_grants(role: Role, name: str, schema: str = "public") -> str:
    """Return the SQL that makes the database role `name`, which must exist, a reader, a registrar or the owner.

    Whoever was granted something else before is left with this alone; run it again after the schema was upgraded.
    """
    if role not in get_args(Role):
        raise InvalidInput(f"{role!r} is no role.", hint=f"Give {', '.join(get_args(Role))}.")
    template = files(__name__).joinpath(f"{role}.sql").read_text(encoding="utf-8")
    quoted = _quote(schema, "schema")
    text = "'" + quoted.replace("'", "''") + "'"
    return template.format(role=_quote(name, "role"), schema=quoted, schema_text=text)


def _quote(name: str, what: str) -> str:
    """Quote a name for Postgres; those that would end a comment or a string of the script are refused."""
    check_text(name, f"{what}'s name")
    if not name or len(name.encode()) > MAX_NAME_BYTES or not name.isprintable() or set(name) & set("'$%"):
        raise InvalidName(
            f"{name[:100]!r} cannot name a {what} here.",
            hint=f"Use up to {MAX_NAME_BYTES} bytes of printable characters, without quotes, $ and %.",
            name=name,
        )
    return '"' + name.replace('"', '""') + '"'
