"""Read a manifest or a record that nobody vouches for: only what is listed here, in bounds, and agreeing with itself.

What is read was made by `form.py`, or it is refused: the text has to be the canonical one, the fields exactly these,
digests those of what they are of, and the rows what the events say.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from registry.absent import parse_absent_parent
from registry.architecture import Architecture, check_allowed
from registry.audit import Event, Head, digest_event
from registry.compare_sketches import Evidence
from registry.errors import InvalidInput, MalformedExport
from registry.hooked_config import PROCESSING_FLAGS
from registry.plain_text import clean_line
from registry.refs import check_alias_name, check_model_name, check_tag_key, check_text, parse_ref
from registry.said import take_in
from registry.sketch import Sketch, unpack
from registry.tables import RELATIONS
from registry.transfer.files import check_files
from registry.transfer.form import FORMAT, FORMAT_VERSION, Entry, Manifest, RecordedParent, VersionRecord, encode
from registry.versions import PARITY_METRICS, AbsentParent, StoredFile
from registry.weights import MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_TENSORS

MAX_BYTES = 64 * 2**20
"""Of a manifest, and of a record."""
MAX_RECORDS = 100_000
MAX_LISTED = 1_000_000
MAX_DEPTH = 100
MAX_NUMBER = 2**62
_LONG_TEXT = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OPERATION = re.compile(r"[0-9a-f]{32}")
_ACTION = re.compile(r"[a-z][a-z.-]{0,63}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")
_LAYOUTS = ("huggingface", "hooked")
_VERDICTS = ("related", "unrelated", "unchanged", "not-comparable")

T = TypeVar("T")


def parse_manifest(text: bytes) -> Manifest:
    """Read a manifest, or raise MalformedExport."""
    whole = _load(text, "the list of an export")
    if isinstance(whole, dict) and whole.get("format") == FORMAT and whole.get("format_version") != FORMAT_VERSION:
        raise MalformedExport(
            f"The export has format {whole.get('format_version')!r:.40}; this lens-registry reads {FORMAT_VERSION}.",
            hint="Update lens-registry, or export again with this release.",
        )
    found = _object(whole, ("format", "format_version", "registry", "named", "records", "blobs"), "the manifest")
    if found["format"] != FORMAT:
        raise _malformed("it is no export of lensreg")
    registry = _object(found["registry"], ("id", "location", "n_events", "head"), "its registry")
    entries = _list(found["records"], "records", _parse_entry, MAX_RECORDS)
    blobs = _list(found["blobs"], "blobs", _parse_blob)
    if list(blobs) != sorted(dict(blobs).items()):
        raise _malformed("its blobs are not in order, or one is listed twice")
    for name in ("operation_id", "digest", "ref"):
        if len({getattr(one, name) for one in entries}) != len(entries):
            raise _malformed(f"it lists a record twice ({name})")
    return Manifest(
        registry_id=_digest(registry["id"], "the registry's id"),
        location=_text(registry["location"], "the registry's location", 1000),
        head=Head(_number(registry["n_events"], "n_events"), _digest(registry["head"], "the head")),
        named=_list(found["named"], "named", lambda one: _text(one, "a ref", 300), MAX_RECORDS),
        entries=entries,
        blobs=dict(blobs),
    )


def parse_record(text: bytes, entry: Entry, head: Head) -> VersionRecord:
    """Read the record that `entry` announces, or raise MalformedExport; `head` is where the sender's trail ended."""
    whole = _object(_load(text, entry.ref), tuple(VersionRecord.__dataclass_fields__), entry.ref)
    try:
        record = _parse_fields(whole)
    except InvalidInput as error:  # a name, a tag or a text that could not be here either
        raise _malformed(f"{entry.ref}: {error.message}") from None
    if (record.ref, record.operation_id) != (entry.ref, entry.operation_id):
        raise _malformed(f"the record of {entry.ref} is of another version")
    _check_agreement(record, head)
    return record


def _parse_entry(value: Any) -> Entry:
    found = _object(value, ("ref", "operation_id", "digest", "size_bytes"), "a record's entry")
    size = _number(found["size_bytes"], "a record's size")
    if size > MAX_BYTES:
        raise _malformed(f"a record has {size:,} bytes")
    return Entry(
        _ref(found["ref"]),
        _matching(_OPERATION, found["operation_id"], "an operation"),
        _digest(found["digest"], "a record"),
        size,
    )


