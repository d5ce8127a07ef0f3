"""The faulty link does to two ZeroMQ sockets what it says it does, and writes down what it passed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils.monitor import recv_monitor_message

from tests.faults.log import Line, Log, digest, read
from tests.faults.proxy import FaultProxy, Messages

PATIENCE_MS = 10_000


class Ends:
    """A socket that pushes, a link, and one that pulls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context: zmq.Context[Any] = zmq.Context()
        self.push = self.context.socket(zmq.PUSH)
        self.push.setsockopt(zmq.LINGER, 0)
        self.push.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)
        port = self.push.bind_to_random_port("tcp://127.0.0.1")
        self.log = Log(folder, "link")
        self.link = FaultProxy(port, self.log, "pull")
        self.pull = self.context.socket(zmq.PULL)
        self.pull.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self.monitor = self.pull.get_monitor_socket(zmq.Event.DISCONNECTED | zmq.Event.HANDSHAKE_SUCCEEDED)
        self.monitor.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self.pull.connect(f"tcp://127.0.0.1:{self.link.port}")
        self.next_event(zmq.Event.HANDSHAKE_SUCCEEDED)
        assert self.push.poll(PATIENCE_MS, zmq.POLLOUT)  # and the other side has shaken hands, too

    def next_event(self, expected: zmq.Event) -> None:
        assert recv_monitor_message(self.monitor)["event"] == expected

    def lines(self) -> list[Line]:
        return read(self.folder)

    def close(self) -> None:
        self.link.close()
        self.pull.disable_monitor()
        self.context.destroy(linger=0)
        self.log.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.close()


def test_an_open_link_passes_everything_and_names_it(ends: Ends) -> None:
    messages = [[b"one"], [b"", b"two parts"], [b"x" * 300_000]]
    for message in messages:
        ends.push.send_multipart(message)
    assert [ends.pull.recv_multipart() for _ in messages] == messages
    passed = [line["message"] for line in ends.lines() if line["did"] == "passed"]
    assert passed == [digest(message) for message in messages]
    assert (ends.link.passed, ends.link.connected) == (3, 1)


def test_a_stalled_link_keeps_its_connection_and_passes_nothing_until_it_goes_on(ends: Ends) -> None:
    ends.link.stall()
    ends.push.send(b"waits")
    assert not ends.pull.poll(200)
    ends.link.go()
    assert ends.pull.recv() == b"waits"
    assert ends.link.connected == 1


def test_a_link_that_stalls_within_a_message_has_passed_that_many_bytes(ends: Ends) -> None:
    before = ends.link.nbytes
    ends.link.go(1000)
    ends.push.send(b"x" * 2000)
    ends.link.until(lambda link: link.nbytes == before + 1000)
    assert not ends.pull.poll(200)
    assert ends.link.passed == 0
    ends.link.go()
    assert ends.pull.recv() == b"x" * 2000


def test_a_reset_within_a_message_cuts_it_and_what_comes_later_arrives(ends: Ends) -> None:
    ends.link.go(1000, then="reset")
    ends.push.send(b"x" * 2000)
    ends.next_event(zmq.Event.DISCONNECTED)
    ends.next_event(zmq.Event.HANDSHAKE_SUCCEEDED)
    ends.push.send(b"later")
    assert ends.pull.recv() == b"later"
    assert [line["did"] for line in ends.lines()] == ["connected", "cut", "reset", "connected", "passed"]


def test_a_reset_on_command_ends_every_connection_at_once(ends: Ends) -> None:
    ends.link.reset()
    ends.next_event(zmq.Event.DISCONNECTED)
    ends.next_event(zmq.Event.HANDSHAKE_SUCCEEDED)
    assert [line["did"] for line in ends.lines()] == ["connected", "reset", "connected"]


def test_a_slow_link_passes_a_message_in_pieces(ends: Ends) -> None:
    before = ends.link.nbytes
    ends.link.go(rate=50_000)
    ends.push.send(b"x" * 20_000)
    ends.link.until(lambda link: link.nbytes > before)
    assert ends.link.nbytes < before + 20_000
    assert ends.pull.recv() == b"x" * 20_000


def test_a_link_to_nobody_sends_its_clients_away(tmp_path: Path, free_port: int) -> None:
    log = Log(tmp_path, "link")
    with FaultProxy(free_port, log, "pull") as link, zmq.Context() as context, context.socket(zmq.PULL) as pull:
        monitor = pull.get_monitor_socket(zmq.Event.DISCONNECTED)
        monitor.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        pull.connect(f"tcp://127.0.0.1:{link.port}")
        assert recv_monitor_message(monitor)["event"] == zmq.Event.DISCONNECTED
        pull.disable_monitor()
        monitor.close()
    log.close()
    assert read(tmp_path) == []


@given(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=3)), st.integers(1, 50), st.booleans())
def test_messages_are_found_however_the_octets_are_cut(messages: list[list[bytes]], size: int, is_cut: bool) -> None:
    octets = b"\xff" * 64 + b"\x04\x05READY"  # a greeting, a command
    for message in messages:
        last = len(message) - 1
        octets += b"".join(_frame(part, more=place < last) for place, part in enumerate(message))
    if is_cut:
        octets += _frame(b"never whole", more=False)[:-1]
    taken = Messages()
    found = [message for at in range(0, len(octets), size) for message in taken.feed(octets[at : at + size])]
    assert found == messages
    assert taken.is_cut == is_cut


def _frame(body: bytes, *, more: bool) -> bytes:
    if len(body) > 255:
        return bytes([2 | more]) + len(body).to_bytes(8, "big") + body
    return bytes([more, len(body)]) + body
