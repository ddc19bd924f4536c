"""Nothing that was recorded can act on a terminal, a page or a spreadsheet; JSON keeps the exact value."""

from __future__ import annotations

import ast
import csv
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from cli.main import main
from cli.output import clean
from registry import Registry
from registry.plain_text import clean_line, escape, quote_error
from registry.tables import events, versions
from registry.tensor_digests import TensorRecord
from tests.processes import ROOT
from tests.records import digest_of, record

NASTY = {
    "clear the screen": "\x1b[2J\x1b[Hgone",
    "title": "\x1b]0;pwned\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "C1": "\x9b31mred\x9c",
    "backspace": "safe\x08\x08\x08\x08evil",
    "carriage return": "kept\rforged",
    "line": "note\n#1  2026-01-01 00:00 UTC  version.registered  root@host",
    "vertical": "a\x0bb\x0cc\x85d\u2028e\u2029f",
    "delete": "a\x7fb",
    "bidi override": "\u202egnp.exe\u202c",
    "bidi isolate": "\u2066a\u2067b\u2068c\u2069",
    "mark": "\u200fa\u200eb\u061cc",
    "unseen": "a\u200bb\u200dc\ufeffd\u00ade",
    "tag characters": "a\U000e0041\U000e0042",
    "equals": "=cmd|' /C calc'!A0",
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(A1:A9)",
    "tab": "\t=1+1",
    "return and formula": "\r=1+1",
    "line and formula": "\n=1+1",
    "space and formula": "  =1+1",
    "wide": "＝1+1",
    "quotes": '","=1+1","',
    "script": "</td><script>alert(1)</script>",
    "attribute": '"\' onload=alert(1) x="',
    "entity": "&#x202e;&lt;script&gt;",
    "markup of rich": "[bold red]x[/bold red] [link=http://evil.example]y[/link] :skull:",
    "mermaid": '"]; click n0 "javascript:alert(1)"',
    "dot": '"]; x [URL="javascript:alert(1)"',
}
TENSORS = {
    name: TensorRecord("float32", (2,), digest_of(name))
    for name in ("plain", *(text for text in NASTY.values() if "\x00" not in text))
}

Run = Callable[..., str]


