"""The bucket of a store: whether it answers, may be listed, read, written to and tidied up, its clock, and its rules.

An object is written and deleted again to find out, unless nothing may be written; what a doctor that was killed left
behind lies where `lensreg gc` finds it. A service that hangs is given up in time.
"""

from __future__ import annotations

import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice

from registry.doctor.finding import Finding, report_errors
from registry.errors import StorageError, StoreDenied, StoreUnavailable
from registry.store.bucket import Bucket, StoredObject
from registry.store.signed import ask_service, ask_time
from registry.store.uploads import list_uploads

SECONDS = 5.0  # for a request, which may be repeated
_ALL_SECONDS = 30.0  # after which nothing more is begun
_SKEW_SECONDS = 60.0
_REFUSED_SECONDS = 900.0  # S3 takes no signature that is older or younger
_OLD = timedelta(days=1)
_MANY_UPLOADS = 1000
_HARMFUL = ("{*}Expiration/{*}Days", "{*}Expiration/{*}Date", "{*}Transition")
_PROBE = b"lensreg doctor writes this and deletes it again"


def examine_bucket(bucket: Bucket, *, read_only: bool = False) -> list[Finding]:
    """Ask the bucket everything, within a minute; with `read_only` nothing is written there."""
    bucket = bucket.within(SECONDS)
    until = time.monotonic() + _ALL_SECONDS
    samples: list[StoredObject] = []
    findings = report_errors("bucket", partial(_examine_listing, bucket, samples))
    findings += _examine_clock(bucket)
    if any(one.state == "fault" for one in findings):
        return findings
    asked: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("bucket reading", partial(_examine_reading, bucket, samples)),
        *([] if read_only else [("bucket writing", partial(_examine_writing, bucket))]),
    ]
    if bucket.url.scheme == "s3" and not bucket.url.anonymous:
        asked += [
            ("bucket versioning", partial(_examine_versioning, bucket)),
            ("bucket rules", partial(_examine_rules, bucket)),
            ("unfinished uploads", partial(_examine_uploads, bucket)),
        ]
    for check, examine in asked:
        if time.monotonic() > until:
            to_do = "Ask again later; loading and registering will be as slow."
            findings.append(
                Finding("bucket", "warning", f"It is too slow to ask for everything, from {check} on.", to_do)
            )
            break
        findings += report_errors(check, examine)
    return findings


def _examine_listing(bucket: Bucket, samples: list[StoredObject]) -> Iterator[Finding]:
    began = time.monotonic()
    samples += islice(bucket.list("blobs"), 1)
    took = time.monotonic() - began
    what = "can be listed" + ("" if samples else "; there are no blobs yet")
    yield Finding("bucket", "ok", f"{bucket.url.place} answers within {took:.1f} s and {what}")


def _examine_clock(bucket: Bucket) -> list[Finding]:
    theirs = ask_time(bucket)
    if theirs is None:
        return []
    ahead = (theirs - datetime.now(UTC)).total_seconds()
    if abs(ahead) <= _SKEW_SECONDS:
        return [Finding("bucket clock", "ok", "as this machine's")]
    found = f"This machine's clock is {abs(ahead):,.0f} s {'behind' if ahead > 0 else 'ahead of'} the service's."
    if abs(ahead) < _REFUSED_SECONDS:
        to_do = "Set it (NTP). Requests are signed with the time, and blobs seem older or younger to lensreg gc."
        return [Finding("bucket clock", "warning", found, to_do)]
    return [
        Finding(
            "bucket clock", "fault", found, "Set it (NTP): signatures are refused that are a quarter of an hour off."
        )
    ]


def _examine_reading(bucket: Bucket, samples: list[StoredObject]) -> Iterator[Finding]:
    for one in samples:
        try:
            for _ in bucket.read(one.key, min(one.size_bytes, 1)):
                pass
        except StoreDenied as error:
            yield Finding("bucket reading", "fault", error.message, "Ask for the right to read objects (s3:GetObject).")
        except FileNotFoundError:  # somebody has deleted it meanwhile
            return
        else:
            yield Finding("bucket reading", "ok", "objects can be read")


def _examine_writing(bucket: Bucket) -> Iterator[Finding]:
    key = f"renewed/doctor.{uuid.uuid4().hex}"
    try:
        bucket.put(key, [_PROBE], len(_PROBE))
    except StoreDenied as error:
        to_do = "That is as it should be if you only load. Otherwise ask for s3:PutObject."
        yield Finding("bucket writing", "note", f"{error.message} Nothing can be registered.", to_do)
        return
    except StorageError:
        _delete(bucket, key)  # the answer may have been lost when it was written
        raise
    try:
        yield from _examine_probe(bucket, key)
    finally:
        denied = _delete(bucket, key)
    if denied is not None:
        found = f"Objects cannot be deleted: {denied.message} {key} is left there."
        to_do = "lensreg gc needs it: ask for s3:DeleteObject, or have somebody else tidy up."
        yield Finding("bucket deleting", "warning", found, to_do)
    else:
        yield Finding("bucket writing", "ok", "an object can be written, read and deleted")