def _parse_blob(value: Any) -> tuple[str, int]:
    found = _object(value, ("digest", "size_bytes"), "a blob's entry")
    return _digest(found["digest"], "a blob"), _number(found["size_bytes"], "a blob's size")


def _parse_fields(whole: Mapping[str, Any]) -> VersionRecord:
    layout = _one_of(whole["layout"], _LAYOUTS, "layout")
    files = _list(whole["files"], "files", _parse_file)
    check_files(files, layout)
    weights_digest = _maybe(whole["weights_digest"], lambda one: _digest(one, "the weights"))
    processing = _maybe(whole["processing"], lambda one: _list(one, "processing", _parse_flag))
    absent = _list(whole["absent_parents"], "absent parents", _parse_absent)
    return VersionRecord(
        operation_id=_matching(_OPERATION, whole["operation_id"], "the operation"),
        model=check_model_name(_text(whole["model"], "the model", 200)),
        number=_number(whole["number"], "the number", 1, 10**9 - 1),
        step=_maybe(whole["step"], lambda one: _number(one, "the step", 0, 10**15 - 1)),
        family=_text(whole["family"], "the family", 64),
        fingerprint=_digest(whole["fingerprint"], "the fingerprint"),
        architecture=_plain_object(whole["architecture"], "the architecture"),
        weights_digest=weights_digest,
        vocabulary_digest=_maybe(whole["vocabulary_digest"], lambda one: _digest(one, "the vocabulary")),
        layout=layout,
        processing=processing,
        dtype=_text(whole["dtype"], "the dtype", 32),
        n_parameters=_number(whole["n_parameters"], "n_parameters"),
        source_kind=_text(whole["source_kind"], "the kind of source", 32),
        source_location=_text(whole["source_location"], "the source"),
        provenance=_plain_object(whole["provenance"], "the provenance"),
        note=_maybe(whole["note"], lambda one: _text(one, "the note")),
        findings=_list(whole["findings"], "findings", _parse_finding),
        created_at=_instant(whole["created_at"]),
        retired_at=_maybe(whole["retired_at"], _instant),
        files=files,
        parents=_list(whole["parents"], "parents", lambda one: _parse_parent(one, len(absent))),
        absent_parents=absent,
        aliases=_list(whole["aliases"], "aliases", lambda one: check_alias_name(_text(one, "an alias", 96))),
        tags={
            check_tag_key(key): check_text(value, "tag's value")
            for key, value in _plain_object(whole["tags"], "the tags").items()
        },
        validations=_list(whole["validations"], "measurements", _parse_validation),
        sketch=_maybe(whole["sketch"], lambda one: _parse_sketch(one, processing or ())),
        events=_list(whole["events"], "events", _parse_event),
    )


def _check_agreement(record: VersionRecord, head: Head) -> None:
    """Refuse a record whose parts contradict each other: what was altered in one place shows in another."""
    what = record.ref
    if Architecture(record.architecture).fingerprint != record.fingerprint:
        raise _malformed(f"the architecture of {what} has another fingerprint")
    if (record.layout == "hooked") != (record.processing is not None):
        raise _malformed(f"{what} has the layout {record.layout} and the processing {record.processing}")
    if record.is_lazy and (
        record.sketch is not None
        or not isinstance(record.provenance.get("repo"), str)
        or not _is_commit(record.provenance.get("commit"))
    ):
        raise _malformed(f"the weights of {what} are not sent, and it does not say where on the Hub they are")
    if record.sketch is not None and any(
        math.prod(shape) > record.n_parameters for shape in record.sketch.shapes.values()
    ):
        raise _malformed(f"the sketch of {what} is of a greater network")
    for parents in ([one.operation_id for one in record.parents], [one.ref for one in record.parents]):
        if len(set(parents)) != len(parents) or {record.operation_id, what}.intersection(parents):
            raise _malformed(f"{what} has a parent twice, or is its own")
    declared = [one.declared for one in record.parents if one.declared is not None]
    if len(set(declared)) != len(declared) or len({one.ref for one in record.absent_parents}) != len(
        record.absent_parents
    ):
        raise _malformed(f"{what} declares a parent twice")
    _check_events(record, head)


