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
from collections.abc import Mapping
from typing import Any

from registry.absent import parse_absent_parent
from registry.architecture import Architecture, check_allowed
from registry.audit import Event, Head, digest_event
from registry.compare_sketches import Evidence
from registry.errors import InvalidInput, MalformedExport
from registry.hooked_config import PROCESSING_FLAGS
from registry.refs import check_alias_name, check_model_name, check_tag_key, check_text
from registry.said import take_in
from registry.sketch import Sketch, unpack
from registry.tables import RELATIONS
from registry.transfer import values
from registry.transfer.files import check_files
from registry.transfer.form import FORMAT, FORMAT_VERSION, Entry, Manifest, RecordedParent, VersionRecord
from registry.versions import PARITY_METRICS, AbsentParent, StoredFile
from registry.weights import MAX_TENSORS

MAX_RECORDS = 100_000
_OPERATION = re.compile(r"[0-9a-f]{32}")
_ACTION = re.compile(r"[a-z][a-z.-]{0,63}")
_LAYOUTS = ("huggingface", "hooked")
_DIRECTIONS = ("lower", "higher")
_VERDICTS = ("related", "unrelated", "unchanged", "not-comparable")


def parse_manifest(text: bytes) -> Manifest:
    """Read a manifest, or raise MalformedExport."""
    whole = values.load(text, "the list of an export")
    if isinstance(whole, dict) and whole.get("format") == FORMAT and whole.get("format_version") != FORMAT_VERSION:
        raise MalformedExport(
            f"The export has format {whole.get('format_version')!r:.40}; this lens-registry reads {FORMAT_VERSION}.",
            hint="Update lens-registry, or export again with this release.",
        )
    found = values.fields(whole, ("format", "format_version", "registry", "named", "records", "blobs"), "the manifest")
    if found["format"] != FORMAT:
        raise values.malformed("it is no export of lensreg")
    registry = values.fields(found["registry"], ("id", "location", "n_events", "head"), "its registry")
    entries = values.list_of(found["records"], "records", _parse_entry, MAX_RECORDS)
    blobs = values.list_of(found["blobs"], "blobs", _parse_blob)
    if list(blobs) != sorted(dict(blobs).items()):
        raise values.malformed("its blobs are not in order, or one is listed twice")
    for name in ("operation_id", "digest", "ref"):
        if len({getattr(one, name) for one in entries}) != len(entries):
            raise values.malformed(f"it lists a record twice ({name})")
    return Manifest(
        registry_id=values.digest(registry["id"], "the registry's id"),
        location=values.string(registry["location"], "the registry's location", 1000),
        head=Head(values.number(registry["n_events"], "n_events"), values.digest(registry["head"], "the head")),
        named=values.list_of(found["named"], "named", lambda one: values.string(one, "a ref", 300), MAX_RECORDS),
        entries=entries,
        blobs=dict(blobs),
    )


def parse_record(text: bytes, entry: Entry, head: Head) -> VersionRecord:
    """Read the record that `entry` announces, or raise MalformedExport; `head` is where the sender's trail ended."""
    whole = values.fields(values.load(text, entry.ref), tuple(VersionRecord.__dataclass_fields__), entry.ref)
    try:
        record = _parse_fields(whole)
    except InvalidInput as error:  # a name, a tag or a text that could not be here either
        raise values.malformed(f"{entry.ref}: {error.message}") from None
    if (record.ref, record.operation_id) != (entry.ref, entry.operation_id):
        raise values.malformed(f"the record of {entry.ref} is of another version")
    _check_agreement(record, head)
    return record


def _parse_entry(value: Any) -> Entry:
    found = values.fields(value, ("ref", "operation_id", "digest", "size_bytes"), "a record's entry")
    size = values.number(found["size_bytes"], "a record's size")
    if size > values.MAX_BYTES:
        raise values.malformed(f"a record has {size:,} bytes")
    return Entry(
        values.ref(found["ref"]),
        values.matching(_OPERATION, found["operation_id"], "an operation"),
        values.digest(found["digest"], "a record"),
        size,
    )


def _parse_blob(value: Any) -> tuple[str, int]:
    found = values.fields(value, ("digest", "size_bytes"), "a blob's entry")
    return values.digest(found["digest"], "a blob"), values.number(found["size_bytes"], "a blob's size")


