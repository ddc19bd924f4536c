"""The contents of a store in a bucket: listing, deleting and moving aside what lies in it.

PREFIX/blobs/ab/DIGEST      the blobs
PREFIX/quarantine/DIGEST.N  blobs that were corrupt, as they were found
PREFIX/registries/ID.json   which registries keep blobs here; see registry/ownership.py
PREFIX/renewed/DIGEST.N     copies of blobs, for the moment in which they are written again
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from registry.errors import ArtifactCorrupt, ArtifactMissing, StoreUnavailable
from registry.store.bucket import Bucket, StoredObject
from registry.store.contents import Claim, Leftover, StoredBlob
from registry.store.local_contents import LocalContents
from registry.store.sealed import seal, unseal
from registry.store.uploads import UPLOAD, abort_upload, list_uploads

# A blob that no row names yet is safe from `lensreg gc` for its grace, a day. One that is there already may be about to
# lose it, so whoever relies on it has it written again when it is older than half of that.
FRESH = timedelta(hours=12)
_KEY = re.compile(r"blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_CLAIM_BYTES = 2**16


def is_fresh(found: StoredObject) -> bool:
    """Say whether an object is young enough to be relied on without writing it again."""
    return datetime.now(UTC) - found.modified_at < FRESH


class ObjectContents(LocalContents):
    """The half of ObjectStore that tidies up: in the bucket, and in the cache where that is not done by itself."""

    bucket: Bucket
    heal = "Register the same source again to heal it, or restore the bucket from a backup or an older version of it."

    def verify(self, digest: str, size_bytes: int, *, read: bool = False) -> None:
        """Check what the bucket has of a blob."""
        raise NotImplementedError

    def _key(self, digest: str) -> str:
        return self.blob_path(digest).relative_to(self.root).as_posix()

    def list_blobs(self) -> Iterator[StoredBlob]:
        """Give every blob of the bucket; other objects are not ours."""
        for one in self.bucket.list("blobs"):
            named = _KEY.fullmatch(one.key)
            if named is not None:
                yield StoredBlob(named[2], one.size_bytes, one.modified_at)

    def find_blob(self, digest: str) -> StoredBlob | None:
        """Return the blob as the bucket has it now, or None."""
        found = self.bucket.find(self._key(digest))
        return StoredBlob(digest, found.size_bytes, found.modified_at) if found else None

    def delete_blob(self, digest: str) -> None:
        """Delete a blob from the bucket, and its copy here; no error if it is gone."""
        self.bucket.delete(self._key(digest))
        super().delete_blob(digest)

    def renew(self, digests: Iterable[str]) -> None:
        """Have blobs count as new, for those who rely on them without writing them: the service copies them.

        Raises ArtifactMissing.
        """
        for digest in digests:
            key = self._key(digest)
            found = self.bucket.find(key)
            if found is None:
                raise self._refuse_missing(digest)
            if not is_fresh(found):
                # S3 refuses to copy an object onto itself, and has no other way to say that it is used
                aside = f"renewed/{digest}.{uuid.uuid4().hex}"
                self.bucket.copy(key, aside)
                self.bucket.copy(aside, key)
                self.bucket.delete(aside)

    def list_leftovers(self) -> Iterator[Leftover]:
        """Give uploads that were never finished, quarantined blobs and copies of them; and what a crash left here."""
        for one in self.bucket.list("quarantine"):
            digest = one.key.rpartition("/")[2].partition(".")[0]
            yield Leftover(one.key, "quarantined", one.size_bytes, one.modified_at, (digest,))
        for one in self.bucket.list("renewed"):
            yield Leftover(one.key, "temporary", one.size_bytes, one.modified_at)
        yield from list_uploads(self.bucket)
        # links to blobs that are not in the cache are no fault: it takes them in and drops them as it needs
        yield from (one for one in super().list_leftovers() if one.kind in ("temporary", "derived"))

    def delete_leftover(self, leftover: Leftover) -> bool:
        """Delete a leftover, unless it has changed since it was listed or somebody is at work on it: then False."""
        if leftover.kind == UPLOAD:
            abort_upload(self.bucket, leftover)
            return True
        if not leftover.place.startswith(("quarantine/", "renewed/")):
            return super().delete_leftover(leftover)
        found = self.bucket.find(leftover.place)
        if found is None or (found.size_bytes, found.modified_at) != (leftover.size_bytes, leftover.modified_at):
            return False
        self.bucket.delete(leftover.place)
        return True

    def quarantine(self, digest: str, size_bytes: int) -> Path | str | None:
        """Move a blob that is not what its name says aside, and return where it is; None if it is whole, or gone."""
        key = self._key(digest)
        before = self.bucket.find(key)
        with contextlib.suppress(ArtifactCorrupt):
            with contextlib.suppress(ArtifactMissing):
                self.verify(digest, size_bytes, read=True)
            return None
        aside = f"quarantine/{digest}.{uuid.uuid4().hex[:8]}"
        self.bucket.copy(key, aside)
        if self.bucket.find(key) != before:  # somebody healed it between the look and the copy
            self.bucket.delete(aside)
            return None
        self.bucket.delete(key)
        return f"{self}: {aside}"

    def has_claim(self, registry_id: str) -> bool:
        """Say whether that registry has a claim that can be read."""
        found = self.bucket.find(f"registries/{registry_id}.json")
        return found is not None and self._read_claim(found) is not None

    def list_claims(self) -> list[Claim]:
        """Return the claims of all registries that keep blobs here; one that was altered raises StoreUnavailable."""
        found = []
        for one in sorted(self.bucket.list("registries"), key=lambda one: one.key):
            card = self._read_claim(one)
            if card is None:
                raise StoreUnavailable(
                    f"{one.key} in {self} was altered, so nobody can tell which registry keeps blobs here.",
                    hint="Delete that object if no other registry uses this store, and say so: lensreg gc --adopt",
                )
            found.append(Claim(**card))
        return found

    def _read_claim(self, found: StoredObject) -> dict[str, str] | None:
        content = self.bucket.read(found.key, min(found.size_bytes, _CLAIM_BYTES))
        return unseal(b"".join(bytes(chunk) for chunk in content))

    def write_claim(self, claim: Claim) -> None:
        """Write the claim of one registry, in place of its older one."""
        content = seal(vars(claim)).encode()
        self.bucket.put(f"registries/{claim.registry_id}.json", [content], len(content))
