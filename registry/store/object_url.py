"""The URL of an object store: which bucket, the prefix of its keys, and how it is reached.

s3://BUCKET/PREFIX   gs://BUCKET/PREFIX   az://CONTAINER/PREFIX
?endpoint=http://…   another service than Amazon's (MinIO, Ceph, R2 …)
&region=…            the bucket's region
&anonymous=true      requests are not signed: a public bucket, to read from
&timeout=60          seconds that one request may take

Credentials are never part of it: obstore takes them from the variables AWS_…, GOOGLE_… and AZURE_….
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from registry.errors import InvalidInput

SCHEMES = ("s3", "gs", "az")
TIMEOUT_SECONDS = 60.0
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}")
_PREFIX = re.compile(r"[a-zA-Z0-9!_.*'()-]+(/[a-zA-Z0-9!_.*'()-]+)*")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_OPTIONS = ("endpoint", "region", "anonymous", "timeout")


@dataclass(frozen=True)
class ObjectUrl:
    """Where an object store is; as text it is what was given, in one spelling."""

    scheme: str
    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    timeout: float = TIMEOUT_SECONDS

    def __str__(self) -> str:
        options = {
            "endpoint": self.endpoint,
            "region": self.region,
            "anonymous": "true" if self.anonymous else None,
            "timeout": f"{self.timeout:g}" if self.timeout != TIMEOUT_SECONDS else None,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return self.place + (f"?{urlencode(given, safe=':/')}" if given else "")

    @property
    def place(self) -> str:
        """The URL without options."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def cache_name(self) -> str:
        """The name of a folder for what is at this place, and for nothing else."""
        key = hashlib.sha256(f"{self.place} {self.endpoint}".encode()).hexdigest()[:16]
        return f"{self.scheme}-{self.bucket[:40]}-{key}"

    def config(self) -> dict[str, Any]:
        """Return what obstore is told besides what it finds in the environment."""
        config: dict[str, Any] = {}
        if self.endpoint is not None:
            config["base_url" if self.scheme == "gs" else "endpoint"] = self.endpoint
        if self.region is not None:
            config["region"] = self.region
        if self.anonymous:
            config["skip_signature"] = True
        return config


def parse_object_url(text: str) -> ObjectUrl:
    """Read the URL of an object store, or raise InvalidInput; a password in it is not repeated in the message."""
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise _refuse("The store's URL cannot be read.") from error
    if parts.scheme not in SCHEMES:
        raise _refuse(f"There are no stores at {parts.scheme}://.")
    if "@" in parts.netloc or any(name.lower().endswith(("key", "secret", "token", "password")) for name in options):
        raise InvalidInput(
            "The store's URL holds credentials, which would be printed and kept with it.",
            hint="Set them in the environment instead: AWS_ACCESS_KEY_ID and so on; see docs/object-stores.md.",
        )
    prefix = parts.path.strip("/")
    if not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
        raise _refuse(f"{text!r} names no bucket.")
    if prefix and (not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/"))):
        raise _refuse(f"{prefix!r} is no prefix of keys: letters, digits and -_.!*'() between single slashes.")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise _refuse(f"A store's URL has no option {', '.join(unknown)}; it has {', '.join(_OPTIONS)}.")
    return ObjectUrl(
        scheme=parts.scheme,
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=_read_endpoint(options.get("endpoint")),
        region=_read_region(options.get("region"), parts.scheme),
        anonymous=_read_flag(options.get("anonymous", "false")),
        timeout=_read_timeout(options.get("timeout")),
    )


def _read_endpoint(text: str | None) -> str | None:
    if text is None:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in text:
        raise _refuse("The endpoint of a store is http://HOST:PORT or https://HOST, without credentials.")
    return text.rstrip("/")


def _read_region(text: str | None, scheme: str) -> str | None:
    if text is not None and (scheme != "s3" or not _REGION.fullmatch(text)):
        raise _refuse(f"{text!r} is no region of S3.")
    return text


def _read_flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise _refuse(f"anonymous is true or false, not {text!r}.")
    return text == "true"


def _read_timeout(text: str | None) -> float:
    if text is None:
        return TIMEOUT_SECONDS
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text) or not float(text):
        raise _refuse(f"{text!r} is no number of seconds.")
    return float(text)


def _refuse(message: str) -> InvalidInput:
    return InvalidInput(
        message, hint="Write a folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX."
    )
