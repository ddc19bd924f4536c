"""Tokenizers: load the registered one, check that it fits the embedding, and attach it to a network.

transformer-lens's own `set_tokenizer` reads the tokenizer again from the place it came from, so that tokens added in
memory vanish (HAZARDS.md §2.6). Here the registered object itself is attached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from registry.errors import UnusableTokenizer
from registry.plain_text import quote_error
from registry.quiet import quiet

_N_SAMPLED = 256
# spaces of every kind, digits, capitals, apostrophes and more than ASCII: where one tokenizer differs from another
_TEXTS = (
    " leading and  double  spaces ",  # the first: transformers 5 reads it otherwise than SentencePiece
    "Hello world, this is a text.",
    "tabs\tand\nnew lines\n\n",
    "1234567890 + 3.14 = 42",
    "don't can't CamelCase snake_case",
    "naïve café – 日本語 Ω 😀",
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer whose files are in `folder`; no code of the checkpoint's is run and no network is asked.

    tokenizer.json says all of how texts are read, and transformers 4 took it as it is. transformers 5 takes out the
    vocabulary and builds the rest by the class's name, which may be another tokenizer: LlamaTokenizer drops a leading
    space of Llama 2's. Where the two differ, it is the file that counts.

    Raises UnusableTokenizer if it cannot be loaded, or reads texts otherwise than its files say.
    """
    try:
        return _load_checked(folder)
    except UnusableTokenizer:
        raise
    except BaseException as error:  # reading a text, too, may raise plain Exception or panic
        raise _refuse_loading(error) from error


