"""Faults of the Hub, and what comes from it that is not as it should be: a typed error each, and nothing is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from registry import Registry, RegistryError
from registry.errors import (
    AccessDenied,
    MalformedArtifact,
    SourceNotFound,
    SourceUnreachable,
    UnsupportedConfig,
    UnsupportedSource,
    UnusableWeights,
)
from registry.sources import Source, SourceOptions, hub_snapshot
from registry.sources.hub import open_hub
from registry.sources.hub_id import HubId
from tests.checkpoints import edit_config
from tests.contents import read_contents
from tests.hub_server import FakeHub
from tests.networks import assert_computes
from tests.patience import must_not_hang

MakeCheckpoint = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("gpt2")


def _ask_unknown(hub: FakeHub) -> str:
    return "org/nowhere"


def _ask_unknown_with_token(hub: FakeHub) -> str:
    hub.token = "hf_right"
    return "org/nowhere"


def _ask_private(hub: FakeHub) -> str:
    hub.private.add("org/base")
    return "org/base"


def _ask_gated(hub: FakeHub) -> str:
    hub.gated.add("org/base")
    return "org/base"


def _ask_revision(hub: FakeHub) -> str:
    return "org/base@nowhen"


def _ask_with(status: int) -> Callable[[FakeHub], str]:
    def ask(hub: FakeHub) -> str:
        hub.status = status
        return "org/base"

    return ask


def _ask_with_page(page: bytes) -> Callable[[FakeHub], str]:
    def ask(hub: FakeHub) -> str:
        hub.page = page
        return "org/base"

    return ask


def _ask_none(hub: FakeHub) -> str:
    hub.close()
    return "org/base"


FAULTS = {
    "unknown": (_ask_unknown, SourceNotFound, "neither a path here nor a public model", "hf auth login"),
    "unknown-to-all": (_ask_unknown_with_token, SourceNotFound, "'org/nowhere'", "written"),
    "private": (_ask_private, SourceNotFound, "neither a path here nor a public model", "HF_TOKEN"),
    "gated": (_ask_gated, AccessDenied, "gated", "Accept its conditions at"),
    "revision": (_ask_revision, SourceNotFound, "no branch, tag or commit 'nowhen'", "/org/base/tree/main"),
    "forbidden": (_ask_with(403), AccessDenied, "HTTP 403", "hf auth login"),
    "too-many": (_ask_with(429), SourceUnreachable, "HTTP 429", "Wait"),
    "broken": (_ask_with(500), SourceUnreachable, "500", "Try again"),
    "page": (_ask_with_page(b"<html>Log in</html>"), SourceUnreachable, "cannot be had", "HF_ENDPOINT"),
    "list": (_ask_with_page(b"[1]"), SourceUnreachable, "cannot be had", "HF_ENDPOINT"),
    "no-commit": (_ask_with_page(b'{"id": "org/base"}'), SourceUnreachable, "does not say which commit", "HF_ENDPOINT"),
    "odd": (_ask_with_page(b'{"id": "org/base", "siblings": [{}]}'), SourceUnreachable, "cannot be had", "HF_ENDPOINT"),
    "no-network": (_ask_none, SourceUnreachable, "Connection refused", "HF_ENDPOINT"),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("token", [None, "hf_wrong"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_hub_is_a_typed_error_that_leaves_nothing(
    fault: str, token: str | None, lazy: bool, registry: Registry, hub: FakeHub, base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.push("org/base", base)
    before = read_contents(registry)
    ask, error, text, hint = FAULTS[fault]
    source = ask(hub)
    with pytest.raises(error) as refused:
        registry.register("base", source, lazy=lazy)
    assert type(refused.value) is error
    assert text in refused.value.message and hint in (refused.value.hint or "")
    assert "hf_wrong" not in str(refused.value)
    assert read_contents(registry) == before


def test_a_token_opens_what_is_gated_and_goes_nowhere_else(
    registry: Registry, hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/base", base)
    hub.gated.add("org/base")
    hub.token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    registry.register("base", "org/base", parity="skip")
    registry.register("lazy", "org/base", lazy=True)
    to_cdn = [one for one in hub.requests if one.path.startswith("/cdn/")]
    assert to_cdn and not any(one.has_token for one in to_cdn)
    assert all(one.has_token for one in hub.requests if not one.path.startswith(("/cdn/", "/api/agent")))


def test_a_hub_that_does_not_answer_is_waited_for_no_longer_than_set(
    registry: Registry, hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    hub.push("org/base", base)
    hub.delay = 60
    with must_not_hang(), pytest.raises(SourceUnreachable):
        registry.register("base", "org/base")


def test_a_download_that_is_cut_is_resumed(
    registry: Registry, hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # it resumes after the last whole one
    hub.push("org/base", base)
    size = (base / WEIGHTS).stat().st_size
    registry.check("org/base")
    hub.requests.clear()
    hub.cuts[WEIGHTS] = [100_000, 200_500, 7_999]  # the first is that of the header
    done = registry.register("base", "org/base")
    assert done.outcome == "registered"
    ranges = [one.range for one in hub.requests if one.path == f"/cdn/{WEIGHTS}"]
    assert ranges == ["bytes=0-99999", None, "bytes=200000-", "bytes=207000-"]
    assert hub.fetched(WEIGHTS) == 100_000 + size + 500 + 999
    assert_computes(registry, "base", base)


def test_a_header_that_is_cut_off_is_refused(registry: Registry, hub: FakeHub, base: Path) -> None:
    hub.push("org/base", base)
    hub.cuts[WEIGHTS] = [50, 50]
    with pytest.raises((SourceUnreachable, MalformedArtifact)):
        registry.register("base", "org/base", lazy=True)
    assert registry.models() == []


@pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"parity": "skip"}])
@pytest.mark.parametrize("lfs", [False, True])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_other_bytes_than_the_hub_states_are_refused(
    name: str, lfs: bool, options: dict[str, object], registry: Registry, hub: FakeHub, base: Path
) -> None:
    hub.lfs = {name} if lfs else set()
    hub.push("org/base", base)
    content = (base / name).read_bytes()
    flipped = content.replace(b'"n_head": 4', b'"n_head": 2') if name == "config.json" else content
    flipped = flipped.replace(b'"w9"', b'"v9"')
    hub.served[name] = flipped if flipped != content else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    before = read_contents(registry)
    with pytest.raises(MalformedArtifact, match="not the file that the Hub states") as refused:
        registry.register("base", "org/base", **options)  # type: ignore[arg-type]
    assert read_contents(registry) == before
    # and once the damaged file is deleted, as the hint says, it is fetched anew
    assert (refused.value.hint or "").startswith("What was fetched is damaged. Delete /")
    Path(str(refused.value.fields["path"])).unlink()
    hub.served.clear()
    assert registry.register("base", "org/base").outcome == "registered"


@pytest.mark.parametrize("no_ranges", [False, True])
def test_a_header_longer_than_the_first_bytes_is_read_whole_and_no_further(
    no_ranges: bool, registry: Registry, hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_snapshot, "_FIRST_BYTES", 1000)
    hub.push("org/base", base)
    hub.no_ranges = no_ranges
    done = registry.register("base", "org/base", lazy=True)
    assert done.n_parameters == registry.register("folder", base, parity="skip").n_parameters
    header = 8 + int.from_bytes((base / WEIGHTS).read_bytes()[:8], "little")
    if not no_ranges:
        assert hub.fetched(WEIGHTS) == 1000 + header


def test_what_the_repository_lacks_is_named(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    def push(repo: str, without: tuple[str, ...] = (), **more: bytes) -> str:
        folder = tmp_path / repo
        shutil.copytree(base, folder, ignore=lambda *_: without)
        hub.push(f"org/{repo}", folder, **more)
        return f"org/{repo}"

    cases: list[tuple[str, type[RegistryError], str]] = [
        (push("no-config", ("config.json",)), UnsupportedSource, "no config.json"),
        (push("no-weights", (WEIGHTS,), **{"m.gguf": b"GGUF"}), UnsupportedSource, "no model.safetensors"),
        (push("both", (), **{"model.safetensors.index.json": b"{}"}), MalformedArtifact, "has both"),
        (push("adapter", (), **{"adapter_config.json": b"{}"}), UnsupportedSource, "an adapter and a model"),
        (push("index", (WEIGHTS,), **{"model.safetensors.index.json": b"{}"}), MalformedArtifact, "weight_map"),
        (
            push("shard", (WEIGHTS,), **{"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'}),
            UnsupportedSource,
            "shard x.safetensors is missing",
        ),
        (
            push("out", (WEIGHTS,), **{"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}),
            MalformedArtifact,
            "no file of this repository",
        ),
    ]
    for source, error, text in cases:
        with pytest.raises(error, match=text) as refused:
            registry.register("m", source)
        assert refused.value.hint
    sharded = make_checkpoint("gpt2", max_shard_size="60kB", tokenizer=False)
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of", "model-00002-of"))
    hub.push("org/disagrees", sharded)
    with pytest.raises(MalformedArtifact, match="disagree about"):
        registry.register("m", "org/disagrees")
    assert registry.models() == []


def test_what_must_be_read_whole_is_fetched_checked_and_opened_as_a_folder(
    hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    commit = hub.push("org/both", base, **{"pytorch_model.bin": b"pickle", "adapter.md": b"no"})
    seen: list[set[str]] = []

    def open_folder(folder: Path) -> Source:
        seen.append({path.name for path in folder.iterdir()})
        assert (folder / "pytorch_model.bin").read_bytes() == b"pickle"
        assert not any(path.is_symlink() for path in folder.iterdir())
        return Source("inner", str(folder), {}, (), {}, relation="merged", provenance={"inner": 1})

    options = SourceOptions(weights="bin")
    (tmp_path / "one").mkdir()
    source = open_hub(HubId("org/both", "main"), "org/both", options, open_folder, tmp_path / "one")
    names = {"config.json", "generation_config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"}
    assert seen == [names]
    assert (source.kind, source.location, source.relation) == ("hub", "org/both", "merged")
    assert source.provenance == {"inner": 1, "repo": "org/both", "revision": "main", "commit": commit}

    def refuse(folder: Path) -> Source:
        raise UnsupportedSource(f"{folder} is not for us.")

    (tmp_path / "two").mkdir()
    with pytest.raises(UnsupportedSource) as refused:
        open_hub(HubId("org/both"), "org/both", options, refuse, tmp_path / "two")
    assert refused.value.message == f"org/both@{commit[:12]} is not for us."
    (blob,) = (tmp_path / "hf" / "hub").rglob("snapshots/*/pytorch_model.bin")
    blob.resolve().unlink()
    hub.served["pytorch_model.bin"] = b"gadget"
    (tmp_path / "three").mkdir()
    with pytest.raises(MalformedArtifact, match="not the file that the Hub states"):
        open_hub(HubId("org/both"), "org/both", options, open_folder, tmp_path / "three")
    assert len(seen) == 1


def test_without_a_tokenizer_none_is_made_up(registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint) -> None:
    hub.push("org/base", make_checkpoint("gpt2", tokenizer=False))
    done = registry.register("base", "org/base", parity="skip")
    assert [finding.code for finding in done.findings] == ["no-tokenizer"]


def test_non_finite_values_are_found_in_what_comes_from_the_hub(
    registry: Registry, hub: FakeHub, base: Path, tmp_path: Path
) -> None:
    hub.push("org/nan", put_nan(base, tmp_path / "nan"))
    with pytest.raises(UnusableWeights):
        registry.register("m", "org/nan")
    assert read_contents(registry).store == frozenset()


def put_nan(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / WEIGHTS)
    tensors["transformer.h.0.attn.c_attn.weight"][0, 0] = float("nan")
    save_file(tensors, target / WEIGHTS, {"format": "pt"})
    return target


def test_a_config_that_cannot_be_converted_costs_no_download(
    registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/odd", edit_config(make_checkpoint("gpt2"), add_cross_attention=True))
    with pytest.raises(UnsupportedConfig):
        registry.register("odd", "org/odd")
    assert hub.fetched(WEIGHTS) <= 100_000
