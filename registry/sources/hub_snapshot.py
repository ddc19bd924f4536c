"""A repository on the Hub at one commit: what it lists, the beginnings of its files, and the files in the Hub cache.

Everything is asked through huggingface_hub, which reads HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE, and every
request is bounded in time. It is imported when it is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import MalformedArtifact, SourceUnreachable
from registry.progress import Counter, Progress
from registry.sources.hub_errors import typed_errors
from registry.weights import MAX_HEADER_BYTES, Advance, TensorHeader, parse_header, read_header

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIRST_BYTES = 100_000  # holds most safetensors headers whole
_HEADER_SECONDS = 120.0


@dataclass(frozen=True)
class StatedFile:
    """One file as the Hub lists it: its size, and its SHA-256 (for LFS files) or its git digest (for the others)."""

    name: str
    size_bytes: int
    sha256: str | None
    git_digest: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit; `revision` is what was asked for.

    `not_asked` says why the Hub was not asked, when all of this comes from the Hub cache.
    """

    repo: str
    revision: str
    commit: str
    files: Mapping[str, StatedFile]
    not_asked: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}"

    def fetch(self, names: Iterable[str], progress: Progress) -> dict[str, Path]:
        """Return where these files are in the Hub cache, fetching those that are not there yet.

        What has no SHA-256 is checked against its git digest here; the others by whoever reads them next.
        """
        wanted = [self.files[name] for name in names]
        counter = Counter(progress, "fetching", sum(file.size_bytes for file in wanted))
        return {file.name: self._fetch(file, counter.advance) for file in wanted}

    def _fetch(self, file: StatedFile, advance: Advance) -> Path:
        path = fetch_file(self.repo, self.commit, file.name, advance)
        if file.sha256 is None and file.git_digest is not None and _digest_as_git(path) != file.git_digest:
            raise refuse_cached(file.name, path)
        return path

    def read_headers(self, names: Iterable[str]) -> dict[str, dict[str, TensorHeader]]:
        """Read the safetensors headers of these files: from the Hub cache, or else their first bytes from the Hub."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=8) as pool:
            wanted = list(names)
            return dict(zip(wanted, pool.map(self._read_header, wanted), strict=True))

    def _read_header(self, name: str) -> dict[str, TensorHeader]:
        cached = _find_cached(self.repo, self.commit, name)
        if cached is not None:
            return read_header(cached)
        size = self.files[name].size_bytes
        with typed_errors(self.repo, self.revision):
            content = self._read_first_bytes(name, min(size, _FIRST_BYTES))
            length = 8 + int.from_bytes(content[:8], "little")
            if len(content) < length <= min(size, 8 + MAX_HEADER_BYTES):
                content = self._read_first_bytes(name, length)
        return parse_header(Path(name), content, size)

    def _read_first_bytes(self, name: str, n_bytes: int) -> bytes:
        """Read the first bytes of a file, and no more even of a server that knows no ranges."""
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, though not in its __all__
            build_hf_headers,
            hf_raise_for_status,
        )

        headers = {**build_hf_headers(), "Range": f"bytes=0-{n_bytes - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repo, name, revision=self.commit, endpoint=constants.ENDPOINT)
        until = time.monotonic() + _HEADER_SECONDS
        content = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= n_bytes:
                    break
                if time.monotonic() > until:
                    raise SourceUnreachable(
                        f"The Hub took more than {_HEADER_SECONDS:.0f} s for the header of {self.repo}/{name}.",
                        hint="Try again when the connection is better.",
                    )
        return bytes(content[:n_bytes])


def find_snapshot(repo: str, revision: str | None) -> Snapshot:
    """Ask the Hub which commit the revision is now, and what it lists; if it does not answer, ask the Hub cache.

    Raises SourceNotFound, AccessDenied, or SourceUnreachable if the cache does not hold that revision either.
    """
    wanted = revision or DEFAULT_REVISION
    try:
        with typed_errors(repo, wanted):
            return _ask_hub(repo, wanted)
    except SourceUnreachable as error:
        cached = _ask_cache(repo, wanted, error.message)
        if cached is None:
            raise
        return cached


def list_revisions(repo: str) -> list[str]:
    """Ask the Hub for the names of all branches and tags. Raises SourceNotFound, AccessDenied, SourceUnreachable."""
    from huggingface_hub import HfApi

    with typed_errors(repo, DEFAULT_REVISION):
        refs = HfApi().list_repo_refs(repo)
        return list(dict.fromkeys(one.name for one in [*refs.branches, *refs.tags]))


def fetch_file(repo: str, commit: str, name: str, advance: Advance | None = None) -> Path:
    """Return where a file of that commit is in the Hub cache, fetching it if it is not there; a cut is resumed."""
    from huggingface_hub import constants, hf_hub_download

    if not _COMMIT.fullmatch(commit):
        raise MalformedArtifact(f"{commit[:80]!r} is no commit.", hint="The record was altered. Restore a backup.")
    bar: Any = _make_bar(advance)
    with typed_errors(repo, commit):
        found = hf_hub_download(repo, name, revision=commit, etag_timeout=constants.HF_HUB_ETAG_TIMEOUT, tqdm_class=bar)
    return _resolve_in_cache(Path(found), repo)


def is_cached(repo: str, revision: str | None) -> bool:
    """Say whether the Hub cache holds that revision, at least its config.json."""
    return _find_cached(repo, revision or DEFAULT_REVISION, "config.json") is not None


def remember_revision(snapshot: Snapshot, name: str) -> None:
    """Have the Hub cache note which commit the revision is, so that it is found without a network later."""
    from huggingface_hub import constants, hf_hub_download

    if snapshot.not_asked is None and snapshot.revision != snapshot.commit:
        with typed_errors(snapshot.repo, snapshot.revision):
            hf_hub_download(snapshot.repo, name, revision=snapshot.revision, etag_timeout=constants.HF_HUB_ETAG_TIMEOUT)


def refuse_cached(name: str, path: Path) -> MalformedArtifact:
    """Make the error for a file in the Hub cache that is not what the Hub states."""
    return MalformedArtifact(
        f"{name} is not the file that the Hub states: its digest is another.",
        hint=f"What was fetched is damaged. Delete {path} and try again; if it stays so, tell the repository's owner. "
        "Nothing was stored.",
        path=str(path),
    )


def _ask_hub(repo: str, revision: str) -> Snapshot:
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise SourceUnreachable(
            f"{constants.ENDPOINT} does not say which commit {repo}@{revision} is.",
            hint="It seems to be no Hub; check HF_ENDPOINT, proxies and firewalls.",
        )
    listed = [_describe_listed(one) for one in info.siblings or ()]
    files = {file.name: file for file in listed if "/" not in file.name}
    return Snapshot(repo, revision, info.sha, files)


def _describe_listed(one: RepoSibling) -> StatedFile:
    """Take over what the Hub states; the git digest of an LFS file is that of its pointer, and says nothing."""
    sha256 = one.lfs.sha256 if one.lfs and _SHA256.fullmatch(one.lfs.sha256) else None
    return StatedFile(one.rfilename, one.size or 0, sha256, None if one.lfs else one.blob_id)


def _ask_cache(repo: str, revision: str, reason: str) -> Snapshot | None:
    """Find the revision in the Hub cache; its blobs are named by the digests that the Hub stated for them."""
    config = _find_cached(repo, revision, "config.json")
    if config is None:
        return None
    folder = config.parent
    files = {path.name: _describe_cached(path) for path in folder.iterdir() if path.is_file()}
    return Snapshot(repo, revision, folder.name, files, reason)


def _describe_cached(path: Path) -> StatedFile:
    digest = path.readlink().name if path.is_symlink() else ""
    return StatedFile(
        path.name,
        path.stat().st_size,
        digest if _SHA256.fullmatch(digest) else None,
        digest if _COMMIT.fullmatch(digest) else None,
    )


def _find_cached(repo: str, revision: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _resolve_in_cache(path: Path, repo: str) -> Path:
    """Follow the cache's own links, and refuse one that leads out of this repository's part of the cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).resolve()
    homes = (cache / f"models--{repo.replace('/', '--')}", cache / "blobs")  # the latter is shared by repositories
    real = path.resolve()
    if not real.is_file() or not any(real.is_relative_to(home) for home in homes):
        raise MalformedArtifact(
            f"{path} leads out of the Hub cache, to {real}.",
            hint="Somebody changed the cache by hand. Delete that link and try again.",
            path=str(path),
        )
    return real


def _digest_as_git(path: Path) -> str:
    """Return the digest that git names these bytes by; only small files are kept without LFS."""
    import hashlib

    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()


def _make_bar(advance: Advance | None) -> type:
    """Make what huggingface_hub takes for a progress bar: it passes bytes on and draws nothing."""

    class Bar:
        def __init__(self, *args: object, **options: object) -> None:
            self.total = options.get("total")

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, n_bytes: float | None = 1) -> None:
            if advance:
                advance(int(n_bytes or 0))

        def __getattr__(self, name: str) -> Any:
            """Give something to call for whatever else a bar can do: refreshing, closing, describing itself."""
            return lambda *args, **options: None

        def update_transfer(self, n_bytes: float | None = 1) -> None:
            pass

    return Bar
