"""Derived files that another converter made are not taken: its version covers all that decides a tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import Registry, converter
from tests.derived_files import register_one

pytestmark = pytest.mark.filterwarnings("ignore::registry.load_options.UnverifiedVersion")


@pytest.fixture
def one(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry that holds one version, `m`, whose blobs are no longer young."""
    return register_one(registry, make_checkpoint("gpt2"))


def test_another_converter_does_not_take_it(one: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    one.load("m")
    monkeypatch.setattr("registry.derived.read_converter_version", lambda: "another")
    one.load("m")
    assert sorted(file.converter == "another" for file in one.cached()) == [False, True]


def test_the_converter_version_changes_with_code_and_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = converter.read_converter_version.__wrapped__
    before = read()
    assert before == read()
    monkeypatch.setattr(converter, "version", lambda name: "9.9" if name == "torch" else "1")
    assert read() != before
    monkeypatch.undo()
    folder = tmp_path / "registry"
    for name in converter.SOURCES:
        place = Path(converter.__file__).parent / name
        for source in place.glob("*.py") if place.is_dir() else [place]:
            copied = folder / source.relative_to(Path(converter.__file__).parent)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(source.read_bytes())
    monkeypatch.setattr(converter, "__file__", str(folder / "converter.py"))
    assert read() == before
    with (folder / "families" / "rope.py").open("a") as file:
        file.write("\n")
    assert read() != before


def test_the_converter_version_covers_all_that_converting_imports() -> None:
    folder = Path(converter.__file__).parent
    reached: set[Path] = set()
    waiting = [folder / name for name in ("convert.py", "load.py", "load_hooked.py", "families/__init__.py")]
    # what they are for cannot change a tensor: errors, silence, texts, checks before and around; headers, rows, stores
    beside = {
        "checkpoint.py", "errors.py", "files.py", "lazy_tokenizer.py", "load_options.py", "progress.py", "quiet.py",
        "refs.py", "texts.py", "tokenizers.py", "versions.py", "weights.py", "bridge.py", "converter.py",
        "lazy_copies.py", "plain_text.py",
    }  # fmt: skip
    while waiting:
        source = waiting.pop()
        if source in reached or source.name in beside or source.parent.name in ("store", "sources"):
            continue
        reached.add(source)
        for name in re.findall(r"^ *from registry\.([\w.]+) import", source.read_text(), re.MULTILINE):
            module = folder / name.replace(".", "/")
            waiting.append(module / "__init__.py" if module.is_dir() else module.with_suffix(".py"))
    covered = {path for name in converter.SOURCES for path in [folder / name, *(folder / name).glob("*.py")]}
    assert len(reached) > 10 and reached <= covered, reached - covered
    assert (folder / "derived.py") in covered
