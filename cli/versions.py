"""Look at models and versions, and take versions out of use: ls, show, history, path, retire, restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.measured import print_measured
from cli.options import Session, limit_option, output_option, ref_argument, registry_options
from cli.output import (
    Column,
    format_instant,
    format_parameters,
    format_size,
    print_card,
    print_exactly,
    print_json,
    print_rows,
    say,
)
from cli.pages import choose_limit, read_pages, tell_rest

if TYPE_CHECKING:
    from registry.versions import AliasSpan, Version, VersionSummary


@click.command()
@limit_option
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def ls(session: Session, limit: int | None) -> None:
    """List the models by name, each with its newest version."""
    registry = session.open()
    shown = read_pages(
        lambda n, after: registry.models(limit=n, after=after),
        lambda one: one.name,
        choose_limit(limit, session.output),
    )
    rows = (
        {
            "model": one.name,
            "newest": one.newest,
            "n_versions": one.n_versions,
            "family": one.family,
            "n_parameters": one.n_parameters,
            "parameters": format_parameters(one.n_parameters),
            "verified": one.verified,
            "created_at": one.created_at,
        }
        for one in shown
    )
    columns = [
        Column("model", "model"),
        Column("newest", "newest"),
        Column("versions", "n_versions", right=True),
        Column("family", "family"),
        Column("parameters", "parameters", right=True),
        Column("verified", "verified"),
        Column("since", "created_at"),
    ]
    print_rows(
        plain_rows(rows, session),
        columns,
        session.output,
        f"Nothing is registered in {registry.database.file or registry.database} yet. See: lensreg add --help",
        "model",
    )
    tell_rest(limit, session.output, registry.count_models)


@click.command()
@ref_argument("name")
@limit_option
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def history(session: Session, name: str, limit: int | None) -> None:
    """List the versions of the model NAME, newest first, retired ones too."""
    registry = session.open()
    shown = read_pages(
        lambda n, before: registry.history(name, limit=n, before=before),
        lambda one: one.number,
        choose_limit(limit, session.output),
    )
    rows = map(summary_row, shown)
    columns = [
        Column("version", "ref"),
        Column("step", "step", right=True),
        Column("parents", "parents"),
        Column("aliases", "aliases"),
        Column("verified", "verified"),
        Column("weights", "weights"),
        Column("size", "size", right=True),
        Column("registered", "created_at"),
        Column("retired", "retired_at"),
        Column("note", "note"),
    ]
    print_rows(plain_rows(rows, session), columns, session.output, "", "ref")
    tell_rest(limit, session.output, lambda: registry.count_versions(name))


@click.command()
@ref_argument()
@output_option("table", "json")
@registry_options
@click.pass_obj
def show(session: Session, ref: str) -> None:
    """Show everything that is recorded of the version that REF means, with its aliases and events."""
    registry = session.open()
    version = registry.version(ref)
    measured = registry.validations(version.ref)
    spans = [one for one in registry.aliases(version.model, history=True) if one.version == version.ref]
    events = registry.events(version.ref)
    if session.output == "json":
        history = [{"alias": one.ref, "set_at": one.set_at, "removed_at": one.removed_at} for one in spans]
        record = version_dict(version)
        for one, each in zip(record["validations"], registry.validations(version.ref, all_runs=True), strict=True):
            one["stale"] = each.stale
        print_json({**record, "alias_history": history, "events": [asdict(one) for one in events]})
        return
    facts = describe_version(version)
    facts["was called"] = "\n".join(_span(one) for one in spans if one.removed_at) or None
    facts["received"] = _origin(version)
    facts["events"] = "\n".join(line for one in events for line in _event_lines(asdict(one)))
    commit = version.provenance.get("commit")
    facts["source"] = f"{version.source_location} ({version.source_kind})" + (f", commit {commit}" if commit else "")
    facts["files"] = "\n".join(
        f"{file.name}  {format_size(file.size_bytes)}  sha256:{file.digest[:16]}" for file in version.files
    )
    print_card(version.ref + (" (retired)" if version.retired_at else ""), facts)
    if measured:
        print_measured(measured)


@click.command()
@ref_argument()
@output_option("table", "json")
@registry_options
@click.pass_obj
def path(session: Session, ref: str) -> None:
    """Print a folder with the version's files under their own names, for other tools to read.

    The files are links into the store: read them, never write them. Those of a bucket are downloaded first.
    """
    from cli.progress import show_progress

    with show_progress() as progress:
        folder = str(session.open().path(ref, progress=progress))
    if session.output == "json":
        print_json({"path": folder})
    else:
        print_exactly(folder)


@click.command()
@ref_argument()
@click.option("--force", is_flag=True, help="Even while aliases (they are removed) or descendants depend on it.")
@click.option("--reason", metavar="TEXT", help="Why, for the audit trail.")
@registry_options
@click.pass_obj
def retire(session: Session, ref: str, force: bool, reason: str | None) -> None:
    """Take a version out of use: bare names pass it by and loading it is refused. Nothing is deleted."""
    say(f"retired {session.open().retire(ref, force=force, reason=reason).ref}")


@click.command()
@ref_argument()
@registry_options
@click.pass_obj
def restore(session: Session, ref: str) -> None:
    """Put a retired version back to use."""
    say(f"restored {session.open().restore(ref).ref}")


def _event_lines(event: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write an event in a line, and below it those that came with a version from another registry, newest first."""
    yield f"{indent}#{event['sequence']}  {event['at'][:16].replace('T', ' ')} UTC  {event['action']}  {event['actor']}"
    if event["action"] == "version.received":
        for one in reversed(event["details"].get("events", [])):
            yield from _event_lines(one, f"{indent}  there: ")


