"""Hub ids: how people write a model on the Hugging Face Hub, and which training step a revision means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import InvalidInput

PREFIX = "hf://"
_WEB = re.compile(r"https?://([^/]+)/(.*)")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
# https://huggingface.co/docs/huggingface_hub: at most 96 characters of these, neither - nor . first or last
_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"({_SEGMENT}(?:/{_SEGMENT})?)(?:@([A-Za-z0-9_][A-Za-z0-9._/+-]{{0,199}}))?")
_NO_OWNERS = ("datasets", "spaces", "models", "kernels", "buckets", "api")
# what ends like this is a file that is not there, and no model of that name
_FILES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".json", ".distcp", ".zip", ".gz", ".tar")
# Pythia's step1000; OLMo's step1000-tokens4B
_STEP = re.compile(r"step[-_]?(\d{1,15})(?:-tokens\d+(?:\.\d+)?[KMBT])?")


@dataclass(frozen=True)
class HubId:
    """A model on the Hub: `org/name` (or the bare name of an old one), and the branch, tag or commit asked for.

    `explicit` says that it was written so that it can mean nothing else (hf://…, https://…).
    """

    repo: str
    revision: str | None = None
    explicit: bool = False

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def step(self) -> int | None:
        """The training step that the revision's name says, for repositories with a branch for each."""
        match = _STEP.fullmatch(self.revision or "")
        return int(match[1]) if match else None


def parse_hub_id(text: str) -> HubId | None:
    """Return the Hub id that `text` may be, or None if it cannot be one.

    Raises InvalidInput for what starts with hf:// or https:// and names no model.
    """
    web = _WEB.fullmatch(text)
    if web:
        path = web[2].strip("/").replace("/tree/", "@", 1) if _is_hub(web[1]) else ""
        return _parse_explicit(text, path)
    if text.startswith(PREFIX):
        return _parse_explicit(text, text.removeprefix(PREFIX))
    found = _match(text)
    return None if found is None or found.repo.lower().endswith(_FILES) else found


def _parse_explicit(text: str, path: str) -> HubId:
    found = _match(path)
    if found is None:
        raise InvalidInput(
            f"{text[:200]!r} names no model on the Hub.",
            hint="Write ORG/NAME or ORG/NAME@REVISION; the revision is a branch, a tag or a commit.",
        )
    return HubId(found.repo, found.revision, explicit=True)


def _match(text: str) -> HubId | None:
    match = _ID.fullmatch(text)
    if not match:
        return None
    repo, revision = match[1], match[2]
    odd = "--" in repo or ".." in repo or repo.endswith(".git") or repo.split("/")[0] in _NO_OWNERS
    if odd or ".." in (revision or "") or (revision or "").endswith(("/", ".lock")):
        return None
    return HubId(repo, revision)


def _is_hub(host: str) -> bool:
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    return host.lower() in (*_HOSTS, urlsplit(constants.ENDPOINT).netloc.lower())
