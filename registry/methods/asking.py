"""What is recorded: versions, lineage, differences, searches. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import InvalidInput
from registry.methods.opened import OpenedRegistry
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    from registry.diff import ChangedTensors, RecordedDiff
    from registry.lineage import Lineage
    from registry.resolve import ResolvedRef
    from registry.results import Results, SearchResult
    from registry.sql import SqlResult
    from registry.suite import SuiteAudit
    from registry.versions import AliasSpan, ModelSummary, VersionSummary


class Asking(OpenedRegistry):
    """Methods that ask."""

    def resolve(self, ref: str) -> ResolvedRef:
        """Return which version `ref` means now."""
        from registry.resolve import resolve_at_once

        return resolve_at_once(self.database, ref)

    def models(self, *, limit: int | None = None, after: str | None = None) -> Results[ModelSummary]:
        """List the models by name: all, or a page of `limit` that follow the name `after`."""
        from registry.query import list_models
        from registry.results import Results
        from registry.versions import ModelSummary

        with self.database.read() as connection:
            return Results(list_models(connection, limit=limit, after=after), ModelSummary)

    def history(self, name: str, *, limit: int | None = None, before: int | None = None) -> Results[VersionSummary]:
        """List the versions of a model, newest first, retired ones too: all, or a page of `limit` `before` a number."""
        from registry.query import list_history
        from registry.refs import check_model_name
        from registry.results import Results
        from registry.versions import VersionSummary

        with self.database.read() as connection:
            return Results(list_history(connection, check_model_name(name), limit=limit, before=before), VersionSummary)

    def count_models(self) -> int:
        """Count the models."""
        from registry.query import count_models

        with self.database.ask() as connection:
            return count_models(connection)

    def count_versions(self, name: str) -> int:
        """Count the versions of a model, retired ones too."""
        from registry.query import count_versions

        with self.database.ask() as connection:
            return count_versions(connection, name)

    def search(
        self,
        expression: str = "",
        *,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        after: str | None = None,
        show: Sequence[str] = (),
    ) -> SearchResult:
        """Find versions: `reg.search("family = 'gpt2' and metric.loss < 3.2 and descends_from('gpt2-small')")`.

        docs/search.md has the language. Retired versions are left out unless the expression names `retired` or
        `retired_at`. An empty expression finds all.

        Args:
            expression: what must hold of a version.
            order_by: fields, each with `-` before it for descending: `"-metric.loss, step"`; what has no value comes
                last. Ties, and all without it, are newest first.
            limit: how many at most.
            after: the ref after which to go on: `after` of the page before.
            show: fields whose values are wanted in `values`, as those of `order_by` are.

        Raises:
            InvalidQuery: the expression cannot be read or cannot be meant; `column` is the place.
            UnknownRef: a function names a version that is not there.
        """
        from registry.search import Search, search_versions

        with self.database.read() as connection:
            return search_versions(connection, Search(expression, order_by, limit, after, show))

    def search_refs(
        self,
        expression: str = "",
        *,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        after: str | None = None,
    ) -> list[str]:
        """Find versions as `search` does, and return their refs only, which is quick for any number of them."""
        from registry.search import Search, search_refs

        with self.database.read() as connection:
            return search_refs(connection, Search(expression, order_by, limit, after))

    def sql(self, statement: str, *, timeout: float = 30, limit: int | None = None) -> SqlResult:
        """Run one SELECT over the views of docs/search.md; it can read and do nothing else.

        Args:
            statement: the database's own SQL.
            timeout: seconds that it may take.
            limit: how many rows at most; `is_cut` of the result says that there were more.

        Raises:
            InvalidSql: the database refuses it, or it is more than a query.
            QueryTimeout: it took longer.
        """
        from registry.sql import run_sql

        return run_sql(self.database, statement, timeout=timeout, limit=limit)

    def lineage(self, ref: str, *, up: bool = True, down: bool = True, depth: int | None = None) -> Lineage:
        """Return the lineage of a version, `depth` generations of it at most: ancestors, descendants, edges, ways."""
        from registry.lineage import Lineage
        from registry.resolve import resolve_ref

        if depth is not None and not 1 <= depth < 2**31:
            raise InvalidInput(f"{depth} is no number of generations.", hint="Leave it out to have all of them.")
        with self.database.read() as connection:
            version = resolve_ref(connection, ref)
        return Lineage(self.database, version, up=up, down=down, depth=depth)

    def diff(self, a: str, b: str, *, read: bool = False, progress: Progress = no_progress) -> RecordedDiff:
        """Say what changed from one version to another, from what is recorded: facts, architecture, tensors.

        `read` reads the weights of versions that were registered before the digests of tensors were kept, and keeps
        them. Where tensors cannot be compared, `tensors` is None and `obstacle` says why.
        """
        from registry.diff import read_diff

        if read:
            self._digest_missing((a, b), progress)
        with self.database.read() as connection:
            return read_diff(connection, a, b)

    def changed_tensors(
        self, a: str, b: str, *, read: bool = False, progress: Progress = no_progress
    ) -> ChangedTensors:
        """Say which tensors are equal, changed, added or gone from one version to another, from their digests alone.

        Raises:
            TensorsUnknown: they are not recorded; `read` reads the weights once and records them.
            UnsupportedLayout: the two versions name their tensors differently.
        """
        from registry.diff import compare_tensors
        from registry.query import read_version
        from registry.resolve import resolve_ref

        if read:
            self._digest_missing((a, b), progress)
        with self.database.read() as connection:
            one, other = (read_version(connection, resolve_ref(connection, ref).id) for ref in (a, b))
            return compare_tensors(connection, one, other)

    def _digest_missing(self, refs: Sequence[str], progress: Progress) -> None:
        from registry.redigest import digest_missing

        for ref in refs:
            digest_missing(self.database, self.store, self.version(ref), progress)

    def aliases(
        self, name: str | None = None, *, history: bool = False, at: datetime | None = None
    ) -> Results[AliasSpan]:
        """List aliases, of all models or of `name`: as they stand, as they stood `at` an instant, or all ever."""
        from registry.aliases import list_aliases
        from registry.results import Results
        from registry.versions import AliasSpan

        with self.database.read() as connection:
            return Results(list_aliases(connection, name, history=history, at=at), AliasSpan)

    def audit_suite(self, suite: str | Path, *, progress: Progress = no_progress) -> SuiteAudit:
        """Compare the weights of all steps of a suite by their digests: duplicates, gaps, a final step that is another.

        `suite` is a registered model, a folder of `checkpoint-N`, or a model on the Hub with a branch for each step, of
        which nothing is fetched but lists of files. `hf://ORG/NAME` always means the Hub.
        """
        from registry.find_suite import find_suite

        return find_suite(self.database, str(suite), progress)