def _origin(version: Version) -> str | None:
    origin = version.provenance.get("received")
    if origin is None:
        return None
    return f"as {origin['ref']} from {origin['location']} (registry sha256:{origin['registry'][:16]})"


def _span(one: AliasSpan) -> str:
    return f"{one.name}  {format_instant(one.set_at)} to {format_instant(one.removed_at)} UTC"


def summary_row(one: VersionSummary) -> dict[str, Any]:
    """Make a row of a version's summary, with `version` as an integer."""
    return {
        "model": one.model,
        "version": one.number,
        "ref": one.ref,
        "step": one.step,
        "family": one.family,
        "n_parameters": one.n_parameters,
        "size_bytes": one.size_bytes,
        "size": format_size(one.size_bytes),
        "weights_digest": one.weights_digest,
        "weights": (one.weights_digest or "not fetched")[:12],
        "verified": one.verified,
        "parents": list(one.parents),
        "aliases": list(one.aliases),
        "note": one.note,
        "created_at": one.created_at,
        "retired_at": one.retired_at,
    }


def version_facts(version: Version) -> dict[str, str | None]:
    """Give what tells a version from others, for a card."""
    fields = version.architecture
    sizes = ", ".join(f"{name} {fields[name]}" for name in _SIZES if name in fields)
    return {
        "step": None if version.step is None else f"{version.step}",
        "weights": f"{name_weights(version.weights_digest)}  {format_parameters(version.n_parameters)} parameters, "
        f"{version.dtype}, {format_size(version.size_bytes)}",
        "architecture": f"{version.family}  {sizes}  (sha256:{version.fingerprint[:16]})",
        "registered": f"{format_instant(version.created_at)} UTC",
    }


def name_weights(digest: str | None) -> str:
    """Write a weights digest shortly; None is that of weights that were left on the Hub."""
    return f"sha256:{digest[:16]}" if digest else "not fetched yet"


def describe_version(version: Version) -> dict[str, str | None]:
    """Give a version's facts as people read them, for a card."""
    parents = []
    for parent in version.parents:
        admitted = ", ".join(
            f"{one['field']} {one['parent']} → {one['checkpoint']}" for one in parent.admitted_differences
        )
        declared = f", declared as {parent.declared}" if parent.declared else ""
        parents.append(f"{parent.ref} ({parent.relation})" + (f", admitted: {admitted}" if admitted else "") + declared)
        parents.append(f"  weights: {show_evidence(parent.evidence)}")
    parents += [f"{one.ref} ({one.relation}), absent" for one in version.absent_parents if one.joined is None]
    return {
        **version_facts(version),
        "parent": "\n".join(parents) or None,
        "parity": _recorded_parity(version),
        "aliases": ", ".join(version.aliases) or None,
        "tags": ", ".join(f"{key}={value}" for key, value in version.tags.items()) or None,
        "note": version.note,
        "findings": "\n".join(_list_findings(version)) or None,
    }


def _list_findings(version: Version) -> list[str]:
    """Return what was found when it was registered, but not that parents were not weighed which have been since."""
    weighed = all(parent.evidence is not None for parent in version.parents)
    return [one["message"] for one in version.findings if not (weighed and one["code"] == "lineage-not-measured")]


def show_evidence(evidence: Mapping[str, Any] | None) -> str:
    """Write in one line what the weights say of an edge."""
    if evidence is None:
        return "not compared (lensreg weigh does it, once both are here)"
    from registry.compare_sketches import Evidence

    return str(Evidence.from_dict(evidence))


# of an architecture, what tells people which it is; Mamba has no heads
_SIZES = ("d_model", "n_layers", "n_heads", "d_vocab")
_METRICS = ("raw", "processed", "bridge")


def describe_parity(parity: Mapping[str, Any]) -> str:
    """Write a parity measurement in one line."""
    return (
        f"{_show_differences(parity)}; bound {parity['bound']:.1e}, "
        f"noise floor {parity['noise_floor']:.1e} ({parity['dtype']}, {parity['n_tokens']} tokens)"
    )


def version_dict(version: Version) -> dict[str, Any]:
    """Give a version as plain data, with `version` as an integer."""
    record = asdict(version)
    number = record.pop("number")
    return {"ref": version.ref, "version": number, "verified": version.is_verified, **record}


def _recorded_parity(version: Version) -> str:
    measured = version.parity
    if not measured and version.weights_digest is None:
        return "not verified yet: parity is measured when the weights are fetched"
    if not measured:
        return "not verified: parity was not measured"
    one = next(iter(measured.values()))
    elsewhere = "; measured elsewhere" if "received" in one.environment else ""
    figures = describe_parity(
        {
            **{metric: measured[metric].value if metric in measured else None for metric in _METRICS},
            "bound": one.bound,
            "noise_floor": one.details["noise_floor"],
            "dtype": one.dtype,
            "n_tokens": one.n_samples,
        }
    )
    return figures + elsewhere


def _show_differences(parity: Mapping[str, Any]) -> str:
    """Show raw and processed, or, where there is no HookedTransformer, the bridge."""
    if parity.get("bridge") is not None:
        return f"bridge {parity['bridge']:.1e}"
    shown = {name: "not measured" if parity[name] is None else f"{parity[name]:.1e}" for name in ("raw", "processed")}
    return f"raw {shown['raw']}, processed {shown['processed']}"


def plain_rows(rows: Iterable[dict[str, Any]], session: Session) -> Iterator[dict[str, Any]]:
    """Leave out of data what is there for tables only."""
    for_tables = set() if session.output == "table" else {"parameters", "size", "weights"}
    return ({key: value for key, value in row.items() if key not in for_tables} for row in rows)
