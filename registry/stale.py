"""Say why a recorded result no longer stands for what would be measured now, from what is recorded alone.

A result is bound to the weights, to the data and to the packages it was measured with. The file that data were read
from is not opened here: whoever asks what is recorded opens no path that somebody else wrote down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.environment import describe_packages

BINDING = ("torch", "transformers", "transformer-lens")
"""The packages every result is bound to; a suite may name more."""
UNDECIDING = ("data", "include_path", "batch_size")
"""Parameters that decide nothing: where data are, whose digest counts, and how many run at once."""


class StaleMeasurement(UserWarning):
    """A threshold was held against a measurement that is stale."""


def tell_stale(row: Any, weights_digest: str | None) -> str | None:
    """Say why a recorded result is stale; None if it is not. `row` has `weights_digest` and `environment`."""
    if is_of_other_weights(row, weights_digest):
        return "of other weights"
    then: Mapping[str, str | None] = (row.environment or {}).get("packages") or {}
    if not then:
        return "its packages were not recorded"
    names = [*BINDING, *sorted(then.keys() - {*BINDING, "lens-registry"})]
    now = describe_packages(*names)
    changed = [f"{name} {_say(then.get(name))} → {_say(now[name])}" for name in names if then.get(name) != now[name]]
    return ", ".join(changed) or None


def is_of_other_weights(row: Any, weights_digest: str | None) -> bool:
    """Whether other weights were measured than the version has."""
    return row.weights_digest is not None and row.weights_digest != weights_digest


def deciding(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that decide a result measured on known data; dtype and device are columns of their own."""
    ignored = {*UNDECIDING, "dtype", "device"}
    return {name: value for name, value in (parameters or {}).items() if name not in ignored}


def without_size(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters but for how many run at once: what tells whether two runs were asked for alike."""
    return {name: value for name, value in (parameters or {}).items() if name != "batch_size"}


def _say(release: str | None) -> str:
    return release or "not installed"
