"""Links and other things that are no files, and names that are no names."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from tests.hostile.case import ACCEPTED, SNAPSHOT, Case, Make, Place

LINKS, ODD = "B8 links", "B8 what is no file"
WEIGHTS = "model.safetensors"


def _link_out(name: str, *, absolute: bool = True) -> Make:
    """Let a file of the folder be a link to somebody's secret."""

    def make(place: Place) -> None:
        path = place.source / name
        path.unlink(missing_ok=True)
        path.symlink_to(place.secret if absolute else Path("..") / "outside" / place.secret.name)

    return make


def _move_out(name: str) -> Make:
    """Let a file be a link to a good one elsewhere."""

    def make(place: Place) -> None:
        shutil.move(place.source / name, place.outside / name)
        (place.source / name).symlink_to(place.outside / name)

    return make


def _link_within(place: Place) -> None:
    (place.source / WEIGHTS).rename(place.source / "weights-of-step-7")
    (place.source / WEIGHTS).symlink_to("weights-of-step-7")


def _loop(place: Place) -> None:
    (place.source / "tokenizer_config.json").unlink()
    (place.source / "tokenizer_config.json").symlink_to("tokenizer_config.json")


def _chain(place: Place) -> None:
    """A link within the folder to a link that leads out of it."""
    (place.source / "tokenizer_config.json").unlink()
    (place.source / "tokenizer_config.json").symlink_to("inner")
    (place.source / "inner").symlink_to(place.secret)


def _link_unread(place: Place) -> None:
    """What is not read may be what it likes."""
    (place.source / "runs").symlink_to(place.outside)
    (place.source / "events.out.tfevents").symlink_to(place.secret)
    (place.source / "dangling.log").symlink_to("/nonexistent")


def _linked_folder(place: Place) -> Path:
    link = place.source.parent / "latest"
    link.symlink_to(place.source)
    return link


def _linked_parent(place: Place) -> Path:
    link = place.source.parent.parent / f"{place.source.parent.name}-link"
    link.symlink_to(place.source.parent)
    return link / place.source.name


def _linked_file(place: Place) -> Path:
    link = place.source.parent / "link.gguf"
    link.symlink_to(place.source / "model.gguf")
    return link


def _hub_blob_out(place: Place) -> None:
    """A blob of the Hub cache is itself a link."""
    blob = (place.source / SNAPSHOT / "tokenizer_config.json").resolve()
    blob.unlink()
    blob.symlink_to(place.secret)


def _hub_up(place: Place) -> None:
    """A snapshot's file leads beside the blobs of its repository."""
    path = place.source / SNAPSHOT / "tokenizer_config.json"
    (place.source / "models--org--name" / "refs").mkdir()
    shutil.copy(path, place.source / "models--org--name" / "refs" / "x")
    path.unlink()
    path.symlink_to("../../refs/x")


def _hub_other_repo(place: Place) -> None:
    path = place.source / SNAPSHOT / "tokenizer_config.json"
    other = place.source / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    shutil.copy(path, other / "x")
    path.unlink()
    path.symlink_to("../../../models--org--private/blobs/x")


def _pieces_out(place: Place) -> None:
    shutil.move(place.source / "pytorch_model_fsdp_0", place.outside / "pieces")
    (place.source / "pytorch_model_fsdp_0").symlink_to(place.outside / "pieces")


def _piece_out(place: Place) -> None:
    piece = next((place.source / "pytorch_model_fsdp_0").glob("*.distcp"))
    shutil.move(piece, place.outside / piece.name)
    piece.symlink_to(place.outside / piece.name)


def _hard_link(place: Place) -> None:
    """Nobody can tell a hard link from a file; it is a file whose bytes were within reach of whoever made it."""
    os.link(place.source / WEIGHTS, place.outside / "other-name")


def _replace(name: str, how: str) -> Make:
    """Put something there that is no file."""

    def make(place: Place) -> None:
        path = place.source / name
        path.unlink(missing_ok=True)
        if how == "pipe":
            os.mkfifo(path)
        elif how == "device":
            os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
        elif how == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                os.chdir(place.source)  # the path of a socket must be short
                server.bind(name)
        elif how == "folder":
            path.mkdir()
            (path / WEIGHTS).write_bytes(b"x")
        elif how == "link-to-a-device":
            path.symlink_to("/dev/zero")

    return make


def _give(how: str) -> Make:
    """Give something that is no file as the source."""

    def make(place: Place) -> Path:
        path = place.source / "given.safetensors"
        _replace(path.name, how)(place)
        return path

    return make


def _unreadable(*names: str) -> Make:
    def make(place: Place) -> None:
        for name in names:
            (place.source / name).chmod(0)

    return make


def _named(name: bytes, content: bytes = b"x") -> Make:
    """Put a file of this name beside the others."""

    def make(place: Place) -> None:
        with open(os.path.join(os.fsencode(place.source), name), "wb") as file:  # noqa: PTH118, PTH123 (no text)
            file.write(content)

    return make


def _many(place: Place) -> None:
    for index in range(100_000):
        os.close(os.open(f"{place.source}/{index}.tmp", os.O_CREAT | os.O_WRONLY))


def _training_state(place: Place) -> None:
    """What Trainer leaves beside: pickles that are never opened, not even when they mean harm."""
    from tests.hostile.pickled import make_gadget

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"):
        make_gadget(place.source / name, place.sentinel, "system", "zip")


