"""A HookedTransformer as a model of lm-eval: log-probs of texts, and texts that it goes on with.

Tokens, prefixes and cuts are those of lm-eval's own `hf` model, whose numbers these are to be.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from registry.errors import InvalidInput, UnusableTokenizer
from registry.progress import Counter, Progress, no_progress
from registry.validation.batches import run_batches
from registry.validation.windows import run_tokens

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

_MAX_NEW_TOKENS = 256  # lm-eval's own, where a task does not say

Pair = tuple[list[int], list[int]]
"""Tokens that are given, and those that are scored after them."""


class HarnessNetwork(TemplateLM):  # type: ignore[misc]
    """What lm-eval asks: `loglikelihood`, `loglikelihood_rolling` and greedy `generate_until`.

    `n_truncated` counts the texts that were longer than the context and lost their beginning, as in lm-eval.
    """

    def __init__(
        self,
        network: HookedTransformer,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__()
        self.network, self.tokenizer, self.batch_size = network, tokenizer, batch_size
        self.n_truncated = 0
        self._progress = progress
        self._max_length = int(network.cfg.n_ctx)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS."""
        eos: int | None = self.tokenizer.eos_token_id
        if eos is None:
            raise UnusableTokenizer(
                "The tokenizer has no EOS token.", hint="lm-eval needs one to know where texts end."
            )
        return eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: BOS, or EOS without one."""
        bos: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, with the special ones that the tokenizer adds by default, but no second BOS."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        tokens: list[int] = self.tokenizer.encode(string, **given)
        return tokens

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return of each context and continuation the summed log-prob in nats, and whether every token is top-1."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Return the summed log-prob of each whole text, in windows of the context that predict each token once."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._max_length,
                context_len=1,
            )
            for window in windows:
                pairs.append(make_disjoint_window(window))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._score(pairs), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Return what the network goes on with after each context, greedily, up to the first of its stop sequences."""
        asked = [self._read_request(*request.args) for request in requests]
        order = sorted(range(len(asked)), key=lambda index: (len(asked[index][0]), asked[index][2]))
        counter = Counter(self._progress, "generating", len(asked))
        texts = [""] * len(asked)
        for _, alike in groupby(order, key=lambda index: (len(asked[index][0]), asked[index][2])):
            for batch, found in run_batches(
                alike, lambda part: self._generate([asked[index] for index in part]), self.batch_size
            ):
                for index, text in zip(batch, found, strict=True):
                    texts[index] = text
                counter.advance(len(batch))
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(context, continuation) for _, context, continuation in requests])

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Score each pair; equal ones once, the longest first, so that memory runs out at the beginning if it does."""
        distinct = {(tuple(given), tuple(scored)): None for given, scored in pairs}
        order = sorted(distinct, key=lambda pair: -len(pair[0]) - len(pair[1]))
        counter = Counter(self._progress, "scoring", len(order))
        scores: dict[Any, tuple[float, bool]] = {}
        self.n_truncated += sum(len(given) + len(scored) > self._max_length + 1 for given, scored in order)
        for batch, found in run_batches(order, self._score_batch, self.batch_size):
            scores |= dict(zip(batch, found, strict=True))
            counter.advance(len(batch))
        return [scores[tuple(given), tuple(scored)] for given, scored in pairs]

    def _score_batch(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, bool]]:
        rows = []
        for given, scored in pairs:
            if len(scored) > self._max_length:
                raise InvalidInput(
                    f"A text to be scored has {len(scored):,} tokens, and n_ctx is {self._max_length:,}.",
                    hint="The network cannot run this task.",
                )
            rows.append(torch.tensor((given + scored)[-(self._max_length + 1) :][:-1]))
        length = max(map(len, rows))
        padded = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
        logits = run_tokens(self.network, padded)  # padding is behind what counts, and attention does not look ahead
        scores = []
        for row, whole, (_, scored) in zip(rows, logits, pairs, strict=True):
            predicted = whole[len(row) - len(scored) : len(row)].double().log_softmax(dim=-1)
            targets = torch.tensor(scored, device=predicted.device)
            value = float(predicted.gather(-1, targets[:, None]).sum())
            scores.append((value, bool((predicted.argmax(dim=-1) == targets).all())))
        return scores

    def _read_request(self, context: str, options: dict[str, Any]) -> tuple[list[int], list[str], int]:
        """Return the tokens of the context, cut to leave room; the stop sequences; and how many tokens to write."""
        read = normalize_gen_kwargs(copy.deepcopy(options), _MAX_NEW_TOKENS)
        if read["do_sample"]:
            raise InvalidInput("The task samples, which is not done here.", hint="Set do_sample to false in its YAML.")
        n_new = read["max_gen_toks"]
        if n_new >= self._max_length:
            raise InvalidInput(
                f"The task wants up to {n_new:,} tokens written, and n_ctx is {self._max_length:,}.",
                hint="Set max_gen_toks in its generation_kwargs.",
            )
        end = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(read["until"], eos=end)
        bos = self.tokenizer.bos_token
        tokens = self.tok_encode(context, add_special_tokens=False if has_bos_prefix(context, bos) else None)
        room = self._max_length - n_new
        self.n_truncated += len(tokens) > room
        return tokens[-room:], until, n_new

    def _generate(self, asked: Sequence[tuple[list[int], list[str], int]]) -> list[str]:
        """Go on with contexts of one length until each has come to a stop sequence, EOS, or its number of tokens."""
        tokens = torch.tensor([context for context, _, _ in asked])
        n_new = asked[0][2]
        written: list[list[int]] = [[] for _ in asked]
        open_rows = set(range(len(asked)))
        cache = TransformerLensKeyValueCache.init_cache(self.network.cfg, self.network.cfg.device, len(asked))
        for _ in range(n_new):
            logits = run_tokens(self.network, tokens, past_kv_cache=cache)[:, -1]
            tokens = logits.argmax(dim=-1, keepdim=True).cpu()
            for row in sorted(open_rows):
                written[row].append(int(tokens[row]))
                text = self.tokenizer.decode(written[row])
                if written[row][-1] == self.eot_token_id or any(stop and stop in text for stop in asked[row][1]):
                    open_rows.discard(row)
            if not open_rows:
                break
        texts = (self.tokenizer.decode(one, skip_special_tokens=True) for one in written)
        return [
            postprocess_generated_text(text, stop=until, think_end_token=None)
            for text, (_, until, _) in zip(texts, asked, strict=True)
        ]
