"""How a network is wanted, and the warnings of what it is or is not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch

from registry.convert import RAW, Processing
from registry.errors import InvalidInput
from registry.store.stamps import VERIFY, Verify
from registry.versions import Version


class UnverifiedVersion(UserWarning):
    """The version that was loaded was registered without measuring parity."""


@dataclass(frozen=True)
class LoadOptions:
    """How a network is wanted."""

    processing: Processing
    dtype: torch.dtype
    device: str
    n_devices: int = 1
    verify: Verify = "changed"
    asked: Mapping[str, bool] = field(default_factory=dict)
    """The processing flags that were given by name."""


def make_options(
    *,
    processed: bool,
    flags: Mapping[str, bool | None],
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    n_devices: int,
    verify: str,
) -> LoadOptions:
    """Turn keywords into options: `flags` that are None take transformer-lens's defaults, or off if not `processed`."""
    chosen = {name: value for name, value in flags.items() if value is not None}
    base = Processing() if processed else RAW
    kind, where = read_place(dtype, device)
    return LoadOptions(Processing(**{**vars(base), **chosen}), kind, where, n_devices, read_verify(verify), chosen)


def read_place(dtype: str | torch.dtype, device: str | torch.device | None) -> tuple[torch.dtype, str]:
    """Return the dtype, which must be one of floating-point numbers, and the device: the first GPU if there is one."""
    return _read_dtype(dtype), str(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def name_dtype(dtype: str | torch.dtype | None) -> str | None:
    """Return the name of a dtype, which records and workers have it by; None stays None."""
    return None if dtype is None else str(_read_dtype(dtype)).removeprefix("torch.")


def _read_dtype(dtype: str | torch.dtype) -> torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise InvalidInput(f"{dtype!r} is no floating-point dtype.", hint='Use "float32", "bfloat16" or "float16".')
    return kind


def read_verify(verify: str) -> Verify:
    """Return when files are hashed, or raise InvalidInput."""
    if verify not in VERIFY:
        raise InvalidInput(f"verify cannot be {verify!r}.", hint=f"It is one of {', '.join(VERIFY)}.")
    return cast(Verify, verify)


def warn_unverified(version: Version) -> None:
    """Warn of a version whose parity was not measured."""
    if not version.is_verified:
        warnings.warn(f"{version.ref} was registered without verification.", UnverifiedVersion, stacklevel=5)


def warn_left_out(version: Version, asked: Mapping[str, bool], done: Processing) -> None:
    """Warn of flags that were asked for by name; what transformer-lens does by default goes without saying."""
    for name in sorted(name for name, value in asked.items() if value and name not in done.active):
        warnings.warn(f"{name} would change what {version.ref} computes; it was left out.", stacklevel=4)
