"""Make a cache of the Hub, as huggingface_hub lays it out, without asking the Hub."""

from __future__ import annotations

from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, repo: str) -> None:
    """Put a repository with one file, `config.json`, into a cache folder."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    blob = folder / "blobs" / "0123456789abcdef0123456789abcdef01234568"
    snapshot = folder / "snapshots" / COMMIT
    for made in (blob.parent, snapshot, folder / "refs"):
        made.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs" / "main").write_text(COMMIT)
