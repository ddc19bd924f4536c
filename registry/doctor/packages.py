"""The packages that are installed, against what is required and what was tested; read from their metadata alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from registry.doctor.finding import Finding, State

OURS = "lens-registry"
# the newest releases that all tests ran with
TESTED = {
    "torch": "2.13",
    "transformers": "5.23",
    "transformer-lens": "3.9",
    "safetensors": "0.8",
    "sqlalchemy": "2.1",
    "alembic": "1.20",
}
_SAFE_TORCH = Version("2.10")
_OPTIONAL = {"model-signing": "signing (attest --sign)", "pandas": "DataFrames (to_pandas)"}
_EXTRAS = {"model-signing": "sign", "pandas": "pandas"}
# https://www.sqlite.org/wal.html: a commit that meets a checkpoint which resets the WAL may be lost, or damage the file
_WAL_RESET_SINCE, _WAL_RESET_FIXED, _WAL_RESET_BACKPORTS = (3, 7, 0), (3, 51, 3), ((3, 44, 6), (3, 50, 7))


def examine_packages() -> Iterator[Finding]:
    """Check the releases of what converts, loads and keeps."""
    yield from _examine_required()
    yield _examine_hooked_transformer()
    for name, purpose in _OPTIONAL.items():
        if _read(name) is None:
            hint = f"For {purpose}: pip install 'lens-registry[{_EXTRAS[name]}]'"
            yield Finding(name, "note", f"{name} is not installed.", hint)


def _examine_required() -> Iterator[Finding]:
    required = _read_required()
    if not required:
        yield Finding(OURS, "note", f"{OURS} is not installed, so nothing tells what it requires.", "pip install -e .")
    for name in sorted({*required, *TESTED}):
        finding = _examine(name, required.get(name))
        if finding.state != "ok" or name in TESTED:
            yield finding


def _examine(name: str, required: Requirement | None) -> Finding:
    found = _read(name)
    if found is None:
        return Finding(name, "fault", f"{name} is not installed.", f"pip install '{required or name}'")
    if name == "torch" and found < _SAFE_TORCH:
        return Finding(
            name,
            "fault",
            f"torch {found} can be made to run code by a .pt or .bin file (CVE-2026-24747).",
            "Register no .pt or .bin file with it, and update: pip install 'torch>=2.10'",
        )
    if required is not None and not required.specifier.contains(found, prereleases=True):
        # without HookedTransformer much still works, and there is a finding of its own for that
        state: State = "warning" if name == "transformer-lens" else "fault"
        return Finding(name, state, f"{name} {found} is not {required.specifier}.", f"pip install '{required}'")
    tested = TESTED.get(name)
    if tested is not None and found.release[:2] > Version(tested).release[:2]:
        return Finding(
            name,
            "note",
            f"{name} {found} is newer than what was tested, {tested}.",
            "Every registration measures parity with it, and is refused if it does not hold.",
        )
    return Finding(name, "ok", f"{name} {found}")


def _examine_hooked_transformer() -> Finding:
    spec = find_spec("transformer_lens")  # finds it without importing it
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if any((Path(folder) / "HookedTransformer.py").is_file() for folder in folders):
        return Finding("HookedTransformer", "ok", "transformer-lens has it")
    return Finding(
        "HookedTransformer",
        "warning",
        f"transformer-lens {_read('transformer-lens') or '(missing)'} has no HookedTransformer; 4.0 took it away.",
        "load_bridge and load_hf work; load, and measuring parity, need pip install 'transformer-lens>=3.9,<4'.",
    )


def examine_sqlite_library(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Finding:
    """Check the SQLite that Python brings against the WAL-reset bug."""
    text = ".".join(map(str, version))
    is_backport = any(version[:2] == fixed[:2] and version >= fixed for fixed in _WAL_RESET_BACKPORTS)
    if version < _WAL_RESET_SINCE or version >= _WAL_RESET_FIXED or is_backport:
        return Finding("SQLite", "ok", f"SQLite {text}")
    return Finding(
        "SQLite",
        "warning",
        f"SQLite {text} has the WAL-reset bug (3.7.0 to 3.51.2): a commit that meets a checkpoint just so may be lost "
        "or damage the file. lens-registry lets one process write at a time, which makes that unlikely; it is not "
        "proven impossible, and programs that write to the file by themselves do not wait for their turn.",
        "Use a Python with SQLite 3.51.3 or later (3.50.7 and 3.44.6 have the correction, too), or Postgres. Keep "
        "backups: lensreg backup.",
    )


def _read(name: str) -> Version | None:
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def _read_required() -> dict[str, Requirement]:
    """Return what lens-registry requires always; empty if it is not installed."""
    try:
        listed = map(Requirement, metadata.requires(OURS) or ())
    except metadata.PackageNotFoundError:
        return {}
    return {one.name: one for one in listed if one.marker is None or one.marker.evaluate({"extra": ""})}
