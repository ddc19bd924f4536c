"""What a worker does with a piece of work: prove that it sees what the sender sees, then do it, one at a time.

A `Call` goes through schedulers and their logs, so it names where the registry is without any password: a worker takes
that from its own environment. What is to be done is bytes within it, which are read once code and registry are known
to be the same.
"""

from __future__ import annotations

import atexit
import hashlib
import pickle
import platform
import threading
import traceback
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, select

from registry.engines import PASSWORDS
from registry.environment import read_packages
from registry.errors import RegistryError, WorkerError, WorkerMismatch
from registry.ownership import make_claim
from registry.progress import no_progress
from registry.schema import SCHEMA_REVISION, check_schema
from registry.settings import read_given_place
from registry.tables import events
from registry.weights import digest_file

if TYPE_CHECKING:
    from registry.methods.opened import OpenedRegistry
    from registry.versions import Version

Call = dict[str, Any]
"""Plain data: it can be read by a worker with other code, to say so."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
# libraries turn switches that are the process's own while they build and run networks
_ONE_AT_A_TIME = threading.RLock()
_opened: dict[tuple[str, str, str], OpenedRegistry] = {}
_senders: weakref.WeakValueDictionary[str, OpenedRegistry] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Pin:
    """A version as the sender sees it; `digest` is that of its weights, None if they were not fetched yet."""

    ref: str
    digest: str | None


def pin_version(version: Version) -> Pin:
    """Hold fast what the sender means by a version."""
    return Pin(version.ref, version.weights_digest)


def describe_registry(registry: OpenedRegistry, *, with_password: bool = False) -> Call:
    """Say which registry is meant, where it is, and with which code; `with_password` for this machine's pipes only."""
    database, store = registry.database, registry.store
    url = database.url
    if not with_password:
        url = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)
        url = url.difference_update_query(PASSWORDS)
    with database.read() as connection:
        claim = make_claim(connection, database)
    token = uuid.uuid4().hex
    _senders[token] = registry  # for executors that are threads of this very process
    return {
        "code": read_code_version(),
        "schema": SCHEMA_REVISION,
        "url": url.render_as_string(hide_password=False),
        "is_secret": with_password,
        "store": str(registry.settings.store),
        "database": str(database),
        "registry": claim.registry_id if claim else None,
        "head": claim.head if claim else None,
        "is_claimed": claim is not None and store.has_claim(claim.registry_id),
        "file": _describe_file(database.file) if database.file else None,
        "token": token,
    }


def add_work(call: Call, kind: type, function: Any, arguments: tuple[Any, ...], pins: tuple[Pin, ...]) -> Call:
    """Return the call with what is to be done: `function(registry, *arguments, progress)`."""
    return {**call, "work": pickle.dumps((kind, function, arguments, pins))}


def run_in_worker(call: Call) -> Any:
    """Do what a call asks for. Raises a RegistryError, which can be passed from process to process, for whatever fails.

    WorkerMismatch if the code, the registry or a version is not what the sender has.
    """
    _refuse_other_code(call)
    try:
        with _ONE_AT_A_TIME:
            kind, function, arguments, pins = pickle.loads(call["work"])
            registry = _senders.get(call["token"]) or _open_registry(call, kind)
            for pin in pins:
                _refuse_other_version(registry, pin)
            return function(registry, *arguments, no_progress)
    except RegistryError:
        raise
    except Exception as error:  # noqa: BLE001 (anything; some exceptions cannot even be pickled)
        trace = "".join(traceback.format_exception(error))[-4000:]
        raise WorkerError(f"{type(error).__name__}: {error}", hint=f"On {_here()}:\n{trace}") from None


def read_code_version() -> str:
    """Return the version of lens-registry, as it is installed."""
    return str(read_packages()["lens-registry"])


def close_opened() -> None:
    """Close the registries that this process has opened as a worker."""
    while _opened:
        _opened.popitem()[1].close()


atexit.register(close_opened)


def digest_data(location: str) -> str | None:
    """Return a digest of the bytes at a path, a file or a folder of files; None if nothing is there."""
    path = Path(location).expanduser()
    files = sorted([path] if path.is_file() else (one for one in path.rglob("*") if one.is_file()))
    if not files:
        return None
    seen = [one.stat() for one in files]
    # a worker is asked for every version, and reads the data once, unless they are written to
    return _digest_files(path, tuple(files), tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in seen))


@lru_cache(maxsize=32)
def _digest_files(path: Path, files: tuple[Path, ...], as_of: tuple[tuple[int, int, int], ...]) -> str:
    listed = "\n".join(f"{one.relative_to(path).as_posix()} {digest_file(one)}" for one in files)
    return hashlib.sha256(listed.encode(errors="surrogatepass")).hexdigest()


