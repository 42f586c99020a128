"""A real S3 endpoint on loopback, and a proxy before it that makes trouble when it is told to."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_REGION": "us-east-1",
}


@contextmanager
def moto(host: str = "127.0.0.1") -> Iterator[str]:
    """Inside, moto's S3 runs; http://host:port of it."""
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"Running on (http://\S+)", line):
                break
        else:
            raise RuntimeError("moto's server did not start")
        # It writes a line a request, which somebody has to take.
        threading.Thread(target=lambda lines: [*lines], args=(server.stderr,), daemon=True).start()
        yield found[1]
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """http://127.0.0.1:port of moto's S3."""
    pytest.importorskip("moto")
    with moto() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The location of a store in a bucket of its own, reached through the environment."""
    for name in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    bucket = f"resurge-{uuid.uuid4().hex[:12]}"
    request(s3_endpoint, "PUT", f"/{bucket}")
    return f"s3://{bucket}/a/store"


@pytest.fixture
def s3_request(s3_endpoint: str) -> Callable[[str, str], bytes]:
    """Asks the server itself: a method and a path."""
    return lambda method, path: request(s3_endpoint, method, path)


def request(endpoint: str, method: str, path: str, body: bytes = b"") -> bytes:
    """The body of a plain answer, which moto gives without a signature."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert answer.status < 300, (answer.status, path)
        return answer.read()
    finally:
        connection.close()


_OF_THE_HOP = {"connection", "content-length", "expect", "transfer-encoding"}


class Proxy(ThreadingHTTPServer):
    """Forwards requests, except the next `failures`, which it answers with `status`.

    Of the next `damages` objects that it hands out, each byte is another.
    """

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.target = urlsplit(target).netloc
        self.failures, self.status, self.damages = 0, 500, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that is killed breaks its connection off: no news."""

    def fails_now(self) -> bool:
        with self.lock:
            if self.failures <= 0:
                return False
            self.failures -= 1
            return True

    def damaged(self, content: bytes) -> bytes:
        with self.lock:
            if self.damages <= 0:
                return content
            self.damages -= 1
            return bytes(byte ^ 1 for byte in content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        body = self.body()
        if body is None:
            self.close_connection = True
            return
        if self.server.fails_now():
            self.send(self.server.status, {}, b"")
            return
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        try:
            asked = {n: v for n, v in self.headers.items() if n.lower() not in _OF_THE_HOP}
            connection.request(self.command, self.path, body, asked)
            answer = connection.getresponse()
            content = answer.read()
            if self.command == "GET" and "?" not in self.path:
                content = self.server.damaged(content)
            self.send(answer.status, dict(answer.getheaders()), content)
        finally:
            connection.close()

    def body(self) -> bytes | None:
        """Whole, also where it comes in chunks; None if its sender died on the way."""
        if self.headers.get("transfer-encoding") != "chunked":
            size_bytes = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(size_bytes)
            return content if len(content) == size_bytes else None
        parts = []
        while size_bytes := int(self.rfile.readline() or b"-1", 16):
            if size_bytes < 0:
                return None
            parts.append(self.rfile.read(size_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name.lower() not in _OF_THE_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def proxy(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the bucket of `s3` leads through it."""
    server = Proxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    yield server
    server.shutdown()
    server.server_close()
