"""The ways to load one network, each run by a worker in a process of its own.

Every way warms up on a tiny network of the same family, so that what it imports and sets up once is over.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.cache import chill, list_files, warm
from benchmarks.checkpoints import Shape, make_tokenizer, save_checkpoint
from benchmarks.worker import Way

WAYS = __name__
N_PROBE = 16
logging.disable_progress_bar()


class LoadWay(Way):
    """Loads `what`, after it has loaded `tiny`; both are of the way's own kind."""

    def __init__(self, what: str, tiny: str, dtype: str, places: list[str]) -> None:
        self.what, self.dtype, self.places = what, getattr(torch, dtype), [Path(place) for place in places]
        self.set_up()
        self.probe(self.load(tiny))

    def set_up(self) -> None:
        """Import what there is to import."""

    def load(self, what: str) -> Any:
        """Return the network, ready to run."""
        raise NotImplementedError

    def prepare(self, request: Mapping[str, Any]) -> None:
        if "place" in request:
            self.places = [Path(request["place"])]
            os.chdir(self.places[0])
        files = list_files(*self.places)  # after the first load there may be more of them
        if request["cold"]:
            chill(files)
        else:
            warm(files)

    def run(self, request: Mapping[str, Any]) -> Any:
        network = self.load(request.get("what", self.what))
        if "text" in request:  # a tokenizer may be read no earlier than it is used
            self.read_text(network, request["text"])
        return network

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        if not request.get("forward", True):
            return {}
        start = time.perf_counter()
        log_probs = self.probe(result)
        return {"forward_seconds": time.perf_counter() - start, "log_probs": log_probs}

    def read_text(self, network: Any, text: str) -> None:
        """Turn a text into tokens."""
        network.to_tokens(text)

    @torch.inference_mode()
    def probe(self, network: Any) -> list[float]:
        """Run the network once, and return some of its log-probs."""
        tokens = (torch.arange(N_PROBE) * 7919 % 200).unsqueeze(0)
        some: list[float] = network(tokens)[0, :, :100].float().log_softmax(-1).flatten().tolist()
        return some


class Registered(LoadWay):
    """Ours; `what` is a ref, and `places` are the folders of the database and the blobs."""

    def set_up(self) -> None:
        from registry import Registry

        self.registry = Registry(str(self.places[0] / "registry.db"), self.places[0] / "store")

    def load(self, what: str) -> Any:
        return self.registry.load(what, dtype=self.dtype, device="cpu")

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        if "export" in request:
            _export(result, Path(request["export"]))
        return super().finish(result, request)


def _export(network: Any, folder: Path) -> None:
    """Save a HookedTransformer as people do, as a state dict and its config, and as safetensors."""
    from safetensors.torch import save_file

    torch.save(network.cfg.to_dict() | {"tokenizer_name": None}, folder / "cfg.pt")
    torch.save(network.state_dict(), folder / "state.pt")
    save_file({name: value.detach() for name, value in network.named_parameters()}, folder / "hooked.safetensors")


class FromPretrained(LoadWay):
    """`HookedTransformer.from_pretrained`, processed as it does by default.

    It takes only names that it knows. A folder of that name below the working folder is where it then looks first, so
    that nothing is asked of the Hub or its cache; `places` says where.
    """

    def set_up(self) -> None:
        from transformer_lens import HookedTransformer

        os.chdir(self.places[0])
        self.network_class = HookedTransformer
        self.tokenizer = make_small_tokenizer(self.places[0])

    def load(self, what: str) -> Any:
        tokenizer = None if (Path(what) / "tokenizer.json").is_file() else self.tokenizer
        return self.network_class.from_pretrained(what, tokenizer=tokenizer, dtype=self.dtype, device="cpu")


def make_small_tokenizer(below: Path) -> Any:
    """Make a tokenizer to hand over where one is demanded and none is to be measured; it is read again from disk."""
    from transformers import AutoTokenizer

    folder = below / "small-tokenizer"
    make_tokenizer(300).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


class _FromConfig(LoadWay):
    """A network of our own building; `what` is a folder with an exported network."""

    def set_up(self) -> None:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        self.network_class, self.config_class = HookedTransformer, HookedTransformerConfig

    def read_config(self, folder: str) -> Any:
        return self.config_class.from_dict(torch.load(Path(folder) / "cfg.pt", weights_only=False))


class StateDict(_FromConfig):
    """`HookedTransformer(cfg)`, not initialised, and `load_state_dict(torch.load(…))`."""

    def load(self, what: str) -> Any:
        network = self.network_class(self.read_config(what))
        network.load_state_dict(torch.load(Path(what) / "state.pt", weights_only=True))
        return network


class Bare(_FromConfig):
    """What is left when nothing is checked: the network on the meta device, and `safetensors.torch.load_file`."""

    def set_up(self) -> None:
        from safetensors.torch import load_file

        super().set_up()
        self.load_file = load_file

    def load(self, what: str) -> Any:
        cfg = self.read_config(what)
        with torch.device("meta"):
            network = self.network_class(cfg, move_to_device=False)
        network.load_state_dict(self.load_file(Path(what) / "hooked.safetensors"), strict=False, assign=True)
        for block in network.blocks:
            attention = block.attn
            attention.mask = torch.empty((0, 0), dtype=torch.bool)
            attention.IGNORE = torch.tensor(-torch.inf)
            attention.rotary_sin, attention.rotary_cos = attention.calculate_sin_cos_rotary(
                cfg.rotary_dim,
                min(cfg.n_ctx, attention.ROTARY_INITIAL_CACHE_SIZE),
                base=attention._rotary_base(),
                dtype=cfg.dtype,
            )
        return network.eval()


class Bridge(LoadWay):
    """A TransformerBridge of a local folder in compatibility mode, which processes the weights."""

    def set_up(self) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.network_class = TransformerBridge
        self.tokenizer = make_small_tokenizer(self.places[0])

    def load(self, what: str) -> Any:
        bridge = self.network_class.boot_transformers(what, tokenizer=self.tokenizer, dtype=self.dtype, device="cpu")
        bridge.enable_compatibility_mode()
        return bridge


class Tokenizer(LoadWay):
    """transformers's tokenizer alone, of a local folder."""

    def load(self, what: str) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(what)

    def read_text(self, network: Any, text: str) -> None:
        network(text)

    def probe(self, network: Any) -> list[float]:
        return []


class MakeCheckpoint(Way):
    """Make a checkpoint, or a tokenizer beside one; what that imports stays out of the caller."""

    def run(self, request: Mapping[str, Any]) -> Any:
        if "tokenizer" in request:
            return make_tokenizer(request["n_tokens"]).save_pretrained(request["tokenizer"])
        shape = Shape(**json.loads(request["shape"]))
        return save_checkpoint(Path(request["folder"]), shape, n_files=request.get("n_files", 1))

    def finish(self, result: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"n_parameters": result if isinstance(result, int) else None}


class RegisterOnce(Way):
    """Register a checkpoint without verification."""

    def __init__(self, home: str) -> None:
        from registry import Registry

        self.registry = Registry(str(Path(home) / "registry.db"), Path(home) / "store")

    def run(self, request: Mapping[str, Any]) -> Any:
        return self.registry.register(request["name"], request["source"], parity="skip")
