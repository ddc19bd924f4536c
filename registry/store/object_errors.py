"""From what obstore raises to errors that say what to do; nothing of a request but its place is repeated."""

from __future__ import annotations

import re

from registry.errors import StorageError, StoreDenied, StoreUnavailable
from registry.store.object_url import ObjectUrl

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_METADATA = ("169.254.169.254", "metadata.google.internal", "169.254.170.")
_ENVIRONMENT = {
    "s3": "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), or add ?anonymous=true if it is public.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to a key file, or add ?anonymous=true if it is public.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or add ?anonymous=true if it is public.",
}
_REGION = "Add ?region=… to the store's URL."
_LATER = "Try again in a while."
_ALTERED = "Try again; something on the way alters bytes."
_SEE = "See docs/object-stores.md for what a service needs."
# what services say in <Code>, in the words of people: whether it is a matter of rights, what is wrong, what to do
_CODES = {
    "NoSuchBucket": (False, "there is no such bucket", "Check its name and region, or create it."),
    "AccessDenied": (
        True,
        "access is denied",
        "Ask for the rights to list, read and write it (s3:ListBucket, s3:GetObject, s3:PutObject).",
    ),
    "AllAccessDisabled": (True, "access is disabled", "Ask whoever keeps the bucket."),
    "InvalidAccessKeyId": (True, "the access key is not known there", "Check AWS_ACCESS_KEY_ID and the endpoint."),
    "SignatureDoesNotMatch": (True, "the secret key is wrong", "Check AWS_SECRET_ACCESS_KEY."),
    "ExpiredToken": (True, "the credentials have expired", "Log in again, and export the new ones."),
    "InvalidToken": (True, "the session token is not valid", "Check AWS_SESSION_TOKEN, or log in again."),
    "RequestTimeTooSkewed": (
        False,
        "this machine's clock is wrong",
        "Set it (NTP): requests are signed with the time.",
    ),
    "AuthorizationHeaderMalformed": (False, "the bucket is in another region", _REGION),
    "PermanentRedirect": (False, "the bucket is in another region", _REGION),
    "SlowDown": (False, "it asks for fewer requests", _LATER),
    "ServiceUnavailable": (False, "it is overloaded", _LATER),
    "InternalError": (False, "it failed within", _LATER),
    "XAmzContentSHA256Mismatch": (False, "what arrived there is not what was sent", _ALTERED),
    "BadDigest": (False, "what arrived there is not what was sent", _ALTERED),
    "NotImplemented": (False, "the service cannot do that", _SEE),
}
_BY_STATUS = {
    "401": "InvalidAccessKeyId",
    "403": "AccessDenied",
    "500": "InternalError",
    "501": "NotImplemented",
    "503": "SlowDown",
}


def describe_error(url: ObjectUrl, error: Exception) -> StorageError:
    """Make the typed error for one of obstore's; `error` is not a missing object, which callers know better."""
    text = str(error)
    if any(host in text for host in _METADATA) or "credential" in text.partition("\n")[0].lower():
        return _make(url, True, "there are no credentials for it here", _ENVIRONMENT[url.scheme])
    code, status = _CODE.search(text), _STATUS.search(text)
    name = code[1] if code and code[1] in _CODES else _BY_STATUS.get(status[1] if status else "", "")
    if name in _CODES:
        return _make(url, *_CODES[name])
    if "Received redirect without LOCATION" in text:
        return _make(url, *_CODES["PermanentRedirect"])
    if "BadScheme" in text:
        return _make(url, False, "it is not reached by https", "Name the endpoint in its URL: ?endpoint=http://…")
    if "kind: Timeout" in text:
        what = f"it did not answer within {url.timeout:g} s"
        return _make(url, False, what, "Check the network; ?timeout=SECONDS allows for more.")
    if "kind: Connect" in text:
        return _make(url, False, "it cannot be reached", "Check the endpoint and the network, proxies included.")
    if "HTTP error" in text or "kind: " in text:
        return _make(url, False, "the connection broke, again and again", "Check the network, and try again.")
    said = code[1] if code else f"status {status[1]}" if status else type(error).__name__
    return _make(url, False, f"it answered with {said}", _SEE)


def refuse_forked(url: ObjectUrl) -> StoreUnavailable:
    """Make the error for a process that was forked after its parent had used an object store."""
    return StoreUnavailable(
        f"The store {url.place} cannot be used here: this process was forked from one that had used an object store.",
        hint='Start processes with multiprocessing.get_context("spawn") or "forkserver", or open the store only there.',
    )


def _make(url: ObjectUrl, denied: bool, what: str, hint: str) -> StorageError:
    kind = StoreDenied if denied else StoreUnavailable
    return kind(f"The store {url.place} cannot be used: {what}.", hint=hint)
