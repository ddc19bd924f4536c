"""Names of new models: none that a file system, or a reader, takes for another one; old ones stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import Registry
from registry import record as recording
from registry.errors import InvalidName, TransferConflict, UnknownRef
from tests.processes import run_at_once
from tests.records import record
from tests.transfers import add, open_registry

DEVICES = ["CON", "con", "nul", "aux.txt", "prn.tar.gz", "COM1", "lpt9", "com0.x", "org/nul", "Aux/model"]
OTHERS = ["latest", "Last", f"org/{'0123456789abcdef' * 4}"]
FINE = ["console", "auxiliary", "com10", "com", "nul-model", "my.con", "_aux", "latest-2", "org/latest", "con-x.txt"]


@pytest.mark.parametrize("name", DEVICES + OTHERS)
def test_a_name_that_means_something_else_is_no_new_model_s(any_registry: Registry, name: str) -> None:
    for use in (lambda: record(any_registry, name), lambda: any_registry.register(name, "/nowhere", dry_run=True)):
        with pytest.raises(InvalidName, match="cannot name a new model") as refused:
            use()
        assert refused.value.hint and refused.value.fields["name"] == name
    assert any_registry.models() == [] and any_registry.events() == []


def test_names_that_look_like_these_are_fine(any_registry: Registry) -> None:
    for name in FINE:
        assert record(any_registry, name).ref == f"{name}@v1"


@pytest.mark.parametrize(("name", "twin"), [("GPT2", "gpt2"), ("gpt2", "Gpt2"), ("Org/Model_1", "org/model_1")])
def test_no_two_models_differ_in_case_alone(any_registry: Registry, name: str, twin: str) -> None:
    record(any_registry, name)
    head = any_registry.events_head()
    for use in (lambda: record(any_registry, twin), lambda: any_registry.register(twin, "/nowhere")):
        with pytest.raises(InvalidName, match=f"'{name}' is there") as refused:
            use()
        assert refused.value.fields["twin"] == name and name in str(refused.value.hint)
    assert any_registry.events_head() == head
    with pytest.raises(UnknownRef) as unknown:
        any_registry.resolve(twin)
    assert name in unknown.value.candidates
    assert record(any_registry, name).ref == f"{name}@v2"
    assert record(any_registry, f"{twin}-x").number == 1


def _record(index: int, url: str, store: str) -> str:
    registry = Registry(url, store)
    try:
        return record(registry, ["race", "Race", "RACE", "rAcE"][index]).ref
    except InvalidName as error:
        return error.code
    finally:
        registry.close()


def test_of_twins_that_are_registered_at_once_one_is_there(any_registry: Registry, database_url: str) -> None:
    assert any_registry.models() == []
    done = run_at_once(_record, database_url, str(any_registry.store.root), n=4)
    assert done.count("invalid-name") == 3
    assert len(any_registry.models()) == 1


# --- names that older releases let through


@pytest.fixture
def old(any_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with models that could not be called so any more."""
    with monkeypatch.context() as lenient:
        lenient.setattr(recording, "check_new_model", lambda *_: None)
        add(any_registry, "CON")
        add(any_registry, "gpt2")
        add(any_registry, "GPT2", parents=["gpt2"])
    yield any_registry


def test_old_names_go_on(old: Registry) -> None:
    assert [one.name for one in old.models()] == ["CON", "GPT2", "gpt2"]
    assert add(old, "CON").ref == "CON@v2" and add(old, "gpt2").ref == "gpt2@v2"
    assert old.resolve("GPT2").ref == "GPT2@v1"
    assert old.version("CON@v1").model == "CON"
    old.set_alias("CON@best", "CON@v1")
    assert old.version("CON@best").number == 1
    assert [one.ref for one in old.search("model = 'GPT2'")] == ["GPT2@v1"]
    assert old.path("CON@v1").is_dir()
    old.retire("CON@v2")
    assert old.verify(read_data=True).ok


def test_they_arrive_elsewhere_under_other_names(old: Registry, tmp_path: Path) -> None:
    team = open_registry(tmp_path / "team")
    for refs, words in (
        (["CON"], "device on Windows"),
        (["GPT2"], "gpt2 differs from GPT2, which comes with it, only in upper and lower case"),
    ):
        for dry_run in (True, False):
            with pytest.raises(TransferConflict, match=words) as refused:
                old.push(*refs, to=team, dry_run=dry_run)
            assert "--as" in str(refused.value.hint) and len(refused.value.conflicts) == 1
    assert team.models() == []
    assert old.push("CON", to=team, name="console").received[0].ref == "console@v1"
    assert old.push("GPT2", to=team, name="gpt2-tuned").received[-1].ref == "gpt2-tuned@v1"
    assert [parent.ref for parent in team.version("gpt2-tuned").parents] == ["gpt2@v1"]
    assert old.push("GPT2", "CON", to=team).unchanged, "they are there, whatever they are called"
    with pytest.raises(TransferConflict, match="'nul' is the name of a device"):
        old.push(add(old, "other").ref, to=team, name="nul")
    assert team.verify(read_data=True).ok
    team.close()


def test_a_case_twin_is_not_pulled(any_registry: Registry, tmp_path: Path) -> None:
    add(any_registry, "gpt2", seed=1)
    other = open_registry(tmp_path / "other")
    add(other, "GPT2", seed=2)
    head = any_registry.events_head()
    with pytest.raises(TransferConflict, match="GPT2 differs from gpt2, which is here, only in upper and lower case"):
        any_registry.pull("GPT2", source=other)
    export = tmp_path / "one.tar"
    other.export_versions("GPT2", target=export)
    with pytest.raises(TransferConflict, match="GPT2 differs from gpt2"):
        any_registry.import_versions(export)
    assert any_registry.events_head() == head and [one.name for one in any_registry.models()] == ["gpt2"]
    assert any_registry.import_versions(export, name="gpt2").received[0].ref == "gpt2@v2"
    other.close()


def test_a_twin_that_comes_while_blobs_are_received_is_refused(any_registry: Registry, tmp_path: Path) -> None:
    """It is asked once more in the transaction that writes."""
    other = open_registry(tmp_path / "other")
    add(other, "Model")

    def register_twin(stage: str, done: int, total: int) -> None:
        if stage == "inspecting" and not any_registry.models():
            record(any_registry, "model")

    with pytest.raises(TransferConflict, match="Model differs from model, which is here"):
        any_registry.pull("Model", source=other, progress=register_twin)
    assert [one.name for one in any_registry.models()] == ["model"]
    other.close()
