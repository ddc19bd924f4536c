"""Whole sources of every kind, made once in a process, and what is damaged in a copy of one."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from registry.audit import digest_event
from registry.transfer.folder import MANIFEST
from registry.transfer.form import encode
from tests.hostile.case import save_whole
from tests.hostile.fuzz.mutate import (
    Pairs,
    damage_bytes,
    damage_json,
    damage_safetensors,
    damage_tar,
    damage_value,
    damage_zip,
)

Damage = Callable[[bytes, random.Random], bytes]
FAMILIES = (
    "gpt2",
    "llama",
    "gpt_neox",
    "gemma2",
    "mistral",
    "qwen3",
    "mixtral",
    "phi3",
    "opt",
    "gptj",
    "olmo2",
    "bloom",
)


@cache
def list_bases(name: str) -> tuple[Path, ...]:
    """Return the whole sources that this kind is mutated from, made once in a process."""
    match name:
        case "config":
            return tuple(_save_family(family) for family in FAMILIES)
        case "index":
            return (save_whole("shards"),)
        case "pickle":
            return (save_whole("pickle"), _save_legacy())
        case "gguf":
            return (_save_gguf(),)
        case "adapter":
            return (save_whole("adapter"),)
        case "hooked":
            return (save_whole("hooked"),)
        case "export" | "tar":
            return (_export(),)
        case _:
            return (save_whole("huggingface"),)


def _save_family(family: str) -> Path:
    from tests.checkpoints import save_checkpoint

    return save_checkpoint(Path(tempfile.mkdtemp(prefix="lensreg-family-")), family)


def _save_legacy() -> Path:
    import torch

    folder = Path(shutil.copytree(save_whole("pickle"), Path(tempfile.mkdtemp()) / "legacy"))
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    return folder


def _save_gguf() -> Path:
    """Save a Llama: of a GPT-2 transformers would not read how large the vocabulary is."""
    from tests.checkpoints import make_network
    from tests.gguf_files import write_gguf

    folder = Path(tempfile.mkdtemp(prefix="lensreg-gguf-"))
    write_gguf(folder / "model.gguf", make_network("llama"))
    return folder


@cache
def _export() -> Path:
    """Export a few small versions, as a folder and as a tar in it."""
    from tests.transfers import fill, open_registry

    home = Path(tempfile.mkdtemp(prefix="lensreg-export-"))
    laptop = open_registry(home / "laptop")
    fill(laptop)
    laptop.export_versions("merge", target=home / "both" / "folder")
    laptop.export_versions("merge", target=home / "both" / "merge.tar")
    laptop.close()
    return home / "both"


@cache
def _donors() -> tuple[Any, ...]:
    """Values that configs hold: what a family means by them may be another thing than what is done with them."""
    found: list[Any] = []
    for base in list_bases("config"):
        found += json.loads((base / "config.json").read_text()).values()
    plain_values = {json.dumps(one): one for one in found if not isinstance(one, dict | list)}
    return (*plain_values.values(), "relu", "silu", "gelu", 0.3, 4, 8, 16, 32, 64, 128, True, False, None)


def damage_file(*names: str, damage: Damage) -> Callable[[Path, random.Random], None]:
    """Damage one of the files of these names that are there."""

    def change(folder: Path, rng: random.Random) -> None:
        path = folder / rng.choice([name for name in names if (folder / name).exists()])
        path.write_bytes(damage(path.read_bytes(), rng))

    return change


def damage_config(folder: Path, rng: random.Random) -> None:
    """Change config.json; half of the time a key that every such config may have gets a value out of another's."""
    path = folder / "config.json"
    if rng.random() < 0.5:
        path.write_bytes(damage_json(path.read_bytes(), rng, _donors()))
        return
    config = json.loads(path.read_text())
    other = json.loads((rng.choice(list_bases("config")) / "config.json").read_text())
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(sorted(config if rng.random() < 0.6 else other))
        config[key] = other[key] if key in other and rng.random() < 0.5 else rng.choice(_donors())
    path.write_text(json.dumps(config))


def damage_pickle(folder: Path, rng: random.Random) -> None:
    """Change a pickle of either of torch's formats."""
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    is_zip = content.startswith(b"PK")
    path.write_bytes(damage_zip(content, rng) if is_zip else damage_bytes(content, rng, within=6000))


def damage_adapter(folder: Path, rng: random.Random) -> None:
    """Change adapter_config.json, or the adapter's weights."""
    if rng.random() < 0.7:
        donors = (
            "c_attn",
            "c_proj",
            ["c_attn"],
            ["mlp.c_proj"],
            1,
            2,
            4,
            0.5,
            "all-linear",
            "LORA",
            "IA3",
            "lora_only",
            "all",
            ".*c_attn",
        )
        damage_file("adapter_config.json", damage=lambda content, one: damage_json(content, one, donors))(folder, rng)
    else:
        damage_file("adapter_model.safetensors", damage=damage_safetensors)(folder, rng)


def damage_export(folder: Path, rng: random.Random) -> None:
    """Change the manifest or a record, mostly with all digests made right again, or a blob."""
    place = folder / "folder"
    how = rng.random()
    manifest = json.loads((place / MANIFEST).read_bytes())
    if how < 0.3:
        changed = _damage_plain(manifest, rng)
        (place / MANIFEST).write_bytes(_encode(changed))
    elif how < 0.85:
        entry = rng.choice(manifest["records"])
        path = place / "records" / f"{entry['digest']}.json"
        text = _encode(_damage_plain(json.loads(path.read_bytes()), rng))
        path.unlink()
        entry |= {"digest": hashlib.sha256(text).hexdigest(), "size_bytes": len(text)}
        path.with_name(f"{entry['digest']}.json").write_bytes(text)
        (place / MANIFEST).write_bytes(encode(manifest))
    else:
        path = rng.choice(sorted(one for one in place.rglob("*") if one.is_file()))
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(damage_json(content, rng) if path.suffix == ".json" else damage_bytes(content, rng))


def _damage_plain(document: Any, rng: random.Random) -> Any:
    """Change plain data, which has no key twice; now and then what events say is made right again, too."""

    def open_up(value: Any) -> Any:
        if isinstance(value, dict):
            return Pairs([key, open_up(one)] for key, one in value.items())
        return [open_up(one) for one in value] if isinstance(value, list) else value

    def close(value: Any) -> Any:
        if isinstance(value, Pairs):
            return {str(key): close(one) for key, one in value}
        return (
            [close(one) for one in value]
            if isinstance(value, list)
            else str(value)
            if isinstance(value, str)
            else value
        )

    changed = close(damage_value(open_up(document), rng))
    events = changed.get("events") if isinstance(changed, dict) else None
    if isinstance(events, list) and rng.random() < 0.7:
        for event in events:
            try:
                event["digest"] = digest_event(event)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
    return changed


def _encode(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def damage_tape(folder: Path, rng: random.Random) -> None:
    """Change a tar."""

    def change(name: str, content: bytes) -> bytes:
        return damage_json(content, rng) if name.endswith(".json") else damage_bytes(content, rng)

    path = folder / "merge.tar"
    path.write_bytes(damage_tar(path.read_bytes(), rng, change))
