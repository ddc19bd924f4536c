"""Models on the Hub: pinned to a commit, checked against what the Hub states, and refused with a reason otherwise.

A local server speaks the Hub's API (tests/hub_server.py); huggingface_hub itself does the asking. Its settings are set
where it keeps what it read of HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.errors import (
    ArchitectureMismatch,
    InvalidInput,
    MalformedArtifact,
    SourceUnreachable,
    UnsupportedSource,
    WeightsMismatch,
)
from registry.sources.hub_id import HubId, parse_hub_id
from tests.checkpoints import edit_config
from tests.contents import read_contents
from tests.hub_server import FakeHub
from tests.networks import assert_computes
from tests.places import find_other_file_system

MakeCheckpoint = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("gpt2")


@pytest.fixture(scope="module")
def tuned(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("gpt2", seed=1)


def asked(hub: FakeHub, method: str = "GET") -> list[str]:
    """Which files were asked for, by name."""
    return [one.path.rpartition("/")[2] for one in hub.requests if one.method == method and "/api/" not in one.path]


# --- ids -------------------------------------------------------------------------------------------------------

IDS = {
    "gpt2": HubId("gpt2"),
    "org/name": HubId("org/name"),
    "Org-1/Name_2.5@v1.0": HubId("Org-1/Name_2.5", "v1.0"),
    "org/name@refs/pr/7": HubId("org/name", "refs/pr/7"),
    "hf://gpt2": HubId("gpt2", None, True),
    "hf://org/name@main": HubId("org/name", "main", True),
    "https://huggingface.co/org/name": HubId("org/name", None, True),
    "https://huggingface.co/org/name/tree/step1000/": HubId("org/name", "step1000", True),
}
NO_IDS = [
    "", ".", "./gpt2", "../gpt2", "/gpt2", "~/gpt2", "a/b/c", "org/", "/name", "org//name", "-x", "x-", ".x", "x.",
    "a--b/c", "a/b..c", "org/name.git", "datasets/squad", "org/name@", "org/name@../x", "org/name@a..b", "org/name@-x",
    "org/name@x.lock", "a b", "é/x", "x" * 97, "model.safetensors", "runs/model.gguf", "a\\b", "C:\\x", "org/name\n",
]  # fmt: skip


@pytest.mark.parametrize("text", IDS)
def test_a_hub_id_is_understood(text: str) -> None:
    assert parse_hub_id(text) == IDS[text]


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_hub_id_is_taken_for_none(text: str) -> None:
    assert parse_hub_id(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf://a/b/c", "hf://datasets/x", "https://huggingface.co/", "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/org/name/blob/main/config.json", "https://example.com/org/name", "hf://../x",
    ],
)  # fmt: skip
def test_what_says_hub_and_names_no_model_is_refused(text: str, registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="names no model on the Hub"):
        registry.register("m", text)


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step1000", 1000), ("step0", 0), ("step-20", 20), ("step1000-tokens4B", 1000), ("step7-tokens0.5T", 7),
        ("main", None), (None, None), ("stage2-step1000-tokens4B", None), ("step1000x", None), ("footstep1", None),
        ("step" + "9" * 16, None),
    ],
)  # fmt: skip
def test_the_step_is_read_from_the_revision(revision: str | None, step: int | None) -> None:
    assert HubId("org/name", revision).step == step


# --- registering -----------------------------------------------------------------------------------------------


def test_a_hub_model_is_registered_with_its_commit(any_registry: Registry, hub: FakeHub, base: Path) -> None:
    commit = hub.push("org/base", base)
    done = any_registry.register("base", "org/base")
    assert done.version is not None and done.version.is_verified and done.findings == ()
    assert done.version.provenance == {"repo": "org/base", "revision": "main", "commit": commit}
    assert (done.version.source_kind, done.version.source_location) == ("hub", "org/base")
    assert any_registry.events()[0].details["source"]["commit"] == commit
    assert {file.name: file.role for file in done.version.files} == {
        "config.json": "config",
        "generation_config.json": "generation",
        WEIGHTS: "weights",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
    }
    assert_computes(any_registry, "base", base)
    assert any_registry.register("base", "org/base").outcome == "unchanged"


def test_only_what_a_version_keeps_is_fetched(registry: Registry, hub: FakeHub, base: Path) -> None:
    more = {"README.md": b"read", "pytorch_model.bin": b"pickle", "flax_model.msgpack": b"flax", "run.py": b"code"}
    hub.push("org/base", base, **more)
    done = registry.register("base", "org/base")
    assert not set(more) & {*asked(hub), *asked(hub, "HEAD")}
    assert [finding.code for finding in done.findings] == ["other-weights"]


def test_weights_are_linked_from_the_cache_and_other_files_are_not(
    registry: Registry, hub: FakeHub, base: Path
) -> None:
    hub.push("org/base", base)
    hub.lfs |= {"tokenizer.json", "config.json"}
    version = registry.register("base", "org/base", parity="skip").version
    assert version is not None
    n_names = {file.name: registry.store.blob_path(file.digest).stat().st_nlink for file in version.files}
    assert n_names == {file.name: 2 if file.role == "weights" else 1 for file in version.files}


def test_a_cache_on_another_file_system_is_copied(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = find_other_file_system(tmp_path)
    if other is None:
        pytest.skip("there is no other file system")
    elsewhere = Path(tempfile.mkdtemp(prefix="lensreg-hub-", dir=other))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(elsewhere))
    try:
        hub.push("org/base", base)
        version = registry.register("base", "org/base", parity="skip").version
        assert version is not None
        assert {registry.store.blob_path(file.digest).stat().st_nlink for file in version.files} == {1}
    finally:
        shutil.rmtree(elsewhere)


def test_shards_are_fetched_by_their_index(registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2", max_shard_size="60kB")
    hub.push("org/sharded", folder, **{"model-00099-of-00099.safetensors": b"stray"})
    done = registry.register("sharded", "org/sharded", parity="skip")
    assert done.version is not None and len(done.version.with_role("weights")) == 10
    assert done.weights_digest == registry.register("folder", folder, parity="skip").weights_digest
    assert "model-00099-of-00099.safetensors" not in asked(hub)


@pytest.mark.parametrize("form", ["one file", "shards"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_a_wrapper_s_prefix_is_taken_off_as_in_a_folder(
    prefix: str, form: str, registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    plain = registry.register("plain", base, parity="skip")
    folder = wrap_names(base, tmp_path / "wrapped", prefix, n_shards=2 if form == "shards" else 1)
    commit = hub.push("org/wrapped", folder, **{"pytorch_model.bin": b"pickle"})
    checked = registry.check("org/wrapped")
    assert checked.fault is None and "unwrapped" in [finding.code for finding in checked.findings]
    assert hub.fetched(".safetensors") <= 200_000
    done = registry.register("hub", "org/wrapped")
    assert done.version is not None and done.weights_digest == plain.weights_digest
    assert [finding.code for finding in done.findings] == ["unwrapped", "other-weights", "identical-weights"]
    assert done.version.source_kind == "hub" and done.version.provenance["commit"] == commit
    assert "pytorch_model.bin" not in asked(hub)
    assert_computes(registry, "hub", base)
    from_folder = registry.register("folder", folder, parity="skip")
    assert from_folder.version is not None
    kept = {file.name: file.digest for file in done.version.files}
    assert kept == {file.name: file.digest for file in from_folder.version.files}


def test_a_prefix_of_some_names_only_is_no_wrapper_s(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    folder = wrap_names(base, tmp_path / "wrapped", "module.", but="transformer.ln_f.weight")
    hub.push("org/partly", folder)
    for source in (folder, "org/partly"):
        with pytest.raises(WeightsMismatch):
            registry.register("m", source)


def test_what_must_be_written_anew_cannot_be_left_on_the_hub(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    hub.push("org/wrapped", wrap_names(base, tmp_path / "wrapped", "module."))
    with pytest.raises(UnsupportedSource, match=r"prefix 'module\.'.* cannot be left on the Hub") as refused:
        registry.register("m", "org/wrapped", lazy=True)
    assert refused.value.hint == "Leave out --lazy."
    assert hub.fetched(WEIGHTS) <= 100_000 and registry.models() == []


def test_a_wrapped_file_that_is_not_the_stated_one_is_refused(
    registry: Registry, hub: FakeHub, base: Path, tuned: Path, tmp_path: Path
) -> None:
    hub.push("org/wrapped", wrap_names(base, tmp_path / "wrapped", "module."))
    hub.served[WEIGHTS] = (wrap_names(tuned, tmp_path / "other", "module.") / WEIGHTS).read_bytes()
    with pytest.raises(MalformedArtifact, match="not the file that the Hub states"):
        registry.register("m", "org/wrapped")
    assert registry.models() == []


def wrap_names(folder: Path, target: Path, prefix: str, *, n_shards: int = 1, but: str = "") -> Path:
    """Copy a folder, with `prefix` before the names of its tensors."""
    shutil.copytree(folder, target)
    tensors = {name if name == but else prefix + name: one for name, one in load_file(target / WEIGHTS).items()}
    if n_shards == 1:
        save_file(tensors, target / WEIGHTS, {"format": "pt"})
        return target
    (target / WEIGHTS).unlink()
    shards = {f"model-{n + 1:05}-of-{n_shards:05}.safetensors": sorted(tensors)[n::n_shards] for n in range(n_shards)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, target / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def test_a_training_step_revision_is_the_step(registry: Registry, hub: FakeHub, base: Path, tuned: Path) -> None:
    hub.push("org/suite", base, "step1000")
    hub.push("org/suite", tuned, "step2000-tokens8B")
    registry.register("suite", "org/suite@step1000", parity="skip")
    registry.register("suite", "org/suite@step2000-tokens8B", parity="skip", parent="suite@v1", relation="continued")
    registry.register("mine", "org/suite@step1000", parity="skip", step=7)
    assert registry.resolve("suite@step-1000").ref == "suite@v1"
    assert registry.resolve("suite@step-2000").ref == "suite@v2"
    assert registry.version("mine").step == 7


def test_a_moved_branch_is_a_new_version_and_the_old_one_stays(
    registry: Registry, hub: FakeHub, base: Path, tuned: Path
) -> None:
    first = hub.push("org/m", base)
    registry.register("m", "org/m")
    second = hub.push("org/m", tuned)
    done = registry.register("m", "org/m")
    assert done.version is not None and done.version.ref == "m@v2" and done.version.provenance["commit"] == second
    (finding,) = done.findings
    assert finding.code == "moved-revision" and first[:12] in finding.message and "m@v1" in finding.message
    assert_computes(registry, "m@v1", base)
    assert_computes(registry, "m@v2", tuned)
    pinned = registry.register("pinned", f"org/m@{first}", parity="skip")
    assert pinned.weights_digest == registry.version("m@v1").weights_digest


def test_a_branch_that_moves_while_it_is_fetched_is_fetched_at_the_commit_that_was_resolved(
    registry: Registry, hub: FakeHub, base: Path, tuned: Path
) -> None:
    first = hub.push("org/m", base)
    hub.on_info = lambda: hub.push("org/m", tuned)  # right after it was asked which commit main is
    done = registry.register("m", "org/m")
    assert done.version is not None and done.version.provenance["commit"] == first
    assert_computes(registry, "m", base)


def test_a_path_wins_over_a_hub_id_of_the_same_spelling(
    registry: Registry, hub: FakeHub, base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("gpt2", tuned)
    shutil.copytree(base, tmp_path / "here" / "gpt2")
    monkeypatch.chdir(tmp_path / "here")
    local = registry.register("local", "gpt2", parity="skip")
    assert local.version is not None and local.version.source_kind == "huggingface" and not hub.requests
    assert local.findings == ()
    remote = registry.register("remote", "hf://gpt2", parity="skip")
    assert remote.version is not None and remote.version.source_kind == "hub"
    assert remote.weights_digest != local.weights_digest
    # now that the user is known to have both, it is said which one was read
    again = registry.register("again", "gpt2", parity="skip")
    assert again.weights_digest == local.weights_digest
    assert again.findings[0].code == "shadows-hub-model"
    with pytest.raises(InvalidInput, match="is here already"):
        registry.register("lazy", "gpt2", lazy=True)


def test_a_hub_model_is_compared_with_its_parent_before_it_is_fetched(
    registry: Registry, hub: FakeHub, base: Path, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/base", base)
    hub.push("org/wrong", edit_config(make_checkpoint("gpt2", seed=2), n_head=8))
    registry.register("base", "org/base", parity="skip")
    before = read_contents(registry)
    hub.requests.clear()
    with pytest.raises(ArchitectureMismatch):
        registry.register("wrong", "org/wrong", parent="base")
    assert read_contents(registry) == before
    assert hub.fetched(WEIGHTS) <= 100_000


# --- the cache, and no network ---------------------------------------------------------------------------------


def test_what_the_cache_holds_is_not_fetched_again(registry: Registry, hub: FakeHub, base: Path) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", parity="skip")
    hub.requests.clear()
    registry.register("again", "org/base", parity="skip")
    assert asked(hub) == []


@pytest.mark.parametrize("how", ["down", "forbidden", "broken"])
def test_without_a_network_the_cached_commit_is_registered_and_says_so(
    how: str, registry: Registry, hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push("org/base", base)
    online = registry.register("online", "org/base")
    if how == "down":
        hub.close()
    elif how == "forbidden":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.status = 503
    for source in ("org/base", "org/base@main", f"org/base@{commit}"):
        done = registry.register("offline", source)
        assert done.version is not None and done.version.provenance["commit"] == commit
        assert done.weights_digest == online.weights_digest
    assert registry.version("offline").files == registry.version("online").files
    codes = [finding["code"] for finding in registry.version("offline").findings]
    assert codes == ["hub-not-asked", "identical-weights"]


def test_a_damaged_cache_is_found_without_a_network_too(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", parity="skip")
    hub.close()
    before = read_contents(registry)
    for name in (WEIGHTS, "config.json"):
        (link,) = (tmp_path / "hf" / "hub").rglob(f"snapshots/*/{name}")
        blob = link.resolve()
        content = blob.read_bytes()
        blob.unlink()  # the store may hold a link to it
        blob.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(MalformedArtifact, match=f"{name} is not the file that the Hub states") as refused:
            registry.register("again", "org/base", parity="skip")
        assert str(blob) in (refused.value.hint or "")
        blob.unlink()
        blob.write_bytes(content)
    assert read_contents(registry) == before


def test_a_cache_that_holds_only_a_part_is_not_enough(
    registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    hub.push("org/m", make_checkpoint("gpt2", max_shard_size="60kB"))
    registry.register("m", "org/m", parity="skip")
    hub.close()
    (link,) = (tmp_path / "hf" / "hub").rglob("snapshots/*/model-00003-of-00010.safetensors")
    link.unlink()
    with pytest.raises(SourceUnreachable, match="only in part: the shard model-00003"):
        registry.register("again", "org/m")


def test_a_link_that_leads_out_of_the_cache_is_refused(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", parity="skip")
    (link,) = (tmp_path / "hf" / "hub").rglob("snapshots/*/tokenizer.json")
    (tmp_path / "secret").write_text("{}")
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(MalformedArtifact, match="leads out of the Hub cache"):
        registry.register("again", "org/base")
