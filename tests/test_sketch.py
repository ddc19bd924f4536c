"""Sketches: the same for every container and layout, and what they say of networks that are related or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from registry import Registry
from registry.compare_sketches import MIN_FREEDOM, centre, compare_sketches, find_ranks
from registry.errors import DatabaseError, UnrelatedParent
from registry.query import read_version
from registry.resketch import sketch_version
from registry.sketch import N_SAMPLED, Sketch, choose_indices, name_sampled, pack, sample_size, unpack
from registry.sketches import read_sketch
from registry.tables import sketches
from registry.take_sketch import take_sketch
from tests.checkpoints import UNRELATED

MakeCheckpoint = Callable[..., Path]

SHAPES = {
    "embed.W_E": (211, 32),
    **{
        f"blocks.{layer}.{name}": shape
        for layer in range(3)
        for name, shape in {
            "attn.W_Q": (4, 32, 8),
            "attn.W_O": (4, 8, 32),
            "attn.b_Q": (4, 8),
            "attn.mask": (40, 40),
            "ln1.w": (32,),
            "mlp.W_in": (32, 64),
            "mlp.W_out": (64, 32),
        }.items()
    },
}
MATRICES = 3 * 4
Tensors = dict[str, torch.Tensor]


def make_tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def change(tensors: Tensors, amount: float, seed: int = 99) -> Tensors:
    other = make_tensors(seed)
    return {name: tensor + amount * other[name] for name, tensor in tensors.items()}


def read(registry: Registry, ref: str) -> Sketch | None:
    with registry.database.read() as connection:
        return read_sketch(connection, read_version(connection, registry.resolve(ref).id))


def forget_sketches(registry: Registry) -> None:
    """Be as a registry of before sketches were kept."""
    with registry.database.write() as connection:
        connection.execute(sketches.delete())


def test_matrices_are_sampled_and_nothing_else() -> None:
    sketch = take_sketch(make_tensors(0))
    assert sorted(sketch.samples) == sorted(name for name in SHAPES if not name.endswith(("b_Q", "mask", "ln1.w")))
    assert len(sketch.blocks) == MATRICES
    assert all(one.shape == (N_SAMPLED, N_SAMPLED) and one.dtype == np.float32 for one in sketch.samples.values())
    assert name_sampled("blocks.0.attn._W_K", (2, 32, 8)) == "blocks.0.attn.W_K"
    assert name_sampled("blocks.0.mlp.experts.1.W_in.weight", (64, 32)) is not None
    assert name_sampled("blocks.0.mlp.experts.2.W_in.weight", (64, 32)) is None


def test_the_places_are_those_of_today_in_every_release() -> None:
    """Sketches in databases are compared with those that later releases take."""
    row, column = choose_indices("blocks.0.mlp.W_in", (768, 3072))
    assert (row[:, 0].tolist(), column[0].tolist()) == (
        [119, 140, 271, 481, 483, 555, 613, 625, 658, 679, 741, 758],
        [167, 356, 444, 550, 796, 838, 1109, 1151, 1524, 2632, 2962, 2997],
    )


@given(
    name=st.sampled_from(["blocks.0.attn.W_Q", "blocks.0.attn.W_O", "blocks.0.mlp.W_in", "layers.0.conv"]),
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple),
)
def test_every_place_is_another_element_of_the_tensor(name: str, shape: tuple[int, ...]) -> None:
    indices = choose_indices(name, shape)
    assert len(indices) == len(shape)
    flat = np.ravel_multi_index(indices, shape)
    assert flat.shape == sample_size(name, shape)
    assert len(set(flat.ravel().tolist())) == flat.size


@pytest.mark.parametrize("name", ["blocks.0.attn.W_Q", "blocks.0.attn.W_O", "blocks.0.mlp.W_in"])
def test_a_change_of_low_rank_is_one_in_the_samples(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(SHAPES[name], generator=generator)
    rows = 32 if name != "blocks.0.attn.W_O" else one.shape[0] * one.shape[1]
    delta = torch.randn((rows, 3), generator=generator) @ torch.randn((3, one.numel() // rows), generator=generator)
    if name == "blocks.0.attn.W_Q":  # d_model x (heads * d_head), as LoRA sees it
        delta = delta.reshape(32, 4, 8).transpose(0, 1)
    parent, child = take_sketch({name: one}), take_sketch({name: one + delta.reshape(one.shape)})
    assert find_ranks(parent, child, 2.0**-24) == {name: 3}


def test_what_is_packed_is_unpacked() -> None:
    sketch = take_sketch(make_tensors(0), ["fold_ln"])
    back = unpack(*pack(sketch), ("fold_ln",))
    assert back.shapes == sketch.shapes and back.processing == sketch.processing and back.form == sketch.form
    assert all(np.array_equal(back.samples[name], sketch.samples[name]) for name in sketch.samples)
    names, samples = pack(sketch)
    for damaged in [(names, samples[:-4]), (names[:-9], samples), (names, b"")]:
        with pytest.raises(ValueError):
            unpack(*damaged)


def test_verdicts() -> None:
    base = make_tensors(0)
    parent = take_sketch(base)
    same = compare_sketches(parent, take_sketch(base))
    assert (same.verdict, same.n_matrices, same.n_unchanged, same.distance) == ("unchanged", MATRICES, MATRICES, 0.0)
    tuned = compare_sketches(parent, take_sketch(change(base, 0.1)))
    assert tuned.verdict == "related" and tuned.n_unchanged == 0
    assert tuned.distance == pytest.approx(0.1, rel=0.1) and tuned.correlation == pytest.approx(0.995, abs=0.003)
    part = {**base, "blocks.0.mlp.W_in": make_tensors(5)["blocks.0.mlp.W_in"]}
    assert compare_sketches(parent, take_sketch(part)).n_unchanged == MATRICES - 1
    wrong = compare_sketches(parent, take_sketch(make_tensors(1)))
    assert wrong.verdict == "unrelated" and wrong.z is not None and abs(wrong.z) < 4
    one = {"blocks.0.mlp.W_in": base["blocks.0.mlp.W_in"]}
    assert compare_sketches(parent, take_sketch(one)).verdict == "not-comparable"


def test_z_of_unrelated_networks_has_variance_one_whatever_outliers_they_have() -> None:
    """Rows and columns with outliers, and means far from zero: what trained networks have."""
    generator = torch.Generator().manual_seed(0)

    def make() -> Sketch:
        tensors = {}
        for name, shape in SHAPES.items():
            if len(shape) == 1:
                continue
            rows, columns = (torch.randn(n, generator=generator).exp() for n in shape[-2:])
            tensors[name] = torch.randn(shape, generator=generator) * rows[:, None] * columns + columns + 2
        return take_sketch(tensors)

    z = [compare_sketches(make(), make()).z for _ in range(400)]
    assert np.std(np.array(z, float)) == pytest.approx(1, abs=0.12) and abs(np.mean(np.array(z, float))) < 0.2


def test_centring_leaves_nothing_of_a_constant() -> None:
    assert not centre(np.full((12, 12), 0.1, np.float32)).any()
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert compare_sketches(take_sketch(zeros), take_sketch(make_tensors(0))).verdict == "not-comparable"
    assert MIN_FREEDOM > (N_SAMPLED - 1) ** 2  # one matrix alone does not do


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "mixtral", "gpt_oss", "falcon", "mamba"])
def test_what_verifying_takes_is_what_is_taken_from_the_store(
    family: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("m", make_checkpoint(family, tokenizer=False))
    recorded = read(registry, "m")
    assert recorded is not None and len(recorded.blocks) >= 2
    again = sketch_version(registry.store, registry.version("m"))
    assert pack(again) == pack(recorded)
    forget_sketches(registry)
    registry.register("skipped", make_checkpoint(family, tokenizer=False), parity="skip")
    skipped = read(registry, "skipped")
    assert skipped is not None and pack(skipped) == pack(recorded)


def test_a_parent_of_other_weights_is_refused_and_may_be_allowed(
    any_registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    any_registry.register("base", make_checkpoint("gpt2"))
    child = make_checkpoint("gpt2", seed=UNRELATED)
    with pytest.raises(UnrelatedParent, match="do not come from") as refused:
        any_registry.register("tuned", child, parent="base")
    assert refused.value.evidence["verdict"] == "unrelated" and "--allow unrelated-parent" in str(refused.value.hint)
    assert [one.name for one in any_registry.models()] == ["base"]
    student = any_registry.register("student", child, parent="base", relation="distilled")
    assert [one.code for one in student.findings] == []
    done = any_registry.register("tuned", child, parent="base", allow=["unrelated-parent"])
    assert "unrelated-parent" in [one.code for one in done.findings]
    for ref in ("student", "tuned"):
        (parent,) = any_registry.version(ref).parents
        assert parent.evidence is not None and parent.evidence["verdict"] == "unrelated"
    assert any_registry.events("tuned@v1")[0].details["evidence"] == {"base@v1": "unrelated"}


def test_the_evidence_is_on_the_edge(any_registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    any_registry.register("base", make_checkpoint("gpt2"))
    any_registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base")
    (edge,) = any_registry.lineage("tuned").edges
    (parent,) = any_registry.version("tuned").parents
    assert edge.evidence == parent.evidence and edge.evidence is not None
    assert edge.evidence["verdict"] == "related" and edge.evidence["correlation"] == pytest.approx(0.8, abs=0.05)


def test_a_parent_without_a_sketch_is_sketched_when_it_is_needed(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    kept = read(registry, "base")
    forget_sketches(registry)
    registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base")
    assert registry.version("tuned").parents[0].evidence is not None
    again = read(registry, "base")
    assert kept is not None and again is not None and pack(again) == pack(kept)


def test_a_trained_hooked_network_compares_with_its_base_raw_and_processed(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", make_checkpoint("gpt2"))
    registry.register("other", make_checkpoint("gpt2", seed=UNRELATED))
    for processed, n_matrices in ((False, 12), (True, 4)):
        network = registry.load("base", processed=processed)
        network.blocks[0].mlp.W_out.data += 0.01 * torch.randn(network.blocks[0].mlp.W_out.shape)
        name = f"mine/{n_matrices}"
        with pytest.raises(UnrelatedParent):
            registry.register_network(name, network, parent="other")
        registry.register_network(name, network, parent="base")
        evidence = registry.version(name).parents[0].evidence
        assert evidence is not None and evidence["verdict"] == "related" and evidence["n_matrices"] == n_matrices
        assert evidence["distance"] < 0.05 and evidence["correlation"] > 0.999


def test_an_absent_parent_is_weighed_when_it_is_joined(any_registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    right, wrong = make_checkpoint("gpt2"), make_checkpoint("gpt2", seed=UNRELATED)
    for name, base in (("right", right), ("wrong", wrong)):
        digest = any_registry.register(name, base, dry_run=True, parity="skip").weights_digest
        declared = f"org/{name}@main#sha256:{digest}"
        any_registry.register(f"of-{name}", make_checkpoint("gpt2", seed=1), absent_parents=declared)
        any_registry.register(name, base)
    (parent,) = any_registry.version("of-right").parents
    assert parent.evidence is not None and parent.evidence["verdict"] == "related"
    assert any_registry.version("of-wrong").parents == ()
    (refused,) = [one for one in any_registry.events() if one.action == "parent.not-joined"]
    assert refused.subject == "of-wrong@v1" and refused.details["reason"] == "unrelated-parent"
    with pytest.raises(UnrelatedParent):
        any_registry.join_parent("of-wrong", "wrong")
    joined = any_registry.join_parent("of-wrong", "wrong", allow=["unrelated-parent"])
    assert joined.parents[0].evidence is not None and joined.parents[0].evidence["verdict"] == "unrelated"


def test_networks_of_other_shapes_are_not_comparable(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    registry.register("base", make_checkpoint("llama"))
    registry.register("other", make_checkpoint("llama", intermediate_size=48, num_attention_heads=8, head_dim=6))
    widths = ["d_mlp", "n_heads", "d_head", "attn_scale", "rotary_dim", "n_key_value_heads"]
    other = make_checkpoint("llama", intermediate_size=48, num_attention_heads=8, head_dim=6, tokenizer=False)
    done = registry.register("child", other, parent="base", allow=widths)
    assert "parent-not-comparable" in [one.code for one in done.findings]


def test_a_damaged_sketch_is_found(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    registry.register("base", make_checkpoint("gpt2"))
    with registry.database.write() as connection:
        connection.execute(sketches.update().values(samples=b"1234"))
    with pytest.raises(DatabaseError, match="damaged"):
        read(registry, "base")
