"""Draw a lineage as HTML that needs nothing else: a page of its own, or a fragment for notebooks.

The picture is SVG in the colour of the text around it, so that it can be read in the light and in the dark. There is no
script, and the page forbids itself to load anything.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from registry.draw_lineage import Node, list_nodes
from registry.graph_layout import Layout, place_in_layers
from registry.plain_text import escape
from registry.versions import VersionSummary

if TYPE_CHECKING:
    from registry.ancestry import Edge
    from registry.lineage import Lineage

MAX_DRAWN = 200
MAX_LISTED = 100
_CHARACTER, _LINE, _GAP, _LAYER, _LABEL = 7.8, 17, 28, 104, 60
_MAX_CHARACTERS = 40
_COMMIT = re.compile(r"(?<=@)([0-9a-f]{12})[0-9a-f]{28}$")

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #fff; --soft: #667; --rule: #d8dbe0; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7ea; --back: #16181c; --soft: #9aa0aa; --rule: #34383f; --link: #8ab4f8; }
}
body { color: var(--text); background: var(--back); font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
p { color: var(--soft); }
figure { margin: 1.5rem 0; overflow: auto; max-height: 80vh; border: 1px solid var(--rule); border-radius: 8px; }
figure svg { display: block; margin: 1rem auto; }
.listed { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; }
th, td { padding: .35rem 1.25rem .35rem 0; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; }
td.ref, td.digest { font-family: ui-monospace, monospace; font-size: .9em; }
tr:target { outline: 2px solid var(--link); }
tr.itself td.ref { font-weight: 700; }
a { color: var(--link); text-decoration: none; }
svg a { color: inherit; }
svg .relation { paint-order: stroke; stroke: var(--back); stroke-width: 4px; }
"""


def write_page(lineage: Lineage) -> str:
    """Write the whole page: what it is, the picture, and a row for each version."""
    n_up, n_down = len(lineage.ancestors()), len(lineage.descendants())
    said = [f"{n_up:,} ancestor{'s' * (n_up != 1)}", f"{n_down:,} descendant{'s' * (n_down != 1)}"]
    if lineage.depth is not None:
        said.append(f"{lineage.depth} generation{'s' * (lineage.depth != 1)} at most")
    title = f"Lineage of {escape(lineage.ref)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{', '.join(said)}.</p>\n{_draw_figure(lineage)}\n{_write_versions(lineage)}\n</body>\n</html>\n"
    )


def write_fragment(lineage: Lineage) -> str:
    """Write the picture and a table of the edges, in whatever colours there are around it."""
    steps = lineage.steps
    rows = "".join(
        f"<tr><td>{escape(one.parent)}</td><td>{escape(one.relation)}</td><td>{escape(one.child)}</td></tr>"
        for one in steps[:MAX_LISTED]
    )
    more = f"<p>and {len(steps) - MAX_LISTED:,} more</p>" if len(steps) > MAX_LISTED else ""
    return (
        f"<div>{_draw_picture(lineage, links=False) or ''}<table><caption>lineage of {escape(lineage.ref)}</caption>"
        f"<tr><th>parent</th><th>relation</th><th>child</th></tr>{rows}</table>{more}</div>"
    )


def _draw_figure(lineage: Lineage) -> str:
    picture = _draw_picture(lineage, links=True)
    if picture is None:
        return f"<p>More than {MAX_DRAWN} versions are too many for a picture; --depth shows the nearest.</p>"
    return f"<figure>{picture}</figure>"


def _draw_picture(lineage: Lineage, *, links: bool) -> str | None:
    """Draw the SVG, or return None if there is too much to see anything."""
    nodes = {node.ref: node for node in list_nodes(lineage)}
    if len(nodes) > MAX_DRAWN:
        return None
    edges = {(edge.parent, edge.child): edge for edge in lineage.steps}
    layout = place_in_layers({ref: _measure(node) for ref, node in nodes.items()}, list(edges), _GAP, _LABEL)
    width, height = layout.width + 2 * _GAP, (layout.n_layers - 1) * _LAYER + 2 * _LINE + 2 * _GAP
    drawn = [_draw_edge(layout, ends, edge, _height(nodes[edge.parent])) for ends, edge in edges.items()]
    drawn += [_draw_node(layout, node, link=links) for node in nodes.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="ui-monospace, monospace" font-size="13" '
        f'aria-label="lineage of {escape(lineage.ref)}">'
        '<defs><marker id="lensreg-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
        f"{''.join(drawn)}</svg>"
    )


