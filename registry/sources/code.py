"""Code that a checkpoint brings along: pointed out, and neither run nor kept.

What config.json says of it is kept with the rest of config.json, and other tools than this one may heed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact, UnsafeArtifact
from registry.sources.json_file import read_json_object
from registry.sources.source import Finding

CODE = "executable-code"
# with one of these, loaders run code of the folder's or fetch some
_NAMED_BY = ("auto_map", "trust_remote_code", "custom_pipelines", "_attn_implementation_internal")
_OWN_KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "paged_attention")
_N_NAMED = 5


def find_code(folder: Path, config: Mapping[str, Any], tokenizer: Sequence[Path]) -> list[Finding]:
    """Name the Python files beside the weights, and what says in config.json and for the tokenizer to run code."""
    files = sorted(ascii(path.name)[1:-1] for path in folder.glob("*.py"))
    named = [f"config.json: {field}" for field in asks_for_code(config)]
    for path in tokenizer:
        if path.name == "tokenizer_config.json":
            named += [f"{path.name}: {field}" for field in asks_for_code(_read(path))]
    found = [*files[:_N_NAMED], *named]
    if not found:
        return []
    more = f" and {len(files) - _N_NAMED} more" if len(files) > _N_NAMED else ""
    message = f"The source brings code along or asks for some ({', '.join(found)[:500]}{more}); none of it was run."
    return [Finding(CODE, message)]


def refuse_code(location: str, findings: Iterable[Mapping[str, str]]) -> None:
    """Raise UnsafeArtifact if one of the findings is of code: what a strict policy wants."""
    found = [one for one in findings if one["code"] == CODE]
    if found:
        raise UnsafeArtifact(
            f"{location} is refused by the strict policy. {found[0]['message']}",
            hint="Leave out the *.py files and what names them (auto_map and the like in config.json and "
            "tokenizer_config.json): lensreg needs none of it. Or have somebody look at the code, and register it "
            "without --strict and $LENSREG_POLICY=strict.",
            findings=found,
        )


def asks_for_code(config: Mapping[str, Any]) -> list[str]:
    """Return the fields of a config.json with which loaders run code of the folder's, or fetch some."""
    return [field for field in _NAMED_BY if _asks_for_code(field, config.get(field))]


def _asks_for_code(field: str, value: Any) -> bool:
    return bool(value) and not (field.startswith("_attn") and value in _OWN_KERNELS)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path)
    except MalformedArtifact:  # whoever loads the tokenizer says what is wrong with it
        return {}
