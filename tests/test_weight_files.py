"""The same weights in every form in which training leaves them: one digest, one network; what is unclear is refused."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from registry import Registry, RegistryError
from registry.errors import MalformedArtifact, SourceNotFound, UnsupportedConfig, UnsupportedSource, WeightsMismatch
from registry.sources import Source, SourceOptions, open_source
from registry.sources.unpickle import convert_pickles
from registry.sources.wrappers import WRAPPERS, copy_without_prefix, find_prefix
from registry.weights import digest_tensors, digest_weights, read_header
from tests.checkpoints import make_network

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"
INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


def take_weights(folder: Path) -> Tensors:
    """Take the tensors out of a folder, which is left without weights."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    return tensors


def split(tensors: Tensors, n: int) -> list[Tensors]:
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[part::n]} for part in range(n)]


def write_shards(folder: Path, shards: list[Tensors], ending: str = "bin") -> None:
    stem = "pytorch_model" if ending == "bin" else "model"
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"{stem}-{number + 1:05}-of-{len(shards):05}.{ending}"
        torch.save(shard, folder / name) if ending == "bin" else save_file(shard, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def wrap(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def digest(source: Source) -> str:
    return digest_weights(source.tensors, digest_tensors(source.tensors.values()))


def codes(findings: Any) -> set[str]:
    return {finding.code for finding in findings}


# --- every form is one network

FORMS: dict[str, tuple[Callable[[Path, Tensors], object], set[str]]] = {
    "bin": (lambda folder, t: torch.save(t, folder / BIN), {"from-pickle"}),
    "legacy bin": (
        lambda folder, t: torch.save(t, folder / BIN, _use_new_zipfile_serialization=False),
        {"from-pickle"},
    ),
    "gathered by accelerate": (lambda folder, t: torch.save(t, folder / "pytorch_model_fsdp.bin"), {"from-pickle"}),
    "bin in shards": (lambda folder, t: write_shards(folder, split(t, 3)), {"from-pickle"}),
    "bin in shards, wrapped": (
        lambda folder, t: write_shards(folder, split(wrap(t, "module._fsdp_wrapped_module."), 2)),
        {"from-pickle", "unwrapped"},
    ),
    "nested under model": (
        lambda folder, t: torch.save({"model": t, "step": 3, "optimizer": {"state": {0: t[min(t)]}}}, folder / BIN),
        {"from-pickle", "left-out"},
    ),
    "nested under state_dict, wrapped": (
        lambda folder, t: torch.save({"epoch": 1, "state_dict": wrap(t, "_orig_mod.module.")}, folder / BIN),
        {"from-pickle", "left-out", "unwrapped"},
    ),
    "safetensors, wrapped": (
        lambda folder, t: save_file(wrap(t, "base_model.model."), folder / WEIGHTS, {"format": "pt"}),
        {"unwrapped"},
    ),
    "safetensors in shards, wrapped": (
        lambda folder, t: write_shards(folder, split(wrap(t, "_orig_mod."), 3), "safetensors"),
        {"unwrapped"},
    ),
}


@pytest.mark.parametrize(
    ("family", "form"),
    [*itertools.product(["gpt2"], FORMS), ("llama", "bin in shards"), ("llama", "safetensors, wrapped")],
)
def test_every_form_of_the_weights_is_the_same_network(
    family: str, form: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    write, findings = FORMS[form]
    plain = registry.register("plain", make_checkpoint(family))
    folder = make_checkpoint(family)
    write(folder, take_weights(folder))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = registry.register("other", folder)
    assert (other.weights_digest, other.n_parameters) == (plain.weights_digest, plain.n_parameters)
    assert other.parity is not None and other.parity.passed
    assert codes(other.findings) == findings | {"identical-weights"}
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert other.version is not None
    assert all(file.name.endswith(".safetensors") for file in other.version.with_role("weights"))
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(registry.load("plain")(tokens), registry.load("other")(tokens))
    # and what is kept is a whole Hugging Face folder with the same weights
    again = open_source(registry.path("other"), folder)
    assert digest(again) == digest(open_source(registry.path("plain"), folder)) and not codes(again.findings)


def test_what_was_read_from_pickles_is_recorded(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    from registry.weights import digest_file

    folder = make_checkpoint("gpt2")
    write_shards(folder, split(take_weights(folder), 2))
    first, second = sorted(folder.glob("*.bin"))
    done = registry.register("base", folder)
    assert done.version is not None
    assert done.version.provenance["pickles"] == {first.name: digest_file(first), second.name: digest_file(second)}
    (message,) = [finding.message for finding in done.findings if finding.code == "from-pickle"]
    assert first.name in message and digest_file(first) in message and "1 more" in message
    assert not [file for file in done.version.files if file.name.endswith(".bin")]
    # a dry run finds the same out, and the same again is nothing new
    assert registry.register("other", folder, dry_run=True).weights_digest == done.weights_digest
    assert registry.register("base", folder).outcome == "unchanged"


# --- both formats in one folder


@pytest.mark.parametrize("tied_twice", [False, True])
def test_both_formats_with_the_same_weights_are_one(
    tied_twice: bool, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("gpt2")
    tensors = load_file(folder / WEIGHTS)
    assert HEAD not in tensors
    head = {HEAD: tensors[WTE]} if tied_twice else {}
    torch.save(wrap(tensors | head, "module."), folder / BIN)
    done = registry.register("base", folder)
    assert codes(done.findings) == {"both-formats"}
    assert done.version is not None and done.version.with_role("weights")[0].name == WEIGHTS


DIFFERENT: dict[str, Callable[[Tensors], Tensors]] = {
    "one number": lambda t: {**t, WTE: t[WTE] + (torch.arange(t[WTE].numel()).reshape(t[WTE].shape) == 7)},
    "one tensor less": lambda t: {name: tensor for name, tensor in t.items() if name != WTE},
    "a head of its own": lambda t: {**t, HEAD: t[WTE] + 1},
    "half precision": lambda t: {name: tensor.half() for name, tensor in t.items()},
    "two tensors exchanged": lambda t: {
        **t,
        "transformer.h.0.ln_1.bias": t["transformer.h.0.ln_2.bias"],
        "transformer.h.0.ln_2.bias": t["transformer.h.0.ln_1.bias"],
    },
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT)
def test_both_formats_with_different_weights_are_refused(
    change: Callable[[Tensors], Tensors], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2")
    torch.save(change(load_file(folder / WEIGHTS)), folder / BIN)
    with pytest.raises(
        UnsupportedSource, match=r"both safetensors and pytorch_model.bin, and they hold different"
    ) as no:
        open_source(folder, tmp_path)
    assert "--weights safetensors or --weights bin" in str(no.value.hint)


def test_of_two_formats_the_one_that_is_picked_counts(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder, newer = make_checkpoint("gpt2"), make_checkpoint("gpt2", seed=1)
    old, new = registry.register("old", folder), registry.register("new", newer)
    torch.save(load_file(newer / WEIGHTS), folder / BIN)
    for picked, wanted in (("safetensors", old), ("bin", new)):
        done = registry.register(f"picked-{picked}", folder, weights=picked)
        assert done.weights_digest == wanted.weights_digest
        assert ("from-pickle" in codes(done.findings)) == (picked == "bin")


@pytest.mark.parametrize(("there", "picked", "missing"), [("safetensors", "bin", BIN), ("bin", "safetensors", WEIGHTS)])
def test_a_format_that_is_not_there_cannot_be_picked(
    there: str, picked: Any, missing: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2")
    if there == "bin":
        torch.save(take_weights(folder), folder / BIN)
    with pytest.raises(SourceNotFound, match=f"no {missing}"):
        open_source(folder, tmp_path, options=SourceOptions(weights=picked))


# --- shards of pickles


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / BIN_INDEX).read_text())
    (folder / BIN_INDEX).write_text(json.dumps({**index, "weight_map": change(index["weight_map"])}))


SHARD = "pytorch_model-00001-of-00002.bin"
DAMAGES: dict[str, tuple[type[RegistryError], str, Callable[[Path], object]]] = {
    "missing": (MalformedArtifact, f"the shard {SHARD} is missing", lambda f: (f / SHARD).unlink()),
    "not listed": (MalformedArtifact, "does not list", lambda f: shutil.copy(f / SHARD, f / "pytorch_model-00009.bin")),
    "whole beside": (MalformedArtifact, "has both", lambda f: shutil.copy(f / SHARD, f / BIN)),
    "tensor not there": (
        MalformedArtifact,
        "disagree about 1 tensors, such as 'nowhere'",
        lambda f: edit_index(f, lambda names: {**names, "nowhere": SHARD}),
    ),
    "tensor not listed": (
        MalformedArtifact,
        "disagree about 1 tensors",
        lambda f: edit_index(f, lambda names: dict(list(names.items())[1:])),
    ),
    "outside": (
        MalformedArtifact,
        "no file of this folder",
        lambda f: edit_index(f, lambda names: dict.fromkeys(names, "../x.bin")),
    ),
    "optimizer as shard": (
        MalformedArtifact,
        "no file of this folder",
        lambda f: edit_index(f, lambda names: dict.fromkeys(names, "optimizer.pt")),
    ),
}


@pytest.mark.parametrize(("error", "text", "spoil"), DAMAGES.values(), ids=DAMAGES)
def test_shards_of_pickles_must_be_whole(
    error: type[RegistryError],
    text: str,
    spoil: Callable[[Path], object],
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
) -> None:
    folder = make_checkpoint("gpt2")
    write_shards(folder, split(take_weights(folder), 2))
    spoil(folder)
    with pytest.raises(error) as refused:
        open_source(folder, tmp_path)
    assert text in refused.value.message


# --- what Trainer leaves


def make_trainer_folder(folder: Path, step: object) -> Path:
    """Add what Hugging Face's Trainer writes beside the weights, none of which may be read as weights or at all."""
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": [{"loss": 1.0}]}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin", "optimizer.bin"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_checkpoint_of_trainer_is_read_with_its_step(
    form: str, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_trainer_folder(make_checkpoint("gpt2"), 1500)
    if form == "bin":
        torch.save(take_weights(folder), folder / BIN)
    named = folder.rename(tmp_path / "checkpoint-9999")
    done = registry.register("run", named)
    assert done.version is not None and done.version.step == 1500
    assert registry.load("run@step-1500")
    assert {file.role for file in done.version.files} <= {"weights", "config", "tokenizer", "generation", "original"}
    assert [file.name for file in done.version.with_role("original")] == ["trainer_state.json"]
    assert done.weights_digest == registry.register("plain", make_checkpoint("gpt2")).weights_digest
    # what the caller says counts more
    assert registry.register("other", named, step=3).version.step == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ('{"global_step": 7}', 7),
        ('{"global_step": 0}', 0),
        ('{"global_step": 7, "log_history": [{"loss": NaN, "grad_norm": Infinity}]}', 7),
        ('{"global_step": -1}', None),
        ('{"global_step": 7.5}', None),
        ('{"global_step": true}', None),
        ('{"global_step": "7"}', None),
        ('{"global_step": 1e400}', None),
        ('{"global_step": 99999999999999999999}', None),
        ('{"epoch": 1}', None),
        ('{"global_step": 7', None),
        ("[7]", None),
        ("[" * 10**5, None),
        ("", None),
    ],
)
def test_the_step_is_what_trainer_says_or_nothing(
    state: str, step: int | None, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2").rename(tmp_path / "checkpoint-1234")
    (folder / "trainer_state.json").write_text(state)
    assert open_source(folder, tmp_path).step == step


def test_training_arguments_alone_are_no_weights(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_trainer_folder(make_checkpoint("gpt2"), 1)
    (folder / WEIGHTS).unlink()
    with pytest.raises(SourceNotFound, match=r"no model.safetensors"):
        open_source(folder, tmp_path)


# --- the config


def test_a_folder_without_a_config_takes_the_callers(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("gpt2")
    given = (folder / "config.json").rename(tmp_path / "given.json")
    source = open_source(folder, tmp_path, options=SourceOptions(config=given))
    assert source.config == json.loads(given.read_text())
    assert [(file.name, file.path) for file in source.with_role("config")] == [("config.json", given)]
    with pytest.raises(SourceNotFound, match="never guessed") as refused:
        open_source(folder, tmp_path)
    assert "--config" in str(refused.value.hint)


def test_a_config_that_contradicts_the_folders_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("gpt2")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(config))
    (tmp_path / "other.json").write_text(json.dumps({**config, "n_head": 8}))
    assert open_source(folder, tmp_path, options=SourceOptions(config=tmp_path / "same.json")).config == config
    with pytest.raises(UnsupportedSource, match="says something else"):
        open_source(folder, tmp_path, options=SourceOptions(config=tmp_path / "other.json"))


# --- prefixes


@given(
    st.lists(st.sampled_from(WRAPPERS), max_size=5),
    st.sets(st.sampled_from(["transformer.wte.weight", "model.norm.weight", "lm_head.weight"]), min_size=1),
)
def test_wrappers_are_found_however_they_are_stacked(wrappers: list[str], names: set[str]) -> None:
    prefix = "".join(wrappers)
    assert find_prefix(prefix + name for name in names) == prefix


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["module.a", "b"],
        ["model.a", "model.b"],
        ["modules.a"],
        ["base_model.a"],
        ["transformer.module.a", "transformer.module.b"],
    ],
)
def test_what_not_every_tensor_has_or_no_wrapper_leaves_stays(names: list[str]) -> None:
    assert find_prefix(names) == ""


def test_two_tensors_never_become_one(make_checkpoint: MakeCheckpoint, registry: Registry) -> None:
    """With `module.` on some names only, taking it off could hide one tensor behind another."""
    folder = make_checkpoint("gpt2")
    tensors = take_weights(folder)
    save_file(tensors | {f"module.{WTE}": tensors[WTE] + 1}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(WeightsMismatch, match="1 left over"):
        registry.register("base", folder)


# --- the property: weights in any form have one digest, and one flipped bit another

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@st.composite
def state_dicts(draw: st.DrawFn) -> Tensors:
    names = draw(st.sets(st.from_regex(r"[a-z_]{1,8}(\.[a-z0-9_]{1,6}){0,3}", fullmatch=True), min_size=1, max_size=8))
    tensors = {}
    for name in sorted(names):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        content = bytearray(draw(st.binary(min_size=n_bytes, max_size=n_bytes)))
        tensors[name] = (torch.frombuffer(content, dtype=dtype) if n_bytes else torch.empty(0, dtype=dtype)).reshape(
            shape
        )
    return tensors


def write_in_form(folder: Path, tensors: Tensors, form: str, n_shards: int, seed: int, prefix: str) -> list[Path]:
    """Write tensors into files in one of the forms, in some order, and return what is read of them."""
    order = [*tensors]
    random.Random(seed).shuffle(order)
    shuffled = {prefix + name: tensors[name] for name in order}
    parts = [part for part in split(shuffled, n_shards) if part]
    files = [folder / f"{form}-{number}.safetensors" for number in range(len(parts))]
    if form == "safetensors":
        for part, file in zip(parts, files, strict=True):
            save_file(part, file)
    else:
        pickles = [file.with_suffix(".bin") for file in files]
        for part, pickle in zip(parts, pickles, strict=True):
            whole = {"model": part, "step": seed} if form == "nested" else part
            torch.save(whole, pickle, _use_new_zipfile_serialization=form != "legacy")
        convert_pickles({"files": [*zip(pickles, files, strict=True)]})
    if form == "safetensors" and find_prefix(shuffled):
        wrapped, files = files, [file.with_suffix(".unwrapped") for file in files]
        for file, target in zip(wrapped, files, strict=True):
            copy_without_prefix(read_header(file), find_prefix(shuffled), target)
    return files


def digest_files(files: list[Path]) -> str:
    headers = {name: tensor for file in files for name, tensor in read_header(file).items()}
    return digest_weights(headers, digest_tensors(headers.values()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=state_dicts(),
    form=st.sampled_from(["safetensors", "bin", "legacy", "nested"]),
    n_shards=st.integers(1, 4),
    seed=st.integers(0, 99),
    prefix=st.sampled_from(["", *WRAPPERS, "module._orig_mod."]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_the_weights_digest_is_the_same_in_every_form_and_changed_by_one_bit(
    tensors: Tensors,
    form: str,
    n_shards: int,
    seed: int,
    prefix: str,
    place: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    prefix = "" if find_prefix(tensors) else prefix
    save_file(tensors, folder / "plain.safetensors")
    plain = digest_files([folder / "plain.safetensors"])
    if not find_prefix(tensors):
        assert digest_files(write_in_form(folder, tensors, form, n_shards, seed, prefix)) == plain
    n_bytes = {name: tensor.nbytes for name, tensor in tensors.items() if tensor.nbytes}
    if n_bytes:
        name = min(n_bytes, key=lambda one: (random.Random(seed).random(), one))
        flipped = tensors[name].clone()
        bit = int(n_bytes[name] * 8 * place)
        flipped.reshape(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
        other = tmp_path_factory.mktemp("flipped")
        assert digest_files(write_in_form(other, {**tensors, name: flipped}, form, n_shards, seed, prefix)) != plain


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # importing torch's compiler
def test_a_network_that_was_trained_in_a_wrapper_comes_back(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """With the wrappers themselves, not with names made up to look like theirs."""
    network = make_network("gpt2")
    wrapped = torch.nn.DataParallel(torch.compile(network))  # type: ignore[arg-type]
    plain = registry.register("plain", make_checkpoint("gpt2"))
    folder = make_checkpoint("gpt2")
    (folder / WEIGHTS).unlink()
    optimizer = torch.optim.AdamW(network.parameters())
    torch.save({"model": wrapped.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2}, folder / BIN)
    done = registry.register("wrapped", folder)
    assert done.weights_digest == plain.weights_digest
    assert "'module._orig_mod.'" in " ".join(finding.message for finding in done.findings)
    with pytest.raises(UnsupportedConfig, match="ties the word embeddings"):
        changed = {name: tensor + (name.endswith(HEAD)) for name, tensor in wrapped.state_dict().items()}
        torch.save(changed, folder / BIN)
        registry.register("untied", folder)
