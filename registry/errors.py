"""Every exception the library raises on purpose, each with a stable code, its facts as fields, and a hint.

RegistryError
├── InvalidInput                what was asked for cannot be meant
│   ├── InvalidName             invalid-name
│   ├── InvalidRef              invalid-ref
│   ├── UnknownField            unknown-field
│   ├── InvalidQuery            invalid-query           .column .candidates
│   └── InvalidSql              invalid-sql
├── NotFound
│   ├── UnknownRef              unknown-ref             .candidates
│   ├── AmbiguousRef            ambiguous-ref           .candidates
│   ├── VersionRetired          version-retired
│   └── TensorsUnknown          tensors-unknown
├── SourceError                 what was handed in cannot become a version
│   ├── SourceNotFound          source-not-found
│   ├── SourceUnreachable       source-unreachable
│   ├── AccessDenied            access-denied
│   ├── UnsupportedSource       unsupported-source
│   ├── MalformedArtifact       malformed-artifact
│   ├── MalformedExport         malformed-export
│   ├── UnsafeArtifact          unsafe-artifact
│   ├── UnsupportedFamily       unsupported-family
│   ├── UnsupportedConfig       unsupported-config      .field
│   ├── WeightsMismatch         weights-mismatch        .missing .left_over .misshapen
│   ├── UnusableWeights         unusable-weights        .tensors
│   ├── UnusableTokenizer       unusable-tokenizer
│   └── SourceChanged           source-changed
├── ArchitectureMismatch        architecture-mismatch   .differences
├── UnrelatedParent             unrelated-parent        .evidence
├── ParityFailure               parity-failure          .parity
├── SignatureInvalid            signature-invalid
├── LoadError                   what is registered cannot be had in the form that was asked for
│   ├── HookedTransformerMissing  hooked-transformer-missing
│   ├── VocabularyMismatch      vocabulary-mismatch
│   ├── UnsupportedBridge       unsupported-bridge
│   └── UnsupportedLayout       unsupported-layout
├── PackageMissing              package-missing         .package
├── WorkerError                 worker-error            what was sent to another process failed there
│   ├── ClusterUnavailable      cluster-unavailable
│   ├── WorkerLost              worker-lost             .tasks
│   └── WorkerMismatch          worker-mismatch         .sender .worker
├── Conflict
│   ├── VersionInUse            version-in-use          .users
│   ├── LineageConflict         lineage-conflict
│   ├── RequirementsUnmet       requirements-unmet      .requirements
│   ├── PlanOutdated            plan-outdated
│   ├── TransferConflict        transfer-conflict       .conflicts
│   └── ProcessingConflict      processing-conflict     .applied
├── StorageError
│   ├── StoreUnavailable        store-unavailable
│   ├── StoreDenied             store-denied
│   ├── StorageFull             storage-full
│   ├── StoreInconsistent       store-inconsistent      .digests
│   ├── StoreNotOwned           store-not-owned         .registries
│   ├── ArtifactMissing         artifact-missing        .digest
│   └── ArtifactCorrupt         artifact-corrupt        .digest
└── DatabaseError
    ├── DatabaseUnavailable     database-unavailable
    │   └── ConnectionLost      connection-lost
    ├── OutcomeUnknown          outcome-unknown
    ├── DatabaseReadOnly        database-read-only
    │   └── NotPermitted        not-permitted
    ├── UnsafeFileSystem        unsafe-file-system      .kind
    ├── RegistryBusy            registry-busy
    ├── QueryTimeout            query-timeout           .seconds
    ├── SchemaOutdated          schema-outdated
    ├── SchemaTooNew            schema-too-new
    └── SchemaUnknown           schema-unknown
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from registry.architecture import Difference
    from registry.requirements import Requirement
    from registry.verify import Parity


class RegistryError(Exception):
    """Say what was asked, what was found, and (in `hint`) what to do.

    `fields` holds the same facts as data, for scripts and for `--output json`.
    """

    code: ClassVar[str] = "registry-error"

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling `__init__`, whose keywords differ, so that errors pass from process to process."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[RegistryError], args: tuple[Any, ...], fields: dict[str, Any]) -> RegistryError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class InvalidInput(RegistryError):
    code = "invalid-input"


class InvalidName(InvalidInput):
    code = "invalid-name"


class InvalidRef(InvalidInput):
    code = "invalid-ref"


class UnknownField(InvalidInput):
    code = "unknown-field"


class InvalidQuery(InvalidInput):
    """A search cannot be read, or asks what cannot be asked; `column`, counted from 1, is the place in its text."""

    code = "invalid-query"

    def __init__(self, message: str, *, column: int = 1, candidates: Sequence[str] = (), **fields: Any) -> None:
        super().__init__(message, column=column, candidates=list(candidates), **fields)
        self.column = column
        self.candidates = tuple(candidates)


class InvalidSql(InvalidInput):
    """A statement that the database refuses, or that would do more than read."""

    code = "invalid-sql"


class NotFound(RegistryError):
    code = "not-found"

    def __init__(self, message: str, *, candidates: Sequence[str] = (), **fields: Any) -> None:
        super().__init__(message, candidates=list(candidates), **fields)
        self.candidates = tuple(candidates)


class UnknownRef(NotFound):
    code = "unknown-ref"


class AmbiguousRef(NotFound):
    code = "ambiguous-ref"


class VersionRetired(NotFound):
    code = "version-retired"


class TensorsUnknown(NotFound):
    """The digests of a version's single tensors are not recorded."""

    code = "tensors-unknown"


