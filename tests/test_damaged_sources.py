"""What people hand in and is damaged: each kind of damage is one typed error that leaves nothing.

GGUF files have their own tests in test_gguf.py, the header parser in test_weights.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry import Registry, RegistryError
from registry.errors import (
    MalformedArtifact,
    SourceNotFound,
    UnsafeArtifact,
    UnsupportedConfig,
    UnsupportedFamily,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from registry.sources.json_file import read_json_object
from tests.checkpoints import edit_config
from tests.contents import read_contents

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One registry for all that is refused: it must stay as it is."""
    folder = tmp_path_factory.mktemp("sources")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


def shard(number: int) -> str:
    """Name a shard of GPT-2 saved in pieces of 60 kB."""
    return f"model-{number:05}-of-00010.safetensors"


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def edit_header(folder: Path, change: Callable[[dict[str, Any]], Any], extra: bytes = b"") -> None:
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8:end]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[end:] + extra)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": change(index["weight_map"])}))


def cut(folder: Path, n_bytes: int | float) -> None:
    """Leave so many bytes, or that part of the file, or all but so many."""
    content = (folder / WEIGHTS).read_bytes()
    end = int(len(content) * n_bytes) if isinstance(n_bytes, float) else n_bytes
    (folder / WEIGHTS).write_bytes(content[:end])


