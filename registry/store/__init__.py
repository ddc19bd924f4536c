"""Where the blobs are."""

from registry.settings import Settings
from registry.store.local import LocalStore, StagedFile
from registry.store.stamps import Stamps

__all__ = ["LocalStore", "StagedFile", "open_store"]


def open_store(settings: Settings) -> LocalStore:
    """Open the store that the settings name: a folder, or a bucket with a folder of this machine in front of it."""
    stamps = Stamps(settings.stamps)
    if not isinstance(settings.store, str):
        return LocalStore(settings.store, stamps)
    from registry.store.bucket import Bucket
    from registry.store.object_url import parse_object_url
    from registry.store.objects import ObjectStore
    from registry.store.room import CacheRoom

    url = parse_object_url(settings.store)
    root = settings.store_cache / url.cache_name
    bucket = Bucket(url, allow_http=settings.store_http)
    return ObjectStore(bucket, root, stamps, CacheRoom(root, settings.store_cache_bytes))
