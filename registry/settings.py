"""Where the database and the store are; the only reader of os.environ (obstore reads credentials there by itself)."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote

import platformdirs

from registry.errors import InvalidInput

_VARIABLES = (
    "LENSREG_HOME", "LENSREG_URL", "LENSREG_STORE", "LENSREG_STAMPS", "LENSREG_CACHE_BYTES", "LENSREG_STORE_CACHE",
    "LENSREG_STORE_CACHE_BYTES", "LENSREG_SQLITE_ON_NETWORK", "LENSREG_POLICY",
)  # fmt: skip
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True)
class Settings:
    """The database's SQLAlchemy URL, the folder or the URL of the bucket that holds the blobs, and what is kept beside.

    `stamps` is the folder in which this machine remembers what it has hashed; `derived_bytes` bounds the derived files,
    None leaves it to us. What is used of a bucket is kept below `store_cache`, up to `store_cache_bytes`; `store_http`
    says that the environment names an endpoint without TLS. `on_network` lets SQLite work on a network file system, at
    the user's own risk. `is_strict` refuses what brings code along.
    """

    url: str
    store: Path | str
    stamps: Path
    derived_bytes: int | None = None
    store_cache: Path = Path()
    store_cache_bytes: int | None = None
    store_http: bool = False
    on_network: bool = False
    is_strict: bool = False


def read_settings(url: str | None = None, store: str | Path | None = None) -> Settings:
    """Take what was passed, else $LENSREG_URL and $LENSREG_STORE, else $LENSREG_HOME, else the user data folder.

    Derived files take $LENSREG_CACHE_BYTES at most, and $LENSREG_STAMPS, or a folder in the user's cache, is where this
    machine remembers what it has hashed. A `url` without `://` is the path of a SQLite file; a `store` with it is a
    bucket, whose blobs are cached below $LENSREG_STORE_CACHE, or in the user's cache, up to $LENSREG_STORE_CACHE_BYTES.
    $LENSREG_SQLITE_ON_NETWORK=1 lets SQLite work on a network file system. $LENSREG_POLICY=strict refuses what brings
    code along.
    """
    home = Path(os.environ.get("LENSREG_HOME") or platformdirs.user_data_path("lensreg"))
    url = url or os.environ.get("LENSREG_URL") or str(home / "registry.db")
    store = store or os.environ.get("LENSREG_STORE") or home / "store"
    if "://" not in url:
        url = f"sqlite:///{quote(str(Path(url).expanduser().absolute()))}"
    stamps = os.environ.get("LENSREG_STAMPS") or platformdirs.user_cache_path("lensreg") / "stamps"
    bound = os.environ.get("LENSREG_CACHE_BYTES")
    cache = os.environ.get("LENSREG_STORE_CACHE") or platformdirs.user_cache_path("lensreg") / "stores"
    policy = os.environ.get("LENSREG_POLICY") or "default"
    if policy not in ("default", "strict"):  # a word that means nothing must not pass for the one that protects
        raise InvalidInput(f"LENSREG_POLICY={policy} is no policy.", hint="Set it to strict, or to default.")
    cache_bound = os.environ.get("LENSREG_STORE_CACHE_BYTES")
    return Settings(
        url=url,
        store=_read_store(store),
        stamps=Path(stamps).expanduser().absolute() / (platform.node() or "here"),
        derived_bytes=parse_bytes(bound) if bound else None,
        store_cache=Path(cache).expanduser().absolute(),
        store_cache_bytes=parse_bytes(cache_bound) if cache_bound else None,
        store_http=any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS),
        on_network=os.environ.get("LENSREG_SQLITE_ON_NETWORK") == "1",
        is_strict=policy == "strict",
    )


def read_given_place() -> tuple[str | None, str | None]:
    """Return what the environment itself names as the database and as the store; None where it names none."""
    return os.environ.get("LENSREG_URL") or None, os.environ.get("LENSREG_STORE") or None


def find_unknown_variables() -> dict[str, list[str]]:
    """Return the names in the environment that look like ours and mean nothing, each with what was meant, perhaps.

    Those of this project's own tests, `LENSREG_TEST_…`, are left aside.
    """
    ours = (name for name in sorted(os.environ) if name.startswith("LENSREG_") and not name.startswith("LENSREG_TEST_"))
    return {name: get_close_matches(name, _VARIABLES, 1, 0.8) for name in ours if name not in _VARIABLES}


def _read_store(store: str | Path) -> Path | str:
    if isinstance(store, str) and "://" in store:
        return store
    if re.fullmatch(r"[a-z0-9]{2,}:", Path(store).parts[0] if Path(store).parts else ""):
        raise InvalidInput(
            f"{str(store)!r} is the URL of a store made into a path, which drops a slash.",
            hint="Pass the URL as text: Registry(store='s3://BUCKET/PREFIX').",
        )
    return Path(store).expanduser().absolute()


def parse_bytes(text: str) -> int:
    """Read a number of bytes as people write it, `20000000000` or `20GB`, or raise InvalidInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT]?)B?", text.strip())
    if match is None:
        raise InvalidInput(f"{text!r} is no number of bytes.", hint="Write it as 20000000000, or 20GB.")
    return int(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[match[2]])


def parse_duration(text: str) -> timedelta:
    """Read a duration as people write it, `90s`, `30m`, `1h` or `2d`, or raise InvalidInput."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) *([smhd])", text.strip())
    if match is None:
        raise InvalidInput(f"{text!r} is no duration.", hint="Write it as 90s, 30m, 1h or 2d.")
    return timedelta(seconds=float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])


def read_ci_variables() -> dict[str, str]:
    """Read what the environment says of the job that runs us, for the audit trail."""
    names = ("CI", "GITHUB_RUN_ID", "GITLAB_CI_JOB_ID", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
    return {name: os.environ[name] for name in names if name in os.environ}
