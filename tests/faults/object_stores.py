"""F14, F15: a bucket that breaks off, hangs, refuses and lies; and registrations killed while they upload."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import random
import shutil
import signal
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from registry import Registry
from registry.errors import RegistryError
from registry.store import bucket
from registry.store.objects import ObjectStore
from tests.faults.invariant import find_breaches, read_acknowledged
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.object_server import CREDENTIALS, ObjectServer, make_bucket, run_moto
from tests.patience import wait_for

_TIMEOUT = 0.5  # for one request; asked for at most thrice
_BOUND = 4 * _TIMEOUT * 3 + 20  # for some requests, each given up in time, and the rest; less than a hang lasts
_PART_BYTES = 2**16  # so that small files are sent in parts, too
_WRITE_ACTIONS = (*("cut-request", "lost-reply", "cut-reply", "status") * 3, "hang")  # which cost most time
_READ_ACTIONS = (*("lost-reply", "cut-reply", "short-reply", "altered-reply", "status") * 3, "hang")
_STATUSES = ((500, "InternalError"), (503, "SlowDown"), (409, "OperationAborted"), (412, "PreconditionFailed"))
_WRITES = ("^HEAD .*/blobs/", "^PUT .*/blobs/", "^PUT .*partNumber", "^POST .*uploads", "^POST .*uploadId", ".")
_READS = ("^HEAD .*/blobs/", "^GET .*/blobs/", ".")
_CHECK_EVERY = 25
_N_AT_ONCE = 16


def strike_requests(chance: Chance) -> Outcome:
    """Have requests go wrong, once or for good, while one machine registers and another fetches."""
    with _serve_small_parts(chance.folder) as port, make_bucket(port) as server:
        return _strike_requests(chance, server)


def _strike_requests(chance: Chance, server: ObjectServer) -> Outcome:
    rng = random.Random(chance.seed)
    source = _make_source(chance.folder / "source")
    here = _open(chance.folder / "here", server, chance.folder)
    there = _open(chance.folder / "there", server, chance.folder)
    struck, broken, acknowledged = 0, [], []
    ended: Counter[str] = Counter()
    while not chance.must_end(struck) and not broken:
        _alter(source, rng)
        reading = bool(acknowledged) and rng.random() < 0.4
        action = rng.choice(_READ_ACTIONS if reading else _WRITE_ACTIONS)
        status, code = rng.choice(_STATUSES)
        times = 1 if action == "hang" else rng.choice((1, 1, 1, 1, 2, 2, 999))
        place = rng.choice(_READS if reading else _WRITES)
        fault = server.proxy.strike(action, place, times=times, status=status, code=code)  # type: ignore[arg-type]
        before, what = time.monotonic(), f"{action} of {place} x{times}"
        try:
            if reading:
                _fetch(there, rng.choice(acknowledged), broken)
            else:
                done = here.register("model", source, parity="skip")
                acknowledged.append(done.version.ref if done.version else "")
            ended["well"] += 1
        except RegistryError as error:
            ended[error.code] += 1
        except Exception as error:  # noqa: BLE001 whatever is not typed is what is looked for
            broken.append(f"{what}: {type(error).__name__} is not typed: {error}")
        if time.monotonic() - before > _BOUND:
            broken.append(f"{what}: took {time.monotonic() - before:.1f} s")
        server.proxy.faults.clear()
        struck += fault.struck > 0
        if struck % _CHECK_EVERY == 0:
            broken += _find_all_breaches(server, here, acknowledged)
    broken += _find_all_breaches(server, here, acknowledged)
    for ref in acknowledged[-3:]:
        _fetch(there, ref, broken)
    broken += [f"{path} was left" for one in (here, there) for path in (one.store.root / "tmp").iterdir()]
    here.close()
    there.close()
    left = _clear_uploads(here.store)
    broken += [f"upload {one} is still there" for one in server.uploads()]
    listed = ", ".join(f"{n} {one}" for one, n in ended.most_common())
    return Outcome(struck, tuple(broken), f"{listed}; {left} uploads given up")


def strike_killed(chance: Chance) -> Outcome:
    """Kill registrations while they upload; what is left of uploads is listed, and given up."""
    with _serve_apart(chance.folder) as port, make_bucket(port) as server:
        rng = random.Random(chance.seed)
        source = _make_source(chance.folder / "source")
        told = chance.folder / "acknowledged"
        _warm_up(chance.folder / "warm", source)
        seconds, struck, n = 1.0, 0, 0  # of a child that is left to finish, which the first one is
        while not chance.must_end(struck):
            _alter(source, rng)
            began = time.monotonic()
            child = os.fork()
            if not child:
                _register_and_tell(chance.folder, server, source, told)
            if n == 0:
                os.waitpid(child, 0)
                seconds = time.monotonic() - began
            else:
                time.sleep(rng.uniform(0, 1.1 * seconds))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                struck += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            n += 1
        acknowledged = [one for one in read_acknowledged(told) if one]
        registry = _open(chance.folder / "here", server, chance.folder)
        broken = _find_all_breaches(server, registry, acknowledged)
        left = _clear_uploads(registry.store)
        broken += [f"upload {one} is still there" for one in server.uploads()]
        broken += ["nothing was registered at all"] * (not acknowledged)
        registry.close()
        return Outcome(struck, tuple(broken), f"{len(acknowledged)} registered, {left} uploads given up")


def register_same(chance: Chance) -> Outcome:
    """Have 16 processes of four machines register the same checkpoint: each object is there once, and every version."""
    with _serve_apart(chance.folder) as port, make_bucket(port) as server:
        source = _make_source(chance.folder / "source")
        _warm_up(chance.folder / "warm", source)
        told = chance.folder / "acknowledged"
        children = []
        for index in range(_N_AT_ONCE):
            child = os.fork()
            if not child:
                _register_and_tell(chance.folder, server, source, told, f"model{index}", f"machine{index % 4}", 120)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        acknowledged = read_acknowledged(told)
        registry = _open(chance.folder / "here", server, chance.folder)
        digests = {file.digest for ref in acknowledged for file in registry.version(ref).files}
        broken = _find_all_breaches(server, registry, acknowledged)
        registry.close()
        if len(set(acknowledged)) != _N_AT_ONCE:
            broken.append(f"{len(acknowledged)} of {_N_AT_ONCE} were registered")
        n_objects = sum("/blobs/" in key for key in server.keys())  # noqa: SIM118
        if n_objects != len(digests):
            broken.append(f"{n_objects} objects for {len(digests)} digests")
        broken += [f"upload {one} is still there" for one in server.uploads()]
        return Outcome(_N_AT_ONCE, tuple(broken), f"{n_objects} objects")


def _find_all_breaches(server: ObjectServer, registry: Registry, acknowledged: list[str]) -> list[str]:
    """Look at every version, and at every object by its key: one that is there is whole."""
    broken = find_breaches(registry, acknowledged)
    for key in server.keys():  # noqa: SIM118
        if "/blobs/" in key and hashlib.sha256(server.ask("GET", f"/{key}")).hexdigest() != key.rpartition("/")[2]:
            broken.append(f"the object {key} is not whole")
    return broken


def _fetch(registry: Registry, ref: str, broken: list[str]) -> None:
    """Fetch a version into an empty cache, and look at what came."""
    shutil.rmtree(registry.store.root / "blobs", ignore_errors=True)
    try:
        folder = registry.path(ref)
        wrong = [file.name for file in registry.version(ref).files if _digest(folder / file.name) != file.digest]
        broken += [f"{ref}: {name} came wrong and was taken for right" for name in wrong]
    finally:
        cached = (registry.store.root / "blobs").glob("??/*")
        broken += [f"{path} is in the cache and is wrong" for path in cached if _digest(path) != path.name]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _clear_uploads(store: object) -> int:
    """Give up what `lensreg gc` would, and return how many uploads there were."""
    if not isinstance(store, ObjectStore):
        raise TypeError(store)
    left = [one for one in store.list_leftovers() if one.kind == "upload"]
    for one in left:
        store.delete_leftover(one)
    return len(left)


def _register_and_tell(
    folder: Path,
    server: ObjectServer,
    source: Path,
    told: Path,
    model: str = "model",
    machine: str = "here",
    timeout: float = _TIMEOUT,
) -> None:
    """Register, in a process of its own; note the ref durably once it is said to be done."""
    try:
        registry = _open(folder / machine, server, folder, timeout)
        done = registry.register(model, source, parity="skip")
        descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, f'"{done.version.ref if done.version else ""}"\n'.encode())
        os.fsync(descriptor)
    finally:
        os._exit(0)


def _warm_up(folder: Path, source: Path) -> None:
    """Register elsewhere, so that children need not import what that takes; a bucket may only be used after a fork."""
    importlib.import_module("obstore.store")
    registry = Registry(str(folder.with_suffix(".db")), folder)
    registry.register("model", source, parity="skip")
    registry.close()


def _open(machine: Path, server: ObjectServer, folder: Path, timeout: float = _TIMEOUT) -> Registry:
    os.environ["LENSREG_STORE_CACHE"], os.environ["LENSREG_STAMPS"] = str(machine), str(machine / "stamps")
    return Registry(str(folder / "registry.db"), server.url(timeout=timeout))


def _make_source(folder: Path) -> Path:
    from tests.checkpoints import save_checkpoint

    folder.mkdir()
    return save_checkpoint(folder, "gpt2")


def _alter(source: Path, rng: random.Random) -> None:
    """Change one weight: the last number of the file."""
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", rng.random()))


@contextlib.contextmanager
def _serve_small_parts(folder: Path) -> Iterator[int]:
    """Run the server here, and have it and us make parts of what is small."""
    for name, value in CREDENTIALS.items():
        os.environ[name] = value
    bucket.PART_BYTES = _PART_BYTES
    try:
        import moto.s3.models as models
    except ImportError as error:
        raise NotHereError(f"moto is not installed: {error}") from error
    models.S3_UPLOAD_PART_MIN_SIZE = 1
    with run_moto() as port:
        yield port


@contextlib.contextmanager
def _serve_apart(folder: Path) -> Iterator[int]:
    """Run the server in another process, so that this one can be forked without threads."""
    told = folder / "port"
    child = os.fork()
    if not child:
        with _serve_small_parts(folder) as port:
            told.with_suffix(".fresh").write_text(str(port))
            told.with_suffix(".fresh").rename(told)
            while True:
                time.sleep(60)
    for name, value in CREDENTIALS.items():
        os.environ[name] = value
    bucket.PART_BYTES = _PART_BYTES
    try:
        if not wait_for(told.exists, 30):
            raise NotHereError("moto's server does not start here")
        yield int(told.read_text())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


SCENARIOS = [
    Scenario(
        "object-requests", "F14", "requests to a bucket cut, lost, hanging, refused, altered", strike_requests, least=10
    ),
    Scenario("object-uploads", "F15", "registrations killed while they upload", strike_killed, least=5),
    Scenario("object-same-content", "F12", "16 processes register the same into a bucket", register_same, 0.5, 16),
]