def _examine_probe(bucket: Bucket, key: str) -> Iterator[Finding]:
    try:
        found = b"".join(bytes(chunk) for chunk in bucket.read(key, len(_PROBE)))
    except FileNotFoundError:
        found = b""
    if found != _PROBE:
        to_do = "Do not register there: it does not keep what it is given, or something on the way alters it."
        yield Finding("bucket contents", "fault", "What was written was not there, or not the same, when read.", to_do)
    try:
        is_honoured = not bucket.create(key, _PROBE)
    except StorageError as error:
        yield Finding(
            "bucket conditions", "note", f"It cannot create conditionally: {error.message}", "Nothing needs it."
        )
        return
    if is_honoured:
        yield Finding("bucket conditions", "ok", "If-None-Match is honoured")
    else:
        found_out = "If-None-Match is not honoured: an object that is there was written again."
        yield Finding("bucket conditions", "note", found_out, "Nothing here needs it; other programs may.")


def _delete(bucket: Bucket, key: str) -> StorageError | None:
    try:
        bucket.delete(key)
    except StorageError as error:
        return error
    return None


def _examine_versioning(bucket: Bucket) -> Iterator[Finding]:
    status = _ask(bucket, "versioning", "bucket versioning")
    if isinstance(status, Finding):
        yield status
    elif status is not None and status.findtext("{*}Status") == "Enabled":
        yield Finding("bucket versioning", "ok", "older versions of objects are kept: what is deleted can be had again")
    else:
        to_do = "Versioning with a rule that expires noncurrent versions late is a good backup of the blobs."
        yield Finding("bucket versioning", "note", "What is deleted or written over is lost.", to_do)


def _examine_rules(bucket: Bucket) -> Iterator[Finding]:
    """Look for rules that delete blobs or move them away, and for one that gives up what was never finished."""
    rules = _ask(bucket, "lifecycle", "bucket rules")
    if isinstance(rules, Finding):
        yield rules
        return
    enabled = (
        [] if rules is None else [one for one in rules.iterfind("{*}Rule") if one.findtext("{*}Status") == "Enabled"]
    )
    ours = [one for one in enabled if _touches(one, bucket.url.prefix)]
    harmful = [one for one in ours if any(one.find(path) is not None for path in _HARMFUL)]
    for one in harmful:
        name = ascii((one.findtext("{*}ID") or "without a name")[:100])
        to_do = "Exclude the store's prefix: blobs are needed for as long as versions name them, however old they are."
        yield Finding("bucket rules", "warning", f"The lifecycle rule {name} deletes blobs or moves them away.", to_do)
    if not any(one.find("{*}AbortIncompleteMultipartUpload") is not None for one in ours):
        to_do = "lensreg gc gives them up; a rule with AbortIncompleteMultipartUpload does it without anybody."
        yield Finding("bucket rules", "note", "No lifecycle rule gives up uploads that were never finished.", to_do)
    elif not harmful:
        yield Finding("bucket rules", "ok", "unfinished uploads are given up, and blobs left alone")


def _touches(rule: ElementTree.Element, prefix: str) -> bool:
    """Say whether a rule may be about blobs below `prefix`; one for objects with a tag is not, as ours have none."""
    if rule.find(".//{*}Filter//{*}Tag") is not None:
        return False
    theirs = next((rule.findtext(path) for path in (".//{*}Filter//{*}Prefix", "{*}Prefix") if rule.findtext(path)), "")
    ours = f"{prefix}/blobs/" if prefix else "blobs/"
    return ours.startswith(theirs or "") or (theirs or "").startswith(ours)


def _ask(bucket: Bucket, what: str, check: str) -> ElementTree.Element | Finding | None:
    """Ask for one of the bucket's settings: None if it has none, or a note that it may not be asked for."""
    try:
        return ElementTree.fromstring(ask_service(bucket, "GET", "", {what: ""}))
    except StoreUnavailable as error:
        status = error.fields.get("status")
        if status == 404:
            return None
        why = f"it answers with status {status}" if status else error.message
        return Finding(
            check, "note", f"The bucket's {what} cannot be asked for: {why}.", "Ask whoever keeps the bucket."
        )
    except ElementTree.ParseError:
        return Finding(check, "note", f"The service does not tell of its {what}.", "Ask whoever keeps the bucket.")


def _examine_uploads(bucket: Bucket) -> Iterator[Finding]:
    try:
        found = list(islice(list_uploads(bucket, must=True), _MANY_UPLOADS))
    except StorageError as error:
        what = f"Uploads that were never finished cannot be listed: {error.message}"
        yield Finding("unfinished uploads", "note", what, error.hint or "")
        return
    old = sum(one.modified_at < datetime.now(UTC) - _OLD for one in found)
    more = " or more" if len(found) == _MANY_UPLOADS else ""
    if old:
        what = f"{old:,}{more} uploads were never finished, and are charged for."
        yield Finding("unfinished uploads", "note", what, "lensreg gc gives them up.")
    else:
        yield Finding("unfinished uploads", "ok", f"{len(found):,} under way" if found else "none")
