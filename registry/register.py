"""Register a checkpoint: read, fingerprint, compare, stage, convert and verify, store, record — in this order.

Nothing is visible before the last step, one transaction; until then a failure leaves nothing but what was staged, and
that is deleted. The bytes that are verified are the staged ones, and those become the blobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import Connection

from registry.absent import explain_declarations
from registry.architecture import Architecture, Difference, check_allowed
from registry.checkpoint import Checkpoint, read_checkpoint
from registry.compare_parent import compare_with_parent
from registry.database import Database
from registry.errors import InvalidInput, LineageConflict
from registry.fetch import ParityChoice, describe_parity, fetch_version
from registry.files import open_files
from registry.ownership import change_with_blobs, claim_store
from registry.parents import (
    check_relations,
    choose_relations,
    declare_absent,
    parse_absent_parents,
    refuse_other_lineage,
)
from registry.progress import Progress, no_progress
from registry.query import find_same_weights, find_step, read_newest, read_version
from registry.record import Draft, ParentEdge, find_existing, record_missing_tensors, record_version
from registry.refs import check_model_name, check_tag_key, check_text
from registry.resolve import refuse_retired, resolve_ref
from registry.sources import Finding, ParentVersion, SourceOptions
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.stage import (
    Files,
    Weights,
    describe_weights,
    digest_staged_hooked_weights,
    digest_staged_weights,
    open_working_folder,
    refuse_misfits,
    stage_files,
)
from registry.store import LocalStore
from registry.tensor_digests import has_tensors
from registry.tokenizer_files import check_tokenizer_files
from registry.versions import AbsentParent, Version
from registry.weigh_parents import Weighed, weigh_parents

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from registry.verify import Parity


@dataclass(frozen=True)
class Request:
    """What somebody asks to have registered: what is at `source`, or the network in memory that it then describes.

    `relations` are those of single parents, absent or not, as they are written; `relation` is that of all others.
    """

    name: str
    source: str
    parents: tuple[str, ...] = ()
    relation: str | None = None
    relations: Mapping[str, str | None] = field(default_factory=dict)
    absent_parents: tuple[str, ...] = ()
    step: int | None = None
    allow: tuple[str, ...] = ()
    note: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    parity: ParityChoice | None = None
    source_options: SourceOptions = field(default_factory=SourceOptions)
    link: bool = False
    dry_run: bool = False
    network: HookedTransformer | None = None
    new_step: bool = False
    """Refuse other weights than those that the model has under this step already."""


@dataclass(frozen=True)
class Registration:
    """What came of it: `version` is None after a dry run; `outcome` says whether it was there already."""

    outcome: Literal["registered", "unchanged", "would-register"]
    name: str
    version: Version | None
    architecture: Architecture
    weights_digest: str | None
    n_parameters: int
    admitted_differences: tuple[Difference, ...]
    parity: Parity | None
    findings: tuple[Finding, ...]


def register_version(
    database: Database, store: LocalStore, request: Request, progress: Progress = no_progress
) -> Registration:
    """Register what `request` describes, or raise a RegistryError and leave nothing behind."""
    _check_request(request)
    with database.read() as connection:
        found = {ref: _read_parent(connection, database, store, ref, progress) for ref in request.parents}
    parents = dict(found.values())  # two refs may mean one version
    with open_working_folder(store, dry_run=request.dry_run) as folder:
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        location = _save_network(request.network, folder) if request.network is not None else request.source
        options = replace(request.source_options, parity=request.parity)
        checkpoint = read_checkpoint(location, unpacked, list(parents.values()), options)
        default = request.relation or checkpoint.source.relation or _guess_relation(request, len(parents))
        relations = choose_relations({ref: one for ref, (one, _) in found.items()}, request.relations, default)
        absent = parse_absent_parents(request.absent_parents, request.relations, default, request.allow)
        edges = _compare_with_parents(store, request, checkpoint, parents, relations)
        with database.read() as connection:
            declare_absent(connection, store, request.source, checkpoint, absent, parents)
        lazy = request.source_options.lazy
        refuse_misfits(checkpoint)
        files = stage_files(
            store,
            checkpoint.source,
            checkpoint.family,
            folder,
            link=request.link,
            lazy=lazy,
            dry_run=request.dry_run,
            progress=progress,
        )
        weights = _describe_weights(request, checkpoint, files, progress)
        with database.read() as connection:
            unchanged = _find_unchanged(connection, request, checkpoint, weights, files)
        if unchanged:
            return _heal(database, store, unchanged, files, weights, request, progress)
        vocabulary_digest, parity = _verify(request, checkpoint, weights, files, progress)
        with database.read() as connection:
            findings = _find_notable(connection, request.name, checkpoint, weights, vocabulary_digest, files, edges)
        weighed = _weigh(database, store, request, edges, parents, parity, progress)
        findings += weighed.findings
        edges = list(weighed.edges)
        draft = _make_draft(request, checkpoint, weights, vocabulary_digest, files, edges, absent, findings, parity)
        draft = replace(draft, parent_sketches=weighed.taken)
        registration = _describe(draft, parity, version=None)
        if request.dry_run:
            return registration
        store.publish(files.staged, progress)
        store.link_folder((file.name, file.digest) for file in files.stored)  # so that reading writes nothing
        published = {file.digest: file.size_bytes for file in files.staged}

        def record(connection: Connection) -> Registration:
            # another process may have registered the same meanwhile
            unchanged = _find_unchanged(connection, request, checkpoint, weights, files)
            return unchanged or _describe(draft, parity, read_version(connection, record_version(connection, draft)))

        return change_with_blobs(database, store, published, record)


def _check_request(request: Request) -> None:
    check_model_name(request.name)
    check_allowed(request.allow)
    check_text(request.note or "", "note")
    check_text(request.source, "source")
    if request.parity not in (None, *get_args(ParityChoice)):
        raise InvalidInput(f"{request.parity!r} is no way to verify.", hint="Give float64, float32 or skip.")
    for key, value in request.tags.items():
        check_tag_key(key)
        check_text(value, f"tag {key}")
    check_relations([request.relation, *request.relations.values()])
    parse_absent_parents(request.absent_parents, request.relations, "finetuned", request.allow)
    if request.relation is not None and not (request.parents or request.absent_parents):
        raise InvalidInput("A relation needs a parent.", hint="Name it with --parent REF.")
    if request.source_options.lazy and request.parity is not None:
        raise InvalidInput(
            "Parity cannot be measured of weights that are left where they are.",
            hint="Leave out --parity; give it when they are fetched: lensreg fetch REF --parity …",
        )
    if request.step is not None and not (type(request.step) is int and 0 <= request.step < 10**15):
        raise InvalidInput(f"{request.step!r} is no training step.", hint="Steps are whole numbers that count from 0.")


def _save_network(network: HookedTransformer, folder: Path) -> Path:
    from registry.save import save_network

    return save_network(network, folder / "network")


def _describe_weights(request: Request, checkpoint: Checkpoint, files: Files, progress: Progress) -> Weights:
    """Digest the staged tensors, or describe by their headers those that are left where they are."""
    if checkpoint.family is None:
        return digest_staged_hooked_weights(files.paths("weights"), progress, files.staged)
    if request.source_options.lazy:
        return describe_weights(checkpoint.family, checkpoint.values, checkpoint.source.tensors)
    paths = files.paths("weights")
    return digest_staged_weights(checkpoint.family, checkpoint.values, paths, progress, files.staged)


def _read_parent(
    connection: Connection, database: Database, store: LocalStore, ref: str, progress: Progress
) -> tuple[int, ParentVersion]:
    resolved = resolve_ref(connection, ref)
    refuse_retired(resolved)
    version = read_version(connection, resolved.id)
    return resolved.id, ParentVersion(
        version, lambda: open_files(store, fetch_version(database, store, version, None, progress), progress)
    )


def _compare_with_parents(
    store: LocalStore,
    request: Request,
    checkpoint: Checkpoint,
    parents: Mapping[int, ParentVersion],
    relations: Mapping[int, str],
) -> list[ParentEdge]:
    """Compare with every parent, and make the edges with what was admitted."""
    allowed = check_allowed(request.allow)
    edges = []
    for parent_id, parent in parents.items():
        admitted = compare_with_parent(store, parent.version, checkpoint, request.source, allowed)
        edges.append(ParentEdge(parent_id, parent.version.ref, relations[parent_id], admitted))
    return edges


def _guess_relation(request: Request, n_parents: int) -> str:
    return "merged" if n_parents + len(request.absent_parents) > 1 else "finetuned"


def _choose_step(request: Request, checkpoint: Checkpoint) -> int | None:
    return request.step if request.step is not None else checkpoint.source.step


def _find_unchanged(
    connection: Connection, request: Request, checkpoint: Checkpoint, weights: Weights, files: Files
) -> Registration | None:
    """Return the version that holds this already, if its step is the one asked for or none was asked for."""
    if request.dry_run:
        return None
    fingerprint = checkpoint.architecture.fingerprint
    for version in find_existing(connection, request.name, fingerprint, weights.digest, files.stored):
        step = _choose_step(request, checkpoint)
        if step is not None and step != version.step:
            continue
        absent = parse_absent_parents(request.absent_parents, {}, "finetuned", ())
        texts = (*request.parents, *request.absent_parents)
        named = {text: request.relations.get(text) or request.relation for text in texts}
        refuse_other_lineage(connection, version, request.parents, absent, named)
        return Registration(
            outcome="unchanged",
            name=request.name,
            version=version,
            architecture=checkpoint.architecture,
            weights_digest=weights.digest,
            n_parameters=weights.n_parameters,
            admitted_differences=(),
            parity=None,
            findings=(),
        )
    if request.new_step:
        _refuse_taken_step(connection, request.name, _choose_step(request, checkpoint))
    return None


def _refuse_taken_step(connection: Connection, name: str, step: int | None) -> None:
    taken = find_step(connection, name, step) if step is not None else None
    if taken is not None:
        raise LineageConflict(
            f"{taken} holds other weights for step {step} of {name}.",
            hint="Register another run under another NAME, or retire that version first.",
        )


def _heal(
    database: Database,
    store: LocalStore,
    unchanged: Registration,
    files: Files,
    weights: Weights,
    request: Request,
    progress: Progress,
) -> Registration:
    """Put the blobs of the version that is there already in place again, in case one was lost or damaged.

    Weights that had been left elsewhere are here now, so that they can be measured; and so are tensors whose digests
    were not kept when it was registered.
    """
    version = unchanged.version
    if version is None:
        return unchanged
    kept = {file.digest for file in version.files}
    store.publish((file for file in files.staged if file.digest in kept), progress, replace=True)
    claim_store(database, store)
    if request.source_options.lazy:
        return unchanged
    _record_missing_tensors(database, version, weights)
    return replace(unchanged, version=fetch_version(database, store, version, request.parity, progress))


def _record_missing_tensors(database: Database, version: Version, weights: Weights) -> None:
    if version.weights_digest is None or weights.digest != version.weights_digest:
        return
    with database.read() as connection:
        missing = not has_tensors(connection, version.weights_digest)
    if missing:
        database.change(
            lambda connection: record_missing_tensors(connection, version, weights.tensors, weights.digests)
        )


def _verify(
    request: Request, checkpoint: Checkpoint, weights: Weights, files: Files, progress: Progress
) -> tuple[str | None, Parity | None]:
    """Check tensors and tokenizer, convert and measure parity; return the vocabulary digest and the measurement."""
    from registry.tokenizers import check_tokenizer, load_tokenizer

    if request.parity != "skip" and not checkpoint.is_bridged_only:
        import registry.hooked_transformer  # noqa: F401 (raises HookedTransformerMissing)
    _check_tensors(checkpoint, weights)
    vocabulary_digest = None
    if files.paths("tokenizer"):
        check_tokenizer_files(files.paths("tokenizer"), checkpoint.architecture["d_vocab"])
        vocabulary_digest = check_tokenizer(load_tokenizer(files.folder), checkpoint.architecture["d_vocab"])
    if weights.digest is None:
        return vocabulary_digest, None
    return vocabulary_digest, _measure_parity(request, checkpoint, files.paths("weights"), progress)


def _check_tensors(checkpoint: Checkpoint, weights: Weights) -> None:
    """Check the staged tensors' names, shapes and dtypes against the architecture."""
    if checkpoint.family is None:
        from registry.hooked_weights import check_hooked_weights

        check_hooked_weights(checkpoint.architecture, weights.tensors, HOOKED_CONFIG)
    else:
        from registry.networks import check_tensors

        check_tensors(checkpoint.family, checkpoint.values, weights.tensors)


