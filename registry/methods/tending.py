"""What changes about versions that are there: aliases, retirement, absent parents that are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from registry.methods.opened import OpenedRegistry
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from registry.resolve import ResolvedRef
    from registry.retain import RetentionPlan
    from registry.versions import AliasSpan, Version
    from registry.weigh_later import WeighedEdge


class Tending(OpenedRegistry):
    """Methods that change what is recorded beside versions."""

    def set_alias(self, alias: str, ref: str) -> AliasSpan:
        """Make `NAME@ALIAS` mean the version that `ref` means now."""
        from registry.aliases import set_alias

        return self.database.change(lambda connection: set_alias(connection, alias, ref))

    def remove_alias(self, alias: str) -> AliasSpan:
        """Take the alias `NAME@ALIAS` away; its history stays."""
        from registry.aliases import remove_alias

        return self.database.change(lambda connection: remove_alias(connection, alias))

    def retire(self, ref: str, *, force: bool = False, reason: str | None = None) -> ResolvedRef:
        """Take a version out of use; nothing of it is deleted."""
        from registry.retire import retire_version

        return self.database.change(lambda connection: retire_version(connection, ref, force=force, reason=reason))

    def restore(self, ref: str) -> ResolvedRef:
        """Put a retired version back to use."""
        from registry.retire import restore_version

        return self.database.change(lambda connection: restore_version(connection, ref))

    def protect(self, name: str, *, protect: bool = True) -> None:
        """Protect a model, so that none of its versions can be retired; with `protect=False` no longer."""
        from registry.retire import protect_model

        self.database.change(lambda connection: protect_model(connection, name, protect=protect))

    def plan_retention(
        self,
        name: str,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: int | None = None,
        by: str | None = None,
    ) -> RetentionPlan:
        """Say which steps of a model would be kept and which retired; nothing is changed.

        Args:
            name: the model.
            keep_last: so many of the last steps.
            keep_every: the steps that are multiples of it.
            keep_best: so many of the best by the metric `by`.
            by: a metric, `"loss"` or `"suite.loss"`; the lowest are best, with `-` before it the highest.
        """
        from registry.retain import Retention, plan_retention

        with self.database.read() as connection:
            return plan_retention(connection, name, Retention(keep_last, keep_every, keep_best, by))

    def retain(self, plan: RetentionPlan) -> None:
        """Carry out a plan of `plan_retention`, in one transaction; nothing is deleted.

        Raises PlanOutdated if the model has changed since.
        """
        from registry.retain import carry_out

        self.database.change(lambda connection: carry_out(connection, plan))

    def join_parent(self, ref: str, parent: str, *, declared: str | None = None, allow: Sequence[str] = ()) -> Version:
        """Say that an absent parent of the version `ref` means is the registered version `parent`; return the child.

        `declared` says which, as `ORG/NAME@REVISION`, if it has several; `allow` names architecture fields that may
        differ. What was declared by its commit or digest is joined by itself when it is registered.

        Raises:
            LineageConflict: the record shows that it is another one, or it came from `ref` itself.
            ArchitectureMismatch: it computes something else.
            UnknownRef: there is no such absent parent.
        """
        from registry.absent import join_by_hand
        from registry.query import read_version

        def join(connection: Connection) -> Version:
            child = join_by_hand(connection, ref, parent, declared, allow)
            return read_version(connection, child.id)

        return self.database.change(join)

    def weigh(self, *refs: str, progress: Progress = no_progress) -> list[WeighedEdge]:
        """Compare the versions that `refs` mean, or all in use, with those of their parents that they were not yet.

        What the weights say is kept with the edge; parents never change, so that nothing is refused.
        """
        from registry.weigh_later import weigh_later

        return weigh_later(self.database, self.store, refs, progress)