def refuse_other_data(location: str, digest: str | None) -> None:
    """Raise WorkerMismatch if this machine has other data at a path than the sender, or none."""
    found = digest_data(location)
    if found != digest:
        raise WorkerMismatch(
            f"{location} {'is not there' if found is None else 'holds other data'} on {_here()}.",
            sender=digest,
            worker=found,
            hint="Put it where all workers see it under the same path, on a shared file system.",
        )


def _refuse_other_code(call: Mapping[str, Any]) -> None:
    mine = {"code": read_code_version(), "schema": SCHEMA_REVISION}
    theirs = {name: call[name] for name in mine}
    if mine != theirs:
        raise WorkerMismatch(
            f"The worker on {_here()} has lens-registry {mine['code']} (schema {mine['schema']}), and what was sent is "
            f"of lens-registry {theirs['code']} (schema {theirs['schema']}).",
            sender=f"{theirs['code']} ({theirs['schema']})",
            worker=f"{mine['code']} ({mine['schema']})",
            hint="Install the same version in both places, and start the workers again.",
        )


def _open_registry(call: Call, kind: type[OpenedRegistry]) -> OpenedRegistry:
    """Open the registry that is meant, once in a process: where the environment says, or else where the call says."""
    key = (call["registry"], call["url"], call["store"])
    if key in _opened:
        return _opened[key]
    given_url, given_store = (None, None) if call["is_secret"] else read_given_place()
    places = [(given_url or call["url"], given_store or call["store"]), (call["url"], call["store"])]
    refusal: RegistryError | None = None
    for url, store in dict.fromkeys(places):
        registry = kind(url, store)
        try:
            _prove(registry, call)
        except RegistryError as error:
            registry.close()
            refusal = refusal or error
            continue
        _opened[key] = registry
        return registry
    if isinstance(refusal, WorkerMismatch):
        raise refusal
    raise WorkerMismatch(
        f"The worker on {_here()} cannot open the registry: {refusal.message if refusal else ''}",
        sender=call["database"],
        hint="Passwords are not sent. Start the workers with LENSREG_URL (or PGPASSWORD, or ~/.pgpass), LENSREG_STORE "
        "and the store's credentials in their environment.",
    )


def _prove(registry: OpenedRegistry, call: Call) -> None:
    """Raise WorkerMismatch unless this is the sender's registry, as new as the sender knows it, with its store."""
    database = registry._unprepared  # not to make a registry where there is none
    hint = "Start the workers with LENSREG_URL and LENSREG_STORE of this registry, or without them."
    if database.file is not None:
        found = _describe_file(database.file)
        if call["file"] is None or found != call["file"]:
            raise WorkerMismatch(
                f"The worker on {_here()} does not see the file of {call['database']}: it is on another machine, or "
                f"opens {database} instead.",
                sender=call["database"],
                worker=str(database),
                hint="SQLite is for one machine. Use Postgres for the registry, and start the workers with its "
                "LENSREG_URL.",
            )
    is_fresh = check_schema(database)
    with database.read() as connection:
        claim = None if is_fresh else make_claim(connection, database)
        heads = select(events.c.sequence).where(events.c.digest == call["head"])
        is_known = call["head"] is None or (claim is not None and connection.execute(heads).first() is not None)
    is_same = not is_fresh and (claim.registry_id if claim else None) == call["registry"]
    if not (is_same and is_known):
        raise WorkerMismatch(
            f"The worker on {_here()} opens {database}, which is {'an older copy of it' if is_same else 'another'}, "
            f"and not {call['database']}.",
            sender=call["database"],
            worker=str(database),
            hint=hint,
        )
    if call["is_claimed"] and not registry.store.has_claim(call["registry"]):
        raise WorkerMismatch(
            f"The worker on {_here()} opens the store {registry.store}, which is not there, or not {call['store']}.",
            sender=call["store"],
            worker=str(registry.store),
            hint="Keep the blobs where all workers see them: on a shared file system, or in a bucket. " + hint,
        )


def _refuse_other_version(registry: OpenedRegistry, pin: Pin) -> None:
    found = registry.version(pin.ref)
    if pin.digest is not None and found.weights_digest != pin.digest:
        raise WorkerMismatch(
            f"{pin.ref} has other weights for the worker on {_here()}.",
            sender=pin.digest,
            worker=found.weights_digest,
            hint="It opens another registry. Start the workers with LENSREG_URL of this one, or without it.",
        )


def _describe_file(path: Path) -> list[str | int] | None:
    """Say which file this is and on which running system: a copy elsewhere is another one."""
    try:
        there = path.stat()
    except OSError:
        return None
    system = _BOOT.read_text().strip() if _BOOT.is_file() else f"{platform.node()} {uuid.getnode()}"
    return [system, there.st_dev, there.st_ino]


def _here() -> str:
    return platform.node() or "this machine"