def shift(header: dict[str, Any], by: int) -> dict[str, Any]:
    """Move every tensor but the first by so many bytes, which leaves a hole or makes an overlap."""
    names = sorted((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"])
    for name in names[1:]:
        header[name]["data_offsets"] = [place + by for place in header[name]["data_offsets"]]
    return header


def rename_shard(name: Any) -> Callable[[Path], None]:
    """Make the index name a file outside, where one that could be read is waiting."""

    def damage(folder: Path) -> None:
        outside = folder.parent / "x.safetensors"
        shutil.copy(folder / shard(1), outside)
        edit_index(folder, lambda names: names | {key: name for key, place in names.items() if place == shard(1)})

    return damage


@dataclass(frozen=True)
class Damage:
    """One way to spoil a checkpoint of `make`, and what it is called."""

    name: str
    error: type[RegistryError]
    text: str
    spoil: Callable[[Path], object]
    make: dict[str, Any]


def gpt2(name: str, error: type[RegistryError], text: str, spoil: Callable[[Path], object], **config: Any) -> Damage:
    return Damage(name, error, text, spoil, {"family": "gpt2", **config})


def sharded(name: str, text: str, spoil: Callable[[Path], object]) -> Damage:
    return Damage(name, MalformedArtifact, text, spoil, {"family": "gpt2", "max_shard_size": "60KB"})


def config_text(name: str, text: str | bytes, why: str) -> Damage:
    content = text if isinstance(text, bytes) else text.encode()
    return gpt2(f"config-{name}", MalformedArtifact, why, lambda folder: (folder / "config.json").write_bytes(content))


def truncate(path: Path, n_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(n_bytes)


DAMAGES = [
    # --- the folder
    gpt2("no-folder", SourceNotFound, "nothing at", lambda folder: folder.rename(folder.with_name("elsewhere"))),
    gpt2("empty-folder", SourceNotFound, "no config.json", lambda folder: [file.unlink() for file in folder.iterdir()]),
    gpt2("no-config", SourceNotFound, "no config.json", lambda folder: (folder / "config.json").unlink()),
    gpt2("no-weights", SourceNotFound, "no model.safetensors", lambda folder: (folder / WEIGHTS).unlink()),
    gpt2(
        "dangling-link",
        UnsafeArtifact,
        "leads out of its folder",
        lambda folder: (folder / WEIGHTS).unlink() or (folder / WEIGHTS).symlink_to("/nonexistent"),
    ),
    gpt2(
        "folder-for-weights",
        SourceNotFound,
        "no model.safetensors",
        lambda folder: (folder / WEIGHTS).unlink() or (folder / WEIGHTS).mkdir(),
    ),
    gpt2(
        "safetensors-called-bin",
        MalformedArtifact,
        "it is a safetensors file",
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    ),
    gpt2(
        "pickle-shards-without-index",
        SourceNotFound,
        "no pytorch_model.bin and no pytorch_model.bin.index.json",
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model-00001-of-00002.bin"),
    ),
    gpt2(
        "pickle-beside",
        UnsupportedSource,
        "both safetensors and pytorch_model.bin, and they cannot be compared: pytorch_model.bin is empty",
        lambda folder: (folder / "pytorch_model.bin").touch(),
    ),
    gpt2(
        "adapter-beside",
        UnsupportedSource,
        "an adapter and a model",
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ),
    gpt2(
        "adapter-tensors-beside",
        UnsupportedSource,
        "an adapter and a model",
        lambda folder: (folder / "adapter_model.bin").write_bytes(b""),
    ),
    gpt2(
        "adapter-layers-inside",
        UnsupportedSource,
        "adapter layers in it that are not merged",
        lambda folder: edit_tensors(
            folder,
            lambda tensors: tensors | {"transformer.h.0.attn.c_attn.lora_A.default.weight": torch.ones(4, 64)},
        ),
    ),
    gpt2(
        "adapted-base-layers-inside",
        UnsupportedSource,
        "adapter layers in it that are not merged",
        lambda folder: edit_tensors(
            folder,
            lambda tensors: {
                name.replace("c_attn.weight", "c_attn.base_layer.weight"): tensor for name, tensor in tensors.items()
            },
        ),
    ),
    # --- config.json
    config_text("empty", "", "not JSON"),
    config_text("cut", '{"architectures": ["GPT2LMHeadModel"', "not JSON"),
    config_text("list", "[1]", "no JSON object"),
    config_text("null", "null", "no JSON object"),
    config_text("text", '"{}"', "no JSON object"),
    config_text("nan", '{"layer_norm_epsilon": NaN}', "holds NaN"),
    config_text("infinity", '{"layer_norm_epsilon": -Infinity}', "holds -Infinity"),
    config_text("twice", '{"n_head": 4, "n_head": 8}', "key 'n_head' twice"),
    config_text("twice-inside", '{"a": {"b": 1, "b": 1}}', "key 'b' twice"),
    config_text("deep", "[" * 200_000 + "]" * 200_000, "nested too deeply"),
    config_text("deep-object", '{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
    config_text("latin-1", b'{"a": "\xe9"}', "not JSON"),
    config_text("utf-16", '{"a": 1}'.encode("utf-16"), "not JSON"),
    config_text("byte-order-mark", b"\xef\xbb\xbf{}", "not JSON"),
    config_text("long-number", '{"n_head": ' + "9" * 5000 + "}", "not JSON"),
    config_text("html", "<!DOCTYPE html><title>404</title>", "not JSON"),
    gpt2("config-huge", MalformedArtifact, "bytes", lambda folder: truncate(folder / "config.json", 65 * 2**20)),
    gpt2("no-architectures", MalformedArtifact, "architectures", lambda f: edit_config(f, architectures=None)),
    gpt2("other-model-type", MalformedArtifact, "model_type", lambda f: edit_config(f, model_type="gpt_neo")),
    gpt2(
        "other-family",
        UnsupportedFamily,
        "Cohere2ForCausalLM",
        lambda f: edit_config(f, architectures=["Cohere2ForCausalLM"], model_type="cohere2"),
    ),
    gpt2("classifier", UnsupportedFamily, "Sequence", lambda f: edit_config(f, architectures=["GPT2ForSequenceX"])),
    # --- the bytes of the weights
    *(
        gpt2(f"cut-at-{n_bytes}", MalformedArtifact, "model.safetensors cannot be read", lambda f, n=n_bytes: cut(f, n))
        for n_bytes in (0, 4, 8, 9, 500, 0.5, 0.9, -1)
    ),
    gpt2("trailing-bytes", MalformedArtifact, "follow the last", lambda f: edit_header(f, lambda h: h, b"PK\x03\x04")),
    gpt2("hole", MalformedArtifact, "hole", lambda f: edit_header(f, lambda h: shift(h, 8), bytes(8))),
    gpt2("overlap", MalformedArtifact, "overlap", lambda f: edit_header(f, lambda h: shift(h, -8))),
    gpt2("garbage-header", MalformedArtifact, "not JSON", lambda f: edit_header(f, lambda h: b"\x80\x04\x95" * 99)),
    gpt2(
        "key-twice",
        MalformedArtifact,
        "twice",
        lambda f: edit_header(f, lambda h: json.dumps(h).replace("wpe.weight", "wte.weight").encode()),
    ),
    gpt2("wrong-metadata", MalformedArtifact, "metadata", lambda f: edit_header(f, lambda h: {**h, "__metadata__": 1})),
    gpt2(
        "lfs-pointer",
        MalformedArtifact,
        "truncated or no safetensors",
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    ),
    # --- shards
    sharded("shard-missing", "is missing", lambda f: (f / shard(2)).unlink()),
    sharded(
        "shard-not-listed",
        "does not list",
        lambda f: shutil.copy(f / shard(2), f / "model-00011-of-00011.safetensors"),
    ),
    sharded(
        "tensor-not-in-shard",
        "disagree about 1 tensors, such as 'nowhere'",
        lambda f: edit_index(f, lambda names: {**names, "nowhere": shard(1)}),
    ),
    sharded(
        "tensor-not-listed",
        "disagree about 1 tensors",
        lambda f: edit_index(f, lambda names: dict(list(names.items())[1:])),
    ),
    sharded(
        "tensor-listed-in-another-shard",
        "disagree about",
        lambda f: edit_index(f, lambda names: {**names, min(names): names[max(names)]}),
    ),
    sharded(
        "whole-and-shards",
        "has both",
        lambda f: shutil.copy(f / shard(1), f / WEIGHTS),
    ),
    sharded("index-empty", "no weight_map", lambda f: edit_index(f, lambda names: {})),
    sharded("index-list", "no weight_map", lambda f: edit_index(f, list)),
    sharded("index-not-json", "not JSON", lambda f: (f / INDEX).write_text("weights")),
    *(
        sharded(f"index-names-{name!r:.20}", "no file of this folder", rename_shard(name))
        for name in (
            "../x.safetensors",
            "./../x.safetensors",
            "/etc/passwd",
            "sub/x.safetensors",
            "..\\x.safetensors",
            "C:x.safetensors",
            "x\x00.safetensors",
            "\x1b[2J.safetensors",
            "a" * 300 + ".safetensors",
            "-rf.safetensors",
            ".safetensors",
            "pytorch_model.bin",
            "",
            None,
            7,
            [shard(1)],
        )
    ),
    # --- the tensors
    gpt2(
        "tensor-missing",
        WeightsMismatch,
        "1 missing, such as transformer.h.1.mlp.c_fc.bias",
        lambda f: edit_tensors(f, lambda t: {k: v for k, v in t.items() if k != "transformer.h.1.mlp.c_fc.bias"}),
    ),
    gpt2("layer-missing", WeightsMismatch, "12 missing", lambda f: edit_config(f, n_layer=3)),
    gpt2("layer-too-many", WeightsMismatch, "12 left over", lambda f: edit_config(f, n_layer=1)),
    gpt2(
        "tensor-left-over",
        WeightsMismatch,
        "1 left over, such as transformer.h.0.attn.extra",
        lambda f: edit_tensors(f, lambda t: {**t, "transformer.h.0.attn.extra": torch.ones(2)}),
    ),
    gpt2(
        "some-prefixed",
        WeightsMismatch,
        "1 left over, such as transformer.module.wpe.weight",
        lambda f: edit_tensors(f, lambda t: {k.replace("transformer.wpe", "module.wpe"): v for k, v in t.items()}),
    ),
    gpt2(
        "an-unknown-prefix",
        WeightsMismatch,
        "left over",
        lambda f: edit_tensors(f, lambda t: {f"student.{name}": tensor for name, tensor in t.items()}),
    ),
    gpt2(
        "wrong-shape",
        WeightsMismatch,
        "transformer.wpe.weight: (95, 64) instead of (96, 64)",
        lambda f: edit_tensors(f, lambda t: {**t, "transformer.wpe.weight": t["transformer.wpe.weight"][:95]}),
    ),
    gpt2("old-vocab-size", WeightsMismatch, "(211, 64) instead of (205, 64)", lambda f: edit_config(f, vocab_size=205)),
    gpt2(
        "transposed",
        WeightsMismatch,
        "of another shape",
        lambda f: edit_tensors(f, lambda t: {k: v.T if "c_fc.weight" in k else v for k, v in t.items()}),
    ),
    gpt2(
        "two-names-of-one-tensor",
        WeightsMismatch,
        "names of one tensor",
        lambda f: edit_tensors(f, lambda t: {**t, "wte.weight": t[WTE] + 1}),
    ),
    *(
        gpt2(
            f"{dtype}".removeprefix("torch."),
            UnusableWeights,
            "not floating-point",
            lambda f, dtype=dtype: edit_tensors(
                f, lambda t: {k: v.to(dtype) if k.endswith("c_fc.weight") else v for k, v in t.items()}
            ),
        )
        for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.int64)
    ),
    gpt2(
        "head-is-not-the-embedding",
        UnsupportedConfig,
        "ties the word embeddings",
        lambda f: edit_tensors(f, lambda t: {**t, HEAD: t[WTE] + 1e-3}),
    ),
    gpt2(
        "head-is-rounded",
        UnsupportedConfig,
        "ties the word embeddings",
        lambda f: edit_tensors(f, lambda t: {**t, HEAD: t[WTE].bfloat16()}),
    ),
    gpt2(
        "no-head-and-not-tied",
        WeightsMismatch,
        "1 missing, such as lm_head.weight",
        lambda f: edit_config(f, tie_word_embeddings=False),
    ),
    gpt2("a-million-layers", WeightsMismatch, "1,000,000 layers", lambda f: edit_config(f, n_layer=10**6)),
    gpt2("beyond-64-bits", UnsupportedConfig, "cannot build", lambda f: edit_config(f, vocab_size=2**39, n_embd=2**38)),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_source_is_one_typed_error_and_leaves_nothing(
    damage: Damage, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(**damage.make, tokenizer=False)
    damage.spoil(folder)
    before = read_contents(shared)
    for options in ({}, {"dry_run": True}, {"parity": "skip"}):
        with pytest.raises(RegistryError) as refused:
            shared.register("damaged", folder, **options)
        assert type(refused.value) is damage.error
        assert damage.text in refused.value.message
        assert refused.value.message.isprintable() and refused.value.hint
    assert read_contents(shared) == before


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("", SourceNotFound),
        ("nowhere/at/all", SourceNotFound),
        ("~nobody-of-this-name/x", SourceNotFound),
        ("x" * 300, SourceNotFound),
        ("/dev/null", SourceNotFound),
        (__file__, UnsupportedSource),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    location: str, error: type[RegistryError], shared: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = read_contents(shared)
    with pytest.raises(error):
        shared.register("nothing", location)
    assert read_contents(shared) == before


def test_a_big_index_is_read_in_no_time(tmp_path: Path) -> None:
    """Looking for keys that are there twice must not take the square of their number."""
    names = {f"model.layers.{index}.weight": "model-00001-of-00001.safetensors" for index in range(100_000)}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": names}))
    assert len(read_json_object(tmp_path / "index.json")["weight_map"]) == 100_000
