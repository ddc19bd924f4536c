"""Where the database and the store are; the only reader of os.environ."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import platformdirs

from registry.errors import InvalidInput


@dataclass(frozen=True)
class Settings:
    """The database's SQLAlchemy URL, the folder that holds the blobs, and what may be kept beside.

    `stamps` is the folder in which this machine remembers what it has hashed; `derived_bytes` bounds the derived files,
    None leaves it to us. `on_network` lets SQLite work on a network file system, at the user's own risk.
    """

    url: str
    store: Path
    stamps: Path
    derived_bytes: int | None = None
    on_network: bool = False


def read_settings(url: str | None = None, store: str | Path | None = None) -> Settings:
    """Take what was passed, else $LENSREG_URL and $LENSREG_STORE, else $LENSREG_HOME, else the user data folder.

    Derived files take $LENSREG_CACHE_BYTES at most, and $LENSREG_STAMPS, or a folder in the user's cache, is where this
    machine remembers what it has hashed. $LENSREG_SQLITE_ON_NETWORK=1 lets SQLite work on a network file system. A
    `url` without `://` is the path of a SQLite file.
    """
    home = Path(os.environ.get("LENSREG_HOME") or platformdirs.user_data_path("lensreg"))
    url = url or os.environ.get("LENSREG_URL") or str(home / "registry.db")
    store = store or os.environ.get("LENSREG_STORE") or home / "store"
    if "://" not in url:
        url = f"sqlite:///{quote(str(Path(url).expanduser().absolute()))}"
    stamps = os.environ.get("LENSREG_STAMPS") or platformdirs.user_cache_path("lensreg") / "stamps"
    bound = os.environ.get("LENSREG_CACHE_BYTES")
    return Settings(
        url=url,
        store=Path(store).expanduser().absolute(),
        stamps=Path(stamps).expanduser().absolute() / (platform.node() or "here"),
        derived_bytes=parse_bytes(bound) if bound else None,
        on_network=os.environ.get("LENSREG_SQLITE_ON_NETWORK") == "1",
    )


def parse_bytes(text: str) -> int:
    """Read a number of bytes as people write it, `20000000000` or `20GB`, or raise InvalidInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT]?)B?", text.strip())
    if match is None:
        raise InvalidInput(f"{text!r} is no number of bytes.", hint="Write it as 20000000000, or 20GB.")
    return int(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[match[2]])


def read_ci_variables() -> dict[str, str]:
    """Read what the environment says of the job that runs us, for the audit trail."""
    names = ("CI", "GITHUB_RUN_ID", "GITLAB_CI_JOB_ID", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
    return {name: os.environ[name] for name in names if name in os.environ}
