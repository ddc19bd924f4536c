"""Networks of every kind of source compute the same in the registry that received them, and can be measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Registry
from registry.errors import ArtifactMissing, MalformedExport
from registry.transfer import receive as receiving
from registry.transfer.form import VersionRecord
from tests.adapters import make_adapted, save_adapter
from tests.faults.invariant import find_breaches
from tests.networks import assert_identical, make_hooked
from tests.transfers import open_registry

KINDS = {"gpt2": "huggingface", "shards": "huggingface", "adapted": "huggingface", "mine": "hooked"}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Iterator[Registry]:
    """A registry with a checkpoint, one in shards with another tokenizer, a merged adapter, and a hooked network."""
    home = tmp_path_factory.mktemp("laptop")
    one = open_registry(home)
    one.register("gpt2", make_checkpoint("gpt2"))
    one.register("shards", make_checkpoint("llama", max_shard_size="100KB"))
    (home / "adapter").mkdir()
    one.register("adapted", save_adapter(home / "adapter", make_adapted("gpt2")), parent="gpt2")
    one.register_network("mine", make_hooked())
    yield one
    one.close()


def test_networks_are_the_same_there(laptop: Registry, tmp_path: Path) -> None:
    team = open_registry(tmp_path / "team")
    done = laptop.push(*KINDS, to=team, verify=True)
    assert len(done.received) == 4
    for name, layout in KINDS.items():
        version = team.version(name)
        assert version.layout == layout and version.is_verified
        n_theirs = len(laptop.version(name).validations)
        assert len(version.validations) == 2 * n_theirs, "measured elsewhere, and here again"
        assert ["received" in one.environment for one in version.validations] == [True] * n_theirs + [False] * n_theirs
        assert_identical(team.load(name), laptop.load(name))
    assert [parent.ref for parent in team.version("adapted").parents] == ["gpt2@v1"]
    assert {file.role for file in team.version("adapted").files} > {"original"}
    ours, theirs = (one.diff("gpt2", "adapted").tensors for one in (team, laptop))
    assert ours == theirs is not None
    assert find_breaches(team) == []
    team.close()


def test_a_sketch_that_is_not_of_the_weights(laptop: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be told from the files without a network, so it takes --verify to notice."""
    read = receiving.read_whole

    def forge(shipment: receiving.Shipment, entry: object) -> VersionRecord:
        record = read(shipment, entry)  # type: ignore[arg-type]
        assert record.sketch is not None
        name, samples = next(iter(record.sketch.samples.items()))
        other = replace(record.sketch, samples={**record.sketch.samples, name: samples + 1})
        return replace(record, sketch=other)

    monkeypatch.setattr(receiving, "read_whole", forge)
    team = open_registry(tmp_path / "team")
    with pytest.raises(MalformedExport, match="sketch"):
        laptop.push("gpt2", to=team, verify=True)
    assert list(team.models()) == []
    team.close()


def test_a_blob_that_is_missing_here_is_not_sent(laptop: Registry, tmp_path: Path) -> None:
    digest = laptop.version("shards").with_role("weights")[0].digest
    blob = laptop.store.blob_path(digest)
    kept = blob.rename(tmp_path / "kept")
    team = open_registry(tmp_path / "team")
    with pytest.raises(ArtifactMissing, match="is not in"):
        laptop.push("shards", to=team)
    kept.rename(blob)
    assert laptop.push("shards", to=team).received
    team.close()
