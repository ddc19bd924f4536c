"""Lineage: who came from whom, however wide or deep."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from registry import AmbiguousRef, Lineage, Registry, UnknownRef
from registry.ancestry import Edge
from registry.errors import InvalidInput
from registry.tables import version_parents, versions
from tests.patience import must_not_hang
from tests.records import record, record_all, record_copies


def _ancestors(lineage: Lineage) -> list[tuple[str, int]]:
    return [(one.version.ref, one.depth) for one in lineage.ancestors()]


def _descendants(lineage: Lineage) -> list[tuple[str, int]]:
    return [(one.version.ref, one.depth) for one in lineage.descendants()]


def test_a_chain(any_registry: Registry) -> None:
    record(any_registry, "base")
    record(any_registry, "tuned", parents=["base"])
    record(any_registry, "tuned", parents=["tuned@v1"], relation="continued")
    record(any_registry, "bystander")
    lineage = any_registry.lineage("tuned@v1")
    assert lineage.ref == "tuned@v1"
    assert _ancestors(lineage) == [("base@v1", 1)]
    assert _descendants(lineage) == [("tuned@v2", 1)]
    assert lineage.edges == (Edge("base@v1", "tuned@v1", "finetuned"), Edge("tuned@v1", "tuned@v2", "continued"))
    assert sorted(lineage.versions) == ["base@v1", "tuned@v1", "tuned@v2"]
    assert any_registry.version("tuned@v2").parents[0].relation == "continued"
    assert any_registry.history("tuned")[0].parents == ("tuned@v1",)


def test_a_version_by_itself(any_registry: Registry) -> None:
    record(any_registry, "base")
    lineage = any_registry.lineage("base")
    assert (lineage.ancestors(), lineage.descendants(), lineage.edges) == ([], [], ())
    assert list(lineage.versions) == ["base@v1"]
    with pytest.raises(UnknownRef):
        any_registry.lineage("nobody")


def test_a_diamond_with_a_short_cut(any_registry: Registry) -> None:
    """Ways of three, two and one step: a → b → c → merged, a → d → merged, a → merged."""
    for name, parents in [("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["a"]), ("merged", ["c", "d", "a"])]:
        record(any_registry, name, parents=parents, relation="merged" if len(parents) > 1 else "finetuned")
    assert _ancestors(any_registry.lineage("merged")) == [("a@v1", 1), ("c@v1", 1), ("d@v1", 1), ("b@v1", 2)]
    assert sorted(_descendants(any_registry.lineage("a"))) == [("b@v1", 1), ("c@v1", 2), ("d@v1", 1), ("merged@v1", 1)]
    edges = any_registry.lineage("merged").edges
    assert len(edges) == 6 == len(set(edges))
    assert {edge.relation for edge in edges if edge.child == "merged@v1"} == {"merged"}
    assert [parent.ref for parent in any_registry.version("merged").parents] == ["a@v1", "c@v1", "d@v1"]


def test_up_and_down_can_be_had_by_themselves(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a"}, {"model": "b", "parents": ["a"]}, {"model": "c", "parents": ["b"]})
    up = any_registry.lineage("b", down=False)
    assert (_ancestors(up), _descendants(up)) == ([("a@v1", 1)], [])
    down = any_registry.lineage("b", up=False)
    assert (_ancestors(down), _descendants(down)) == ([], [("c@v1", 1)])
    neither = any_registry.lineage("b", up=False, down=False)
    assert (list(neither.versions), neither.edges) == (["b@v1"], ())


def test_a_sibling_is_no_relative(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a"}, {"model": "b", "parents": ["a"]}, {"model": "c", "parents": ["a"]})
    assert sorted(any_registry.lineage("b").versions) == ["a@v1", "b@v1"]


def test_retired_versions_stay_in_the_lineage(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a"}, {"model": "b", "parents": ["a"]}, {"model": "c", "parents": ["b"]})
    any_registry.retire("b", force=True)
    (b, a) = any_registry.lineage("c").ancestors()
    assert (b.version.ref, b.version.retired_at is None, a.version.ref) == ("b@v1", False, "a@v1")


def test_it_is_shown_as_html_without_letting_markup_through(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a"}, {"model": "b", "parents": ["a"]})
    html = any_registry.lineage("b")._repr_html_()
    assert "<td>a@v1</td><td>finetuned</td><td>b@v1</td>" in html


def test_a_thousand_generations_are_read_at_once(any_registry: Registry) -> None:
    record_copies(any_registry, "m", 1000, chain=True)
    lineage = any_registry.lineage("m@v500")
    assert _ancestors(lineage) == [(f"m@v{number}", 500 - number) for number in range(499, 0, -1)]
    assert _descendants(lineage) == [(f"m@v{number}", number - 500) for number in range(501, 1001)]


def test_ways_that_part_and_meet_again_are_not_walked_one_by_one(any_registry: Registry) -> None:
    """Two versions in each of 30 generations, each merged from both before it: a thousand million ways."""
    record_all(any_registry, {"model": "a"}, {"model": "b"})
    for number in range(1, 30):
        parents = [f"a@v{number}", f"b@v{number}"]
        record_all(any_registry, *({"model": model, "parents": parents, "relation": "merged"} for model in "ab"))
    lineage = any_registry.lineage("a")
    assert len(lineage.ancestors()) == 58
    assert len(lineage.edges) == 2 + 28 * 4


@st.composite
def _graphs(draw: st.DrawFn) -> list[list[int]]:
    """For each version, which of the earlier ones are its parents."""
    n = draw(st.integers(1, 10))
    return [draw(st.lists(st.integers(0, child - 1), unique=True, max_size=4)) if child else [] for child in range(n)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=_graphs(), start=st.integers(0, 9))
def test_any_graph_is_walked_as_a_plain_search_walks_it(
    any_registry: Registry, graph: list[list[int]], start: int
) -> None:
    start %= len(graph)
    model = f"m{next(_serial)}"
    record_all(
        any_registry,
        *({"model": model, "parents": [f"{model}@v{one + 1}" for one in parents]} for parents in graph),
    )
    children = [[child for child, parents in enumerate(graph) if one in parents] for one in range(len(graph))]
    lineage = any_registry.lineage(f"{model}@v{start + 1}")
    for edges, found in ((graph, _ancestors(lineage)), (children, _descendants(lineage))):
        assert dict(found) == {f"{model}@v{one + 1}": depth for one, depth in _search(edges, start).items()}
        assert [depth for _, depth in found] == sorted(depth for _, depth in found), "nearest first"
    above, below = {start, *_search(graph, start)}, {start, *_search(children, start)}
    expected = {(parent, child) for child in above for parent in graph[child]}
    expected |= {(parent, child) for parent in below for child in children[parent]}
    assert {(edge.parent, edge.child) for edge in lineage.edges} == {
        (f"{model}@v{parent + 1}", f"{model}@v{child + 1}") for parent, child in expected
    }

    _check_ways(any_registry, lineage, model, graph)


def _check_ways(registry: Registry, lineage: Lineage, model: str, graph: list[list[int]]) -> None:
    """Compare path, common_ancestor and base with what plain searches find, for every pair."""
    above = [{one: 0, **_search(graph, one)} for one in range(len(graph))]
    refs = [f"{model}@v{number + 1}" for number in range(len(graph))]
    edges = {(refs[parent], refs[child]) for child, parents in enumerate(graph) for parent in parents}
    for a, b in itertools.product(range(len(graph)), repeat=2):
        path = lineage.path(refs[a], refs[b])
        elder, younger = (a, b) if a in above[b] else (b, a)
        if elder not in above[younger]:
            assert path is None
        else:
            assert path is not None and len(path) == above[younger][elder]
            assert all((edge.parent, edge.child) in edges for edge in path)
            assert [edge.parent for edge in path] == [refs[elder], *(edge.child for edge in path[:-1])][: len(path)]
            assert not path or path[-1].child == refs[younger]
        common = above[a].keys() & above[b].keys()
        latest = {one for one in common if not any(one in above[other] and one != other for other in common)}
        expected = min(latest, key=lambda one: (above[a][one] + above[b][one], -one)) if latest else None
        found = lineage.common_ancestor(refs[a], refs[b])
        assert (found and found.ref) == (None if expected is None else refs[expected])
    for one, ref in enumerate(refs):
        roots = [refs[other] for other in sorted(above[one]) if not graph[other]]
        if len(roots) == 1:
            assert lineage.base(ref).ref == roots[0]
        else:
            with pytest.raises(AmbiguousRef) as refused:
                lineage.base(ref)
            assert list(refused.value.candidates) == roots


_serial = itertools.count()


def _search(edges: list[list[int]], start: int) -> dict[int, int]:
    """Return how many steps away everything is that can be reached."""
    depths, frontier = {start: 0}, [start]
    for depth in itertools.count(1):
        frontier = list({other for one in frontier for other in edges[one]} - set(depths))
        if not frontier:
            break
        depths |= dict.fromkeys(frontier, depth)
    del depths[start]
    return depths


def test_the_ways_between_versions(any_registry: Registry) -> None:
    """What people ask for by name, in a → b → c → d, and e from b."""
    for name, parents in [("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c"]), ("e", ["b"]), ("lone", [])]:
        record(any_registry, name, parents=parents)
    lineage = any_registry.lineage("d")
    way = (Edge("b@v1", "c@v1", "finetuned"), Edge("c@v1", "d@v1", "finetuned"))
    assert lineage.path("b") == lineage.path("b", "d") == lineage.path("d", "b@v1") == way
    assert lineage.path("d") == ()
    assert lineage.path("e") is None
    shared = lineage.common_ancestor("e")
    assert shared is not None and shared.ref == "b@v1"
    assert lineage.common_ancestor("lone") is None
    assert (lineage.base().ref, lineage.base("lone").ref) == ("a@v1", "lone@v1")
    with pytest.raises(UnknownRef):
        lineage.path("nobody")


def test_depth_counts_the_shortest_way(any_registry: Registry) -> None:
    for name, parents in [("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c", "a"]), ("e", ["d"])]:
        record(any_registry, name, parents=parents)
    assert _ancestors(any_registry.lineage("e", depth=1)) == [("d@v1", 1)]
    assert _ancestors(any_registry.lineage("e", depth=2)) == [("d@v1", 1), ("a@v1", 2), ("c@v1", 2)]
    near = any_registry.lineage("a", depth=1)
    assert _descendants(near) == [("b@v1", 1), ("d@v1", 1)]
    assert {(edge.parent, edge.child) for edge in near.edges} == {("a@v1", "b@v1"), ("a@v1", "d@v1")}
    with pytest.raises(InvalidInput, match="no number of generations"):
        any_registry.lineage("e", depth=0)


def test_it_asks_a_few_queries_however_long_it_is(any_registry: Registry) -> None:
    record_copies(any_registry, "m", 300, chain=True)
    lineage = any_registry.lineage("m")
    asked: list[str] = []
    with any_registry.database.read() as connection:
        engine = connection.engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    for ask in (lineage.ancestors, lambda: lineage.path("m@v1"), lambda: lineage.common_ancestor("m@v7"), lineage.base):
        asked.clear()
        ask()
        assert sum("RECURSIVE" in one for one in asked) <= 2
        assert len([one for one in asked if one.lstrip().startswith(("SELECT", "WITH"))]) <= 8


def _add_ladder(registry: Registry, n: int) -> None:
    """Insert `n` rungs: each version is made from the one before it and from the one before that."""
    record_copies(registry, "rung", n, chain=True)
    with registry.database.write() as connection:
        ids = connection.execute(select(versions.c.id).order_by(versions.c.number)).scalars().all()
        edge = {"relation": "merged", "admitted_differences": []}
        connection.execute(
            insert(version_parents),
            [{"parent_id": old, "version_id": new, **edge} for old, new in zip(ids, ids[2:], strict=False)],
        )


def test_a_thousand_diamonds_one_upon_the_other(any_registry: Registry) -> None:
    """More ways than there are atoms, of every length from 500 to 999; each edge is read once."""
    _add_ladder(any_registry, 1000)
    with must_not_hang():
        lineage = any_registry.lineage("rung@v1000")
        depths = dict(_ancestors(lineage))
        assert depths == {f"rung@v{number}": (1001 - number) // 2 for number in range(1, 1000)}
        path = lineage.path("rung@v1")
        assert path is not None and len(path) == 500
        shared = lineage.common_ancestor("rung@v999")
        assert (shared and shared.ref, lineage.base().ref) == ("rung@v999", "rung@v1")


def test_two_refs_to_one_parent_make_one_edge(any_registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    any_registry.register("base", make_checkpoint("gpt2"), parity="skip")
    any_registry.set_alias("base@best", "base")
    parents = ["base", "base@v1", "base@best"]
    done = any_registry.register("tuned", make_checkpoint("gpt2", seed=1), parent=parents, parity="skip")
    assert done.version is not None
    assert [(parent.ref, parent.relation) for parent in done.version.parents] == [("base@v1", "finetuned")]


def test_a_teacher_is_none_of_what_is_merged(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    for number, name in enumerate(("base", "other", "teacher")):
        registry.register(name, make_checkpoint("gpt2", seed=number), parity="skip")
    child = make_checkpoint("gpt2", seed=5)
    parents = {"base": None, "teacher": "distilled"}
    pupil = registry.register("pupil", child, parent=parents, absent_parents={"org/t@main": "distilled"}, parity="skip")
    assert pupil.version is not None
    assert [one.relation for one in pupil.version.parents] == ["finetuned", "distilled"]
    blend = registry.register("blend", child, parent={"base": None, "other": None} | parents, parity="skip")
    assert blend.version is not None
    assert [one.relation for one in blend.version.parents] == ["merged", "merged", "distilled"]
