"""What lies in a store, for those who tidy it up: blobs, leftovers, and the registries whose blobs they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

LeftoverKind = Literal["temporary", "quarantined", "folder", "derived", "upload"]


@dataclass(frozen=True)
class StoredBlob:
    """A blob that is there under its digest's name; whether its bytes are right is not said.

    `modified_at` is when it was put there or last relied upon: of a file's two times the later one.
    """

    digest: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True)
class Leftover:
    """Something that is no blob and that nobody may need any more.

    `place` is its path (or key) inside the store. `kind`: `temporary` was being written, `quarantined` is a blob that
    was moved aside because it was corrupt, `folder` has links to blobs that are not there, `derived` lacks its card,
    `upload` was never completed. `digests` are those of the blobs that a folder links to, or that was moved aside.
    """

    place: str
    kind: LeftoverKind
    size_bytes: int
    modified_at: datetime
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A registry that keeps blobs in this store: its id, where it was when it last registered, and its trail then."""

    registry_id: str
    database: str
    head: str


class Contents(Protocol):
    """What a store must tell and do so that it can be tidied up; `registry/collect.py` uses no more than this."""

    def list_blobs(self) -> Iterator[StoredBlob]:
        """Give every blob, in no particular order."""

    def find_blob(self, digest: str) -> StoredBlob | None:
        """Return the blob as it is now, or None."""

    def delete_blob(self, digest: str) -> None:
        """Delete a blob; no error if it is gone."""

    def list_leftovers(self) -> Iterator[Leftover]:
        """Give every leftover that nobody is at work on."""

    def delete_leftover(self, leftover: Leftover) -> bool:
        """Delete a leftover; False if it has changed since it was listed, is in use, or is another user's."""

    def quarantine(self, digest: str, size_bytes: int) -> Path | str | None:
        """Move a blob that is not what its name says aside, and return where it is; None if it is whole, or gone."""

    def renew(self, digests: Iterable[str]) -> None:
        """Have blobs count as new, for those who rely on them without writing them. Raises ArtifactMissing."""

    def list_claims(self) -> list[Claim]:
        """Return the claims of all registries that keep blobs here; one that was altered raises StoreUnavailable."""

    def has_claim(self, registry_id: str) -> bool:
        """Say whether that registry has a claim that can be read."""

    def write_claim(self, claim: Claim) -> None:
        """Write the claim of one registry, in place of its older one."""
