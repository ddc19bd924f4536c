"""What importing costs, and that the names, codes and pictures of the library are what they say."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry
from registry import Registry, RegistryError, errors
from registry.architecture import Difference
from registry.requirements import Requirement
from tests.processes import run_code
from tests.records import record, record_all

HEAVY = ["torch", "transformers", "transformer_lens", "sqlalchemy.orm", "gguf", "safetensors", "huggingface_hub"]
LOADED = "\nimport sys\nprint(sorted(name for name in {names!r} if name in sys.modules))\n"


def _find_imported(code: str, names: list[str], **values: object) -> str:
    return run_code(code + LOADED.format(names=names), **values)[-1]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A database with two versions and an alias, and its store."""
    folder = tmp_path_factory.mktemp("imports")
    one = Registry(str(folder / "registry.db"), folder / "store")
    record_all(one, {"model": "m", "step": 1}, {"model": "m", "parents": ["m"]})
    one.set_alias("m@best", "m")
    one.close()
    return {"url": folder / "registry.db", "store": folder / "store"}


def test_importing_registry_imports_neither_torch_nor_sqlalchemy() -> None:
    assert _find_imported("import registry", [*HEAVY, "sqlalchemy", "alembic", "numpy"]) == "[]"
    assert _find_imported("import registry; dir(registry); registry.__all__", [*HEAVY, "sqlalchemy"]) == "[]"


def test_asking_imports_neither_torch_nor_alembic(paths: dict[str, Path]) -> None:
    code = """
        from registry import Registry, RegistryError
        one = Registry(values["url"], values["store"])
        assert one.resolve("m@best").ref == one.version("m").ref == "m@v2"
        one.history("m"), one.models(), one.lineage("m").ancestors(), one.aliases(), one.events(), one.verify_events()
        assert [step.ref for step in one.trace("m").steps] == ["m@v1"]
        try:
            one.path("m")
        except RegistryError as error:
            assert error.code == "artifact-missing"
        one.set_alias("m@other", "m@v1"), one.remove_alias("m@other")
        one.close()
    """
    assert _find_imported(_dedent(code), [*HEAVY, "alembic", "numpy"], **paths) == "[]"


def test_setting_up_a_fresh_database_does_not_import_torch(tmp_path: Path) -> None:
    code = "import registry\none = registry.Registry(values['url'])\none.models()\none.close()"
    assert _find_imported(code, HEAVY, url=tmp_path / "registry.db") == "[]"


# what no command imports that touches no tensors; on SQLite, psycopg and the Postgres dialect (20 ms) neither
NO_TENSORS = [*HEAVY, "alembic", "numpy", "psycopg", "sqlalchemy.dialects.postgresql", "registry.families"]
NO_TENSORS += ["registry.sources", "filelock", "rich.table"]
NO_DATABASE = [*NO_TENSORS, "sqlalchemy", "rich", "registry.registry", "importlib.metadata"]
COMMAND = """
    import cli.main
    try:
        cli.main.main(values["arguments"])
    except SystemExit as stop:
        assert (stop.code or 0) == values["exits"], stop.code
"""


def _run_command(paths: dict[str, Path], arguments: str, unwanted: list[str], code: int = 0) -> str:
    where = ["--registry", str(paths["url"]), "--store", str(paths["store"])]
    return _find_imported(_dedent(COMMAND, 4), unwanted, arguments=[*where, *arguments.split()], exits=code)


@pytest.mark.parametrize("arguments", ["--help", "-h", "ls --help", "add --help", "audit --help", "audit log --help"])
def test_help_imports_no_database(paths: dict[str, Path], arguments: str) -> None:
    assert _run_command(paths, arguments, NO_DATABASE) == "[]"


@pytest.mark.parametrize("arguments", ["", "nonsense", "ls --nonsense", "show", "show a b", "audit log --limit x"])
def test_wrong_usage_imports_no_database(paths: dict[str, Path], arguments: str) -> None:
    assert _run_command(paths, arguments, NO_DATABASE, code=2) == "[]"


@pytest.mark.parametrize("words", ["lensreg ", "lensreg au", "lensreg ls --", "lensreg ls --output "])
def test_completing_commands_and_options_imports_no_database(
    monkeypatch: pytest.MonkeyPatch, paths: dict[str, Path], words: str
) -> None:
    monkeypatch.setenv("_LENSREG_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert _run_command(paths, "", NO_DATABASE) == "[]"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("ls", 0),
        ("ls -o json", 0),
        ("show m", 0),
        ("show m@best -o json", 0),
        ("history m", 0),
        ("path m", 1),  # there are no bytes behind these rows
        ("lineage m", 0),
        ("lineage m -o json", 0),
        ("alias list", 0),
        ("audit log", 0),
        ("audit verify", 0),
        ("db status", 0),
        ("show nonsense", 1),
    ],
)
def test_reading_commands_import_what_they_read_with(paths: dict[str, Path], arguments: str, code: int) -> None:
    assert _run_command(paths, arguments, NO_TENSORS, code) == "[]"


