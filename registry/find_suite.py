"""Find the checkpoints of a suite with the digests of their weights: in the registry, on disk, or on the Hub.

Nothing is fetched from the Hub but lists of files: it states the digest of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, select

from registry.database import Database
from registry.errors import SourceError, SourceNotFound
from registry.progress import Counter, Progress
from registry.runs import find_checkpoints
from registry.sources.hub_id import HubId, parse_hub_id
from registry.sources.hub_snapshot import DEFAULT_REVISION, find_snapshot, list_revisions
from registry.suite import SuiteAudit, SuiteStep, audit_suite
from registry.tables import models, versions
from registry.weights import digest_file

_FORMS = {
    "safetensors": re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    "bin": re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
    "adapter": re.compile(r"adapter_model\.(safetensors|bin)"),
}
_N_REQUESTS = 8

T = TypeVar("T", str, Path)


def find_suite(database: Database, suite: str, progress: Progress) -> SuiteAudit:
    """Audit the suite that `suite` means: a registered model, else a folder, else a model on the Hub."""
    hub_id = parse_hub_id(suite)
    if hub_id is not None and hub_id.explicit:
        return audit_suite(suite, find_suite_on_hub(hub_id, progress))
    with database.read() as connection:
        registered = find_registered_suite(connection, suite)
    if any(one.step is not None for one in registered):
        return audit_suite(suite, registered)
    if registered:
        raise SourceNotFound(
            f"{suite} is a registered model, and no version of it has a training step.",
            hint=f"Give the step when registering (--step N). A model on the Hub is meant by hf://{suite}.",
            path=suite,
        )
    if Path(suite).expanduser().is_dir():
        return audit_suite(suite, find_suite_on_disk(Path(suite).expanduser(), progress))
    if hub_id is None:
        raise SourceNotFound(
            f"{suite!r} is no registered model with steps, no folder, and no model on the Hub.",
            hint="Give a model's NAME, a folder of checkpoint-N, or ORG/NAME.",
            path=suite,
        )
    try:
        return audit_suite(suite, find_suite_on_hub(hub_id, progress))
    except SourceError as error:
        message = f"{suite} is no registered model and no folder here, and on the Hub: {error.message}"
        raise type(error)(message, hint=error.hint, **error.fields) from error


def find_registered_suite(connection: Connection, model: str) -> list[SuiteStep]:
    """Return the steps of a registered model; the final one is its newest version, which the bare name means.

    Weights that were left on the Hub have no digest yet and are not compared.
    """
    rows = connection.execute(
        select(versions.c.number, versions.c.step, versions.c.weights_digest)
        .join_from(versions, models)
        .where(models.c.name == model, versions.c.retired_at.is_(None))
        .order_by(versions.c.number)
    ).all()
    found = [
        SuiteStep(f"{model}@v{row.number}", row.step, {"weights": {"": row.weights_digest}})
        for row in rows
        if row.step is not None and row.weights_digest
    ]
    if rows and rows[-1].weights_digest:
        found.append(SuiteStep(model, None, {"weights": {"": rows[-1].weights_digest}}))
    return found


def find_suite_on_disk(folder: Path, progress: Progress) -> list[SuiteStep]:
    """Hash the weights of every checkpoint-N in a folder; the final one is what lies in the folder itself."""
    checkpoints, _ = find_checkpoints(folder)
    homes = {f"checkpoint-{step}": (step, home) for step, home in checkpoints.items()}
    files = {name: _find_files({path.name: path for path in home.iterdir()}) for name, (_, home) in homes.items()}
    own = _find_files({path.name: path for path in folder.iterdir()})
    paths = [path for forms in [*files.values(), own] for form in forms.values() for path in form.values()]
    counter = Counter(progress, "hashing", sum(path.stat().st_size for path in paths))

    def digest(forms: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, str]]:
        return {
            form: {name: digest_file(path, counter.advance) for name, path in found.items()}
            for form, found in forms.items()
        }

    steps = [SuiteStep(name, step, digest(files[name])) for name, (step, _) in homes.items()]
    return [*steps, SuiteStep(str(folder), None, digest(own))] if own else steps


def find_suite_on_hub(hub_id: HubId, progress: Progress) -> list[SuiteStep]:
    """Ask the Hub for the files of every branch and tag whose name is that of a step, and of `main`.

    Raises SourceNotFound if there are none, and what `find_snapshot` raises.
    """
    revisions = [HubId(hub_id.repo, revision) for revision in list_revisions(hub_id.repo)]
    wanted = [one for one in revisions if one.step is not None]
    if not wanted:
        raise SourceNotFound(
            f"{hub_id.repo} has no branch or tag that is named after a training step, such as step1000.",
            hint="Suites keep a branch for each step; see what it has on its page on the Hub.",
            path=str(hub_id),
        )
    final = [one for one in revisions if one.revision == DEFAULT_REVISION]
    counter = Counter(progress, "asking the Hub", len(wanted) + len(final))

    def ask(one: HubId) -> SuiteStep:
        listed = find_snapshot(one.repo, one.revision).files
        stated = {file.name: file.sha256 or file.git_digest or "" for file in listed.values()}
        counter.advance(1)
        return SuiteStep(str(one), one.step, _find_files({name: digest for name, digest in stated.items() if digest}))

    with ThreadPoolExecutor(max_workers=_N_REQUESTS) as pool:
        return list(pool.map(ask, [*wanted, *final]))


def _find_files(files: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Sort the files that hold weights by the form that they keep them in."""
    found = {
        form: {name: one for name, one in sorted(files.items()) if pattern.fullmatch(name)}
        for form, pattern in _FORMS.items()
    }
    return {form: held for form, held in found.items() if held}
