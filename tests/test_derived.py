"""Derived files: what is mapped is, bit for bit, what the plain path makes, whatever happens to files and processes."""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import registry.derived
import registry.load
from cli.main import main
from registry import Registry, converter
from registry.errors import ArtifactCorrupt, ArtifactMissing
from registry.families import FAMILIES
from registry.lazy_copies import copy_lazily
from registry.store.derived import DerivedFile, DerivedFiles
from tests.checkpoints import D_VOCAB
from tests.networks import assert_identical, make_hooked, train
from tests.processes import needs_mounts, run_at_once, run_code, start

TOKENS = torch.arange(80).reshape(2, 40) * 7 % D_VOCAB
pytestmark = pytest.mark.filterwarnings("ignore::registry.load_options.UnverifiedVersion")


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that holds every family, unverified to be quick."""
    folder = tmp_path_factory.mktemp("families")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    for family in FAMILIES.values():
        registry.register(family.name, make_checkpoint(family.name), parity="skip")
    yield registry
    registry.close()


@pytest.fixture
def one(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry that holds one version, `m`, whose blobs are no longer young."""
    registry.register("m", make_checkpoint("gpt2"), parity="skip")
    for blob in (registry.store.root / "blobs").rglob("*"):
        os.utime(blob, (1_700_000_000, 1_700_000_000))
    return registry


def load_plainly(registry: Registry, ref: str, **options: Any) -> Any:
    """Load without derived files."""
    plain = Registry(str(registry._unprepared.url.database), registry.store.root)
    plain.derived = DerivedFiles(plain.store, 0)
    before = plain.cached()
    network = plain.load(ref, **options)
    assert plain.cached() == before
    plain.close()
    return network


def mapped_files() -> set[str]:
    """Return the derived files that this process has mapped."""
    return set(re.findall(r"/derived/\S+\.safetensors", Path("/proc/self/maps").read_text()))