def _check_events(record: VersionRecord, head: Head) -> None:
    what = record.ref
    said: dict[str, Any] | None = None
    before: Event | None = None
    for event in record.events:
        row = {name: getattr(event, name) for name in Event.__dataclass_fields__}
        if event.subject != what or digest_event(row) != event.digest:
            raise _malformed(f"event {event.sequence} about {what} was altered")
        if before is not None and event.sequence <= before.sequence:
            raise _malformed(f"the events about {what} are not in order")
        if before is not None and event.sequence == before.sequence + 1 and event.previous_digest != before.digest:
            raise _malformed(f"event {event.sequence} about {what} does not follow the one before it")
        if event.sequence > head.n_events or (event.sequence == head.n_events and event.digest != head.digest):
            raise _malformed(f"event {event.sequence} about {what} is not of the trail that the export names")
        said = take_in(said, event.action, event.details)
        before = event
    if said is None:
        raise _malformed(f"no event says how {what} came in")
    found = {
        "step": record.step,
        "weights_digest": record.weights_digest,
        "vocabulary_digest": record.vocabulary_digest,
        "files": {one.name: one.digest for one in record.files},
        "parents": {one.ref: one.relation for one in record.parents},
    }
    wrong = [name for name, value in found.items() if said.get(name) != value]
    if wrong:
        raise _malformed(f"the record of {what} does not say what its events say: {', '.join(wrong)}")


def _parse_file(value: Any) -> StoredFile:
    found = _object(value, ("name", "role", "digest", "size_bytes"), "a file")
    name, role = _text(found["name"], "a file's name", 255), _text(found["role"], "a file's role", 16)
    return StoredFile(name, role, _digest(found["digest"], name), _number(found["size_bytes"], f"the size of {name}"))


def _parse_flag(value: Any) -> str:
    return _one_of(value, PROCESSING_FLAGS, "processing")


def _parse_finding(value: Any) -> dict[str, str]:
    found = _object(value, ("code", "message"), "a finding")
    return {"code": _text(found["code"], "a finding's code", 64), "message": _text(found["message"], "a finding")}


def _parse_parent(value: Any, n_absent: int) -> RecordedParent:
    found = _object(value, tuple(RecordedParent.__dataclass_fields__), "a parent")
    return RecordedParent(
        operation_id=_matching(_OPERATION, found["operation_id"], "a parent's operation"),
        ref=_ref(found["ref"]),
        relation=_one_of(found["relation"], RELATIONS, "a relation"),
        admitted_differences=_list(found["admitted_differences"], "admitted differences", _parse_difference),
        evidence=_maybe(found["evidence"], _parse_evidence),
        declared=_maybe(found["declared"], lambda one: _number(one, "a declaration", 0, n_absent - 1)),
    )


def _parse_difference(value: Any) -> dict[str, Any]:
    found = _object(value, ("field", "config_key", "parent", "checkpoint"), "a difference")
    check_allowed([_text(found["field"], "a field", 200)])
    _maybe(found["config_key"], lambda one: _text(one, "a config key", 200))
    return found


def _parse_evidence(value: Any) -> dict[str, Any]:
    known = dict.fromkeys(Evidence.__dataclass_fields__)
    # what an older release weighed lacks what it did not know
    found = _object({**known, **_plain_object(value, "the evidence")}, tuple(known), "the evidence")
    _one_of(found["verdict"], _VERDICTS, "the verdict")
    for name in ("n_matrices", "n_unchanged"):
        _number(found[name], name)
    for name in ("correlation", "distance", "z", "changed_correlation", "changed_distance"):
        _maybe(found[name], lambda one: _float(one, "the evidence"))
    return found


def _parse_absent(value: Any) -> AbsentParent:
    found = _object(value, ("repo", "revision", "digest", "relation", "allowed"), "an absent parent")
    repo, revision = _text(found["repo"], "a repo", 200), _text(found["revision"], "a revision", 200)
    digest = _maybe(found["digest"], lambda one: _digest(one, "an absent parent"))
    relation = _one_of(found["relation"], RELATIONS, "a relation")
    allowed = _list(found["allowed"], "allowed", lambda one: _text(one, "a field", 200))
    check_allowed(allowed)
    parsed = parse_absent_parent(f"{repo}@{revision}" + (f"#sha256:{digest}" if digest else ""), relation, allowed)
    if (parsed.repo, parsed.revision) != (repo, revision):
        raise _malformed("an absent parent is no model on the Hub")
    return AbsentParent(repo, revision, digest, relation, allowed)


