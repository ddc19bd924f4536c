"""Run two networks on the same tokens and compare what they predict, layer by layer, head by head, part by part.

One batch at a time: the first network's activations are kept for it, in memory or in a file, and the second's are
compared as they come. Both ways give the same numbers.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from registry.compare.capture import Kept, keep, name_residual, run
from registry.compare.divergence import compare_logits, count_rows, diverge
from registry.compare.kept_files import open_kept_files, read_room_bytes
from registry.compare.memory import have_room
from registry.compare.patterns import Spell
from registry.compare.readout import Readout
from registry.compare.results import BehaviourComparison
from registry.compare.sums import Sums
from registry.errors import InvalidInput
from registry.progress import Counter, Progress, no_progress

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_BATCH_BYTES = 2**26


@dataclass(frozen=True)
class Side:
    """One of the two networks: its ref, its architecture, how to load it, and how many bytes it takes."""

    ref: str
    architecture: Mapping[str, Any]
    load: Callable[[], HookedTransformer]
    n_bytes: int


def compare_behaviour(
    a: Side,
    b: Side,
    prompts: Sequence[torch.Tensor],
    *,
    n_shared_tokens: int,
    spell: Spell,
    dtype: torch.dtype,
    device: str,
    one_at_a_time: bool | None = None,
    processing: Sequence[str] = (),
    data_digest: str | None = None,
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> BehaviourComparison:
    """Compare on `prompts`, each the tokens of one, `(n_positions,)`.

    Only the first `n_shared_tokens` of both vocabularies, which mean the same, are predicted. Layers and heads that one
    network lacks are left out, and `notes` say so. With `one_at_a_time` only one of the networks is in memory, and what
    the first computed in temporary files; None: if that takes less. Raises StorageFull if the files have no room.
    """
    _check_prompts(prompts, n_shared_tokens, min(one.architecture["n_ctx"] for one in (a, b)))
    per_token = count_bytes(a.architecture, dtype)
    batches = list(_make_batches(prompts, per_token))
    kept_bytes = sum(tokens.numel() * per_token(tokens.shape[1]) for tokens in batches)
    if one_at_a_time is None:
        one_at_a_time = choose_one_at_a_time(a, b, kept_bytes, device)
    sums = Sums()
    counter = Counter(progress, "comparing behaviour", 2 * sum(len(prompt) for prompt in prompts))
    with torch.inference_mode():
        if one_at_a_time:
            _compare_in_turn(a, b, batches, kept_bytes, n_shared_tokens, sums, counter)
        else:
            _compare_together(a, b, batches, n_shared_tokens, sums, counter)
    said = [*notes, *_tell(a.architecture, b.architecture)]
    return sums.finish((a.ref, b.ref), prompts, spell, processing, str(dtype), data_digest, said)


def choose_one_at_a_time(a: Side, b: Side, kept_bytes: int, device: str) -> bool:
    """Say whether one network at a time takes less: what is kept of `a` is less than it, or both have no room."""
    if not have_room(a.n_bytes + b.n_bytes + 2 * _BATCH_BYTES, device):
        return True
    return kept_bytes < min(a.n_bytes, read_room_bytes())


def _compare_together(
    a: Side, b: Side, batches: Sequence[torch.Tensor], n_shared: int, sums: Sums, counter: Counter
) -> None:
    first, second = a.load(), b.load()
    readouts = _pair(Readout(first), Readout(second))
    for tokens in batches:
        # without a name, what is kept of one batch is gone when the next one runs
        _compare_batch(keep(first, readouts[0], tokens), second, readouts, tokens, n_shared, sums)
        counter.advance(2 * tokens.numel())


def _compare_in_turn(
    a: Side,
    b: Side,
    batches: Sequence[torch.Tensor],
    kept_bytes: int,
    n_shared: int,
    sums: Sums,
    counter: Counter,
) -> None:
    with open_kept_files(kept_bytes) as files:
        network = a.load()
        readout = Readout(network)
        for tokens in batches:
            files.write(keep(network, readout, tokens))
            counter.advance(tokens.numel())
        del network
        gc.collect()  # a network's hooks refer to each other
        network = b.load()
        readouts = _pair(readout, Readout(network))
        del readout
        for index, tokens in enumerate(batches):
            _compare_batch(files.take(index), network, readouts, tokens, n_shared, sums)
            counter.advance(tokens.numel())


def _pair(first: Readout, second: Readout) -> tuple[Readout, Readout]:
    """Give the readouts of both, as one and the same where they are alike: training often leaves them as they were."""
    return (second if first.is_like(second) else first), second


def _compare_batch(
    kept: Kept,
    network: HookedTransformer,
    readouts: tuple[Readout, Readout],
    tokens: torch.Tensor,
    n_shared: int,
    sums: Sums,
) -> None:
    """Run the second network on a batch, and compare what it computes with what is kept of the first."""
    streams: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    last: list[torch.Tensor] = []

    def take(name: str, new: torch.Tensor) -> None:
        old = kept.activations.get(name)
        kind, layer = name.split(".")
        if name == name_residual(readouts[1].n_layers):
            last.append(new)
        if old is None:  # a layer that the first has not
            return
        old = old.to(new.device)
        if kind == "residual":
            sums.add_residuals(int(layer), old, new)
            streams[int(layer)] = old, new
        elif old.shape == new.shape:
            sums.add_patterns(int(layer), old, new, diverge(old.double(), new.double()), tokens)

    attributed = run(network, readouts[1], tokens, take)
    for which, one in enumerate((kept.attributed, attributed)):
        sums.add_attributed(which, one)
    sums.add_lens(_sum_lens_kl(readouts, streams, n_shared))
    old = kept.activations[name_residual(readouts[0].n_layers)].to(last[0].device)
    sums.add_predictions(*_compare_predictions(readouts, old, last[0], tokens, n_shared))


def _sum_lens_kl(
    readouts: tuple[Readout, Readout], streams: Mapping[int, tuple[torch.Tensor, torch.Tensor]], n_shared: int
) -> dict[int, float]:
    """Return the KL that the logit lens reads in residual streams, summed over tokens, by layer.

    All layers at once: the unembedding is read from memory for as many rows as there are at a time, and not for each.
    """
    equal = {layer for layer, (old, new) in streams.items() if torch.equal(old, new)}
    if equal and readouts[0] is not readouts[1]:
        equal = set()
    found = dict.fromkeys(equal, 0.0)  # lower layers are often frozen in training, and the lens is what takes longest
    moved = [layer for layer in streams if layer not in equal]
    if moved:
        old, new = (torch.cat([streams[layer][side].flatten(0, 1) for layer in moved]) for side in (0, 1))
        kl = torch.empty(len(old), dtype=torch.float64, device=old.device)
        for rows in _split(len(old), n_shared):
            kl[rows], _ = compare_logits(readouts[0].read(old[rows]), readouts[1].read(new[rows]), n_shared)
        found.update(zip(moved, kl.reshape(len(moved), -1).sum(dim=1).tolist(), strict=True))
    return found


def _compare_predictions(
    readouts: tuple[Readout, Readout], old: torch.Tensor, new: torch.Tensor, tokens: torch.Tensor, n_shared: int
) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Return KL and whether the top-1 tokens agree, each `(batch, position)`, and the summed losses of both."""
    # what comes after the last token of each row nobody knows
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-1).flatten().to(new.device)
    old, new = old.flatten(0, 1), new.flatten(0, 1)
    kl = torch.empty(len(old), dtype=torch.float64, device=new.device)
    agreed = torch.empty_like(targets, dtype=torch.bool)
    losses = [0.0, 0.0]
    for rows in _split(len(old), n_shared):
        a, b = readouts[0].predict(old[rows]), readouts[1].predict(new[rows])
        kl[rows], agreed[rows] = compare_logits(a, b, n_shared)
        for which, logits in enumerate((a, b)):
            said = logits[:, :n_shared].double()
            losses[which] += float(
                torch.nn.functional.cross_entropy(said, targets[rows], ignore_index=-1, reduction="sum")
            )
    return kl.reshape(tokens.shape), agreed.reshape(tokens.shape), losses