class SourceError(RegistryError):
    code = "source-error"


class SourceNotFound(SourceError):
    code = "source-not-found"


class SourceUnreachable(SourceError):
    """It may well be there, but whoever keeps it does not answer."""

    code = "source-unreachable"


class AccessDenied(SourceError):
    """It is there, and whoever keeps it does not give it to this user."""

    code = "access-denied"


class UnsupportedSource(SourceError):
    code = "unsupported-source"


class MalformedArtifact(SourceError):
    code = "malformed-artifact"


class MalformedExport(SourceError):
    """What another registry hands over is not whole, was altered, or does not agree with itself."""

    code = "malformed-export"


class UnsafeArtifact(SourceError):
    """A pickle asks for more than tensors: code, objects, or memory and time out of proportion to its size."""

    code = "unsafe-artifact"


class UnsupportedFamily(SourceError):
    code = "unsupported-family"


class UnsupportedConfig(SourceError):
    """A config.json field holds something that HookedTransformer would not compute, or that we do not know."""

    code = "unsupported-config"

    def __init__(self, message: str, *, field: str, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message, hint=hint, field=field, **fields)
        self.field = field


class WeightsMismatch(SourceError):
    """The tensors in the files are not those that the config describes."""

    code = "weights-mismatch"

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        left_over: Sequence[str] = (),
        misshapen: Sequence[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(
            message,
            hint=hint,
            missing=list(missing),
            left_over=list(left_over),
            misshapen=list(misshapen),
        )
        self.missing = tuple(missing)
        self.left_over = tuple(left_over)
        self.misshapen = tuple(misshapen)


class UnusableWeights(SourceError):
    """Tensors hold NaN, infinities, or numbers of a kind that cannot be weights."""

    code = "unusable-weights"

    def __init__(self, message: str, *, tensors: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint, tensors=list(tensors))
        self.tensors = tuple(tensors)


class UnusableTokenizer(SourceError):
    code = "unusable-tokenizer"


class SourceChanged(SourceError):
    code = "source-changed"


class ArchitectureMismatch(RegistryError):
    """The checkpoint computes something else than its declared parent, field by field in `differences`."""

    code = "architecture-mismatch"

    def __init__(
        self, message: str, *, differences: Sequence[Difference], hint: str | None = None, **fields: Any
    ) -> None:
        super().__init__(message, hint=hint, differences=[difference.as_dict() for difference in differences], **fields)
        self.differences = tuple(differences)


class UnrelatedParent(RegistryError):
    """The weights show that a checkpoint does not come from its declared parent."""

    code = "unrelated-parent"

    def __init__(self, message: str, *, evidence: Mapping[str, Any], hint: str | None = None, **fields: Any) -> None:
        super().__init__(message, hint=hint, evidence=dict(evidence), **fields)
        self.evidence = dict(evidence)


class ParityFailure(RegistryError):
    """The converted network's log-probs differ from the source's by more than the bound."""

    code = "parity-failure"

    def __init__(self, message: str, *, parity: Parity, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, parity=parity.as_dict())
        self.parity = parity


class SignatureInvalid(RegistryError):
    """A version's attestation does not agree with the registry, or its signature with the files or the key."""

    code = "signature-invalid"


class LoadError(RegistryError):
    code = "load-error"


class HookedTransformerMissing(LoadError):
    """The transformer-lens that is installed is 4 or later, which has only the bridge."""

    code = "hooked-transformer-missing"


class VocabularyMismatch(LoadError):
    """The tokens of two versions mean different things."""

    code = "vocabulary-mismatch"


class UnsupportedBridge(LoadError):
    """The TransformerBridge of this version would compute something else, or cannot be built."""

    code = "unsupported-bridge"


class UnsupportedLayout(LoadError):
    """What was asked for needs Hugging Face weights, and the version has those of a HookedTransformer."""

    code = "unsupported-layout"


class PackageMissing(RegistryError):
    """A package that is installed only when it is asked for is not there."""

    code = "package-missing"

    def __init__(self, message: str, *, package: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint, package=package)
        self.package = package


class WorkerError(RegistryError):
    """What was sent to a worker failed there, for a reason that is none of ours."""

    code = "worker-error"


class ClusterUnavailable(WorkerError):
    code = "cluster-unavailable"


class WorkerLost(WorkerError):
    """Workers ended before they were done with the `tasks`; what they had recorded stays."""

    code = "worker-lost"

    def __init__(self, message: str, *, tasks: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint, tasks=list(tasks))
        self.tasks = tuple(tasks)


class WorkerMismatch(WorkerError):
    """A worker has other code, or sees another registry, store or data, than whoever sent it work."""

    code = "worker-mismatch"

    def __init__(
        self, message: str, *, sender: str | None = None, worker: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, sender=sender, worker=worker)
        self.sender = sender
        self.worker = worker


class Conflict(RegistryError):
    code = "conflict"


class VersionInUse(Conflict):
    code = "version-in-use"

    def __init__(self, message: str, *, users: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint, users=list(users))
        self.users = tuple(users)


class LineageConflict(Conflict):
    code = "lineage-conflict"


class RequirementsUnmet(Conflict):
    """A version does not meet thresholds that were asked for."""

    code = "requirements-unmet"

    def __init__(self, message: str, *, requirements: Sequence[Requirement], hint: str | None = None) -> None:
        super().__init__(message, hint=hint, requirements=[vars(one) for one in requirements])
        self.requirements = tuple(requirements)


class PlanOutdated(Conflict):
    """What a plan was made for has changed since; nothing of it was done."""

    code = "plan-outdated"


class TransferConflict(Conflict):
    """Versions of another registry cannot be received without losing lineage or giving a name a second meaning."""

    code = "transfer-conflict"

    def __init__(self, message: str, *, conflicts: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint, conflicts=list(conflicts))
        self.conflicts = tuple(conflicts)


class ProcessingConflict(Conflict):
    """The processing that weights have gone through is not what was wanted, or not what is recorded."""

    code = "processing-conflict"

    def __init__(self, message: str, *, applied: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint, applied=list(applied))
        self.applied = tuple(applied)


class StorageError(RegistryError):
    code = "storage-error"


class StoreUnavailable(StorageError):
    code = "store-unavailable"


class StoreDenied(StorageError):
    """The store answers, and does not let this user in, or there are no credentials to ask with."""

    code = "store-denied"


class StorageFull(StorageError):
    code = "storage-full"


class StoreInconsistent(StorageError):
    """The store and the database do not agree, so nothing may be deleted."""

    code = "store-inconsistent"

    def __init__(self, message: str, *, digests: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint, digests=list(digests))
        self.digests = tuple(digests)


class StoreNotOwned(StorageError):
    """The store holds blobs that are, or may be, another registry's."""

    code = "store-not-owned"

    def __init__(self, message: str, *, registries: Sequence[Mapping[str, str]] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint, registries=[dict(one) for one in registries])
        self.registries = tuple(registries)


class ArtifactMissing(StorageError):
    code = "artifact-missing"

    def __init__(self, message: str, *, digest: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, digest=digest)
        self.digest = digest


class ArtifactCorrupt(StorageError):
    code = "artifact-corrupt"

    def __init__(self, message: str, *, digest: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, digest=digest)
        self.digest = digest


class DatabaseError(RegistryError):
    code = "database-error"


class DatabaseUnavailable(DatabaseError):
    code = "database-unavailable"


class ConnectionLost(DatabaseUnavailable):
    """The database answered, and then the connection was lost; nothing was written."""

    code = "connection-lost"


class OutcomeUnknown(DatabaseError):
    """The answer to COMMIT was lost, and whether it took effect could not be found out."""

    code = "outcome-unknown"


class DatabaseReadOnly(DatabaseError):
    code = "database-read-only"


class NotPermitted(DatabaseReadOnly):
    """The database's role may not do this."""

    code = "not-permitted"


class UnsafeFileSystem(DatabaseError):
    """The SQLite file is on a file system on which rows get lost when two processes write."""

    code = "unsafe-file-system"

    def __init__(self, message: str, *, kind: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint, kind=kind)
        self.kind = kind


class RegistryBusy(DatabaseError):
    code = "registry-busy"


class QueryTimeout(DatabaseError):
    """A query took longer than it was given."""

    code = "query-timeout"

    def __init__(self, message: str, *, seconds: float = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, seconds=seconds)
        self.seconds = seconds


class SchemaOutdated(DatabaseError):
    code = "schema-outdated"


class SchemaTooNew(DatabaseError):
    code = "schema-too-new"


class SchemaUnknown(DatabaseError):
    code = "schema-unknown"
