"""A local HTTP server that answers as the Hugging Face Hub does, with the faults that a test asks for.

It speaks what huggingface_hub needs: a model's branches, its info at a revision with the digests of its files, and
the files themselves, the large ones by a redirect to another host (as the Hub's CDN is), with ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>[^/]+))?")
_REFS = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)/refs")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>[^/]+)")
_CDN = re.compile(r"/cdn/(?P<digest>[0-9a-f]{64})")
_LFS = (".safetensors", ".bin", ".model")


def digest_as_git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    """One repository: which commit each branch is, and what each commit holds."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    method: str
    path: str
    range: str | None
    has_token: bool
    n_bytes: int


class FakeHub:
    """The repositories, the faults, and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.gated: set[str] = set()  # asks for a token that has been granted access, which none has
        self.private: set[str] = set()
        self.token: str | None = None  # the one that is right, if a repository asks for one
        self.status: int | None = None  # answer everything with it
        self.lfs: set[str] = set()  # files kept with LFS besides those that always are
        self.page: bytes | None = None  # answer everything with it, as a proxy's log-in page does
        self.cuts: dict[str, list[int]] = {}  # file name -> after how many bytes the next answers break off
        self.served: dict[str, bytes] = {}  # file name -> what is served instead of what is stated
        self.on_info: Callable[[], object] | None = None  # called once, after a model was described
        self.no_ranges = False
        self.delay = 0.0
        self.connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave early are meant
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        """Another origin than the endpoint's, to which no token may go."""
        return f"http://localhost:{self.port}"

    def push(self, repo: str, folder: Path, branch: str = "main", **more: bytes) -> str:
        """Make the files of `folder` the newest commit of a branch; return the commit."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()} | more
        listing = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())]
        commit = hashlib.sha1(repr(listing).encode(), usedforsecurity=False).hexdigest()
        one = self.repos.setdefault(repo, Repo())
        one.commits[commit] = files
        one.branches[branch] = commit
        return commit

    def fetched(self, name: str) -> int:
        """How many bytes of a file's body were sent."""
        return sum(one.n_bytes for one in self.requests if one.method == "GET" and one.path.endswith(name))

    def close(self) -> None:
        """Stop answering, on connections that are open too; also twice."""
        self._server.shutdown()
        for one in list(self.connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        time.sleep(self.hub.delay)
        path = unquote(urlsplit(self.path).path)
        if self.hub.status is not None:
            self._refuse(self.hub.status, None)
        elif self.hub.page is not None:
            self._send(200, self.hub.page, {"Content-Type": "text/html"}, "")
        elif match := _CDN.fullmatch(path):
            self._serve_large(match["digest"])
        elif match := _REFS.fullmatch(urlsplit(self.path).path):
            self._list_refs(unquote(match["repo"]))
        elif match := _INFO.fullmatch(urlsplit(self.path).path):
            self._describe(unquote(match["repo"]), unquote(match["revision"] or "main"))
        elif match := _RESOLVE.fullmatch(urlsplit(self.path).path):
            self._resolve(unquote(match["repo"]), unquote(match["revision"]), unquote(match["name"]))
        else:
            self._refuse(404, None)

    def _is_large(self, name: str) -> bool:
        return name.endswith(_LFS) or name in self.hub.lfs

    def _find(self, repo: str, revision: str, *, to_read: bool) -> tuple[str, dict[str, bytes]] | None:
        token = self.headers.get("Authorization")
        granted = self.hub.token is not None and token == f"Bearer {self.hub.token}"
        one = self.hub.repos.get(repo)
        if one is None or (repo in self.hub.private and not granted):
            self._refuse(404 if token else 401, "RepoNotFound")
        elif repo in self.hub.gated and to_read and not granted:
            self._refuse(403 if token else 401, "GatedRepo")
        else:
            commit = one.branches.get(revision, revision)
            if commit in one.commits:
                return commit, one.commits[commit]
            self._refuse(404, "RevisionNotFound")
        return None

    def _list_refs(self, repo: str) -> None:
        if self._find(repo, "main", to_read=False) is None:
            return
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self.hub.repos[repo].branches.items()
        ]
        body = json.dumps({"branches": branches, "converts": [], "tags": []}).encode()
        self._send(200, body, {"Content-Type": "application/json"}, "")

    def _describe(self, repo: str, revision: str) -> None:
        found = self._find(repo, revision, to_read=False)
        if found is None:
            return
        commit, files = found
        siblings = []
        for name, content in files.items():
            one: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": digest_as_git(content)}
            if self._is_large(name):
                digest = hashlib.sha256(content).hexdigest()
                one["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(one)
        body = json.dumps({"_id": "0", "id": repo, "sha": commit, "siblings": siblings}).encode()
        on_info, self.hub.on_info = self.hub.on_info, None
        if on_info:
            on_info()
        self._send(200, body, {"Content-Type": "application/json"}, "")

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._find(repo, revision, to_read=True)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content = files[name]
        digest = hashlib.sha256(content).hexdigest()
        if self._is_large(name):
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.cdn}/cdn/{digest}?name={name}",
            }
            self._send(302, b"", headers, "")
        else:
            headers = {"X-Repo-Commit": commit, "ETag": f'"{digest_as_git(content)}"'}
            self._send(200, self.hub.served.get(name, content), headers, name)

    def _serve_large(self, digest: str) -> None:
        name = self.path.rpartition("name=")[2]
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                content = files.get(name)
                if content is not None and hashlib.sha256(content).hexdigest() == digest:
                    self._send(200, self.hub.served.get(name, content), {"ETag": f'"{digest}"'}, name)
                    return
        self._refuse(404, None)

    def _send(self, status: int, body: bytes, headers: dict[str, str], name: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200 and not self.hub.no_ranges:
            start, end = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
            status, body = 206, body[start : end + 1]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.hub.cuts.get(name, []) if self.command == "GET" else []
        if cut:
            body = body[: cut.pop(0)]
            self.close_connection = True
        if self.command == "GET":
            try:
                self.wfile.write(body)
            except OSError:  # the other side had read enough
                self.close_connection = True
        path = f"/cdn/{name}" if self.path.startswith("/cdn/") else urlsplit(self.path).path
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), "Authorization" in self.headers, len(body))
        )

    def _refuse(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b"", {**(headers or {}), **extra}, "")
