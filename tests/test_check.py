"""`check`: whether a source would load, from config and headers alone; and the Hub commands with real environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.errors import (
    AccessDenied,
    ArchitectureMismatch,
    InvalidInput,
    MalformedArtifact,
    RegistryError,
    SourceNotFound,
    SourceUnreachable,
    UnknownRef,
    UnsupportedConfig,
    UnsupportedFamily,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from tests.checkpoints import edit_config
from tests.hub_server import FakeHub
from tests.processes import ROOT

MakeCheckpoint = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("gpt2")


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_what_would_load_is_described(place: str, hub: FakeHub, base: Path, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
    commit = hub.push("org/base", base, "step10")
    done = registry.check(base if place == "folder" else "org/base@step10")
    assert done.fault is None and done.weights is not None and done.architecture is not None
    assert (done.family, done.weights.digest, done.weights.dtype) == ("gpt2", None, "float32")
    assert (done.commit, done.step) == ((None, None) if place == "folder" else (commit, 10))
    assert not (tmp_path / "registry.db").exists() and not registry.store.root.exists()
    if place == "hub":
        assert hub.fetched(WEIGHTS) == 100_000
        assert hub.fetched("tokenizer.json") == 0
    added = registry.register("base", base, parity="skip")
    assert (added.architecture, added.n_parameters) == (done.architecture, done.weights.n_parameters)
    registry.close()


def _spoil_heads(folder: Path) -> None:
    edit_config(folder, n_head=5)


def _spoil_field(folder: Path) -> None:
    edit_config(folder, add_cross_attention=True)


def _spoil_family(folder: Path) -> None:
    edit_config(folder, architectures=["Cohere2ForCausalLM"], model_type="cohere2")


def _spoil_layers(folder: Path) -> None:
    edit_config(folder, n_layer=1)


def _spoil_header(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[8] = ord("[")
    (folder / WEIGHTS).write_bytes(content)


def _spoil_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _spoil_dtype(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


FAULTS: dict[str, tuple[Callable[[Path], None], type[RegistryError], type[RegistryError]]] = {
    "heads": (_spoil_heads, UnsupportedConfig, UnsupportedConfig),
    "field": (_spoil_field, UnsupportedConfig, UnsupportedConfig),
    "family": (_spoil_family, UnsupportedFamily, UnsupportedFamily),
    "layers": (_spoil_layers, WeightsMismatch, WeightsMismatch),
    "header": (_spoil_header, MalformedArtifact, MalformedArtifact),
    "dtype": (_spoil_dtype, UnusableWeights, UnusableWeights),
    "config": (_spoil_config, SourceNotFound, UnsupportedSource),
}


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_the_refusal_that_registering_gives(
    fault: str, place: str, registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(base, folder)
    spoil, *errors = FAULTS[fault]
    spoil(folder)
    hub.push("org/spoilt", folder)
    source = str(folder) if place == "folder" else "org/spoilt"
    done = registry.check(source)
    assert type(done.fault) is errors[place == "hub"]
    with pytest.raises(RegistryError) as refused:
        registry.register("spoilt", source)
    assert str(refused.value) == str(done.fault)


def test_a_parent_is_compared_with(
    registry: Registry, hub: FakeHub, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", base, parity="skip")
    other = edit_config(make_checkpoint("gpt2", seed=1), n_head=8)
    hub.push("org/other", other)
    for source in (other, "org/other"):
        fault = registry.check(source, parent="base").fault
        assert isinstance(fault, ArchitectureMismatch) and "n_heads" in {one.field for one in fault.differences}
        admitted = registry.check(source, parent="base", allow=["n_heads", "d_head", "attn_scale", "n_key_value_heads"])
        assert admitted.fault is None and "n_heads" in {one.field for one in admitted.admitted_differences}
    with pytest.raises(UnknownRef):
        registry.check(other, parent="nobody")
    assert len(registry.history("base")) == 1


def test_what_cannot_be_checked_is_raised(registry: Registry, hub: FakeHub, base: Path, tmp_path: Path) -> None:
    hub.push("org/gated", base)
    hub.gated.add("org/gated")
    shutil.copytree(base, tmp_path / "pickled", ignore=lambda *_: [WEIGHTS])
    hub.push("org/pickled", tmp_path / "pickled", **{"pytorch_model.bin": b"pickle"})
    cases: dict[str, type[RegistryError]] = {
        str(tmp_path / "nothing"): SourceNotFound,
        "org/nothing": SourceNotFound,
        "org/gated": AccessDenied,
        "org/pickled": InvalidInput,
    }
    for source, error in cases.items():
        with pytest.raises(error):
            registry.check(source)
    hub.close()
    with pytest.raises(SourceUnreachable):
        registry.check("org/nowhere")


# --- the command, in processes of its own that read the environment ---------------------------------------------


def run_lensreg(hub: FakeHub, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LENSREG_"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "LENSREG_HOME": str(home / "lensreg"),
        "PYTHONPATH": str(ROOT),
        **more,
    }
    command = [sys.executable, "-W", "error", "-m", "cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=120)


def test_the_command_says_it_by_its_exit_code(
    hub: FakeHub, base: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/base", base)
    hub.push("org/odd", edit_config(make_checkpoint("gpt2"), add_cross_attention=True))
    good = run_lensreg(hub, tmp_path, "check", "org/base")
    assert (good.returncode, good.stderr) == (0, "")
    assert "would load" in good.stdout and "NaN" in good.stdout and "parity" in good.stdout
    as_json = json.loads(run_lensreg(hub, tmp_path, "check", "org/base", "-o", "json").stdout)
    assert as_json["ok"] is True and as_json["error"] is None and as_json["n_parameters"] > 0
    assert set(as_json) == {
        "schema_version", "ok", "source", "commit", "step", "family", "fingerprint", "n_parameters", "dtype",
        "admitted_differences", "findings", "not_checked", "error",
    }  # fmt: skip
    odd = run_lensreg(hub, tmp_path, "check", "org/odd")
    assert (odd.returncode, odd.stdout) == (3, "")
    assert odd.stderr.startswith("error[unsupported-config] ")
    odd_json = run_lensreg(hub, tmp_path, "check", "org/odd", "-o", "json")
    assert odd_json.returncode == 3
    assert json.loads(odd_json.stdout)["error"]["code"] == "unsupported-config"
    assert run_lensreg(hub, tmp_path, "check", "org/nothing").returncode == 1
    assert run_lensreg(hub, tmp_path, "check").returncode == 2
    assert not (tmp_path / "lensreg").exists()


def test_a_refusal_by_config_imports_no_torch(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "odd")
    edit_config(tmp_path / "odd", add_cross_attention=True)
    code = (
        "import sys, cli.main\n"
        "try: cli.main.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 3\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, "check", str(tmp_path / "odd")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_read_the_environment_as_huggingface_hub_does(hub: FakeHub, base: Path, tmp_path: Path) -> None:
    hub.push("org/base", base)
    hub.gated.add("org/base")
    hub.token = "hf_right"
    refused = run_lensreg(hub, tmp_path, "add", "base", "org/base", "--lazy")
    assert refused.returncode == 1 and refused.stderr.startswith("error[access-denied] ")
    assert len(refused.stderr.splitlines()) == 1
    added = run_lensreg(hub, tmp_path, "add", "base", "org/base", "--lazy", HF_TOKEN="hf_right")
    assert added.returncode == 0 and "not fetched yet" in added.stdout, added.stderr
    assert "when the weights are fetched" in added.stdout
    shown = run_lensreg(hub, tmp_path, "show", "base")
    assert "not fetched yet" in shown.stdout and "commit" in shown.stdout
    assert "not fetched" in run_lensreg(hub, tmp_path, "history", "base").stdout
    path = run_lensreg(hub, tmp_path, "path", "base")
    assert path.returncode == 1 and "lensreg fetch base@v1" in path.stderr
    offline = run_lensreg(hub, tmp_path, "fetch", "base", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and offline.stderr.startswith("error[source-unreachable] ")
    fetched = run_lensreg(hub, tmp_path, "fetch", "base", HF_TOKEN="hf_right")
    assert fetched.returncode == 0 and "noise floor" in fetched.stdout, fetched.stderr
    assert (tmp_path / "hf" / "hub" / "models--org--base").is_dir()
    again = run_lensreg(hub, tmp_path, "add", "again", "org/base", "--parity", "skip", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "The Hub was not asked" in again.stdout, again.stderr
