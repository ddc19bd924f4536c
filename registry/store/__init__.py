"""Where the blobs are."""

from registry.store.local import LocalStore, StagedFile

__all__ = ["LocalStore", "StagedFile"]