def _parse_fields(whole: Mapping[str, Any]) -> VersionRecord:
    layout = values.one_of(whole["layout"], _LAYOUTS, "layout")
    files = values.list_of(whole["files"], "files", _parse_file)
    check_files(files, layout)
    weights_digest = values.maybe(whole["weights_digest"], lambda one: values.digest(one, "the weights"))
    processing = values.maybe(whole["processing"], lambda one: values.list_of(one, "processing", _parse_flag))
    absent = values.list_of(whole["absent_parents"], "absent parents", _parse_absent)
    return VersionRecord(
        operation_id=values.matching(_OPERATION, whole["operation_id"], "the operation"),
        model=check_model_name(values.string(whole["model"], "the model", 200)),
        number=values.number(whole["number"], "the number", 1, 10**9 - 1),
        step=values.maybe(whole["step"], lambda one: values.number(one, "the step", 0, 10**15 - 1)),
        family=values.string(whole["family"], "the family", 64),
        fingerprint=values.digest(whole["fingerprint"], "the fingerprint"),
        architecture=values.plain_object(whole["architecture"], "the architecture"),
        weights_digest=weights_digest,
        vocabulary_digest=values.maybe(whole["vocabulary_digest"], lambda one: values.digest(one, "the vocabulary")),
        layout=layout,
        processing=processing,
        dtype=values.string(whole["dtype"], "the dtype", 32),
        n_parameters=values.number(whole["n_parameters"], "n_parameters"),
        source_kind=values.string(whole["source_kind"], "the kind of source", 32),
        source_location=values.string(whole["source_location"], "the source"),
        provenance=values.plain_object(whole["provenance"], "the provenance"),
        note=values.maybe(whole["note"], lambda one: values.string(one, "the note")),
        findings=values.list_of(whole["findings"], "findings", _parse_finding),
        created_at=values.instant(whole["created_at"]),
        retired_at=values.maybe(whole["retired_at"], values.instant),
        files=files,
        parents=values.list_of(whole["parents"], "parents", lambda one: _parse_parent(one, len(absent))),
        absent_parents=absent,
        aliases=values.list_of(whole["aliases"], "aliases", _parse_alias),
        tags={
            check_tag_key(key): check_text(value, "tag's value")
            for key, value in values.plain_object(whole["tags"], "the tags").items()
        },
        validations=values.list_of(whole["validations"], "measurements", _parse_validation),
        sketch=values.maybe(whole["sketch"], lambda one: _parse_sketch(one, processing or ())),
        events=values.list_of(whole["events"], "events", _parse_event),
    )


def _check_agreement(record: VersionRecord, head: Head) -> None:
    """Refuse a record whose parts contradict each other: what was altered in one place shows in another."""
    what = record.ref
    if Architecture(record.architecture).fingerprint != record.fingerprint:
        raise values.malformed(f"the architecture of {what} has another fingerprint")
    if (record.layout == "hooked") != (record.processing is not None):
        raise values.malformed(f"{what} has the layout {record.layout} and the processing {record.processing}")
    if record.is_lazy and (
        record.sketch is not None
        or not isinstance(record.provenance.get("repo"), str)
        or not values.is_commit(record.provenance.get("commit"))
    ):
        raise values.malformed(f"the weights of {what} are not sent, and it does not say where on the Hub they are")
    if record.sketch is not None and any(
        math.prod(shape) > record.n_parameters for shape in record.sketch.shapes.values()
    ):
        raise values.malformed(f"the sketch of {what} is of a greater network")
    for parents in ([one.operation_id for one in record.parents], [one.ref for one in record.parents]):
        if len(set(parents)) != len(parents) or {record.operation_id, what}.intersection(parents):
            raise values.malformed(f"{what} has a parent twice, or is its own")
    declared = [one.declared for one in record.parents if one.declared is not None]
    if len(set(declared)) != len(declared) or len({one.ref for one in record.absent_parents}) != len(
        record.absent_parents
    ):
        raise values.malformed(f"{what} declares a parent twice")
    _check_events(record, head)


