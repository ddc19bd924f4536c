"""The suite `parity`: measured again as when registering, or in any dtype on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from registry.architecture import Architecture
from registry.validation.metric import Measured, Metric
from registry.validation.subject import Subject
from registry.verify import Parity, make_probe

if TYPE_CHECKING:
    from registry.store import LocalStore
    from registry.versions import Version

_AS_REGISTERED = ("float64", "float32")


@dataclass(frozen=True)
class ParityAgain:
    """The largest difference of log-probs between the source and the converted network, raw and processed.

    In float64 (the default) or float32 on the CPU it is what registering measures, with its bound. Any other dtype or
    device is a suite of its own, `parity-bfloat16` say: how far the network that is handed out there is from its
    source in that very dtype; no bound is known for it, so it passes by a threshold or not at all.
    """

    name: ClassVar[str] = "parity"
    version: ClassVar[str] = "1"

    def record_as(self, subject: Subject) -> str:
        """Return the name that it is recorded under, also if it fails: what is known of `parity` stays."""
        dtype, device = _read_place(subject)
        if dtype in _AS_REGISTERED and device == "cpu":
            return self.name
        return f"parity-{dtype}" + ("" if device == "cpu" else f"-{device.partition(':')[0]}")

    def run(self, subject: Subject) -> Measured:
        """Measure `raw` and `processed`, or `bridge` where there is no HookedTransformer."""
        dtype, device = _read_place(subject)
        if dtype in _AS_REGISTERED and device == "cpu":
            parity = measure_again(subject.registry.store, subject.version, getattr(torch, dtype), subject)
            details = {"noise_floor": parity.noise_floor, "processing": list(parity.processing)}
            metrics = [
                Metric(name, value, "nats", "lower", parity.n_tokens, parity.bound, value <= parity.bound, details)
                for name, value in parity.measured.items()
            ]
            return Measured(metrics, parity.probe_digest, dtype=parity.dtype)
        return Measured(list(_measure_there(subject, device)), suite=self.record_as(subject), dtype=dtype)


def _read_place(subject: Subject) -> tuple[str, str]:
    return subject.dtype or "float64", subject.device or "cpu"


def measure_again(store: LocalStore, version: Version, dtype: torch.dtype, subject: Subject) -> Parity:
    """Measure parity of a registered version from the store, as when it was registered."""
    from registry.files import open_files
    from registry.load import open_version

    if version.layout == "hooked":
        from registry.verify_hooked import measure_hooked_parity

        folder = open_files(store, version, subject.progress)
        files = [folder / file.name for file in version.with_role("weights")]
        architecture = Architecture(version.architecture)
        return measure_hooked_parity(
            architecture, version.processing or (), files, dtype=dtype, progress=subject.progress
        )
    from registry.verify import measure_parity as measure

    opened = open_version(store, version, subject.progress, "changed")
    if opened.family.convert is None:
        from registry.bridge import measure_bridge_parity as measure
    files = [opened.folder / file.name for file in version.with_role("weights")]
    return measure(opened.family, opened.values, opened.architecture, files, dtype=dtype, progress=subject.progress)


def _measure_there(subject: Subject, device: str) -> Iterator[Metric]:
    """Measure what is handed out in the subject's dtype on its device against the source there."""
    probe = make_probe(Architecture(subject.version.architecture)).to(device)
    with torch.inference_mode():
        expected = subject.load_source()(probe).logits.double().log_softmax(-1)
        for name, load in _list_networks(subject):
            found = load()(probe).double().log_softmax(-1)
            yield Metric(name, float((found - expected).abs().max()), "nats", "lower", probe.numel())


def _list_networks(subject: Subject) -> list[tuple[str, Callable[[], Any]]]:
    from registry.families import find_family_by_name

    is_bridged = subject.version.layout != "hooked" and find_family_by_name(subject.version.family).convert is None
    if is_bridged:
        return [("bridge", subject.load_bridge)]
    return [(name, partial(subject.load, processed=name == "processed")) for name in ("raw", "processed")]