def assert_same(ours: Any, plain: Any) -> None:
    """The same parameters, buffers, logits and cached activations, bit for bit, and the same config."""
    assert set(ours.state_dict()) == set(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        other = ours.state_dict()[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape) and torch.equal(other, tensor), name
    assert ours.cfg.to_dict() == plain.cfg.to_dict()
    assert [name for name, one in ours.named_parameters() if not one.requires_grad] == []
    tokens = TOKENS[:, : plain.cfg.n_ctx]
    with torch.no_grad():
        (logits, cache), (expected, plain_cache) = ours.run_with_cache(tokens), plain.run_with_cache(tokens)
    assert torch.equal(logits, expected) and not ours.training
    assert set(cache) == set(plain_cache) and len(cache) > 20
    for name in plain_cache:
        assert torch.equal(cache[name], plain_cache[name]), name


def only(registry: Registry) -> DerivedFile:
    (file,) = registry.cached()
    return file


# --- what is mapped is what would have been made -----------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("processed", [True, False], ids=["processed", "raw"])
@pytest.mark.parametrize("family", [family.name for family in FAMILIES.values()])
def test_every_family_is_the_same_to_the_bit(base: Registry, family: str, processed: bool) -> None:
    plain = load_plainly(base, family, processed=processed)
    first = base.load(family, processed=processed)
    n_files = len(base.cached())
    warm = base.load(family, processed=processed)
    assert len(base.cached()) == n_files
    assert any(f"/{base.cached()[0].key}.safetensors" in path for path in mapped_files())
    assert_same(first, plain)
    assert_same(warm, plain)
    assert warm.tokenizer.get_vocab() == plain.tokenizer.get_vocab()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(base: Registry, dtype: str) -> None:
    for family in ("gpt2", "llama"):
        plain = load_plainly(base, family, dtype=dtype)
        base.load(family, dtype=dtype)
        assert_same(base.load(family, dtype=dtype), plain)
        assert base.cached()[0].dtype == dtype


@pytest.mark.parametrize(
    "config",
    [{}, {"normalization_type": "RMS", "gated_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 8}],
    ids=["layernorm", "rotary"],
)
def test_hooked_layout(registry: Registry, config: dict[str, Any]) -> None:
    network = make_hooked(**config)
    registry.register_network("h", network, parity="skip")
    for options in ({}, {"processed": False}, {"processed": False, "dtype": "bfloat16"}):
        plain = load_plainly(registry, "h", **options)
        registry.load("h", **options)
        assert_same(registry.load("h", **options), plain)
    # raw, in the dtype it was registered in, the blob itself is mapped
    assert sorted((file.processing == (), file.dtype) for file in registry.cached()) == [
        (False, "float32"), (True, "bfloat16"),
    ]  # fmt: skip
    assert_identical(registry.load("h", processed=False), network)
    registry.load("h", processed=False).W_E.data.zero_()
    assert_identical(registry.load("h", processed=False, verify="always"), network)


def test_layers_with_tables_of_their_own_are_not_mixed_up(base: Registry) -> None:
    """Gemma 3's local layers turn by another base than its global ones; each layer can be edited by itself."""
    network = base.load("gemma3")
    tables = [block.attn.rotary_sin for block in network.blocks]
    assert torch.equal(tables[0], tables[2]) and not torch.equal(tables[0], tables[1])
    assert len({table.data_ptr() for table in tables}) == 3
    with torch.device("cpu"):
        for block in network.blocks:
            expected, _ = block.attn.calculate_sin_cos_rotary(
                network.cfg.rotary_dim, len(block.attn.rotary_sin), base=block.attn._rotary_base(), dtype=torch.float32
            )
            assert torch.equal(block.attn.rotary_sin, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_lazy_copies_are_copies(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((300, 64), (3, 2)):
        table = torch.randn(shape).to(dtype)
        ones = copy_lazily(table, 3)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        plain = copy_lazily(table, 2)
        monkeypatch.undo()
        for one in (*ones, *plain):
            assert one.dtype == dtype and torch.equal(one, table)
        save_file({str(index): one for index, one in enumerate(ones)}, tmp_path / "saved.safetensors")
        ones[0].zero_()
        assert torch.equal(ones[1], table) and torch.equal(copy.deepcopy(ones[2]), table) and not ones[0].any()


def test_the_facts_tell_versions_and_wishes_apart(one: Registry, make_checkpoint: Callable[..., Path]) -> None:
    one.register("other", make_checkpoint("gpt2", seed=1), parity="skip")
    one.register("eps", make_checkpoint("gpt2", layer_norm_epsilon=1e-2), parity="skip")  # the same weights
    for ref in ("m", "other", "eps"):
        for options in ({}, {"fold_ln": False}, {"processed": False}, {"dtype": "bfloat16"}):
            one.load(ref, **options)
            assert one.cached()[0].ref == f"{ref}@v1"
    assert len(one.cached()) == 12
    assert_same(one.load("eps"), load_plainly(one, "eps"))


def test_tensors_are_aligned(base: Registry) -> None:
    base.load("llama")
    tensors = load_file(base.cached()[0].path)
    assert {tensor.data_ptr() % 64 for tensor in tensors.values() if tensor.nbytes % 64 == 0} == {0}


# --- the file is never written to --------------------------------------------------------------------------------


def test_edits_and_training_stay_in_memory(one: Registry) -> None:
    plain = load_plainly(one, "m")
    one.load("m")
    path = only(one).path
    before = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat())
    network = one.load("m")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(7.0)
    trained = one.load("m")
    train(trained)
    assert not torch.equal(trained.W_E, plain.W_E)
    assert before == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat())
    assert path.stat().st_mode & 0o777 == 0o400
    assert_same(one.load("m", verify="always"), plain)


def test_training_a_mapped_network_is_training_the_plain_one(one: Registry) -> None:
    plain = load_plainly(one, "m")
    one.load("m")
    warm = one.load("m")
    for network in (plain, warm):
        train(network)
    assert_identical(warm, plain)


def test_a_warm_load_takes_hardly_any_memory_of_its_own(make_checkpoint: Callable[..., Path], on_disk: Path) -> None:
    """Narrow layers with rotary tables of 2,048 rows, which would be 8 % of the weights if each layer had its own."""
    folder = make_checkpoint(
        "llama", hidden_size=512, intermediate_size=1408, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=4096,
    )  # fmt: skip
    registry = Registry(str(on_disk / "registry.db"), on_disk / "store")
    registry.register("m", folder, parity="skip")
    registry.load("m")
    code = r"""
        import gc, re, warnings
        from pathlib import Path
        warnings.simplefilter("ignore")
        import torch
        from registry import Registry
        registry = Registry(values["url"], values["store"])
        def private():
            gc.collect()
            text = Path("/proc/self/smaps_rollup").read_text()
            return sum(int(kb) for kb in re.findall(r"Private_Dirty: +(\d+) kB", text)) * 1024
        first = registry.load("m", dtype="float64")  # what is imported and cached once
        del first
        before = private()
        network = registry.load("m")
        tensors = (network.parameters(), network.buffers())
        print(private() - before, *(sum(one.nbytes for one in ones) for ones in tensors))
        with torch.no_grad():
            network(torch.arange(20)[None])
        total = sum(float(one.sum()) for one in network.parameters())
        print(private() - before, total)
    """
    registry.load("m", dtype="float64")
    lines = run_code(code, url=on_disk / "registry.db", store=on_disk / "store")
    taken, weights, buffers = map(int, lines[0].split())
    assert weights > 140e6 and taken < 0.05 * weights < buffers
    assert int(lines[1].split()[0]) < 0.15 * weights  # reading the weights copies nothing either
    registry.close()


# --- what is torn, altered or gone is noticed, and made again ----------------------------------------------------


def _flip(path: Path, *, restore: bool) -> None:
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))
    if restore:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(("restore", "verify"), [(False, "changed"), (True, "changed"), (True, "always")])
def test_an_altered_file_is_made_again(one: Registry, restore: bool, verify: Any) -> None:
    plain = load_plainly(one, "m")
    one.load("m")
    path = only(one).path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _flip(path, restore=restore)
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
    _flip(blob, restore=True)
    with pytest.raises(ArtifactCorrupt):
        one.load("m")
    blob.unlink()
    with pytest.raises(ArtifactMissing):
        one.load("m", verify="never")


def test_another_converter_does_not_take_it(one: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    one.load("m")
    monkeypatch.setattr("registry.derived.read_converter_version", lambda: "another")
    one.load("m")
    assert sorted(file.converter == "another" for file in one.cached()) == [False, True]


def test_the_converter_version_changes_with_code_and_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = converter.read_converter_version.__wrapped__
    before = read()
    assert before == read()
    monkeypatch.setattr(converter, "version", lambda name: "9.9" if name == "torch" else "1")
    assert read() != before
    monkeypatch.undo()
    folder = tmp_path / "registry"
    for name in converter.SOURCES:
        place = Path(converter.__file__).parent / name
        for source in place.glob("*.py") if place.is_dir() else [place]:
            copied = folder / source.relative_to(Path(converter.__file__).parent)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(source.read_bytes())
    monkeypatch.setattr(converter, "__file__", str(folder / "converter.py"))
    assert read() == before
    with (folder / "families" / "rope.py").open("a") as file:
        file.write("\n")
    assert read() != before


def test_the_converter_version_covers_all_that_converting_imports() -> None:
    folder = Path(converter.__file__).parent
    reached: set[Path] = set()
    waiting = [folder / name for name in ("convert.py", "load.py", "load_hooked.py", "families/__init__.py")]
    # what they are for cannot change a tensor: errors, silence, texts, checks before and around; headers, rows, stores
    beside = {
        "checkpoint.py", "errors.py", "files.py", "lazy_tokenizer.py", "load_options.py", "progress.py", "quiet.py",
        "refs.py", "texts.py", "tokenizers.py", "versions.py", "weights.py", "bridge.py", "converter.py",
        "lazy_copies.py", "plain_text.py",
    }  # fmt: skip
    while waiting:
        source = waiting.pop()
        if source in reached or source.name in beside or source.parent.name in ("store", "sources"):
            continue
        reached.add(source)
        for name in re.findall(r"^ *from registry\.([\w.]+) import", source.read_text(), re.MULTILINE):
            module = folder / name.replace(".", "/")
            waiting.append(module / "__init__.py" if module.is_dir() else module.with_suffix(".py"))
    covered = {path for name in converter.SOURCES for path in [folder / name, *(folder / name).glob("*.py")]}
    assert len(reached) > 10 and reached <= covered, reached - covered
    assert (folder / "derived.py") in covered


# --- several processes, and places where nothing can be written ---------------------------------------------------


def _count_conversions(index: int, url: str, store: Path) -> tuple[int, float]:
    """Load, converting slowly; return how many conversions that took, and a number that tells the network."""
    calls = []
    convert = registry.load.convert_weights

    def convert_slowly(*args: Any) -> Any:
        calls.append(1)
        time.sleep(1)
        return convert(*args)

    registry.load.convert_weights = convert_slowly
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = Registry(url, store).load("m")
        with torch.no_grad():
            return len(calls), float(network(TOKENS).double().sum())
    finally:
        registry.load.convert_weights = convert


def test_processes_that_load_at_once_convert_once(one: Registry) -> None:
    results = run_at_once(_count_conversions, str(one._unprepared.url.database), one.store.root, n=3)
    assert sorted(calls for calls, _ in results) == [0, 0, 1]
    assert len({total for _, total in results}) == 1
    assert only(one).ref == "m@v1"


def _load_and_die(url: str, store: Path, where: str, mark: Path) -> None:
    """Load, and be killed when `where`, a function that writing a derived file calls, is reached."""
    module, _, name = where.rpartition(".")

    def die(*_: Any) -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(importlib.import_module(module), name, die)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Registry(url, store).load("m")


@pytest.mark.parametrize(
    "where", ["registry.derived._view_bytes", "registry.derived._is_same", "registry.store.derived.write_sealed"]
)
def test_a_builder_that_is_killed_leaves_nothing_that_counts(one: Registry, tmp_path: Path, where: str) -> None:
    plain = load_plainly(one, "m")
    process = start(_load_and_die, str(one._unprepared.url.database), one.store.root, where, tmp_path / "mark")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "mark").exists()
    assert one.cached() == []
    assert_same(one.load("m"), plain)
    assert only(one).path.is_file()
    assert_same(one.load("m"), plain)


def test_a_store_that_is_read_only_loads_plainly_or_maps_what_is_there(one: Registry) -> None:
    one.load("m")
    for path in [one.store.root, *one.store.root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o555)
    code = """
        import re, warnings
        from pathlib import Path
        warnings.simplefilter("ignore")
        from registry import Registry
        registry = Registry(values["url"], values["store"])
        for options in ({}, {"processed": False}):
            network = registry.load("m", **options)
            print(network.tokenizer is not None, "/derived/" in Path("/proc/self/maps").read_text())
            del network
        print(len(registry.cached()))
    """
    lines = run_code(code, with_rights=False, url=one._unprepared.url.database, store=one.store.root)
    assert lines == ["True True", "True False", "1"]
    for path in [one.store.root, *one.store.root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


@needs_mounts
def test_a_full_disk_loads_plainly(one: Registry) -> None:
    """300 kB are left for 530 kB of tensors."""
    one.path("m")
    code = """
        import warnings
        warnings.simplefilter("ignore")
        from registry import Registry
        registry = Registry(values["url"], values["store"])
        print(registry.load("m").tokenizer is not None, len(registry.cached()))
        print(os.listdir(values["tmp"]))
    """
    tmp = one.store.root / "tmp"
    mounts = f"mount -t tmpfs -o size=300k tmpfs {tmp}"
    assert run_code(code, mounts=mounts, url=one._unprepared.url.database, store=one.store.root, tmp=tmp) == [
        "True 0", "[]",
    ]  # fmt: skip


# --- the bound ------------------------------------------------------------------------------------------------------


def test_the_longest_unused_goes_first(one: Registry) -> None:
    wishes: list[dict[str, Any]] = [{}, {"processed": False}, {"fold_ln": False}]
    for index, options in enumerate(wishes):
        one.load("m", **options)
        os.utime(one.cached()[0].path.with_suffix(".json"), (1_700_000_000 + index, 1_700_000_000 + index))
    newest, middle, oldest = one.cached()
    assert oldest.processing[0] == "fold_ln" and middle.processing == ()
    one.load("m")  # the oldest is used
    assert one.cached() == [*one.cached()[:1], newest, middle] and one.cached()[0].key == oldest.key
    one.derived = DerivedFiles(one.store, sum(file.size_bytes for file in one.cached()))
    kept = one.load("m", dtype="float64")  # takes the place of both that were not used
    assert [file.key for file in one.cached()][1:] == [oldest.key]
    assert not middle.path.exists() and not newest.path.exists()
    assert one.cached()[0].dtype == "float64" and kept.W_E.dtype == torch.float64


def test_what_is_larger_than_the_bound_is_not_kept(one: Registry) -> None:
    one.load("m")
    file = only(one)
    one.derived = DerivedFiles(one.store, file.size_bytes + 1000)
    plain = load_plainly(one, "m", dtype="float64")
    assert_same(one.load("m", dtype="float64"), plain)
    assert only(one).key == file.key
    one.derived = DerivedFiles(one.store, 0)
    assert_same(one.load("m"), load_plainly(one, "m"))
    assert not (set(mapped_files()) & {str(file.path)[str(file.path).index("/derived/") :]})


def test_a_mapped_file_may_be_removed(one: Registry) -> None:
    one.load("m")
    plain = load_plainly(one, "m")
    network = one.load("m")
    assert one.remove_cached(one.cached()) > 500_000
    assert one.cached() == [] and list(one.derived.root.rglob("*.safetensors")) == []
    assert_same(network, plain)


def test_pruning_takes_what_other_converters_made_and_what_is_above_the_bound(
    one: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("registry.derived.read_converter_version", lambda: "another")
        one.load("m", dtype="bfloat16")
    one.load("m", processed=False)
    one.load("m")
    newest, raw, old = one.cached()
    assert one.plan_cache_pruning() == [old]
    assert one.plan_cache_pruning(newest.size_bytes) == [old, raw]
    assert one.plan_cache_pruning(0) == [old, newest, raw]
    assert len(one.cached()) == 3
    assert one.remove_cached(one.plan_cache_pruning(newest.size_bytes)) == old.size_bytes + raw.size_bytes
    assert one.cached() == [newest]


# --- the tokenizer is read when it is used ---------------------------------------------------------------------------


def test_the_tokenizer_is_read_once_when_it_is_used(one: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    load_tokenizer = registry.load.load_tokenizer
    monkeypatch.setattr("registry.load.load_tokenizer", lambda folder: calls.append(1) or load_tokenizer(folder))
    first = one.load("m")
    assert len(calls) == 1
    warm = one.load("m")
    assert len(calls) == 1
    warm.cfg.default_prepend_bos = False  # stays as it is set
    assert torch.equal(warm.to_tokens("w1 w2"), first.to_tokens("w1 w2", prepend_bos=False))
    assert warm.tokenizer is warm.tokenizer and len(calls) == 2
    assert not warm.cfg.default_prepend_bos
    own = one.load("m")
    own.tokenizer = None
    assert own.tokenizer is None and len(calls) == 2


def test_a_copy_has_the_tokenizer_itself(one: Registry) -> None:
    one.load("m")
    copied, pickled = copy.deepcopy(one.load("m")), pickle.dumps(one.load("m").tokenizer)
    for blob in (one.store.root / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    assert copied.to_tokens("w1").tolist() == [[0, 1]]
    assert pickle.loads(pickled).get_vocab() == copied.tokenizer.get_vocab()


def test_a_tokenizer_that_was_altered_is_refused_when_it_is_used(one: Registry) -> None:
    one.load("m")
    warm = one.load("m")
    (file,) = [file for file in one.version("m").with_role("tokenizer") if file.name == "tokenizer.json"]
    _flip(one.store.blob_path(file.digest), restore=True)
    with pytest.raises(ArtifactCorrupt, match="was altered"):
        warm.to_tokens("w1")
    with pytest.raises(ArtifactCorrupt, match="was altered"):
        one.load("m")


def test_a_damaged_note_of_a_tokenizer_is_made_again(one: Registry) -> None:
    one.load("m")
    (note,) = (one.derived.root / "tokenizers").iterdir()
    whole = note.read_text()
    note.write_text(whole.replace("true", "false"))
    assert one.load("m").cfg.default_prepend_bos is True
    assert note.read_text() == whole


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(one: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LENSREG_URL", str(one._unprepared.url.database))
    monkeypatch.setenv("LENSREG_STORE", str(one.store.root))
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["cache", *arguments])
        assert not stop.value.code
        out, err = capsys.readouterr()
        return out, err

    assert run("ls") == ("", "There are no derived files.\n")
    one.load("m")
    one.load("m", processed=False)
    raw, processed = one.cached()
    capsys.readouterr()
    assert run("ls", "-o", "ids")[0].split() == [raw.key, processed.key]
    out, _ = run("ls")
    assert raw.key[:12] in out and "m@v1" in out and "center_unembed" in out and " kB" in out
    rows = json.loads(run("ls", "-o", "json")[0])["rows"]
    assert set(rows[0]) == {
        "key", "ref", "processing", "dtype", "size_bytes", "made_at", "used_at", "converter", "path",
    }  # fmt: skip
    out, err = run("prune", "--max-bytes", "540kB", "-o", "ids")
    assert out.split() == [processed.key] and err == "nothing was removed; --yes removes 1 derived file\n"
    assert len(one.cached()) == 2
    out, err = run("prune", "--max-bytes", "540kB", "--yes")
    assert err.startswith("removed 1 derived file: ") and [file.key for file in one.cached()] == [raw.key]
    assert run("prune", "--yes") == ("", "There is nothing to remove.\n")
    assert run("clear", "-o", "ids", "--yes")[0].split() == [raw.key]
    assert one.cached() == []
