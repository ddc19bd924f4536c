"""Derived files that are torn, altered or gone are noticed, and made again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import registry.derived
import registry.load
from registry import Registry
from registry.errors import ArtifactCorrupt, ArtifactMissing
from registry.store.derived import DerivedFile
from tests.derived_files import assert_same, flip, load_plainly, only, register_one

pytestmark = pytest.mark.filterwarnings("ignore::registry.load_options.UnverifiedVersion")


@pytest.fixture
def one(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry that holds one version, `m`, whose blobs are no longer young."""
    return register_one(registry, make_checkpoint("gpt2"))


@pytest.mark.parametrize(("restore", "verify"), [(False, "changed"), (True, "changed"), (True, "always")])
def test_an_altered_file_is_made_again(one: Registry, restore: bool, verify: Any) -> None:
    plain = load_plainly(one, "m")
    one.load("m")
    path = only(one).path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path, restore=restore)
    assert_same(one.load("m", verify=verify), plain)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert_same(one.load("m"), plain)


def _truncate(file: DerivedFile) -> None:
    file.path.chmod(0o644)
    os.truncate(file.path, file.size_bytes - 8)


def _empty(file: DerivedFile) -> None:
    file.path.chmod(0o644)
    os.truncate(file.path, 0)


def _damage_card(file: DerivedFile) -> None:
    card = file.path.with_suffix(".json")
    card.write_text(card.read_text().replace("fold_ln", "fold_xx"))


DAMAGES: list[Callable[[DerivedFile], None]] = [
    _truncate,
    _empty,
    _damage_card,
    lambda file: file.path.unlink(),
    lambda file: file.path.with_suffix(".json").unlink(),
    lambda file: file.path.with_suffix(".json").write_bytes(b"\x00" * 100),
]


@pytest.mark.parametrize("verify", ["changed", "never"])
@pytest.mark.parametrize("damage", DAMAGES, ids=["truncated", "empty", "card", "gone", "no card", "zeros"])
def test_a_damaged_file_is_made_again(one: Registry, damage: Callable[[DerivedFile], None], verify: Any) -> None:
    plain = load_plainly(one, "m")
    one.load("m")
    damage(only(one))
    assert_same(one.load("m", verify=verify), plain)
    assert only(one).path.stat().st_size == only(one).size_bytes


def test_what_is_not_written_as_it_is_in_memory_is_not_kept(one: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a faulty disk: minus zero is not zero."""
    plain = load_plainly(one, "m")
    write = registry.derived._write

    def write_otherwise(path: Path, tensors: Any) -> str:
        changed = {**tensors, "blocks.0.attn.b_V": -tensors["blocks.0.attn.b_V"]}
        assert torch.equal(changed["blocks.0.attn.b_V"], tensors["blocks.0.attn.b_V"])  # folded: they are zero
        return write(path, changed)

    monkeypatch.setattr("registry.derived._write", write_otherwise)
    assert_same(one.load("m"), plain)
    assert one.cached() == [] and list(one.derived.root.rglob("*.safetensors")) == []


def test_what_a_killed_builder_left_is_removed_in_time(one: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    one.load("m")
    orphan = only(one).path
    orphan.with_suffix(".json").unlink()
    one.load("m", processed=False)
    assert orphan.exists()  # its card may be about to come
    monkeypatch.setattr("registry.store.derived._ORPHANED_SECONDS", -1)
    one.load("m", fold_ln=False)
    assert not orphan.exists() and all(file.path.exists() for file in one.cached()) and len(one.cached()) == 2


def test_a_file_under_another_ones_name_is_not_taken(one: Registry, make_checkpoint: Callable[..., Path]) -> None:
    one.register("other", make_checkpoint("gpt2", seed=1), parity="skip")
    plain = load_plainly(one, "m")
    for ref in ("m", "other"):
        one.load(ref)
    theirs, ours = one.cached()
    for suffix in (".safetensors", ".json"):
        ours.path.with_suffix(suffix).unlink()
        ours.path.with_suffix(suffix).write_bytes(theirs.path.with_suffix(suffix).read_bytes())
    assert_same(one.load("m"), plain)


def test_a_derived_file_does_not_stand_for_blobs_that_are_gone_or_altered(one: Registry) -> None:
    one.load("m")
    (file,) = one.version("m").with_role("weights")
    blob = one.store.blob_path(file.digest)
    flip(blob, restore=True)
    with pytest.raises(ArtifactCorrupt):
        one.load("m")
    blob.unlink()
    with pytest.raises(ArtifactMissing):
        one.load("m", verify="never")
