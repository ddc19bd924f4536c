"""Tokenizers that are wrong, that would take for ever, or that name what they should not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.hostile.case import ACCEPTED, SECRET, Case, Make, Place
from tests.hostile.json_files import fill

GROUP = "B10 B11 tokenizers"
Json = dict[str, Any]
_SLOW_PATTERN = {"Regex": r"(\w+\s?)+(\w+\s?)+(\w+\s?)+$!"}


def _tokenizer(change: Callable[[Json], Json]) -> Make:
    return fill("tokenizer.json", change)


def _config(**fields: Any) -> Make:
    return fill("tokenizer_config.json", lambda config: config | fields)


def _added(content: str, index: int = 1) -> Json:
    return {
        "id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip


def _vocabulary(change: Callable[[dict[str, int]], Any]) -> Make:
    return _tokenizer(lambda t: t | {"model": t["model"] | {"vocab": change(t["model"]["vocab"])}})


def _other(name: str, content: bytes) -> Make:
    """Take tokenizer.json away and put another kind of tokenizer there."""

    def make(place: Place) -> None:
        for path in place.source.glob("*token*"):
            path.unlink()
        (place.source / name).write_bytes(content)

    return make


def _two(vocabulary: bytes, merges: bytes) -> Make:
    def make(place: Place) -> None:
        _other("vocab.json", vocabulary)(place)
        (place.source / "merges.txt").write_bytes(merges)

    return make


def _files_elsewhere(place: Place) -> None:
    """tokenizer_config.json names files outside the folder."""
    (place.outside / "tokenizer.json").write_text((place.source / "tokenizer.json").read_text())
    (place.outside / "merges.txt").write_bytes(b"#version: 0.2\n" + SECRET[:3] + b" " + SECRET[3:] + b"\n")
    path = place.source / "tokenizer_config.json"
    named = {
        "vocab_file": str(place.secret),
        "merges_file": str(place.outside / "merges.txt"),
        "tokenizer_file": str(place.outside / "tokenizer.json"),
        "special_tokens_map_file": str(place.secret),
        "added_tokens_file": str(place.secret),
        "chat_template_file": str(place.secret),
        "name_or_path": str(place.outside),
        "fast_tokenizer_files": ["../outside/tokenizer.json"],
        "gguf_file": str(place.secret),
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | named))


def _versions_elsewhere(place: Place) -> None:
    """A list of tokenizer files by version, which leads out of the folder."""
    (place.outside / "tokenizer.4.0.0.json").write_text((place.source / "tokenizer.json").read_text())
    _config(fast_tokenizer_files=["tokenizer.json", "../outside/tokenizer.4.0.0.json"])(place)


def _nest(depth: int) -> Json:
    inner: Json = {"type": "WhitespaceSplit"}
    for _ in range(depth):
        inner = {"type": "Sequence", "pretokenizers": [inner]}
    return inner


def _truncate(place: Place, name: str, n_bytes: int) -> None:
    with (place.source / name).open("wb") as file:
        file.truncate(n_bytes)


BAD = "unusable-tokenizer"
_CASES: dict[str, tuple[str, Make]] = {
    "files-elsewhere": (ACCEPTED, _files_elsewhere),
    "versions-elsewhere": (BAD, _versions_elsewhere),
    "no-model": (BAD, _tokenizer(lambda t: t | {"model": None})),
    "unknown-model": (BAD, _tokenizer(lambda t: t | {"model": {"type": "Pickle"}})),
    "version-2": (BAD, _tokenizer(lambda t: t | {"version": "2.0"})),
    "dropout": (
        BAD,
        _tokenizer(lambda t: t | {"model": {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}}),
    ),
    "merges-of-nothing": (
        BAD,
        _tokenizer(lambda t: t | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}),
    ),
    "id-beyond-the-embedding": (BAD, _vocabulary(lambda v: v | {"far": 10**6})),
    "id-of-four-billion": (BAD, _vocabulary(lambda v: v | {"far": 2**32 - 1})),
    "id-negative": (BAD, _vocabulary(lambda v: v | {"far": -1})),
    "id-too-large": (BAD, _vocabulary(lambda v: v | {"far": 2**64})),
    "id-a-text": (BAD, _vocabulary(lambda v: v | {"far": "1"})),
    "ids-twice": (BAD, _vocabulary(dict.fromkeys)),
    "vocabulary-empty": (BAD, _vocabulary(lambda v: {})),
    "vocabulary-a-list": (BAD, _vocabulary(list)),
    "vocabulary-of-escapes": (ACCEPTED, _vocabulary(lambda v: {f"\x1b[{i}m" if i else "<bos>": i for i in v.values()})),
    "token-of-a-megabyte": (
        ACCEPTED,
        _vocabulary(lambda v: {name if i < 210 else "a" * 10**6: i for name, i in v.items()}),
    ),
    "vocabulary-of-a-million": (BAD, _vocabulary(lambda v: v | {f"x{i}": i for i in range(211, 10**6)})),
    "vocabulary-of-four-million": (BAD, _vocabulary(lambda v: v | {f"x{i}": i for i in range(211, 4 * 10**6)})),
    "added-of-escapes": (BAD, _tokenizer(lambda t: t | {"added_tokens": [_added("\x1b[2J\x00", 500)]})),
    "added-empty": (ACCEPTED, _tokenizer(lambda t: t | {"added_tokens": [_added("", 210)]})),
    "added-ten-thousand": (
        BAD,
        _tokenizer(lambda t: t | {"added_tokens": [_added(f"<{i}>", i) for i in range(10**4)]}),
    ),
    "added-everything": (
        BAD,
        _tokenizer(lambda t: t | {"added_tokens": [_added(c, i) for i, c in enumerate("w123 ")]}),
    ),
    "pattern-slow": (
        ACCEPTED,
        _tokenizer(
            lambda t: (
                t
                | {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": _SLOW_PATTERN,
                        "behavior": "Isolated",
                        "invert": False,
                    }
                }
            )
        ),
    ),
    "pattern-broken": (
        BAD,
        _tokenizer(
            lambda t: (
                t
                | {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": {"Regex": "(((("},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                }
            )
        ),
    ),
    "pattern-nested": (
        BAD,
        _tokenizer(
            lambda t: (
                t
                | {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": {"Regex": "(" * 10**5 + ")" * 10**5},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                }
            )
        ),
    ),
    "normalizer-slow": (
        ACCEPTED,
        _tokenizer(lambda t: t | {"normalizer": {"type": "Replace", "pattern": _SLOW_PATTERN, "content": "x"}}),
    ),
    "normalizer-grows": (
        BAD,
        _tokenizer(
            lambda t: (
                t
                | {
                    "normalizer": {
                        "type": "Sequence",
                        "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 8}] * 6,
                    }
                }
            )
        ),
    ),
    "normalizer-grows-for-ever": (
        BAD,
        _tokenizer(
            lambda t: (
                t
                | {
                    "normalizer": {
                        "type": "Sequence",
                        "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 64}] * 6,
                    }
                }
            )
        ),
    ),
    "normalizer-precompiled": (
        BAD,
        _tokenizer(lambda t: t | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAgP////8="}}),
    ),
    "sequence-nested": (BAD, _tokenizer(lambda t: t | {"pre_tokenizer": _nest(200)})),
    "template-slow": (ACCEPTED, _config(chat_template="{% for a in range(10**9) %}{% endfor %}")),
    "template-escapes": (ACCEPTED, _config(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    "template-broken": (ACCEPTED, _config(chat_template="{% for")),
    "class-missing": (ACCEPTED, _config(tokenizer_class="NoSuchTokenizer")),
    "class-other": (ACCEPTED, _config(tokenizer_class="LlamaTokenizer")),
    "class-a-number": (BAD, _config(tokenizer_class=7)),
    "length-negative": (ACCEPTED, _config(model_max_length=-1)),
    "special-token-a-list": (BAD, _config(bos_token=["<bos>"])),
    "special-token-outside": (BAD, _config(pad_token="<pad-that-is-nowhere>")),
    "special-token-of-escapes": (BAD, _config(additional_special_tokens=["\x1b]0;owned\x07"])),
    "decoder-of-ids": (BAD, _config(added_tokens_decoder={"99999999": {"content": "x", "special": True}})),
    "decoder-not-a-number": (BAD, _config(added_tokens_decoder={"x": {"content": "x"}})),
    "init-inputs": (ACCEPTED, _config(init_inputs=["../outside/secret.json", {"a": 1}])),
    "config-sets-anything": (
        ACCEPTED,
        _config(backend="x", _from_auto=False, local_files_only=False, trust_remote_code=True),
    ),
    "sentencepiece-empty": (BAD, _other("tokenizer.model", b"")),
    "sentencepiece-random": (BAD, _other("tokenizer.model", bytes(range(256)) * 40)),
    "sentencepiece-text": (BAD, _other("tokenizer.model", b"<html>")),
    "sentencepiece-length-lies": (BAD, _other("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f\x0a\x03abc")),
    "sentencepiece-no-pieces": (BAD, _other("tokenizer.model", b"\x12\x02\x18\x01")),
    "tiktoken": (BAD, _other("tokenizer.model", b"IQ== 0\nIg== 1\n")),
    "pickle-as-vocabulary": (BAD, _other("tokenizer.model", b"\x80\x04cposix\nsystem\n(Vid\ntR.")),
    "vocab-broken": (BAD, _two(b'{"a": ', b"#version: 0.2\n")),
    "vocab-a-list": (BAD, _two(b"[]", b"#version: 0.2\n")),
    "merges-binary": (BAD, _two(b'{"a": 0, "b": 1}', bytes(range(256)))),
    "merges-unknown": (BAD, _two(b'{"a": 0, "b": 1}', b"#version: 0.2\nx y\n")),
    "vocab-txt-binary": (BAD, _other("vocab.txt", bytes(range(256)))),
    "special-map-a-list": (BAD, fill("special_tokens_map.json", b"[]")),
    "special-map-deep": (BAD, fill("special_tokens_map.json", b'{"bos_token": ' + b'{"a":' * 500 + b"1" + b"}" * 501)),
    "added-tokens-a-text": (BAD, fill("added_tokens.json", b'{"x": "far"}')),
    "template-file-of-a-gigabyte": (BAD, lambda place: _truncate(place, "chat_template.jinja", 10**9)),
}


CASES = [Case(f"tokenizer-{name}", GROUP, make, code) for name, (code, make) in _CASES.items()]
