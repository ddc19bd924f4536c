"""`lensreg lineage`: who came from whom, as a tree or as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options
from cli.versions import summary_row

if TYPE_CHECKING:
    from rich.tree import Tree

    from registry.lineage import Edge, Lineage


@click.command()
@ref_argument()
@click.option("--up", "direction", flag_value="up", help="Ancestors only.")
@click.option("--down", "direction", flag_value="down", help="Descendants only.")
@output_option("tree", "table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def lineage(session: Session, ref: str, direction: str | None) -> None:
    """Show what the version that REF means came from, and what came from it."""
    from cli.output import Column, print_rows, stdout

    found = session.open().lineage(ref, up=direction != "down", down=direction != "up")
    if session.output == "tree":
        for tree in _make_trees(found, direction):
            stdout().print(tree)
        return
    columns = [
        Column("version", "ref"),
        Column("", "direction"),
        Column("depth", "depth", right=True),
        Column("parents", "parents"),
        Column("relation", "relations"),
        Column("step", "step", right=True),
        Column("verified", "verified"),
    ]
    print_rows(_make_rows(found), columns, session.output, f"{found.ref} has no relatives.", "ref")


def _make_rows(found: Lineage) -> list[dict[str, Any]]:
    relations = {ref: [edge.relation for edge in edges] for ref, edges in found.parents_of().items()}
    rows = []
    for direction, relatives in (("up", found.ancestors()), ("down", found.descendants())):
        for one in relatives:
            row = summary_row(one.version)
            for name in ("size", "weights", "size_bytes", "note", "aliases"):
                row.pop(name)
            rows.append(
                {**row, "direction": direction, "depth": one.depth, "relations": relations.get(one.version.ref, [])}
            )
    return rows


def _make_trees(found: Lineage, direction: str | None) -> list[Tree]:
    """Make the trees: from REF upwards, or else downwards from REF or from its oldest ancestors."""
    if direction == "up":
        edges = found.parents_of()
        return [_grow(found, found.ref, edges, upwards=True)]
    edges = found.children_of()
    if direction == "down":
        return [_grow(found, found.ref, edges, upwards=False)]
    with_parents = {edge.child for edge in found.edges}
    roots = [ref for ref in found.versions if ref not in with_parents]
    return [_grow(found, root, edges, upwards=False) for root in roots]


def _grow(found: Lineage, root: str, edges: dict[str, list[Edge]], *, upwards: bool) -> Tree:
    """Grow a tree without recursion (lineages may be deep); what was shown already is not unfolded again."""
    from rich.tree import Tree

    top = Tree(_label(found, root, None), guide_style="dim")
    shown: set[str] = set()
    waiting = [(root, top)]
    while waiting:
        ref, branch = waiting.pop()
        if ref in shown:
            continue
        shown.add(ref)
        for edge in edges.get(ref, []):
            other = edge.parent if upwards else edge.child
            again = other in shown
            twig = branch.add(_label(found, other, edge.relation, again=again))
            if not again:
                waiting.append((other, twig))
    return top


def _label(found: Lineage, ref: str, relation: str | None, *, again: bool = False) -> Any:
    from rich.text import Text

    from cli.output import clean

    version = found.versions[ref]
    label = Text(ref, style="bold cyan" if ref == found.ref else "")
    if relation:
        label.append(f"  {relation}", style="dim")
    if version.step is not None:
        label.append(f"  step {version.step}", style="dim")
    if version.aliases:
        label.append(f"  @{', @'.join(version.aliases)}", style="green")
    if not version.verified:
        label.append("  not verified", style="yellow")
    if version.retired_at:
        label.append("  retired", style="red")
    if version.note:
        label.append(f"  {clean(version.note)}", style="italic dim")
    if again:
        label.append("  (see above)", style="dim")
    return label
