"""Text from outside made harmless to look at: what notes, paths, tensor names and errors say stays text.

Control characters move a terminal's cursor, change its title or forge lines; bidi overrides show a text in another
order than it has, on terminals and pages alike. Data (JSON, Python) keeps the exact value.
"""

from __future__ import annotations

import html

INSTEAD = "\ufffd"


def clean(text: str) -> str:
    """Replace every character that cannot be seen but does something; line breaks stay."""
    return "".join(character if character.isprintable() or character == "\n" else INSTEAD for character in text)


def clean_line(text: str) -> str:
    """Do the same to what has to stay one line."""
    return clean(text).replace("\n", INSTEAD)


def quote_error(error: BaseException) -> str:
    """Return the first line of what another library's error says, as much as fits in a message of ours."""
    return clean_line(str(error).strip().split("\n")[0] or type(error).__name__)[:500]


def escape(text: str) -> str:
    """Write text so that it means itself in HTML, between tags and in quoted attributes."""
    return html.escape(clean(text))
