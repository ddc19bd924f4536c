"""The version of what makes hooked tensors: our code that converts and processes, and the libraries under it."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "transformer-lens")
# all that decides which tensors a network gets; a test follows the imports and fails when one is missing
SOURCES = (
    "architecture.py", "convert.py", "derived.py", "families", "hooked_config.py", "hooked_names.py",
    "hooked_transformer.py", "load.py", "load_hooked.py", "networks.py", "processing.py",
)  # fmt: skip


@functools.cache
def read_converter_version() -> str:
    """Return the version: releases of the libraries, and the digest of our sources.

    The digest is of the code itself and not a number that is kept by hand, which somebody would forget once.
    """
    folder = Path(__file__).parent
    total = hashlib.sha256()
    for name in SOURCES:
        path = folder / name
        for source in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            total.update(f"{source.relative_to(folder).as_posix()}\n".encode())
            total.update(source.read_bytes())
    libraries = " ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"{total.hexdigest()[:16]} {libraries}"
