"""HAZARDS.md §2.6, what goes wrong between text and tokens, on networks and on bridges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from registry import Registry
from registry.errors import UnusableTokenizer
from registry.texts import TextCut
from registry.tokenizers import check_tokenizer, load_tokenizer
from tests.tokenizer_kinds import (
    KINDS,
    make_bare,
    make_first_space,
    make_sentencepiece,
    reclass,
    replace_by_pieces,
    save,
)

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("tokenizers")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


@pytest.fixture(scope="module", params=KINDS)
def loaded(
    request: pytest.FixtureRequest, shared: Registry, make_checkpoint: MakeCheckpoint
) -> tuple[PreTrainedTokenizerBase, list[Any]]:
    """A tokenizer of each kind, and a HookedTransformer and a bridge that were registered with it."""
    kind: str = request.param
    name = f"loaded/{list(KINDS).index(kind)}"
    folder = save(KINDS[kind](), make_checkpoint("llama", tokenizer=False))
    shared.register(name, folder)
    return PreTrainedTokenizerFast.from_pretrained(folder), [shared.load(name), shared.load_bridge(name)]


def read_by_hand(tokenizer: PreTrainedTokenizerBase, text: str, *, with_bos: bool) -> list[int]:
    """Read a text as the tokenizer does, with BOS in front once or not at all."""
    ids: list[int] = tokenizer(text)["input_ids"]
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prepends = (
        tokenizer("w7")["input_ids"][:1] == [bos]
        and tokenizer("w7", add_special_tokens=False)["input_ids"] != tokenizer("w7")["input_ids"]
    )
    if with_bos and not prepends and bos is not None:
        return [bos, *ids]
    return ids[1:] if prepends and not with_bos else ids


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="abh ewx0123456789\t\né<s>w", max_size=40))
def test_any_text_gives_what_the_registered_tokenizer_gives(
    text: str, loaded: tuple[PreTrainedTokenizerBase, list[Any]]
) -> None:
    tokenizer, networks = loaded
    for network in networks:
        for with_bos in (True, False) if network.cfg.default_prepend_bos else (False,):
            expected = read_by_hand(tokenizer, text, with_bos=with_bos)
            assert network.to_tokens(text, prepend_bos=with_bos).tolist() == [expected]
        assert network.to_tokens(text).tolist() == [read_by_hand(tokenizer, text, with_bos=True)]


def test_hazard_bos_is_put_before_the_tokens_and_not_into_the_text(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Written into the text, `<s>` takes the place of its beginning, and the first word is read as if in the middle."""
    registry.register("m", save(make_first_space(), make_checkpoint("llama", tokenizer=False)))
    for network in (registry.load("m"), registry.load_bridge("m")):
        assert network.to_tokens("we").tolist() == [[1, *make_first_space()("we")["input_ids"]]]
        assert network.to_tokens("we").tolist() != network.to_tokens("<s>we", prepend_bos=False).tolist()


def test_hazard_text_longer_than_the_context_is_not_cut_in_silence(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("gpt2")
    registry.register("m", folder)
    for network in (registry.load("m"), registry.load_bridge("m")):
        for n_words, options, n_cut in ((95, {}, 0), (96, {}, 1), (96, {"prepend_bos": False}, 0), (500, {}, 405)):
            text = "w1 " * n_words
            whole = network.to_tokens(text, truncate=False, **options)
            assert whole.shape[1] == n_words + (not options)
            if n_cut:
                with pytest.warns(TextCut, match=f"A text has {n_words} tokens, and 95 fit into the context") as seen:
                    tokens = network.to_tokens(text, **options)
                assert len(seen) == 1
            else:
                tokens = network.to_tokens(text, **options)
            assert torch.equal(tokens, whole[:, :96])
        with pytest.warns(TextCut), torch.inference_mode():
            assert network("w1 " * 100).shape[1] == 96


def test_hazard_without_special_tokens_texts_can_be_read(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """transformer-lens asks for a PAD token even where there is nothing to pad, or makes one up."""
    registry.register("m", save(make_bare(), make_checkpoint("llama", tokenizer=False)))
    for network in (registry.load("m"), registry.load_bridge("m")):
        assert network.to_tokens("w1 w2").tolist() == [[1, 2]]
        assert network.to_tokens(["w1 w2", "w3 w4"]).tolist() == [[1, 2], [3, 4]]
        with torch.inference_mode():
            assert network("w1 w2").shape == (1, 2, 211)
        with pytest.raises(UnusableTokenizer, match="BOS was asked for"):
            network.to_tokens("w1", prepend_bos=True)
        with pytest.raises(UnusableTokenizer, match="no token to pad with"):
            network.to_tokens(["w1 w2", "w3"])
        assert len(network.tokenizer) == 200 and not network.tokenizer.all_special_ids


def test_texts_of_different_lengths_are_padded_on_either_side(
    shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    shared.register("padded", make_checkpoint("gpt2"))
    for network in (shared.load("padded"), shared.load_bridge("padded")):
        assert network.to_tokens(["w1 w2", "w3"]).tolist() == [[0, 1, 2], [0, 3, 0]]
        assert network.to_tokens(["w1 w2", "w3"], padding_side="left").tolist() == [[0, 1, 2], [0, 0, 3]]


@pytest.mark.parametrize("class_name", ["GPT2Tokenizer", "LlamaTokenizer", "BertTokenizer", "Qwen2Tokenizer"])
@pytest.mark.parametrize("kind", ["word level", "byte level", "sentencepiece", "unigram"])
def test_hazard_a_tokenizer_json_is_read_as_it_is_whatever_class_is_named(
    kind: str, class_name: str, make_checkpoint: MakeCheckpoint
) -> None:
    """Transformers 5 rebuilds it as the class that is named; transformers 4, with which most were trained, did not."""
    folder = save(KINDS[kind](), make_checkpoint("llama", tokenizer=False))
    reclass(class_name)(folder)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, 211)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ["w1 w2", " hew  we", "he", "abc 123", "we\the"]:
        assert tokenizer.encode(text, add_special_tokens=False) == own.encode(text, add_special_tokens=False).ids


def test_hazard_the_leading_space_of_llama_2_is_kept(make_checkpoint: MakeCheckpoint) -> None:
    """Its normalizer writes ▁ before every text; transformers 5's LlamaTokenizer not before one that begins with it."""
    tokenizer = make_sentencepiece()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")  # none, which cannot be set
    folder = save(tokenizer, make_checkpoint("llama", tokenizer=False))
    reclass("LlamaTokenizer")(folder)
    assert load_tokenizer(folder).convert_ids_to_tokens(load_tokenizer(folder)(" he")["input_ids"]) == [
        "<s>",
        "▁",
        "▁",
        "he",
    ]


def test_a_sentencepiece_model_is_taken_where_transformers_reads_it_right(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("llama", tokenizer=False, vocab_size=600)
    replace_by_pieces(folder, "bpe", "LlamaTokenizer")
    own = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    registry.register("m", folder)
    network = registry.load("m")
    for text in ["Hello world", "this is 42", "snake_case text"]:
        assert network.to_tokens(text, prepend_bos=False).tolist() == [own.encode(text)]
