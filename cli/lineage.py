"""`lensreg lineage` and `lensreg join`: who came from whom, as a tree, a drawing or data; parents that were absent."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options
from cli.output import say
from registry.plain_text import clean_line

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from registry.ancestry import Edge
    from registry.lineage import Lineage
    from registry.versions import VersionSummary


@click.command()
@ref_argument()
@click.option("--up", "direction", flag_value="up", help="Ancestors only.")
@click.option("--down", "direction", flag_value="down", help="Descendants only.")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="So many generations at most.")
@output_option("tree", "table", "mermaid", "dot", "html", "json", "csv", "ids", also=("--format",))
@registry_options
@click.pass_obj
def lineage(session: Session, ref: str, direction: str | None, depth: int | None) -> None:
    """Show what the version that REF means came from, and what came from it.

    Parents that were declared and are not registered are shown as hf://ORG/NAME@REVISION. mermaid and dot are for those
    tools; html is a page that needs nothing else.
    """
    found = session.open().lineage(ref, up=direction != "down", down=direction != "up", depth=depth)
    if session.output == "tree":
        from cli.output import stdout

        for tree in _make_trees(found, direction):
            stdout().print(tree)
    elif session.output == "mermaid":
        say(found.to_mermaid(), nl=False)
    elif session.output == "dot":
        say(found.to_dot(), nl=False)
    elif session.output == "html":
        say(found.to_html(), nl=False)
    else:
        _print_rows(found, session.output)


@click.command()
@ref_argument()
@ref_argument("parent")
@click.option("--declared", metavar="ORG/NAME@REVISION", help="Which absent parent it is, if there are several.")
@click.option(
    "--allow",
    multiple=True,
    metavar="FIELD",
    help="Architecture field that may differ from the parent's; or unrelated-parent.",
)
@registry_options
@click.pass_obj
def join(session: Session, ref: str, parent: str, declared: str | None, allow: tuple[str, ...]) -> None:
    """Say that an absent parent of REF is the registered version PARENT.

    An absent parent that was declared by its commit or digest is joined by itself when it is registered; this is for
    those declared by a branch or a tag, and for architectures that differ and are meant to. It is refused where the
    record shows that PARENT is another one.
    """
    child = session.open().join_parent(ref, parent, declared=declared, allow=allow)
    say(f"joined {child.ref}: {', '.join(one.ref for one in child.parents)}")


def _print_rows(found: Lineage, output: str) -> None:
    from cli.output import Column, print_json, print_rows

    rows = _make_rows(found)
    if output == "json":
        absent = [{"child": one.child, "ref": one.parent.ref, **asdict(one.parent)} for one in found.absent]
        for one in absent:
            del one["joined"]
        print_json({"ref": found.ref, "rows": rows, "edges": [asdict(edge) for edge in found.edges], "absent": absent})
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
    print_rows(rows, columns, output, f"{found.ref} has no registered relatives.", "ref")


def _make_rows(found: Lineage) -> list[dict[str, Any]]:
    from cli.versions import summary_row

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
    steps: dict[str, list[Edge]] = {}
    for step in found.steps:
        steps.setdefault(step.child if direction == "up" else step.parent, []).append(step)
    if direction is not None:
        return [_grow(found, found.ref, steps, upwards=direction == "up")]
    with_parents = {step.child for step in found.steps}
    refs = [*(one.parent.ref for one in found.absent), *found.versions]
    roots = [ref for ref in dict.fromkeys(refs) if ref not in with_parents]
    return [_grow(found, root, steps, upwards=False) for root in roots]


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
            twig = branch.add(_label(found, other, edge, again=again))
            if not again:
                waiting.append((other, twig))
    return top


def _label(found: Lineage, ref: str, edge: Edge | None, *, again: bool = False) -> Any:
    from rich.text import Text

    version = found.versions.get(ref)
    label = Text(clean_line(ref), style="bold cyan" if ref == found.ref else "")
    if edge:
        label.append(f"  {clean_line(edge.relation)}", style="dim")
        _tell_weights(label, edge)
    if version is None:
        label.append("  absent", style="yellow")
    else:
        _describe(label, version)
    if again:
        label.append("  (see above)", style="dim")
    return label


def _tell_weights(label: Text, edge: Edge) -> None:
    """Say of an edge what stands out: weights that are unrelated, and how many matrices changed if not all did."""
    if edge.evidence is None:
        return
    from registry.compare_sketches import Evidence

    evidence = Evidence.from_dict(edge.evidence)
    if evidence.verdict == "unrelated":
        label.append("  weights unrelated", style="dim" if edge.relation == "distilled" else "red")
    elif evidence.n_unchanged:
        label.append(f"  {evidence.change}", style="dim")


def _describe(label: Text, version: VersionSummary) -> None:
    if version.step is not None:
        label.append(f"  step {version.step}", style="dim")
    if version.aliases:
        label.append(clean_line(f"  @{', @'.join(version.aliases)}"), style="green")
    if not version.verified:
        label.append("  not verified", style="yellow")
    if version.retired_at:
        label.append("  retired", style="red")
    if version.note:
        label.append(f"  {clean_line(version.note)}", style="italic dim")