@pytest.fixture
def run(any_registry: Registry, database_url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `lensreg` in a registry where every text that nothing limits is nasty."""
    record(any_registry, "m", tensors={"plain": TENSORS["plain"]})
    for text in NASTY.values():
        record(any_registry, "m", note=text, tags={"t": text}, tensors=TENSORS, provenance={"commit": text})
    any_registry.retire("m@v3", force=True, reason=NASTY["clear the screen"])
    record(any_registry, "child", absent=["org/x@main"])
    any_registry.set_alias("m@best", "m@v2")
    with any_registry.database.write() as connection:
        for number, text in enumerate(NASTY.values(), start=2):
            finding = {"code": "nasty", "message": text}
            changes = {"source_location": text, "findings": [finding]}
            connection.execute(update(versions).where(versions.c.number == number).values(**changes))
            connection.execute(update(events).where(events.c.sequence == number).values(actor=text))

    def run_command(*arguments: str) -> str:
        capsys.readouterr()
        try:
            main(["--registry", database_url, "--store", str(any_registry.store.root), *arguments])
        except SystemExit as stop:
            assert stop.code in (0, 1, 2, 3, None)
        out, err = capsys.readouterr()
        assert _is_harmless(err)
        return out

    return run_command


def _is_harmless(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text.replace("\r\n", "\n"))


COMMANDS: list[tuple[str, ...]] = [
    ("ls",),
    ("history", "m"),
    ("show", "m@v2"),
    *(("show", f"m@v{number}") for number in range(3, 2 + len(NASTY), 4)),
    ("lineage", "m@v2"),
    ("lineage", "child"),
    ("diff", "m@v1", "m@v2"),
    ("search", "note is not null", "--show", "note", "--show", "tag.t"),
    ("sql", 'select note, note as "=x", ref as "\x1b[2J" from version_overview'),
    ("alias", "list"),
    ("audit", "log", "--limit", "1000"),
    ("audit", "verify"),
    ("verify",),
    ("db", "status"),
]
FORMATS = ["table", "tree", "mermaid", "dot", "html", "csv", "ids"]


def test_every_output_for_people_is_harmless(run: Run, subtests: pytest.Subtests) -> None:
    for command in COMMANDS:
        for output in FORMATS:
            printed = run(*command, "-o", output)
            if not printed:  # there is no such format of this command
                continue
            with subtests.test(command=command, output=output):
                assert _is_harmless(printed)
                if output == "csv":
                    _check_cells(printed)
                elif output == "ids":
                    assert "" not in printed.splitlines()
                elif output == "html":
                    assert not _Tags(printed).seen & {"script", "img", "iframe"}


def _check_cells(printed: str) -> None:
    """No cell is a formula, but for numbers."""
    rows = list(csv.reader(io.StringIO(printed, newline="")))
    assert len({len(row) for row in rows}) == 1, "no cell became two"
    for cell in (cell for row in rows for cell in row):
        if cell.lstrip()[:1] in ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"):
            float(cell)


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_json_keeps_the_exact_value_and_is_harmless_too(run: Run) -> None:
    expected = list(NASTY.values())

    def notes(*command: str) -> list[Any]:
        printed = run(*command, "-o", "json")
        assert _is_harmless(printed)
        return [row["note"] for row in json.loads(printed)["rows"] if row.get("note")]

    in_use = [one for one in expected if one != expected[1]]
    assert notes("history", "m") == expected[::-1] or notes("history", "m") == in_use[::-1]
    assert sorted(notes("sql", "select note from version_overview")) == sorted(expected)
    shown = json.loads(run("show", "m@v2", "-o", "json"))
    assert (shown["note"], shown["tags"], shown["source_location"]) == (expected[0], {"t": expected[0]}, expected[0])
    added = json.loads(run("diff", "m@v1", "m@v2", "-o", "json"))["tensors"]
    assert all(json.dumps(name) in json.dumps(added) for name in TENSORS if name != "plain")


def test_reprs_for_notebooks_are_harmless(any_registry: Registry) -> None:
    for text in NASTY.values():
        record(any_registry, "m", note=text, tensors=TENSORS)
    record(any_registry, "m", tensors={"plain": TENSORS["plain"]})
    pages = [
        any_registry.version("m@v1")._repr_html_(),
        any_registry.search("note is not null", show=["note"])._repr_html_(),
        any_registry.lineage("m@v1")._repr_html_(),
        any_registry.lineage("m@v1").to_html(),
        any_registry.diff("m@v1", "m").tensors._repr_html_(),  # type: ignore[union-attr]
    ]
    for page in pages:
        assert _is_harmless(page)
        found = _Tags(page)
        assert not found.seen & {"script", "img", "iframe"}
        assert not {name for name in found.attributes if name.startswith("on")}
    assert clean(NASTY["script"]) in _Tags(pages[1]).text


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_clean_keeps_what_can_be_seen(text: str) -> None:
    assert _is_harmless(clean(text)) and "\n" not in clean_line(text)
    assert len(clean(text)) == len(text)
    assert clean("模型 π ünïcödé – “x” 🙂") == "模型 π ünïcödé – “x” 🙂"
    assert "<" not in escape(text)


def test_only_one_module_of_the_command_prints() -> None:
    """What goes past cli/output.py would go past all of the above."""
    printers = {"echo", "secho", "print", "echo_via_pager"}
    for path in sorted((ROOT / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name != "output.py":
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                is_tree = path.name == "lineage.py" and name == "print"  # of pieces that are clean
                assert name not in printers or is_tree, f"{path.name}:{node.lineno}"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser: chromium")
def test_a_browser_shows_hostile_notes_as_text(registry: Registry, tmp_path: Path) -> None:
    """The page as a real browser understands it: nothing ran, nothing was loaded, and the notes are there to read."""
    attacks = (
        "<script>document.title = 'pwned'</script>",
        "<img src=x onerror=\"document.title = 'pwned'\">",
        "</style></title></td><svg onload=\"document.title = 'pwned'\">",
    )
    for text in (*attacks, *NASTY.values()):
        record(registry, "m", note=text)
    record(registry, "child", note=" ".join(attacks), absent=["org/x@main"])
    page = tmp_path / "page.html"
    for ref in [f"m@v{number}" for number in range(1, len(attacks) + 1)] + ["child@v1"]:
        # with the page's own ban on scripts taken out, so that only what is written can keep them from running
        text = registry.lineage(ref).to_html().replace("default-src 'none'; ", "")
        page.write_text(text, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        tags = _Tags(shown)
        assert f"<title>Lineage of {ref}</title>" in shown
        assert not tags.seen & {"script", "img", "iframe"}
        assert not {name for name in tags.attributes if name.startswith("on")}
        note = registry.version(ref).note
        assert note is not None and note in tags.text
    page.write_text(f"<title>x</title><td>{attacks[0]}</td>", encoding="utf-8")
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>pwned</title>" in shown, "the browser does run what is let through"


def test_another_library_s_error_is_quoted_in_one_harmless_line() -> None:
    assert quote_error(ValueError("act_fn=gelu\0 must be\none of these")) == "act_fn=gelu\ufffd must be"
    assert quote_error(AssertionError()) == "AssertionError"
    assert len(quote_error(ValueError("x" * 10_000))) == 500
