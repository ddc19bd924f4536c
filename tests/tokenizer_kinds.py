"""Tokenizers of each kind that people have, and what puts others into a checkpoint's folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.checkpoints import make_tokenizer


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_byte_level() -> PreTrainedTokenizerFast:
    """Like GPT-2's: no BOS of its own accord."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:180]
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet, "Ġ", "he", "Ġw"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e"), ("Ġ", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>")


def make_sentencepiece(*, bos: bool = True, eos: bool = False) -> PreTrainedTokenizerFast:
    """Like Llama's: it puts BOS first, and may put EOS last."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789", "▁w", "he"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "w"), ("h", "e")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make_appending() -> PreTrainedTokenizerFast:
    """One token for begin and end, which is only put last."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <bos>", special_tokens=[("<bos>", 0)]
    )
    return tokenizer


def make_unigram() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"), ("▁he", -1.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return wrap(tokenizer, unk_token="<unk>", eos_token="<unk>")


def make_wordpiece() -> PreTrainedTokenizerFast:
    """Like BERT's, where half of the tokens are the ends of words: `##ing` alone is not read as itself."""
    words = ["[UNK]", "[CLS]", "[SEP]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return wrap(tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]")


def make_first_space() -> PreTrainedTokenizerFast:
    """Like that of Llama 2 as transformers 5 saves it: the beginning of a text is read by itself."""
    tokenizer = make_sentencepiece(bos=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def make_bare() -> PreTrainedTokenizerFast:
    """One that names no special tokens at all."""
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(200)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(tokenizer)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "word level": make_tokenizer,
    "byte level": make_byte_level,
    "sentencepiece": make_sentencepiece,
    "sentencepiece with eos": lambda: make_sentencepiece(eos=True),
    "sentencepiece without bos": lambda: make_sentencepiece(bos=False),
    "only eos, which is bos": make_appending,
    "unigram": make_unigram,
    "wordpiece": make_wordpiece,
    "first space": make_first_space,
    "bare": make_bare,
}


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save a tokenizer as transformers does."""
    tokenizer.save_pretrained(folder)
    return folder


def reclass(name: str) -> Callable[[Path], object]:
    """Return what names another class in a folder's tokenizer_config.json."""

    def damage(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": name}))

    return damage


def replace_vocabulary(**files: str) -> Callable[[Path], object]:
    """Take the tokenizer away and put these files in its place; `_` in a name stands for the dot."""

    def damage(folder: Path) -> None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        for name, text in files.items():
            stem, _, ending = name.rpartition("_")
            (folder / f"{stem}.{ending}").write_text(text)

    return damage


def replace_by_pieces(folder: Path, kind: str = "bpe", class_name: str | None = None) -> None:
    """Leave a real SentencePiece model, alone or with a tokenizer_config.json that names a class."""
    lines = ["Hello world, this is a small text with numbers 1234567890", "snake_case CamelCase don't can't naïve"] * 50
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    replace_vocabulary()(folder)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    if class_name:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
