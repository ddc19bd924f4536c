"""The tokenizer of a network from derived files is read when it is used, and not before."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import registry.derived
import registry.load
from registry import Registry
from registry.errors import ArtifactCorrupt
from tests.derived_files import flip, register_one

pytestmark = pytest.mark.filterwarnings("ignore::registry.load_options.UnverifiedVersion")


@pytest.fixture
def one(registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry that holds one version, `m`, whose blobs are no longer young."""
    return register_one(registry, make_checkpoint("gpt2"))


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
    flip(one.store.blob_path(file.digest), restore=True)
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
