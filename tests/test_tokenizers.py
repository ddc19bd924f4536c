"""Tokenizers: a loaded network has exactly the one that was registered with it, or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from registry import Registry, verify_checkpoint
from registry.errors import UnusableTokenizer
from registry.tokenizers import check_tokenizer, load_tokenizer
from tests.checkpoints import edit_config, make_tokenizer
from tests.contents import read_contents
from tests.tokenizer_kinds import (
    KINDS,
    make_byte_level,
    make_sentencepiece,
    replace_by_pieces,
    replace_vocabulary,
    save,
    wrap,
)

MakeCheckpoint = Callable[..., Path]

TEXTS = ["w1 w2 w3", "w210", "w7  w7\nw8", "", "<bos> w4", "unknown words"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("tokenizers")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


def codes(registry: Registry, ref: str) -> list[str]:
    return [finding["code"] for finding in registry.version(ref).findings]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_gives_the_tokens_that_the_registered_tokenizer_gives(
    family: str, kind: str, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """With BOS in front once: by the tokenizer itself, or else by transformer-lens, if there is one."""
    folder = save(KINDS[kind](), make_checkpoint(family, tokenizer=False))
    name = f"{family}/{kind.replace(' ', '-').replace(',', '')}"
    shared.register(name, folder)
    network = shared.load(name)
    own = AutoTokenizer.from_pretrained(folder)
    bos = own.bos_token_id if own.bos_token_id is not None else own.eos_token_id
    for text in ["w1 w2 w3", "he", "abc", "w7  w7", "hew"]:
        ids = own(text)["input_ids"]
        bare = own(text, add_special_tokens=False)["input_ids"]
        prepends = kind in ("sentencepiece", "sentencepiece with eos")
        expected = ids if prepends or bos is None else [bos, *ids]
        assert network.to_tokens(text).tolist() == [expected]
        without = ids[1:] if prepends else ids
        assert network.to_tokens(text, prepend_bos=False).tolist() == [without]
        assert without[: len(bare)] == bare
    assert network.to_string(torch.tensor(own("he")["input_ids"])) == own.decode(own("he")["input_ids"])


@pytest.mark.parametrize("processed", [True, False])
def test_a_prompt_can_be_run(processed: bool, shared: Registry, make_checkpoint: MakeCheckpoint) -> None:
    shared.register("prompt", make_checkpoint("gpt2"))
    network = shared.load("prompt", processed=processed)
    with torch.inference_mode():
        from_text = network(["w1 w2 w3", "w4 w5 w6"])
        from_ids = network(torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]]))
    assert torch.equal(from_text, from_ids)


def test_added_tokens_survive(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """transformer-lens reads the tokenizer again from where it came from, and loses them (HAZARDS.md §2.6)."""
    tokenizer = make_tokenizer(205)
    assert tokenizer.add_tokens(["<think>", "<answer>"]) == 2
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]}) == 1
    registry.register("base", save(tokenizer, make_checkpoint("gpt2", tokenizer=False)))
    network = registry.load("base")
    assert network.to_tokens("w1 <think> w2<answer> <tool>").tolist() == [[0, 1, 205, 2, 206, 207]]
    assert network.tokenizer is not None and len(network.tokenizer) == 208
    assert network.to_string([205, 207]) == tokenizer.decode([205, 207])


def test_a_network_is_whole_when_its_source_is_gone(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    registry.register("base", folder)
    before = registry.load("base").to_tokens(TEXTS[:1])
    shutil.rmtree(folder)
    network = registry.load("base")
    assert torch.equal(network.to_tokens(TEXTS[:1]), before)
    assert network.tokenizer is not None and network.tokenizer.get_vocab() == tokenizer.get_vocab()
    with torch.inference_mode():
        assert network(TEXTS[:2]).isfinite().all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}'},
        {"special_tokens_map.json": '{"bos_token": "<s>"}', "added_tokens.json": '{"<x>": 5}'},
        {"vocab.json": '{"a": 0}'},
        {"merges.txt": "#version: 0.2\n"},
    ],
)
def test_without_a_vocabulary_there_is_no_tokenizer(
    family: str, files: dict[str, str], shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Where transformers makes one up of a single token, and every text becomes [[0]]."""
    folder = make_checkpoint(family, tokenizer=False)
    for name, text in files.items():
        (folder / name).write_text(text)
    name = f"bare/{family}-{len(shared.models())}"
    shared.register(name, folder)
    assert "no-tokenizer" in codes(shared, name)
    assert shared.version(name).vocabulary_digest is None and not shared.version(name).with_role("tokenizer")
    network = shared.load(name)
    assert network.tokenizer is None
    with torch.inference_mode():
        assert network(torch.tensor([[1, 2, 3]])).shape == (1, 3, 211)
    with pytest.raises(UnusableTokenizer, match="registered without a tokenizer"):
        network.to_tokens("w1")


