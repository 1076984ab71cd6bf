"""A local S3 server (moto's) behind a proxy that injects faults into real HTTP answers."""

from __future__ import annotations

import http.client
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BUCKET = "photos"


class QuietServer(ThreadingHTTPServer):
    """A server that prints no traceback if a client closes its connection, for instance after a time-out."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FaultyProxy:
    """Forwards requests to a server. `share` of them get one of `faults` instead of a sound answer.

    Faults: ``busy`` (503 SlowDown), ``silent`` (no answer before the client gives up), ``cut`` (the answer
    ends in the middle of its body), ``reset`` (the connection is closed), ``lost`` (the request is carried
    out, and its answer is lost), ``flip`` (a bit of the body is changed).
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self.target = (host, port)
        self.faults: tuple[str, ...] = ()
        self.share = 0.0
        self.late = False
        """Whether listings are answered as they were before this was set."""
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self.injected: Counter[str] = Counter()
        self._listings: dict[str, Any] = {}
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.server = QuietServer(("127.0.0.1", 0), self._handler())
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
        """The answer, or the last one before listings became late."""
        with self._lock:
            if not self.late:
                self._listings[path] = answer
            return self._listings.get(path, answer)

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
                    text = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
                    self._answer(503, [("Content-Type", "application/xml")], text)
                    return
                status, headers, content = proxy.forward(self.command, self.path, self.headers, body)
                if "list-type=2" in self.path and status == 200:
                    status, headers, content = proxy.listed(self.path, (status, headers, content))
                if fault == "lost":
                    self.close_connection = True
                    return
                if fault == "flip" and content and "/v1/" in self.path and ".h5" in self.path:
                    place = len(content) // 2
                    content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
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
                    proxy.sent += len(content)
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.close_connection = True

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        return Handler


@dataclass
class Objects:
    """An object store for a test, empty at its beginning."""

    proxy: FaultyProxy
    client: Any
    address: str

    def put(self, name: str, data: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        return f"s3://{BUCKET}/{name}"

    def upload(self, folder: Path, name: str) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{name}"

    def names(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]


@pytest.fixture(scope="session")
def object_server() -> Iterator[Objects]:
    """moto's S3 server behind the proxy, named in the environment as a user would."""
    for package in ("s3fs", "moto", "flask"):
        pytest.importorskip(package, reason="needs the extra featx[remote], and moto[server]")
    import boto3
    from moto.server import ThreadedMotoServer

    from featx.remote import access

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        proxy = FaultyProxy(*server.get_host_and_port())
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        patch.setattr(access, "READ_S", 1.0)
        patch.setattr(access, "FIRST_WAIT_S", 0.01)
        client = boto3.client("s3", endpoint_url="http://{}:{}".format(*server.get_host_and_port()))
        client.create_bucket(Bucket=BUCKET)
        try:
            yield Objects(proxy, client, f"s3://{BUCKET}")
        finally:
            proxy.close()
            server.stop()
            access._made_file_system.cache_clear()


@pytest.fixture
def objects(object_server: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """The object store without objects, and a folder of copies of its own."""
    monkeypatch.setenv("FEATX_REMOTE_CACHE", str(tmp_path / "copies"))
    for name in object_server.names():
        object_server.client.delete_object(Bucket=BUCKET, Key=name)
    object_server.proxy.requests.clear()
    object_server.proxy.injected.clear()
    object_server.proxy.late = False
    object_server.proxy._listings.clear()
    return object_server
