"""The HTTP server for Prometheus and the supervisor, with real sockets on loopback."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streamer.metrics import Metrics
from streamer.outputs import prometheus
from streamer.outputs.prometheus import MAX_CLIENTS, MAX_REQUEST, Prometheus
from streamer.records import BadConfig, OutputDown, Status, WireAccount

RUNNING = Status("running", True, "sim:saxs", WireAccount())
TIMEOUT_S = 20.0


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def output(clock: Clock, metrics: Metrics) -> Iterator[Prometheus]:
    server = Prometheus(port=0, stale_s=10)
    server._clock = clock
    server.open(metrics)
    yield server
    server.close()


def ask(output: Prometheus, path: str, method: str = "GET", accept: str = "*/*") -> tuple[int, str, str]:
    """Status, content type and body of the answer."""
    connection = http.client.HTTPConnection(output.url.removeprefix("http://"), timeout=TIMEOUT_S)
    connection.request(method, path, headers={"Accept": accept})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers.get("Content-Type", ""), body


def say(output: Prometheus, request: bytes) -> bytes:
    """All that comes back to these bytes."""
    host, _, port = output.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(request)
        with suppress(OSError):  # ENOTCONN: it was turned away and the line is down already
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


def test_metrics_are_those_of_the_stream(output: Prometheus, metrics: Metrics) -> None:
    metrics.frames("accepted", 5)
    status, content_type, body = ask(output, "/metrics")
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    assert 'streamer_frames_counted_total{outcome="accepted"} 5.0' in body


def test_openmetrics_is_served_to_whoever_asks_for_it(output: Prometheus) -> None:
    _, content_type, body = ask(output, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert "streamer_messages_received" in {family.name for family in text_string_to_metric_families(body)}


def test_a_stream_that_keeps_talking_is_alive(output: Prometheus, clock: Clock) -> None:
    assert ask(output, "/livez")[0] == 200
    for _ in range(3):
        clock.now += 9
        output.status(RUNNING)
        assert ask(output, "/livez")[0] == 200


def test_a_stream_that_fell_silent_is_dead_and_not_ready(output: Prometheus, clock: Clock) -> None:
    output.status(RUNNING)
    clock.now += 12.3
    for path in ("/livez", "/readyz"):
        status, _, body = ask(output, path)
        assert (status, body) == (503, "no status from the stream for 12.3 s (limit 10 s)\n")


def test_a_stream_that_never_spoke_is_dead_in_the_end(output: Prometheus, clock: Clock) -> None:
    clock.now += 11
    assert ask(output, "/livez")[0] == 503


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (None, 503, "not said its status"),
        (replace(RUNNING, state="starting", is_ready=False), 503, "not warm"),
        (replace(RUNNING, state="running", is_ready=False), 503, "not warm"),
        (replace(RUNNING, state="waiting"), 200, "ok"),
        (RUNNING, 200, "ok"),
        (replace(RUNNING, state="stalled"), 503, "stalled"),
        (replace(RUNNING, state="stopping"), 503, "stopping"),
    ],
)
def test_readiness_follows_the_last_status(output: Prometheus, status: Status | None, code: int, reason: str) -> None:
    if status is not None:
        output.status(status)
    answer = ask(output, "/readyz")
    assert answer[0] == code
    assert reason in answer[2]


def test_readiness_flips_both_ways(output: Prometheus) -> None:
    flips = []
    for is_ready in (True, False, True):
        output.status(replace(RUNNING, is_ready=is_ready))
        flips.append(ask(output, "/readyz")[0])
    assert flips == [200, 503, 200]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/livez/x"])
def test_there_is_nothing_else(output: Prometheus, path: str) -> None:
    assert ask(output, path)[0] == 404


def test_a_question_mark_changes_nothing(output: Prometheus) -> None:
    assert ask(output, "/livez?verbose")[0] == 200


def test_head_is_get_without_the_body(output: Prometheus) -> None:
    assert ask(output, "/livez", "HEAD") == (200, "text/plain; charset=utf-8", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_refused(output: Prometheus, method: str) -> None:
    assert ask(output, "/metrics", method)[0] == 501


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\x00" * 100,
        b"GET",
        b"GET /livez HTTP/1.0\r\n",
        b"GET /livez HTTP/9.9.9\r\n\r\n",
        b"GET /" + b"x" * MAX_REQUEST + b" HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.0\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
    ids=["nothing", "zeros", "cut", "unfinished", "version", "long path", "many headers", "not text"],
)
def test_nonsense_is_turned_away_and_the_next_client_is_served(output: Prometheus, request_bytes: bytes) -> None:
    try:
        answer = say(output, request_bytes)
    except ConnectionError:  # turned away before it had said all
        answer = b""
    assert b" 200 " not in answer
    assert ask(output, "/livez")[0] == 200


def test_silent_clients_are_sent_away_and_do_not_add_up(output: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "REQUEST_S", 0.1)
    host, _, port = output.url.removeprefix("http://").rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=TIMEOUT_S) for _ in range(3 * MAX_CLIENTS)]
    for connection in silent:
        assert connection.recv(1) == b""
        connection.close()
    assert ask(output, "/livez")[0] == 200


def test_a_port_in_use_says_what_to_do(output: Prometheus) -> None:
    port = int(output.url.rpartition(":")[2])
    with pytest.raises(OutputDown, match=rf"in use; stop whoever holds it \(ss .*:{port}.*set another port"):
        Prometheus(port=port).open(Metrics())


def test_a_name_that_is_no_address_is_reported_as_the_output_being_down() -> None:
    with pytest.raises(OutputDown, match=r"192\.0\.2\.1"):
        Prometheus(port=0, host="192.0.2.1").open(Metrics())


def test_ipv6_loopback_is_served() -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python was built without IPv6")
    output = Prometheus(port=0, host="::1")
    try:
        output.open(Metrics())
    except OutputDown:
        pytest.skip("this machine has no IPv6 loopback")
    output.status(RUNNING)
    assert ask(output, "/readyz")[0] == 200
    output.close()


def test_closing_twice_is_harmless_and_frees_the_port(output: Prometheus) -> None:
    port = int(output.url.rpartition(":")[2])
    output.close()
    output.close()
    successor = Prometheus(port=port)
    successor.open(Metrics())
    assert ask(successor, "/livez")[0] == 200
    successor.close()


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(BadConfig) as caught:
        Prometheus(port=70000, stale_s=0.5)
    assert len(caught.value.problems) == 2
