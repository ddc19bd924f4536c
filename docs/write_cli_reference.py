"""Write docs/cli.md from the commands themselves; a test fails when it is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from cli.main import lensreg

PAGE = Path(__file__).parent / "cli.md"
INTRODUCTION = """# The command `lensreg`

Written by `make docs` from the commands themselves. Exit codes: 0 done, 1 could not (one line on stderr says why and
what to do), 2 wrong usage, 3 a check ran and found a fault. stdout is data, stderr everything else.

`--output json` prints one object with `schema_version`; lists are in `rows`, and `version` is an integer. Errors are
then JSON on stderr: `{"schema_version": 1, "error": {"code", "message", "hint", …}}`. Only `table` shortens.
"""


def write_reference() -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    for name, context in walk_commands(start_context()):
        sections.append(f"## `{name}`\n\n```text\n{context.get_help()}\n```\n")
    return "\n".join(sections)


def start_context() -> click.Context:
    """Return the context of `lensreg` itself."""
    return click.Context(lensreg, info_name="lensreg", **lensreg.context_settings)


def walk_commands(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    """Give every command with its full name, groups before their members."""
    context.terminal_width = 100
    context.max_content_width = 100
    yield context.command_path, context
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            if member is not None:
                yield from walk_commands(click.Context(member, info_name=name, parent=context))


if __name__ == "__main__":
    PAGE.write_text(write_reference())
