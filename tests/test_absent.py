"""Parents that are declared but absent: recorded without bytes, joined to what they mean exactly, never in a cycle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from registry import ArchitectureMismatch, Registry, UnknownRef, Version
from registry.absent import parse_absent_parent
from registry.errors import DatabaseError, InvalidInput, LineageConflict
from registry.tables import version_parents
from tests.checkpoints import edit_config
from tests.hub_server import FakeHub
from tests.records import digest_of, make_architecture, record, record_all

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
OTHER_COMMIT = "0" * 40
GPT2 = f"openai-community/gpt2@{COMMIT}"
LABEL = f"hf://{GPT2}"
ORIGIN = {"repo": "openai-community/gpt2", "revision": "main", "commit": COMMIT}


def _parents(registry: Registry, ref: str) -> list[tuple[str, str, str | None]]:
    return [(one.ref, one.relation, one.declared) for one in registry.version(ref).parents]


def _actions(registry: Registry, subject: str) -> list[str]:
    return [event.action for event in registry.events(subject)]


GOOD = {
    GPT2: ("openai-community/gpt2", COMMIT, None),
    f"hf://{GPT2}": ("openai-community/gpt2", COMMIT, None),
    "org/name@main": ("org/name", "main", None),
    "gpt2@refs/pr/1": ("gpt2", "refs/pr/1", None),
    "org/name@main#sha256:" + "a" * 64: ("org/name", "main", "a" * 64),
}
BAD = [
    "org/name",
    "",
    "org/name@",
    "a/b/c@main",
    "../x@main",
    "org/name@main#sha256:" + "a" * 63,
    "org/name@main#sha256:" + "A" * 64,
    "org/name@main#md5:00",
    "org/name#sha256:" + "a" * 64,
    "org/name@a\nb",
    "hf://",
    "https://huggingface.co/org/name",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_is_a_model_on_the_hub_at_a_revision(text: str) -> None:
    one = parse_absent_parent(text)
    assert (one.repo, one.revision, one.digest) == GOOD[text]
    assert one.ref == f"hf://{one.repo}@{one.revision}"


@pytest.mark.parametrize("text", BAD)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_absent_parent(text)


def test_it_is_recorded_and_shown_as_absent(any_registry: Registry) -> None:
    record(any_registry, "tuned", absent=[GPT2, "org/teacher@main"])
    record(any_registry, "tuned", parents=["tuned"], relation="continued")
    version = any_registry.version("tuned@v1")
    assert version.parents == ()
    assert [(one.ref, one.relation, one.joined) for one in version.absent_parents] == [
        (LABEL, "finetuned", None),
        ("hf://org/teacher@main", "finetuned", None),
    ]
    assert LABEL in version._repr_html_()
    lineage = any_registry.lineage("tuned@v2")
    assert [(one.child, one.parent.ref) for one in lineage.absent] == [
        ("tuned@v1", LABEL),
        ("tuned@v1", "hf://org/teacher@main"),
    ]
    assert any_registry.lineage("tuned@v2", depth=1).absent == ()
    assert len(any_registry.lineage("tuned@v2", depth=2).absent) == 2
    assert any_registry.lineage("tuned@v2", up=False).absent == ()
    event = any_registry.events("tuned@v1")[0]
    assert event.details["absent_parents"] == {LABEL: "finetuned", "hf://org/teacher@main": "finetuned"}
    with pytest.raises(UnknownRef, match="began with is not registered") as refused:
        lineage.base()
    assert refused.value.candidates == (LABEL, "hf://org/teacher@main")


def test_it_is_joined_when_its_commit_is_registered(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "one", "absent": [GPT2]}, {"model": "two", "absent": [GPT2]})
    record(any_registry, "other", provenance=ORIGIN | {"commit": OTHER_COMMIT})
    record(any_registry, "namesake", provenance=ORIGIN | {"repo": "somebody/gpt2"})
    assert any_registry.lineage("one").ancestors() == []
    record(any_registry, "gpt2", provenance=ORIGIN)
    for child in ("one", "two"):
        assert _parents(any_registry, child) == [("gpt2@v1", "finetuned", LABEL)]
        assert [one.joined for one in any_registry.version(child).absent_parents] == ["gpt2@v1"]
        lineage = any_registry.lineage(child)
        assert ([one.version.ref for one in lineage.ancestors()], lineage.absent) == (["gpt2@v1"], ())
        assert lineage.edges[0].declared == LABEL
        assert lineage.base().ref == "gpt2@v1"
        event = any_registry.events(f"{child}@v1")[0]
        assert (event.action, event.details["by"], event.details["parent"]) == ("parent.joined", "commit", "gpt2@v1")
    assert sorted(one.version.ref for one in any_registry.lineage("gpt2").descendants()) == ["one@v1", "two@v1"]
    assert "record-altered" not in {one.code for one in any_registry.verify().faults}, "the events say of the edge"
    # it is joined once: what is the same again, later, is no parent
    record(any_registry, "again", provenance=ORIGIN)
    assert any_registry.lineage("again").descendants() == []
    assert any_registry.verify_events() is None


def test_it_is_joined_at_once_when_it_is_there_already(any_registry: Registry) -> None:
    record(any_registry, "gpt2", provenance=ORIGIN)
    record(any_registry, "gpt2", provenance=ORIGIN)
    any_registry.retire("gpt2@v1")
    record(any_registry, "tuned", absent=[GPT2])
    assert _parents(any_registry, "tuned") == [("gpt2@v2", "finetuned", LABEL)]


@pytest.mark.parametrize("of", ["weights", "file"])
def test_it_is_joined_by_the_digest_of_its_weights_or_of_its_one_file(any_registry: Registry, of: str) -> None:
    weights = digest_of("the weights")
    digest = weights if of == "weights" else digest_of(weights)
    declared = f"org/name@main#sha256:{digest}"
    record(any_registry, "tuned", absent=[declared])
    record(any_registry, "others", provenance={"repo": "org/name", "revision": "main", "commit": COMMIT})
    assert _parents(any_registry, "tuned") == []
    record(any_registry, "copy", weights_digest=weights)
    assert _parents(any_registry, "tuned") == [("copy@v1", "finetuned", "hf://org/name@main")]
    record(any_registry, "late", absent=[declared])
    assert _parents(any_registry, "late") == [("copy@v1", "finetuned", "hf://org/name@main")]
    assert any_registry.events("late@v1")[0].details["by"] == "digest"


def test_one_shard_of_several_is_not_the_network(any_registry: Registry) -> None:
    """Whichever of the two is registered first."""
    shard = digest_of("a shard")
    record(any_registry, "early", absent=[f"org/name@main#sha256:{shard}"])
    record(any_registry, "sharded", shards=[shard])
    record(any_registry, "late", absent=[f"org/name@main#sha256:{shard}"])
    assert _parents(any_registry, "early") == _parents(any_registry, "late") == []


def test_a_branch_is_joined_by_hand_only(any_registry: Registry) -> None:
    record(any_registry, "tuned", absent=["openai-community/gpt2@main"])
    record(any_registry, "gpt2", provenance=ORIGIN)
    assert _parents(any_registry, "tuned") == []
    child = any_registry.join_parent("tuned", "gpt2")
    assert [one.ref for one in child.parents] == ["gpt2@v1"]
    assert any_registry.events("tuned")[0].details["by"] == "hand"
    with pytest.raises(UnknownRef, match="has no absent parent"):
        any_registry.join_parent("tuned", "gpt2")


def test_by_hand_one_says_which_and_cannot_contradict_the_record(any_registry: Registry) -> None:
    digest = digest_of("declared")
    record(any_registry, "tuned", absent=[GPT2, f"org/teacher@main#sha256:{digest}"])
    record(any_registry, "other", provenance=ORIGIN | {"commit": OTHER_COMMIT})
    record(any_registry, "copied")
    with pytest.raises(UnknownRef, match="--declared") as refused:
        any_registry.join_parent("tuned", "copied")
    assert refused.value.candidates == (LABEL, "hf://org/teacher@main")
    with pytest.raises(LineageConflict, match="another commit"):
        any_registry.join_parent("tuned", "other", declared=GPT2)
    with pytest.raises(LineageConflict, match="has others"):
        any_registry.join_parent("tuned", "copied", declared="org/teacher@main")
    assert _parents(any_registry, "tuned") == []
    any_registry.join_parent("tuned", "copied", declared=GPT2)
    assert _parents(any_registry, "tuned") == [("copied@v1", "finetuned", LABEL)]


def test_a_cycle_is_refused_by_hand_and_left_absent_by_itself(any_registry: Registry) -> None:
    """`tuned` says it came from what turns out to be its own grandchild."""
    record(any_registry, "tuned", absent=[GPT2, "org/x@main"])
    record(any_registry, "child", parents=["tuned"])
    record(any_registry, "grandchild", parents=["child"], provenance=ORIGIN)
    assert _parents(any_registry, "tuned") == []
    event = any_registry.events("tuned@v1")[0]
    assert (event.action, event.details["reason"]) == ("parent.not-joined", "lineage-conflict")
    for ref in ("tuned", "child", "grandchild"):
        with pytest.raises(LineageConflict, match="cannot be"):
            any_registry.join_parent("tuned", ref, declared="org/x@main")
    lineage = any_registry.lineage("tuned")
    assert [one.version.ref for one in lineage.descendants()] == ["child@v1", "grandchild@v1"]
    assert lineage.ancestors() == []
    assert any_registry.verify_events() is None


def test_a_cycle_of_two_joined_parents_is_left_open(any_registry: Registry) -> None:
    one, two = (f"org/{name}@{COMMIT}" for name in ("one", "two"))
    record(any_registry, "one", absent=[two], provenance={"repo": "org/one", "revision": "main", "commit": COMMIT})
    record(any_registry, "two", absent=[one], provenance={"repo": "org/two", "revision": "main", "commit": COMMIT})
    assert (_parents(any_registry, "two"), _parents(any_registry, "one")) == (
        [("one@v1", "finetuned", f"hf://{one}")],
        [],
    )


def test_the_database_itself_keeps_parents_before_children(any_registry: Registry) -> None:
    record_all(any_registry, {"model": "a"}, {"model": "b", "parents": ["a"]})
    ids = {ref: any_registry.resolve(ref).id for ref in ("a", "b")}
    row = {"version_id": ids["a"], "parent_id": ids["b"], "relation": "finetuned", "admitted_differences": []}
    with (
        pytest.raises(DatabaseError) as refused,
        any_registry.database.write() as connection,
    ):
        connection.execute(insert(version_parents), row)
    assert isinstance(refused.value.__cause__, IntegrityError)
    assert "parent_first" in str(refused.value.__cause__)


def test_another_architecture_is_not_joined_unless_it_was_allowed(any_registry: Registry) -> None:
    wide = make_architecture(d_vocab=300)
    record(any_registry, "strict", absent=[GPT2])
    record(any_registry, "allowed", absent=[GPT2], allow=["d_vocab"])
    record(any_registry, "gpt2", provenance=ORIGIN, architecture=wide)
    assert _parents(any_registry, "strict") == []
    event = any_registry.events("strict@v1")[0]
    assert (event.action, event.details["reason"]) == ("parent.not-joined", "architecture-mismatch")
    (edge,) = any_registry.lineage("allowed").edges
    assert [(one["field"], one["parent"]) for one in edge.admitted_differences] == [
        ("d_vocab", 300),
        ("d_vocab_out", 300),
    ]
    with pytest.raises(ArchitectureMismatch):
        any_registry.join_parent("strict", "gpt2")
    any_registry.join_parent("strict", "gpt2", allow=["d_vocab"])
    assert _parents(any_registry, "strict") == [("gpt2@v1", "finetuned", LABEL)]


def test_two_declarations_of_one_version_make_one_edge(any_registry: Registry) -> None:
    weights = digest_of("one")
    record(any_registry, "tuned", absent=[GPT2, f"org/mirror@main#sha256:{weights}"])
    record(any_registry, "gpt2", provenance=ORIGIN, weights_digest=weights)
    assert _parents(any_registry, "tuned") == [("gpt2@v1", "finetuned", LABEL)]
    assert "parent.not-joined" in _actions(any_registry, "tuned@v1")


# ---- with real checkpoints


def _register(registry: Registry, name: str, source: Path | str, **options: object) -> Version:
    done = registry.register(name, source, parity="skip", **options)  # type: ignore[arg-type]
    assert done.version is not None
    return done.version


def test_from_the_hub_and_back(
    any_registry: Registry, hub: FakeHub, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base, tuned = make_checkpoint("gpt2"), make_checkpoint("gpt2", seed=1)
    commit = hub.push("org/base", base)
    declared = f"org/base@{commit}"
    child = _register(any_registry, "tuned", tuned, absent_parents={declared: "continued"})
    assert [(one.ref, one.relation) for one in child.absent_parents] == [(f"hf://{declared}", "continued")]
    assert any_registry.register("base", "org/base", lazy=True).version is not None
    assert _parents(any_registry, "tuned") == [("base@v1", "continued", f"hf://{declared}")]
    # the same again, by either name, changes nothing; another parent or relation is refused
    for options in ({"absent_parents": declared}, {"parent": "base"}, {}, {"parent": {"base": "continued"}}):
        again = any_registry.register("tuned", tuned, **options)  # type: ignore[arg-type]
        assert (again.outcome, again.version) == ("unchanged", any_registry.version("tuned"))
    for options in (
        {"absent_parents": "org/base@other"},
        {"parent": {"base": "distilled"}},
        {"absent_parents": {declared: "merged"}},
        {"parent": "base", "relation": "merged"},
    ):
        with pytest.raises(LineageConflict, match="lineage never changes"):
            any_registry.register("tuned", tuned, **options)  # type: ignore[arg-type]
    assert any_registry.verify_events() is None


def test_a_lazy_version_is_joined_by_its_weights_digest_when_it_is_fetched(
    any_registry: Registry, hub: FakeHub, make_checkpoint: Callable[..., Path]
) -> None:
    base = make_checkpoint("gpt2")
    digest = any_registry.register("apart", base, parity="skip", dry_run=True).weights_digest
    hub.push("org/base", base)
    any_registry.register("base", "org/base", lazy=True)
    _register(any_registry, "tuned", make_checkpoint("gpt2", seed=1), absent_parents=f"x/y@main#sha256:{digest}")
    assert _parents(any_registry, "tuned") == []
    any_registry.fetch("base", parity="skip")
    assert _parents(any_registry, "tuned") == [("base@v1", "finetuned", "hf://x/y@main")]


def test_what_is_there_is_compared_like_any_parent(
    registry: Registry, hub: FakeHub, make_checkpoint: Callable[..., Path]
) -> None:
    commit = hub.push("org/base", make_checkpoint("gpt2"))
    registry.register("base", "org/base", lazy=True)
    wrong = edit_config(make_checkpoint("gpt2", seed=1), layer_norm_epsilon=1e-1)
    with pytest.raises(ArchitectureMismatch, match="base@v1: 1 field differs"):
        registry.register("wrong", wrong, absent_parents=f"org/base@{commit}", parity="skip")
    with pytest.raises(InvalidInput, match="itself"):
        registry.register("again", "org/base", absent_parents=f"org/base@{commit}", lazy=True)
    right = make_checkpoint("gpt2", seed=2)
    with pytest.raises(LineageConflict, match="named as parent already"):
        registry.register("tuned", right, parent="base", absent_parents=f"org/base@{commit}", parity="skip")
    with pytest.raises(InvalidInput, match="twice"):
        registry.register("tuned", right, absent_parents=["a/b@main", "hf://a/b@main"], parity="skip")
    with pytest.raises(InvalidInput, match="no relation"):
        registry.register("tuned", right, absent_parents={"a/b@main": "cousin"})
    assert [model.name for model in registry.models()] == ["base"]


def test_whoever_registers_is_told_that_it_is_not_joined(
    registry: Registry, make_checkpoint: Callable[..., Path], hub: FakeHub
) -> None:
    base = make_checkpoint("gpt2")
    commit = hub.push("org/base", edit_config(base, layer_norm_epsilon=1e-1))
    _register(registry, "tuned", make_checkpoint("gpt2", seed=1), absent_parents=f"org/base@{commit}")
    digest = "f" * 64
    _register(registry, "other", make_checkpoint("gpt2", seed=2), absent_parents=f"org/base@{commit}#sha256:{digest}")
    version = _register(registry, "base", "org/base")
    said = [finding["message"] for finding in version.findings if finding["code"] == "declared-otherwise"]
    assert len(said) == 2
    assert "eps: not joined" in said[0] and "lensreg join tuned@v1" in said[0]
    assert "other@v1 declares" in said[1] and "other weights" in said[1]
    assert registry.lineage("base").descendants() == []


def test_every_parent_has_its_own_relation(registry: Registry, make_checkpoint: Callable[..., Path]) -> None:
    for number, name in enumerate(("base", "teacher", "third")):
        _register(registry, name, make_checkpoint("gpt2", seed=number))
    parents = {"base": "finetuned", "teacher": "distilled", "third": None}
    version = _register(registry, "tuned", make_checkpoint("gpt2", seed=9), parent=parents, relation="continued")
    assert [(one.ref, one.relation) for one in version.parents] == [
        ("base@v1", "finetuned"),
        ("teacher@v1", "distilled"),
        ("third@v1", "continued"),
    ]
    with pytest.raises(InvalidInput, match="twice"):
        registry.register(
            "x", make_checkpoint("gpt2", seed=8), parent={"base": "finetuned", "base@v1": "merged"}, parity="skip"
        )
    with pytest.raises(InvalidInput, match="no relation"):
        registry.register("x", "/nowhere", parent={"base": "cousin"})
