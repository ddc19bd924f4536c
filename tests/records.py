"""Record versions with no network behind them: real rows, by `record_version`, with made-up digests.

For tests of the database side, which need names, lineage and aliases, but never a tensor.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from registry import Registry, Version
from registry.absent import parse_absent_parent
from registry.architecture import Architecture, describe_architecture
from registry.query import read_version
from registry.record import Draft, ParentEdge, record_version
from registry.resolve import resolve_ref
from registry.tables import version_parents, versions
from registry.tensor_digests import TensorRecord
from registry.versions import StoredFile
from registry.weights import digest_weights

_counter = itertools.count()


def digest_of(text: object) -> str:
    """Make up a SHA-256, the same for the same text."""
    return hashlib.sha256(repr(text).encode()).hexdigest()


def make_architecture(**changes: Any) -> Architecture:
    """Describe a small GPT-2."""
    fields: dict[str, Any] = {
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "d_head": 16,
        "d_mlp": 256,
        "d_vocab": 211,
        "n_ctx": 96,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "eps": 1e-5,
        "positional_embedding_type": "standard",
        "tie_word_embeddings": True,
    }
    return describe_architecture(**fields | changes)


def make_draft(
    model: str,
    *,
    parents: Sequence[ParentEdge] = (),
    step: int | None = None,
    note: str | None = None,
    tags: Mapping[str, str] | None = None,
    weights_digest: str | None = None,
    verified: bool = True,
    operation_id: str | None = None,
    absent: Sequence[str] = (),
    allow: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    architecture: Architecture | None = None,
    tensors: Mapping[str, TensorRecord] | None = None,
    shards: Sequence[str] = (),
) -> Draft:
    """Describe a version of `model` whose weights are made up: new ones, unless their digest is given."""
    digests = {name: one.digest for name, one in (tensors or {}).items()}
    if tensors:
        weights_digest = digest_weights(tensors, digests)
    weights_digest = weights_digest or digest_of(next(_counter))
    parity = {
        "suite": "parity",
        "value": 1e-6,
        "bound": 1e-4,
        "passed": True,
        "unit": "nats",
        "dtype": "float64",
        "n_samples": 128,
        "dataset_digest": digest_of("probe"),
        "details": {"noise_floor": 1e-7},
        "environment": {},
    }
    return Draft(
        model=model,
        step=step,
        family="gpt2",
        architecture=architecture or make_architecture(),
        weights_digest=weights_digest,
        vocabulary_digest=None,
        layout="huggingface",
        processing=None,
        dtype="float32",
        n_parameters=1000,
        source_kind="huggingface",
        source_location="/made/up",
        provenance=provenance or {},
        note=note,
        tags=tags or {},
        findings=(),
        files=(
            StoredFile("config.json", "config", digest_of("config"), 300),
            StoredFile("model.safetensors", "weights", digest_of(weights_digest), 4000),
            *(StoredFile(f"{digest}.safetensors", "weights", digest, 4000) for digest in shards),
        ),
        parents=parents,
        measurements=[{**parity, "metric": "raw"}, {**parity, "metric": "processed"}] if verified else [],
        operation_id=operation_id or uuid.uuid4().hex,
        absent_parents=[parse_absent_parent(one, allowed=allow) for one in absent],
        tensors=tensors or {},
        tensor_digests=digests,
    )


def add_version(
    connection: Connection, model: str, *, parents: Sequence[str] = (), relation: str = "finetuned", **draft: Any
) -> int:
    """Record a version within the caller's transaction; `parents` are refs. Return the database's id."""
    edges = [ParentEdge(resolve_ref(connection, ref).id, ref, relation) for ref in parents]
    return record_version(connection, make_draft(model, parents=edges, **draft))


def record(registry: Registry, model: str, **draft: Any) -> Version:
    """Record a version in a transaction of its own."""
    with registry.database.write() as connection:
        return read_version(connection, add_version(connection, model, **draft))


def record_all(registry: Registry, *drafts: Mapping[str, Any]) -> None:
    """Record several versions in one transaction."""
    with registry.database.write() as connection:
        for draft in drafts:
            add_version(connection, **draft)


def record_copies(registry: Registry, model: str, n: int, *, chain: bool = False) -> None:
    """Record a version and then insert `n` - 1 more rows like it, each the child of the one before if `chain`.

    This goes past `record_version`, for tests that need thousands of rows rather than true ones.
    """
    with registry.database.write() as connection:
        first = add_version(connection, model)
        row = connection.execute(select(versions).where(versions.c.id == first)).one()._asdict()
        del row["id"]
        rows = [
            row
            | {
                "number": number,
                "step": number * 10,
                "weights_digest": digest_of((model, number)),
                "operation_id": uuid.uuid4().hex,
            }
            for number in range(2, n + 1)
        ]
        connection.execute(insert(versions), rows)
        if chain:
            ids = connection.execute(
                select(versions.c.id).where(versions.c.model_id == row["model_id"]).order_by(versions.c.number)
            ).scalars()
            edge = {"relation": "continued", "admitted_differences": []}
            pairs = [{"parent_id": parent, "version_id": child, **edge} for parent, child in itertools.pairwise(ids)]
            connection.execute(insert(version_parents), pairs)
