"""Attestations: what a version is, signed over its very files, and every way in which that can fail to agree."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text

from registry import Registry, RegistryError
from registry.attest import SIGNATURE_FILE, STATEMENT_FILE, Attestation, describe_statement, verify_attestation
from registry.errors import ArtifactCorrupt, InvalidInput, SignatureInvalid

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # sigstore's dependencies


def _make_keys(folder: Path, name: str, curve: Any = None, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a pair of keys; return the private and the public file."""
    private = ec.generate_private_key(curve or ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    files = folder / f"{name}.pem", folder / f"{name}.pub"
    files[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    files[1].write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return files


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return _make_keys(tmp_path, "ann")


@pytest.fixture
def filled(any_registry: Registry, make_checkpoint: Callable[..., Path]) -> Registry:
    """A registry with a version and its child, which has the same files but for one."""
    any_registry.register("team/base", make_checkpoint("gpt2"), parity="skip")
    any_registry.register("tuned", make_checkpoint("gpt2", seed=1), parent="team/base", parity="skip")
    return any_registry


def test_a_statement_says_what_a_version_is(filled: Registry) -> None:
    version = filled.version("tuned")
    statement = filled.attest("tuned").statement
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        file.name: file.digest for file in version.files
    }
    predicate = statement["predicate"]
    assert (predicate["model"], predicate["version"]) == ("tuned", 1)
    assert predicate["weightsDigest"] == version.weights_digest
    assert predicate["parents"] == [{"ref": "team/base@v1", "relation": "finetuned"}]
    assert json.loads(json.dumps(statement)) == statement
    assert [event.action for event in filled.events()] == ["version.registered"] * 2, "nothing was signed"


def test_an_absent_parent_is_attested_as_it_was_declared_and_stays_so_when_it_is_joined(
    filled: Registry, keys: tuple[Path, Path], make_checkpoint: Callable[..., Path]
) -> None:
    named = {"org/teacher@main": "distilled", f"org/other@v1#sha256:{'0' * 64}": "merged"}
    filled.register(
        "pupil", make_checkpoint("gpt2", seed=5), parent="tuned", absent_parents=named, relation="merged", parity="skip"
    )
    predicate = filled.attest("pupil", sign=keys[0]).statement["predicate"]
    assert predicate["parents"] == [{"ref": "tuned@v1", "relation": "merged"}]
    assert predicate["absentParents"] == [
        {"repo": "org/teacher", "revision": "main", "digest": None, "relation": "distilled"},
        {"repo": "org/other", "revision": "v1", "digest": "0" * 64, "relation": "merged"},
    ]
    joined = filled.join_parent("pupil", "team/base", declared="org/teacher@main")
    assert len(joined.parents) == 2
    assert filled.verify_attestation("pupil", keys[1]).statement["predicate"] == predicate


def test_a_signed_version_is_verified_with_the_public_key(filled: Registry, keys: tuple[Path, Path]) -> None:
    signed = filled.attest("team/base", sign=keys[0])
    assert filled.verify_attestation("team/base", keys[1]).signature == signed.signature
    assert filled.events()[0].action == "version.attested"
    filled.set_alias("team/base@best", "team/base")  # what may change is not part of it
    assert filled.verify_attestation("team/base@best", keys[1]).signature == signed.signature
    assert filled.verify_events() is None


def test_what_is_saved_is_verified_too_and_never_overwritten(
    filled: Registry, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    filled.attest("tuned", sign=keys[0], folder=folder)
    assert sorted(file.name for file in folder.iterdir()) == [STATEMENT_FILE, SIGNATURE_FILE]
    with filled.database.write() as connection:
        connection.execute(text("DELETE FROM events WHERE action = 'version.attested'"))
    filled.verify_attestation("tuned", keys[1], folder=folder)
    with pytest.raises(InvalidInput, match="exists already"):
        filled.attest("tuned", sign=keys[0], folder=folder)
    with pytest.raises(InvalidInput, match="There is no"):
        filled.verify_attestation("tuned", keys[1], folder=tmp_path / "nowhere")


def test_any_of_several_signers_will_do(filled: Registry, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = _make_keys(tmp_path, "bob", ec.SECP384R1())
    filled.attest("tuned", sign=keys[0])
    filled.attest("tuned", sign=other[0])
    for public in (keys[1], other[1]):
        filled.verify_attestation("tuned", public)
    with pytest.raises(SignatureInvalid, match="does not hold"):
        filled.verify_attestation("tuned", _make_keys(tmp_path, "eve")[1])


def test_verify_checks_signatures_too(filled: Registry, keys: tuple[Path, Path]) -> None:
    filled.attest("tuned", sign=keys[0])
    assert filled.verify("tuned", key=keys[1]).ok
    done = filled.verify("tuned", "team/base", key=keys[1])
    assert [(one.code, one.subject) for one in done.faults] == [("signature-invalid", "team/base")]
    assert filled.verify("team/base").ok and done.n_faults == 1
    with pytest.raises(InvalidInput, match="that are named"):
        filled.verify(key=keys[1])


def test_nothing_holds_for_a_version_that_was_never_signed(filled: Registry, keys: tuple[Path, Path]) -> None:
    filled.attest("team/base", sign=keys[0])
    with pytest.raises(SignatureInvalid, match=r"tuned@v1 was never signed"):
        filled.verify_attestation("tuned", keys[1])


def test_a_signature_of_one_version_is_none_of_another(
    filled: Registry, keys: tuple[Path, Path], tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Name and version are bound: the same files under another name do not verify."""
    filled.attest("team/base", sign=keys[0], folder=tmp_path / "kept")
    filled.register("copy", make_checkpoint("gpt2"), parity="skip")
    assert [file.digest for file in filled.version("copy").files] == [
        file.digest for file in filled.version("team/base").files
    ]
    with pytest.raises(SignatureInvalid, match=r"not one of copy@v1 .*: model"):
        filled.verify_attestation("copy", keys[1], folder=tmp_path / "kept")
    # nor with a statement that was put right, since that is signed as well
    statement = tmp_path / "kept" / STATEMENT_FILE
    statement.write_text(json.dumps(describe_statement(filled.version("copy"))))
    with pytest.raises(SignatureInvalid, match="does not hold"):
        filled.verify_attestation("copy", keys[1], folder=tmp_path / "kept")


@pytest.mark.parametrize(
    "column", ["step = 7", "family = 'llama'", "source_location = '/elsewhere'", "layout = 'hooked'"]
)
def test_an_altered_record_does_not_verify(filled: Registry, keys: tuple[Path, Path], column: str) -> None:
    filled.attest("tuned", sign=keys[0])
    with filled.database.write() as connection:
        connection.execute(text(f"UPDATE versions SET {column} WHERE id = 2"))
    with pytest.raises(SignatureInvalid, match="as the registry has it"):
        filled.verify_attestation("tuned", keys[1])


def test_an_altered_blob_does_not_verify_and_is_not_signed(filled: Registry, keys: tuple[Path, Path]) -> None:
    filled.attest("tuned", sign=keys[0])
    blob = filled.store.blob_path(filled.version("tuned").with_role("weights")[0].digest)
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    for use in (lambda: filled.verify_attestation("tuned", keys[1]), lambda: filled.attest("tuned", sign=keys[0])):
        with pytest.raises(ArtifactCorrupt):
            use()


def _alter(signature: str, change: Callable[[dict[str, Any]], None]) -> str:
    bundle = json.loads(signature)
    change(bundle)
    return json.dumps(bundle)


DAMAGED: dict[str, Callable[[str], str]] = {
    "empty": lambda one: "",
    "no JSON": lambda one: "nonsense",
    "another JSON": lambda one: "[1]",
    "cut": lambda one: one[: len(one) // 2],
    "no envelope": lambda one: _alter(one, lambda bundle: bundle.pop("dsseEnvelope")),
    "another payload": lambda one: _alter(one, lambda bundle: bundle["dsseEnvelope"].update(payload="e30=")),
    "another signature": lambda one: _alter(
        one, lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig="AAAA")
    ),
    "no signature": lambda one: _alter(one, lambda bundle: bundle["dsseEnvelope"].update(signatures=[])),
    "a lone surrogate": lambda one: _alter(one, lambda bundle: bundle.update(mediaType="\ud800")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_signature_is_a_typed_error(
    registry: Registry, keys: tuple[Path, Path], damage: str, make_checkpoint: Callable[..., Path]
) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    signed = registry.attest("base", sign=keys[0])
    assert signed.signature
    altered = dataclasses.replace(signed, signature=DAMAGED[damage](signed.signature))
    with pytest.raises(SignatureInvalid):
        verify_attestation(registry.store, altered, keys[1])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "x\x00"])
def test_a_statement_with_names_that_lead_elsewhere_never_reaches_the_library(
    registry: Registry, keys: tuple[Path, Path], name: str, make_checkpoint: Callable[..., Path]
) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    signed = registry.attest("base", sign=keys[0])
    subject = [{**signed.statement["subject"][0], "name": name}]
    altered = Attestation(signed.version, {**signed.statement, "subject": subject}, signed.signature)
    with pytest.raises(SignatureInvalid, match="subject differ"):
        verify_attestation(registry.store, altered, keys[1])


def test_keys_that_are_none_are_refused(
    registry: Registry, keys: tuple[Path, Path], tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    locked, _ = _make_keys(tmp_path, "locked", password=b"secret")
    koblitz, _ = _make_keys(tmp_path, "koblitz", ec.SECP256K1())
    for key in (nonsense, keys[1], locked, koblitz, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match="cannot be signed with"):
            registry.attest("base", sign=key)
    assert [event.action for event in registry.events()] == ["version.registered"]


def test_a_key_with_a_password(registry: Registry, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    private, public = _make_keys(tmp_path, "locked", password=b"secret")
    registry.attest("base", sign=private, password="secret")
    registry.verify_attestation("base", public)
    with pytest.raises(RegistryError, match="cannot be signed with"):
        registry.attest("base", sign=private, password="wrong")


def test_model_signing_s_own_command_verifies_the_folder(
    registry: Registry, keys: tuple[Path, Path], tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    """Whoever has no lens-registry checks it with the tool that everybody has."""
    registry.register("base", make_checkpoint("gpt2"), parity="skip")
    folder = tmp_path / "exported"
    registry.attest("base", sign=keys[0], folder=tmp_path / "kept")
    folder.mkdir()
    for file in registry.version("base").files:
        (folder / file.name).write_bytes(registry.store.blob_path(file.digest).read_bytes())
    (folder / STATEMENT_FILE).write_bytes((tmp_path / "kept" / STATEMENT_FILE).read_bytes())
    command = [sys.executable, "-m", "model_signing", "verify", "key", folder, "--public_key", keys[1]]
    command += ["--signature", tmp_path / "kept" / SIGNATURE_FILE]
    assert subprocess.run(command, check=False).returncode == 0
    (folder / "config.json").write_text("{}")
    assert subprocess.run(command, check=False).returncode != 0
