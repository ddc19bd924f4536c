"""Draw a lineage as text for other tools, a Mermaid flowchart or Graphviz's DOT; what a name holds stays a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.plain_text import clean_line

if TYPE_CHECKING:
    from registry.ancestry import Edge
    from registry.lineage import Lineage

KINDS = ("itself", "retired", "absent")
_PLAIN = re.compile(r"[A-Za-z0-9 ._/@:-]")


@dataclass(frozen=True)
class Node:
    """A version, or an absent parent, as it is drawn; `kind` is one of KINDS or empty."""

    ref: str
    kind: str
    remarks: tuple[str, ...]


def list_nodes(lineage: Lineage) -> list[Node]:
    """Return what is to be drawn: absent parents first, then the versions in the order of registration."""
    absent = {one.parent.ref: Node(one.parent.ref, "absent", ("absent",)) for one in lineage.absent}
    nodes = list(absent.values())
    for version in sorted(lineage.versions.values(), key=lambda one: (one.created_at, one.ref)):
        kind = "itself" if version.ref == lineage.ref else "retired" if version.retired_at else ""
        remarks = [f"step {version.step}"] if version.step is not None else []
        remarks += [f"@{alias}" for alias in version.aliases]
        remarks += ["retired"] if version.retired_at else []
        nodes.append(Node(version.ref, kind, tuple(remarks)))
    return nodes


def draw_mermaid(lineage: Lineage) -> str:
    """Draw a flowchart from parents down to children."""
    nodes = list_nodes(lineage)
    keys = {node.ref: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        label = "<br/>".join(_escape_mermaid(one) for one in (node.ref, *node.remarks))
        lines.append(f'    {keys[node.ref]}["{label}"]' + (f":::{node.kind}" if node.kind else ""))
    lines += [
        f'    {keys[edge.parent]} -->|"{_escape_mermaid(edge.relation)}"| {keys[edge.child]}' for edge in lineage.steps
    ]
    lines += [
        "    classDef itself stroke-width:3px",
        "    classDef retired opacity:0.5",
        "    classDef absent stroke-dasharray:4 3",
    ]
    return "\n".join(lines) + "\n"


def draw_dot(lineage: Lineage) -> str:
    """Draw a directed graph from parents down to children."""
    styles = {"itself": ", penwidth=3", "retired": ", color=gray, fontcolor=gray", "absent": ", style=dashed"}
    lines = ["digraph lineage {", "    rankdir=TB;", '    node [shape=box, fontname="monospace"];']
    lines.append('    edge [fontname="sans-serif", fontsize=10];')
    for node in list_nodes(lineage):
        label = "\\n".join(_escape_dot(one) for one in (node.ref, *node.remarks))
        lines.append(f'    "{_escape_dot(node.ref)}" [label="{label}"{styles.get(node.kind, "")}];')
    lines += [_draw_dot_edge(edge) for edge in lineage.steps]
    return "\n".join([*lines, "}"]) + "\n"


def _draw_dot_edge(edge: Edge) -> str:
    ends = f'"{_escape_dot(edge.parent)}" -> "{_escape_dot(edge.child)}"'
    style = ", style=dashed" if edge.parent.startswith("hf://") else ""
    return f'    {ends} [label="{_escape_dot(edge.relation)}"{style}];'


def _escape_mermaid(text: str) -> str:
    """Write all but plain characters by number: https://mermaid.js.org/syntax/flowchart.html, entity codes."""
    return "".join(one if _PLAIN.match(one) else f"#{ord(one)};" for one in clean_line(text))


def _escape_dot(text: str) -> str:
    """Keep quotes, backslashes and HTML entities from meaning anything: https://graphviz.org/doc/info/lang.html."""
    return clean_line(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
