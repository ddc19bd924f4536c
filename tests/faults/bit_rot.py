"""F16, F17: blobs that change behind our back: each is found, nothing else is, and registering again heals it."""

from __future__ import annotations

import hashlib
import os
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from registry import Registry, RegistryError
from registry.errors import ArtifactCorrupt, ArtifactMissing
from registry.files import open_files
from registry.versions import Version
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.faults.workload import inspect, make_home, make_source, prepare, register
from tests.kept import keep

_N_VERSIONS = 6
_BLOB_BYTES, _LEAST_RATIO = 64 * 2**20, 0.8
_EACH_LOAD = 50  # in every so manieth round networks are loaded too, which takes much longer
_EACH_QUIET = 10


def _flip(blob: Path, rng: random.Random) -> None:
    content = bytearray(blob.read_bytes())
    place = rng.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    _replace(blob, content)


def _cut(blob: Path, rng: random.Random) -> None:
    content = blob.read_bytes()
    _replace(blob, content[: rng.randrange(len(content))])


def _grow(blob: Path, rng: random.Random) -> None:
    _replace(blob, blob.read_bytes() + rng.randbytes(rng.randrange(1, 100)))


def _garble(blob: Path, rng: random.Random) -> None:
    _replace(blob, rng.randbytes(blob.stat().st_size))


def _delete(blob: Path, rng: random.Random) -> None:
    blob.unlink()


def _link(blob: Path, rng: random.Random) -> None:
    """Put a symbolic link in its place, to the very same bytes."""
    elsewhere = blob.parent.parent.parent.parent / f"elsewhere{rng.randrange(10**12)}"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)


def _replace(blob: Path, content: bytes) -> None:
    """Write into the very file, as a failing disk does, and keep its times, as nobody would who looked at them."""
    status = blob.stat()
    with blob.open("r+b") as file:  # whoever is root may
        file.write(content)
        file.truncate()
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))


_WAYS = (*(_flip,) * 6, _cut, _grow, _garble, _delete, _link)


def strike(chance: Chance) -> Outcome:
    """Damage some blobs, see that those and no others are found, put them back, and so on."""
    rng = random.Random(chance.seed)
    home = make_home(chance.folder / "home")
    ways: Counter[str] = Counter()
    broken: list[str] = []
    with home.open() as registry:
        sources = {register(registry, "base", prepare().sources[0]): prepare().sources[0]}
        for index in range(1, _N_VERSIONS):
            source = make_source(chance.folder / f"source{index}", rng)
            sources[register(registry, "base", source)] = source
        versions = [registry.version(ref) for ref in sources]
        sizes = {file.digest: file.size_bytes for version in versions for file in version.files}
        n_struck = n_rounds = 0
        while not chance.must_end(n_struck) and not broken:
            chosen = rng.sample(sorted(sizes), rng.randint(1, len(sizes)))
            kept = {digest: registry.store.blob_path(digest).read_bytes() for digest in chosen}
            for digest in chosen:
                way = rng.choice(_WAYS)
                way(registry.store.blob_path(digest), rng)
                ways[way.__name__.strip("_")] += 1
            broken += _find(registry, versions, {digest: sizes[digest] for digest in chosen})
            if n_rounds % _EACH_LOAD == 0:
                broken += _load_and_heal(registry, versions, sources, set(chosen))
            else:
                for digest, content in kept.items():
                    _put_back(registry.store.blob_path(digest), content)
            if n_rounds % _EACH_QUIET == 0:
                broken += [f"a false alarm: {fault.message}" for fault in registry.verify(read_data=True).faults]
            n_struck += len(chosen)
            n_rounds += 1
    broken += inspect(home)
    return Outcome(n_struck, tuple(broken), ", ".join(f"{n} {way}" for way, n in ways.most_common()))


def _find(registry: Registry, versions: Sequence[Version], damaged: Mapping[str, int]) -> list[str]:
    """Say what does not find that these blobs are damaged, or finds others."""
    found = {fault.subject for fault in registry.verify(read_data=True).faults}
    broken = [f"verify --read-data is silent about {digest}" for digest in set(damaged) - found]
    broken += [f"verify --read-data calls {digest} damaged" for digest in found - set(damaged)]
    for digest, size_bytes in damaged.items():
        if not _is_refused(lambda one=digest, n=size_bytes: registry.store.check(one, n), {digest}):
            broken.append(f"the damaged blob {digest} passes the check")
    for version in versions:
        needed = {file.digest for file in version.files} & set(damaged)
        if needed and not _is_refused(lambda one=version: open_files(registry.store, one), needed):
            broken.append(f"{version.ref} was opened with damaged blobs")
    return broken


