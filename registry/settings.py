"""Where the database and the store are; the only reader of os.environ."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import platformdirs


@dataclass(frozen=True)
class Settings:
    """The database's SQLAlchemy URL and the folder that holds the blobs."""

    url: str
    store: Path


def read_settings(url: str | None = None, store: str | Path | None = None) -> Settings:
    """Take what was passed, else $LENSREG_URL and $LENSREG_STORE, else $LENSREG_HOME, else the user data folder.

    A `url` without `://` is the path of a SQLite file.
    """
    home = Path(os.environ.get("LENSREG_HOME") or platformdirs.user_data_path("lensreg"))
    url = url or os.environ.get("LENSREG_URL") or str(home / "registry.db")
    store = store or os.environ.get("LENSREG_STORE") or home / "store"
    if "://" not in url:
        url = f"sqlite:///{quote(str(Path(url).expanduser().absolute()))}"
    return Settings(url=url, store=Path(store).expanduser().absolute())


def read_ci_variables() -> dict[str, str]:
    """Read what the environment says of the job that runs us, for the audit trail."""
    names = ("CI", "GITHUB_RUN_ID", "GITLAB_CI_JOB_ID", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
    return {name: os.environ[name] for name in names if name in os.environ}
