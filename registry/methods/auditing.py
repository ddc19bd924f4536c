"""Whether all is as it was: the audit trail, signatures, and what is kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import InvalidInput, SignatureInvalid, StorageError
from registry.methods.opened import OpenedRegistry
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    from registry.attest import Attestation
    from registry.audit import ChainFault, Event, Head
    from registry.backup import Backup
    from registry.collect import Collection, CollectionPlan
    from registry.doctor import Finding
    from registry.quarantine import Quarantined
    from registry.results import Results
    from registry.verify_store import Verification


class Auditing(OpenedRegistry):
    """Methods that show and check the record."""

    def doctor(self, *, read_only: bool = False) -> list[Finding]:
        """Check whether packages, database and store are fit for a registry; it works when it cannot be opened, too.

        Nothing is changed, and what is wrong is a finding, not an error. What a file system or a bucket can do is tried
        with a file or an object that is deleted again; with `read_only` it is not.
        """
        from registry.doctor.examine import examine_registry
        from registry.store.objects import ObjectStore

        bucket = self.store.bucket if isinstance(self.store, ObjectStore) else None
        return examine_registry(self._unprepared, self.store.root, bucket, read_only=read_only)

    def events(
        self,
        subject: str | None = None,
        limit: int | None = None,
        *,
        before: int | None = None,
        action: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Results[Event]:
        """Return the audit trail, newest first, of everything or of one model or version: all, or a page of `limit`.

        `before` is the sequence of an event that all of the page came before. `actor` is `user@host`, or the user on
        any host; `since` is included, `until` is not.
        """
        from registry.audit import Event, EventFilters, read_events
        from registry.results import Results

        filters = EventFilters(action, actor, since, until)
        with self.database.read() as connection:
            return Results(read_events(connection, subject, limit, before=before, filters=filters), Event)

    def events_head(self) -> Head:
        """Return the digest that stands for the audit trail as it is now, to keep elsewhere."""
        from registry.audit import read_head

        with self.database.read() as connection:
            return read_head(connection)

    def verify_events(self, *, since: str | None = None) -> ChainFault | None:
        """Check the chain of events and return its first fault, or None.

        With `since`, a digest that `events_head` gave once, a trail that was cut or written anew is found too.
        """
        from registry.audit import verify_chain

        with self.database.read() as connection:
            return verify_chain(connection, since)

    def attest(
        self,
        ref: str,
        *,
        sign: str | Path | None = None,
        password: str | None = None,
        folder: str | Path | None = None,
    ) -> Attestation:
        """Return the in-toto statement of a version; with `sign`, a private key in PEM, sign it over all its files.

        The signature is kept in the audit trail, and both are saved in `folder` if one is given.
        """
        from registry.attest import attest_version, record_attestation
        from registry.files import refuse_unfetched

        version = self.version(ref)
        refuse_unfetched(version)
        attestation = attest_version(self.store, version, None if sign is None else Path(sign), password)
        if folder is not None:
            attestation.save(Path(folder))
        if sign is not None:
            self.database.change(lambda connection: record_attestation(connection, attestation))
        return attestation

    def verify_attestation(self, ref: str, public_key: str | Path, *, folder: str | Path | None = None) -> Attestation:
        """Check that a version was signed with the private half of `public_key`, and is still what was signed.

        The attestation is the one saved in `folder`, else any in the audit trail. Raises SignatureInvalid.
        """
        from registry.attest import read_attestations, read_saved_attestation, verify_any

        with self.database.read() as connection:
            version, found = read_attestations(connection, ref)
        if folder is not None:
            found = [read_saved_attestation(version, Path(folder))]
        return verify_any(self.store, version, found, Path(public_key))

    def verify(
        self,
        *refs: str,
        read_data: bool | tuple[int, int] = False,
        key: str | Path | None = None,
        progress: Progress = no_progress,
    ) -> Verification:
        """Check that what was registered is still there: the versions that `refs` mean, or all, retired ones too.

        Every blob must be there in its size, the chain of events unbroken, and the rows what the events say. With
        `read_data` every byte is hashed as well; `(n, t)` reads the n-th of t parts, so that t runs read everything.
        With `key`, a public key in PEM, each of the `refs` must be signed with its private half (see `attest`).
        Nothing is written, and faults are returned, not raised.
        """
        from registry.verify_records import Fault
        from registry.verify_store import verify_store

        done = verify_store(self.database, self.store, refs, read_data, progress)
        if key is None:
            return done
        if not refs:
            raise InvalidInput("Signatures are checked of versions that are named.", hint="Name them: REF …")
        faults = []
        for ref in refs:
            try:
                self.verify_attestation(ref, key)
            except (SignatureInvalid, StorageError) as error:
                faults.append(Fault(error.code, ref, error.message, error.hint or "", (ref,), 1))
        return done.with_faults(faults)

    def quarantine(self, found: Verification) -> list[Quarantined]:
        """Move the corrupt blobs that `verify` found aside, into the store's quarantine; none is deleted.

        Whoever loads such a version is told then that the blob is missing; registering the same source again heals it.
        """
        from registry.quarantine import quarantine_blobs

        return quarantine_blobs(self.database, self.store, found.faults)

    def plan_gc(self, *, grace: timedelta = timedelta(days=1), adopt: bool = False) -> CollectionPlan:
        """Say what no version needs and `gc` would delete: what is older than `grace`; nothing is changed.

        Blobs that no version names, not even a retired one; what crashes left in tmp/; folders whose blobs are gone;
        derived files that were never finished; quarantined blobs that were healed since or that nobody needs.

        Raises:
            StoreNotOwned: the store holds blobs of another registry too, or more than this one knows of. `adopt` says
                that this registry alone keeps blobs there, and that it is complete.
            StoreInconsistent: a blob that a version needs is not as it should be, or the chain of events is broken.
        """
        from registry.collect import plan_collection

        return self._with_room(lambda: plan_collection(self.database, self.store, grace, adopt=adopt))

    def gc(self, plan: CollectionPlan, *, progress: Progress = no_progress) -> Collection:
        """Delete what a plan of `plan_gc` names, unless somebody needs it by now.

        Raises what `plan_gc` raises, and StoreUnavailable for what cannot be deleted; what was, is recorded then too.
        """
        from registry.ballast import set_ballast_aside
        from registry.collect import collect, record_collection

        done = self._with_room(lambda: collect(self.database, self.store, plan, progress))
        self._with_room(lambda: record_collection(self.database, self.store, plan, done))
        set_ballast_aside(self.database)
        if done.fault is not None:
            raise done.fault
        return done

    def backup(self, target: str | Path, *, with_store: bool = False, progress: Progress = no_progress) -> Backup:
        """Write a SQLite database as it is now to the file `target`, or under a name with the time into that folder.

        `with_store` copies the blobs of all versions into `target`/store, those that are not there yet. Others may
        write meanwhile. Raises InvalidInput for a file that is there already, and for Postgres.
        """
        from registry.backup import back_up
        from registry.errors import SchemaOutdated

        try:
            database = self.database
        except SchemaOutdated:  # before it is upgraded is when it has to be backed up
            database = self._unprepared
        return back_up(database, self.store, Path(target).absolute(), with_store=with_store, progress=progress)