def _measure_parity(
    request: Request, checkpoint: Checkpoint, paths: Sequence[Path], progress: Progress
) -> Parity | None:
    """Measure parity and refuse disparity, or with `skip` only look for NaN and infinities."""
    if checkpoint.family is None:
        from registry.verify_hooked import verify_hooked_weights

        applied = checkpoint.processing or ()
        return verify_hooked_weights(
            checkpoint.architecture, applied, paths, choice=request.parity, location=request.source, progress=progress
        )
    from registry.verify_weights import verify_weights

    return verify_weights(
        checkpoint.family,
        checkpoint.values,
        checkpoint.architecture,
        paths,
        choice=request.parity,
        location=request.source,
        progress=progress,
    )


def _weigh(
    database: Database,
    store: LocalStore,
    request: Request,
    edges: Sequence[ParentEdge],
    parents: Mapping[int, ParentVersion],
    parity: Parity | None,
    progress: Progress,
) -> Weighed:
    """Compare the weights with every parent's; raises UnrelatedParent."""
    found = {one: parent.version for one, parent in parents.items()}
    sketch, allowed = parity.sketch if parity else None, check_allowed(request.allow)
    return weigh_parents(database, store, edges, found, sketch, request.source, allowed, progress)


def _find_notable(
    connection: Connection,
    model: str,
    checkpoint: Checkpoint,
    weights: Weights,
    vocabulary_digest: str | None,
    files: Files,
    edges: Sequence[ParentEdge],
) -> tuple[Finding, ...]:
    """Point out what is no fault but may surprise: the same weights elsewhere, another vocabulary than the parent's."""
    findings = [*checkpoint.source.findings, *_find_moved(connection, model, checkpoint.source.provenance)]
    same = find_same_weights(connection, weights.digest) if weights.digest else []
    if same:
        findings.append(Finding("identical-weights", f"The same weights are registered as {', '.join(same[:10])}."))
    for edge in edges:
        parent = read_version(connection, edge.id)
        if parent.vocabulary_digest and vocabulary_digest and parent.vocabulary_digest != vocabulary_digest:
            message = f"The tokenizer's vocabulary is not that of {edge.ref}: the same text gives other token ids."
            findings.append(Finding("other-vocabulary", message))
    origin, architecture = checkpoint.source.provenance, checkpoint.architecture
    findings += explain_declarations(connection, origin, weights.digest, files.stored, architecture)
    return tuple(findings)


