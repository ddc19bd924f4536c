"""Derived files with several processes, where nothing can be written, and within their bound."""

from __future__ import annotations

import importlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import registry.derived
import registry.load
from registry import Registry
from registry.store.derived import DerivedFiles
from tests.derived_files import TOKENS, assert_same, load_plainly, mapped_files, only, register_one
from tests.processes import needs_mounts, run_at_once, run_code, start

pytestmark = pytest.mark.filterwarnings("ignore::registry.load_options.UnverifiedVersion")


@pytest.fixture
def one(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry that holds one version, `m`, whose blobs are no longer young."""
    return register_one(registry, make_checkpoint("gpt2"))


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
