"""Lineages drawn: everything is in the picture, nothing that a name or a note holds is markup, nothing is loaded."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import Registry
from registry.draw_lineage import _escape_dot, _escape_mermaid
from registry.graph_layout import place_in_layers
from registry.lineage import Lineage
from registry.lineage_page import MAX_DRAWN
from tests.records import record, record_all, record_copies

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too' ]]> --> `x` \\N #quot; {a} |b|"
COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@pytest.fixture
def lineage(any_registry: Registry) -> Lineage:
    """An absent parent, a chain, a merge past three layers, a retired version, an alias, a hostile note."""
    record_all(
        any_registry,
        {"model": "org/base", "absent": [f"org/teacher@{COMMIT}"]},
        {"model": "tuned", "parents": ["org/base"], "step": 5, "note": HOSTILE},
        {"model": "tuned", "parents": ["tuned@v1"], "relation": "continued"},
        {"model": "side", "parents": ["org/base"], "verified": False},
        {"model": "merged", "parents": ["tuned@v2", "side", "org/base"], "relation": "merged"},
    )
    any_registry.set_alias("tuned@best", "tuned@v2")
    any_registry.retire("side", force=True)
    return any_registry.lineage("org/base")


class _Page(HTMLParser):
    """Collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


def test_the_page_is_whole_and_loads_nothing(lineage: Lineage) -> None:
    page = _Page(lineage.to_html())
    assert page.open == []
    assert page.tags["svg"] == page.tags["style"] == page.tags["table"] == 1
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]
    targets = {value.removeprefix("#") for value in page.values("href") if value.startswith("#")}
    assert len(targets) == 6 and targets <= set(page.values("id"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert page.tags["rect"] == 6  # five versions and the absent parent
    assert page.tags["path"] == 7 + 1  # seven steps, and the arrow's head
    assert HOSTILE in page.text and "4 descendants" in page.text
    assert f"hf://org/teacher@{COMMIT[:12]}" in page.text, "commits are cut in the picture"


def test_the_fragment_for_notebooks_holds_the_same(lineage: Lineage) -> None:
    fragment = _Page(lineage._repr_html_())
    assert fragment.open == []
    assert (fragment.tags["rect"], fragment.tags["path"], fragment.tags["tr"]) == (6, 8, 8)
    assert not fragment.tags.keys() & {"script", "style", "html", "a"}


def test_what_is_too_much_to_draw_is_listed(any_registry: Registry) -> None:
    record_copies(any_registry, "m", MAX_DRAWN + 1, chain=True)
    lineage = any_registry.lineage("m")
    page = _Page(lineage.to_html())
    assert (page.tags["svg"], page.tags["tr"]) == (0, MAX_DRAWN + 2)
    assert "too many for a picture" in page.text
    fragment = _Page(lineage._repr_html_())
    assert fragment.tags["svg"] == 0 and "and 100 more" in fragment.text
    assert _Page(any_registry.lineage("m", depth=3).to_html()).tags["rect"] == 4


def test_mermaid_and_dot_name_every_version_and_every_step(lineage: Lineage) -> None:
    mermaid = lineage.to_mermaid().splitlines()
    keys = {match[2]: match[1] for line in mermaid if (match := re.match(r'    (n\d+)\["([^"<]+)', line))}
    refs = ["org/base@v1", "tuned@v1", "tuned@v2", "side@v1", "merged@v1"]
    assert sorted(keys) == sorted([f"hf://org/teacher@{COMMIT}", *refs])
    for edge in lineage.steps:
        assert f'    {keys[edge.parent]} -->|"{edge.relation}"| {keys[edge.child]}' in mermaid
        assert f'    "{edge.parent}" -> "{edge.child}" [label="{edge.relation}"' in lineage.to_dot()
    assert len([line for line in mermaid if "-->" in line]) == len(lineage.steps) == 7
    assert "@best" in lineage.to_mermaid() and "@best" in lineage.to_dot()
    assert lineage.to_dot().count("[label=") == 6 + 7


@given(st.text())
def test_no_text_ends_a_label(text: str) -> None:
    assert not set(_escape_mermaid(text)) & set('"<>[](){}|`\n&\\')
    assert re.fullmatch(r'(?:[^"\\\n]|\\["\\])*', _escape_dot(text))


@st.composite
def _graphs(draw: st.DrawFn) -> list[tuple[str, str]]:
    n = draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    return [(str(a), str(b)) for a, b in draw(st.lists(pairs, unique=True, max_size=30))] if n > 1 else []


@given(_graphs())
def test_no_two_boxes_overlap_and_edges_lead_downwards(edges: list[tuple[str, str]]) -> None:
    widths = {name: 10.0 + len(name) for edge in edges for name in edge}
    layout = place_in_layers(widths, edges, gap=5, waypoint_width=7)
    assert all(layout.layer[parent] < layout.layer[child] for parent, child in edges)
    sizes = {**widths, **{point: 7.0 for points in layout.waypoints.values() for point in points}}
    assert sizes.keys() == layout.x.keys()
    for number in range(layout.n_layers):
        row = sorted((layout.x[node], node) for node in sizes if layout.layer[node] == number)
        for (x, node), (to_x, other) in pairwise(row):
            assert to_x - x >= (sizes[node] + sizes[other]) / 2 + 5 - 1e-6
    assert all(layout.x[one] - sizes[one] / 2 >= -1e-6 for one in sizes)
    assert all(layout.x[one] + sizes[one] / 2 <= layout.width + 1e-6 for one in sizes)


def test_a_version_by_itself_is_drawn_too(any_registry: Registry) -> None:
    record(any_registry, "alone")
    lineage = any_registry.lineage("alone")
    assert _Page(lineage.to_html()).tags["rect"] == 1
    assert 'n0["alone@v1"]:::itself' in lineage.to_mermaid()
