"""The strict policy: a source that brings code along, or asks for some, is refused wherever it may come in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import lensreg
from cli.options import Session
from registry import Registry
from registry.errors import InvalidInput, UnsafeArtifact
from registry.sources import code

# auto_map in config.json is refused under any policy: the code would decide what the network computes
CODE = {
    "a Python file": {"modeling_evil.py": "raise SystemExit('it was run')"},
    "a kernel": {"config.json": {"_attn_implementation_internal": "org/kernel"}},
    "a tokenizer's": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}},
}


def _bring(source: Path, folder: Path, files: dict[str, Any]) -> Path:
    shutil.copytree(source, folder)
    for name, content in files.items():
        path = folder / name
        if isinstance(content, dict):
            before = json.loads(path.read_text()) if path.exists() else {}
            content = json.dumps(before | content)
        path.write_text(content)
    return folder


@pytest.mark.parametrize("files", CODE.values(), ids=CODE.keys())
def test_what_brings_code_along_is_refused_when_that_is_asked_for(
    files: dict[str, Any], registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = _bring(make_checkpoint("gpt2"), tmp_path / "source", files)
    fault = registry.check(source, strict=True).fault
    assert isinstance(fault, UnsafeArtifact) and "strict policy" in fault.message and fault.hint
    with pytest.raises(UnsafeArtifact, match=r"none of it was run") as refused:
        registry.register("m", source, parity="skip", strict=True)
    assert [one["code"] for one in refused.value.fields["findings"]] == ["executable-code"]
    assert registry.models() == [] and list(registry.store.list_blobs()) == []
    assert registry.check(source).fault is None
    findings = registry.check(source).findings
    assert "executable-code" in {one.code for one in findings}, "without it, it is pointed out"


def test_what_brings_none_is_fine(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    assert registry.check(make_checkpoint("gpt2"), strict=True).fault is None


def test_the_environment_asks_for_it_everywhere(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _bring(make_checkpoint("gpt2"), tmp_path / "source", CODE["a Python file"])
    asking = _bring(make_checkpoint("gpt2", seed=5), tmp_path / "asking", CODE["a kernel"])
    run = tmp_path / "run"
    shutil.copytree(source, run / "checkpoint-1")
    registry.register("files", source, parity="skip")
    with monkeypatch.context() as silent:  # a sender who says nothing of it
        silent.setattr(code, "find_code", lambda *_: [])
        silent.setattr("registry.sources.huggingface.find_code", lambda *_: [])
        registry.register("asking", asking, parity="skip")
    for model in ("files", "asking"):
        registry.export_versions(model, target=tmp_path / f"{model}.tar")
    monkeypatch.setenv("LENSREG_POLICY", "strict")
    strict = Registry(str(tmp_path / "strict.db"), tmp_path / "strict")
    uses: list[Callable[[], object]] = [
        lambda: strict.register("m", source),
        lambda: list(strict.register_run(strict.plan_run("run", run), parity="skip")),
        lambda: registry.push("files", to=strict),
        lambda: strict.pull("files", source=registry),
        lambda: strict.pull("asking", source=registry),
        lambda: strict.import_versions(tmp_path / "files.tar"),
        lambda: strict.import_versions(tmp_path / "asking.tar"),
    ]
    for use in uses:
        with pytest.raises(UnsafeArtifact):
            use()
    assert isinstance(strict.check(source).fault, UnsafeArtifact)
    assert strict.models() == []
    strict.close()
    for command in (["add", "m", str(source)], ["check", str(source)], ["add-run", "run", str(run)]):
        where = ["--registry", str(tmp_path / "strict.db"), "--store", str(tmp_path / "strict")]
        monkeypatch.setenv("LENSREG_POLICY", "default")
        done = CliRunner().invoke(lensreg, [*command, "--strict", *where], obj=Session())
        assert done.exit_code != 0
        assert "strict policy" in str(done.exception) + done.output


def test_a_policy_that_is_misspelt_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENSREG_POLICY", "Strict")
    with pytest.raises(InvalidInput, match="LENSREG_POLICY=Strict"):
        Registry(str(tmp_path / "registry.db"), tmp_path)
