"""Checkpoints in pieces: torch's own are put together exactly, hostile ones run nothing, all others are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from registry import Registry, RegistryError
from registry.errors import MalformedArtifact, SourceNotFound, UnsafeArtifact, UnsupportedSource
from registry.sources import SourceOptions, open_source
from registry.sources.unpickle_distributed import convert_distributed
from tests.checkpoints import make_network
from tests.hostile.pickled import Call, gadgets

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
WTE = "transformer.wte.weight"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")


def save_pieces(folder: Path, value: dict[str, Any]) -> Path:
    dcp.save(value, checkpoint_id=folder, no_dist=True)
    return folder


def make_trainer_folder(folder: Path, value: Callable[[Tensors], dict[str, Any]] = lambda t: {"model": t}) -> Path:
    """Turn a Hugging Face folder into what Trainer leaves with FSDP: the weights in pieces in a folder of their own."""
    tensors = load_file(folder / WEIGHTS)
    save_pieces(folder / "pytorch_model_fsdp_0", value({name: tensor.clone() for name, tensor in tensors.items()}))
    save_pieces(folder / "optimizer_0", {"optimizer": {"state": {"0": {"exp_avg": torch.ones(3)}}}})
    (folder / WEIGHTS).unlink()
    (folder / "trainer_state.json").write_text('{"global_step": 40}')
    return folder


def consolidate(folder: Path) -> Tensors:
    """Put pieces together as the child does, in this process."""
    target = folder.with_suffix(".safetensors")
    target.unlink(missing_ok=True)
    convert_distributed({"folder": str(folder), "target": str(target)})
    return load_file(target)


NESTS: dict[str, Callable[[Tensors], dict[str, Any]]] = {
    "flat": lambda t: {**t},
    "model": lambda t: {"model": t},
    "app": lambda t: {"app": {"model": t, "optimizer": {"state": {"0": {"exp_avg": torch.ones(3)}}}, "step": 3}},
    "wrapped": lambda t: {"model": {f"module._fsdp_wrapped_module.{name}": tensor for name, tensor in t.items()}},
}


def test_pieces_are_one_network_wherever_the_weights_are_in_them(tmp_path: Path) -> None:
    tensors = {name: tensor.detach() for name, tensor in make_network("llama").state_dict().items()}
    tensors["half"] = torch.ones(3, 1, dtype=torch.bfloat16)
    tensors["scalar"], tensors["empty"] = torch.tensor(2.5), torch.ones(0, 4)
    for name, nest in NESTS.items():
        found = consolidate(save_pieces(tmp_path / name, nest(tensors)))
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) and found[key].dtype == tensors[key].dtype for key in found)


@pytest.mark.parametrize("place", ["", "pytorch_model_fsdp_0"])
def test_a_checkpoint_of_trainer_with_fsdp_is_registered(
    place: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    plain = registry.register("plain", make_checkpoint("gpt2"))
    folder = make_trainer_folder(make_checkpoint("gpt2"), lambda t: {"model": t, "step": 3})
    done = registry.register("pieces", folder / place)
    assert done.weights_digest == plain.weights_digest
    assert done.parity is not None and done.parity.passed
    assert done.version is not None
    assert (done.version.source_kind, done.version.step) == ("distributed", 40)
    assert {finding.code for finding in done.findings} == {"consolidated", "left-out", "identical-weights"}
    assert set(done.version.provenance["pickles"]) == {".metadata", "__0_0.distcp"}
    names = {file.name for file in done.version.files}
    assert names == {file.name for file in plain.version.files} | {"trainer_state.json"}  # type: ignore[union-attr]
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(registry.load("plain")(tokens), registry.load("pieces")(tokens))


def test_the_config_may_be_the_callers(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_trainer_folder(make_checkpoint("gpt2"))
    config = (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(SourceNotFound, match=r"no config.json"):
        open_source(folder, tmp_path)
    assert open_source(folder, tmp_path, options=SourceOptions(config=config)).config["n_embd"] == 64


def save_rank(rank: int, n: int, port: int, folder: str) -> None:
    """Save what one rank of several has: tensors sharded by rows, by columns, and whole."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(n)}
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (n,))
    places = {"rows": Shard(0), "columns": Shard(1), "uneven": Shard(0), "whole": Replicate()}
    sharded = {name: distribute_tensor(make_sharded()[name], mesh, [place]) for name, place in places.items()}
    dcp.save({"model": sharded}, checkpoint_id=folder)
    dist.destroy_process_group()


