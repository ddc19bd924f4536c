"""The objects of one bucket, through obstore: every request is bounded in time, and every error is a typed one.

Nothing is done in half: an object is there, whole, or it is not. Big ones are sent in parts, some at a time, so that
memory does not grow with them, and read in ranges, each of which is asked for again if it breaks.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from threading import Thread
from typing import Any

from registry.store.object_errors import describe_error, refuse_forked
from registry.store.object_url import ObjectUrl

PART_BYTES = 8 * 2**20
_MAX_PARTS = 9_000  # S3 takes 10,000
_N_AT_ONCE = 4
_CONNECT_SECONDS = 10.0
_N_RETRIES = 6
_forked_from: list[int] = []  # the process in which obstore began: its threads do not live on in a forked one


@dataclass(frozen=True)
class StoredObject:
    """What the bucket says of one object."""

    key: str
    size_bytes: int
    modified_at: datetime


class Bucket:
    """The objects below a prefix; `allow_http` says whether the endpoint that the environment names is http://."""

    def __init__(self, url: ObjectUrl, *, allow_http: bool = False) -> None:
        self.url = url
        self._allow_http = allow_http or (url.endpoint or "").startswith("http://")

    def find(self, key: str) -> StoredObject | None:
        """Return what is said of an object, or None if there is none in a bucket that is there."""
        import obstore
        from obstore.exceptions import PermissionDeniedError

        with self.typed_errors():
            try:
                return _describe(_beside(obstore.head, self._store, key))
            except PermissionDeniedError:
                self._ask_why()
                raise
            except FileNotFoundError:
                if not self._is_known:
                    self._ask_why()
                    self._is_known = True
                return None

    def put(self, key: str, chunks: Iterable[bytes], size_bytes: int) -> None:
        """Write an object, or leave what is there: what iterating over `chunks` raises keeps it from being finished."""
        import obstore

        parts: Any = chunks
        options: dict[str, Any] = {"use_multipart": False}
        if size_bytes > PART_BYTES:
            options = {"chunk_size": max(PART_BYTES, size_bytes // _MAX_PARTS), "max_concurrency": _N_AT_ONCE}
        else:
            parts = b"".join(chunks)
        with self.typed_errors():
            try:
                if parts is chunks:  # Ctrl-C is heard whenever it asks for more, and then it gives the upload up
                    obstore.put(self._store, key, parts, **options)
                else:
                    _beside(obstore.put, self._store, key, parts, **options)
            except FileNotFoundError as error:  # the bucket, not the object
                if error.filename is not None:
                    raise
                raise describe_error(self.url, error) from error

    def create(self, key: str, content: bytes) -> bool:
        """Write a small object if there is none of that key, and say whether that was so.

        Nothing but the doctor relies on it: some services take the condition and do not heed it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self.typed_errors():
            try:
                _beside(obstore.put, self._store, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    def read(self, key: str, size_bytes: int) -> Iterator[Any]:
        """Give the bytes of an object of this size, in order. Raises FileNotFoundError if there is none."""
        import obstore

        def get(start: int) -> Any:
            end = min(start + PART_BYTES, size_bytes)
            with self.typed_errors():
                return obstore.get_range(self._store, key, start=start, end=end)

        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(_N_AT_ONCE) as pool:
            try:
                for start in range(0, size_bytes, PART_BYTES):
                    waiting.append(pool.submit(get, start))
                    if len(waiting) == _N_AT_ONCE:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Give every object whose key is `prefix`, a slash and more."""
        import obstore

        with self.typed_errors():
            for page in obstore.list(self._store, prefix, chunk_size=1000):
                for one in page:
                    yield _describe(one)

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        import obstore

        with self.typed_errors(), contextlib.suppress(FileNotFoundError):
            _beside(obstore.delete, self._store, key)

    def copy(self, key: str, other: str) -> None:
        """Have the service copy an object. Raises FileNotFoundError if there is none."""
        import obstore

        with self.typed_errors():
            _beside(obstore.copy, self._store, key, other)

    def within(self, seconds: float) -> Bucket:
        """Return the same bucket, whose requests are given up after so many seconds at most."""
        return Bucket(replace(self.url, timeout=min(self.url.timeout, seconds)), allow_http=self._allow_http)

    def connect(self, url: str | None = None, **config: Any) -> Any:
        """Return obstore's own store: of this bucket, or of another `url` reached in the same way."""
        from obstore.store import from_url

        if not _forked_from:
            _forked_from.append(os.getpid())
        if _forked_from[0] != os.getpid():
            raise refuse_forked(self.url)
        open_any: Any = from_url  # which options there are depends on the scheme
        timeout = self.url.timeout
        return open_any(
            url or self.url.place,
            config={**self.url.config(), **config},
            client_options={
                "timeout": timedelta(seconds=timeout),
                "connect_timeout": timedelta(seconds=min(timeout, _CONNECT_SECONDS)),
                "allow_http": self._allow_http,
            },
            retry_config={
                "max_retries": _N_RETRIES,
                "retry_timeout": timedelta(seconds=1.5 * timeout),  # so that what hangs once is asked for once more
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
        )

    @property
    def _store(self) -> Any:
        if _forked_from and _forked_from[0] != os.getpid():
            raise refuse_forked(self.url)
        return self._connected

    @cached_property
    def _connected(self) -> Any:
        return self.connect()

    _is_known = False

    def _ask_why(self) -> None:
        """Raise what is wrong with the bucket or the credentials, if anything: to a HEAD, services do not say."""
        import obstore

        next(iter(obstore.list(self._store, "blobs", chunk_size=1)), None)

    @contextlib.contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Turn what obstore raises into an error of ours; a missing object stays FileNotFoundError."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, ValueError) as error:  # ValueError: what obstore says of a configuration
            raise describe_error(self.url, error) from error


def _beside(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Wait for one request that is made in another thread: obstore, while it waits itself, does not hear Ctrl-C."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work(*args, **options))
        except BaseException as error:  # noqa: BLE001 whatever it is, it is raised where it is waited for
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done.result()


def _describe(found: Any) -> StoredObject:
    return StoredObject(found["path"], int(found["size"]), found["last_modified"])
