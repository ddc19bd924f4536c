"""Attest a version: an in-toto statement of what it is, signed over its very files with OpenSSF model-signing.

What is signed is a folder with the version's files and the statement, so that the signature binds the name and the
version to the bytes. The statement and the signature are kept in an event of the audit trail.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from registry.audit import append_event
from registry.errors import InvalidInput, PackageMissing, SignatureInvalid
from registry.files import refuse_unfetched
from registry.query import read_version
from registry.resolve import resolve_ref
from registry.store import LocalStore
from registry.tables import events
from registry.versions import Version

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:lens-registry:version:v1"
ATTESTED = "version.attested"
STATEMENT_FILE = "lensreg-attestation.json"
SIGNATURE_FILE = "lensreg-attestation.sig"


@dataclass(frozen=True)
class Attestation:
    """A version's statement, with its signature (a Sigstore bundle, as JSON) if it was signed."""

    version: Version
    statement: Mapping[str, Any]
    signature: str | None = None

    def save(self, folder: Path) -> None:
        """Write the statement, and the signature beside it, into `folder`; existing files are not overwritten."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((STATEMENT_FILE, _write(self.statement)), (SIGNATURE_FILE, self.signature)):
            if text is not None:
                try:
                    with (folder / name).open("x", encoding="utf-8") as file:
                        file.write(text)
                except FileExistsError:
                    raise InvalidInput(f"{folder / name} exists already.", hint="Give a new folder.") from None


def describe_statement(version: Version) -> dict[str, Any]:
    """Say in an in-toto statement what a version is; what may change later (aliases, validations) is left out.

    The subjects are its files with their SHA-256. Format: in-toto Attestation Framework, Statement v1.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.name, "digest": {"sha256": file.digest}} for file in version.files],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "model": version.model,
            "version": version.number,
            "step": version.step,
            "family": version.family,
            "fingerprint": version.fingerprint,
            "architecture": dict(version.architecture),
            "weightsDigest": version.weights_digest,
            "vocabularyDigest": version.vocabulary_digest,
            "layout": version.layout,
            "processing": None if version.processing is None else list(version.processing),
            "parents": [
                {"ref": parent.ref, "relation": parent.relation}
                for parent in version.parents
                if parent.declared is None  # one that was joined later is said as it was declared
            ],
            "absentParents": [
                {"repo": one.repo, "revision": one.revision, "digest": one.digest, "relation": one.relation}
                for one in version.absent_parents
            ],
            "source": {"kind": version.source_kind, "location": version.source_location, **version.provenance},
            "registeredAt": version.created_at.isoformat(),
        },
    }


def attest_version(
    store: LocalStore, version: Version, key: Path | None = None, password: str | None = None
) -> Attestation:
    """Make the statement of a version and, with the private `key` (PEM, elliptic curve), sign it with the files.

    Every byte is read for it: nobody signs what is damaged. Raises ArtifactMissing, ArtifactCorrupt, PackageMissing.
    """
    statement = describe_statement(version)
    if key is None:
        return Attestation(version, statement)
    signing, _ = _import_model_signing()
    _check_files(store, version)
    with store.stage() as scratch:
        folder, signature = _lay_out(store, version, statement, scratch), scratch / SIGNATURE_FILE
        with _typed_errors(f"{version.ref} cannot be signed with {key}", InvalidInput):
            secret = password and password.encode()  # it says str, and needs bytes
            signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
            signer.sign(folder, signature)
        return Attestation(version, statement, signature.read_text(encoding="utf-8"))


def record_attestation(connection: Connection, attestation: Attestation) -> None:
    """Append the signed statement to the audit trail, within the caller's write transaction."""
    details = {"statement": attestation.statement, "signature": attestation.signature}
    append_event(connection, ATTESTED, attestation.version.ref, details)


def read_attestations(connection: Connection, ref: str) -> tuple[Version, list[Attestation]]:
    """Return the version that `ref` means and the attestations in its audit trail, newest first."""
    version = read_version(connection, resolve_ref(connection, ref).id)
    rows = connection.execute(
        select(events.c.details)
        .where(events.c.subject == version.ref, events.c.action == ATTESTED)
        .order_by(events.c.sequence.desc())
    )
    return version, [_make_attestation(version, row.details) for row in rows]


