"""Train a small network with Hugging Face's Trainer, follow the run, and write what is printed into docs/trace.md.

The base is trained on the pages of this documentation; the run goes on from it, on pirates' talk, with its lower layers
frozen. It takes a minute: python -m docs.write_trace_page
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

DOCS = Path(__file__).parent
PAGE = DOCS / "trace.md"
PIRATE = DOCS.parent / "cli" / "demo" / "pirate.txt"
N_TOKENS, N_LAYERS, N_FROZEN = 48, 6, 3
N_BASE, N_RUN = 120, 60


def train_run(folder: Path) -> None:
    """Train the base and the run, and leave them in `base` and `run` within the folder."""
    pages = "\n\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")) if path != PAGE)
    pirate = PIRATE.read_text()
    tokenizer = _train_tokenizer([pages, pirate])
    torch.set_num_threads(1)  # or the figures depend on the machine
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=64,
        n_layer=N_LAYERS,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = GPT2LMHeadModel(config)
    rows = _cut(tokenizer, pages)
    _train(network, tokenizer, rows[:-16], rows[-16:], folder / "base", N_BASE, 3e-3)
    for layer in network.transformer.h[:N_FROZEN]:
        layer.requires_grad_(False)
    half = len(pirate) // 2
    (folder / "held-out.jsonl").write_text(json.dumps({"text": pirate[half:]}) + "\n")
    _train(
        network, tokenizer, _cut(tokenizer, pirate[:half]), _cut(tokenizer, pirate[half:]), folder / "run", N_RUN, 1e-3
    )


def _train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


def _cut(tokenizer: PreTrainedTokenizerFast, text: str) -> list[dict[str, torch.Tensor]]:
    ids = torch.tensor(tokenizer(text).input_ids)
    rows = ids[: len(ids) // N_TOKENS * N_TOKENS].reshape(-1, N_TOKENS)
    return [{"input_ids": row, "labels": row} for row in rows]


def _train(
    network: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, torch.Tensor]],
    held_out: list[dict[str, torch.Tensor]],
    out: Path,
    n_steps: int,
    rate: float,
) -> None:
    every = n_steps // 6
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=n_steps, learning_rate=rate, per_device_train_batch_size=8, use_cpu=True,
        logging_steps=max(1, n_steps // 30), eval_strategy="steps", eval_steps=every, save_steps=every,
        save_only_model=True, report_to=[], disable_tqdm=True, seed=0, weight_decay=0.0,
    )  # fmt: skip
    collected: Any = rows
    Trainer(
        network,
        arguments,
        train_dataset=collected,
        eval_dataset=held_out,
        processing_class=tokenizer,  # type: ignore[arg-type]
    ).train()


def write_page(page: str, folder: Path) -> str:
    """Register what was trained, and return the page with what its commands print now."""
    environment = {**os.environ, "LENSREG_HOME": str(folder / "home"), "PYTHONWARNINGS": "ignore"}

    def run(command: str) -> str:
        arguments = [sys.executable, "-m", "cli.main", *command.split()[1:]]
        done = subprocess.run(arguments, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        return done.stdout + "".join(f"{line}\n" for line in done.stderr.splitlines() if not line.startswith("wrote"))

    for command in (
        f"lensreg add base base/checkpoint-{N_BASE}",
        "lensreg add-run pirate run --parent base",
        "lensreg validate "
        + " ".join(f"pirate@v{number}" for number in range(1, 7))
        + " --suite loss --data held-out.jsonl",
    ):
        run(command)

    def print_again(block: re.Match[str]) -> str:
        drawn = f" --picture {DOCS / 'images' / 'trace.svg'}" if "--drift" in block[1] else ""
        return f"```console\n$ {block[1]}\n{run(block[1] + drawn)}```"

    return re.sub(r"```console\n\$ (lensreg trace [^\n]*)\n.*?```", print_again, page, flags=re.DOTALL)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        train_run(Path(scratch))
        PAGE.write_text(write_page(PAGE.read_text(), Path(scratch)))
