"""Registries full of versions whose files are real and tiny, made without torch: what is moved and checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from registry import Registry, Version
from registry.families import find_family
from registry.families.family import check_config
from registry.query import read_version
from registry.record import ParentEdge, record_version
from registry.resolve import resolve_ref
from registry.sketch import Sketch
from registry.stage import digest_staged_weights
from registry.versions import StoredFile
from tests.records import make_draft

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 211,
    "n_positions": 96,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
HUB = {"repo": "org/base", "revision": "main", "commit": "c" * 40}
_seeds = itertools.count()


def open_registry(folder: Path, url: str | None = None) -> Registry:
    """Open a registry in a folder: its store there, and its database, too, unless it is at `url`."""
    folder.mkdir(exist_ok=True)
    return Registry(url or str(folder / "registry.db"), folder / "store")


def add(
    registry: Registry,
    model: str,
    *,
    parents: Sequence[str] = (),
    seed: int | None = None,
    lazy: bool = False,
    **more: Any,
) -> Version:
    """Register a version whose one tensor is made of `seed`; with `lazy` its weights are said to be on the Hub."""
    return add_all(registry, [{"model": model, "parents": parents, "seed": seed, "lazy": lazy, **more}])[0]


def add_all(registry: Registry, wanted: Sequence[dict[str, Any]]) -> list[Version]:
    """Register several versions in one transaction."""
    family = find_family(CONFIG)
    values = check_config(family, CONFIG)
    with registry.store.stage() as folder:
        (folder / "config.json").write_text(json.dumps(CONFIG))
        config = registry.store.copy_in(folder / "config.json", folder / "config")
        staged, drafts = [config], []
        for number, given in enumerate(wanted):
            one = {"parents": (), "seed": None, "lazy": False, "relation": "finetuned"} | given
            seed = next(_seeds) + 10**6 if one["seed"] is None else one["seed"]
            path = folder / f"{number}.safetensors"
            tensor = np.random.default_rng(seed).normal(size=(16, 16)).astype("<f4")
            save_file({"transformer.wte.weight": tensor}, path, metadata={"format": "pt"})
            weights = digest_staged_weights(family, values, [path], lambda *_: None)
            blob = registry.store.copy_in(path, folder / f"{number}.blob")
            files = (
                StoredFile("config.json", "config", config.digest, config.size_bytes),
                StoredFile("model.safetensors", "weights", blob.digest, blob.size_bytes),
            )
            if not one["lazy"]:
                staged.append(blob)
            sketch = Sketch({"blocks.0.mlp.W_in": (16, 16)}, {"blocks.0.mlp.W_in": tensor[:12, :12]})
            known = {name: one[name] for name in ("step", "note", "tags", "absent", "verified") if name in one}
            draft = make_draft(one["model"], architecture=family.describe(values), **known)
            drafts.append(
                (
                    one,
                    replace(
                        draft,
                        weights_digest=None if one["lazy"] else weights.digest,
                        provenance=HUB if one["lazy"] else one.get("provenance", {}),
                        files=files,
                        n_parameters=weights.n_parameters,
                        dtype=weights.dtype,
                        tensors={} if one["lazy"] else weights.tensors,
                        tensor_digests={} if one["lazy"] else weights.digests,
                        sketch=None if one["lazy"] else sketch,
                    ),
                )
            )
        registry.store.publish(staged)
        with registry.database.write() as connection:
            added = []
            for one, draft in drafts:
                found = [resolve_ref(connection, ref) for ref in one["parents"]]
                edges = [ParentEdge(parent.id, parent.ref, one["relation"]) for parent in found]
                added.append(record_version(connection, replace(draft, parents=edges)))
            return [read_version(connection, version_id) for version_id in added]


def fill(registry: Registry) -> None:
    """Register two bases, a run of two steps, and a merge; one of the ancestors is retired, and one alias is set."""
    add(registry, "base", seed=1, note="the first", tags={"lang": "en"})
    add(registry, "other", seed=2)
    add(registry, "run", seed=3, parents=["base"], step=10)
    add(registry, "run", seed=4, parents=["run@v1"], step=20, relation="continued")
    add(registry, "merge", seed=5, parents=["run@v2", "other@v1"], relation="merged", absent=[f"org/gone@{'a' * 40}"])
    registry.retire("run@v1", force=True, reason="an old one")
    registry.set_alias("merge@best", "merge@v1")
