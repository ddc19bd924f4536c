"""Whose blobs lie in a store: every registry that keeps some there leaves its claim, and only a sole owner may tidy up.

A registry's id is the digest of its first event; its claim says where it was, and how far its trail went, when it last
put blobs there. So a registry that is given another's store by mistake is found out, and so is one that was restored
from a backup and no longer knows of all that it has put there.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from typing import TypeVar

from sqlalchemy import Connection, select

from registry.audit import read_head, read_registry_id
from registry.database import Database
from registry.errors import StorageError, StoreNotOwned
from registry.store import LocalStore
from registry.store.contents import Claim
from registry.tables import events

T = TypeVar("T")


def change_with_blobs(
    database: Database, store: LocalStore, blobs: Mapping[str, int], work: Callable[[Connection], T]
) -> T:
    """Do `work` in a write transaction: it writes rows that name these blobs, digest and size, which are in the store.

    Whoever deletes blobs does it in a write transaction, too. So they are looked at here once more: what is there now
    stays until the rows are, and from then on they are needed. Raises ArtifactMissing.
    """

    def check_and_work(connection: Connection) -> T:
        for digest, size_bytes in blobs.items():
            store.verify(digest, size_bytes)
        done = work(connection)
        registry_id = read_registry_id(connection)
        # before the rows are there, or another registry's gc might find blobs that nobody claims
        if registry_id is not None and not store.has_claim(registry_id):
            store.write_claim(_describe_claim(connection, database, registry_id))
        return done

    done = database.change(check_and_work)
    with contextlib.suppress(StorageError):  # on a full disk, say; the older claim does
        claim_store(database, store)
    return done


def claim_store(database: Database, store: LocalStore) -> None:
    """Write the registry's claim as of now."""
    with database.read() as connection:
        claim = make_claim(connection, database)
    if claim is not None:
        store.write_claim(claim)


def make_claim(connection: Connection, database: Database) -> Claim | None:
    """Say whose blobs these are; None while the registry's trail is empty, and it thus has no id."""
    registry_id = read_registry_id(connection)
    return None if registry_id is None else _describe_claim(connection, database, registry_id)


def _describe_claim(connection: Connection, database: Database, registry_id: str) -> Claim:
    return Claim(registry_id, f"{database} on {platform.node() or 'this machine'}", read_head(connection).digest)


def refuse_empty_store(database: Database, store: LocalStore) -> None:
    """Raise StoreNotOwned if this registry never kept anything in the store: then it is the wrong one."""
    with database.read() as connection:
        registry_id = read_registry_id(connection)
    if registry_id is not None and not store.has_claim(registry_id):
        raise StoreNotOwned(
            f"{store} holds nothing of {database}.", hint="Name the store: --store WHERE, or $LENSREG_STORE."
        )


def refuse_foreign_store(database: Database, store: LocalStore, *, adopt: bool = False) -> None:
    """Raise StoreNotOwned unless the store's blobs are this registry's alone, and it knows of all of them.

    With `adopt` it is enough that no other registry has a claim.
    """
    claims = store.list_claims()  # before the database: a claim comes after what it speaks of
    with database.read() as connection:
        mine = make_claim(connection, database)
        heads = [one.head for one in claims]
        known = set(connection.execute(select(events.c.digest).where(events.c.digest.in_(heads))).scalars())
    if mine is None:
        if not claims and next(store.list_blobs(), None) is None:
            return  # there is nothing yet
        raise StoreNotOwned(
            f"{database} has never registered anything, so what is in {store} may be another registry's.",
            hint="Check --registry and --store.",
        )
    others = [claim for claim in claims if claim.registry_id != mine.registry_id]
    if others:
        listed = ", ".join(claim.database for claim in others)
        raise StoreNotOwned(
            f"{store} also holds blobs of another registry ({listed}), and {database} cannot tell what that one needs.",
            hint="Check --registry and --store. If the other registry is gone for good, delete its claim: "
            f"{store}/registries/{others[0].registry_id}.json",
            registries=[vars(claim) for claim in others],
        )
    if adopt:
        return
    if not claims:
        raise StoreNotOwned(
            f"Nothing in {store} says whose blobs it holds.",
            hint=f"If they are all of {database}, say so once with --adopt.",
        )
    if claims[0].head not in known:
        raise StoreNotOwned(
            f"{store} holds blobs that were registered after {database} was last backed up: the database that knew of "
            "them has been replaced by an older one, or its trail was altered.",
            hint="See: lensreg audit verify. Register again what was lost, then say with --adopt that it is complete.",
        )