def make_sharded() -> Tensors:
    return {
        name: torch.arange(35.0).reshape(7, 5) + at for at, name in enumerate(("rows", "columns", "uneven", "whole"))
    }


@pytest.mark.slow
def test_what_several_ranks_saved_is_put_together(tmp_path: Path) -> None:
    """Each rank writes its own piece with its own part of a tensor; real processes, real collectives."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=save_rank, args=(rank, 3, port, str(tmp_path / "ranks"))) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
        assert rank.exitcode == 0
    assert len([*(tmp_path / "ranks").glob("*.distcp")]) == 3
    found = consolidate(tmp_path / "ranks")
    assert found.keys() == make_sharded().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in make_sharded().items())


# --- what means harm or is damaged


def edit_metadata(change: Callable[[Metadata], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        change(metadata)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))

    return edit


def move(**changes: Any) -> Callable[[Path], None]:
    """Change where the metadata say that the first chunk of `a` is."""

    def change(metadata: Metadata) -> None:
        place = metadata.storage_data[MetadataIndex("a", torch.Size([0, 0]))]
        for name, value in changes.items():
            setattr(place, name, value(getattr(place, name)) if callable(value) else value)

    return edit_metadata(change)


def set_chunks(*boxes: tuple[list[int], list[int]]) -> Callable[[Path], None]:
    def change(metadata: Metadata) -> None:
        place = metadata.storage_data[MetadataIndex("a", torch.Size([0, 0]))]
        chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
        metadata.state_dict_metadata["a"].chunks = chunks  # type: ignore[union-attr]
        metadata.storage_data |= {MetadataIndex("a", chunk.offsets): place for chunk in chunks}

    return edit_metadata(change)


def set_size(size: list[int]) -> Callable[[Path], None]:
    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["a"].size = torch.Size(size)  # type: ignore[union-attr]

    return edit_metadata(change)


def huge(folder: Path) -> None:
    set_size([2**20, 2**20])(folder)
    set_chunks(([0, 0], [2**20, 2**20]))(folder)


def fill(content: bytes) -> Callable[[Path], None]:
    """Overwrite the start of the piece's bytes, which are pickles too."""

    def edit(folder: Path) -> None:
        path = folder / "__0_0.distcp"
        path.write_bytes(content + path.read_bytes()[len(content) :])

    return edit


