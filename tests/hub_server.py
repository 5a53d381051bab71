"""A hub of its own for tests: a real HTTP server with what huggingface_hub asks of one, and ways to misbehave.

As on the hub, large files are Git LFS files, with a SHA-256; smaller ones have the SHA-1 of a git blob.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 20_000


@dataclass
class FakeHub:
    """Context manager; `url` is its endpoint. `repos`: files by repository; all are at one commit, branch main.

    cut_after: the n-th connection for a file's content ends after so many bytes, for each n there is a number.
    damaged: names of files that arrive with one bit changed. gated: repositories that want a token. requests: what
    came, as (method, path, Range, Authorization). redirects: contents are elsewhere, as the hub's large files.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    knows_ranges: bool = True
    redirects: bool = False
    stall_after: int | None = None
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    commit: str = "c0ffee" + 34 * "0"

    def __enter__(self) -> FakeHub:
        hub, self._go_on = self, threading.Event()

        class Handler(_Handler):
            fake = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo: str, folder: Path, *names: str) -> dict[str, bytes]:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if not names or path.name in names}
        self.repos[repo] = files
        return files

    def fetched(self) -> list[tuple[str, str | None]]:
        """Contents asked for, as (file, Range)."""
        return [(path.rsplit("/", 1)[-1], span) for _, path, span, _ in self.requests if "/resolve/" in path]

    def stall(self) -> None:
        """Send nothing more until the hub is left; a test meanwhile kills who waits."""
        self.stalled.set()
        self._go_on.wait()


def digests(name: str, content: bytes) -> dict[str, object]:
    """An entry of a listing."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
    if len(content) >= LARGE_BYTES:
        entry["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return entry


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Who has read enough hangs up; that is no fault to print."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.requests.append((self.command, path, self.headers["Range"], self.headers["Authorization"]))
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        content = re.fullmatch(r"(?:/cdn)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = listing or content
        repo = self.fake.repos.get(found[1]) if found else None
        if found is None or repo is None:
            self._error(401 if self.headers["Authorization"] is None else 404, "RepoNotFound")
        elif found[2] not in ("main", self.fake.commit):
            self._error(404, "RevisionNotFound")
        elif listing:
            files = [digests(name, data) for name, data in repo.items()]
            body = json.dumps({"id": found[1], "sha": self.fake.commit, "siblings": files}).encode()
            self._send(200, body, {"Content-Type": "application/json"})
        elif found[1] in self.fake.gated and self.headers["Authorization"] != "Bearer hf_let_me_in":
            self._error(403, "GatedRepo")
        elif self.fake.redirects and not path.startswith("/cdn/"):
            self._send(302, b"", {"Location": f"/cdn{self.path}"})
        elif found[3] not in repo:
            self._error(404, "EntryNotFound")
        else:
            self._content(found[3], repo[found[3]])

    def _content(self, name: str, data: bytes) -> None:
        entry = digests(name, data)
        lfs = entry.get("lfs")
        etag = lfs["sha256"] if isinstance(lfs, dict) else entry["blobId"]
        if name in self.fake.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": self.fake.commit}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if span and self.fake.knows_ranges:
            start = int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206, data[start:], headers)
        else:
            self._send(200, data, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if "ETag" in headers and len(body) >= LARGE_BYTES:
            if self.fake.stall_after is not None:
                self.wfile.write(body[: self.fake.stall_after])
                self.wfile.flush()
                self.fake.stall()
                self.close_connection = True
                return
            if self.fake.cut_after:
                body = body[: self.fake.cut_after.pop(0)]
                self.close_connection = True
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})
