"""The suite `accuracy`: multiple choice and cloze, from JSON lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from registry.errors import InvalidInput, MalformedArtifact
from registry.progress import Counter
from registry.validation.batches import run_batches
from registry.validation.data import PATH, Data, digest_again
from registry.validation.metric import Measured, Metric
from registry.validation.subject import Subject

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Question:
    """A prompt with the texts that may follow it and which of them is right; one text alone is a cloze."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Accuracy:
    """Share of questions that are answered rightly.

    A line is `{"prompt": …, "choices": […], "answer": 0}` (a number, or the right choice itself), or the cloze
    `{"prompt": …, "answer": " Paris"}`. The choice with the largest summed log-prob is taken (`accuracy`), or with the
    largest one per byte (`accuracy_per_byte`, what lm-eval calls acc_norm); a cloze is right if every token of it is
    the top-1 token.

    Args:
        data: a .jsonl file, or a dataset that `datasets` saved.
        max_samples: stop after so many questions.
        batch_size: how many texts run at once; halved where memory runs out.
    """

    name: ClassVar[str] = "accuracy"
    version: ClassVar[str] = "1"

    data: str = field(metadata=PATH)
    max_samples: int | None = None
    batch_size: int = 8

    def digest_data(self, extent: Mapping[str, Any] | None) -> str | None:
        """Return the digest of the data as they are now."""
        return digest_again(self.data, extent)

    def run(self, subject: Subject) -> Measured:
        """Measure `accuracy`, and `accuracy_per_byte` of multiple choice."""
        network = subject.load()
        data = Data(self.data)
        questions = []
        for row in data.read_rows():
            questions.append(read_question(row, data))
            if len(questions) == self.max_samples:
                break
        if not questions:
            raise InvalidInput(f"{self.data} holds no question.", hint="Give lines with a prompt and an answer.")
        kinds = {len(question.choices) > 1 for question in questions}
        if len(kinds) > 1:
            raise InvalidInput(f"{self.data} holds both multiple choice and cloze.", hint="Give a file for each.")
        counter = Counter(subject.progress, "asking", len(questions))
        asked = [(index, choice) for index, one in enumerate(questions) for choice in range(len(one.choices))]
        scores: dict[tuple[int, int], tuple[float, bool]] = {}
        for batch, found in run_batches(asked, lambda part: _score(network, questions, part), self.batch_size):
            scores |= dict(zip(batch, found, strict=True))
            counter.advance(sum(choice == 0 for _, choice in batch))
        if kinds == {False}:
            right = sum(scores[index, 0][1] for index in range(len(questions)))
            return Measured([_describe("accuracy", right, len(questions))], data.digest, extent=data.extent)
        by_sum = sum(_choose(scores, index, one, per_byte=False) == one.answer for index, one in enumerate(questions))
        by_byte = sum(_choose(scores, index, one, per_byte=True) == one.answer for index, one in enumerate(questions))
        n = len(questions)
        return Measured(
            [_describe("accuracy", by_sum, n), _describe("accuracy_per_byte", by_byte, n)],
            data.digest,
            extent=data.extent,
        )


def read_question(row: Mapping[str, Any], data: Data) -> Question:
    """Read one row. Raises MalformedArtifact."""
    prompt, choices, answer = row.get("prompt"), row.get("choices"), row.get("answer")
    if choices is None and isinstance(answer, str):
        choices = [answer]
    if isinstance(prompt, str) and isinstance(choices, list) and choices and all(_is_text(one) for one in choices):
        if isinstance(answer, str) and answer in choices:
            answer = choices.index(answer)
        if type(answer) is int and 0 <= answer < len(choices):
            return Question(prompt, tuple(choices), answer)
    raise MalformedArtifact(
        f"Row {data.n_rows:,} of {data.location} is no question: it has {', '.join(map(repr, sorted(row)))}.",
        hint='Write {"prompt": "…", "choices": ["…", "…"], "answer": 0}, or {"prompt": "…", "answer": "…"}.',
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _score(
    network: HookedTransformer, questions: Sequence[Question], asked: Sequence[tuple[int, int]]
) -> list[tuple[float, bool]]:
    """Return of each choice its summed log-prob in nats, and whether all of its tokens are top-1."""
    rows = []
    for index, choice in asked:
        prompt, text = questions[index].prompt, questions[index].choices[choice]
        whole = network.to_tokens(prompt + text, truncate=False)[0]
        n_prompt = len(network.to_tokens(prompt, truncate=False)[0])
        if len(whole) > network.cfg.n_ctx:
            raise InvalidInput(
                f"Question {index + 1:,} has {len(whole):,} tokens, and n_ctx is {network.cfg.n_ctx:,}.",
                hint="Leave it out, or make its prompt shorter.",
            )
        # a token may reach over the border between prompt and choice; it counts as the choice's
        rows.append((whole, min(n_prompt, len(whole) - 1)))
    length = max(len(tokens) for tokens, _ in rows)
    padded = torch.stack([torch.nn.functional.pad(tokens, (0, length - len(tokens))) for tokens, _ in rows])
    with torch.inference_mode():
        logits = network(padded)  # padding is behind what counts, and attention does not look ahead
    scores = []
    for row, (tokens, start) in zip(logits, rows, strict=True):
        predicted = row[start - 1 : len(tokens) - 1].double().log_softmax(dim=-1)
        targets = tokens[start:]
        scores.append(
            (
                float(predicted.gather(-1, targets[:, None]).sum()),
                bool((predicted.argmax(dim=-1) == targets).all()),
            )
        )
    return scores


def _choose(
    scores: Mapping[tuple[int, int], tuple[float, bool]], index: int, question: Question, *, per_byte: bool
) -> int:
    def score(choice: int) -> float:
        length = len(question.choices[choice].encode(errors="replace")) if per_byte else 1
        return scores[index, choice][0] / length

    return max(range(len(question.choices)), key=score)


def _describe(name: str, n_right: int, n: int) -> Metric:
    low, high = wilson_interval(n_right, n)
    details = {"n_right": n_right, "low": low, "high": high, "confidence": 0.95}
    return Metric(name, n_right / n, "share", "higher", n, details=details)


def wilson_interval(n_right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    share = n_right / n
    middle = share + z**2 / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - spread) / (1 + z**2 / n)), min(1.0, (middle + spread) / (1 + z**2 / n))
