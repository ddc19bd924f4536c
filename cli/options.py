"""Options and arguments that several commands share, and the session they are kept in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from registry.registry import Registry

N_COMPLETED = 200
F = TypeVar("F", bound=Callable[..., Any])


class _Instant(click.DateTime):
    """An instant, in UTC."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        return super().convert(value, param, ctx).replace(tzinfo=UTC)


INSTANT = _Instant(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])


@dataclass
class Session:
    """Where the registry is, and how the running command was asked to print."""

    url: str | None = None
    store: str | None = None
    output: str = "table"
    _registry: Registry | None = None

    def open(self) -> Registry:
        """Open the registry that the options, or else the environment, name."""
        if self._registry is None:
            gc.disable()  # importing makes many objects and no garbage
            try:
                from registry.registry import Registry
            finally:
                gc.enable()
            self._registry = Registry(self.url, self.store)
        return self._registry

    def close(self) -> None:
        """Give the registry's connections back."""
        if self._registry is not None:
            self._registry.close()


def _keep(name: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            setattr(ctx.ensure_object(Session), name, value)
        return value

    return keep


def registry_options(function: F) -> F:
    """Add --registry and --store."""
    for option, name, text in (
        (
            "--store",
            "store",
            "Folder that holds the blobs, or s3://BUCKET/PREFIX (gs://, az://).  [env: LENSREG_STORE]",
        ),
        ("--registry", "url", "Database: path of a SQLite file, or postgresql://…  [env: LENSREG_URL]"),
    ):
        function = click.option(
            option, name, metavar="WHERE", help=text, expose_value=False, callback=_keep(name), is_eager=True
        )(function)
    return function


def output_option(*formats: str, also: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add --output with these formats; the first is the default, and `also` are other spellings of the option."""
    return click.option(
        "-o",
        "--output",
        *also,
        "output",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        callback=_keep("output"),
        expose_value=False,
        is_eager=True,
        help="How to print the result.",
    )


def workers_options(function: F) -> F:
    """Add --workers and --dask."""
    function = click.option(
        "--dask",
        metavar="ADDRESS",
        help="Do it on the Dask cluster with this scheduler, tcp://HOST:8786, or its scheduler file.",
    )(function)
    return click.option(
        "--workers", type=click.IntRange(1), metavar="N", help="Do it in N processes of this machine at once."
    )(function)


def limit_option(function: F) -> F:
    """Add --limit."""
    return click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="How many (default: 1000 in a table, otherwise all)."
    )(function)


def parity_option(function: F) -> F:
    """Add --parity."""
    return click.option(
        "--parity",
        type=click.Choice(["float64", "float32", "skip"]),
        help="Precision in which it is verified (default: float64 where the family runs in it). "
        "With skip it is not, and says so ever after.",
    )(function)


def _complete(what: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from registry.errors import RegistryError

        try:
            registry = ctx.ensure_object(Session).open()
            name, at, _ = incomplete.partition("@")
            if not at:
                found = [model.name for model in registry.models()]
            elif what == "alias":
                found = [span.ref for span in registry.aliases(name)]
            else:
                versions = registry.history(name, limit=N_COMPLETED)
                found = [version.ref for version in versions]
                found += [f"{name}@{alias}" for version in versions for alias in version.aliases]
        except RegistryError:
            return []
        return [one for one in found if one.startswith(incomplete)]

    return complete


def complete_parent(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete `REF` from what is registered, and `RELATION=REF` from the relations, too."""
    relation, equals, ref = incomplete.partition("=")
    if equals:
        return [f"{relation}={one}" for one in _complete("version")(ctx, param, ref)]
    from registry.tables import RELATIONS

    return _complete("version")(ctx, param, incomplete) + [f"{one}=" for one in RELATIONS if one.startswith(incomplete)]


def complete_relation(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a relation."""
    from registry.tables import RELATIONS

    return [one for one in RELATIONS if one.startswith(incomplete)]


def ref_argument(
    name: str = "ref", what: str = "version", *, several: bool = False, required: bool = True
) -> Callable[[F], F]:
    """Add the argument REF (or NAME, or NAME@ALIAS), completed from what is registered; or one or more of them."""
    if several:
        metavar = "REF..." if required else "[REF...]"
        return click.argument(name, metavar=metavar, nargs=-1, required=required, shell_complete=_complete(what))
    return click.argument(name, metavar=name.upper(), shell_complete=_complete(what))


def parse_tags(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Turn K=V pairs into a dict."""
    tags = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE.")
        tags[key] = text
    return tags


def split_relations(values: tuple[str, ...]) -> dict[str, str | None]:
    """Split the relation off each RELATION=PARENT; `=` is in no ref and in no Hub id."""
    relations: dict[str, str | None] = {}
    for value in values:
        before, equals, after = value.partition("=")
        parent, relation = (after, before) if equals else (value, None)
        if relations.setdefault(parent, relation) != relation:
            raise click.UsageError(f"{parent} is named with two relations.")
    return relations
