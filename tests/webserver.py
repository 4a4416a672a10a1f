"""A web server on the loopback, with the faults of real ones."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


@dataclass
class Web:
    """What is served, and what has been asked for."""

    files: dict[str, bytes]
    etag: str | None = '"v1"'
    ranges: bool = True
    """Whether the server knows `Range`."""
    chunked: bool = False
    """Send no length, but chunks."""
    redirects: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """Bytes of the body after which the next answers break off."""
    errors: list[int] = field(default_factory=list)
    """Status codes of the next answers."""
    stall: float = 0.0
    """Seconds between two blocks of 10 kB."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and `Range` of every request."""
    tokens: list[str] = field(default_factory=list)
    """`Authorization` of every request."""
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: ClassVar[Web]

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        web = self.web
        web.asked.append((self.path, self.headers.get("Range", "")))
        web.tokens.append(self.headers.get("Authorization", ""))
        path = re.sub("^http://[^/]+", "", self.path)
        if web.errors:
            self.head(web.errors.pop(0), 0)
        elif path in web.redirects:
            self.head(302, 0, {"Location": web.redirects[path]})
        elif path not in web.files:
            self.head(404, 0)
        else:
            self.serve(web.files[path])
        self.close_connection = True

    def serve(self, content: bytes):
        start = self.start(len(content))
        if start > 0 and start >= len(content):
            self.head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
            return
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        length = None if self.web.chunked else len(content) - start
        self.head(206 if start else 200, length, span if start else {})
        self.body(content[start:])

    def start(self, length: int) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, self.web.etag)
        return int(asked[1]) if asked and same and self.web.ranges else 0

    def head(self, status: int, length: int | None, more: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        if self.web.etag:
            self.send_header("ETag", self.web.etag)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def body(self, content: bytes):
        end = self.web.cuts.pop(0) if self.web.cuts else len(content)
        for at in range(0, min(end, len(content)), 10_000):
            block = content[at : min(end, at + 10_000)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if self.web.chunked else block)
            time.sleep(self.web.stall)
        if self.web.chunked and end >= len(content):
            self.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # the client went away, which is what is tested


@contextmanager
def serve(files: dict[str, bytes], **faults) -> Iterator[Web]:
    """Serve files until the block ends."""
    web = Web(files, **faults)
    handler = type("Handler", (_Handler,), {"web": web})
    with _Server(("127.0.0.1", 0), handler) as server:
        web.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
