"""What changed between two versions, told from recorded digests alone, and how records that are missing are made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import delete, func, select, update

from registry import Registry
from registry.errors import ArtifactMissing, DatabaseError, TensorsUnknown, UnsupportedLayout
from registry.tables import tensor_digests
from registry.tensor_digests import TensorRecord
from tests.hub_server import FakeHub
from tests.records import digest_of, make_architecture, record

WEIGHTS = "model.safetensors"


def _tensors(**digests: str) -> dict[str, TensorRecord]:
    return {name: TensorRecord("F32", (2, 3), digest_of(what)) for name, what in digests.items()}


def test_tensors_are_equal_changed_added_or_gone(any_registry: Registry) -> None:
    record(any_registry, "a", tensors=_tensors(same="1", other="2", gone="3"))
    new = _tensors(same="1", other="2'", added="4") | {"kind": TensorRecord("F32", (6,), digest_of("5"))}
    record(any_registry, "b", tensors=new)
    found = any_registry.changed_tensors("a", "b")
    assert (found.a, found.b, found.equal) == ("a@v1", "b@v1", ("same",))
    (changed,) = found.changed
    assert (changed.name, changed.a, changed.b.digest) == (
        "other",
        TensorRecord("F32", (2, 3), digest_of("2")),
        digest_of("2'"),
    )
    assert (list(found.added), list(found.gone)) == (["added", "kind"], ["gone"])
    assert str(found) == "1 equal, 1 changed, 2 added, 1 gone"
    assert "<td>other</td><td>changed</td>" in found._repr_html_()
    back = any_registry.changed_tensors("b", "a")
    assert (list(back.added), list(back.gone), back.equal) == (["gone"], ["added", "kind"], ("same",))


def test_the_same_bytes_in_another_form_are_changed(any_registry: Registry) -> None:
    one = TensorRecord("F32", (2, 3), digest_of("1"))
    record(any_registry, "a", tensors={"w": one, "v": one})
    record(any_registry, "b", tensors={"w": TensorRecord("F32", (3, 2), one.digest), "v": one})
    found = any_registry.changed_tensors("a", "b")
    assert ([change.name for change in found.changed], found.equal) == (["w"], ("v",))


def test_names_of_every_kind_come_back(any_registry: Registry) -> None:
    tensors = _tensors(**{"a b": "1", "ü.♥": "2", 'q"uote\\': "3", "": "4"})
    tensors |= {"scalar": TensorRecord("BF16", (), digest_of("5"))}
    record(any_registry, "a", tensors=tensors)
    assert set(any_registry.changed_tensors("a", "a").equal) == set(tensors)


def test_the_same_weights_are_recorded_once(any_registry: Registry) -> None:
    tensors = _tensors(w="1")
    for name in "ab":
        record(any_registry, name, tensors=tensors)
    with any_registry.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(tensor_digests)).scalar() == 1
    assert any_registry.changed_tensors("a", "b").equal == ("w",)


def test_a_record_takes_little_more_than_its_digests(any_registry: Registry) -> None:
    names = [f"model.layers.{layer}.self_attn.{one}_proj.weight" for layer in range(40) for one in "qkvo"]
    record(any_registry, "a", tensors={name: TensorRecord("BF16", (4096, 4096), digest_of(name)) for name in names})
    with any_registry.database.read() as connection:
        row = connection.execute(select(tensor_digests)).one()
    assert row.n_tensors == 160
    assert len(row.digests) == 160 * 32
    assert len(row.forms) < 160 * 8


ALTERATIONS = {
    "digests": {"digests": b"\0" * 64},
    "too few": {"digests": b"\0" * 32},
    "forms": {"forms": b"nonsense"},
}


@pytest.mark.parametrize("how", ALTERATIONS)
def test_an_altered_record_is_noticed(any_registry: Registry, how: str) -> None:
    record(any_registry, "a", tensors=_tensors(v="1", w="2"))
    with any_registry.database.write() as connection:
        connection.execute(update(tensor_digests).values(**ALTERATIONS[how]))
    with pytest.raises(DatabaseError, match="not those of these weights"):
        any_registry.changed_tensors("a", "a")


def test_facts_and_architecture_are_told_with_or_without_tensors(any_registry: Registry) -> None:
    record(any_registry, "a", tensors=_tensors(w="1"), step=1)
    record(any_registry, "b", architecture=make_architecture(n_ctx=128), step=2)
    found = any_registry.diff("a", "b")
    assert found.facts == {"step": (1, 2)}
    assert [(one.field, one.parent, one.checkpoint) for one in found.architecture] == [("n_ctx", 96, 128)]
    assert found.tensors is None
    assert isinstance(found.obstacle, TensorsUnknown) and "b@v1" in found.obstacle.message
    assert "--read" in str(found.obstacle.hint)


def test_training_tags_and_tokenizer_are_told(any_registry: Registry) -> None:
    record(any_registry, "base", tags={"data": "web", "seed": "1"})
    record(any_registry, "tuned", parents=["base"], step=20, tags={"data": "pirate", "seed": "1"})
    found = any_registry.diff("base", "tuned")
    assert found.facts["tag data"] == ("web", "pirate")
    assert "tag seed" not in found.facts
    assert found.facts["parents"] == (None, "base@v1 (finetuned)")
    frame = found.to_pandas()
    (step,) = frame[frame["name"] == "step"].to_dict("records")
    assert (step["kind"], step["b"]) == ("fact", 20)


# ---- with real checkpoints


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("gpt2")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with two tensors changed, one of them in one bit of one number."""
    folder = tmp_path_factory.mktemp("changed") / "tuned"
    shutil.copytree(base, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer.h.0.attn.c_attn.weight"].mul_(2)
    bias = tensors["transformer.h.1.mlp.c_fc.bias"]
    bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


CHANGED = ["transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_fc.bias"]


def _forget(registry: Registry) -> None:
    """Make the records what they were before the digests of tensors were kept."""
    with registry.database.write() as connection:
        connection.execute(delete(tensor_digests))


def test_what_was_trained_is_told_without_reading_weights(any_registry: Registry, base: Path, tuned: Path) -> None:
    any_registry.register("base", base, parity="skip")
    any_registry.register("tuned", tuned, parent="base", parity="skip")
    shutil.rmtree(any_registry.store.root)
    found = any_registry.changed_tensors("base", "tuned")
    assert sorted(one.name for one in found.changed) == CHANGED
    assert len(found.equal) > 20 and not found.added and not found.gone


def test_old_versions_are_read_once_when_that_is_asked_for(any_registry: Registry, base: Path, tuned: Path) -> None:
    any_registry.register("base", base, parity="skip")
    any_registry.register("tuned", tuned, parity="skip")
    before = any_registry.changed_tensors("base", "tuned")
    _forget(any_registry)
    with pytest.raises(TensorsUnknown, match="base@v1"):
        any_registry.changed_tensors("base", "tuned")
    assert any_registry.changed_tensors("base", "tuned", read=True) == before
    assert [event.action for event in any_registry.events()[:2]] == ["version.tensors-recorded"] * 2
    n_events = len(any_registry.events())
    shutil.rmtree(any_registry.store.root)
    assert any_registry.diff("base", "tuned", read=True).tensors == before
    assert len(any_registry.events()) == n_events
    _forget(any_registry)
    with pytest.raises(ArtifactMissing):
        any_registry.diff("base", "tuned", read=True)
    assert any_registry.verify_events() is None


def test_registering_again_records_them(registry: Registry, base: Path) -> None:
    registry.register("base", base, parity="skip")
    _forget(registry)
    assert registry.register("base", base).outcome == "unchanged"
    assert registry.changed_tensors("base", "base").changed == ()
    assert registry.events()[0].action == "version.tensors-recorded"


def test_fetching_records_them(any_registry: Registry, hub: FakeHub, base: Path, tuned: Path) -> None:
    hub.push("org/base", base)
    any_registry.register("base", "org/base", lazy=True)
    any_registry.register("tuned", tuned, parity="skip")
    with pytest.raises(TensorsUnknown, match="left on the Hub") as refused:
        any_registry.changed_tensors("base", "tuned", read=True)
    assert "lensreg fetch base@v1" in str(refused.value.hint)
    any_registry.fetch("base", parity="skip")
    assert sorted(one.name for one in any_registry.changed_tensors("base", "tuned").changed) == CHANGED


def test_another_layout_names_tensors_otherwise(registry: Registry, base: Path) -> None:
    registry.register("base", base)
    network = registry.load("base", processed=False)
    registry.register_network("hooked", network, parent="base", parity="skip")
    with pytest.raises(UnsupportedLayout, match="hooked"):
        registry.changed_tensors("base", "hooked")
    found = registry.diff("base", "hooked")
    assert (found.tensors, found.architecture) == (None, ())
    assert found.facts["layout"] == ("huggingface", "hooked")
    # within the hooked layout they can be compared, and read from the store
    with torch.no_grad():
        network.blocks[0].attn.W_Q.add_(1)
    registry.register_network("hooked", network, parent="hooked", parity="skip")
    _forget(registry)
    changed = registry.changed_tensors("hooked@v1", "hooked@v2", read=True)
    assert [one.name for one in changed.changed] == ["blocks.0.attn.W_Q"]


def test_the_command(tmp_path: Path, base: Path, tuned: Path, run: Callable[..., tuple[str, str, int]]) -> None:
    registry = Registry()
    registry.register("base", base, parity="skip")
    registry.register("tuned", tuned, parity="skip")
    out, _, code = run("diff", "base", "tuned")
    assert code == 0 and "2 changed" in out and "architecture  the same" in out
    assert all(name in out for name in CHANGED)
    assert run("diff", "base", "tuned", "-o", "ids")[0].split() == CHANGED
    answer = json.loads(run("diff", "base", "tuned", "-o", "json")[0])
    assert set(answer) == {"schema_version", "a", "b", "facts", "architecture", "tensors", "obstacle"}
    assert [one["name"] for one in answer["tensors"]["changed"]] == CHANGED
    assert set(answer["tensors"]["changed"][0]["a"]) == {"dtype", "shape", "digest"}
    _forget(registry)
    out, err, code = run("diff", "base", "tuned")
    assert code == 0 and "cannot be told" in out and "error[tensors-unknown]" in err and "--read" in err
    assert run("diff", "base", "tuned", "-o", "ids")[2] == 1
    assert json.loads(run("diff", "base", "tuned", "-o", "json")[0])["obstacle"]["code"] == "tensors-unknown"
    assert run("diff", "base", "tuned", "--read", "-o", "ids")[0].split() == CHANGED
    registry.close()
