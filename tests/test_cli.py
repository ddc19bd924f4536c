"""The command as people and scripts use it: output, exit codes, errors in one line, help for everything."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import COMMANDS, main
from docs.write_cli_reference import PAGE, start_context, walk_commands, write_reference
from tests.checkpoints import UNRELATED, edit_config


@dataclass(frozen=True)
class Answer:
    """What one call of the command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `lensreg` in a fresh registry, on SQLite and on Postgres."""
    monkeypatch.setenv("LENSREG_URL", database_url)
    monkeypatch.setenv("LENSREG_STORE", str(tmp_path / "store"))

    def run_command(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run_command


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("gpt2")


@pytest.fixture(scope="module")
def tuned(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("gpt2", seed=1)


@pytest.fixture
def populated(run: Run, base: Path, tuned: Path) -> Run:
    """A registry with a base model and its fine-tune, unverified to be quick."""
    assert run("add", "org/base", base, "--parity", "skip").code == 0
    added = run("add", "tuned", tuned, "--parity", "skip", "--parent", "org/base", "--step", "10", "--tag", "a=b")
    assert added.code == 0
    return run


def test_the_way_through(run: Run, base: Path, tuned: Path) -> None:
    added = run("add", "base", base, "--note", "the first")
    assert added.code == 0 and "registered base@v1" in added.out and "noise floor" in added.out
    again = run("add", "base", base)
    assert again.code == 0 and "holds this already" in again.out
    assert run("add", "tuned", tuned, "--parent", "base", "--step", "5").code == 0
    assert run("alias", "set", "tuned@best", "tuned@step-5").out == "tuned@best is tuned@v1\n"
    tree = run("lineage", "tuned")
    assert tree.out.splitlines()[0].startswith("base@v1")
    assert "└── tuned@v1  finetuned  step 5  @best" in tree.out
    folder = Path(run("path", "tuned@best").out.strip())
    assert (folder / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    refused = run("retire", "tuned")
    assert refused.code == 1 and "tuned@best" in refused.err
    assert run("retire", "tuned", "--force").code == 0
    assert run("show", "tuned").code == 1
    assert "(retired)" in run("show", "tuned@v1").out
    assert run("restore", "tuned@v1").out == "restored tuned@v1\n"
    assert run("audit", "verify").code == 0


def test_a_mismatch_is_a_table_on_stderr_and_exit_code_1(populated: Run, make_checkpoint: Callable[..., Path]) -> None:
    wrong = edit_config(make_checkpoint("gpt2", seed=2), n_head=8)
    refused = populated("add", "wrong", wrong, "--parent", "org/base")
    assert (refused.code, refused.out) == (1, "")
    rows = [line.split() for line in refused.err.splitlines()]
    assert ["n_heads", "n_head", "4", "8"] in rows
    assert "--allow n_heads" in refused.err
    assert "wrong" not in populated("ls").out
    as_json = json.loads(populated("add", "wrong", wrong, "--parent", "org/base", "-o", "json").err)
    assert as_json["error"]["code"] == "architecture-mismatch"
    assert {"field": "n_heads", "config_key": "n_head", "parent": 4, "checkpoint": 8} in as_json["error"]["differences"]


def test_where_nothing_is_registered_it_says_where_that_is(run: Run, database_url: str) -> None:
    """Most often it is the wrong registry."""
    said = run("ls").err
    where = "postgresql+psycopg://postgres:***@" if database_url.startswith("postgres") else database_url.split("//")[1]
    assert said.startswith(f"Nothing is registered in {where}")
    answer = run("show", "pirate")
    assert answer.code == 1 and "no model 'pirate'. Nothing is registered in this registry yet." in answer.err


def test_a_dry_run_answers_without_writing(run: Run, base: Path, tmp_path: Path) -> None:
    answer = run("add", "base", base, "--dry-run")
    assert answer.code == 0 and "nothing was written" in answer.out
    assert run("ls", "-o", "ids").out == ""
    assert not (tmp_path / "store").exists()


SUMMARY_KEYS = {
    "model", "version", "ref", "step", "family", "n_parameters", "size_bytes", "weights_digest", "verified",
    "parents", "aliases", "note", "created_at", "retired_at",
}  # fmt: skip
LINEAGE_KEYS = SUMMARY_KEYS - {"size_bytes", "aliases", "note"} | {"direction", "depth", "relations"}
JSON_KEYS = {
    ("ls",): {"model", "newest", "n_versions", "family", "n_parameters", "verified", "created_at"},
    ("history", "tuned"): SUMMARY_KEYS,
    ("lineage", "tuned", "--up"): LINEAGE_KEYS,
    ("lineage", "org/base", "--down"): LINEAGE_KEYS,
    ("search", "step = 10", "--order-by", "tag.a"): SUMMARY_KEYS | {"values"},
    ("alias", "list"): {"alias", "model", "ref", "set_at", "removed_at"},
    ("audit", "log"): {
        "sequence", "at", "actor", "action", "subject", "details", "environment", "previous_digest", "digest",
    },
}  # fmt: skip


@pytest.mark.parametrize("command", JSON_KEYS)
def test_the_keys_of_json_rows_are_a_contract(populated: Run, command: tuple[str, ...]) -> None:
    populated("alias", "set", "tuned@best", "tuned")
    answer = populated(*command, "--output", "json").json
    assert answer["schema_version"] == 1
    assert answer["rows"]
    assert all(set(row) == JSON_KEYS[command] for row in answer["rows"])


def test_the_keys_of_json_objects_are_a_contract(populated: Run, tuned: Path) -> None:
    shown = populated("show", "tuned", "-o", "json").json
    assert type(shown["version"]) is int
    assert set(shown) == {
        "schema_version", "ref", "version", "verified", "model", "step", "family", "fingerprint", "architecture",
        "weights_digest", "vocabulary_digest", "layout", "dtype", "n_parameters", "size_bytes", "source_kind",
        "source_location", "provenance", "processing", "note", "findings", "created_at", "retired_at", "files",
        "parents", "absent_parents", "aliases", "tags", "validations", "alias_history", "events",
    }  # fmt: skip
    added = populated("add", "tuned", tuned, "-o", "json").json
    assert set(added) == {
        "schema_version", "outcome", "model", "version", "ref", "weights_digest", "fingerprint", "n_parameters",
        "admitted_differences", "parity", "findings",
    }  # fmt: skip
    assert set(populated("path", "tuned", "-o", "json").json) == {"schema_version", "path"}
    assert set(populated("audit", "verify", "-o", "json").json) == {"schema_version", "ok", "n_events", "head", "fault"}
    assert set(populated("audit", "head", "-o", "json").json) == {"schema_version", "n_events", "head"}
    status = {"schema_version", "database", "store", "schema", "needed_schema"}
    assert set(populated("db", "status", "-o", "json").json) == status


def test_both_spellings_of_a_lineage_s_format_work(populated: Run) -> None:
    for options in (["--output"], ["--format"], ["-o"]):
        answer = populated("lineage", "tuned", "--up", *options, "json").json
        assert set(answer) == {"schema_version", "ref", "rows", "edges", "absent"}
        assert (answer["ref"], [row["ref"] for row in answer["rows"]]) == ("tuned@v1", ["org/base@v1"])
        (edge,) = answer["edges"]
        evidence = edge.pop("evidence")
        assert (evidence["verdict"], evidence["n_unchanged"], evidence["n_matrices"]) == ("related", 0, 12)
        assert edge == {
            "parent": "org/base@v1", "child": "tuned@v1", "relation": "finetuned", "admitted_differences": [],
            "declared": None,
        }  # fmt: skip
    assert populated("lineage", "tuned", "--format", "mermaid").out.startswith("flowchart TD\n")
    assert populated("lineage", "tuned", "--format", "dot").out.startswith("digraph lineage {\n")
    assert populated("lineage", "tuned", "--format", "html").out.startswith("<!DOCTYPE html>\n")
    assert populated("lineage", "org/base", "--depth", "0").code == 2


def test_absent_parents_are_declared_shown_and_joined(
    populated: Run, make_checkpoint: Callable[..., Path], base: Path
) -> None:
    declared = "org/teacher@main"
    added = populated(
        "add", "pupil", make_checkpoint("gpt2", seed=5), "--parent", "finetuned=org/base", "--parent-absent",
        f"distilled={declared}", "--parent-absent", "hf://x/y@v=1", "--relation", "merged", "--parity", "skip",
    )  # fmt: skip
    assert added.code == 1 and "'hf://x/y@v=1'" not in added.err and "no relation" in added.err
    added = populated(
        "add", "pupil", make_checkpoint("gpt2", seed=5), "--parent", "finetuned=org/base", "--parent-absent",
        f"distilled={declared}", "--parity", "skip",
    )  # fmt: skip
    assert added.code == 0 and "hf://org/teacher@main (distilled), absent" in added.out
    tree = populated("lineage", "pupil").out
    assert "hf://org/teacher@main  absent" in tree and "pupil@v1  distilled" in tree
    (absent,) = populated("lineage", "pupil", "-o", "json").json["absent"]
    assert absent == {
        "child": "pupil@v1", "ref": "hf://org/teacher@main", "repo": "org/teacher", "revision": "main",
        "digest": None, "relation": "distilled", "allowed": [],
    }  # fmt: skip
    assert populated("join", "pupil", "org/base").code == 1
    populated("add", "teacher", make_checkpoint("gpt2", seed=6), "--parity", "skip")
    assert populated("join", "pupil", "teacher").out == "joined pupil@v1: org/base@v1, teacher@v1\n"
    assert "teacher@v1 (distilled), declared as hf://org/teacher@main" in populated("show", "pupil").out
    assert populated("audit", "verify").code == 0


def test_what_a_source_comes_from(populated: Run, tuned: Path, make_checkpoint: Callable[..., Path]) -> None:
    answer = populated("identify", tuned)
    assert "identical weights to tuned@v1" in answer.out and "org/base@v1" in answer.out and "finetuned" in answer.out
    assert populated("identify", tuned, "--output", "ids").out.split() == ["tuned@v1", "org/base@v1"]
    rows = populated("identify", tuned, "--output", "json").json["matches"]
    assert {"ref", "kind", "evidence", "rank", "differences"} == rows[0].keys()
    assert "unrelated" in populated("identify", make_checkpoint("gpt2", seed=UNRELATED)).out


def test_a_parent_that_it_does_not_come_from_is_refused_and_shown(
    populated: Run, make_checkpoint: Callable[..., Path]
) -> None:
    other = make_checkpoint("gpt2", seed=UNRELATED)
    answer = populated("add", "other", other, "--parent", "org/base")
    assert answer.code == 1 and "[unrelated-parent]" in answer.err and "--allow unrelated-parent" in answer.err
    assert populated("add", "other", other, "--parent", "org/base", "--allow", "unrelated-parent").code == 0
    assert "weights: unrelated: correlation " in populated("show", "other").out
    assert "other@v1  finetuned  weights unrelated" in populated("lineage", "other").out


def test_relations_are_completed(populated: Run) -> None:
    from cli.options import Session, complete_parent, complete_relation

    context = click.Context(click.Command("add"), obj=Session())
    option = click.Option(["--parent"])
    assert complete_relation(context, option, "m") == ["merged"]
    assert complete_parent(context, option, "quant") == ["quantised="]
    assert complete_parent(context, option, "merged=tu") == ["merged=tuned"]
    assert complete_parent(context, option, "tuned@") == ["tuned@v1"]
    context.obj.close()


def test_versions_are_integers_and_ids_are_refs(populated: Run) -> None:
    assert [row["version"] for row in populated("history", "tuned", "-o", "json").json["rows"]] == [1]
    assert populated("history", "tuned", "-o", "ids").out == "tuned@v1\n"
    assert populated("lineage", "tuned", "--up", "-o", "ids").out == "org/base@v1\n"
    assert populated("ls", "-o", "ids").out == "org/base\ntuned\n"


def test_csv_is_whole_and_no_cell_is_a_formula(run: Run, base: Path) -> None:
    run("add", "base", base, "--parity", "skip", "--note", '=HYPERLINK("http://x")')
    (row,) = csv.DictReader(io.StringIO(run("history", "base", "-o", "csv").out))
    assert row["note"] == '\'=HYPERLINK("http://x")'
    assert len(row["weights_digest"]) == 64


def test_control_characters_never_reach_the_terminal(run: Run, base: Path) -> None:
    run("add", "base", base, "--parity", "skip", "--note", "fine\x1b[2Jgone\rforged")
    assert not {"\x1b", "\r"} & set(run("show", "base").out + run("history", "base").out)


ERRORS = {
    "unknown-ref": ("show", "tunde"),
    "invalid-ref": ("show", "../etc"),
    "invalid-name": ("add", "a/b/c", "."),
    "source-not-found": ("add", "x", "/nowhere/at/all"),
    "unsupported-source": ("add", "x", __file__),
    "unknown-field": ("add", "x", ".", "--allow", "n_haeds"),
    "invalid-input": ("add", "x", ".", "--relation", "cousin"),
}


@pytest.mark.parametrize("code", ERRORS)
def test_errors_are_one_line_with_code_and_hint(populated: Run, code: str) -> None:
    answer = populated(*ERRORS[code])
    assert (answer.code, answer.out) == (1, "")
    (line,) = answer.err.splitlines()
    assert line.startswith(f"error[{code}] ")
    assert "Traceback" not in line


def test_a_miss_says_did_you_mean(populated: Run) -> None:
    assert "Did you mean tuned?" in populated("show", "tunde").err
    assert "tuned@v1" in populated("show", "tuned@v7").err
    assert "Did you mean n_heads?" in populated("add", "x", ".", "--allow", "n_haeds").err


@pytest.mark.parametrize(
    "arguments",
    [
        ("ad",),
        ("add", "x"),
        ("show",),
        ("ls", "-o", "xml"),
        ("add", "x", ".", "--tag", "a"),
        ("add", "x", ".", "--parent", "a=y", "--parent", "b=y"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).code == 2


def test_an_unreachable_database_is_one_line(run: Run) -> None:
    answer = run("ls", "--registry", "postgresql://nobody@127.0.0.1:1/none")
    assert answer.code == 1
    assert answer.err.startswith("error[database-unavailable] ") and len(answer.err.splitlines()) == 1


def test_a_broken_audit_trail_is_exit_code_3(tmp_path: Path, base: Path, run: Run) -> None:
    where = ("--registry", str(tmp_path / "other.db"))
    assert run("add", "base", base, "--parity", "skip", *where).code == 0
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("UPDATE events SET actor = 'somebody else'")
    connection.close()
    answer = run("audit", "verify", *where)
    assert answer.code == 3 and "event 1 was altered" in answer.err


def test_show_tells_a_version_s_whole_story(populated: Run) -> None:
    for arguments in (("set", "tuned@best", "tuned"), ("set", "tuned@old", "tuned"), ("remove", "tuned@old")):
        populated("alias", *arguments)
    story = populated("show", "tuned").out
    assert "was called" in story and "\n                old  20" in story.replace(
        "was called    old", "\n                old"
    )
    for action in ("version.registered", "alias.set", "alias.removed"):
        assert action in story
    data = populated("show", "tuned", "-o", "json").json
    assert [one["action"] for one in data["events"]] == [
        "alias.removed",
        "alias.set",
        "alias.set",
        "version.registered",
    ]
    assert {one["alias"]: one["removed_at"] is None for one in data["alias_history"]} == {
        "tuned@best": True,
        "tuned@old": False,
    }


def test_the_audit_trail_is_filtered(populated: Run) -> None:
    populated("alias", "set", "tuned@best", "tuned")

    def log(*arguments: str) -> list[str]:
        return [row["action"] for row in populated("audit", "log", *arguments, "-o", "json").json["rows"]]

    assert log("--action", "alias.set") == ["alias.set"]
    assert log("--until", "2026-01-01") == log("--actor", "nobody") == []
    assert log("--since", "2026-01-01T00:00", "--limit", "1") == ["alias.set"]
    assert log("--before", "2") == ["version.registered"]
    assert populated("audit", "log", "--since", "yesterday").code == 2


def test_aliases_have_a_history(populated: Run, base: Path) -> None:
    populated("alias", "set", "tuned@best", "tuned")
    populated("alias", "remove", "tuned@best")
    assert populated("alias", "list", "-o", "ids").out == ""
    (row,) = populated("alias", "list", "tuned@best", "--history", "-o", "json").json["rows"]
    assert row["removed_at"] > row["set_at"]


def test_every_command_has_help_and_its_parameters_too() -> None:
    for name, context in walk_commands(start_context()):
        assert context.command.help, f"{name} has no help"
        for parameter in context.command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name} has no help"


def test_every_command_is_documented_and_the_page_is_current() -> None:
    page = PAGE.read_text()
    assert page == write_reference(), "docs/cli.md is out of date: make docs"
    assert all(f"## `lensreg {name}`" in page for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("ls",), ("path", "tuned"), ("show", "tuned"), ("lineage", "tuned")]
)
def test_commands_that_touch_no_tensors_import_no_torch(populated: Run, arguments: tuple[str, ...]) -> None:
    code = (
        "import sys, cli.main\n"
        "try: cli.main.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)\n"
        "if '--help' in sys.argv: heavy |= {'sqlalchemy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_search_in_every_format(populated: Run) -> None:
    found = populated("search", "tag.a = 'b'", "--show", "d_model", "--order-by", "-step")
    heading, row = found.out.splitlines()
    assert heading.split()[:4] == ["version", "step", "family", "d_model"] and row.startswith("tuned@v1")
    assert populated("search", "-o", "ids").out == "tuned@v1\norg/base@v1\n"
    assert populated("search", "descends_from('org/base')", "-o", "ids").out == "tuned@v1\n"
    as_json = populated("search", "step = 10", "--show", "tag.a", "-o", "json").json
    assert as_json["rows"][0]["values"] == {"tag.a": "b"} and as_json["after"] is None and as_json["notes"] == []
    page = populated("search", "--limit", "1")
    assert page.out.splitlines()[1].startswith("tuned@v1") and page.err == "There is more: --after tuned@v1\n"
    assert populated("search", "--limit", "1", "--after", "tuned", "-o", "ids").out == "org/base@v1\n"
    rows = list(csv.DictReader(io.StringIO(populated("search", "--show", "tag.a", "-o", "csv").out)))
    assert [(row["ref"], row["tag.a"]) for row in rows] == [("tuned@v1", "b"), ("org/base@v1", "")]
    nothing = populated("search", "tag.aa = 'b'")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == "Nothing was found.\nNo version has tag.aa. Did you mean tag.a?\n"
    fields = populated("search", "--fields").out
    assert "d_model" in fields and "metric.NAME" in fields and "descends_from(REF)" in fields


def test_a_search_that_cannot_be_read_is_pointed_at(populated: Run) -> None:
    refused = populated("search", "step = 10 and famly = 'gpt2'")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines() == [
        "error[invalid-query] There is no field famly.",
        "  step = 10 and famly = 'gpt2'",
        "                ^",
        "Did you mean family?",
    ]
    as_json = json.loads(populated("search", "famly = 'gpt2'", "-o", "json").err)["error"]
    assert (as_json["code"], as_json["column"], as_json["candidates"]) == ("invalid-query", 1, ["family"])


def test_sql_in_every_format(populated: Run) -> None:
    query = "select ref, step, -1 as minus from version_overview order by version_id"
    assert populated("sql", query).out.split() == ["ref", "step", "minus", "org/base@v1", "-1", "tuned@v1", "10", "-1"]
    as_json = populated("sql", query, "-o", "json").json
    assert as_json["rows"][1] == {"ref": "tuned@v1", "step": 10, "minus": -1}
    assert populated("sql", query, "-o", "csv").out.splitlines()[1:] == ["org/base@v1,,-1", "tuned@v1,10,-1"]
    cut = populated("sql", query, "--limit", "1")
    assert cut.err == "There were more than 1 rows: --limit\n"
    nothing = populated("sql", "select ref from version_overview where 1 = 2")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "The query gave no rows.\n")
    refused = populated("sql", "delete from tags")
    assert refused.code == 1 and refused.err.startswith("error[invalid-sql]")
    endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"
    stopped = populated("sql", endless, "--timeout", "0.3")
    assert stopped.code == 1 and stopped.err.startswith("error[query-timeout]") and "--timeout" in stopped.err
    tags = populated("sql", "select tags, created_at from version_overview", "-o", "json").json["rows"]
    assert len(tags) == 2
