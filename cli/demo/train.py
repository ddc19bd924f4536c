"""Fine-tune a small model briefly, as anybody would with Hugging Face: nothing here knows of the registry."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from registry.quiet import quiet

N_TOKENS = 96
N_TRAINED_LAYERS = 10


def fine_tune(base: Path, text: str, out: Path, steps: int, report: Callable[[int, float], None]) -> None:
    """Train the upper layers of the model in `base` on `text` for some steps of AdamW, and save it all in `out`."""
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base)
    model.requires_grad_(False)
    upper_layers = model.model.layers[-N_TRAINED_LAYERS:].requires_grad_(True)
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    rows = ids[: len(ids) // N_TOKENS * N_TOKENS].reshape(-1, N_TOKENS)
    optimizer = torch.optim.AdamW(upper_layers.parameters(), lr=2e-4)
    model.train()
    for step in range(steps):
        batch = rows[torch.randint(len(rows), (2,))]
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, float(loss.detach()))
    with quiet():
        model.eval().save_pretrained(out)
        tokenizer.save_pretrained(out)


def measure_plain_load(folder: Path, reference: Path, text: str) -> tuple[int, float]:
    """Load a folder the usual way; return how many complaints came, and how far its log-probs are off the reference's.

    A complaint is a warning, a log line at warning level, or a tensor that could not be placed.
    """
    with quiet():
        ids = AutoTokenizer.from_pretrained(reference)(text, return_tensors="pt").input_ids
        expected = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    complaints = _Complaints()
    logging.getLogger("transformers").addHandler(complaints)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(complaints)
    n_complaints = len(heard) + complaints.count + sum(len(value) for value in info.values())
    with torch.inference_mode():
        difference = model(ids).logits.log_softmax(-1) - expected(ids).logits.log_softmax(-1)
    return n_complaints, float(difference.abs().max())


class _Complaints(logging.Handler):
    """Counts log lines from warnings upwards."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
