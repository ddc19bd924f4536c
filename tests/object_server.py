"""A real S3 server (moto's) over HTTP, and a proxy in front of it that does what networks and services do wrong."""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from registry.store.bucket import Bucket
from registry.store.object_url import ObjectUrl, parse_object_url
from registry.store.objects import ObjectStore
from registry.store.room import CacheRoom
from registry.store.stamps import Stamps

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-never-printed",
    "AWS_REGION": "us-east-1",
}
Action = Literal["cut-request", "lost-reply", "cut-reply", "hang", "altered-reply", "short-reply", "status"]
_XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>made by the proxy</Message></Error>"


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path?query` matches `to`."""

    action: Action
    to: str = "."
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    struck: int = 0

    def matches(self, line: str) -> bool:
        return self.times > 0 and re.search(self.to, line) is not None


@dataclass
class FaultProxy:
    """Passes requests on to `port`, unless a fault says otherwise; `lines` are the requests that came.

    Its clock, in the Date of its replies, is `ahead_seconds` ahead, and it does not pass on `dropped_header`.
    `put_bytes` and `got_bytes` count what of blobs was sent and fetched with requests that got through to the server.
    """

    port: int
    faults: list[Fault] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    hang_seconds: float = 30.0
    on_request: Callable[[str], object] | None = None
    connections: set[socket.socket] = field(default_factory=set)
    signed_digests: list[str] = field(default_factory=list)
    ahead_seconds: float = 0
    dropped_header: str = "connection"
    put_bytes: int = 0
    got_bytes: int = 0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections that break are meant
        self.own_port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.own_port}"

    def strike(self, action: Action, to: str = ".", times: int = 1, status: int = 503, code: str = "SlowDown") -> Fault:
        """Have the next requests that match go wrong."""
        fault = Fault(action, to, times, status, code)
        self.faults.append(fault)
        return fault

    def take(self, line: str) -> Fault | None:
        with self._lock:
            self.lines.append(line)
            for fault in self.faults:
                if fault.matches(line):
                    fault.times -= 1
                    fault.struck += 1
                    return fault
        return None

    def count_bytes(self, put: bytes, got: bytes) -> None:
        with self._lock:
            self.put_bytes += len(put)
            self.got_bytes += len(got)

    def wait(self) -> None:
        self._over.wait(self.hang_seconds)

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, line) is not None for line in self.lines)

    def close(self) -> None:
        """Be dead: nobody answers at the endpoint from now on. Also twice."""
        self._over.set()
        self._server.shutdown()
        for one in list(self.connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.proxy.connections.add(self.connection)

    def finish(self) -> None:
        self.proxy.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.proxy.ahead_seconds)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        line = f"{self.command} {self.path}"
        fault = self.proxy.take(line)
        size = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.action == "cut-request":
            self.rfile.read(size // 2)
            self._cut()
            return
        body = self.rfile.read(size)
        if self.command == "PUT":
            self.proxy.signed_digests.append(self.headers.get("x-amz-content-sha256") or "none")
        if fault is not None and fault.action == "hang":
            self.proxy.wait()
            self._cut()
            return
        if fault is not None and fault.action == "status":
            self._reply(fault.status, {}, _XML.format(fault.code).encode())
            return
        status, headers, content = self._pass_on(body)
        if self.proxy.on_request is not None:
            self.proxy.on_request(line)
        if fault is not None and fault.action == "lost-reply":
            self._cut()
        elif fault is not None and fault.action == "cut-reply":
            self._reply(status, headers, content[: len(content) // 2], len(content))
            self._cut()
        elif fault is not None and fault.action == "short-reply":
            self._reply(status, headers, content[: len(content) // 2])
        elif fault is not None and fault.action == "altered-reply" and content:
            self._reply(status, headers, content[:-1] + bytes([content[-1] ^ 1]))
        else:
            self._reply(status, headers, content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815

    def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("connection", self.proxy.dropped_header)
            }
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if "/blobs/" in self.path:
                got = content if self.command == "GET" else b""
                self.proxy.count_bytes(body if self.command == "PUT" else b"", got)
            return answer.status, dict(answer.getheaders()), content
        finally:
            connection.close()

    def _reply(self, status: int, headers: dict[str, str], content: bytes, stated: int | None = None) -> None:
        self.send_response(status)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), None)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", length or "0")
        else:
            self.send_header("Content-Length", str(len(content) if stated is None else stated))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class ObjectServer:
    """An S3 server, the name of a bucket that is there, and a proxy in front."""

    port: int
    bucket: str
    proxy: FaultProxy

    def url(self, prefix: str = "team/models", timeout: float = 5.0) -> str:
        """The URL of a store that is reached through the proxy."""
        return f"s3://{self.bucket}/{prefix}?endpoint={self.proxy.endpoint}&region=us-east-1&timeout={timeout:g}"

    def open(self, cache: Path, max_bytes: int | None = None, held: float = 900.0, **options: Any) -> ObjectStore:
        """Open a store with a cache of its own, as another machine would."""
        url: ObjectUrl = parse_object_url(self.url(**options))
        return ObjectStore(Bucket(url), cache, Stamps(cache / "stamps"), CacheRoom(cache, max_bytes, held))

    def ask(self, method: str, path: str = "", body: bytes | None = None) -> bytes:
        """Ask the server itself, past the proxy; it takes any signature."""
        signature = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        headers = {"Authorization": signature, "Content-Length": str(len(body or b"")), "Content-Type": "application/x"}
        url = f"http://127.0.0.1:{self.port}/{self.bucket}{path}"
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def keys(self) -> list[str]:
        """List the keys that are there."""
        return re.findall("<Key>([^<]*)</Key>", self.ask("GET", "?list-type=2").decode())

    def uploads(self) -> list[str]:
        """List the uploads that are not finished."""
        return re.findall("<UploadId>([^<]+)</UploadId>", self.ask("GET", "?uploads").decode())


@contextlib.contextmanager
def run_moto() -> Iterator[int]:
    """Run moto's server; give its port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@contextlib.contextmanager
def make_bucket(port: int) -> Iterator[ObjectServer]:
    """Make an empty bucket, with a proxy in front of the server."""
    proxy = FaultProxy(port)
    server = ObjectServer(port, f"bucket-{uuid.uuid4().hex[:12]}", proxy)
    server.ask("PUT")
    try:
        yield server
    finally:
        proxy.close()
