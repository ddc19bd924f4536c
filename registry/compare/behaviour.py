"""Run two networks on the same tokens and compare what they predict, layer by layer, head by head, part by part.

One batch at a time: the first network's activations are kept for it, and the second's are compared as they come.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from registry.compare.results import Attribution, BehaviourComparison, HeadBehaviour, LayerChange, PositionChange
from registry.errors import InvalidInput
from registry.progress import Counter, Progress, no_progress
from registry.results import Results

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_BATCH_BYTES = 2**28
_ROWS = 128
"""How many next-token distributions are held in float64 at once."""


def compare_behaviour(
    a: HookedTransformer,
    b: HookedTransformer,
    prompts: Sequence[torch.Tensor],
    *,
    refs: tuple[str, str],
    n_shared_tokens: int,
    processing: Sequence[str] = (),
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> BehaviourComparison:
    """Compare on `prompts`, each the tokens of one, `(n_positions,)`.

    Only the first `n_shared_tokens` of both vocabularies, which mean the same, are predicted. Layers and heads that one
    network lacks are left out, and `notes` say so.
    """
    _check_prompts(prompts, n_shared_tokens, min(a.cfg.n_ctx, b.cfg.n_ctx))
    sums = _Sums()
    counter = Counter(progress, "comparing behaviour", sum(len(prompt) for prompt in prompts))
    with torch.inference_mode():
        for tokens in _make_batches(prompts, a):
            kept = _Kept(a, tokens)
            _compare_batch(kept, _Kept(b, tokens), tokens, n_shared_tokens, sums)
            counter.advance(tokens.numel())
    total = hashlib.sha256()
    for prompt in prompts:
        total.update(repr(prompt.tolist()).encode())
    return sums.finish(refs, len(prompts), total.hexdigest(), processing, str(a.cfg.dtype), [*notes, *_tell(a, b)])


def _check_prompts(prompts: Sequence[torch.Tensor], n_tokens: int, n_ctx: int) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InvalidInput("There is nothing to compare on.", hint="Give one prompt or more, each of a token or more.")
    longest, largest = max(len(prompt) for prompt in prompts), max(int(prompt.max()) for prompt in prompts)
    if longest > n_ctx:
        raise InvalidInput(f"A prompt has {longest:,} tokens, and n_ctx is {n_ctx:,}.", hint="Give shorter ones.")
    if largest >= n_tokens:
        raise InvalidInput(
            f"A prompt holds the token {largest:,}, and only those below {n_tokens:,} are in both vocabularies.",
            hint="Leave it out.",
        )


def _make_batches(prompts: Sequence[torch.Tensor], network: HookedTransformer) -> Iterator[torch.Tensor]:
    """Stack prompts of one length, as many as fit: nothing is padded, so no position means another than it does."""
    by_length: dict[int, list[torch.Tensor]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt)].append(prompt)
    cfg = network.cfg
    for length, group in sorted(by_length.items()):
        per_token = 4 * (cfg.n_layers * (3 * cfg.d_model + cfg.n_heads * length) + cfg.d_vocab)
        size = max(1, _BATCH_BYTES // (2 * per_token * length))
        for start in range(0, len(group), size):
            yield torch.stack(group[start : start + size])


class _Kept:
    """What one network computed on a batch: `(batch, position, …)` for everything but patterns."""

    def __init__(self, network: HookedTransformer, tokens: torch.Tensor) -> None:
        self.network = network
        self.activations: dict[str, torch.Tensor] = {}
        layers = range(network.cfg.n_layers)
        names = ["hook_embed", "hook_pos_embed", "ln_final.hook_scale", "blocks.0.hook_resid_pre"]
        names += [f"blocks.{layer}.{what}" for layer in layers for what in ("hook_resid_post", "hook_attn_out")]
        names += [f"blocks.{layer}.{what}" for layer in layers for what in ("hook_mlp_out", "attn.hook_pattern")]
        hooks = [(name, self._keep) for name in names if name in network.hook_dict]
        self.logits: torch.Tensor = network.run_with_hooks(tokens.to(network.cfg.device), fwd_hooks=hooks)

    def _keep(self, tensor: torch.Tensor, hook: Any) -> None:
        self.activations[hook.name] = tensor.detach()

    def resid(self, layer: int) -> torch.Tensor:
        """The residual stream before block `layer`, or after the last one, `(batch, position, d_model)`."""
        if layer == 0:
            return self.activations["blocks.0.hook_resid_pre"]
        return self.activations[f"blocks.{layer - 1}.hook_resid_post"]

    def pattern(self, layer: int) -> torch.Tensor | None:
        """The attention pattern, `(batch, head, query, key)`."""
        return self.activations.get(f"blocks.{layer}.attn.hook_pattern")

    def read_lens(self, layer: int) -> torch.Tensor:
        """Return the logits that ln_final and the unembedding make of the residual stream there."""
        logits: torch.Tensor = self.network.unembed(self.network.ln_final(self.resid(layer)))
        return logits

    def attribute(self, targets: torch.Tensor) -> dict[tuple[str, int | None], float]:
        """Return what each component adds to the logits of `targets`, `(batch, position - 1)`, summed over them.

        As transformer-lens's `ActivationCache.logit_attrs`: divided by the scale of ln_final, projected on `W_U`.
        """
        norm, network = self.network.ln_final, self.network
        directions = network.W_U.T[targets.to(network.W_U.device)]  # (batch, position - 1, d_model)
        gain = getattr(norm, "w", None)
        if gain is not None:
            directions = directions * gain
        if str(network.cfg.normalization_type or "").startswith("LN") and not network.cfg.final_rms:
            directions = directions - directions.mean(dim=-1, keepdim=True)
        scale = self.activations.get("ln_final.hook_scale")
        if scale is not None:
            directions = directions / scale[:, :-1]
        places: dict[tuple[str, int | None], list[str]] = {("embed", None): ["hook_embed", "hook_pos_embed"]}
        for layer in range(network.cfg.n_layers):
            places["attention", layer] = [f"blocks.{layer}.hook_attn_out"]
            places["MLP", layer] = [f"blocks.{layer}.hook_mlp_out"]
        return {
            place: sum(float((self.activations[name][:, :-1] * directions).sum(dtype=torch.float64)) for name in there)
            for place, names in places.items()
            if (there := [name for name in names if name in self.activations])
        }


@dataclass
class _Sums:
    """Sums over tokens, to be divided by their numbers."""

    n_tokens: int = 0
    n_targets: int = 0
    n_queries: int = 0
    positions: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))
    layers: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0, 0.0]))
    has_cosines: bool = True
    heads: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    attributed: tuple[dict[tuple[str, int | None], float], ...] = field(
        default_factory=lambda: (defaultdict(float), defaultdict(float))
    )

    def finish(
        self,
        refs: tuple[str, str],
        n_prompts: int,
        tokens_digest: str,
        processing: Sequence[str],
        dtype: str,
        notes: Sequence[str],
    ) -> BehaviourComparison:
        """Divide, and give the results."""
        n = self.n_tokens
        positions = [
            PositionChange(position, int(count), kl / count, agreed / count)
            for position, (count, kl, agreed) in sorted(self.positions.items())
        ]
        layers = [
            LayerChange(layer, cosine / n if self.has_cosines else None, norm_a / n, norm_b / n, kl / n)
            for layer, (cosine, norm_a, norm_b, kl) in sorted(self.layers.items())
        ]
        heads = [HeadBehaviour(*place, jsd / self.n_queries) for place, jsd in sorted(self.heads.items())]
        one, other = self.attributed
        attributions = [
            Attribution(
                component, layer, one[component, layer] / self.n_targets, other[component, layer] / self.n_targets
            )
            for component, layer in one
            if (component, layer) in other
        ]
        losses = [loss / self.n_targets for loss in self.losses] if self.n_targets else [None, None]
        return BehaviourComparison(
            *refs,
            n_prompts=n_prompts,
            n_tokens=n,
            tokens_digest=tokens_digest,
            kl=sum(kl for _, kl, _ in self.positions.values()) / n,
            top1_agreement=sum(agreed for _, _, agreed in self.positions.values()) / n,
            loss_a=losses[0],
            loss_b=losses[1],
            positions=Results(positions, PositionChange),
            layers=Results(layers, LayerChange),
            heads=Results(heads, HeadBehaviour),
            attributions=Results(attributions, Attribution),
            processing=tuple(processing),
            dtype=dtype.removeprefix("torch."),
            notes=tuple(notes),
        )


def _compare_batch(a: _Kept, b: _Kept, tokens: torch.Tensor, n_shared: int, sums: _Sums) -> None:
    n_prompts, length = tokens.shape
    sums.n_tokens += tokens.numel()
    sums.n_queries += tokens.numel()
    kl, agreed = compare_logits(a.logits, b.logits, n_shared)
    for position in range(length):
        row = sums.positions[position]
        row[0] += n_prompts
        row[1] += float(kl[:, position].sum())
        row[2] += float(agreed[:, position].sum())
    for layer in range(min(a.network.cfg.n_layers, b.network.cfg.n_layers) + 1):
        _compare_layer(a, b, layer, n_shared, sums)
    if length < 2:
        return
    sums.n_targets += n_prompts * (length - 1)
    for which, kept in enumerate((a, b)):
        sums.losses[which] += _sum_losses(kept.logits[..., :n_shared], tokens)
        for place, value in kept.attribute(tokens[:, 1:]).items():
            sums.attributed[which][place] += value


def _compare_layer(a: _Kept, b: _Kept, layer: int, n_shared: int, sums: _Sums) -> None:
    one, other = a.resid(layer).double(), b.resid(layer).double()
    row = sums.layers[layer]
    if one.shape == other.shape:
        row[0] += float(torch.nn.functional.cosine_similarity(one, other, dim=-1).sum())
    else:
        sums.has_cosines = False
    row[1] += float(one.norm(dim=-1).sum())
    row[2] += float(other.norm(dim=-1).sum())
    row[3] += float(compare_logits(a.read_lens(layer), b.read_lens(layer), n_shared)[0].sum())
    patterns = (kept.pattern(layer) if layer < kept.network.cfg.n_layers else None for kept in (a, b))
    old, new = patterns
    if old is not None and new is not None and old.shape == new.shape:
        for head, value in enumerate(_diverge(old.double(), new.double()).sum(dim=(0, 2)).tolist()):
            sums.heads[layer, head] += value


def compare_logits(a: torch.Tensor, b: torch.Tensor, n_shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(a || b) in nats and whether the top-1 tokens agree, each `(batch, position)`.

    Only the first `n_shared` tokens of the vocabularies count.
    """
    shape = a.shape[:-1]
    one, other = (logits[..., :n_shared].reshape(-1, n_shared) for logits in (a, b))
    divergences = []
    for start in range(0, len(one), _ROWS):
        old, new = (logits[start : start + _ROWS].double().log_softmax(dim=-1) for logits in (one, other))
        divergences.append((old.exp() * (old - new)).sum(dim=-1))
    agreed = one.argmax(dim=-1) == other.argmax(dim=-1)
    return torch.cat(divergences).reshape(shape), agreed.reshape(shape)


