"""Names and paths that try to lead elsewhere, by hypothesis; and which files Python opened meanwhile, by an audit hook.

What is asked of a registry by such a name, and what such a path leads to that stands in a checkpoint, a tokenizer or an
export, stays within the folder that all of it lies in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seed_of
from hypothesis import strategies as st

from registry import Registry, RegistryError
from registry.quiet import quiet
from registry.sources import SourceOptions
from registry.sources.weight_files import read_weights
from registry.tokenizers import load_tokenizer
from registry.transfer.folder import MANIFEST
from registry.transfer.form import encode
from tests.hostile.safetensors_files import pack

_EVENTS = {
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.utime", "shutil.rmtree", "sqlite3.connect",
}  # fmt: skip
_PIECES = st.sampled_from([
    "..", "../", "/", "\\", "C:", ".", "~", "%2e", "%2e%2e%2f", "%00", "\0", "\n", "model", ".safetensors", "outside",
    "secret.json", "/etc/passwd", "/proc/self/root", "file://", "ﬁ", "e\u0301", "\u202e", "@v1", "base", "?", "#", ";",
])  # fmt: skip
PATHS = st.lists(_PIECES | st.text(max_size=3), max_size=8).map("".join)
"""Texts out of what paths, URLs and refs are made of."""

_heard: list[str] = []
_is_heard: list[bool] = [False]
_is_hooked: list[bool] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _is_heard[0] and event in _EVENTS:
        paths = {"open": args[:1], "os.symlink": args[1:2]}.get(event, args[:2])  # where a link leads is not opened yet
        _heard.extend(os.fsdecode(one) for one in paths if isinstance(one, str | bytes))


@dataclass
class Heard:
    """How many different files were opened, and which of them lie outside."""

    n_opened: int = 0
    outside: list[str] = field(default_factory=list)


@contextmanager
def hear_opens(root: Path) -> Iterator[Heard]:
    """Find every path that Python opens or changes meanwhile; outside of `root` only Python's own may be."""
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked.append(True)
    found, before = Heard(), Path.cwd()
    os.chdir(root)  # to which a path is relative, if not to a folder that is open
    _heard.clear()
    _is_heard[0] = True
    try:
        yield found
    finally:
        _is_heard[0] = False
        opened = {os.path.realpath(one) for one in _heard if "\0" not in one and "mode=" not in one}
        os.chdir(before)
        found.n_opened = len(opened)
        found.outside = sorted(one for one in opened if not f"{one}/".startswith(_list_allowed(root)))


def _list_allowed(root: Path) -> tuple[str, ...]:
    """Return the beginnings of paths that may be opened: the folder's, and those of Python and of this code."""
    code = Path(__file__).parent.parent.parent.parent
    folders = (root, sys.prefix, sys.base_prefix, code / "registry", code / "tests")
    own = (f"{os.devnull}/", "/proc/self/", f"/proc/{os.getpid()}/", "/dev/urandom/")
    return (*(f"{os.path.realpath(one)}/" for one in folders), *own)


@dataclass
class Ways:
    """How many names and paths were tried at each place, and which led out."""

    tried: dict[str, int] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    n_opened: int = 0

    def describe(self) -> str:
        """Say it in a sentence."""
        places = ", ".join(f"{n:,} {place}" for place, n in self.tried.items())
        return (
            f"Names and paths that try to lead elsewhere, by hypothesis: {sum(self.tried.values()):,} ({places}); "
            f"{self.n_opened:,} times a file was opened, {len(self.breaches)} of them outside the folder."
        )


def find_ways_out(seed: int, n_paths: int) -> Ways:
    """Try so many names and paths, and say which made anything outside be opened or an untyped error come through."""
    ways = Ways()
    with tempfile.TemporaryDirectory(prefix="lensreg-paths-") as name:
        root = Path(name)
        (root / "secret.json").write_text("{}")
        for place, share, n_each, prepare in (
            ("in weight maps", 0.45, 10, _prepare_weight_maps),
            ("as names and refs", 0.45, 1, _prepare_names),
            ("in tokenizers' files", 0.04, 1, _prepare_tokenizers),
            ("in exports", 0.06, 1, _prepare_exports),
        ):
            home = root / place.replace(" ", "-").replace("'", "")
            home.mkdir()
            ways.tried[place] = _try(seed, max(1, int(n_paths * share / n_each)), n_each, home, prepare(home), ways)
    return ways