def rewrite(name: str, content: str | bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def replace_by_merges(folder: Path) -> None:
    """Leave the vocabulary and merges of a tokenizer that writes spaces as ▁, to be read as one that writes them Ġ."""
    letters = [*"abcdefghijklmnopqrstuvwxyzHT,.", "▁"]
    replace_vocabulary(
        vocab_json=json.dumps({letter: index for index, letter in enumerate(letters)}),
        merges_txt="#version: 0.2\nt h\n".replace("t h\n", ""),
    )(folder)


def drop_merges(folder: Path) -> None:
    """Make the tokenizer leave out merges at random, as in training."""
    save(make_sentencepiece(), folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))


WORDS = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(90))])
DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty": ("gpt2", rewrite("tokenizer.json", "")),
    "no object": ("gpt2", rewrite("tokenizer.json", "[]")),
    "empty object": ("gpt2", rewrite("tokenizer.json", "{}")),
    "cut": ("llama", lambda folder: rewrite("tokenizer.json", (folder / "tokenizer.json").read_text()[:300])(folder)),
    "binary": ("llama", rewrite("tokenizer.json", b"\x80\x04\x95\xff")),
    "config is no JSON": ("gpt2", rewrite("tokenizer_config.json", "{")),
    "sentencepiece garbage": ("llama", replace_vocabulary(tokenizer_model="garbage")),
    "vocab.json garbage": ("gpt2", replace_vocabulary(vocab_json="[1]", merges_txt="#version: 0.2\nA B C\n")),
    "code of its own": ("llama", rewrite("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')),
    # these load without an error, and read every text as one token or none
    "made up for want of files": ("gpt2", replace_vocabulary(vocab_txt=WORDS)),
    "made up of an empty vocabulary": ("gpt2", replace_vocabulary(vocab_json="{}", merges_txt="#version: 0.2\n")),
    # and these lose the spaces, or other tokens' ids
    "SentencePiece as GPT-2's": ("gpt2", lambda folder: replace_by_pieces(folder)),
    "SentencePiece as nobody's": ("llama", lambda folder: replace_by_pieces(folder)),
    "unigrams as merges": ("llama", lambda folder: replace_by_pieces(folder, "unigram", "LlamaTokenizer")),
    "tiktoken as SentencePiece": ("llama", replace_vocabulary(tokenizer_model="IQ== 0\nIg== 1\n")),
    "merges of another kind": ("gpt2", lambda folder: replace_by_merges(folder)),
    "dropout": ("llama", lambda folder: drop_merges(folder)),
}


@pytest.mark.parametrize(("family", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_tokenizer_that_cannot_be_what_was_trained_with_is_refused(
    family: str, damage: Callable[[Path], object], shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(family)
    (folder / "evil.py").write_text("raise SystemExit('the code of the checkpoint was run')")
    damage(folder)
    before = read_contents(shared)
    for options in ({}, {"parity": "skip"}, {"dry_run": True}):
        with pytest.raises(UnusableTokenizer) as refused:
            shared.register("damaged", folder, **options)
        assert refused.value.code == "unusable-tokenizer" and refused.value.hint
    assert read_contents(shared) == before


def test_a_tokenizer_of_another_class_than_the_family_s_is_taken_when_the_checkpoint_says_so(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Chinese GPT-2s have BERT's tokenizer, named in config.json."""
    folder = edit_config(make_checkpoint("gpt2", tokenizer=False), tokenizer_class="BertTokenizer")
    (folder / "vocab.txt").write_text(WORDS)
    registry.register("chinese", folder)
    network = registry.load("chinese")
    assert type(network.tokenizer).__name__.startswith("BertTokenizer")
    assert network.to_tokens("w1 w2", prepend_bos=False).tolist() == [[2, 6, 7, 3]]


@pytest.mark.parametrize("n_tokens", [212, 300])
def test_a_tokenizer_larger_than_the_embedding_is_refused(
    n_tokens: int, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = save(make_tokenizer(n_tokens), make_checkpoint("gpt2", tokenizer=False))
    before = read_contents(shared)
    with pytest.raises(UnusableTokenizer, match=f"ids up to {n_tokens - 1}, and the embedding has 211 rows"):
        shared.register("large", folder)
    assert read_contents(shared) == before


@pytest.mark.parametrize("n_tokens", [211, 100])
def test_a_tokenizer_smaller_than_the_embedding_is_right(
    n_tokens: int, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Embeddings are padded to a multiple of 64, say."""
    done = shared.register(
        f"small/{n_tokens}", save(make_tokenizer(n_tokens), make_checkpoint("gpt2", tokenizer=False))
    )
    assert done.parity is not None and done.parity.passed


def test_another_vocabulary_than_the_parent_s_is_pointed_out(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", make_checkpoint("gpt2"))
    registry.register("bare", make_checkpoint("gpt2", seed=1, tokenizer=False))
    permuted = make_tokenizer()
    content = json.loads(permuted.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    permuted = wrap(Tokenizer.from_str(json.dumps(content)), bos_token="<bos>", eos_token="<bos>", pad_token="<bos>")
    cases: list[tuple[str, PreTrainedTokenizerBase | None, str, list[str]]] = [
        ("same", make_tokenizer(), "base", []),
        ("permuted", permuted, "base", ["other-vocabulary"]),
        ("smaller", make_tokenizer(200), "base", ["other-vocabulary"]),
        ("none", None, "base", ["no-tokenizer"]),
        ("of-a-bare-one", make_tokenizer(), "bare", []),
    ]
    for seed, (name, tokenizer, parent, expected) in enumerate(cases, 10):
        folder = make_checkpoint("gpt2", seed=seed, tokenizer=False)
        if tokenizer is not None:
            save(tokenizer, folder)
        done = registry.register(name, folder, parent=parent)
        assert [finding.code for finding in done.findings] == expected == codes(registry, name), name
    message = registry.version("permuted").findings[0]["message"]
    assert "base@v1" in message and "other token ids" in message


def test_the_vocabulary_digest_is_that_of_ids_and_tokens_only(make_checkpoint: MakeCheckpoint) -> None:
    """The same vocabulary in another file, or with another template for chats, is the same."""
    folder = make_checkpoint("gpt2")
    plain = check_tokenizer(load_tokenizer(folder), 211)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}, indent=4))
    assert check_tokenizer(load_tokenizer(folder), 211) == plain
    assert check_tokenizer(make_tokenizer(), 500) == plain
    assert check_tokenizer(make_tokenizer(210), 211) != plain


def test_a_tokenizer_is_read_once_for_all_checkpoints_that_have_its_files(
    registry: Registry, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(verify_checkpoint, "_CHECKED", {})
    monkeypatch.setattr(
        verify_checkpoint, "load_tokenizer", lambda folder: read.append(folder) or load_tokenizer(folder)
    )
    for seed in range(3):
        registry.register("run", make_checkpoint("gpt2", seed=seed), parity="skip")
    assert len(read) == 1
    assert len({registry.version(f"run@v{number}").vocabulary_digest for number in (1, 2, 3)}) == 1
    other = make_checkpoint("gpt2", seed=3)
    save(make_byte_level(), other)
    registry.register("run", other, parity="skip")
    assert len(read) == 2
    assert registry.version("run@v4").vocabulary_digest == check_tokenizer(make_byte_level(), 211)
    wider = save(make_tokenizer(), make_checkpoint("gpt2", seed=4, vocab_size=100))  # the files of the first three
    with pytest.raises(UnusableTokenizer, match="the embedding has 100 rows"):
        registry.register("run", wider, parity="skip", dry_run=True)


def test_a_new_tokenizer_with_the_same_weights_is_a_new_version(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """The same text would give other tokens, so it is not the same thing to load by name."""
    folder = make_checkpoint("gpt2", tokenizer=False)
    assert registry.register("base", folder).outcome == "registered"
    save(make_tokenizer(), folder)
    assert registry.register("base", folder).outcome == "registered"
    save(make_tokenizer(200), folder)
    assert registry.register("base", folder).outcome == "registered"
    assert registry.register("base", folder).outcome == "unchanged"
    vocabularies: list[Any] = [registry.version(f"base@v{number}").vocabulary_digest for number in (1, 2, 3)]
    assert vocabularies[0] is None and len(set(vocabularies)) == 3
    assert registry.load("base@v1").tokenizer is None
    sizes = [len(registry.load(f"base@v{number}").tokenizer or ()) for number in (2, 3)]
    assert sizes == [211, 200]
