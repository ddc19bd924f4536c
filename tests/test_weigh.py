"""Lineage that is weighed later: when the bytes come, or when the one who weighs can convert."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import transformer_lens
from click.testing import CliRunner
from sqlalchemy import update

from cli.main import lensreg
from cli.options import Session
from registry import Registry
from registry.errors import ArtifactMissing, InvalidInput, UnknownField, UnrelatedParent
from registry.tables import version_parents
from tests.checkpoints import UNRELATED
from tests.contents import read_contents
from tests.hub_server import FakeHub

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def base(any_registry: Registry, make_checkpoint: MakeCheckpoint) -> Path:
    folder = make_checkpoint("gpt2")
    any_registry.register("base", folder, parity="skip")
    return folder


@contextmanager
def without_hooked_transformer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take away what transformer-lens 4 no longer has."""
    with monkeypatch.context() as patch:
        patch.delattr(transformer_lens, "HookedTransformer")
        patch.setitem(sys.modules, "transformer_lens.HookedTransformer", None)
        patch.delitem(sys.modules, "registry.hooked_transformer", raising=False)
        yield


def verdict(registry: Registry, ref: str) -> str | None:
    (parent,) = registry.version(ref).parents
    return None if parent.evidence is None else parent.evidence["verdict"]


def actions(registry: Registry, ref: str) -> list[str]:
    return [event.action for event in registry.events(ref)]


# --- skip skips parity, not lineage ----------------------------------------------------------------------------


def test_a_parent_of_other_weights_is_refused_though_parity_is_skipped(
    any_registry: Registry, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    wrong = make_checkpoint("gpt2", seed=UNRELATED)
    with pytest.raises(UnrelatedParent):
        any_registry.register("wrong", wrong, parent="base", parity="skip")
    any_registry.register("wrong", wrong, parent="base", parity="skip", allow=["unrelated-parent"])
    done = any_registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="base", parity="skip")
    assert done.findings == () and done.parity is None
    assert (verdict(any_registry, "wrong"), verdict(any_registry, "tuned")) == ("unrelated", "related")
    assert any_registry.verify().ok


