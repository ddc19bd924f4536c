"""The digests of single tensors, kept once for each weights digest: what is needed to say which tensors differ.

They prove themselves: the weights digest is the digest of exactly these names, dtypes, shapes and digests, so that what
is read from the database is checked against its own key.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from registry.errors import DatabaseError
from registry.rows import insert_missing
from registry.tables import tensor_digests
from registry.weights import TensorForm, digest_weights

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class TensorRecord:
    """What is recorded of one tensor: its safetensors dtype, its shape, and the SHA-256 of its bytes in hex."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


def record_tensors(
    connection: Connection, weights_digest: str, tensors: Mapping[str, TensorForm], digests: Mapping[str, str]
) -> bool:
    """Keep the digests of some weights' tensors; False if they are kept already."""
    return insert_missing(connection, tensor_digests, [pack_tensors(weights_digest, tensors, digests)])


def pack_tensors(weights_digest: str, tensors: Mapping[str, TensorForm], digests: Mapping[str, str]) -> dict[str, Any]:
    """Make the row that keeps the digests of some weights' tensors."""
    names = sorted(digests)
    forms = [[name, tensors[name].dtype, list(tensors[name].shape)] for name in names]
    return {
        "weights_digest": weights_digest,
        "n_tensors": len(names),
        "forms": zlib.compress(json.dumps(forms, separators=(",", ":"), ensure_ascii=False).encode()),
        "digests": b"".join(bytes.fromhex(digests[name]) for name in names),
    }


def has_tensors(connection: Connection, weights_digest: str) -> bool:
    """Return whether the digests of these weights' tensors are kept."""
    query = select(tensor_digests.c.n_tensors).where(tensor_digests.c.weights_digest == weights_digest)
    return connection.execute(query).first() is not None


def read_tensors(connection: Connection, weights_digest: str) -> dict[str, TensorRecord] | None:
    """Return what is recorded of these weights' tensors, by name, or None if nothing is.

    Raises DatabaseError if it is not what the weights digest was made of.
    """
    row = connection.execute(select(tensor_digests).where(tensor_digests.c.weights_digest == weights_digest)).first()
    if row is None:
        return None
    try:
        forms = json.loads(zlib.decompress(row.forms))
        digests = [row.digests[start : start + _DIGEST_BYTES] for start in range(0, len(row.digests), _DIGEST_BYTES)]
        tensors = {
            name: TensorRecord(dtype, tuple(shape), digest.hex())
            for (name, dtype, shape), digest in zip(forms, digests, strict=True)
        }
    except (ValueError, TypeError, zlib.error):
        raise _altered(weights_digest) from None
    if digest_weights(tensors, {name: one.digest for name, one in tensors.items()}) != weights_digest:
        raise _altered(weights_digest)
    return tensors


def _altered(weights_digest: str) -> DatabaseError:
    return DatabaseError(
        f"The recorded tensors of sha256:{weights_digest[:16]} are not those of these weights.",
        hint="The record was altered or damaged. See: lensreg audit verify; then restore a backup.",
    )
