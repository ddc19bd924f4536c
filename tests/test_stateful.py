"""Operations in any order against a model, as `make faults` runs it, with fewer steps; and that it can fail."""

from __future__ import annotations

import pytest

from registry.store import LocalStore
from tests.faults.stateful import run_machines


def test_any_order() -> None:
    run_machines(2, 12, seed=6)


def test_broken_code_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs that are never healed are found by the model."""
    publish = LocalStore.publish

    def publish_what_is_missing(self: LocalStore, files: object) -> None:
        publish(self, [file for file in files if not self.blob_path(file.digest).exists()])

    monkeypatch.setattr(LocalStore, "publish", publish_what_is_missing)
    with pytest.raises(AssertionError):
        run_machines(10, 20, seed=1)
