"""State dicts and adapters that are not what they say: unknown fields, shapes that do not fit, what lies beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.hostile.case import Case, Make, Place
from tests.hostile.json_files import fill
from tests.hostile.safetensors_files import entry, pack

HOOKED, ADAPTER = "hooked layout", "adapters"


def _hooked(**fields: Any) -> Make:
    return fill("hooked_config.json", lambda config: config | fields)


def _architecture(**fields: Any) -> Make:
    return fill("hooked_config.json", lambda config: config | {"architecture": config["architecture"] | fields})


def _adapter(**fields: Any) -> Make:
    return fill("adapter_config.json", lambda config: config | fields)


def _weights(name: str, content: bytes) -> Make:
    def make(place: Place) -> None:
        (place.source / name).write_bytes(content)

    return make


def _edit_adapter(change: Callable[[dict[str, Any]], Any]) -> Make:
    def make(place: Place) -> None:
        from tests.adapters import edit_tensors

        edit_tensors(place.source, change)

    return make


def _config_beside(place: Place) -> None:
    (place.source / "config.json").write_text(json.dumps({"architectures": ["os.system"], "auto_map": {"a": "b"}}))


def _model_beside(place: Place) -> None:
    (place.source / "model.safetensors").write_bytes(pack({"a": entry([1])}, bytes(4)))


CASES = [
    Case("hooked-format", HOOKED, _hooked(format="../../x"), "malformed-artifact", base="hooked"),
    Case("hooked-version-99", HOOKED, _hooked(format_version=99), "malformed-artifact", base="hooked"),
    Case("hooked-more-keys", HOOKED, _hooked(hook_code="import os"), "malformed-artifact", base="hooked"),
    Case("hooked-architecture-a-list", HOOKED, _hooked(architecture=[]), "malformed-artifact", base="hooked"),
    Case("hooked-processing-unknown", HOOKED, _hooked(processing=["os.system"]), "malformed-artifact", base="hooked"),
    Case("hooked-family-long", HOOKED, _hooked(family="x" * 10_000), "malformed-artifact", base="hooked"),
    Case("hooked-family-of-escapes", HOOKED, _hooked(family="\x1b[2J"), "malformed-artifact", base="hooked"),
    Case("hooked-field-of-escapes", HOOKED, _architecture(**{"\x1b[2J\n": 1}), "unsupported-config", base="hooked"),
    Case("hooked-layers", HOOKED, _architecture(n_layers=10**9), "weights-mismatch", base="hooked"),
    Case("hooked-layers-a-text", HOOKED, _architecture(n_layers="2"), "unsupported-config", base="hooked"),
    Case("hooked-heads-0", HOOKED, _architecture(n_heads=0), "unsupported-config", base="hooked"),
    Case("hooked-context", HOOKED, _architecture(n_ctx=10**12), "weights-mismatch", base="hooked"),
    Case("hooked-vocabulary", HOOKED, _architecture(d_vocab=10**15), "unsupported-config", base="hooked"),
    Case("hooked-eps-nan", HOOKED, fill("hooked_config.json", b'{"eps": NaN}'), "malformed-artifact", base="hooked"),
    Case("hooked-activation", HOOKED, _architecture(act_fn="__import__('os')"), "unsupported-config", base="hooked"),
    Case("hooked-weights-empty", HOOKED, _weights("model.safetensors", pack({})), "unsupported-source", base="hooked"),
    Case("hooked-weights-broken", HOOKED, _weights("model.safetensors", b"x"), "malformed-artifact", base="hooked"),
    Case("adapter-kind", ADAPTER, _adapter(peft_type="../../evil"), "unsupported-config", base="adapter"),
    Case("adapter-kind-missing", ADAPTER, _adapter(peft_type=None), "malformed-artifact", base="adapter"),
    Case("adapter-field", ADAPTER, _adapter(evil="\x1b[2J" * 1000), "unsupported-config", base="adapter"),
    Case(
        "adapter-auto-mapping",
        ADAPTER,
        _adapter(auto_mapping={"base_model_class": "os.system", "parent_library": "os"}),
        "accepted",
        base="adapter",
    ),
    Case("adapter-rank-a-billion", ADAPTER, _adapter(r=10**9), "weights-mismatch", base="adapter"),
    Case("adapter-rank-negative", ADAPTER, _adapter(r=-2), "unsupported-config", base="adapter"),
    Case("adapter-rank-a-text", ADAPTER, _adapter(r="2"), "unsupported-config", base="adapter"),
    Case("adapter-alpha-huge", ADAPTER, _adapter(lora_alpha=10**300), "unsupported-source", base="adapter"),
    Case(
        "adapter-pattern-slow",
        ADAPTER,
        _adapter(target_modules=r"(.*)*(.*)*(.*)*(.*)*x$"),
        "unsupported-config",
        base="adapter",
    ),
    Case("adapter-pattern-broken", ADAPTER, _adapter(target_modules="(((("), "unsupported-config", base="adapter"),
    Case("adapter-targets-a-number", ADAPTER, _adapter(target_modules=7), "unsupported-config", base="adapter"),
    Case(
        "adapter-targets-a-million",
        ADAPTER,
        _adapter(target_modules=["x" * 9] * 10**5),
        "unsupported-config",
        base="adapter",
    ),
    Case("adapter-layers", ADAPTER, _adapter(layers_to_transform=[10**9]), "unsupported-config", base="adapter"),
    Case(
        "adapter-base-elsewhere",
        ADAPTER,
        _adapter(base_model_name_or_path="../outside"),
        "accepted",
        base="adapter",
        finding="base-not-confirmed",
    ),
    Case("adapter-base-of-escapes", ADAPTER, _adapter(base_model_name_or_path="\x1b[2J"), "accepted", base="adapter"),
    Case("adapter-megatron-core", ADAPTER, _adapter(megatron_core="os"), "accepted", base="adapter"),
    Case(
        "adapter-weights-empty",
        ADAPTER,
        _weights("adapter_model.safetensors", pack({})),
        "unusable-weights",
        base="adapter",
    ),
    Case(
        "adapter-weights-broken",
        ADAPTER,
        _weights("adapter_model.safetensors", b"x"),
        "malformed-artifact",
        base="adapter",
    ),
    Case(
        "adapter-weights-foreign",
        ADAPTER,
        _weights("adapter_model.safetensors", pack({"../a": entry([1])}, bytes(4))),
        "weights-mismatch",
        base="adapter",
    ),
    Case(
        "adapter-tensor-missing",
        ADAPTER,
        _edit_adapter(lambda t: dict(list(t.items())[1:])),
        "weights-mismatch",
        base="adapter",
    ),
    Case("adapter-config-beside", ADAPTER, _config_beside, "unsupported-family", base="adapter"),
    Case("adapter-model-beside", ADAPTER, _model_beside, "unsupported-source", base="adapter"),
]
