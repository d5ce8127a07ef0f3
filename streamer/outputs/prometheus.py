"""Metrics and health over HTTP: /metrics for Prometheus, /livez and /readyz for whoever supervises the process.

    /metrics   every metric of `metrics.py`, as OpenMetrics or plain text, whichever is asked for
    /livez     200 while the stream tells its status; 503 with the reason after `stale_s` of silence: restart it
    /readyz    200 while models are warm, the source is open and the stream runs or waits; else 503 with the reason

Anything else is 404. GET and HEAD are the only methods. There is neither encryption nor authentication, therefore
loopback by default. A client has two seconds and 8 KiB to say what it wants; sixteen are served at a time and the next
is turned away: clients cost a bounded number of threads and bytes, whatever they do.

The server has threads of its own; `status` is called from the output's thread and hands over one reference.
"""

from __future__ import annotations

import io
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

import structlog

from streamer.metrics import Metrics
from streamer.outputs import Output
from streamer.records import Alarm, BadConfig, OutputDown, Result, Status

log = structlog.get_logger("streamer.output")

REQUEST_S = 2.0
MAX_REQUEST = 8192  # bytes; a Prometheus scrape says what it wants in 300
MAX_CLIENTS = 16
READY_STATES = ("running", "waiting")

Page = tuple[int, str, bytes]  # HTTP status, content type, body


class Prometheus(Output):
    """An HTTP server on `host`:`port`.

    host: an address of this machine; anything but loopback is open to the network. port: 0 takes a free one, which
    `url` names once open. stale_s: how long the stream, which speaks every second, may be silent before /livez says so.
    """

    name = "prometheus"

    def __init__(self, port: int = 9464, host: str = "127.0.0.1", stale_s: float = 10.0) -> None:
        problems = []
        if not 0 <= port <= 65535:
            problems.append(f"prometheus: port is {port}, expected 0 to 65535")
        if not stale_s > 1:
            problems.append(f"prometheus: stale_s is {stale_s}, expected more than 1: the status comes once a second")
        if problems:
            raise BadConfig(*problems)
        self.port = port
        self.host = host
        self.stale_s = stale_s
        self.url = ""
        self._clock: Callable[[], float] = time.monotonic
        self._metrics = Metrics()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._heard: tuple[Status | None, float] = (None, 0.0)

    def open(self, metrics: Metrics) -> None:
        """Listen and serve. Raises OutputDown where that is not possible now (address in use, no such interface)."""
        self.close()
        self._metrics = metrics
        self._heard = (None, self._clock())
        try:
            self._server = _Server(self.host, self.port, self.page)
        except OSError as error:
            raise OutputDown(
                f"prometheus: cannot listen on {self.host}:{self.port}: {error.strerror or error}; stop whoever holds"
                f" it (ss -ltnp 'sport = :{self.port}' names it) or set another port in [publish.prometheus]"
            ) from error
        host, port = self._server.server_address[:2]
        self.url = f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"
        if not ipaddress.ip_address(str(host)).is_loopback:
            log.warning("prometheus: anybody who reaches this address can read the metrics", url=self.url)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="prometheus", daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """Nothing: what a result changes is counted where it is made."""

    def alarm(self, alarm: Alarm) -> None:
        """Nothing: alarms are counted where they are raised."""

    def status(self, status: Status) -> None:
        """Remember how the stream is doing, and that it said so."""
        self._heard = (status, self._clock())

    def close(self) -> None:
        """Stop serving and release the port."""
        if self._server is not None:
            if self._thread is not None:
                self._server.shutdown()
                self._thread.join()
            self._server.server_close()
        self._server = self._thread = None

    def page(self, path: str, accept: str) -> Page:
        """The answer to GET `path` from a client that accepts these content types."""
        match path.partition("?")[0]:
            case "/metrics":
                body, content_type = self._metrics.exposition(accept)
                return 200, content_type, body
            case "/livez":
                return _health(self._why_dead())
            case "/readyz":
                return _health(self._why_dead() or self._why_not_ready())
            case _:
                return _text(404, "there are /metrics, /livez and /readyz")

    def _why_dead(self) -> str:
        age = self._clock() - self._heard[1]
        return f"no status from the stream for {age:.1f} s (limit {self.stale_s:g} s)" if age >= self.stale_s else ""

    def _why_not_ready(self) -> str:
        status = self._heard[0]
        if status is None:
            return "the stream has not said its status yet"
        if not status.is_ready:
            return f"models are not warm or the source is not open (state: {status.state})"
        return "" if status.state in READY_STATES else f"the stream is {status.state}"


def _health(trouble: str) -> Page:
    return _text(503, trouble) if trouble else _text(200, "ok")


def _text(status: int, text: str) -> Page:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


class _Server(ThreadingTCPServer):
    """Serves at most MAX_CLIENTS at a time. (http.server.HTTPServer would ask the name service for its own name.)"""

    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, page: Callable[[str, str], Page]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.page = page
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__((host, port), _Request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away or stays silent is its own affair; anything else is a defect of ours."""
        if not isinstance(sys.exception(), OSError):
            log.exception("prometheus: request failed", client=str(client_address))


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version = "streamer"
    sys_version = ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def setup(self) -> None:
        """Read the whole request first, so that its size and its time are bounded as a whole."""
        super().setup()
        self.rfile = io.BufferedReader(io.BytesIO(_head(self.connection)))
        self.connection.settimeout(REQUEST_S)

    def do_GET(self) -> None:
        status, content_type, body = self.server.page(self.path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's own word
        """A scrape every second is no news."""


def _head(connection: socket.socket) -> bytes:
    """A request up to its empty line; b"" if that does not come. Raises TimeoutError after REQUEST_S."""
    deadline = time.monotonic() + REQUEST_S
    head = b""
    while b"\r\n\r\n" not in head:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        received = connection.recv(MAX_REQUEST - len(head))
        if not received:  # the client left, or has said all it may
            return b""
        head += received
    return head