def read_saved_attestation(version: Version, folder: Path) -> Attestation:
    """Read what `Attestation.save` wrote."""
    try:
        statement = json.loads((folder / STATEMENT_FILE).read_text(encoding="utf-8"))
        signature = (folder / SIGNATURE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidInput(
            f"There is no {Path(error.filename).name} in {folder}.",
            hint="Give the folder that lensreg attest --sign KEY --to FOLDER wrote.",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The attestation in {folder} cannot be read: {error}") from error
    return _make_attestation(version, {"statement": statement, "signature": signature})


def verify_attestation(store: LocalStore, attestation: Attestation, public_key: Path) -> None:
    """Check that the statement is what the registry says of the version today, and the signature over all its files.

    Raises SignatureInvalid for anything that does not agree, ArtifactMissing or ArtifactCorrupt for damaged blobs.
    """
    version = attestation.version
    expected = json.loads(_write(describe_statement(version)))
    if attestation.statement != expected:  # before the library sees any name in it
        differing = _name_differences(attestation.statement, expected)
        raise SignatureInvalid(
            f"The attestation is not one of {version.ref} as the registry has it: {differing} differ.",
            hint="It belongs to another version, or the record was altered. See: lensreg audit verify",
        )
    if not attestation.signature:
        raise SignatureInvalid(
            f"The attestation of {version.ref} has no signature.", hint="Sign it: lensreg attest --sign"
        )
    _, verifying = _import_model_signing()
    refuse_unfetched(version)
    _check_files(store, version)
    with store.stage() as scratch:
        folder, signature = _lay_out(store, version, attestation.statement, scratch), scratch / SIGNATURE_FILE
        signature.write_text(attestation.signature, encoding="utf-8")
        with _typed_errors(f"The signature of {version.ref} does not hold for {public_key}", SignatureInvalid):
            verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)


def verify_any(
    store: LocalStore, version: Version, attestations: Sequence[Attestation], public_key: Path
) -> Attestation:
    """Return the first attestation that holds for the key, or raise SignatureInvalid with what the first one lacks."""
    fault = SignatureInvalid(
        f"{version.ref} was never signed.", hint=f"Sign it: lensreg attest {version.ref} --sign KEY"
    )
    for number, attestation in enumerate(attestations):
        try:
            verify_attestation(store, attestation, public_key)
        except SignatureInvalid as error:
            fault = error if number == 0 else fault
        else:
            return attestation
    raise fault


def _make_attestation(version: Version, details: Mapping[str, Any]) -> Attestation:
    statement, signature = details.get("statement"), details.get("signature")
    return Attestation(
        version,
        statement if isinstance(statement, dict) else {},
        signature if isinstance(signature, str) else None,
    )


def _name_differences(said: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    def flat(one: Mapping[str, Any]) -> dict[str, Any]:
        predicate = one.get("predicate")
        return {**one, **(predicate if isinstance(predicate, dict) else {}), "predicate": None}

    ours, theirs = flat(expected), flat(said)
    return ", ".join(sorted(map(str, (name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)))))


def _check_files(store: LocalStore, version: Version) -> None:
    store.bring([(file.digest, file.size_bytes) for file in version.files])
    for file in version.files:
        store.check(file.digest, file.size_bytes)


def _lay_out(store: LocalStore, version: Version, statement: Mapping[str, Any], scratch: Path) -> Path:
    """Put the version's files and the statement into one folder; by links, where the file system has them."""
    folder = scratch / version.ref.replace("/", "--")
    folder.mkdir()
    for file in version.files:
        blob = store.check(file.digest, file.size_bytes, read=False)
        try:
            os.link(blob, folder / file.name)
        except OSError:
            shutil.copyfile(blob, folder / file.name)
    (folder / STATEMENT_FILE).write_text(_write(statement), encoding="utf-8")
    return folder


def _write(statement: Mapping[str, Any]) -> str:
    return json.dumps(statement, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _import_model_signing() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise PackageMissing(
            f"Signing needs model-signing, which is not installed here ({error}).",
            hint="pip install 'lens-registry[sign]'",
        ) from error
    return signing, verifying


@contextlib.contextmanager
def _typed_errors(what: str, kind: type[InvalidInput | SignatureInvalid]) -> Iterator[None]:
    """Turn what model-signing raises into one of ours: ValueError, TypeError, KeyError, cryptography's own and more."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise kind(
            f"{what}: {said}.", hint="Keys are PEM files of an elliptic curve (P-256, P-384 or P-521)."
        ) from error
