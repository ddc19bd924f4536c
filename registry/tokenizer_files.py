"""A tokenizer's files, checked before libraries read them: they would take minutes and gigabytes to refuse some."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from registry.bounded_json import BadJsonError, count_values, parse_json
from registry.errors import UnusableTokenizer
from registry.regular_files import open_regular

# file -> how many bytes and how many values it may have: somewhat more than the largest that are published
_BOUNDS = {
    "tokenizer.json": (48 * 2**20, 4_000_000),
    "vocab.json": (24 * 2**20, 1_000_000),
    "merges.txt": (24 * 2**20, None),
    "vocab.txt": (24 * 2**20, None),
    "tokenizer.model": (24 * 2**20, None),
    "tokenizer_config.json": (5 * 2**20, 200_000),
    "special_tokens_map.json": (2**20, 50_000),
    "added_tokens.json": (2**20, 50_000),
    "chat_template.json": (5 * 2**20, 200_000),
    "chat_template.jinja": (5 * 2**20, None),
}
_VALUES_BESIDE, _VALUES_PER_TOKEN = 50_000, 16  # of a token with its merge and its score there are five
_MAX_GROWTH = 10_000
_SMALL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")


def check_tokenizer_files(paths: Iterable[Path], d_vocab: int | None = None) -> None:
    """Raise UnusableTokenizer for files that are too large, for their kind or for `d_vocab` tokens, or no JSON."""
    for path in paths:
        if path.name in _BOUNDS:
            n_bytes, n_values = _BOUNDS[path.name]
            if n_values is not None and d_vocab is not None:
                n_values = min(n_values, _VALUES_BESIDE + _VALUES_PER_TOKEN * d_vocab)
            try:
                _check_file(path, n_bytes, n_values)
            except BadJsonError as error:
                raise UnusableTokenizer(
                    f"The tokenizer cannot be loaded: {path.name} {error}.",
                    hint="Save it again with tokenizer.save_pretrained, or take its files out of the folder.",
                ) from None


def _check_file(path: Path, n_bytes: int, n_values: int | None) -> None:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > n_bytes:
            raise BadJsonError(f"has {size:,} bytes")
        if n_values is None:
            return
        content = file.read(size)
    count_values(content, n_values)
    if path.name in _SMALL and not isinstance(parse_json(content, max_values=n_values, constants=True), dict):
        raise BadJsonError("holds no JSON object")
    if path.name == "tokenizer.json" and (b"Replace" in content or b"\\u00" in content):
        _check_growth(content)


def _check_growth(content: bytes) -> None:
    """Refuse a normalizer that makes a text a thousand times longer: a few of its steps are enough for all memory."""
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadJsonError(f"is not JSON ({str(error)[:200]})") from None
    steps, growth = [read.get("normalizer") if isinstance(read, dict) else None], 1
    while steps:
        step = steps.pop()
        if isinstance(step, dict):
            inner = step.get("normalizers")
            steps += inner if isinstance(inner, list) else []
            replacement = step.get("content")
            growth *= max(1, len(replacement)) if isinstance(replacement, str) else 1
        if growth > _MAX_GROWTH:
            raise BadJsonError("has a normalizer that makes texts too long")