def _try(seed: int, n_examples: int, n_each: int, home: Path, attempt: Callable[[list[str]], None], ways: Ways) -> int:
    n_tried = [0]

    @seed_of(seed)
    @settings(
        max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(paths=st.lists(PATHS, min_size=n_each, max_size=n_each))
    def strike(paths: list[str]) -> None:
        n_tried[0] += len(paths)
        fault = ""
        with hear_opens(home) as heard:
            try:
                attempt(paths)
            except RegistryError:
                pass
            except Exception as error:  # noqa: BLE001 (that another comes through is what is looked for)
                fault = f"{paths!r} raised {type(error).__name__}: {error}"
        ways.n_opened += heard.n_opened
        if heard.outside:
            fault = f"{paths!r} led to {heard.outside[:3]}"
        if fault and fault not in ways.breaches:
            ways.breaches.append(fault)

    strike()
    return n_tried[0]


def _prepare_weight_maps(home: Path) -> Callable[[list[str]], None]:
    folder = home / "folder"
    folder.mkdir()
    (home.parent / "outside.safetensors").write_bytes(pack({}))
    (folder / "model.safetensors").write_bytes(pack({}))
    (folder / "model.safetensors.index.json").touch()

    def attempt(paths: list[str]) -> None:
        weight_map = {str(index): path for index, path in enumerate(paths)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        read_weights(folder, home, SourceOptions())

    return attempt


def _prepare_names(home: Path) -> Callable[[list[str]], None]:
    from tests.transfers import add, open_registry

    registry = open_registry(home)
    add(registry, "base")

    def attempt(paths: list[str]) -> None:
        (name,) = paths
        asked: tuple[Callable[[], object], ...] = (
            lambda: registry.history(name),
            lambda: registry.version(name),
            lambda: registry.path(name),
            lambda: registry.path(f"base@{name}"),
            lambda: registry.set_alias(f"base@{name}", "base@v1"),
            lambda: registry.set_alias(name, "base@v1"),
            lambda: registry.retire(name),
        )
        for ask in asked:
            try:
                ask()
            except RegistryError as error:
                if not error.message.isprintable():
                    raise ValueError(f"its message is no line: {error.message!r}") from error
        add_named(registry, name)

    def add_named(registry: Registry, name: str) -> None:
        registry.register(name, home / "nothing", parity="skip")

    return attempt


def _prepare_tokenizers(home: Path) -> Callable[[list[str]], None]:
    from tests.checkpoints import make_tokenizer

    folder = home / "folder"
    with quiet():
        make_tokenizer().save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    whole = json.loads(config.read_text())
    load_tokenizer(folder)  # which imports
    keys = (
        "vocab_file",
        "tokenizer_file",
        "name_or_path",
        "_name_or_path",
        "merges_file",
        "chat_template_file",
        "tokenizer_class",
    )

    def attempt(paths: list[str]) -> None:
        (path,) = paths
        key = keys[len(path) % len(keys)]
        config.write_text(json.dumps(whole | {key: path}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_tokenizer(folder)

    return attempt


def _prepare_exports(home: Path) -> Callable[[list[str]], None]:
    from tests.transfers import add, open_registry

    laptop = open_registry(home / "laptop")
    add(laptop, "base")
    laptop.export_versions("base", target=home / "whole")
    laptop.close()
    team = open_registry(home / "team")
    team.models()
    places = ("files", "model", "digest", "operation_id", "record", "blob")

    def attempt(paths: list[str]) -> None:
        (path,) = paths
        folder = home / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(home / "whole", folder)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        (entry,) = manifest["records"]
        record = json.loads((folder / "records" / f"{entry['digest']}.json").read_bytes())
        place = places[len(path) % len(places)]
        if place in ("files", "digest"):
            record["files"][0]["name" if place == "files" else "digest"] = path
        elif place in ("model", "operation_id"):
            record[place] = path
        elif place == "blob":
            manifest["blobs"][0]["digest"] = path
        text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        entry |= {"digest": path if place == "record" else hashlib.sha256(text).hexdigest(), "size_bytes": len(text)}
        if place != "record":
            (folder / "records" / f"{entry['digest']}.json").write_bytes(text)
        (folder / MANIFEST).write_bytes(encode(manifest))
        team.import_versions(folder)

    return attempt
