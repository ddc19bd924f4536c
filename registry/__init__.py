"""LensRegistry: register checkpoints, and load them by name as correctly converted HookedTransformers.

Importing this imports neither torch nor SQLAlchemy; both come when they are needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.architecture import Architecture, Difference
    from registry.errors import (
        AmbiguousRef,
        ArchitectureMismatch,
        ParityFailure,
        RegistryError,
        SourceError,
        UnknownRef,
    )
    from registry.lineage import Lineage
    from registry.registration import Registration
    from registry.registry import Registry
    from registry.save import save_network
    from registry.versions import Version

_HOMES = {
    "AmbiguousRef": "registry.errors",
    "Architecture": "registry.architecture",
    "ArchitectureMismatch": "registry.errors",
    "Difference": "registry.architecture",
    "Lineage": "registry.lineage",
    "ParityFailure": "registry.errors",
    "Registration": "registry.registration",
    "Registry": "registry.registry",
    "RegistryError": "registry.errors",
    "SourceError": "registry.errors",
    "UnknownRef": "registry.errors",
    "Version": "registry.versions",
    "save_network": "registry.save",
}

__all__ = [
    "AmbiguousRef",
    "Architecture",
    "ArchitectureMismatch",
    "Difference",
    "Lineage",
    "ParityFailure",
    "Registration",
    "Registry",
    "RegistryError",
    "SourceError",
    "UnknownRef",
    "Version",
    "save_network",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'registry' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
