"""Register a checkpoint: read, fingerprint, compare, stage, convert and verify, store, record — in this order.

Nothing is visible before the last step, one transaction; until then a failure leaves nothing but what was staged, and
that is deleted. The bytes that are verified are the staged ones, and those become the blobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sqlalchemy import Connection

from registry.absent import explain_declarations
from registry.architecture import UNRELATED_PARENT, check_allowed
from registry.checkpoint import Checkpoint, read_checkpoint
from registry.compare_parent import compare_with_parent
from registry.database import Database
from registry.errors import InvalidInput
from registry.fetch import ParityChoice, describe_parity, fetch_version
from registry.files import open_files
from registry.model_names import check_new_model
from registry.ownership import change_with_blobs
from registry.parents import (
    check_relations,
    choose_relations,
    declare_absent,
    parse_absent_parents,
)
from registry.progress import Progress, no_progress
from registry.query import find_same_weights, read_newest, read_version
from registry.record import Draft, ParentEdge, record_version
from registry.refs import check_model_name, check_tag_key, check_text
from registry.registration import Registration, Request
from registry.resolve import refuse_retired, resolve_ref
from registry.sketch import Sketch
from registry.sources import Finding, ParentVersion
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
from registry.unchanged import find_unchanged, heal_unchanged
from registry.versions import AbsentParent, Version
from registry.weigh_parents import Claim, Weighed, weigh_parents

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from registry.verify import Parity
    from registry.verify_ahead import VerifiedAhead
    from registry.verify_checkpoint import Verified


def register_version(
    database: Database,
    store: LocalStore,
    request: Request,
    progress: Progress = no_progress,
    ahead: VerifiedAhead | None = None,
) -> Registration:
    """Register what `request` describes, or raise a RegistryError and leave nothing behind.

    What was verified `ahead`, of the very bytes that are staged now, is not verified again.
    """
    _check_request(request)
    with database.read() as connection:
        check_new_model(connection, request.name)
        found = {ref: read_parent(connection, database, store, ref, progress) for ref in request.parents}
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
        weights = describe_staged_weights(request, checkpoint, files, progress)
        with database.read() as connection:
            unchanged = find_unchanged(connection, request, checkpoint, weights, files)
        if unchanged:
            return heal_unchanged(database, store, unchanged, files, weights, request, progress)
        if ahead is not None and ahead.is_of(request, checkpoint, weights, files):
            verified = ahead.verified
        else:
            from registry.verify_checkpoint import verify_checkpoint  # torch, which what is there already does without

            verified = verify_checkpoint(request, checkpoint, weights, files, progress)
        with database.read() as connection:
            findings = _find_notable(connection, request.name, checkpoint, weights, verified, files, edges)
        weighed = _weigh(database, store, request, edges, parents, verified.sketch, progress)
        findings += weighed.findings
        edges = list(weighed.edges)
        draft = _make_draft(request, checkpoint, weights, verified, files, edges, absent, findings)
        draft = replace(draft, parent_sketches=weighed.taken)
        registration = _describe(draft, verified.parity, version=None)
        if request.dry_run:
            return registration
        store.publish(files.staged, progress)
        store.link_folder((file.name, file.digest) for file in files.stored)  # so that reading writes nothing
        published = {file.digest: file.size_bytes for file in files.staged}

        def record(connection: Connection) -> Registration:
            # another process may have registered the same meanwhile
            unchanged = find_unchanged(connection, request, checkpoint, weights, files)
            return unchanged or _describe(
                draft, verified.parity, read_version(connection, record_version(connection, draft))
            )

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
    if request.source_options.lazy and UNRELATED_PARENT in request.allow and not request.absent_parents:
        raise InvalidInput(
            "Whether weights that are left where they are come from a parent is found out when they are fetched.",
            hint=f"Say it then: lensreg fetch REF --allow {UNRELATED_PARENT}",
        )
    if request.step is not None and not (type(request.step) is int and 0 <= request.step < 10**15):
        raise InvalidInput(f"{request.step!r} is no training step.", hint="Steps are whole numbers that count from 0.")


def _save_network(network: HookedTransformer, folder: Path) -> Path:
    from registry.save import save_network

    return save_network(network, folder / "network")


def describe_staged_weights(request: Request, checkpoint: Checkpoint, files: Files, progress: Progress) -> Weights:
    """Digest the staged tensors, or describe by their headers those that are left where they are."""
    if checkpoint.family is None:
        return digest_staged_hooked_weights(files.paths("weights"), progress, files.staged)
    if request.source_options.lazy:
        return describe_weights(checkpoint.family, checkpoint.values, checkpoint.source.tensors)
    paths = files.paths("weights")
    return digest_staged_weights(checkpoint.family, checkpoint.values, paths, progress, files.staged)


def read_parent(
    connection: Connection, database: Database, store: LocalStore, ref: str, progress: Progress
) -> tuple[int, ParentVersion]:
    """Return the id of a parent, which must be in use, and the parent with the way to its files."""
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
    """Several parents are merged, but a teacher is none of what was merged."""
    n_teachers = list(request.relations.values()).count("distilled")
    return "merged" if n_parents + len(request.absent_parents) - n_teachers > 1 else "finetuned"


def _weigh(
    database: Database,
    store: LocalStore,
    request: Request,
    edges: Sequence[ParentEdge],
    parents: Mapping[int, ParentVersion],
    sketch: Sketch | None,
    progress: Progress,
) -> Weighed:
    """Compare the weights with every parent's; raises UnrelatedParent."""
    allowed = check_allowed(request.allow)
    claims = [Claim(edge, parents[edge.id].version, allowed) for edge in edges]
    lazy = request.source_options.lazy
    return weigh_parents(database, store, claims, sketch, request.source, progress, lazy=lazy)


def _find_notable(
    connection: Connection,
    model: str,
    checkpoint: Checkpoint,
    weights: Weights,
    verified: Verified,
    files: Files,
    edges: Sequence[ParentEdge],
) -> tuple[Finding, ...]:
    """Point out what is no fault but may surprise: the same weights elsewhere, another vocabulary than the parent's."""
    findings = [*checkpoint.source.findings, *_find_moved(connection, model, checkpoint.source.provenance)]
    vocabulary_digest = verified.vocabulary_digest
    same = find_same_weights(connection, weights.digest) if weights.digest else []
    if same:
        findings.append(Finding("identical-weights", f"The same weights are registered as {', '.join(same[:10])}."))
    for edge in edges:
        parent = read_version(connection, edge.id)
        if parent.vocabulary_digest and vocabulary_digest not in (None, parent.vocabulary_digest):
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
    verified: Verified,
    files: Files,
    edges: Sequence[ParentEdge],
    absent: Sequence[AbsentParent],
    findings: Sequence[Finding],
) -> Draft:
    return Draft(
        model=request.name,
        step=request.choose_step(checkpoint),
        family=checkpoint.family_name,
        architecture=checkpoint.architecture,
        weights_digest=weights.digest,
        vocabulary_digest=verified.vocabulary_digest,
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
        measurements=describe_parity(verified.parity) if verified.parity else [],
        operation_id=uuid.uuid4().hex,
        absent_parents=absent,
        tensors=weights.tensors,
        tensor_digests=weights.digests,
        sketch=verified.sketch,
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
