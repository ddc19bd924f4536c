"""The doctor asks the bucket: what it may do there, its clock and its rules, in time, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import main
from registry import Registry
from registry.doctor import Finding, buckets
from registry.store.object_url import parse_object_url
from tests.object_server import CREDENTIALS, ObjectServer
from tests.patience import must_not_hang
from tests.transfers import add

ABORT = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
EXPIRE = "<Expiration><Days>30</Days></Expiration>"


@pytest.fixture
def team(objects: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("LENSREG_STORE_CACHE", str(tmp_path / "cache"))
    return Registry(str(tmp_path / "registry.db"), objects.url(timeout=1))


def _states(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.state for one in findings if "bucket" in one.check or "uploads" in one.check}


def _find(findings: list[Finding], check: str) -> Finding:
    (found,) = [one for one in findings if one.check == check]
    return found


def _set_rules(objects: ObjectServer, *rules: str) -> None:
    text = "".join(f"<Rule><ID>r{n}</ID><Status>Enabled</Status>{rule}</Rule>" for n, rule in enumerate(rules))
    objects.ask("PUT", "?lifecycle", f"<LifecycleConfiguration>{text}</LifecycleConfiguration>".encode())


def test_a_bucket_in_order(team: Registry, objects: ObjectServer) -> None:
    enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    objects.ask("PUT", "?versioning", enabled)
    _set_rules(objects, f"<Filter><Prefix>team/</Prefix></Filter>{ABORT}")
    assert "no blobs yet" in _find(team.doctor(), "bucket").found
    add(team, "m")
    keys = objects.keys()
    findings = team.doctor()
    asked = ["bucket", "bucket clock", "bucket reading", "bucket conditions", "bucket writing", "bucket versioning"]
    assert _states(findings) == dict.fromkeys([*asked, "bucket rules", "unfinished uploads"], "ok")
    assert {"cache file system", "cache free space"} <= {one.check for one in findings}
    assert not any(one.check.startswith("store") for one in findings)
    assert objects.keys() == keys and team.verify(read_data=True).ok
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(findings) and "Signature" not in str(findings)


def test_a_bucket_that_nobody_set_up_gets_notes(team: Registry, objects: ObjectServer) -> None:
    findings = team.doctor()
    notes = {check: state for check, state in _states(findings).items() if state != "ok"}
    assert notes == {"bucket versioning": "note", "bucket rules": "note"}
    assert all(one.to_do for one in findings if one.state != "ok")


def test_read_only_writes_nothing(team: Registry, objects: ObjectServer, tmp_path: Path) -> None:
    add(team, "m")
    team.close()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    objects.proxy.lines.clear()
    findings = team.doctor(read_only=True)
    assert objects.proxy.count("^(PUT|POST|DELETE)") == 0
    assert _states(findings)["bucket reading"] == "ok" and "bucket writing" not in _states(findings)
    team.close()
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


REFUSED = {
    "no such bucket": (("status", ".", 404, "NoSuchBucket"), "bucket", "fault", "or create it"),
    "access denied": (("status", ".", 403, "AccessDenied"), "bucket", "fault", "s3:ListBucket"),
    "wrong secret": (("status", ".", 403, "SignatureDoesNotMatch"), "bucket", "fault", "AWS_SECRET_ACCESS_KEY"),
    "overloaded": (("status", ".", 503, "SlowDown"), "bucket", "fault", "Try again"),
    "no reading": (("status", "^GET .*/blobs/", 403, "AccessDenied"), "bucket reading", "fault", "s3:GetObject"),
    "no writing": (("status", "^PUT", 403, "AccessDenied"), "bucket writing", "note", "s3:PutObject"),
    "writing fails": (("status", "^PUT", 500, "InternalError"), "bucket writing", "fault", "Try again"),
    "no deleting": (
        ("status", "^(DELETE|POST .*delete)", 403, "AccessDenied"),
        "bucket deleting",
        "warning",
        "s3:Delete",
    ),
    "altered": (("altered-reply", "^GET .*/renewed/", 0, ""), "bucket contents", "fault", "Do not register there"),
    "no uploads": (
        ("status", r"\?uploads", 403, "AccessDenied"),
        "unfinished uploads",
        "note",
        "s3:ListBucketMultipart",
    ),
    "no rules": (("status", r"\?lifecycle", 403, "AccessDenied"), "bucket rules", "note", "Ask whoever"),
    "no versioning": (("status", r"\?versioning", 501, "NotImplemented"), "bucket versioning", "note", "Ask whoever"),
}


@pytest.mark.parametrize(("fault", "check", "state", "to_do"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_said_with_what_to_do(
    fault: tuple[str, str, int, str], check: str, state: str, to_do: str, team: Registry, objects: ObjectServer
) -> None:
    add(team, "m")
    action, place, status, code = fault
    objects.proxy.strike(action, place, times=9999, status=status, code=code)  # type: ignore[arg-type]
    found = _find(team.doctor(), check)
    assert (found.state, to_do in found.to_do) == (state, True), found
    left = [key for key in objects.keys() if "/renewed/doctor." in key]  # noqa: SIM118
    assert len(left) == (check == "bucket deleting")
    objects.proxy.faults.clear()
    for leftover in list(team.store.list_leftovers()):  # where gc finds it
        assert leftover.kind == "temporary" and team.store.delete_leftover(leftover)
    assert not any("/renewed/" in key for key in objects.keys())  # noqa: SIM118


def test_a_bucket_that_is_not_there(team: Registry, objects: ObjectServer, tmp_path: Path) -> None:
    url = objects.url(timeout=1).replace(objects.bucket, "no-such-bucket-anywhere")
    found = _find(Registry(str(tmp_path / "registry.db"), url).doctor(), "bucket")
    assert found.state == "fault" and "no such bucket" in found.found


def test_no_credentials(team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/credentials")
    found = _find(team.doctor(), "bucket")
    assert found.state == "fault" and "AWS_ACCESS_KEY_ID" in found.to_do


@pytest.mark.parametrize("place", [".", "^PUT", "^GET .*versioning"])
def test_a_service_that_hangs_is_given_up_in_time(
    place: str, team: Registry, objects: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SECONDS", 0.5)
    monkeypatch.setattr(buckets, "_ALL_SECONDS", 3.0)
    objects.proxy.strike("hang", place, times=9999)
    with must_not_hang():
        findings = buckets.examine_bucket(team.store.bucket)  # type: ignore[attr-defined]
    assert {one.state for one in findings} & {"fault", "note"}
    assert any("did not answer within 0.5 s" in one.found or "cannot be" in one.found for one in findings)


def test_when_time_is_over_nothing_more_is_asked(
    team: Registry, objects: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_ALL_SECONDS", -1.0)
    findings = buckets.examine_bucket(team.store.bucket)  # type: ignore[attr-defined]
    assert [one.state for one in findings] == ["ok", "ok", "warning"] and "too slow" in findings[-1].found
    assert objects.proxy.count("^PUT") == 0


def test_a_dead_endpoint(team: Registry, objects: ObjectServer) -> None:
    objects.proxy.close()
    assert [one.check for one in team.doctor() if one.state == "fault"] == ["bucket"]


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [(30, "ok", ""), (200, "warning", "behind"), (-200, "warning", "ahead of"), (2000, "fault", "behind")],
)
def test_the_service_s_clock(ahead: float, state: str, words: str, team: Registry, objects: ObjectServer) -> None:
    objects.proxy.ahead_seconds = ahead
    found = _find(team.doctor(read_only=True), "bucket clock")
    assert found.state == state and words in found.found


RULES = {
    "expires all": (f"<Filter><Prefix></Prefix></Filter>{EXPIRE}", True),
    "expires ours": (f"<Filter><Prefix>team/models/</Prefix></Filter>{EXPIRE}", True),
    "expires some of ours": (f"<Filter><Prefix>team/models/blobs/ab</Prefix></Filter>{EXPIRE}", True),
    "expires in an older way": (f"<Prefix>team</Prefix>{EXPIRE}", True),
    "expires others": (f"<Filter><Prefix>logs/</Prefix></Filter>{EXPIRE}", False),
    "expires what has a tag": (f"<Filter><Tag><Key>a</Key><Value>b</Value></Tag></Filter>{EXPIRE}", False),
    "moves": (
        "<Filter><Prefix>team</Prefix></Filter><Transition><Days>9</Days><StorageClass>GLACIER</StorageClass></Transition>",
        True,
    ),
}


@pytest.mark.parametrize(("rule", "is_harmful"), RULES.values(), ids=RULES.keys())
def test_rules_that_delete_blobs_are_found(rule: str, is_harmful: bool, team: Registry, objects: ObjectServer) -> None:
    _set_rules(objects, rule, f"<Filter><Prefix></Prefix></Filter>{ABORT}")
    found = _find(team.doctor(read_only=True), "bucket rules")
    assert found.state == ("warning" if is_harmful else "ok")
    assert not is_harmful or "'r0'" in found.found


def test_unfinished_uploads_are_counted(team: Registry, objects: ObjectServer) -> None:
    objects.ask("POST", f"/team/models/blobs/00/{'0' * 64}?uploads")
    found = _find(team.doctor(), "unfinished uploads")
    assert found.state == "note" and found.found.startswith("1 uploads"), "moto says that they are of 2010"
    assert "lensreg gc" in found.to_do


def test_a_service_that_does_not_heed_conditions(team: Registry, objects: ObjectServer) -> None:
    objects.proxy.dropped_header = "if-none-match"
    found = _find(team.doctor(), "bucket conditions")
    assert found.state == "note" and "not honoured" in found.found


def test_the_command(objects: ObjectServer, team: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--registry", str(tmp_path / "registry.db"), "--store", objects.url(timeout=1)]
    with pytest.raises(SystemExit) as stopped:
        main([*where, "doctor", "--read-only", "-o", "json"])
    assert not stopped.value.code
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert "bucket" in {row["check"] for row in rows}


def test_other_services_are_asked_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google and Azure have no such requests; whatever they answer, nothing is raised."""
    from registry.store.bucket import Bucket

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    url = parse_object_url("gs://bucket/prefix?endpoint=http://127.0.0.1:9&anonymous=true&timeout=0.3")
    findings = buckets.examine_bucket(Bucket(url))
    assert [(one.check, one.state) for one in findings] == [("bucket", "fault")]
