"""The pickles of pickled.py, as weights of a folder, an adapter, a state dict by itself; and pieces of FSDP's."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from tests.hostile.case import Case, Make, Place
from tests.hostile.pickled import BEFORE_TORCH, IN_THE_CHILD, Call, gadgets, make_gadget

GADGETS, PREFLIGHT, CHILD, FLIPS, PIECES = (
    "B4 pickle gadgets",
    "B5 pickles, before torch",
    "B5 B6 pickles, in the child",
    "B7 flipped bits",
    "B4 pieces of FSDP's",
)
WEIGHTS = "pytorch_model.bin"


def _write(make: object, name: str = WEIGHTS) -> Make:
    def write(place: Place) -> None:
        (place.source / name).unlink(missing_ok=True)
        make(place.source / name, place.sentinel)  # type: ignore[operator]

    return write


def _gadget(name: str, form: str, file: str = WEIGHTS) -> Make:
    return _write(lambda path, sentinel: make_gadget(path, sentinel, name, form), file)


def _by_itself(name: str, form: str) -> Make:
    def make(place: Place) -> Path:
        path = place.source / "state.pt"
        make_gadget(path, place.sentinel, name, form)
        return path

    return make


def _adapter_gadget(place: Place) -> None:
    (place.source / "adapter_model.safetensors").unlink()
    make_gadget(place.source / "adapter_model.bin", place.sentinel, "system", "zip")


def _cut_behind(place: Place) -> None:
    path = place.source / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def _pieces(make: object) -> Make:
    def write(place: Place) -> None:
        make(place.source / "pytorch_model_fsdp_0", place)  # type: ignore[operator]

    return write


def _metadata_gadget(folder: Path, place: Place) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Call(os.system, f"touch {place.sentinel}")))


def _piece_gadget(folder: Path, place: Place) -> None:
    piece = next(folder.glob("*.distcp"))
    content = pickle.dumps(gadgets(place.sentinel)["exec"], 2)
    piece.write_bytes(content + piece.read_bytes()[len(content) :])


def _lead_out(folder: Path, place: Place) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    piece = next(folder.glob("*.distcp"))
    (place.outside / "x.distcp").write_bytes(piece.read_bytes())
    for one in metadata.storage_data.values():
        one.relative_path = "../../outside/x.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _lie(folder: Path, place: Place) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for one in metadata.storage_data.values():
        one.offset += 10**9
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


_FORMS = ("zip", "legacy", "nested", "raw", "protocol-0", "protocol-4")
CASES = [
    *(
        Case(
            f"gadget-{name}-{form}", GADGETS, _gadget(name, form), "unsafe-artifact", base="pickle", only_register=True
        )
        for name, form in zip(("system", "popen", "eval", "exec", "runpy", "jit"), _FORMS, strict=True)
    ),
    Case("gadget-state-dict", GADGETS, _by_itself("system", "zip"), "unsafe-artifact", only_register=True),
    Case("gadget-adapter", GADGETS, _adapter_gadget, "unsafe-artifact", base="adapter", only_register=True),
    Case("gadget-beside-safetensors", GADGETS, _gadget("system", "zip"), "unsupported-source", only_register=True),
    *(
        Case(f"pickle-{name}", PREFLIGHT, _write(make), code, words, base="pickle")
        for name, (code, words, make) in BEFORE_TORCH.items()
    ),
    *(
        Case(f"pickle-{name}", CHILD, _write(make), code, words, base="pickle", only_register=True)
        for name, (code, words, make) in IN_THE_CHILD.items()
    ),
    Case("cut-behind", FLIPS, _cut_behind, "malformed-artifact", "not whole", "pickle"),
    Case("pieces-metadata", PIECES, _pieces(_metadata_gadget), "unsafe-artifact", base="pieces", only_register=True),
    Case("pieces-piece", PIECES, _pieces(_piece_gadget), "unsafe-artifact", base="pieces", only_register=True),
    Case(
        "pieces-lead-out",
        PIECES,
        _pieces(_lead_out),
        "malformed-artifact",
        "no file of this folder",
        "pieces",
        only_register=True,
    ),
    Case("pieces-lie", PIECES, _pieces(_lie), "malformed-artifact", "shorter", "pieces", only_register=True),
]
IN_CHILDREN = (GADGETS, CHILD, PIECES)
"""The groups that start a process each, which imports torch: seconds apiece."""
