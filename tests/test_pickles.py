"""Pickles: what means harm runs nothing and is a typed error; what is good gives the same bytes always."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from registry import Registry, RegistryError
from registry.errors import MalformedArtifact, SourceChanged, UnsafeArtifact, UnsupportedSource
from registry.sources import pickles
from registry.sources.pickle_file import check_pickle_file
from registry.sources.pickles import UnpickledWeights, run_child, unpickle_weights
from registry.sources.unpickle import convert_pickles
from registry.weights import digest_file
from tests.contents import read_contents
from tests.hostile import pickled
from tests.hostile.pickled import BEFORE_TORCH, FORMS, IN_THE_CHILD, TENSORS, make_gadget, save_legacy, save_zip
from tests.processes import needs_mounts, run_code

MakeCheckpoint = Callable[..., Path]


def unpickle(path: Path, scratch: Path) -> UnpickledWeights:
    scratch.mkdir(parents=True, exist_ok=True)
    return unpickle_weights([path], [scratch / "model.safetensors"], scratch)


# --- what is refused


@pytest.mark.filterwarnings("ignore")  # what makes such files warns
@pytest.mark.parametrize("name", BEFORE_TORCH)
def test_what_shows_without_torch_is_refused_before_it(name: str, tmp_path: Path) -> None:
    code, text, make = BEFORE_TORCH[name]
    path = tmp_path / f"{name}.bin"
    make(path, tmp_path / "sentinel")
    started = time.process_time()
    with pytest.raises(RegistryError) as refused:
        check_pickle_file(path)
    assert time.process_time() - started < 2
    assert refused.value.code == code and text in refused.value.message
    assert refused.value.message.isprintable() and refused.value.hint
    assert not (tmp_path / "sentinel").exists()


_CONVERT_ALL = """
    import warnings
    from pathlib import Path
    from registry.errors import SourceError
    from registry.sources.unpickle import convert_pickles, limit_process

    warnings.simplefilter("ignore")
    limit_process(2**29, 100, 2**26)
    verdicts = []
    for file in values["files"]:
        try:
            convert_pickles({"files": [[file, file + ".safetensors"]]})
            verdicts.append(["read", ""])
        except SourceError as error:
            verdicts.append([error.code, error.message])
    print(json.dumps(verdicts))
"""


def convert_in_one_child(files: list[Path]) -> list[tuple[str, str]]:
    """Read one file after the other as the child does, within its limits, but without starting torch for each."""
    (verdicts,) = run_code(_CONVERT_ALL, files=[str(file) for file in files])
    return [(code, message) for code, message in json.loads(verdicts)]


@pytest.mark.filterwarnings("ignore")
def test_what_the_child_sees_through_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.bin" for name in IN_THE_CHILD]
    for file in files:
        IN_THE_CHILD[file.stem][2](file, tmp_path / "sentinel")
        check_pickle_file(file)
    for file, (code, message) in zip(files, convert_in_one_child(files), strict=True):
        wanted, text, _ = IN_THE_CHILD[file.stem]
        assert (code, text in message, message.isprintable()) == (wanted, True, True), (file.name, code, message)
    assert not (tmp_path / "sentinel").exists()


def test_a_gadget_is_refused_and_never_run_in_whatever_form_it_comes(tmp_path: Path) -> None:
    files = []
    for form in FORMS:
        for name in pickled.gadgets(tmp_path):
            files.append(tmp_path / f"{name}-{form}.bin")
            make_gadget(files[-1], tmp_path / "sentinel", name, form)
    for file, (code, message) in zip(files, convert_in_one_child(files), strict=True):
        assert code == "unsafe-artifact", (file.name, message)
    assert not (tmp_path / "sentinel").exists()


_READ_ALL = """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from registry import RegistryError
    from registry.sources.pickles import unpickle_weights

    def read(file):
        scratch = Path(file + ".scratch")
        scratch.mkdir()
        try:
            unpickle_weights([Path(file)], [scratch / "model.safetensors"], scratch)
        except RegistryError as error:
            return [error.code, str(error)]
        return ["read", ""]

    with ThreadPoolExecutor(2) as pool:
        print(json.dumps(list(pool.map(read, values["files"]))))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024, "torch" in sys.modules)
