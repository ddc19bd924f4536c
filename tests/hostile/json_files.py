"""JSON that is no JSON, or too much of it, in every JSON file of a folder; and index files that lead astray."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.hostile.case import ACCEPTED, Case, Make, Place
from tests.hostile.safetensors_files import entry, pack

JSON, INDEX, CODE = "B11 JSON", "B9 index files", "B10 code beside the weights"
_INDEX = "model.safetensors.index.json"

Contents = bytes | Callable[[dict[str, Any]], Any]


def fill(name: str, contents: Contents, folder: str = "") -> Make:
    """Write a file, or change the object in it."""

    def make(place: Place) -> None:
        path = place.source / folder / name
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        else:
            path.write_text(json.dumps(contents(json.loads(path.read_text()))))

    return make


def _sparse(name: str, n_bytes: int) -> Make:
    def make(place: Place) -> None:
        with (place.source / name).open("r+b") as file:
            file.truncate(n_bytes)

    return make


def with_key(name: str, value: bytes) -> Make:
    """Put a key more, with a value as it is written, into the object of the file that is there."""

    def make(place: Place) -> None:
        path = place.source / name
        path.write_bytes(path.read_bytes().strip().removesuffix(b"}") + b', "more": ' + value + b"}")

    return make


# what no JSON file may be, and words of the error
_EVIL: dict[str, tuple[str, Callable[[str], Make]]] = {
    "empty": ("not JSON", lambda name: fill(name, b"")),
    "array": ("no JSON object", lambda name: fill(name, b"[1]")),
    "utf-16": ("not JSON", lambda name: fill(name, '{"a": 1}'.encode("utf-16"))),
    "byte-order-mark": ("not JSON", lambda name: fill(name, b"\xef\xbb\xbf{}")),
    "deep": ("nested too deeply", lambda name: with_key(name, b"[" * 10**5 + b"]" * 10**5)),
    "deep-900": ("nested too deeply", lambda name: with_key(name, b'{"a":' * 900 + b"1" + b"}" * 900)),
    "digits-5000": ("not JSON", lambda name: with_key(name, b"9" * 5000)),
    "nan": ("holds NaN", lambda name: with_key(name, b"NaN")),
    "1e400": ("holds 1e400", lambda name: with_key(name, b"1e400")),
    "key-twice": ("twice", lambda name: with_key(name, b'1, "more": 2')),
    "lone-surrogate": ("surrogate", lambda name: with_key(name, b'"\\ud800"')),
    "500-megabytes": ("bytes", lambda name: _sparse(name, 500 * 10**6)),
    "a-terabyte": ("bytes", lambda name: _sparse(name, 2**40)),
    "seven-million-lists": ("values", lambda name: with_key(name, b"[" + b"[]," * 7 * 10**6 + b"[]]")),
    "one-wide-text": ("ASCII", lambda name: with_key(name, '"😀'.encode() + b"x" * 20 * 10**6 + b'"')),
    "html": ("not JSON", lambda name: fill(name, b"<!DOCTYPE html><title>404</title>")),
}
# the file, the kind of checkpoint, and the code of the error
_FILES = (
    ("config.json", "huggingface", "malformed-artifact"),
    (_INDEX, "shards", "malformed-artifact"),
    ("adapter_config.json", "adapter", "malformed-artifact"),
    ("hooked_config.json", "hooked", "malformed-artifact"),
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# those whose reader, a library, knows less than we do of what JSON may be
_TOKENIZER_EVIL = ("empty", "array", "utf-16", "deep", "html", "500-megabytes", "seven-million-lists", "one-wide-text")


def _in_config(**fields: Any) -> Make:
    return fill("config.json", lambda config: config | fields)


def _in_index(change: Callable[[dict[str, Any]], Any]) -> Make:
    return fill(_INDEX, change)


def _lead(shard: Any) -> Make:
    """Let the index say that one tensor is in `shard`, and put a good file where a careless reader would look."""

    def make(place: Place) -> None:
        (place.outside / "x.safetensors").write_bytes(pack({"a": entry([1])}, bytes(4)))
        path = place.source / _INDEX
        index = json.loads(path.read_text())
        name = next(iter(index["weight_map"]))
        index["weight_map"][name] = str(place.outside / "x.safetensors") if shard == "ABSOLUTE" else shard
        path.write_text(json.dumps(index))

    return make


def _edit_map(change: Callable[[dict[str, str]], Any]) -> Make:
    return _in_index(lambda index: index | {"weight_map": change(index["weight_map"])})


def _swap(weight_map: dict[str, str]) -> dict[str, str]:
    """Say of one tensor that it is in another shard than it is in."""
    first, *others = weight_map
    other = next(name for name in others if weight_map[name] != weight_map[first])
    return weight_map | {first: weight_map[other]}


def _repeat(place: Place) -> None:
    """Put one tensor into two shards."""
    from safetensors.torch import load_file, save_file

    one, other = sorted(place.source.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(one).items()))
    save_file({**load_file(other), name: tensor}, other)


_LEADS = {
    "up": "../outside/x.safetensors",
    "absolute": "ABSOLUTE",
    "backslash": "..\\outside\\x.safetensors",
    "drive": "C:model.safetensors",
    "device": "NUL.safetensors/../x",
    "nul": "model\0.safetensors",
    "newline": "model\n.safetensors",
    "dot": ".",
    "empty": "",
    "a-number": 7,
    "a-list": ["model.safetensors"],
    "a-folder-within": "sub/model.safetensors",
    "a-url": "https://example.com/model.safetensors",
    "percent": "%2e%2e%2fx.safetensors",
    "hidden": ".hidden.safetensors",
    "another-kind": "config.json",
    "long": "a" * 10_000 + ".safetensors",
    "missing": "model-00009-of-00009.safetensors",
}


def _code(name: str) -> Make:
    """Name code in config.json, and put it beside; whoever runs it touches the sentinel."""

    def make(place: Place) -> None:
        touch = f"open({str(place.sentinel)!r}, 'w')\n"
        for module in ("evil", "configuration_evil", "modeling_evil", "tokenization_evil", "torch", "json", "registry"):
            (place.source / f"{module}.py").write_text(touch)
        for hook in ("sitecustomize", "usercustomize", "conftest", "setup", "__init__"):
            (place.source / f"{hook}.py").write_text(touch)
        for target in ("config.json", "tokenizer_config.json"):
            path = place.source / target
            fields = _CODE[name].get(target, {})
            path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return make


_AUTO_MAP = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
}
_CODE: dict[str, dict[str, dict[str, Any]]] = {
    "beside": {},
    "auto-map": {"config.json": {"auto_map": _AUTO_MAP}},
    "auto-map-elsewhere": {"config.json": {"auto_map": {"AutoModelForCausalLM": "org/evil--modeling.Evil"}}},
    "trust-remote-code": {"config.json": {"trust_remote_code": True}},
    "attention-from-the-hub": {"config.json": {"_attn_implementation_internal": "kernels-community/evil"}},
    "attention-implementation": {"config.json": {"_attn_implementation": "org/evil:forward"}},
    "another-class": {"config.json": {"architectures": ["os.system"]}},
    "another-family": {"config.json": {"model_type": "../../evil"}},
    "custom-pipelines": {"config.json": {"custom_pipelines": {"x": {"impl": "evil.Pipeline", "pt": ["os.system"]}}}},
    "quantiser": {"config.json": {"quantization_config": {"quant_method": "evil", "modules": "evil"}}},
    "tokenizer-auto-map": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}},
    "tokenizer-class": {"tokenizer_config.json": {"tokenizer_class": "evil.Evil"}},
    "tokenizer-class-of-a-module": {"tokenizer_config.json": {"tokenizer_class": "os"}},
    "tokenizer-trusts": {"tokenizer_config.json": {"trust_remote_code": True, "auto_map": _AUTO_MAP}},
}
_CODE_VERDICTS = {
    "auto-map": "unsupported-config",
    "auto-map-elsewhere": "unsupported-config",
    "another-class": "unsupported-family",
    "another-family": "malformed-artifact",
    "custom-pipelines": "unsupported-config",
    "quantiser": "unsupported-config",
}
_NUMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "layers-a-billion": ("weights-mismatch", {"n_layer": 10**9}),
    "vocabulary-a-quintillion": ("unsupported-config", {"vocab_size": 10**18}),
    "width-10-to-the-4000": ("unsupported-config", {"n_embd": 10**4000}),
    "heads-0": ("unsupported-config", {"n_head": 0}),
    "heads-negative": ("unsupported-config", {"n_head": -4}),
    "heads-a-text": ("unsupported-config", {"n_head": "4"}),
    "heads-true": ("unsupported-config", {"n_head": True}),
    "epsilon-negative": ("unsupported-config", {"layer_norm_epsilon": -1.0}),
    "epsilon-huge": ("unsupported-config", {"layer_norm_epsilon": 1e308}),
    "a-field-of-escapes": ("unsupported-config", {"\x1b[2J\r": "\x1b]0;owned\x07"}),
    "a-field-of-a-megabyte": ("unsupported-config", {"a" * 10**6: "b" * 10**6}),
    "activation-of-escapes": ("unsupported-config", {"activation_function": "\x1b[2J\r\n"}),
    "labels-a-hundred-thousand": (ACCEPTED, {"id2label": {str(i): f"L{i}" for i in range(10**5)}}),
}
CASES = [
    *(
        Case(f"{name}-{evil}", JSON, _EVIL[evil][1](name), code, _EVIL[evil][0], base=base)
        for name, base, code in _FILES
        for evil in _EVIL
    ),
    *(
        Case(f"{name}-{evil}", JSON, _EVIL[evil][1](name), "unusable-tokenizer")
        for name in _TOKENIZER_FILES
        for evil in _TOKENIZER_EVIL
    ),
    *(
        Case(f"{name}-{evil}", JSON, _EVIL[evil][1](name), ACCEPTED, finding="step-unknown")
        for name in ("trainer_state.json",)
        for evil in ("empty", "array", "deep", "500-megabytes", "digits-5000", "seven-million-lists")
    ),
    *(
        Case(f"generation_config.json-{evil}", JSON, fill("generation_config.json", content), "malformed-artifact")
        for evil, content in {"html": b"<html>", "deep": b"[" * 10**5, "array": b"[]"}.items()
    ),
    *(Case(f"config-{name}", JSON, _in_config(**fields), code) for name, (code, fields) in _NUMBERS.items()),
    *(
        Case(f"index-{name}", INDEX, _lead(shard), "malformed-artifact", base="shards")
        for name, shard in _LEADS.items()
    ),
    Case("index-no-map", INDEX, _in_index(lambda _: {"metadata": {}}), "malformed-artifact", "no weight_map", "shards"),
    Case("index-empty-map", INDEX, _edit_map(lambda _: {}), "malformed-artifact", "no weight_map", "shards"),
    Case("index-list", INDEX, _edit_map(list), "malformed-artifact", "no weight_map", "shards"),
    Case("index-wrong-shard", INDEX, _edit_map(_swap), "malformed-artifact", "disagree", "shards"),
    Case(
        "index-tensor-nowhere",
        INDEX,
        _edit_map(lambda m: m | {"x": next(iter(m.values()))}),
        "malformed-artifact",
        "disagree",
        "shards",
    ),
    Case(
        "index-tensor-left-out",
        INDEX,
        _edit_map(lambda m: dict(list(m.items())[1:])),
        "malformed-artifact",
        "disagree",
        "shards",
    ),
    Case("index-tensor-in-two", INDEX, _repeat, "malformed-artifact", "disagree", "shards"),
    Case(
        "index-a-million",
        INDEX,
        _edit_map(lambda m: {str(i): "model.safetensors" for i in range(10**6)}),
        "malformed-artifact",
        "",
        "shards",
    ),
    Case(
        "index-200000",
        INDEX,
        _edit_map(lambda m: m | {str(i): next(iter(m.values())) for i in range(2 * 10**5)}),
        "malformed-artifact",
        "lists 2",
        "shards",
    ),
    *(
        Case(f"code-{name}", CODE, _code(name), _CODE_VERDICTS[name])
        if name in _CODE_VERDICTS
        else Case(f"code-{name}", CODE, _code(name), ACCEPTED, finding="executable-code")
        for name in _CODE
    ),
]
