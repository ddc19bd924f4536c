"""`--lazy`: what the Hub states is recorded, and the bytes come at the first load, checked, verified and recorded."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from sqlalchemy import update
from transformers import AutoModelForCausalLM

from registry import Registry
from registry.errors import (
    ArchitectureMismatch,
    ArtifactMissing,
    DatabaseReadOnly,
    InvalidInput,
    MalformedArtifact,
    SourceUnreachable,
    UnsupportedConfig,
    UnusableWeights,
    WeightsMismatch,
)
from registry.record import record_fetched
from registry.tables import versions
from tests.checkpoints import edit_config
from tests.contents import read_contents
from tests.hub_server import FakeHub
from tests.processes import run_code

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("gpt2")


@pytest.fixture(scope="module")
def tuned(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("gpt2", seed=1)


def assert_computes(registry: Registry, ref: str, folder: Path) -> None:
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits.log_softmax(-1)
        assert float((registry.load(ref)(tokens).log_softmax(-1) - expected).abs().max()) < 1e-4


def edit_tensors(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS, {"format": "pt"})
    return target


def test_a_lazy_version_is_whole_but_for_its_bytes(any_registry: Registry, hub: FakeHub, base: Path) -> None:
    commit = hub.push("org/base", base)
    done = any_registry.register("base", "org/base", lazy=True)
    version = done.version
    assert version is not None and version.weights_digest is None and version.parity == {} and not version.is_verified
    assert version.provenance["commit"] == commit
    assert hub.fetched(WEIGHTS) == 100_000  # the header, with what surrounds it
    eager = any_registry.register("eager", base)
    assert eager.version is not None
    assert version.files == eager.version.files
    for name in ("fingerprint", "n_parameters", "dtype", "vocabulary_digest", "size_bytes"):
        assert getattr(version, name) == getattr(eager.version, name)
    # everything that asks copes
    assert any_registry.history("base")[0].weights_digest is None
    assert [model.name for model in any_registry.models()] == ["base", "eager"]
    assert any_registry.resolve(f"sha256:{str(eager.weights_digest)[:12]}").ref == "eager@v1"
    assert any_registry.lineage("base").ancestors() == []
    assert "not fetched yet" in version._repr_html_()
    with pytest.raises(ArtifactMissing, match="left on the Hub") as refused:
        any_registry.path("base")
    assert "lensreg fetch base@v1" in (refused.value.hint or "")
    any_registry.retire("base@v1")
    any_registry.restore("base@v1")
    assert any_registry.verify_events() is None


def test_the_first_load_fetches_verifies_and_records(
    any_registry: Registry, hub: FakeHub, base: Path, tuned: Path
) -> None:
    hub.push("org/base", base)
    any_registry.register("base", "org/base", lazy=True)
    hub.push("org/base", tuned)  # the branch moves on, the version does not
    assert_computes(any_registry, "base", base)
    version = any_registry.version("base")
    assert version.is_verified
    event = next(event for event in any_registry.events() if event.action == "version.fetched")
    assert event.subject == "base@v1"
    assert event.details["weights_digest"] == version.weights_digest
    assert event.details["files"] == {file.name: file.digest for file in version.with_role("weights")}
    assert event.details["parity"]["raw"] == version.parity["raw"].value
    assert any_registry.verify_events() is None
    assert any_registry.resolve(f"sha256:{str(version.weights_digest)[:20]}").ref == "base@v1"
    assert version.weights_digest == any_registry.register("folder", base, parity="skip").weights_digest
    hub.close()
    assert_computes(any_registry, "base", base)
    assert any_registry.fetch("base") == any_registry.version("base")
    assert len([event for event in any_registry.events() if event.action == "version.fetched"]) == 1
    assert (any_registry.path("base") / WEIGHTS).read_bytes() == (base / WEIGHTS).read_bytes()


def test_shards_are_left_and_fetched_too(registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama", max_shard_size="60kB")
    hub.push("org/sharded", folder)
    registry.register("sharded", "org/sharded", lazy=True)
    assert_computes(registry, "sharded", folder)
    assert registry.version("sharded").weights_digest == registry.register("f", folder, parity="skip").weights_digest


def test_parity_is_chosen_when_the_bytes_come(registry: Registry, hub: FakeHub, base: Path) -> None:
    hub.push("org/base", base)
    with pytest.raises(InvalidInput, match="left where they are"):
        registry.register("base", "org/base", lazy=True, parity="float32")
    registry.register("base", "org/base", lazy=True)
    registry.register("other", "org/base", lazy=True)
    assert registry.fetch("base", parity="float32").parity["raw"].dtype == "float32"
    unverified = registry.fetch("other", parity="skip")
    assert unverified.weights_digest is not None and not unverified.is_verified
    with pytest.warns(UserWarning, match="other@v1 was registered without verification"):
        registry.load("other")


def test_registering_again_changes_nothing_and_without_lazy_it_completes(
    registry: Registry, hub: FakeHub, base: Path
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", lazy=True)
    again = registry.register("base", "org/base", lazy=True)
    assert again.outcome == "unchanged" and again.version is not None and again.version.weights_digest is None
    whole = registry.register("base", "org/base")
    assert whole.outcome == "unchanged" and whole.version is not None and whole.version.is_verified
    hub.close()
    assert_computes(registry, "base", base)
    assert registry.register("base", "org/base", lazy=True).outcome == "unchanged"
    assert [version.ref for version in registry.history("base")] == ["base@v1"]


def test_a_lazy_version_can_be_a_parent(registry: Registry, hub: FakeHub, base: Path, tuned: Path) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", lazy=True)
    done = registry.register("tuned", tuned, parent="base", parity="skip")
    assert done.version is not None and [parent.ref for parent in done.version.parents] == ["base@v1"]
    assert registry.version("base").weights_digest is None  # its architecture was enough


def test_what_headers_tell_is_refused_at_once(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", base, parity="skip")
    before = read_contents(registry)
    hub.push("org/heads", edit_config(make_checkpoint("gpt2"), n_head=8))
    hub.push("org/layers", edit_config(make_checkpoint("gpt2"), n_layer=3))
    hub.push("org/act", edit_config(make_checkpoint("gpt2"), activation_function="quick_gelu_of_mine"))
    hub.push("org/half", edit_tensors(base, tmp_path / "half", lambda t: t.pop("transformer.wpe.weight")))
    for source, error in {
        "org/heads": ArchitectureMismatch,
        "org/layers": ArchitectureMismatch,
        "org/act": UnsupportedConfig,
        "org/half": WeightsMismatch,
    }.items():
        with pytest.raises(error):
            registry.register("m", source, parent="base", lazy=True)
    assert read_contents(registry) == before


def test_lazy_is_refused_for_what_cannot_be_left(registry: Registry, hub: FakeHub, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is here already"):
        registry.register("m", base, lazy=True)
    shutil.copytree(base, tmp_path / "pickled", ignore=lambda *_: [WEIGHTS])
    hub.push("org/pickled", tmp_path / "pickled", **{"pytorch_model.bin": b"pickle"})
    with pytest.raises(InvalidInput, match="does not keep its weights as safetensors"):
        registry.register("m", "org/pickled", lazy=True)
    assert registry.models() == []


def test_a_dry_run_of_lazy_writes_nothing(registry: Registry, hub: FakeHub, base: Path) -> None:
    hub.push("org/base", base)
    done = registry.register("base", "org/base", lazy=True, dry_run=True)
    assert done.outcome == "would-register" and done.weights_digest is None
    assert registry.models() == [] and not registry.store.root.exists()


# --- the first load goes wrong ---------------------------------------------------------------------------------


def test_other_bytes_than_were_recorded_are_refused_at_the_first_load(
    registry: Registry, hub: FakeHub, base: Path, tuned: Path
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", lazy=True)
    before = read_contents(registry)
    hub.served[WEIGHTS] = (tuned / WEIGHTS).read_bytes()  # a whole network, of the right shape and size
    with pytest.raises(MalformedArtifact, match="not the file that the Hub states") as refused:
        registry.load("base")
    assert read_contents(registry) == before and registry.version("base").weights_digest is None
    Path(str(refused.value.fields["path"])).unlink()
    hub.served.clear()
    assert_computes(registry, "base", base)


def test_without_a_network_it_stays_unfetched_until_there_is_one(
    registry: Registry, hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", lazy=True)
    before = read_contents(registry)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnreachable):
        registry.load("base")
    assert read_contents(registry) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert_computes(registry, "base", base)


def test_nan_is_found_at_the_first_load(registry: Registry, hub: FakeHub, base: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.attn.c_attn.weight"][0, 0] = float("nan")

    hub.push("org/nan", edit_tensors(base, tmp_path / "nan", spoil))
    registry.register("nan", "org/nan", lazy=True)
    before = read_contents(registry)
    for parity in (None, "skip"):
        with pytest.raises(UnusableWeights):
            registry.fetch("nan", parity=parity)  # type: ignore[arg-type]
    assert read_contents(registry) == before and registry.version("nan").weights_digest is None


def test_a_head_that_is_not_the_embedding_is_found_at_the_first_load(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1

    hub.push("org/head", edit_tensors(base, tmp_path / "head", add_head))
    done = registry.register("head", "org/head", lazy=True)
    with pytest.raises(UnsupportedConfig, match="head that is not the embedding"):
        registry.load("head")
    hub.push("org/same", edit_tensors(base, tmp_path / "same", lambda t: t.update(
        {"lm_head.weight": t["transformer.wte.weight"].clone()})))  # fmt: skip
    same = registry.register("same", "org/same", lazy=True)
    assert same.n_parameters == done.n_parameters == registry.register("b", base, parity="skip").n_parameters
    assert_computes(registry, "same", base)


def test_headers_that_lied_are_found_at_the_first_load(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    """The first bytes that were served said another dtype than the file does whose digest was stated."""

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    hub.push("org/m", edit_tensors(base, tmp_path / "short", shorten))
    hub.served[WEIGHTS] = (tmp_path / "short" / WEIGHTS).read_bytes().replace(b'"BF16"', b'"F16" ')
    done = registry.register("m", "org/m", lazy=True)
    assert done.version is not None and done.version.dtype == "float16"
    hub.served.clear()
    with pytest.raises(MalformedArtifact, match="registered with"):
        registry.load("m")
    assert registry.version("m").weights_digest is None


def test_a_read_only_database_is_refused_before_anything_is_fetched(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", lazy=True)
    n_bytes = hub.fetched(WEIGHTS)
    registry.close()
    for path in tmp_path.glob("registry.db*"):
        path.chmod(stat.S_IRUSR)
    tmp_path.chmod(0o555)
    code = """
        from registry import Registry, RegistryError
        from huggingface_hub import constants
        constants.HF_HUB_OFFLINE = False
        try:
            Registry(values["url"], values["store"]).fetch("base")
        except RegistryError as error:
            print(type(error).__name__)
            print(error.hint)
    """
    lines = run_code(code, with_rights=False, url=tmp_path / "registry.db", store=tmp_path / "store")
    tmp_path.chmod(0o755)
    assert lines == [
        DatabaseReadOnly.__name__,
        "Fetch it once where the database can be written to: lensreg fetch base@v1",
    ]
    assert hub.fetched(WEIGHTS) == n_bytes


def test_first_loads_at_once_end_alike_and_record_once(any_registry: Registry, hub: FakeHub, base: Path) -> None:
    hub.push("org/base", base)
    any_registry.register("base", "org/base", lazy=True)
    hub.delay = 0.05
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda _: any_registry.fetch("base"), range(4)))
    assert len({version.weights_digest for version in fetched}) == 1 and all(one.is_verified for one in fetched)
    assert len(any_registry.version("base").validations) == 2
    assert [event.action for event in any_registry.events()].count("version.fetched") == 1
    assert any_registry.verify_events() is None
    hub.delay = 0
    assert_computes(any_registry, "base", base)


def test_a_digest_that_is_known_is_never_written_over(any_registry: Registry, base: Path) -> None:
    done = any_registry.register("base", base, parity="skip")
    with any_registry.database.write() as connection:
        assert record_fetched(connection, any_registry.resolve("base").id, "0" * 64, []) is False
    assert any_registry.version("base").weights_digest == done.weights_digest
    assert len(any_registry.events()) == 1


def test_a_record_that_does_not_say_where_the_bytes_are_is_refused(
    registry: Registry, hub: FakeHub, base: Path
) -> None:
    hub.push("org/base", base)
    registry.register("base", "org/base", lazy=True)
    for provenance, error in (({}, ArtifactMissing), ({"repo": "org/base", "commit": "main"}, MalformedArtifact)):
        with registry.database.write() as connection:
            connection.execute(update(versions).values(provenance=provenance))
        with pytest.raises(error):
            registry.load("base")