def _diverge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the Jensen–Shannon divergence of distributions along the last axis, in nats."""
    middle = (a + b) / 2

    def terms(one: torch.Tensor) -> torch.Tensor:
        term: torch.Tensor = torch.special.xlogy(one, one / middle.clamp(min=torch.finfo(torch.float64).tiny))
        return term.sum(dim=-1)

    return (terms(a) + terms(b)) / 2


def _sum_losses(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    total = 0.0
    for row, targets in zip(logits, tokens.to(logits.device), strict=True):
        total += float(torch.nn.functional.cross_entropy(row[:-1].double(), targets[1:], reduction="sum"))
    return total


def _tell(a: HookedTransformer, b: HookedTransformer) -> Iterator[str]:
    """Say what the two networks have not in common."""
    if a.cfg.n_layers != b.cfg.n_layers:
        n = min(a.cfg.n_layers, b.cfg.n_layers)
        yield f"They have {a.cfg.n_layers} and {b.cfg.n_layers} layers: the first {n} were compared."
    if a.cfg.d_model != b.cfg.d_model:
        yield f"d_model is {a.cfg.d_model} and {b.cfg.d_model}: residual streams have no cosine."
    if a.cfg.n_heads != b.cfg.n_heads:
        yield f"n_heads is {a.cfg.n_heads} and {b.cfg.n_heads}: attention patterns were not compared."
    if a.cfg.d_vocab != b.cfg.d_vocab:
        yield f"d_vocab is {a.cfg.d_vocab:,} and {b.cfg.d_vocab:,}: only the tokens of both are predicted."