def _load_and_heal(
    registry: Registry, versions: Sequence[Version], sources: Mapping[str, Path], damaged: Set[str]
) -> list[str]:
    """Say which networks are loaded in spite of it; then register every source again."""
    broken = []
    for version in versions:
        needed = {file.digest for file in version.files} & damaged
        if needed and not _is_refused(lambda one=version: _load(registry, one.ref), needed):
            broken.append(f"{version.ref} was loaded with damaged blobs")
    for ref, source in sources.items():
        if register(registry, "base", source) != ref:
            broken.append(f"registering {ref} again made another version")
    _load(registry, versions[0].ref)
    return broken + [f"not healed: {fault.message}" for fault in registry.verify(read_data=True).faults]


def _load(registry: Registry, ref: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was registered without parity
        registry.load(ref, processed=False, verify="always")


def _is_refused(act: Callable[[], object], digests: Set[str]) -> bool:
    try:
        act()
    except (ArtifactCorrupt, ArtifactMissing) as error:
        return error.fields.get("digest", "") in digests
    except RegistryError:
        return False
    return False


def _put_back(blob: Path, content: bytes) -> None:
    """Do as healing does: rename a whole one in."""
    fresh = blob.with_name("fresh")
    fresh.write_bytes(content)
    fresh.chmod(0o444)
    fresh.replace(blob)


def find_blob_writers(chance: Chance) -> Outcome:
    """Look for code of ours that opens a blob to write, and for blobs that anybody may write to.

    A file that is mapped and then cut kills the process that reads it (SIGBUS), and one that is written to changes a
    loaded network. So blobs are read-only, and only ever replaced by rename.
    """
    home = make_home(chance.folder / "home")
    with home.open() as registry:
        for index, source in enumerate(prepare().sources):
            register(registry, f"m{index}", source)
        blobs = [path for path in (home.store / "blobs").rglob("*") if path.is_file()]
        inodes = {path: path.stat().st_ino for path in blobs}
        register(registry, "m0", prepare().sources[0])  # which heals
    broken = [f"{path} can be written to" for path in blobs if path.stat().st_mode & 0o222]
    held = [os.open(path, os.O_RDONLY) for path in blobs]
    with home.open() as registry:
        register(registry, "m0", prepare().sources[0])
    for descriptor, path in zip(held, blobs, strict=True):
        if os.pread(descriptor, 2**20, 0) != path.read_bytes() or os.fstat(descriptor).st_nlink > 1:
            broken.append(f"{path} was written to in place")
        os.close(descriptor)
    replaced = sum(path.stat().st_ino != inode for path, inode in inodes.items())
    return Outcome(len(blobs), tuple(broken), f"{replaced} replaced by rename")


def measure_verify(chance: Chance) -> Outcome:
    """Compare the speed of verifying with that of SHA-256 alone, in processor time, which others do not disturb."""
    registry = Registry(str(chance.folder / "registry.db"), chance.folder / "store")
    keep(registry, "m", *(os.urandom(_BLOB_BYTES) for _ in range(2)))
    blobs = [path for path in (registry.store.root / "blobs").rglob("*") if path.is_file()]
    best = {"verify": float("inf"), "sha256": float("inf")}
    for _ in range(3):
        began = time.process_time()
        broken = [fault.message for fault in registry.verify(read_data=True).faults]
        best["verify"] = min(best["verify"], time.process_time() - began)
        began = time.process_time()
        for blob in blobs:
            with blob.open("rb") as file:
                hashlib.file_digest(file, "sha256")
        best["sha256"] = min(best["sha256"], time.process_time() - began)
    registry.close()
    ratio = best["sha256"] / best["verify"]
    if ratio < _LEAST_RATIO:
        broken.append(f"verify reads at {ratio:.2f} of the speed of SHA-256")
    speed = 2 * _BLOB_BYTES / best["verify"] / 1e9
    return Outcome(len(blobs), tuple(broken), f"{ratio:.2f} of the speed of SHA-256 alone, {speed:.2f} GB/s")


SCENARIOS = [
    Scenario("verify-speed", "F16", "speed of verify, against SHA-256 alone", measure_verify, 0.3, 2),
    Scenario("bit-rot", "F16", "blobs flipped, cut, grown, deleted, linked", strike, share=1.5, least=1000),
    Scenario("blobs-in-place", "F17", "blobs that are mapped or held open", find_blob_writers, share=0.2, least=9),
]
