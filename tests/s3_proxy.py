"""A proxy before an S3 endpoint that breaks requests as object stores and networks do, and counts what it broke.

It runs as a process of its own, so that it answers while a test holds Python's lock; without a script of faults it
passes everything on. What breaks is drawn by a seed in the order in which requests arrive. `tests.s3_faults` is the
side of the tests.
"""

import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONTROL = "/__faults__"

ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "403": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),  # 400 is what AWS answers
    "404": (404, "NoSuchKey", "The specified key does not exist."),
    "409": (409, "ConditionalRequestConflict", "A conflicting operation occurred during the request."),
    "no_upload": (404, "NoSuchUpload", "The upload may have been aborted or completed."),
}
CUTS = ("reset", "reset_mid_body", "lost", "slow", "stall")
"""Connection reset before an answer; in the middle of the body; answer lost after the request was carried out; a body
in small pieces; silence, and then the answer."""

XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect", "content-length"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Which requests break, and how."""

    kinds: tuple[str, ...] = ()
    in_order: bool = False
    """The kinds in turn, instead of drawn."""
    rate: float = 1.0
    seed: int = 0
    limit: int | None = None
    """At most so many faults; None for no bound."""
    methods: tuple[str, ...] = ()
    """Empty for all."""
    prefix: str = ""
    """What `bucket/key` begins with."""
    query: str = ""
    """What stands in the part after the question mark, such as `partNumber`."""
    seconds: float = 0.5
    """How long a slow body or a silence lasts."""

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - set(ANSWERS) - set(CUTS)
        if unknown:
            raise ValueError(f"unknown kinds of fault {sorted(unknown)}; there are {[*ANSWERS, *CUTS]}")

    def concern(self, method: str, target: str) -> bool:
        """Whether a request is one of those that may break."""
        parts = urlsplit(target)
        return (
            bool(self.kinds)
            and (not self.methods or method in self.methods)
            and parts.path.lstrip("/").startswith(self.prefix)
            and self.query in parts.query
        )


@dataclass(slots=True, kw_only=True)
class Script:
    """Faults being injected: draws which, and counts."""

    faults: Faults = field(default_factory=Faults)
    generator: random.Random = field(default_factory=random.Random)
    injected: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, method: str, target: str) -> str | None:
        """The kind of fault for a request; None where it passes."""
        with self.lock:
            faults = self.faults
            if not faults.concern(method, target):
                return None
            self.requests.append(f"{method} {target}")
            spent = faults.limit is not None and self.injected.total() >= faults.limit
            if spent or self.generator.random() >= faults.rate:
                return None
            number = self.injected.total()
            kind = faults.kinds[number % len(faults.kinds)] if faults.in_order else self.generator.choice(faults.kinds)
            self.injected[kind] += 1
            return kind


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def proxy(self) -> "Proxy":
        """The server, by its own type."""
        assert isinstance(self.server, Proxy)
        return self.server

    def handle_expect_100(self) -> bool:
        """Nothing yet: as in S3, a refusal comes in place of the invitation to send the body."""
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the counts say it."""

    def do_GET(self) -> None:
        """Any request, whatever its method."""
        if self.path == CONTROL:
            self._control()
            return
        kind = self.proxy.script.draw(self.command, self.path)
        if kind in ANSWERS:
            self._refuse(kind)
            return
        body = self._read_body(half=kind == "reset_mid_body" and self.command in ("PUT", "POST"))
        if kind == "reset" or body is None:
            self._reset()
            return
        if "If-None-Match" in self.headers:
            with self.proxy.creating:  # S3 creates in one step; moto looks first and then creates
                status, headers, content = self._forward(body)
        else:
            status, headers, content = self._forward(body)
        if kind == "lost":
            self._reset()
        elif kind == "reset_mid_body":
            self._answer(status, headers, content[: len(content) // 2], len(content))
            self._reset()
        elif kind == "slow":
            self._answer(status, headers, content, len(content), seconds=self.proxy.script.faults.seconds)
        else:
            if kind == "stall":
                time.sleep(self.proxy.script.faults.seconds)
            self._answer(status, headers, content, len(content))

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def _control(self) -> None:
        if sent := self._read_body():
            faults = Faults(**json.loads(sent))
            self.proxy.script = Script(faults=faults, generator=random.Random(faults.seed))
        said = {"injected": self.proxy.script.injected, "requests": self.proxy.script.requests}
        content = json.dumps(said).encode()
        self._answer(200, [("Content-Type", "application/json")], content, len(content))

    def _read_body(self, *, half: bool = False) -> bytes | None:
        """The body of the request; None if asked for half of it, which is read and thrown away."""
        if self._expects_invitation():
            self.send_response_only(100)
            self.end_headers()
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b"".join(self._chunks())
            return None if half else body
        size = int(self.headers.get("Content-Length", 0))
        if half:
            self.rfile.read(size // 2)
            return None
        return self.rfile.read(size)

    def _expects_invitation(self) -> bool:
        return self.headers.get("Expect", "").lower() == "100-continue"

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=120)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            headers = answer.getheaders()
            return answer.status, headers, answer.read()
        finally:
            upstream.close()

    def _answer(
        self, status: int, headers: Sequence[tuple[str, str]], content: bytes, size: int, seconds: float = 0.0
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            is_length = name.lower() == "content-length" and self.command == "HEAD"
            if name.lower() not in HOP_BY_HOP or is_length:
                self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        piece = max(1, -(-len(content) // 20)) if seconds else max(1, len(content))
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            self.wfile.flush()
            time.sleep(seconds / 20)

    def _refuse(self, kind: str) -> None:
        if self._expects_invitation():
            self.close_connection = True  # the body was not sent and never will be
        else:
            self._read_body()
        status, code, message = ANSWERS[kind]
        content = f"{XML}<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        if self.command == "HEAD":
            content = b""
        self._answer(status, [("Content-Type", "application/xml")], content, len(content))

    def _reset(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Proxy(ThreadingHTTPServer):
    """The proxy's server: where requests go, and the script of faults."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.script = Script()
        self.creating = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that hang up are what this is for."""


def main(upstream: str) -> None:
    """Serve until standard input ends, having said on which port."""
    parts = urlsplit(upstream)
    server = Proxy((str(parts.hostname), int(parts.port or 80)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