def _split(n_rows: int, n_shared: int) -> Iterator[slice]:
    """Give as many rows at a time as logits are made of at once.

    What is found of them belongs into a tensor that was made before: a new small one, kept after large ones were freed,
    takes a place among them that no large one fits into again, and memory grew by the logits of every step.
    """
    step = count_rows(n_shared)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def count_bytes(architecture: Mapping[str, Any], dtype: torch.dtype) -> Callable[[int], int]:
    """Return how many bytes of activations are kept for each token of a prompt, by the length of that."""
    layers, width, heads = (int(architecture[name]) for name in ("n_layers", "d_model", "n_heads"))
    return lambda length: dtype.itemsize * ((layers + 1) * width + layers * heads * length)


def _make_batches(prompts: Sequence[torch.Tensor], per_token: Callable[[int], int]) -> Iterator[torch.Tensor]:
    """Stack prompts of one length, as many as fit: nothing is padded, so no position means another than it does."""
    by_length: dict[int, list[torch.Tensor]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt)].append(prompt)
    for length, group in sorted(by_length.items()):
        size = max(1, _BATCH_BYTES // (per_token(length) * length))
        for start in range(0, len(group), size):
            yield torch.stack(group[start : start + size])


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


def _tell(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Say what the two networks have not in common."""
    if a["n_layers"] != b["n_layers"]:
        n = min(a["n_layers"], b["n_layers"])
        yield f"They have {a['n_layers']} and {b['n_layers']} layers: the first {n} were compared."
    if a["d_model"] != b["d_model"]:
        yield f"d_model is {a['d_model']} and {b['d_model']}: residual streams have no cosine."
    if a["n_heads"] != b["n_heads"]:
        yield f"n_heads is {a['n_heads']} and {b['n_heads']}: attention patterns were not compared."
    if a["d_vocab"] != b["d_vocab"]:
        yield f"d_vocab is {a['d_vocab']:,} and {b['d_vocab']:,}: only the tokens of both are predicted."