def _dedent(code: str, by: int = 8) -> str:
    return "\n".join(line[by:] for line in code.splitlines())


def test_all_that_is_promised_is_there() -> None:
    assert sorted(registry._HOMES) == registry.__all__ == sorted(registry.__all__) == dir(registry)
    for name, home in registry._HOMES.items():
        assert getattr(registry, name).__module__ == home
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = registry.Nonsense


def test_the_names_that_type_checkers_see_are_those_that_are_there() -> None:
    source = Path(str(registry.__file__)).read_text()
    imported = {
        name.name: str(node.module)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("registry.")
        for name in node.names
    }
    assert imported == registry._HOMES


# --- errors ----------------------------------------------------------------------------------------------------


def _all_errors(kind: type[RegistryError] = RegistryError) -> Iterator[type[RegistryError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _all_errors(one)


ERRORS = list(_all_errors())


def test_every_error_has_a_code_of_its_own() -> None:
    codes = {error.code: error for error in ERRORS}
    assert len(codes) == len(ERRORS)
    for code, error in codes.items():
        assert "code" in vars(error), f"{error.__name__} would share its parent's"
        assert code == re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__).lower()


def test_the_tree_at_the_top_of_the_module_is_the_tree_of_classes() -> None:
    """Names, order and nesting; the codes and fields of those that can be raised."""
    drawn: list[tuple[int, str]] = []
    for line in str(errors.__doc__).splitlines():
        match = re.fullmatch(r"([│├└─ ]*)([A-Z]\w+)(?: +(.*))?", line)
        if not match or match[2] not in vars(errors):
            continue
        drawn.append((len(match[1]) // 4, match[2]))
        error = getattr(errors, match[2])
        words = (match[3] or "").split()
        if words and not error.__subclasses__():
            assert words[0] == error.code
            for word in words[1:]:
                assert word[1:] in _fields_of(error), f"{error.__name__} has no {word}"
    assert drawn == list(_walk(RegistryError, 0))


def _walk(kind: type[RegistryError], depth: int) -> Iterator[tuple[int, str]]:
    yield depth, kind.__name__
    for one in kind.__subclasses__():
        yield from _walk(one, depth + 1)


def _make(error: type[RegistryError]) -> RegistryError:
    """Make an error of any kind, with made-up values for the fields it insists on."""
    from registry.verify import Parity

    parity = Parity(1.0, 1.0, 0.0, 1e-4, "float64", 128, "0" * 64, ("fold_ln",), {"torch": "2"})
    needed: dict[str, dict[str, object]] = {
        "UnsupportedConfig": {"field": "n_head"},
        "UnusableWeights": {"tensors": ["wte"]},
        "ArchitectureMismatch": {"differences": [Difference("eps", 1e-5, 1e-6)]},
        "ParityFailure": {"parity": parity},
        "UnrelatedParent": {"evidence": {"verdict": "unrelated"}},
        "VersionInUse": {"users": ["m@best"]},
        "RequirementsUnmet": {"requirements": [Requirement("loss < 3", "loss.loss", 3.5, False, "loss.loss is 3.5")]},
        "ArtifactMissing": {"digest": "0" * 64},
        "ArtifactCorrupt": {"digest": "0" * 64},
    }
    return error("what happened", hint="what to do", **needed.get(error.__name__, {}))


def _fields_of(error: type[RegistryError]) -> set[str]:
    return set(vars(_make(error)))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
def test_an_error_passes_whole_from_process_to_process(kind: type[RegistryError]) -> None:
    """As from the workers of a pool: an exception that cannot be unpickled breaks the pool."""
    error = _make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "what happened\nwhat to do"
    assert vars(copy) == vars(error)
    assert copy.args == error.args


def test_what_is_raised_carries_its_facts(registry: Registry) -> None:
    record(registry, "m")
    with pytest.raises(RegistryError) as refused:
        registry.resolve("mm@v7")
    assert refused.value.fields == {"candidates": ["m"]}
    assert str(refused.value) == f"{refused.value.message}\n{refused.value.hint}"
