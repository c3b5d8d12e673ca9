"""A model hub on this machine: the endpoints that downloads use, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file has a SHA-256 etag, as large files on the hub do


class LocalHub:
    """Serves `files[repo][name]`. Use as a context manager; `url` goes into HF_ENDPOINT.

    Attributes:
        log: every request as (method, path, Range header, Authorization header).
        cuts: how often a GET of a large file still ends at `cut_at` bytes of the answer.
        ranges: whether Range is honoured.
        storage: address of another LocalHub that file requests are redirected to.
    """

    def __init__(self, files: dict[str, dict[str, bytes]], *, storage: str | None = None) -> None:
        self.files = files
        self.log: list[tuple[str, str, str | None, str | None]] = []
        self.cuts = 0
        self.cut_at = 0
        self.ranges = True
        self.mute = False
        self.sent = 0
        self.storage = storage
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._quiet = threading.Event()

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quiet.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def gets(self, name: str) -> list[tuple[str, str, str | None, str | None]]:
        return [entry for entry in self.log if entry[0] == "GET" and entry[1].endswith(name)]

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = urlsplit(request.path).path
        asked = request.headers.get("Range")
        self.log.append((request.command, path, asked, request.headers.get("Authorization")))
        request.close_connection = True
        if self.mute:
            self._quiet.wait(30)
            return
        if path == "/api/models":
            return self._send(request, 200, b"[]", {}, body)
        if path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/").removesuffix("/revision/main")
            if repo not in self.files:
                return self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            siblings = [{"rfilename": name} for name in sorted(self.files[repo])]
            listing = {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            return self._send(request, 200, json.dumps(listing).encode(), {}, body)
        repo, _, name = path.strip("/").partition("/resolve/main/")
        content = self.files.get(repo, {}).get(name)
        if content is None:
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        large = len(content) >= LARGE
        etag = (
            hashlib.sha256(content).hexdigest()
            if large
            else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        )
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if self.storage and large:
            return self._send(request, 302, b"", headers | {"Location": self.storage + path}, body)
        status, start = 200, 0
        if asked and self.ranges and body:
            status, start = 206, int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(request, status, content[start:], headers, body, cut=large)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
        body: bool,
        cut: bool = False,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Connection", "close")
        request.end_headers()
        if not body:
            return
        if cut and self.cuts and len(content) > self.cut_at:
            self.cuts -= 1
            content = content[: self.cut_at]
        self.sent += len(content)
        request.wfile.write(content)
