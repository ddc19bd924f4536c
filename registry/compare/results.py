"""What a comparison of behaviour gives: frozen, and each list of it a DataFrame in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.results import Results, make_frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class PositionChange:
    """What is predicted at one position, over all prompts that reach it: KL in nats, share of equal top-1 tokens."""

    position: int
    n_tokens: int
    kl: float
    top1_agreement: float


@dataclass(frozen=True)
class LayerChange:
    """The residual stream, averaged over tokens: `layer` 0 is before the first block, `n` after block n - 1.

    `cosine` is None where the widths differ; `logit_lens_kl` is that of what ln_final and the unembedding make of it,
    in nats.
    """

    layer: int
    cosine: float | None
    norm_a: float
    norm_b: float
    logit_lens_kl: float


@dataclass(frozen=True)
class HeadBehaviour:
    """The Jensen–Shannon divergence between the attention patterns of one head, in nats, averaged over queries."""

    layer: int
    head: int
    pattern_jsd: float


@dataclass(frozen=True)
class Attribution:
    """What a component adds to the logit of the token that really comes next, averaged over tokens.

    `component` is embed, attention or MLP. The scale of ln_final is that of the run.
    """

    component: str
    layer: int | None
    a: float
    b: float

    @property
    def difference(self) -> float:
        """How much more it adds in `b`."""
        return self.b - self.a


@dataclass(frozen=True)
class HeadAttribution:
    """What one head adds to the logit of the token that really comes next, averaged over tokens."""

    layer: int
    head: int
    a: float
    b: float

    @property
    def difference(self) -> float:
        """How much more it adds in `b`."""
        return self.b - self.a


@dataclass(frozen=True)
class HeadPatterns:
    """The attention patterns of one head that moved, side by side, on the tokens where it moved most.

    `pattern_jsd` is that of the head over all tokens. `a` and `b` hold a row for each query, with its attention to each
    key, to four digits.
    """

    layer: int
    head: int
    pattern_jsd: float
    tokens: tuple[str, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[tuple[float, ...], ...]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame with a row for each query and each key that is not after it."""
        rows = [
            [query, key, self.tokens[query], self.tokens[key], self.a[query][key], self.b[query][key]]
            for query in range(len(self.tokens))
            for key in range(query + 1)
        ]
        return make_frame(["query", "key", "query_token", "key_token", "a", "b"], rows)


@dataclass(frozen=True)
class BehaviourComparison:
    """How two networks differ on the same tokens; KL is of `a`'s next-token distribution from `b`'s, in nats.

    `n_prompts` counts prompts and windows of data; `loss_a` and `loss_b` are of the next token, None where none has two
    tokens. `tokens_digest` is the SHA-256 of the tokens, `data_digest` that of the rows of data that were read,
    `patterns` has the heads that moved most, and `notes` say what could not be compared.
    """

    a: str
    b: str
    n_prompts: int
    n_tokens: int
    tokens_digest: str
    kl: float
    top1_agreement: float
    loss_a: float | None
    loss_b: float | None
    positions: Results[PositionChange]
    layers: Results[LayerChange]
    heads: Results[HeadBehaviour]
    attributions: Results[Attribution]
    head_attributions: Results[HeadAttribution]
    patterns: Results[HeadPatterns]
    processing: tuple[str, ...]
    dtype: str
    data_digest: str | None = None
    notes: tuple[str, ...] = ()