def _parse_validation(value: Any) -> dict[str, Any]:
    names = ("suite", "metric", "value", "bound", "passed", "unit", "dtype", "n_samples", "dataset_digest")
    of_runs = ("run_id", "suite_version", "direction", "seed", "device", "seconds", "parameters", "weights_digest")
    # an older release knew no runs
    known = {**dict.fromkeys(of_runs), **_plain_object(value, "a measurement")}
    found = _object(known, (*names, "details", "environment", "created_at", *of_runs), "a measurement")
    row: dict[str, Any] = {
        "suite": _text(found["suite"], "a suite", 64),
        "metric": _text(found["metric"], "a metric", 64),
        "value": _maybe(found["value"], lambda one: _float(one, "a value")),
        "bound": _maybe(found["bound"], lambda one: _float(one, "a bound")),
        "passed": _maybe(found["passed"], _bool),
        "unit": _maybe(found["unit"], lambda one: _text(one, "a unit", 32)),
        "dtype": _maybe(found["dtype"], lambda one: _text(one, "a dtype", 32)),
        "n_samples": _maybe(found["n_samples"], lambda one: _number(one, "n_samples")),
        "dataset_digest": _maybe(found["dataset_digest"], lambda one: _digest(one, "a dataset")),
        "details": _plain_object(found["details"], "the details"),
        "environment": _plain_object(found["environment"], "the environment"),
        "created_at": _instant(found["created_at"]),
        "run_id": _maybe(found["run_id"], lambda one: _matching(_OPERATION, one, "a run")),
        "suite_version": _maybe(found["suite_version"], lambda one: _text(one, "a suite's version", 32)),
        "direction": _maybe(found["direction"], lambda one: _one_of(one, ("lower", "higher"), "a direction")),
        "seed": _maybe(found["seed"], lambda one: _number(one, "a seed")),
        "device": _maybe(found["device"], lambda one: _text(one, "a device", 64)),
        "seconds": _maybe(found["seconds"], lambda one: _float(one, "a duration")),
        "parameters": _maybe(found["parameters"], lambda one: _plain_object(one, "the parameters")),
        "weights_digest": _maybe(found["weights_digest"], lambda one: _digest(one, "measured weights")),
    }
    if row["suite"] == "parity" and row["metric"] in PARITY_METRICS:
        value, bound = _float(row["value"], "parity"), _float(row["bound"], "the bound of parity")
        _float(row["details"].get("noise_floor"), "the noise floor")
        if row["passed"] is not (value <= bound):
            raise _malformed(f"a parity of {value} with the bound {bound} says passed: {row['passed']}")
    return row


def _parse_sketch(value: Any, processing: tuple[str, ...]) -> Sketch:
    found = _object(value, ("shapes", "samples"), "the sketch")
    shapes = _list(found["shapes"], "the shapes of a sketch", _parse_sketched, MAX_TENSORS)
    names = [name for name, _ in shapes]
    if names != sorted(set(names)):
        raise _malformed("the matrices of a sketch are not in order, or one is there twice")
    try:
        samples = base64.b64decode(found["samples"], validate=True)
        forms = json.dumps([[name, list(shape)] for name, shape in shapes], separators=(",", ":"), ensure_ascii=False)
        return unpack(zlib.compress(forms.encode()), samples, processing)
    except (ValueError, TypeError) as error:
        raise _malformed(f"a sketch is not whole: {error}") from None


def _parse_sketched(value: Any) -> tuple[str, tuple[int, ...]]:
    if not isinstance(value, list) or len(value) != 2:
        raise _malformed("a matrix of a sketch is not a name and a shape")
    shape = _shape(value[1])
    if len(shape) < 2 or 0 in shape:
        raise _malformed("what is sketched is no matrix")
    return _tensor_name(value[0]), shape


def _parse_event(value: Any) -> Event:
    found = _object(value, tuple(Event.__dataclass_fields__), "an event")
    return Event(
        sequence=_number(found["sequence"], "an event's number", 1),
        at=_text(found["at"], "an event's time", 32),
        actor=_text(found["actor"], "an actor", 255),
        action=_matching(_ACTION, found["action"], "an action"),
        subject=_ref(found["subject"]),
        details=_plain_object(found["details"], "an event's details"),
        environment=_plain_object(found["environment"], "an event's environment"),
        previous_digest=_digest(found["previous_digest"], "an event"),
        digest=_digest(found["digest"], "an event"),
    )


