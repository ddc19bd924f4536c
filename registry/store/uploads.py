"""Uploads to S3 that were begun and never finished: listed and given up by requests that obstore does not make.

Google Cloud and Azure have other means: a lifecycle rule, and a week after which Azure forgets by itself.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import quote

from registry.errors import StorageError
from registry.store.bucket import Bucket
from registry.store.contents import Leftover, LeftoverKind
from registry.store.signed import ask_service

UPLOAD: LeftoverKind = "upload"
_BETWEEN = "?uploadId="
_log = logging.getLogger(__name__)


def list_uploads(bucket: Bucket, *, must: bool = False) -> Iterator[Leftover]:
    """Give the unfinished uploads of blobs.

    Where the service does not list them, say so in the log and give none, or with `must` raise StorageError.
    """
    if bucket.url.scheme != "s3" or bucket.url.anonymous:
        return
    prefix = f"{bucket.url.prefix}/blobs/" if bucket.url.prefix else "blobs/"
    query = {"uploads": "", "prefix": prefix}
    while True:
        try:
            answer = ElementTree.fromstring(ask_service(bucket, "GET", "", query))
        except (StorageError, ElementTree.ParseError) as error:
            if must and isinstance(error, StorageError):
                raise
            _log.warning("unfinished uploads to %s cannot be listed: %s", bucket.url.place, error)
            return
        for one in answer.iterfind("{*}Upload"):
            place = f"{_read(one, 'Key')}{_BETWEEN}{_read(one, 'UploadId')}"
            yield Leftover(place, UPLOAD, 0, datetime.fromisoformat(_read(one, "Initiated")))
        if _read(answer, "IsTruncated") != "true":
            return
        query |= {"key-marker": _read(answer, "NextKeyMarker"), "upload-id-marker": _read(answer, "NextUploadIdMarker")}


def abort_upload(bucket: Bucket, leftover: Leftover) -> None:
    """Give an upload up; the service deletes what came of it."""
    key, _, upload_id = leftover.place.rpartition(_BETWEEN)
    ask_service(bucket, "DELETE", f"/{quote(key)}", {"uploadId": upload_id})


def _read(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""
