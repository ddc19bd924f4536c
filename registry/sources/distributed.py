"""Checkpoints that training left in pieces: torch's own are put together, all others refused with what does it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from registry.errors import MalformedArtifact, RegistryError, UnsupportedSource
from registry.sources.pickles import run_child
from registry.sources.source import Finding, SourceFile, SourceOptions
from registry.sources.weight_files import FolderWeights, has_weights
from registry.sources.wrappers import note_prefix
from registry.weights import digest_file, read_header

METADATA = ".metadata"
_MAX_METADATA_BYTES = 64 * 2**20
_FSDP_FOLDERS = "pytorch_model_fsdp_*"  # accelerate's name, in a folder of Trainer's beside optimizer_0
_RANK = re.compile(r"pytorch_model(_fsdp)?_rank\d+\.bin")
_MEGATRON = ("latest_checkpointed_iteration.txt", "iter_*", "mp_rank_*", "common.pt", "model_optim_rng.pt")


def find_distributed(folder: Path, options: SourceOptions) -> Path | None:
    """Return the folder that holds torch's pieces, `folder` or FSDP's in it, or None if there is none.

    Raises UnsupportedSource where weights in one piece lie beside, and the caller does not say that they count.
    """
    found = [one for one in (folder, *sorted(folder.glob(_FSDP_FOLDERS))) if _is_distributed(one)]
    if not found or options.weights:
        return None
    if len(found) > 1:
        raise _refuse(
            folder, f"holds {len(found)} distributed checkpoints", "Give the folder of the one that is meant."
        )
    if any((found[0] / name).exists() for name in ("common.pt", "metadata.json")):
        raise _refuse_megatron(found[0])
    if has_weights(folder):
        raise _refuse(
            folder,
            f"has weights both in one piece and in torch's pieces ({found[0].name}), and they may differ",
            "Say that those in one piece count, with --weights safetensors or --weights bin, "
            f"or give {found[0]} without them.",
        )
    return found[0]


def read_distributed(folder: Path, scratch: Path) -> FolderWeights:
    """Put torch's pieces together in `scratch`, in a limited child: the metadata and every piece are pickles.

    Raises MalformedArtifact, UnsafeArtifact or UnsupportedSource.
    """
    pieces = sorted(folder.glob("*.distcp"))
    if (folder / METADATA).stat().st_size > _MAX_METADATA_BYTES:
        raise MalformedArtifact(f"{METADATA} has {(folder / METADATA).stat().st_size:,} bytes.", hint="Save it again.")
    unpacked = scratch / "consolidated"
    unpacked.mkdir()
    target = unpacked / "model.safetensors"
    n_bytes = sum(path.stat().st_size for path in (folder / METADATA, *pieces))
    done = run_child(
        {"work": "distributed", "folder": str(folder.absolute()), "target": str(target.absolute())},
        unpacked,
        name=str(folder),
        n_bytes=n_bytes,
        n_bytes_at_once=n_bytes,
    )
    findings = [
        Finding("consolidated", f"The weights were put together from {len(pieces)} pieces of a distributed checkpoint.")
    ]
    if done["left_out"]:
        left_out = ", ".join(done["left_out"])[:500]
        findings.append(Finding("left-out", f"Of the checkpoint only the weights were read; left out: {left_out}."))
    return FolderWeights(
        (SourceFile(target.name, target, "weights"),),
        read_header(target),
        (*findings, *note_prefix(done["prefix"])),
        {"pickles": {path.name: digest_file(path) for path in (folder / METADATA, *pieces)}},
    )


def refuse_partitioned(folder: Path) -> None:
    """Refuse a folder in which each rank of a training run left its own part, with the command that joins them."""
    zero = folder.parent if any(folder.glob("*_model_states.pt")) else folder
    if (zero / "zero_to_fp32.py").exists() or any(zero.glob("global_step*/*_model_states.pt")) or zero != folder:
        script = "zero_to_fp32.py" if (zero / "zero_to_fp32.py").exists() else "-m deepspeed.utils.zero_to_fp32"
        raise _refuse(
            folder,
            "is a DeepSpeed checkpoint, in which each rank holds a part of the weights",
            f"Join them: cd {shlex.quote(str(zero))} && python {script} . consolidated --safe_serialization "
            "&& cp config.json consolidated/. Then register the folder consolidated.",
        )
    ranks = sorted(path.name for path in folder.glob("*.bin") if _RANK.fullmatch(path.name))
    if ranks:
        raise _refuse(
            folder,
            f"holds what each rank of FSDP had ({ranks[0]}), flattened, and only the training run can undo that",
            "Save from the run with fsdp_state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT.",
        )
    if any(any(folder.glob(name)) for name in _MEGATRON):
        raise _refuse_megatron(folder)
    if any(folder.glob("*.distcp")):
        raise MalformedArtifact(
            f"{folder} holds pieces of a distributed checkpoint without their {METADATA}.",
            hint="Copy the checkpoint again with its hidden files; without it nobody knows which tensor is where.",
            path=str(folder),
        )


def _is_distributed(folder: Path) -> bool:
    return (folder / METADATA).is_file() and any(folder.glob("*.distcp"))


def _refuse_megatron(folder: Path) -> RegistryError:
    return _refuse(
        folder,
        "is a Megatron checkpoint, whose tensors are split and named in Megatron's way",
        "Convert it to a Hugging Face folder with the tool of the framework that trained it "
        "(Megatron-LM: tools/checkpoint/convert.py --saver …_hf; NeMo: llm.export_ckpt(target='hf')).",
    )


def _refuse(folder: Path, what: str, hint: str) -> RegistryError:
    return UnsupportedSource(f"{folder} {what}.", hint=hint, path=str(folder))