def _find_moved(connection: Connection, model: str, origin: Mapping[str, Any]) -> list[Finding]:
    """Point out that a branch on the Hub is another commit than it was for the model's newest version."""
    newest = read_newest(connection, model) if origin.get("repo") else None
    if newest is None or newest.provenance.get("commit") == origin["commit"]:
        return []
    if any(newest.provenance.get(key) != origin[key] for key in ("repo", "revision")):
        return []
    message = (
        f"{origin['revision']} of {origin['repo']} has moved: it was commit {newest.provenance['commit'][:12]} for "
        f"{newest.ref}, which stays as it is, and is {origin['commit'][:12]} now."
    )
    return [Finding("moved-revision", message)]


def _make_draft(
    request: Request,
    checkpoint: Checkpoint,
    weights: Weights,
    vocabulary_digest: str | None,
    files: Files,
    edges: Sequence[ParentEdge],
    absent: Sequence[AbsentParent],
    findings: Sequence[Finding],
    parity: Parity | None,
) -> Draft:
    return Draft(
        model=request.name,
        step=_choose_step(request, checkpoint),
        family=checkpoint.family_name,
        architecture=checkpoint.architecture,
        weights_digest=weights.digest,
        vocabulary_digest=vocabulary_digest,
        layout=checkpoint.source.layout,
        processing=checkpoint.processing,
        dtype=weights.dtype,
        n_parameters=weights.n_parameters,
        source_kind=checkpoint.source.kind,
        source_location=request.source,
        provenance=checkpoint.source.provenance,
        note=request.note,
        tags=request.tags,
        findings=findings,
        files=files.stored,
        parents=edges,
        measurements=describe_parity(parity) if parity else [],
        operation_id=uuid.uuid4().hex,
        absent_parents=absent,
        tensors=weights.tensors,
        tensor_digests=weights.digests,
        sketch=parity.sketch if parity else None,
    )


def _describe(draft: Draft, parity: Parity | None, version: Version | None) -> Registration:
    return Registration(
        outcome="registered" if version else "would-register",
        name=draft.model,
        version=version,
        architecture=draft.architecture,
        weights_digest=draft.weights_digest,
        n_parameters=draft.n_parameters,
        admitted_differences=tuple(difference for edge in draft.parents for difference in edge.admitted_differences),
        parity=parity,
        findings=tuple(draft.findings),
    )
