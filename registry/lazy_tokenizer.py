"""The registered tokenizer, attached now and read from its files when it is first used.

Reading a tokenizer takes several times as long as mapping a network. What a network's config has to know of it does not
change while its files and the libraries stay the same, so it is kept in a note beside the derived files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version as read_release
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from registry import tokenizers
from registry.errors import StorageError, UnusableTokenizer
from registry.permissions import make_folder
from registry.store import LocalStore
from registry.store.sealed import read_sealed, write_sealed
from registry.tokenizers import fit_tokenizer
from registry.versions import Version

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_LIBRARIES = ("transformers", "tokenizers", "sentencepiece")
_FACTS = ("tokenizer_prepends_bos", "default_prepend_bos")


def attach_registered_tokenizer(
    network: HookedTransformer, store: LocalStore, version: Version, load: Callable[[], PreTrainedTokenizerBase]
) -> None:
    """Give a network the version's tokenizer, which `load` checks and reads, if it was registered with one.

    The first load reads it at once; later ones set what the note says in the config and read it when it is used.
    """
    if not version.with_role("tokenizer"):
        return
    note = _find_note(store, version)
    facts = read_sealed(note)
    if facts is None or sorted(facts) != sorted(_FACTS):
        tokenizer, facts = _load_fitted(load)
        network.tokenizer = tokenizer
        with contextlib.suppress(StorageError), store.stage() as staging:  # a store that is read only keeps no notes
            make_folder(note.parent)
            write_sealed(note, facts, staging)
    else:
        network.postpone_tokenizer(functools.partial(_load_as_noted, load, facts, note))
    for name in _FACTS:
        setattr(network.cfg, name, facts[name])


def _load_fitted(load: Callable[[], PreTrainedTokenizerBase]) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """Load the tokenizer, and say what a network's config has to know of it."""
    cfg = SimpleNamespace()
    tokenizer = fit_tokenizer(cfg, load())
    return tokenizer, {name: getattr(cfg, name) for name in _FACTS}


def _load_as_noted(
    load: Callable[[], PreTrainedTokenizerBase], noted: dict[str, Any], note: Path
) -> PreTrainedTokenizerBase:
    tokenizer, facts = _load_fitted(load)
    if facts != noted:
        raise UnusableTokenizer(
            f"The tokenizer is not what {note} says, by which the network's config was set.",
            hint=f"Delete {note} and load the network again.",
        )
    return tokenizer


def _find_note(store: LocalStore, version: Version) -> Path:
    """Return the path of the note: by the files, the releases of the libraries, and our own code."""
    files = [*version.with_role("tokenizer"), *version.with_role("config")]
    key = json.dumps([sorted((file.name, file.digest) for file in files), _read_reader_version()])
    return store.root / "derived" / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


@functools.cache
def _read_reader_version() -> list[str]:
    source = Path(tokenizers.__file__).read_bytes()
    return [hashlib.sha256(source).hexdigest(), *(f"{name} {read_release(name)}" for name in _LIBRARIES)]
