"""The kinds of files that are mutated: out of what, to whom they are handed, and what they say plainly."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from registry import Registry
from registry.transfer.folder import MANIFEST
from registry.transfer.form import encode
from tests.hostile.case import save_whole
from tests.hostile.fuzz import plain
from tests.hostile.fuzz.mutate import (
    Pairs,
    damage_bytes,
    damage_gguf,
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


@dataclass(frozen=True)
class World:
    """Where cases are handed over: a registry with a base in it, and a folder for what is made anew."""

    registry: Registry
    folder: Path


@dataclass(frozen=True)
class Kind:
    """One kind of file. `hand_over` returns what was registered, and `compare` what differs from the plain reading.

    `share` is how many of a hundred cases are of it; of those that get through, one in `each` is compared.
    """

    name: str
    share: int
    damage: Callable[[Path, random.Random], None]
    hand_over: Callable[[World, Path, str], Any]
    compare: Callable[[World, Any, Path], str | None]
    each: int = 1


def make_folder(kind: Kind, rng: random.Random, folder: Path) -> None:
    """Make the mutated folder of one case."""
    bases = list_bases(kind.name)
    shutil.copytree(rng.choice(bases), folder)
    kind.damage(folder, rng)


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
    import tempfile

    from tests.checkpoints import save_checkpoint

    return save_checkpoint(Path(tempfile.mkdtemp(prefix="lensreg-family-")), family)


def _save_legacy() -> Path:
    import tempfile

    import torch

    folder = Path(shutil.copytree(save_whole("pickle"), Path(tempfile.mkdtemp()) / "legacy"))
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    return folder


def _save_gguf() -> Path:
    """Save a Llama: transformers reads all that it needs, and not the vocabulary's size of a GPT-2."""
    import tempfile

    from tests.checkpoints import make_network
    from tests.gguf_files import write_gguf

    folder = Path(tempfile.mkdtemp(prefix="lensreg-gguf-"))
    write_gguf(folder / "model.gguf", make_network("llama"))
    return folder


@cache
def _export() -> Path:
    """Export a few small versions, as a folder and as a tar in it."""
    import tempfile

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


def _on(*names: str, damage: Damage) -> Callable[[Path, random.Random], None]:
    """Damage one of the files of these names that are there."""

    def change(folder: Path, rng: random.Random) -> None:
        path = folder / rng.choice([name for name in names if (folder / name).exists()])
        path.write_bytes(damage(path.read_bytes(), rng))

    return change


def _damage_config(folder: Path, rng: random.Random) -> None:
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


def _damage_pickle(folder: Path, rng: random.Random) -> None:
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    is_zip = content.startswith(b"PK")
    path.write_bytes(damage_zip(content, rng) if is_zip else damage_bytes(content, rng, within=6000))


def _damage_adapter(folder: Path, rng: random.Random) -> None:
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
        _on("adapter_config.json", damage=lambda content, one: damage_json(content, one, donors))(folder, rng)
    else:
        _on("adapter_model.safetensors", damage=damage_safetensors)(folder, rng)


def _damage_export(folder: Path, rng: random.Random) -> None:
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
    from registry.audit import digest_event

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


def _damage_tape(folder: Path, rng: random.Random) -> None:
    def change(name: str, content: bytes) -> bytes:
        return damage_json(content, rng) if name.endswith(".json") else damage_bytes(content, rng)

    path = folder / "merge.tar"
    path.write_bytes(damage_tar(path.read_bytes(), rng, change))


def _register(world: World, source: Path, name: str) -> str | None:
    done = world.registry.register(name, source, parity="skip")
    return done.version.ref if done.version else None


def _register_gguf(world: World, source: Path, name: str) -> str | None:
    return _register(world, source / "model.gguf", name)


def _register_adapter(world: World, source: Path, name: str) -> str | None:
    done = world.registry.register(name, source, parity="skip", parent="base")
    return done.version.ref if done.version else None


def _check(world: World, source: Path, name: str) -> Any:
    """Read headers only: what is looked at is the step that registering would record."""
    done = world.registry.check(source)
    if done.fault:
        raise done.fault
    return done


def _import(world: World, source: Path, name: str) -> Any:
    """Import into a registry that holds nothing yet, and keep both what was said and the registry."""
    home = world.folder / "team"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(world.folder / "empty", home)
    team = Registry(str(home / "registry.db"), home / "store")
    try:
        done = team.import_versions(source)
    except BaseException:
        left = [*team.models(), *team.events()]
        team.close()
        if left:
            raise ValueError(f"an import was refused, and left {left[:3]}") from None
        raise
    return team, {one.sent_as: one.ref for one in done.moves}


def _compare_import(world: World, received: Any, source: Path) -> str | None:
    from tests.faults.invariant import find_breaches

    team, refs = received
    try:
        broken = find_breaches(team, refs.values())
        records = [json.loads(path.read_bytes()) for path in (source / "records").iterdir()] if source.is_dir() else []
        return broken[0] if broken else plain.differ_as_records(team, refs, records)
    finally:
        team.close()


def _with(differ: Callable[[Registry, str, Path], str | None]) -> Callable[[World, Any, Path], str | None]:
    return lambda world, ref, folder: differ(world.registry, ref, folder)


def _differ_in_step(world: World, done: Any, folder: Path) -> str | None:
    return plain.differ_in_step(done.step, folder)


def _compare_hooked(world: World, ref: str, folder: Path) -> str | None:
    """What hooked_config.json says is what is recorded; there is no other reader of it."""
    said = json.loads((folder / "hooked_config.json").read_bytes())
    version = world.registry.version(ref)
    found = {name: version.architecture.get(name) for name in said["architecture"]}
    return None if found == said["architecture"] else f"the architecture is {found}, and said is {said['architecture']}"


_AS_NETWORKS = _with(plain.differ_as_networks)
KINDS = (
    Kind("weights", 24, _on("model.safetensors", damage=damage_safetensors), _register, _AS_NETWORKS, 3),
    Kind("index", 18, _on("model.safetensors.index.json", damage=damage_json), _register, _AS_NETWORKS, 8),
    Kind("config", 20, _damage_config, _register, _AS_NETWORKS, 10),
    Kind(
        "tokenizer", 9,
        _on("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", damage=damage_json),
        _register, _with(plain.differ_as_tokenizers), 4,
    ),
    Kind("gguf", 5, _on("model.gguf", damage=damage_gguf), _register_gguf, _with(plain.differ_as_gguf), 12),
    Kind("pickle", 6, _damage_pickle, _register, _with(plain.differ_in_tensors)),
    Kind("adapter", 7, _damage_adapter, _register_adapter, _with(plain.differ_as_adapters), 4),
    Kind("hooked", 5, _on("hooked_config.json", damage=damage_json), _register, _compare_hooked),
    Kind("trainer-state", 3, _on("trainer_state.json", damage=damage_json), _check, _differ_in_step),
    Kind("export", 4, _damage_export, lambda world, folder, name: _import(world, folder / "folder", name),
         lambda world, received, folder: _compare_import(world, received, folder / "folder")),
    Kind("tar", 3, _damage_tape, lambda world, folder, name: _import(world, folder / "merge.tar", name),
         lambda world, received, folder: _compare_import(world, received, folder / "merge.tar")),
)  # fmt: skip
