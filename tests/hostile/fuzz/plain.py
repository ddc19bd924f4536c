"""What a mutated file says, read plainly by the libraries that people use, to compare what was registered with.

Each function returns what differs, in words, or None. Raises NotPlainError where the plain reading itself does not
come to an end: nothing can be compared then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from registry import Registry
from registry.errors import ProcessingConflict, RegistryError
from registry.files import open_files
from registry.quiet import quiet

_TOLERANCE = 1e-3
"""In nats. A right conversion is within 1e-5 here; of what is further off, registering itself has to say so."""
_TEXTS = ("w1 w2 w3", " w1  w17\tw200", "unknown words", "w1w2", "<bos> w5")


class NotPlainError(Exception):
    """The plain reading came to no end, so there is nothing to compare with."""


def differ_as_networks(registry: Registry, ref: str, folder: Path) -> str | None:
    """Compare with the network that transformers reads from the folder."""
    return _differ(registry, ref, folder, lambda: _read_plainly(folder))


def differ_as_gguf(registry: Registry, ref: str, folder: Path) -> str | None:
    """Compare with the network that transformers reads from the GGUF file."""
    return _differ(registry, ref, folder / "model.gguf", lambda: _read_plainly(folder, gguf_file="model.gguf"))


def differ_as_adapters(registry: Registry, ref: str, folder: Path) -> str | None:
    """Compare with what peft makes of the adapter and the base network."""

    def read() -> Any:
        base = _read_plainly(open_files(registry.store, registry.version("base@v1")))
        return peft.PeftModel.from_pretrained(base, str(folder)).to(torch.float64).eval()

    return _differ(registry, ref, folder, read, parent="base")


def differ_as_tokenizers(registry: Registry, ref: str, folder: Path) -> str | None:
    """Compare with what tokenizers makes of tokenizer.json."""
    with quiet():
        ours = registry.load(ref).tokenizer
    if ours is None:
        return "a tokenizer was registered, and the network has none"
    try:
        own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        own.no_truncation()
        own.no_padding()
    except BaseException as error:  # (what a panic of Rust's raises is no Exception)
        raise NotPlainError(str(error)) from error
    added = ours.get_added_vocab()
    for text in _TEXTS:
        if not any(token in text for token in added):
            found, said = ours.encode(text, add_special_tokens=False), own.encode(text, add_special_tokens=False).ids
            if found != said:
                return f"{text!r} is read as {found}, and tokenizer.json says {said}"
    return None


def differ_in_tensors(registry: Registry, ref: str, folder: Path) -> str | None:
    """Compare with what torch reads of a pickle, with weights_only."""
    try:
        plain = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises ten kinds of errors
        raise NotPlainError(str(error)) from error
    if not isinstance(plain, dict) or not all(isinstance(one, torch.Tensor) for one in plain.values()):
        raise NotPlainError("it is nested")
    version = registry.version(ref)
    kept: dict[str, torch.Tensor] = {}
    place = open_files(registry.store, version)
    for file in version.with_role("weights"):
        kept |= load_file(place / file.name)
    if set(kept) != set(plain):
        return f"{sorted(set(kept) ^ set(plain))[:5]} are in one of the two only"
    wrong = [name for name, tensor in kept.items() if not torch.equal(tensor, plain[name])]
    return f"{wrong[:5]} hold other numbers than torch reads" if wrong else None


def differ_in_step(step: int | None, folder: Path) -> str | None:
    """Compare the step with trainer_state.json, as Python reads that."""
    try:
        said = json.loads((folder / "trainer_state.json").read_bytes())["global_step"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotPlainError(str(error)) from error
    return None if step in (None, said) else f"the step is {step}, and trainer_state.json says {said}"


def differ_as_records(registry: Registry, refs: dict[str, str], records: list[dict[str, Any]]) -> str | None:
    """Compare versions that were received with the records of the export, as JSON says them."""
    names = (
        "step",
        "family",
        "fingerprint",
        "architecture",
        "weights_digest",
        "dtype",
        "n_parameters",
        "layout",
        "note",
        "tags",
    )
    for record in records:
        theirs = f"{record['model']}@v{record['number']}"
        version = registry.version(refs[theirs])
        wrong = [name for name in names if getattr(version, name) != record[name]]
        files = sorted((one.name, one.role, one.digest, one.size_bytes) for one in version.files)
        if files != sorted((one["name"], one["role"], one["digest"], one["size_bytes"]) for one in record["files"]):
            wrong.append("files")
        if wrong:
            return f"of {theirs} was received otherwise than the record says: {', '.join(wrong)}"
    return None


def _differ(
    registry: Registry, ref: str, source: Path, read: Callable[[], Any], parent: str | None = None
) -> str | None:
    try:
        with quiet():
            plain = read()
    except Exception as error:  # transformers and peft raise whatever the values lead to
        raise NotPlainError(str(error)) from error
    with quiet():
        try:
            ours = registry.load(ref, processed=False, dtype="float64")
        except ProcessingConflict:
            ours = registry.load(ref, dtype="float64")
        except RegistryError as error:
            raise NotPlainError(f"it is refused when it is loaded: {error.message}") from error
    d_vocab, n_ctx = ours.cfg.d_vocab, ours.cfg.n_ctx
    length = max(1, min(48, n_ctx - 1))
    tokens = torch.arange(2 * length).reshape(2, length) * 7 % d_vocab
    try:
        with torch.inference_mode():
            said = plain(tokens, use_cache=False).logits.log_softmax(-1)
    except Exception as error:
        raise NotPlainError(str(error)) from error
    with torch.inference_mode():
        found = ours(tokens).log_softmax(-1)
    if not bool(said.isfinite().all()):
        raise NotPlainError("the plain network gives no numbers")
    difference = float((found - said).abs().max())
    if difference <= _TOLERANCE:
        return None
    return _ask_parity(registry, source, difference, parent)


def _ask_parity(registry: Registry, source: Path, difference: float, parent: str | None) -> str | None:
    """Ask whether registering as people do, with parity, would have refused; then nobody gets such a network."""
    try:
        registry.register("measured", source, parity="float64", parent=parent or ())
    except RegistryError:
        return None
    return f"the network computes something else than the plain reading: log-probs are {difference:.1e} apart"


def _read_plainly(folder: Path, **options: Any) -> Any:
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    kind = transformers.AutoModelForCausalLM
    named = config.get("architectures") or []
    if len(named) == 1 and named[0].endswith("ForCausalLM"):
        kind = getattr(transformers, named[0], kind)
    network = kind.from_pretrained(
        str(folder), local_files_only=True, dtype=torch.float64, attn_implementation="eager", **options
    )
    if hasattr(network.config, "num_experts_per_tok"):  # transformers's default takes no float64
        network.set_experts_implementation("eager")
    return network.eval()
