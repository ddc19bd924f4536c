"""The child process that reads pickles: it gives up memory and time first, and writes safetensors or a refusal.

It is started by pickles.py, reads its task from a JSON file, and writes what came of it into another. Tensors go out
one by one, so that no more than the largest is copied.
"""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from registry.errors import MalformedArtifact, SourceError, UnsafeArtifact, UnsupportedSource
from registry.sources.nests import Weights, find_weights
from registry.sources.pickle_file import ZIP, printable, read_records
from registry.sources.wrappers import find_prefix
from registry.weights import MAX_NAME_BYTES, make_header

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALLOWANCE_BYTES = 64 * 2**10  # for checkpoints so small that tied tensors weigh more than all the rest
_RESAVE = (
    "If you trust where it comes from, load it there and save the tensors alone: "
    "torch.save(torch.load(FILE, weights_only=False)[…].state_dict(), …), or better model.save_pretrained(…)."
)
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def main(task_file: str) -> None:
    """Do the task in `task_file`, and write `{"done": …}`, `{"refused": …}` or `{"failed": …}` to its `answer`."""
    task = json.loads(Path(task_file).read_text())
    if task["work"] == "distributed":
        from registry.sources.unpickle_distributed import convert_distributed as work
    else:
        work = convert_pickles
    limit_process(task["memory_bytes"], task["seconds"], task["output_bytes"])
    try:
        try:
            answer: dict[str, Any] = {"done": work(task)}
        except MemoryError as error:
            raise explain(task["name"], error) from error
    except SourceError as error:
        answer = {"refused": [type(error).__name__, error.message, error.hint]}
    except OSError as error:  # the disk is full, say, which is not the file's fault
        answer = {"failed": [error.errno, error.strerror]}
    Path(task["answer"]).write_text(json.dumps(answer))


def limit_process(memory_bytes: int, seconds: int, output_bytes: int) -> None:
    """Bound what the process may use from now on; the memory comes on top of what importing torch took."""
    torch.set_num_threads(1)
    used = _read_address_space()
    if used:  # elsewhere than on Linux the kernel does not hold processes to it
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_address_space() -> int | None:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else None


def convert_pickles(task: Mapping[str, Any]) -> dict[str, Any]:
    """Write each pickle's tensors as safetensors; the prefix that all of them have together is taken off.

    With `keep_prefix` in the task the names stay as they are.
    """
    files = [(Path(source), Path(target)) for source, target in task["files"]]
    names: set[str] = set()
    for source, _ in files:  # mapped, so that reading twice costs little
        names |= set(_read_weights(source).tensors)
    prefix = "" if task.get("keep_prefix") else find_prefix(names)
    read = []
    for source, target in files:
        weights = _read_weights(source)
        _check_size(source, weights.tensors)
        write_tensors(
            target,
            [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.tensors.items()],
            weights.tensors.__getitem__,
            prefix,
        )
        read.append({"nest": weights.nest, "left_out": [printable(name) for name in weights.left_out[:20]]})
    return {"prefix": prefix, "files": read}


def _read_weights(path: Path) -> Weights:
    with path.open("rb") as file:
        mapped = file.read(len(ZIP)) == ZIP  # what torch wrote before 1.6 cannot be mapped
    weights = find_weights(_load(path, mapped=mapped), lambda value: isinstance(value, torch.Tensor), path.name)
    for name, tensor in weights.tensors.items():
        check_name(path.name, name)
        check_tensor(path.name, name, tensor)
    if mapped:
        _check_storages(path, weights.tensors)
    return weights