DAMAGES: dict[str, tuple[type[RegistryError], str, Callable[[Path], object]]] = {
    "traversal": (MalformedArtifact, "no file of this folder", move(relative_path="../outside.distcp")),
    "absolute": (MalformedArtifact, "no file of this folder", move(relative_path="/etc/passwd")),
    "no-name": (MalformedArtifact, "no file of this folder", move(relative_path=7)),
    "another-kind": (MalformedArtifact, "no file of this folder", move(relative_path="config.json")),
    "piece-missing": (MalformedArtifact, "is missing", move(relative_path="__1_0.distcp")),
    "piece-short": (MalformedArtifact, "shorter than they say", move(length=lambda length: length + 10**6)),
    "piece-before": (MalformedArtifact, "shorter than they say", move(offset=-1)),
    "piece-elsewhere": (
        UnsafeArtifact,
        "damaged",
        move(offset=lambda offset: offset + 7, length=lambda length: length - 7),
    ),
    "compressed": (MalformedArtifact, "is compressed", move(transform_descriptors=["zstd"])),
    "chunk-missing": (MalformedArtifact, "do not make up", set_chunks(([0, 0], [2, 4]))),
    "chunks-overlap": (MalformedArtifact, "do not make up", set_chunks(([0, 0], [2, 4]), ([1, 0], [1, 4]))),
    "chunk-outside": (MalformedArtifact, "do not make up", set_chunks(([0, 0], [2, 4]), ([2, 1], [1, 4]))),
    "chunk-of-another-rank": (MalformedArtifact, "do not make up", set_chunks(([0], [12]))),
    "no-chunks": (MalformedArtifact, "do not make up", set_chunks()),
    "huge": (MalformedArtifact, "claims 4,398,046,511,104 bytes", huge),
    "negative": (MalformedArtifact, "makes no sense", set_size([-3, -4])),
    "another-shape-in-the-piece": (
        MalformedArtifact,
        "holds something else where a should be",
        lambda folder: (set_size([2, 4])(folder), set_chunks(([0, 0], [2, 4]))(folder)),
    ),
    "another-dtype-in-the-piece": (
        MalformedArtifact,
        "holds something else where a should be",
        edit_metadata(lambda m: setattr(m.state_dict_metadata["a"].properties, "dtype", torch.int32)),  # type: ignore[union-attr]
    ),
    "no-tensors": (
        UnsupportedSource,
        "holds no tensors",
        edit_metadata(lambda metadata: metadata.state_dict_metadata.clear()),
    ),
    "no-places": (MalformedArtifact, "damaged", edit_metadata(lambda m: setattr(m, "storage_data", None))),
    "no-metadata": (
        MalformedArtifact,
        "not torch's",
        lambda folder: (folder / ".metadata").write_bytes(pickle.dumps({"a": 1})),
    ),
    "empty-metadata": (MalformedArtifact, "damaged", lambda folder: (folder / ".metadata").write_bytes(b"")),
    "cut-metadata": (
        (MalformedArtifact, UnsafeArtifact),  # type: ignore[dict-item]
        "damaged",
        lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-20]),
    ),
    "field-missing": (
        MalformedArtifact,
        "damaged",
        edit_metadata(lambda metadata: delattr(metadata.state_dict_metadata["a"], "chunks")),
    ),
    "no-piece": (UnsafeArtifact, "damaged", fill(bytes(3000))),
}