@pytest.mark.parametrize("family", ["mamba", "mixtral", "gemma"])
def test_other_families_are_weighed_as_well_without_parity(
    family: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", make_checkpoint(family), parity="skip")
    with pytest.raises(UnrelatedParent):
        registry.register("wrong", make_checkpoint(family, seed=UNRELATED), parent="base", parity="skip")
    registry.register("tuned", make_checkpoint(family, seed=1), parent="base")
    assert verdict(registry, "tuned") == "related"


def test_a_hooked_network_is_weighed_without_parity(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    registry.register("base", make_checkpoint("gpt2"))
    registry.register("other", make_checkpoint("gpt2", seed=UNRELATED))
    network = registry.load("base", processed=False)
    with pytest.raises(UnrelatedParent):
        registry.register_network("mine", network, parent="other", parity="skip")
    registry.register_network("mine", network, parent="base", parity="skip")
    assert verdict(registry, "mine") == "unchanged"


# --- a child whose weights come later ---------------------------------------------------------------------------


def test_an_unrelated_parent_is_refused_when_the_weights_come(
    any_registry: Registry, hub: FakeHub, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/wrong", make_checkpoint("gpt2", seed=UNRELATED))
    done = any_registry.register("wrong", "org/wrong", parent="base", lazy=True)
    assert [(one.code, one.message) for one in done.findings] == [
        ("lineage-not-measured", "Whether it comes from base@v1 is measured when its weights are fetched.")
    ]
    before, events = read_contents(any_registry), len(any_registry.events())
    for attempt in (lambda: any_registry.fetch("wrong"), lambda: any_registry.load("wrong")):
        with pytest.raises(UnrelatedParent, match="wrong@v1 do not come from those of its parent base@v1") as refused:
            attempt()
        hint = str(refused.value.hint)
        assert "lensreg fetch wrong@v1 --allow unrelated-parent" in hint and "lensreg retire wrong@v1" in hint
    with pytest.raises(UnrelatedParent):
        any_registry.fetch("wrong", parity="skip")
    assert read_contents(any_registry) == before and len(any_registry.events()) == events
    assert any_registry.version("wrong").weights_digest is None and verdict(any_registry, "wrong") is None
    with pytest.raises(ArtifactMissing):
        any_registry.path("wrong")
    # as the hint says: allowed, or registered again without the parent
    any_registry.retire("wrong@v1")
    assert any_registry.load("wrong@v2") if any_registry.register("wrong", "org/wrong", lazy=True) else None
    any_registry.restore("wrong@v1")
    any_registry.fetch("wrong@v1", allow=["unrelated-parent"])
    assert verdict(any_registry, "wrong@v1") == "unrelated" and any_registry.verify().ok


def test_the_evidence_of_a_right_parent_comes_with_the_weights(
    any_registry: Registry, hub: FakeHub, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/tuned", make_checkpoint("gpt2", seed=1))
    any_registry.register("tuned", "org/tuned", parent="base", lazy=True)
    version = any_registry.fetch("tuned")
    (parent,) = version.parents
    assert parent.evidence is not None and parent.evidence["verdict"] == "related" and version.is_verified
    fetched = any_registry.events("tuned@v1")[0]
    assert (fetched.action, fetched.details["evidence"]) == ("version.fetched", {"base@v1": "related"})
    assert any_registry.verify().ok and any_registry.verify_events() is None


def test_registering_the_same_whole_weighs_it_too(
    any_registry: Registry, hub: FakeHub, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/wrong", make_checkpoint("gpt2", seed=UNRELATED))
    any_registry.register("wrong", "org/wrong", parent="base", lazy=True)
    with pytest.raises(UnrelatedParent):
        any_registry.register("wrong", "org/wrong", parent="base")
    again = any_registry.register("wrong", "org/wrong", parent="base", allow=["unrelated-parent"])
    assert again.outcome == "unchanged" and verdict(any_registry, "wrong") == "unrelated"


def test_a_student_may_be_unrelated_and_permissions_are_given_when_they_count(
    any_registry: Registry, hub: FakeHub, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/student", make_checkpoint("gpt2", seed=UNRELATED))
    with pytest.raises(InvalidInput, match="found out when they are fetched"):
        any_registry.register("m", "org/student", parent="base", lazy=True, allow=["unrelated-parent"])
    any_registry.register("student", "org/student", parent={"base": "distilled"}, lazy=True)
    with pytest.raises(UnknownField):
        any_registry.fetch("student", allow=["unrelated"])
    any_registry.fetch("student")
    assert verdict(any_registry, "student") == "unrelated"


# --- a parent whose weights come later --------------------------------------------------------------------------


def test_children_are_weighed_when_their_parent_comes(
    any_registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/base", make_checkpoint("gpt2"))
    any_registry.register("base", "org/base", lazy=True)
    for name, seed in (("tuned", 1), ("wrong", UNRELATED)):
        done = any_registry.register(name, make_checkpoint("gpt2", seed=seed), parent="base")
        assert [one.code for one in done.findings] == ["lineage-not-measured"]
        assert "since the bytes of base@v1 are not here" in done.findings[0].message
    with pytest.warns(UserWarning, match="wrong@v1 is recorded as finetuned from base@v1, and its weights do not"):
        any_registry.fetch("base")
    assert (verdict(any_registry, "tuned"), verdict(any_registry, "wrong")) == ("related", "unrelated")
    assert any_registry.events("tuned@v1")[0].details == {"evidence": {"base@v1": "related"}}
    assert actions(any_registry, "wrong@v1") == ["parents.weighed", "version.registered"]
    assert any_registry.verify().ok and any_registry.verify_events() is None and any_registry.weigh() == []


def test_what_nobody_could_convert_is_weighed_when_somebody_can(
    any_registry: Registry, base: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("tuned", 1), ("wrong", UNRELATED)):
        with without_hooked_transformer(monkeypatch):
            done = any_registry.register(name, make_checkpoint("gpt2", seed=seed), parent="base", parity="skip")
            assert [one.code for one in done.findings] == ["lineage-not-measured"]
            assert [one.evidence for one in any_registry.weigh()] == [None] * (1 + (name == "wrong"))
    assert "has no HookedTransformer" in done.findings[0].message
    (tuned,) = any_registry.weigh("tuned")
    assert tuned.evidence is not None and tuned.evidence["verdict"] == "related" and not tuned.is_wrong
    (wrong,) = any_registry.weigh()
    assert (wrong.child, wrong.parent, wrong.is_wrong) == ("wrong@v1", "base@v1", True)
    assert actions(any_registry, "wrong@v1")[0] == "parents.weighed" and any_registry.verify().ok
    assert any_registry.weigh() == []


def test_the_command_says_what_it_found(
    registry: Registry, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    with without_hooked_transformer(monkeypatch):
        for name, seed in (("tuned", 1), ("wrong", UNRELATED)):
            registry.register(name, make_checkpoint("gpt2", seed=seed), parent="base", parity="skip")
    where = ["--registry", str(tmp_path / "registry.db"), "--store", str(registry.store.root)]

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(lensreg, ["weigh", *arguments, *where], obj=Session(), terminal_width=200)
        return done.exit_code, done.output

    assert run("tuned", "--output", "json")[0] == 0
    code, said = run("--output", "csv")
    assert code == 3 and 'wrong@v1,base@v1,finetuned,"unrelated: ' in said
    assert run()[0] == 0


def test_altered_evidence_is_found(any_registry: Registry, base: Path, make_checkpoint: MakeCheckpoint) -> None:
    any_registry.register(
        "wrong", make_checkpoint("gpt2", seed=UNRELATED), parent="base", parity="skip", allow=["unrelated-parent"]
    )
    (parent,) = any_registry.version("wrong").parents
    assert parent.evidence is not None
    for altered in ({**parent.evidence, "verdict": "related"}, None):
        with any_registry.database.write() as connection:
            connection.execute(update(version_parents).values(evidence=altered))
        (fault,) = any_registry.verify().faults
        assert fault.code == "record-altered" and fault.message.endswith("evidence.")
