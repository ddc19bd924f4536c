"""Uploads to S3 that were begun and never finished: listed and given up by signed requests of our own.

obstore cannot list them. It can sign a URL, though, with credentials from wherever it has them, and signs the query
that an endpoint carries, too: so the query is given as part of the endpoint, and `x-id` (names beginning with x- are
signed, and otherwise ignored by S3) takes the key that obstore appends.

Google Cloud and Azure have other means: a lifecycle rule, and a week after which Azure forgets by itself.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from registry.errors import StorageError, StoreUnavailable
from registry.store.bucket import Bucket
from registry.store.contents import Leftover, LeftoverKind

UPLOAD: LeftoverKind = "upload"
_BETWEEN = "?uploadId="
_MAX_ANSWER_BYTES = 16 * 2**20
_log = logging.getLogger(__name__)


def list_uploads(bucket: Bucket) -> Iterator[Leftover]:
    """Give the unfinished uploads of blobs; where the service does not list them, say so in the log and give none."""
    if bucket.url.scheme != "s3" or bucket.url.anonymous:
        return
    prefix = f"{bucket.url.prefix}/blobs/" if bucket.url.prefix else "blobs/"
    query = {"uploads": "", "prefix": prefix}
    while True:
        try:
            answer = ElementTree.fromstring(_ask(bucket, "GET", "", query))
        except (StorageError, ElementTree.ParseError) as error:
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
    _ask(bucket, "DELETE", f"/{quote(key)}", {"uploadId": upload_id})


def _ask(bucket: Bucket, method: Any, path: str, query: dict[str, str]) -> bytes:
    import obstore

    base = _find_base(bucket)
    signer = bucket.connect(
        f"s3://{bucket.url.bucket}",
        endpoint=f"{base}{path}?{urlencode({**query, 'x-id': ''})}",
        virtual_hosted_style_request=True,
    )
    with bucket.typed_errors():
        url = obstore.sign(signer, method, "1", timedelta(minutes=5))
    try:
        with urlopen(Request(url, method=method), timeout=bucket.url.timeout) as answer:
            return bytes(answer.read(_MAX_ANSWER_BYTES))
    except HTTPError as error:
        with error:
            if method == "DELETE" and error.code == 404:
                return b""
        raise StoreUnavailable(
            f"The store {bucket.url.place} answered with status {error.code}.",
            hint="Unfinished uploads need the rights s3:ListBucketMultipartUploads and s3:AbortMultipartUpload.",
        ) from None  # its message is short; the URL, which is signed, stays out of it
    except (OSError, HTTPException) as error:
        raise StoreUnavailable(
            f"The store {bucket.url.place} cannot be reached: {type(error).__name__}.", hint="Check the network."
        ) from None


def _find_base(bucket: Bucket) -> str:
    """Return the URL of the bucket as obstore makes it, from the environment and all."""
    import obstore

    with bucket.typed_errors():
        signed = obstore.sign(bucket.connect(f"s3://{bucket.url.bucket}"), "GET", "1", timedelta(minutes=5))
    return signed.partition("?")[0].removesuffix("/1")


def _read(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""
