"""A proxy before a Postgres server that strikes at a chosen step: it cuts the connection there, or swallows everything.

It reads the client's messages (https://www.postgresql.org/docs/current/protocol-message-formats.html) to know the step.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy

STARTUP = "startup"


@dataclass
class Strike:
    """Cut or hang, once, at the first statement that holds the text `step`.

    `before` the server sees it, or `after` it answered, which then never arrives.
    """

    step: str
    when: Literal["before", "after"]
    how: Literal["cut", "hang"] = "cut"
    struck: threading.Event = field(default_factory=threading.Event)


class PostgresProxy:
    """Listens on a port of its own; `url` is the database behind it."""

    def __init__(self, url: str) -> None:
        parsed = sqlalchemy.make_url(url)
        host = str(parsed.query.get("host") or parsed.host)
        port = parsed.port or 5432
        self._behind = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        query = {"sslmode": "disable", "gssencmode": "disable"}
        self._url = parsed.set(host="127.0.0.1", port=self._server.getsockname()[1], query=query)
        self._strike: Strike | None = None
        self._open: set[socket.socket] = set()
        self.swallows_all = False
        self.n_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, **query: str) -> str:
        """Return the URL through the proxy, with more in its query."""
        return self._url.update_query_dict(query).render_as_string(hide_password=False)

    def strike(self, strike: Strike) -> Strike:
        """Lie in wait for a step."""
        self._strike = strike
        return strike

    def swallow_after(self, strike: Strike) -> None:
        """Swallow everything from that strike on, on new connections too."""

        def wait() -> None:
            strike.struck.wait()
            self.swallows_all = True

        threading.Thread(target=wait, daemon=True).start()

    def close(self) -> None:
        """Stop, and cut what is open."""
        self._server.close()
        for one in list(self._open):
            _cut(one)

    def __enter__(self) -> PostgresProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                self.n_connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX if isinstance(self._behind, str) else socket.AF_INET)
        self._open |= {client, server}
        pair = _Pair(client, server)
        with contextlib.suppress(OSError, EOFError):
            server.connect(self._behind)
            threading.Thread(target=self._answer, args=(pair,), daemon=True).start()
            for text, message in _read_messages(client):
                if self.swallows_all:
                    pair.is_mute = True
                if pair.is_mute:
                    continue
                strike = self._strike
                if strike is not None and strike.step in text and not strike.struck.is_set():
                    self._strike = None
                    if strike.when == "before":
                        pair.fall(strike)
                        continue
                    pair.waiting = strike
                server.sendall(message)
        if not pair.is_mute:
            pair.cut()

    def _answer(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.server.recv(65536):
                if pair.waiting is not None:
                    pair.fall(pair.waiting)
                if not pair.is_mute and not self.swallows_all:
                    pair.client.sendall(data)
        if not pair.is_mute:
            pair.cut()


@dataclass
class _Pair:
    client: socket.socket
    server: socket.socket
    is_mute: bool = False
    waiting: Strike | None = None

    def fall(self, strike: Strike) -> None:
        self.waiting = None
        self.is_mute = True
        strike.struck.set()  # first: who is cut off may have tried again and be done before this thread goes on
        if strike.how == "cut":
            self.cut()

    def cut(self) -> None:
        _cut(self.client)
        _cut(self.server)


def _cut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def _read_messages(client: socket.socket) -> Iterator[tuple[str, bytes]]:
    """Give each message with its text; the first, which asks to be let in, has none and is called startup."""
    head = _read(client, 4)
    yield STARTUP, head + _read(client, struct.unpack("!I", head)[0] - 4)
    while True:
        head = _read(client, 5)
        body = _read(client, struct.unpack("!I", head[1:])[0] - 4)
        yield body.decode(errors="replace") if head[:1] in (b"Q", b"P") else "", head + body


def _read(one: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = one.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return data