def _git(place: Place) -> None:
    """A folder to work in whose git would run something."""
    folder = place.source / ".git"
    for name in ("objects", "refs", "hooks"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    run = f"touch {place.sentinel}"
    (folder / "config").write_text(
        f'[core]\n\tfsmonitor = "{run}"\n\tsshCommand = "{run}"\n\tpager = "{run}"\n\teditor = "{run}"\n'
        f'[alias]\n\trev-parse = "!{run}"\n[filter "x"]\n\tclean = "{run}"\n'
    )
    for hook in ("post-checkout", "reference-transaction", "pre-auto-gc"):
        (folder / "hooks" / hook).write_text(f"#!/bin/sh\n{run}\n")
        (folder / "hooks" / hook).chmod(0o755)


_SECRETS = (
    WEIGHTS,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "trainer_state.json",
    "pytorch_model.bin",
    "tokenizer.model",
    "added_tokens.json",
)
UNSAFE = "unsafe-artifact"
CASES = [
    *(Case(f"link-{name}", LINKS, _link_out(name), UNSAFE, "leads out") for name in _SECRETS),
    Case("link-relative", LINKS, _link_out("chat_template.jinja", absolute=False), UNSAFE, "leads out"),
    Case("link-to-good-weights", LINKS, _move_out(WEIGHTS), UNSAFE, "leads out"),
    Case("link-of-a-link", LINKS, _chain, UNSAFE, "leads out"),
    Case("link-to-itself", LINKS, _loop, UNSAFE, "leads nowhere"),
    Case("link-shard", LINKS, _move_out("model-00001-of-00003.safetensors"), UNSAFE, "leads out", "shards"),
    Case("link-adapter", LINKS, _move_out("adapter_model.safetensors"), UNSAFE, "leads out", "adapter"),
    Case("link-hooked", LINKS, _move_out(WEIGHTS), UNSAFE, "leads out", "hooked"),
    Case("link-pickle", LINKS, _move_out("pytorch_model.bin"), UNSAFE, "leads out", "pickle"),
    Case("link-pieces", LINKS, _pieces_out, UNSAFE, "leads out", "pieces"),
    Case("link-piece", LINKS, _piece_out, UNSAFE, "leads out", "pieces"),
    Case("hub-blob-out", LINKS, _hub_blob_out, UNSAFE, "leads out", "hub-cache"),
    Case("hub-beside-blobs", LINKS, _hub_up, UNSAFE, "leads out", "hub-cache"),
    Case("hub-other-repository", LINKS, _hub_other_repo, UNSAFE, "leads out", "hub-cache"),
    Case("hub-as-it-should-be", LINKS, lambda _: None, ACCEPTED, base="hub-cache"),
    Case("link-within", LINKS, _link_within, ACCEPTED),
    Case("link-unread", LINKS, _link_unread, ACCEPTED),
    Case("linked-folder", LINKS, _linked_folder, ACCEPTED),
    Case("linked-parent", LINKS, _linked_parent, ACCEPTED),
    Case("linked-gguf", LINKS, _linked_file, ACCEPTED, base="gguf"),
    Case("hard-link", LINKS, _hard_link, ACCEPTED),
    *(
        Case(f"{how}-{name}", ODD, _replace(name, how), code)
        for how in ("pipe", "device", "socket", "folder")
        for name, code in {WEIGHTS: "source-not-found", "config.json": "source-not-found"}.items()
    ),
    Case("pipe-tokenizer", ODD, _replace("tokenizer.json", "pipe"), ACCEPTED, finding="no-tokenizer"),
    Case("pipe-trainer-state", ODD, _replace("trainer_state.json", "pipe"), ACCEPTED),
    Case("pipe-python", ODD, _replace("evil.py", "pipe"), ACCEPTED, finding="executable-code"),
    Case("link-to-a-device", ODD, _replace("config.json", "link-to-a-device"), UNSAFE, "leads out"),
    *(Case(f"given-{how}", ODD, _give(how), "source-not-found") for how in ("pipe", "device", "socket")),
    Case("unreadable-weights", ODD, _unreadable(WEIGHTS), "source-not-found", "cannot be read", as_nobody=True),
    Case("unreadable-config", ODD, _unreadable("config.json"), "source-not-found", "cannot be read", as_nobody=True),
    Case(
        "unreadable-tokenizer", ODD, _unreadable("tokenizer.json"), "source-not-found", "cannot be read", as_nobody=True
    ),
    Case("unreadable-folder", ODD, _unreadable("."), "source-not-found", "cannot be read", as_nobody=True),
    Case("name-not-utf-8", ODD, _named(b"model-\xff\xfe.safetensors"), ACCEPTED),
    Case("name-not-utf-8-python", ODD, _named(b"\xff\xfe.py"), ACCEPTED, finding="executable-code"),
    Case("name-with-newline", ODD, _named(b"model-\n\x1b[2J.safetensors"), ACCEPTED),
    Case("name-of-an-option", ODD, _named(b"--help"), ACCEPTED),
    Case("name-of-255-bytes", ODD, _named(b"a" * 255), ACCEPTED),
    Case("a-hundred-thousand-files", ODD, _many, ACCEPTED),
    Case("training-state", "B4 pickles never opened", _training_state, ACCEPTED),
    Case("git", "B10 code beside the weights", _git, ACCEPTED),
]
