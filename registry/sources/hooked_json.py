"""hooked_config.json: what a folder of hooked weights says of itself, so that nothing has to be guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.architecture import Architecture
from registry.environment import find_release
from registry.errors import MalformedArtifact
from registry.hooked_config import PROCESSING_FLAGS, check_architecture_fields

HOOKED_CONFIG = "hooked_config.json"
_FORMAT = "lensreg-hooked"
_FORMAT_VERSION = 1
_FAMILY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEYS = {"format", "format_version", "architecture", "processing", "family", "default_prepend_bos", "versions"}


@dataclass(frozen=True)
class HookedDescription:
    """The architecture, the processing flags that had been applied, the family if there is one.

    `default_prepend_bos` is what the network did with text; None leaves it to transformer-lens.
    """

    architecture: Architecture
    processing: tuple[str, ...]
    family: str | None
    default_prepend_bos: bool | None = None

    def as_config(self) -> dict[str, Any]:
        """Give the description as hooked_config.json holds it."""
        return {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "architecture": dict(self.architecture.fields),
            "processing": list(self.processing),
            "family": self.family,
            "default_prepend_bos": self.default_prepend_bos,
            "versions": {name: find_release(name) for name in ("lens-registry", "transformer-lens", "torch")},
        }

    def write(self, path: Path) -> dict[str, Any]:
        """Write hooked_config.json, and return what it holds."""
        config = self.as_config()
        path.write_text(json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n")
        return config


def is_hooked_config(config: Mapping[str, Any]) -> bool:
    """Say whether this is a hooked_config.json, and not a config.json of Hugging Face's."""
    return config.get("format") == _FORMAT


def read_description(config: Mapping[str, Any]) -> HookedDescription:
    """Check a hooked_config.json, or raise MalformedArtifact or UnsupportedConfig."""
    if not is_hooked_config(config) or config.get("format_version") != _FORMAT_VERSION:
        raise _malformed(
            f"its format is {config.get('format')!r}, version {config.get('format_version')!r}, and this lens-registry "
            f"reads {_FORMAT!r}, version {_FORMAT_VERSION}"
        )
    if set(config) != _KEYS:
        wrong = sorted(set(config) ^ _KEYS)
        raise _malformed(f"it has not the keys that it should have; the first that is wrong is {wrong[0][:80]!r}")
    fields, processing, family = config["architecture"], config["processing"], config["family"]
    if not isinstance(fields, dict):
        raise _malformed("its architecture is no object")
    if not isinstance(processing, list) or processing != [flag for flag in PROCESSING_FLAGS if flag in processing]:
        raise _malformed(
            f"its processing is {repr(processing)[:80]}; the flags are {', '.join(PROCESSING_FLAGS)}, in this order"
        )
    if not (family is None or (isinstance(family, str) and _FAMILY.fullmatch(family))):
        raise _malformed("its family is no name")
    if not (config["default_prepend_bos"] is None or type(config["default_prepend_bos"]) is bool):
        raise _malformed("its default_prepend_bos is neither true nor false")
    architecture = check_architecture_fields(fields)
    if dict(architecture.fields) != fields:
        raise _malformed("its architecture is not in canonical form")
    return HookedDescription(architecture, tuple(processing), family, config["default_prepend_bos"])


def _malformed(what: str) -> MalformedArtifact:
    return MalformedArtifact(
        f"{HOOKED_CONFIG} cannot be used: {what}.",
        hint="Save the network again with registry.save_network.",
        path=HOOKED_CONFIG,
    )
