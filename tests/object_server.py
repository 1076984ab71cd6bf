"""A local S3 server (moto's) behind a proxy that injects faults into real HTTP answers."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "photos"


class FaultyProxy:
    """Forwards requests to a server. `share` of them get one of `faults` instead of a sound answer.

    Faults: ``busy`` (503 SlowDown), ``silent`` (no answer before the client gives up), ``cut`` (the answer
    ends in the middle of its body), ``reset`` (the connection is closed), ``lost`` (the request is carried
    out, and its answer is lost).
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self.target = (host, port)
        self.faults: tuple[str, ...] = ()
        self.share = 0.0
        self.late_s = 0.0
        """Age of the listings that are answered."""
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._listings: dict[str, list[tuple[float, Any]]] = {}
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def faulty(self, *faults: str, share: float) -> Iterator[None]:
        self.faults, self.share = faults, share
        try:
            yield
        finally:
            self.faults, self.share = (), 0.0

    def draw(self) -> str:
        with self._lock:
            if self.faults and self._random.random() < self.share:
                fault = self._random.choice(self.faults)
                self.injected[fault] += 1
                return fault
            return ""

    def listed(self, path: str, answer: Any) -> Any:
        """The answer that the listing had `late_s` ago; the first one if it was not listed then."""
        with self._lock:
            past = self._listings.setdefault(path, [])
            past.append((time.monotonic(), answer))
            if not self.late_s:
                return answer
            old = [one for moment, one in past if moment <= time.monotonic() - self.late_s]
            return old[-1] if old else past[0][1]

    def forward(self, method: str, path: str, headers: Any, body: bytes) -> Any:
        connection = http.client.HTTPConnection(*self.target, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                with proxy._lock:
                    proxy.requests[self.command] += 1
                body = self._body()
                fault = proxy.draw()
                if fault == "silent":
                    proxy.stopping.wait(3)
                if fault in ("silent", "reset"):
                    self.close_connection = True
                    return
                if fault == "busy":
                    text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                    self._answer(503, [("Content-Type", "application/xml")], text)
                    return
                status, headers, content = proxy.forward(self.command, self.path, self.headers, body)
                if "list-type=2" in self.path and status == 200:
                    status, headers, content = proxy.listed(self.path, (status, headers, content))
                if fault == "lost":
                    self.close_connection = True
                    return
                self._answer(status, headers, content, cut=fault == "cut")

            def _body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    del self.headers["Transfer-Encoding"]
                    self.headers["Content-Length"] = str(sum(map(len, parts)))
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _answer(self, status: int, headers: Any, content: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                dropped = ("transfer-encoding", "connection", "content-length")
                length = str(len(content))
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = value  # of a HEAD
                    if name.lower() not in dropped:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.close_connection = True

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        return Handler
