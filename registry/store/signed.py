"""Requests to S3 that obstore cannot make, signed by it all the same; and what time a service says it is.

obstore can sign a URL, with credentials from wherever it has them, and signs the query that an endpoint carries, too:
so the query is given as part of the endpoint, and `x-id` (names beginning with x- are signed, and otherwise ignored by
S3) takes the key that obstore appends.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from registry.errors import StorageError, StoreUnavailable
from registry.store.bucket import Bucket

_MAX_ANSWER_BYTES = 16 * 2**20
_GOOGLE = "https://storage.googleapis.com"


def ask_service(bucket: Bucket, method: Any, path: str, query: dict[str, str]) -> bytes:
    """Make a signed request to the bucket (S3 alone), and return what is answered.

    Raises StoreUnavailable, with the status of the answer in its fields if there was one; a DELETE of nothing is none.
    """
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
            status=error.code,
        ) from None  # its message is short; the URL, which is signed, stays out of it
    except (OSError, HTTPException) as error:
        raise StoreUnavailable(
            f"The store {bucket.url.place} cannot be reached: {type(error).__name__}.", hint="Check the network."
        ) from None


def ask_time(bucket: Bucket) -> datetime | None:
    """Return what time the service says it is, in any answer at all; None if it does not say."""
    try:
        base = bucket.url.endpoint or (_GOOGLE if bucket.url.scheme == "gs" else _find_base(bucket))
        with urlopen(Request(base, method="HEAD"), timeout=bucket.url.timeout) as answer:
            return _read_date(answer.headers.get("Date"))
    except HTTPError as error:  # access is denied, say: that has a date, too
        with error:
            return _read_date(error.headers.get("Date"))
    except (OSError, HTTPException, StorageError):
        return None


def _read_date(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text) if text else None
    except ValueError:
        return None


def _find_base(bucket: Bucket) -> str:
    """Return the URL of the bucket as obstore makes it, from the environment and all."""
    import obstore

    with bucket.typed_errors():
        signed = obstore.sign(bucket.connect(f"s3://{bucket.url.bucket}"), "GET", "1", timedelta(minutes=5))
    return signed.partition("?")[0].removesuffix("/1")