def _load(path: Path, *, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises ten kinds of errors for damaged files
        raise explain(path.name, error) from error


def explain(file: str, error: BaseException) -> SourceError:
    """Turn what torch raises into what is wrong with the file."""
    text = str(error)
    wanted = _GLOBAL.search(text)
    if wanted:
        return UnsafeArtifact(
            f"{file} holds more than tensors: it asks for {printable(wanted[1])!r}, and nothing of it was run.",
            hint=_RESAVE,
        )
    if isinstance(error, MemoryError) or "allocate" in text or "memory" in text:
        return UnsafeArtifact(f"{file} needs more memory than its size explains.", hint=_RESAVE)
    if type(error).__name__ == "UnpicklingError":
        reason = text.split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        return UnsafeArtifact(f"{file} is damaged, or no pickle of tensors alone: {printable(reason)}.", hint=_RESAVE)
    return MalformedArtifact(
        f"{file} cannot be read: it is damaged or not whole ({type(error).__name__}: {printable(text)}).",
        hint="Copy or save the checkpoint again; the file may not have been written to its end.",
    )


def check_name(file: str, name: str) -> None:
    """Refuse names that safetensors files may not have here; see weights.py."""
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise MalformedArtifact(
            f"{file}: a tensor's name is empty, too long, or holds control characters.",
            hint="Save the checkpoint again with the names of the network's parameters.",
        )


def check_tensor(file: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse all but plain dense tensors whose every number is in the file."""
    what = None
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        what = f"is a {type(tensor).__name__}"
    elif tensor.layout is not torch.strided or tensor.is_nested:
        what = "is sparse"
    elif tensor.is_quantized or tensor.dtype not in DTYPES:
        what = f"has the dtype {tensor.dtype}"
    elif tensor.device.type != "cpu":
        what = "has no numbers (device meta)"
    elif tensor.is_conj() or tensor.is_neg():
        what = "is a lazy view"
    if what:
        raise UnsupportedSource(
            f"{file} cannot be registered: {printable(name)} {what}.",
            hint="Save plain tensors: {name: tensor.to_dense().float().contiguous()}.",
        )
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UnsafeArtifact(
            f"{file} is refused: {printable(name)} claims {tensor.nbytes:,} bytes and has "
            f"{tensor.untyped_storage().nbytes():,}.",
            hint="Save it again with every tensor made contiguous: tensor.contiguous().",
        )


def _check_storages(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that every storage is one record of the file, whole: mapped, torch takes what follows it for the rest."""
    found = [tensor.untyped_storage() for tensor in tensors.values()]
    storages = {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}
    if not storages:
        return
    records = read_records(path)
    first, size = next(iter(storages.items()))
    # where the file is mapped is not known; it is where all storages fall on records
    if not any(
        size == n_bytes and all(records.get(place - first + start) == n for place, n in storages.items())
        for start, n_bytes in records.items()
    ):
        raise MalformedArtifact(
            f"{path.name} cannot be read: it is damaged, its tensors and their bytes do not go together.",
            hint="Copy or save the checkpoint again; the file may not have been written to its end.",
        )


def _check_size(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse many tensors on one storage, which would be written out once for each; a tied head is one such."""
    total, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if total > 2 * size + _ALLOWANCE_BYTES:
        raise UnsafeArtifact(
            f"{path.name} is refused: its tensors claim {total:,} bytes, and it has {size:,}.",
            hint="Tensors that share their memory are written out one by one; save them as safetensors yourself.",
        )


def write_tensors(
    target: Path,
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]],
    read: Callable[[str], torch.Tensor],
    prefix: str,
) -> None:
    """Write a safetensors file, reading one tensor after the other: widest dtypes first, which keeps them aligned."""
    ordered = sorted(tensors, key=lambda one: (-one[1].itemsize, one[0]))
    header = make_header(
        (name.removeprefix(prefix), DTYPES[dtype], shape, torch.Size(shape).numel() * dtype.itemsize)
        for name, dtype, shape in ordered
    )
    with target.open("xb") as file:
        file.write(header)
        for name, _, _ in ordered:
            tensor = read(name).detach().contiguous().reshape(-1)
            file.write(tensor.view(torch.uint8).numpy().data)
