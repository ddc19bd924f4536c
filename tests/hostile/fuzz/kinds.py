"""The kinds of files that are mutated: out of what, to whom they are handed, and what they say plainly."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import Registry
from tests.hostile.fuzz import plain
from tests.hostile.fuzz.mutate import damage_gguf, damage_json, damage_safetensors
from tests.hostile.fuzz.sources import (
    damage_adapter,
    damage_config,
    damage_export,
    damage_file,
    damage_pickle,
    damage_tape,
    list_bases,
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
    Kind("weights", 24, damage_file("model.safetensors", damage=damage_safetensors), _register, _AS_NETWORKS, 3),
    Kind("index", 18, damage_file("model.safetensors.index.json", damage=damage_json), _register, _AS_NETWORKS, 8),
    Kind("config", 20, damage_config, _register, _AS_NETWORKS, 10),
    Kind(
        "tokenizer", 9,
        damage_file("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", damage=damage_json),
        _register, _with(plain.differ_as_tokenizers), 4,
    ),
    Kind("gguf", 5, damage_file("model.gguf", damage=damage_gguf), _register_gguf, _with(plain.differ_as_gguf), 12),
    Kind("pickle", 6, damage_pickle, _register, _with(plain.differ_in_tensors)),
    Kind("adapter", 7, damage_adapter, _register_adapter, _with(plain.differ_as_adapters), 4),
    Kind("hooked", 5, damage_file("hooked_config.json", damage=damage_json), _register, _compare_hooked),
    Kind("trainer-state", 3, damage_file("trainer_state.json", damage=damage_json), _check, _differ_in_step),
    Kind("export", 4, damage_export, lambda world, folder, name: _import(world, folder / "folder", name),
         lambda world, received, folder: _compare_import(world, received, folder / "folder")),
    Kind("tar", 3, damage_tape, lambda world, folder, name: _import(world, folder / "merge.tar", name),
         lambda world, received, folder: _compare_import(world, received, folder / "merge.tar")),
)  # fmt: skip
