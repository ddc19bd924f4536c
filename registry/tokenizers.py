"""Tokenizers: load the registered one, check that it fits the embedding, and attach it to a network.

transformer-lens's own `set_tokenizer` reads the tokenizer again from the place it came from, so that tokens added in
memory vanish (HAZARDS.md §2.6). Here the registered object itself is attached.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformer_lens import HookedTransformer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from registry.errors import UnusableTokenizer
from registry.quiet import quiet


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer whose files are in `folder`; no code of the checkpoint's is run and no network is asked."""
    with quiet():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises plain Exception for a bad tokenizer.json
            raise UnusableTokenizer(
                f"The tokenizer cannot be loaded: {str(error).splitlines()[0]}",
                hint="Save it again with tokenizer.save_pretrained, or take its files out of the folder.",
            ) from error
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> str:
    """Return the vocabulary digest: SHA-256, in hex, over the sorted (id, token) pairs.

    Raises UnusableTokenizer if a token's id lies outside the embedding.
    """
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    if vocabulary and vocabulary[-1][0] >= d_vocab:
        raise UnusableTokenizer(
            f"The tokenizer has ids up to {vocabulary[-1][0]}, and the embedding has {d_vocab} rows.",
            hint="Resize the embedding (model.resize_token_embeddings) before saving, "
            "or save the tokenizer that the checkpoint was trained with.",
        )
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True).encode()).hexdigest()


def attach_tokenizer(network: HookedTransformer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give `network` this very tokenizer, and tell its config whether the tokenizer prepends BOS by itself.

    Missing special tokens are taken from those it has, as transformer-lens does (BOS and PAD from EOS), but never
    made up; without any, nothing is prepended.
    """
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    ids = tokenizer.encode("")
    network.tokenizer = tokenizer
    network.cfg.tokenizer_prepends_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
    if tokenizer.bos_token is None:
        network.cfg.default_prepend_bos = False