def _check_events(record: VersionRecord, head: Head) -> None:
    what = record.ref
    said: dict[str, Any] | None = None
    before: Event | None = None
    for event in record.events:
        row = {name: getattr(event, name) for name in Event.__dataclass_fields__}
        if event.subject != what or digest_event(row) != event.digest:
            raise values.malformed(f"event {event.sequence} about {what} was altered")
        if before is not None and event.sequence <= before.sequence:
            raise values.malformed(f"the events about {what} are not in order")
        if before is not None and event.sequence == before.sequence + 1 and event.previous_digest != before.digest:
            raise values.malformed(f"event {event.sequence} about {what} does not follow the one before it")
        if event.sequence > head.n_events or (event.sequence == head.n_events and event.digest != head.digest):
            raise values.malformed(f"event {event.sequence} about {what} is not of the trail that the export names")
        said = take_in(said, event.action, event.details)
        before = event
    if said is None:
        raise values.malformed(f"no event says how {what} came in")
    found = {
        "step": record.step,
        "weights_digest": record.weights_digest,
        "vocabulary_digest": record.vocabulary_digest,
        "files": {one.name: one.digest for one in record.files},
        "parents": {one.ref: one.relation for one in record.parents},
    }
    wrong = [name for name, value in found.items() if said.get(name) != value]
    if wrong:
        raise values.malformed(f"the record of {what} does not say what its events say: {', '.join(wrong)}")


def _parse_file(value: Any) -> StoredFile:
    found = values.fields(value, ("name", "role", "digest", "size_bytes"), "a file")
    name, role = values.string(found["name"], "a file's name", 255), values.string(found["role"], "a file's role", 16)
    size = values.number(found["size_bytes"], f"the size of {name}")
    return StoredFile(name, role, values.digest(found["digest"], name), size)


def _parse_alias(value: Any) -> str:
    return check_alias_name(values.string(value, "an alias", 96))


def _parse_flag(value: Any) -> str:
    return values.one_of(value, PROCESSING_FLAGS, "processing")


def _parse_finding(value: Any) -> dict[str, str]:
    found = values.fields(value, ("code", "message"), "a finding")
    code = values.string(found["code"], "a finding's code", 64)
    return {"code": code, "message": values.string(found["message"], "a finding")}


def _parse_parent(value: Any, n_absent: int) -> RecordedParent:
    found = values.fields(value, tuple(RecordedParent.__dataclass_fields__), "a parent")
    return RecordedParent(
        operation_id=values.matching(_OPERATION, found["operation_id"], "a parent's operation"),
        ref=values.ref(found["ref"]),
        relation=values.one_of(found["relation"], RELATIONS, "a relation"),
        admitted_differences=values.list_of(found["admitted_differences"], "admitted differences", _parse_difference),
        evidence=values.maybe(found["evidence"], _parse_evidence),
        declared=values.maybe(found["declared"], lambda one: values.number(one, "a declaration", 0, n_absent - 1)),
    )


def _parse_difference(value: Any) -> dict[str, Any]:
    found = values.fields(value, ("field", "config_key", "parent", "checkpoint"), "a difference")
    check_allowed([values.string(found["field"], "a field", 200)])
    values.maybe(found["config_key"], lambda one: values.string(one, "a config key", 200))
    return found


def _parse_evidence(value: Any) -> dict[str, Any]:
    known = dict.fromkeys(Evidence.__dataclass_fields__)
    # what an older release weighed lacks what it did not know
    found = values.fields({**known, **values.plain_object(value, "the evidence")}, tuple(known), "the evidence")
    values.one_of(found["verdict"], _VERDICTS, "the verdict")
    for name in ("n_matrices", "n_unchanged"):
        values.number(found[name], name)
    for name in ("correlation", "distance", "z", "changed_correlation", "changed_distance"):
        values.maybe(found[name], lambda one: values.real(one, "the evidence"))
    return found


def _parse_absent(value: Any) -> AbsentParent:
    found = values.fields(value, ("repo", "revision", "digest", "relation", "allowed"), "an absent parent")
    repo, revision = values.string(found["repo"], "a repo", 200), values.string(found["revision"], "a revision", 200)
    digest = values.maybe(found["digest"], lambda one: values.digest(one, "an absent parent"))
    relation = values.one_of(found["relation"], RELATIONS, "a relation")
    allowed = values.list_of(found["allowed"], "allowed", lambda one: values.string(one, "a field", 200))
    check_allowed(allowed)
    parsed = parse_absent_parent(f"{repo}@{revision}" + (f"#sha256:{digest}" if digest else ""), relation, allowed)
    if (parsed.repo, parsed.revision) != (repo, revision):
        raise values.malformed("an absent parent is no model on the Hub")
    return AbsentParent(repo, revision, digest, relation, allowed)