"""


def read_in_fresh_process(files: list[Path]) -> list[tuple[str, str]]:
    """Read each file as registering does, from a process that must neither import torch nor need memory."""
    verdicts, measured = run_code(_READ_ALL, files=[str(file) for file in files])
    peak, imported = measured.split()
    assert int(peak) < 200 and imported == "False"
    return [(code, message) for code, message in json.loads(verdicts)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_parent_stays_small_and_whole(tmp_path: Path) -> None:
    names = ["storage-of-gigabytes", "stride-0", "sparse-csr-lying", "deep-nesting", "endless-text", "torn-legacy"]
    files = [tmp_path / f"{name}.bin" for name in [*BEFORE_TORCH, *names]]
    for file in files:
        {**BEFORE_TORCH, **IN_THE_CHILD}[file.stem][2](file, tmp_path / "sentinel")
    for file, (code, message) in zip(files, read_in_fresh_process(files), strict=True):
        assert code == {**BEFORE_TORCH, **IN_THE_CHILD}[file.stem][0], (file.name, message)
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.filterwarnings("ignore")  # they leave files open
def test_the_gadgets_would_run_if_they_were_let(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    for name in ("system", "eval", "open"):
        make_gadget(tmp_path / "x.bin", tmp_path / name, name, "zip")
        torch.load(tmp_path / "x.bin", weights_only=False)
        assert (tmp_path / name).exists()


def test_a_refused_pickle_leaves_nothing_registered(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("gpt2")
    (folder / "model.safetensors").unlink()
    make_gadget(folder / "pytorch_model.bin", tmp_path / "sentinel", "system", "zip")
    before = read_contents(registry)
    with pytest.raises(UnsafeArtifact, match=r"asks for 'posix.system', and nothing of it was run") as refused:
        registry.register("evil", folder)
    assert "weights_only=False" in str(refused.value.hint)
    assert read_contents(registry) == before and not (tmp_path / "sentinel").exists()


def test_no_code_beside_the_pickle_is_imported(tmp_path: Path) -> None:
    """Not even when the working folder is the checkpoint's."""
    for name in ("torch", "numpy", "typing_extensions", "sitecustomize", "usercustomize", "registry", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    save_zip(tmp_path / "pytorch_model.bin", TENSORS)
    code = """
        from pathlib import Path
        from registry.sources.pickles import unpickle_weights
        os.chdir(values["folder"])
        os.environ["PYTHONPATH"] = values["folder"]
        scratch = Path("scratch")
        scratch.mkdir()
        unpickle_weights([Path("pytorch_model.bin")], [scratch / "model.safetensors"], scratch)
    """
    run_code(code, folder=tmp_path)
    assert (tmp_path / "scratch" / "model.safetensors").exists() and not (tmp_path / "sentinel").exists()


# --- what the child can do to us


def start_stuck_child(tmp_path: Path, errors: list[BaseException]) -> threading.Thread:
    """Let a child read a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe.bin")
    task = {"work": "pickles", "files": [[str(tmp_path / "pipe.bin"), str(tmp_path / "model.safetensors")]]}

    def run() -> None:
        try:
            run_child(task, tmp_path, name="pipe.bin", n_bytes=1000, n_bytes_at_once=1000)
        except RegistryError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_child_that_dies_is_a_typed_error(number: signal.Signals, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    thread = start_stuck_child(tmp_path, errors)
    try:
        children = Path(f"/proc/{os.getpid()}/task/{thread.native_id}/children")
        while not children.read_text():
            time.sleep(0.01)
        os.kill(int(children.read_text()), number)
    finally:
        thread.join()
    assert [type(error) for error in errors] == [UnsafeArtifact]
    assert "ended by a signal" in str(errors[0])


def test_a_child_that_hangs_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_WALL_SECONDS", 1)
    errors: list[BaseException] = []
    start_stuck_child(tmp_path, errors).join()
    assert [type(error) for error in errors] == [UnsafeArtifact]
    assert "took too long" in str(errors[0])


@needs_mounts
def test_a_full_disk_is_not_the_files_fault(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.bin", {"a": torch.ones(10**6)})
    (tmp_path / "small").mkdir()
    code = """
        from pathlib import Path
        from registry.sources.pickles import unpickle_weights
        folder = Path(values["folder"])
        try:
            unpickle_weights([folder / "a.bin"], [folder / "small" / "model.safetensors"], folder)
        except OSError as error:
            print(error)
    """
    mounts = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/small"
    assert run_code(code, mounts=mounts, folder=tmp_path) == ["[Errno 28] No space left on device"]


_FUZZ = """
    import random, warnings
    from pathlib import Path
    from registry.errors import SourceError
    from registry.sources.unpickle import convert_pickles, limit_process
    from registry.weights import read_header

    warnings.simplefilter("ignore")
    limit_process(2**29, 100, 2**26)
    chance = random.Random(values["seed"])
    path, target = Path(values["folder"], "fuzzed.bin"), Path(values["folder"], "fuzzed.safetensors")
    originals = [Path(name).read_bytes() for name in values["files"]]
    outcomes = {"read": 0}
    for _ in range(values["n"]):
        content = bytearray(chance.choice(originals))
        for _ in range(chance.choice((1, 1, 2, 8))):
            content[int(len(content) * chance.random() ** 2)] = chance.randrange(256)
        path.write_bytes(content)
        try:
            convert_pickles({"files": [[path, target]]})
            read_header(target)
            outcomes["read"] += 1
        except SourceError as error:
            outcomes[error.code] = outcomes.get(error.code, 0) + 1
        target.unlink(missing_ok=True)
    print(json.dumps(outcomes))
"""


@pytest.mark.slow
def test_no_mutation_of_a_pickle_gives_an_untyped_error(tmp_path: Path) -> None:
    save_zip(tmp_path / "zip.bin", TENSORS)
    save_legacy(tmp_path / "legacy.bin", {"model": TENSORS, "step": 3})
    files = [tmp_path / "zip.bin", tmp_path / "legacy.bin"]
    (line,) = run_code(_FUZZ, files=files, folder=tmp_path, seed=1, n=3000)
    outcomes = json.loads(line)
    assert sum(outcomes.values()) == 3000
    assert outcomes["read"] > 100 and outcomes["malformed-artifact"] > 100 and outcomes["unsafe-artifact"] > 100


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_mutation_of_a_zip_directory_gives_an_untyped_error(edits: list[tuple[float, int]], tmp_path: Path) -> None:
    path = tmp_path / "zip.bin"
    save_zip(path, {"a": torch.ones(2)})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    for place, byte in edits:
        content[start + int((len(content) - start) * place)] = byte
    path.write_bytes(content)
    try:
        check_pickle_file(path)
    except (MalformedArtifact, UnsafeArtifact, UnsupportedSource) as error:
        assert error.message.isprintable()


# --- what is read


def test_the_same_tensors_give_the_same_bytes_in_every_form_and_order(tmp_path: Path) -> None:
    transposed = TENSORS["a.weight"].T.contiguous().T
    assert not transposed.is_contiguous()
    forms: dict[str, Callable[[Path], None]] = {
        "zip": lambda path: save_zip(path, TENSORS),
        "legacy": lambda path: save_legacy(path, TENSORS),
        "other-order": lambda path: save_zip(path, dict(reversed(TENSORS.items()))),
        "parameters": lambda path: save_zip(path, {name: torch.nn.Parameter(one) for name, one in TENSORS.items()}),
        "not-contiguous": lambda path: save_zip(path, {**TENSORS, "a.weight": transposed}),
        "a-view": lambda path: save_zip(path, {**TENSORS, "a.weight": torch.arange(-4.0, 20).reshape(6, 4)[1:4]}),
        "nested": lambda path: save_legacy(path, {"state_dict": {"model": TENSORS}, "epoch": 1}),
        "wrapped": lambda path: save_zip(path, {f"module._orig_mod.{name}": one for name, one in TENSORS.items()}),
    }
    written = set()
    for name, save in forms.items():
        source, target = tmp_path / f"{name}.bin", tmp_path / f"{name}.safetensors"
        save(source)
        read = convert_pickles({"files": [[source, target]]})
        assert read["prefix"] == ("module._orig_mod." if name == "wrapped" else "")
        (file,) = read["files"]
        nested = name == "nested"
        assert (file["nest"], file["left_out"]) == ((("state_dict", "model"), ["epoch"]) if nested else ((), []))
        written.add(target.read_bytes())
    through_child = unpickle(tmp_path / "zip.bin", tmp_path / "zip")
    assert through_child.files[0].digest == digest_file(tmp_path / "zip.bin")
    written.add((tmp_path / "zip" / "model.safetensors").read_bytes())
    assert len(written) == 1
    read_back = load_file(tmp_path / "zip.safetensors")
    assert read_back.keys() == TENSORS.keys()
    assert all(torch.equal(read_back[name], TENSORS[name]) for name in TENSORS)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def test_every_dtype_and_shape_comes_through_bit_for_bit(tmp_path: Path) -> None:
    """Integers too: old files hold masks, which families ignore, and quantised weights must be recognised."""
    bits = torch.randint(0, 256, (8, 24), dtype=torch.uint8)
    tensors = {str(dtype): (bits % 2 == 0 if dtype is torch.bool else bits.clone().view(dtype)) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.ones(0, 3), "deep": torch.ones(1, 2, 1, 3, 1)}
    tensors |= {"tied": tensors["torch.float32"], "slice": tensors["torch.int64"][2:5, 1:]}
    save_zip(tmp_path / "a.bin", tensors)
    unpickle(tmp_path / "a.bin", tmp_path / "scratch")
    found = load_file(tmp_path / "scratch" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(as_bytes(found[name]), as_bytes(tensor))


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_a_flipped_bit_is_another_tensor_and_another_digest(tmp_path: Path) -> None:
    """PyTorch reads it without a word, so what is recorded has to differ."""
    save_zip(tmp_path / "a.bin", TENSORS)
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[content.index(struct.pack("<4f", 4, 5, 6, 7))] ^= 1
    (tmp_path / "b.bin").write_bytes(content)
    one, other = (unpickle(tmp_path / f"{name}.bin", tmp_path / name) for name in "ab")
    assert one.files[0].digest != other.files[0].digest
    assert digest_file(one.files[0].weights) != digest_file(other.files[0].weights)


def test_a_pickle_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.bin", TENSORS)
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.05):
            os.utime(tmp_path / "a.bin")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(SourceChanged):
            unpickle(tmp_path / "a.bin", tmp_path / "scratch")
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_large_pickle_is_read_within_its_limits(tmp_path: Path) -> None:
    """1 GB of tensors and as much again tied: read by the child in bounded memory, of which this process needs none."""
    if shutil.disk_usage(tmp_path).free < 8 * 2**30:
        pytest.skip("needs 8 GiB of disk")
    tensors = {f"layer.{index}": torch.full((2**24,), float(index)) for index in range(16)}
    save_zip(tmp_path / "large.bin", tensors)
    assert read_in_fresh_process([tmp_path / "large.bin"]) == [("read", "")]
    assert load_file(tmp_path / "large.bin.scratch" / "model.safetensors")["layer.7"][-1] == 7
