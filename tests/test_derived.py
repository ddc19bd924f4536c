"""Derived files: what is mapped is, bit for bit, what the plain path makes, and is never written to."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.main import main
from registry import Registry
from registry.families import FAMILIES
from registry.lazy_copies import copy_lazily
from tests.derived_files import assert_same, load_plainly, mapped_files, only, register_one
from tests.networks import assert_identical, make_hooked, train
from tests.processes import run_code

pytestmark = pytest.mark.filterwarnings("ignore::registry.load_options.UnverifiedVersion")


@pytest.fixture
def one(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry that holds one version, `m`, whose blobs are no longer young."""
    return register_one(registry, make_checkpoint("gpt2"))


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that holds every family, unverified to be quick."""
    folder = tmp_path_factory.mktemp("families")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    for family in FAMILIES.values():
        registry.register(family.name, make_checkpoint(family.name), parity="skip")
    yield registry
    registry.close()


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