# --- values ----------------------------------------------------------------------------------------------------


def _load(text: bytes, what: str) -> Any:
    """Read canonical JSON of bounded size and depth, which holds nothing that a database stores otherwise."""
    if len(text) > MAX_BYTES:
        raise _malformed(f"{what} has {len(text):,} bytes")
    try:
        value = json.loads(text)
        if encode(value) != text:
            raise _malformed(f"{what} is not written in the canonical form, so it was altered")
    except RecursionError:
        raise _malformed(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"{what} is not JSON ({error})") from None
    _check_values(value, what)
    return value


def _check_values(value: Any, what: str) -> None:
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _malformed(f"{what} is nested too deeply")
        if isinstance(one, dict):
            waiting += [(part, depth + 1) for item in one.items() for part in item]
        elif isinstance(one, list):
            waiting += [(part, depth + 1) for part in one]
        elif isinstance(one, str) and _UNSTORABLE.search(one):
            raise _malformed(f"{what} holds text that not every database can store")
        elif type(one) is int and not -MAX_NUMBER < one < MAX_NUMBER:
            raise _malformed(f"{what} holds a number that is too big")


def _object(value: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    found = _plain_object(value, what)
    if set(found) != set(names):
        odd = ", ".join(sorted(set(found) ^ set(names))[:5])
        raise _malformed(f"{what} does not have the fields that it should: {odd[:200]}")
    return found


def _plain_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(f"{what} is no JSON object")
    return value


def _list(value: Any, what: str, each: Callable[[Any], T], limit: int = MAX_LISTED) -> tuple[T, ...]:
    if not isinstance(value, list) or len(value) > limit:
        raise _malformed(f"{what} is no list, or too long a list")
    return tuple(each(one) for one in value)


def _maybe(value: Any, parse: Callable[[Any], T]) -> T | None:
    return None if value is None else parse(value)


def _text(value: Any, what: str, limit: int = _LONG_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise _malformed(f"{what} is no text, or too long a text")
    return value


def _matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _malformed(f"{what} is called {str(value)[:80]!r}")
    return value


def _digest(value: Any, what: str) -> str:
    return _matching(_DIGEST, value, f"the digest of {what}")


def _is_commit(value: Any) -> bool:
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


def _ref(value: Any) -> str:
    text = _text(value, "a ref", 300)
    try:
        kind = parse_ref(text).kind
    except InvalidInput as error:
        raise _malformed(error.message) from None
    if kind != "number":
        raise _malformed(f"{text!r} is not NAME@vN")
    return text


def _one_of(value: Any, known: tuple[str, ...], what: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise _malformed(f"{what} is {str(value)[:80]!r}, and not one of {', '.join(known[:20])}")
    return value


def _number(value: Any, what: str, least: int = 0, most: int = MAX_NUMBER) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _malformed(f"{what} is {str(value)[:80]}")
    return value


def _float(value: Any, what: str) -> float:
    if type(value) not in (int, float):
        raise _malformed(f"{what} is {str(value)[:80]!r}, which is no number")
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _malformed(f"{str(value)[:80]!r} is neither true nor false")
    return value


def _instant(value: Any) -> datetime:
    try:
        instant = datetime.fromisoformat(_text(value, "an instant", 40))
        if instant.tzinfo is None:
            raise ValueError("no time zone")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _malformed(f"{str(value)[:40]!r} is no instant with a time zone") from None


def _shape(value: Any) -> tuple[int, ...]:
    return _list(value, "a shape", lambda one: _number(one, "a shape"), MAX_DIMENSIONS)


def _tensor_name(value: Any) -> str:
    name = _text(value, "a tensor's name", MAX_NAME_BYTES)
    if not name.isprintable() or not name:
        raise _malformed("a tensor's name is empty or holds control characters")
    return name


def _malformed(what: str) -> MalformedExport:
    return MalformedExport(
        f"The export cannot be received: {clean_line(what)[:1000]}. Nothing was changed.",
        hint="Ask whoever made it to export it again, and compare the digest that lensreg export printed: "
        "lensreg import SOURCE --expect sha256:…",
    )
