"""Code that a checkpoint brings along: pointed out, and neither run nor kept.

What config.json says of it is kept with the rest of config.json, and other tools than this one may heed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact
from registry.sources.json_file import read_json_object
from registry.sources.source import Finding

# with one of these, loaders run code of the folder's or fetch some
_NAMED_BY = ("auto_map", "trust_remote_code", "custom_pipelines", "_attn_implementation_internal")
_OWN_KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "paged_attention")
_N_NAMED = 5


def find_code(folder: Path, config: Mapping[str, Any], tokenizer: Sequence[Path]) -> list[Finding]:
    """Name the Python files beside the weights, and what says in config.json and for the tokenizer to run code."""
    files = sorted(ascii(path.name)[1:-1] for path in folder.glob("*.py"))
    named = [f"config.json: {field}" for field in _NAMED_BY if _asks_for_code(field, config.get(field))]
    for path in tokenizer:
        if path.name == "tokenizer_config.json":
            named += [f"{path.name}: {field}" for field in _NAMED_BY if _asks_for_code(field, _read(path).get(field))]
    found = [*files[:_N_NAMED], *named]
    if not found:
        return []
    more = f" and {len(files) - _N_NAMED} more" if len(files) > _N_NAMED else ""
    message = f"The source brings code along or asks for some ({', '.join(found)[:500]}{more}); none of it was run."
    return [Finding("executable-code", message)]


def _asks_for_code(field: str, value: Any) -> bool:
    return bool(value) and not (field.startswith("_attn") and value in _OWN_KERNELS)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path)
    except MalformedArtifact:  # whoever loads the tokenizer says what is wrong with it
        return {}