def _parse_validation(value: Any) -> dict[str, Any]:
    names = ("suite", "metric", "value", "bound", "passed", "unit", "dtype", "n_samples", "dataset_digest")
    of_runs = ("run_id", "suite_version", "direction", "seed", "device", "seconds", "parameters", "weights_digest")
    # an older release knew no runs
    known = {**dict.fromkeys(of_runs), **values.plain_object(value, "a measurement")}
    found = values.fields(known, (*names, "details", "environment", "created_at", *of_runs), "a measurement")
    row: dict[str, Any] = {
        "suite": values.string(found["suite"], "a suite", 64),
        "metric": values.string(found["metric"], "a metric", 64),
        "value": values.maybe(found["value"], lambda one: values.real(one, "a value")),
        "bound": values.maybe(found["bound"], lambda one: values.real(one, "a bound")),
        "passed": values.maybe(found["passed"], values.boolean),
        "unit": values.maybe(found["unit"], lambda one: values.string(one, "a unit", 32)),
        "dtype": values.maybe(found["dtype"], lambda one: values.string(one, "a dtype", 32)),
        "n_samples": values.maybe(found["n_samples"], lambda one: values.number(one, "n_samples")),
        "dataset_digest": values.maybe(found["dataset_digest"], lambda one: values.digest(one, "a dataset")),
        "details": values.plain_object(found["details"], "the details"),
        "environment": values.plain_object(found["environment"], "the environment"),
        "created_at": values.instant(found["created_at"]),
        "run_id": values.maybe(found["run_id"], lambda one: values.matching(_OPERATION, one, "a run")),
        "suite_version": values.maybe(found["suite_version"], lambda one: values.string(one, "a suite's version", 32)),
        "direction": values.maybe(found["direction"], lambda one: values.one_of(one, _DIRECTIONS, "a direction")),
        "seed": values.maybe(found["seed"], lambda one: values.number(one, "a seed")),
        "device": values.maybe(found["device"], lambda one: values.string(one, "a device", 64)),
        "seconds": values.maybe(found["seconds"], lambda one: values.real(one, "a duration")),
        "parameters": values.maybe(found["parameters"], lambda one: values.plain_object(one, "the parameters")),
        "weights_digest": values.maybe(found["weights_digest"], lambda one: values.digest(one, "measured weights")),
    }
    if row["suite"] == "parity" and row["metric"] in PARITY_METRICS:
        value, bound = values.real(row["value"], "parity"), values.real(row["bound"], "the bound of parity")
        values.real(row["details"].get("noise_floor"), "the noise floor")
        if row["passed"] is not (value <= bound):
            raise values.malformed(f"a parity of {value} with the bound {bound} says passed: {row['passed']}")
    return row


def _parse_sketch(value: Any, processing: tuple[str, ...]) -> Sketch:
    found = values.fields(value, ("shapes", "samples"), "the sketch")
    shapes = values.list_of(found["shapes"], "the shapes of a sketch", _parse_sketched, MAX_TENSORS)
    names = [name for name, _ in shapes]
    if names != sorted(set(names)):
        raise values.malformed("the matrices of a sketch are not in order, or one is there twice")
    try:
        samples = base64.b64decode(found["samples"], validate=True)
        forms = json.dumps([[name, list(shape)] for name, shape in shapes], separators=(",", ":"), ensure_ascii=False)
        return unpack(zlib.compress(forms.encode()), samples, processing)
    except (ValueError, TypeError) as error:
        raise values.malformed(f"a sketch is not whole: {error}") from None


def _parse_sketched(value: Any) -> tuple[str, tuple[int, ...]]:
    if not isinstance(value, list) or len(value) != 2:
        raise values.malformed("a matrix of a sketch is not a name and a shape")
    shape = values.shape(value[1])
    if len(shape) < 2 or 0 in shape:
        raise values.malformed("what is sketched is no matrix")
    return values.tensor_name(value[0]), shape


def _parse_event(value: Any) -> Event:
    found = values.fields(value, tuple(Event.__dataclass_fields__), "an event")
    return Event(
        sequence=values.number(found["sequence"], "an event's number", 1),
        at=values.string(found["at"], "an event's time", 32),
        actor=values.string(found["actor"], "an actor", 255),
        action=values.matching(_ACTION, found["action"], "an action"),
        subject=values.ref(found["subject"]),
        details=values.plain_object(found["details"], "an event's details"),
        environment=values.plain_object(found["environment"], "an event's environment"),
        previous_digest=values.digest(found["previous_digest"], "an event"),
        digest=values.digest(found["digest"], "an event"),
    )