@pytest.mark.parametrize(("error", "text", "spoil"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_pieces_are_one_typed_error(
    error: type[RegistryError], text: str, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = save_pieces(tmp_path / "pieces", {"a": torch.arange(12.0).reshape(3, 4)})
    shutil.copy(folder / "__0_0.distcp", tmp_path / "outside.distcp")
    spoil(folder)
    with pytest.raises(error) as refused:
        consolidate(folder)
    assert text in refused.value.message and refused.value.message.isprintable()


@pytest.mark.parametrize("name", gadgets(Path("x")))
def test_a_gadget_in_the_metadata_is_refused_and_never_run(name: str, tmp_path: Path) -> None:
    folder = save_pieces(tmp_path / "pieces", {"a": torch.ones(3)})
    for protocol in (0, 2, 4):
        (folder / ".metadata").write_bytes(pickle.dumps(gadgets(tmp_path / "sentinel")[name], protocol))
        with pytest.raises(UnsafeArtifact, match=r"asks for '.*', and nothing of it was run"):
            consolidate(folder)
    assert not (tmp_path / "sentinel").exists()


def test_the_way_through_an_allowed_class_is_closed(tmp_path: Path) -> None:
    """From protocol 4 on a name may have dots: Metadata.__init__.__globals__ would lead anywhere."""
    folder = save_pieces(tmp_path / "pieces", {"a": torch.ones(3)})
    module = "torch.distributed.checkpoint.metadata"
    for path in ("Metadata.__init__.__globals__", "os.system"):
        named = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(path)]) + path.encode()
        (folder / ".metadata").write_bytes(named + b"\x93.")
        with pytest.raises(UnsafeArtifact, match="asks for"):
            consolidate(folder)


def test_what_is_no_tensor_is_never_unpickled(tmp_path: Path) -> None:
    """PyTorch reads such entries with weights_only=False."""
    sentinel = tmp_path / "sentinel"
    value = {"model": {"a": torch.ones(3)}, "extra": Call(os.system, f"touch {sentinel}")}
    folder = save_pieces(tmp_path / "pieces", value)
    assert consolidate(folder).keys() == {"a"}
    assert not sentinel.exists()


def test_a_gadget_in_a_piece_is_refused_and_never_run(tmp_path: Path) -> None:
    folder = save_pieces(tmp_path / "pieces", {"a": torch.ones(3, 4)})
    torch.save(gadgets(tmp_path / "sentinel")["system"], folder / "__0_0.distcp")
    move(offset=0, length=(folder / "__0_0.distcp").stat().st_size)(folder)
    with pytest.raises(UnsafeArtifact, match=r"posix.system"):
        consolidate(folder)
    assert not (tmp_path / "sentinel").exists()


def test_harm_in_pieces_leaves_nothing_registered(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_trainer_folder(make_checkpoint("gpt2"))
    gadget = gadgets(tmp_path / "sentinel")["system"]
    (folder / "pytorch_model_fsdp_0" / ".metadata").write_bytes(pickle.dumps(gadget))
    with pytest.raises(UnsafeArtifact, match=r"posix.system"):
        registry.register("evil", folder)
    assert not registry.models() and not (tmp_path / "sentinel").exists()


# --- what other trainers leave


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"part")


def test_both_whole_and_in_pieces_is_refused_unless_the_caller_picks(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2")
    whole = (folder / WEIGHTS).read_bytes()
    make_trainer_folder(folder)
    (folder / WEIGHTS).write_bytes(whole)
    with pytest.raises(UnsupportedSource, match="both in one piece and in torch's pieces") as refused:
        open_source(folder, tmp_path)
    assert "--weights safetensors" in str(refused.value.hint)
    assert open_source(folder, tmp_path, options=SourceOptions(weights="safetensors")).kind == "huggingface"


OTHERS: dict[str, tuple[str, str, list[str]]] = {
    "deepspeed": (
        "is a DeepSpeed checkpoint",
        "python zero_to_fp32.py . consolidated --safe_serialization && cp config.json consolidated/",
        ["zero_to_fp32.py", "latest", "global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt"],
    ),
    "deepspeed-without-its-script": (
        "is a DeepSpeed checkpoint",
        "python -m deepspeed.utils.zero_to_fp32 . consolidated",
        ["latest", "global_step3/mp_rank_00_model_states.pt", "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt"],
    ),
    "fsdp-ranks": ("what each rank of FSDP had", "FULL_STATE_DICT", ["pytorch_model_fsdp_rank0.bin"]),
    "fsdp-ranks-of-old": ("what each rank of FSDP had", "FULL_STATE_DICT", ["pytorch_model_rank0.bin"]),
    "megatron": ("is a Megatron checkpoint", "tools/checkpoint/convert.py", ["mp_rank_00/model_optim_rng.pt"]),
    "megatron-steps": (
        "is a Megatron checkpoint",
        "convert.py",
        ["latest_checkpointed_iteration.txt", "iter_0000010/x"],
    ),
    "megatron-distributed": (
        "is a Megatron checkpoint",
        "convert.py",
        [".metadata", "__0_0.distcp", "common.pt", "metadata.json"],
    ),
    "pieces-without-metadata": ("without their .metadata", "hidden files", ["__0_0.distcp", "__1_0.distcp"]),
    "two-networks": (
        "holds 2 distributed checkpoints",
        "the one that is meant",
        [f"pytorch_model_fsdp_{n}/{name}" for n in "01" for name in (".metadata", "__0_0.distcp")],
    ),
}


@pytest.mark.parametrize(("text", "hint", "names"), OTHERS.values(), ids=OTHERS)
def test_what_cannot_be_put_together_here_is_refused_with_what_does_it(
    text: str, hint: str, names: list[str], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2").rename(tmp_path / "it's a folder")
    (folder / WEIGHTS).unlink()
    touch(folder, *names)
    with pytest.raises(RegistryError) as refused:
        open_source(folder, tmp_path)
    assert text in refused.value.message and hint in str(refused.value.hint)
    if "deepspeed" in text.lower():
        assert f"cd {shlex.quote(str(folder))} && " in str(refused.value.hint)
        with pytest.raises(UnsupportedSource, match="is a DeepSpeed checkpoint") as inner:
            open_source(folder / "global_step3", tmp_path)
        assert f"cd {shlex.quote(str(folder))} && " in str(inner.value.hint)


def test_deepspeed_beside_weights_that_were_gathered_is_training_state(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("gpt2")
    touch(folder, "zero_to_fp32.py", "latest", "global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    assert registry.register("base", folder).version.step == 3  # type: ignore[union-attr]
