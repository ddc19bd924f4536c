"""What moves versions between registries: straight from one to the other, or through a folder or a tar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.errors import InvalidInput, TransferConflict
from registry.methods.opened import OpenedRegistry
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    from typing import BinaryIO

    from registry.transfer.form import Manifest
    from registry.transfer.receive import Terms, Transfer

TAPE = ".tar"
STREAM = "-"
"""As a target or a source: standard output, or standard input."""


class Transferring(OpenedRegistry):
    """Methods that send and receive versions."""

    def push(
        self,
        *refs: str,
        to: OpenedRegistry,
        alone: bool = False,
        name: str | None = None,
        aliases: bool = False,
        verify: bool = False,
        parity: Literal["float64", "float32", "skip"] | None = None,
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> Transfer:
        """Send versions to another registry, with all that they came from; what it has already is not sent again.

        Args:
            refs: the versions.
            to: the other registry, opened.
            alone: send no ancestors; refused unless the other registry has every parent.
            name: what the one model that the refs are of is called there.
            aliases: set its aliases there, too; refused if one means something else there.
            verify: measure parity there again, instead of keeping what was measured here.
            parity: in which precision.
            dry_run: only say what would be done.
            progress: called with the stage and how far it is.

        Raises:
            TransferConflict: a parent is missing there, or a step or an alias is taken.
            ArtifactCorrupt: a blob here is not what it should be.
        """
        from registry.transfer.receive import Terms

        terms = Terms(name, aliases, verify, parity, None, dry_run, to._is_strict)
        return _move(self, to, refs, alone, terms, progress)

    def pull(
        self,
        *refs: str,
        source: OpenedRegistry,
        alone: bool = False,
        name: str | None = None,
        aliases: bool = False,
        verify: bool = False,
        parity: Literal["float64", "float32", "skip"] | None = None,
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> Transfer:
        """Fetch versions of the registry `source`; everything else is as `push` has it, the other way round."""
        from registry.transfer.receive import Terms

        terms = Terms(name, aliases, verify, parity, None, dry_run, self._is_strict)
        return _move(source, self, refs, alone, terms, progress)

    def export_versions(
        self, *refs: str, target: str | Path, alone: bool = False, progress: Progress = no_progress
    ) -> Manifest:
        """Write versions, with all that they came from, into a folder, or into one tar if `target` ends in `.tar`.

        `-` is standard output. The manifest's digest stands for everything in it: give it to whoever imports. A folder
        that was not finished is gone on with, and nothing is overwritten: raises TransferConflict.
        """
        from registry.transfer.folder import export_folder
        from registry.transfer.shipment import typed_errors

        path = Path(target)
        with typed_errors(path):
            if str(target) == STREAM:
                return self._write_tape(refs, sys.stdout.buffer, alone, progress)
            if path.suffix == TAPE:
                return self._write_tape_file(refs, path, alone, progress)
            manifest, _ = export_folder(self.database, self.store, refs, path, alone=alone, progress=progress)
            return manifest

    def import_versions(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        aliases: bool = False,
        verify: bool = False,
        parity: Literal["float64", "float32", "skip"] | None = None,
        expect: str | None = None,
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> Transfer:
        """Receive what `export_versions` wrote; everything in it is checked, and nothing is believed.

        `expect` is the digest that the export had when it was made. Otherwise as `push` has it. Raises MalformedExport
        for what was altered or is not whole.
        """
        from registry.transfer.folder import FolderShipment
        from registry.transfer.receive import Terms, receive
        from registry.transfer.shipment import typed_errors
        from registry.transfer.tape import TapeShipment, open_tape

        self._refuse_older()
        terms = Terms(name, aliases, verify, parity, expect, dry_run, self._is_strict)
        if str(source) != STREAM and Path(source).is_dir():
            with typed_errors(source):
                return receive(self.database, self.store, FolderShipment(Path(source)), terms, progress)
        with typed_errors(source), open_tape(source) as stream, self.store.stage() as scratch:
            return receive(self.database, self.store, TapeShipment(stream, scratch), terms, progress)

    def _write_tape_file(self, refs: tuple[str, ...], path: Path, alone: bool, progress: Progress) -> Manifest:
        from registry.syncing import sync

        if path.exists():
            raise TransferConflict(
                f"{path} is there already.", conflicts=[str(path)], hint="Export into another file, or delete it first."
            )
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as stream:
                manifest = self._write_tape(refs, stream, alone, progress)
            sync(part)
            part.rename(path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
        return manifest

    def _write_tape(self, refs: tuple[str, ...], stream: BinaryIO, alone: bool, progress: Progress) -> Manifest:
        import tempfile

        from registry.transfer.shipment import RegistryShipment
        from registry.transfer.tape import write_tape

        with tempfile.TemporaryDirectory(prefix="lensreg-") as scratch:
            shipment = RegistryShipment(self.database, self.store, refs, alone=alone, scratch=Path(scratch))
            write_tape(shipment, stream, progress)
            stream.flush()
            return shipment.manifest


def _move(
    sender: OpenedRegistry,
    receiver: OpenedRegistry,
    refs: tuple[str, ...],
    alone: bool,
    terms: Terms,
    progress: Progress,
) -> Transfer:
    import tempfile

    from registry.transfer.receive import receive
    from registry.transfer.shipment import RegistryShipment, typed_errors

    if sender.database.url == receiver.database.url:
        raise InvalidInput(
            "The two registries are one and the same.", hint="Name another: --to URL, or --from URL, with its store."
        )
    receiver._refuse_older()
    scratch_folder = tempfile.TemporaryDirectory(prefix="lensreg-")
    with typed_errors(tempfile.gettempdir()), scratch_folder as scratch:
        shipment = RegistryShipment(sender.database, sender.store, refs, alone=alone, scratch=Path(scratch))
        return receive(receiver.database, receiver.store, shipment, terms, progress)
