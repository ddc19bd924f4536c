"""`lensreg identify`: what a checkpoint is likely to come from, by its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from cli.options import Session, output_option, registry_options
from cli.output import say

if TYPE_CHECKING:
    from registry.identify import Identification

N_NAMED = 5


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--parent", "parents", multiple=True, metavar="REF", help="What an adapter is to be merged into.")
@click.option(
    "--weights", type=click.Choice(["safetensors", "bin"]), help="Which one counts where the folder holds both."
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Config file of a bare state dict.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="So many versions at most.")
@click.option("--read", is_flag=True, help="Read what was registered without being converted, and keep its samples.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def identify(
    session: Session,
    source: str,
    parents: tuple[str, ...],
    weights: Literal["safetensors", "bin"] | None,
    config: str | None,
    limit: int,
    read: bool,
) -> None:
    """Say which registered versions SOURCE is likely to come from, by samples of its weights; the nearest first.

    SOURCE is what `add` takes; nothing is registered. Only versions whose matrices have the same names and shapes are
    compared. Distance (relative) and correlation are medians over the matrices that changed. Which of two came from the
    other, weights do not tell. ids prints the related versions.
    """
    from cli.progress import show_progress

    with show_progress() as progress:
        found = session.open().identify(
            source, parent=parents, weights=weights, config=config, limit=limit, read=read, progress=progress
        )
    if session.output == "json":
        from cli.output import print_json

        print_json(found.as_dict())
    else:
        _print(found, session.output)


def _print(found: Identification, output: str) -> None:
    from cli.output import Column, print_card, print_rows

    if output == "table":
        print_card(found.source, {"verdict": found.verdict, "not compared": _tell_unsketched(found)})
        say("")
    rows = _make_rows(found)
    if output == "ids":
        rows = [row for row in rows if row["kind"] != "unrelated"]
    columns = [
        Column("version", "ref"),
        Column("is", "kind"),
        Column("rank", "rank", right=True),
        Column("changed", "changed", right=True),
        Column("distance", "distance", right=True),
        Column("correlation", "correlation", right=True),
        Column("z", "z", right=True),
        Column("architecture", "architecture"),
    ]
    print_rows(rows, columns, output, "", "ref")


def _make_rows(found: Identification) -> list[dict[str, Any]]:
    from registry.identify import describe_differences

    rows = []
    for one in found.matches:
        evidence = one.evidence
        n_changed = evidence.n_matrices - evidence.n_unchanged
        rows.append(
            {
                "ref": one.ref,
                "kind": one.kind,
                "rank": one.rank,
                "changed": f"{n_changed}/{evidence.n_matrices}",
                "distance": _round(evidence.changed_distance if n_changed else evidence.distance),
                "correlation": _round(evidence.changed_correlation if n_changed else evidence.correlation),
                "z": _round(evidence.z),
                "architecture": describe_differences(one.differences) or "the same",
            }
        )
    return rows


def _round(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.3g}")


def _tell_unsketched(found: Identification) -> str | None:
    if not found.unsketched:
        return None
    named = ", ".join(found.unsketched[:N_NAMED])
    more = f" and {len(found.unsketched) - N_NAMED:,} more" if len(found.unsketched) > N_NAMED else ""
    return f"{named}{more}, registered without being converted (--read reads them)"