def _load_checked(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = _load_as(AutoTokenizer, folder)
    if (folder / "tokenizer.json").is_file():
        own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if getattr(own.model, "dropout", None):
            raise UnusableTokenizer(
                f"The tokenizer drops merges at random (dropout {own.model.dropout}) and reads no text twice alike.",
                hint='Set "dropout" in tokenizer.json to null: it is for training.',
            )
        own.no_truncation()
        own.no_padding()
        if not _agrees(tokenizer, lambda text: own.encode(text, add_special_tokens=False).ids, _TEXTS):
            tokenizer = _load_as(PreTrainedTokenizerFast, folder)
            if not _agrees(tokenizer, lambda text: own.encode(text, add_special_tokens=False).ids, _TEXTS):
                raise _refuse_reading(tokenizer, "tokenizer.json")
    elif (folder / "tokenizer.model").is_file():
        if not _agrees(tokenizer, _read_pieces(folder / "tokenizer.model"), _TEXTS[1:]):
            raise _refuse_reading(tokenizer, "tokenizer.model")
    else:
        _refuse_lost_spaces(tokenizer)
    return tokenizer


def _load_as(kind: Any, folder: Path) -> PreTrainedTokenizerBase:
    with quiet():
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def _refuse_loading(error: BaseException) -> BaseException:
    """Make the error for what tokenizers raises: plain Exception, or what a panic of Rust's is, no Exception at all."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    reason = quote_error(error)
    return UnusableTokenizer(
        f"The tokenizer cannot be loaded: {reason}",
        hint="Save it again with tokenizer.save_pretrained, or take its files out of the folder.",
    )


def _read_pieces(path: Path) -> Callable[[str], list[int]]:
    """Return what SentencePiece itself makes of a text."""
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UnusableTokenizer(
            f"{path.name} is no model of SentencePiece's: {error}.",
            hint="Save the tokenizer again with tokenizer.save_pretrained, which writes a tokenizer.json.",
        ) from error
    return lambda text: list(processor.encode(text))


def _agrees(tokenizer: PreTrainedTokenizerBase, read: Callable[[str], Sequence[int]], texts: Iterable[str]) -> bool:
    """Say whether the tokenizer reads these texts, and some of its own tokens, as `read` does."""
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    words = [tokenizer.decode([index]) for index in ordinary[:: 1 + len(ordinary) // _N_SAMPLED]]
    legible = [word for word in words if word.strip() and "\ufffd" not in word]
    own = [" ".join(legible[place : place + 16]).lstrip() for place in range(0, len(legible), 16)]
    added = tokenizer.get_added_vocab()
    return all(
        list(read(text)) == tokenizer.encode(text, add_special_tokens=False)
        for text in [*texts, *own]
        if not any(token in text for token in added)
    )


def _refuse_reading(tokenizer: PreTrainedTokenizerBase, name: str) -> UnusableTokenizer:
    return UnusableTokenizer(
        f"transformers makes of the tokenizer's files a {type(tokenizer).__name__}, which reads texts otherwise than "
        f"{name} says.",
        hint="tokenizer_config.json or config.json may name another class than the one that wrote the files. Save the "
        "tokenizer again with tokenizer.save_pretrained where it is read right: that writes a tokenizer.json, which is "
        "read as it is.",
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> str:
    """Return the vocabulary digest: SHA-256, in hex, over the sorted (id, token) pairs.

    Raises UnusableTokenizer if a token's id lies outside the embedding, or if the tokenizer was made up.
    """
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    if vocabulary and vocabulary[-1][0] >= d_vocab:
        raise UnusableTokenizer(
            f"The tokenizer has ids up to {vocabulary[-1][0]}, and the embedding has {d_vocab} rows.",
            hint="Resize the embedding (model.resize_token_embeddings) before saving, "
            "or save the tokenizer that the checkpoint was trained with.",
        )
    _refuse_made_up(tokenizer)
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True).encode()).hexdigest()


def fit_tokenizer(cfg: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make tokenizer and config fit each other: the config says whether the tokenizer prepends BOS by itself.

    Missing special tokens are taken from those it has, as transformer-lens does (BOS and PAD from EOS), but never
    made up; without any, nothing is prepended. `cfg` is a HookedTransformer's or a bridge's.
    """
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        tokenizer.padding_side = "right"  # transformer-lens looks for PAD in all that is padded left, to mask it
    cfg.tokenizer_prepends_bos = _prepends_bos(tokenizer)
    cfg.default_prepend_bos = tokenizer.bos_token is not None
    return tokenizer


def attach_tokenizer(network: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a HookedTransformer this very tokenizer."""
    network.tokenizer = fit_tokenizer(network.cfg, tokenizer)


def _prepends_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether text comes out with BOS before it; appending EOS, which may be the same token, does not count."""
    special = set(tokenizer.all_special_ids)
    ordinary = next((index for index in range(len(tokenizer)) if index not in special), 0)
    text = f"a b {tokenizer.decode([ordinary])}"  # the last gives no BOS, though unknown words may
    plain, whole = (tokenizer.encode(text, add_special_tokens=added) for added in (False, True))
    return len(whole) > len(plain) and whole[: 1 + len(plain)] == [tokenizer.bos_token_id, *plain]


def _refuse_made_up(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UnusableTokenizer if the tokenizer cannot read its own tokens.

    That is how it is when transformers finds no files for the tokenizer's class and makes one of a single token, or
    rebuilds a tokenizer.json as something else: every text gives the same few ids, and nothing says so. Nine of ten
    tokens may fail, because `##ing` does not come back alone.
    """
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = [tokenizer.decode([index]) for index in ordinary[:: 1 + len(ordinary) // _N_SAMPLED]]
    legible = [text for text in texts if text.strip() and "\ufffd" not in text]
    n_read = sum(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text for text in legible)
    if not ordinary or n_read < len(legible) / 10:
        raise UnusableTokenizer(
            f"transformers makes of the tokenizer's files a {type(tokenizer).__name__} with {len(ordinary)} ordinary "
            f"tokens, which reads {n_read} of {len(legible)} of them.",
            hint="tokenizer_config.json seems to name another class than the one that wrote the files. "
            "Save the tokenizer again with tokenizer.save_pretrained, or take its files out of the folder.",
        )


def _refuse_lost_spaces(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UnusableTokenizer if words come back without the spaces between them.

    That is how it is when transformers reads a vocabulary with the rules of another kind of tokenizer, as the files of
    a SentencePiece model in the folder of a GPT-2.
    """
    text = "Hello world, this is a text."
    back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    if "".join(back.split()) == "".join(text.split()) and len(back.split()) < len(text.split()):
        raise UnusableTokenizer(
            f"transformers makes of the tokenizer's files a {type(tokenizer).__name__}, which loses spaces: "
            f"{text!r} comes back as {back!r}.",
            hint="tokenizer_config.json or config.json may name another class than the one that wrote the files. "
            "Save the tokenizer again with tokenizer.save_pretrained where it is read right.",
        )