def _draw_node(layout: Layout, node: Node, *, link: bool) -> str:
    x, top, width = layout.x[node.ref] + _GAP, _top(layout, node.ref), _measure(node)
    style = {"itself": ' stroke-width="2.5"', "absent": ' stroke-dasharray="4 3"'}.get(node.kind, "")
    bold = ' font-weight="700"' if node.kind == "itself" else ""
    middle = f'x="{x:.1f}" text-anchor="middle" fill="currentColor"'
    drawn = (
        f"<title>{escape(node.ref)}</title>"
        f'<rect x="{x - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_height(node)}" rx="6" '
        f'fill="none" pointer-events="all" stroke="currentColor"{style}/>'
        f'<text {middle} y="{top + 20:.1f}"{bold}>{escape(_shorten(node.ref))}</text>'
    )
    if node.remarks:
        remarks = escape(_shorten(" ".join(node.remarks)))
        drawn += f'<text {middle} y="{top + 20 + _LINE:.1f}" font-size="11" opacity="0.75">{remarks}</text>'
    faded = ' opacity="0.55"' if node.kind == "retired" else ""
    group = f"<g{faded}>{drawn}</g>"
    return f'<a href="#{escape(node.ref)}">{group}</a>' if link else group


def _draw_edge(layout: Layout, ends: tuple[str, str], edge: Edge, parent_height: float) -> str:
    """Draw a curve from below the parent through the waypoints to above the child, and its relation beside it."""
    parent, child = ends
    points = [(layout.x[parent] + _GAP, _top(layout, parent) + parent_height)]
    points += [(layout.x[one] + _GAP, _top(layout, one) + 1.5 * _LINE) for one in layout.waypoints[ends]]
    points.append((layout.x[child] + _GAP, _top(layout, child)))
    way = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (y + to_y) / 2
        way += f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
    if len(points) > 2:
        x, y = points[1]
    else:
        x, y = (points[0][0] + points[1][0]) / 2, (points[0][1] + points[1][1]) / 2
    dashed = ' stroke-dasharray="4 3"' if edge.parent.startswith("hf://") else ""
    return (
        f'<path d="{way}" fill="none" stroke="currentColor" opacity="0.6"{dashed} marker-end="url(#lensreg-arrow)"/>'
        f'<text class="relation" x="{x + 6:.1f}" y="{y + 4:.1f}" font-size="11" font-family="sans-serif" '
        f'fill="currentColor" opacity="0.75">{escape(edge.relation)}</text>'
    )


def _write_versions(lineage: Lineage) -> str:
    """Write a row for each version and absent parent: the oldest ancestor first, then it, then its descendants."""
    steps: dict[str, list[Edge]] = {}
    for edge in lineage.steps:
        steps.setdefault(edge.child, []).append(edge)
    rows = [
        f'<tr id="{escape(node.ref)}"><td class="ref">{escape(node.ref)}</td>'
        '<td></td><td colspan="7">not registered</td></tr>'
        for node in list_nodes(lineage)
        if node.kind == "absent"
    ]
    rows += [_write_row(one.version, f"−{one.depth}", steps) for one in reversed(lineage.ancestors())]
    rows.append(_write_row(lineage.versions[lineage.ref], "0", steps, itself=True))
    rows += [_write_row(one.version, f"+{one.depth}", steps) for one in lineage.descendants()]
    headings = ("version", "generation", "made from", "step", "verified", "aliases", "weights", "registered", "note")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    return f'<div class="listed"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _write_row(
    version: VersionSummary, generation: str, steps: Mapping[str, list[Edge]], *, itself: bool = False
) -> str:
    parents = [
        f'<a href="#{escape(edge.parent)}">{escape(edge.parent)}</a> ({escape(_describe(edge))})'
        for edge in steps.get(version.ref, [])
    ]
    cells = [
        ("", generation),
        ("", "<br>".join(parents)),
        ("", "" if version.step is None else str(version.step)),
        ("", "yes" if version.verified else "no"),
        ("", escape(", ".join(version.aliases))),
        ("digest", (version.weights_digest or "not fetched")[:16]),
        ("", f"{version.created_at:%Y-%m-%d %H:%M}" + (" (retired)" if version.retired_at else "")),
        ("", escape(version.note or "")),
    ]
    row = "".join(f'<td class="{name}">{text}</td>' if name else f"<td>{text}</td>" for name, text in cells)
    kind = ' class="itself"' if itself else ""
    return f'<tr id="{escape(version.ref)}"{kind}><td class="ref">{escape(version.ref)}</td>{row}</tr>'


def _describe(edge: Edge) -> str:
    """Say what the child is to its parent, and what there is to remark about that."""
    said = [edge.relation]
    said += [f"{one['field']} {one['parent']} → {one['checkpoint']}" for one in edge.admitted_differences]
    said += [f"declared as {edge.declared}"] if edge.declared else []
    if edge.evidence is not None:
        from registry.compare_sketches import Evidence  # numpy

        said.append(f"weights {Evidence.from_dict(edge.evidence)}")
    return ", ".join(said)


def _top(layout: Layout, key: Hashable) -> float:
    return layout.layer[key] * _LAYER + _GAP


def _height(node: Node) -> float:
    return _LINE * (3 if node.remarks else 2) - 4


def _measure(node: Node) -> float:
    return max(len(_shorten(one)) for one in (node.ref, " ".join(node.remarks))) * _CHARACTER + 24


def _shorten(text: str) -> str:
    """Cut commits and leave out the middle of what is too long to draw; titles and the table have it whole."""
    text = _COMMIT.sub(r"\1", text)
    half = _MAX_CHARACTERS // 2
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: half - 1]}…{text[-half:]}"
