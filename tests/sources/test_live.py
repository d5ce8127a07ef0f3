"""The ZeroMQ source, on loopback sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import zmq
from structlog.testing import capture_logs

from streamer.records import BadConfig, BadFrame, Frame, SeriesEnd, SeriesKey, SeriesStart, SourceLost
from streamer.sources import Message
from streamer.sources.live import Live, with_port
from streamer.wire.dectris2 import Dectris2

DEADLINE_S = 10.0
SERIES = SeriesKey(7, "unique")


@pytest.fixture
def open_socket() -> Iterator[Callable[[int], zmq.Socket]]:
    """Makes sockets of a peer, and closes them."""
    opened: list[zmq.Socket] = []
    with zmq.Context() as context:

        def make(kind: int) -> zmq.Socket:
            opened.append(context.socket(kind))
            return opened[-1]

        yield make
        for one in opened:
            one.close(linger=0)


@pytest.fixture
def detector(open_socket: Callable[[int], zmq.Socket]) -> zmq.Socket:
    """A pushing socket, as a detector binds it."""
    pushing = open_socket(zmq.PUSH)
    pushing.bind("tcp://127.0.0.1:*")
    return pushing


def address(socket: zmq.Socket) -> str:
    return socket.get_string(zmq.LAST_ENDPOINT)


def image(number: int) -> Frame:
    return Frame(np.full((32, 48), number, np.uint16), SERIES, number, channel="threshold_1")


def messages(live: Live, count: int) -> list[Message]:
    """So many messages, or those that came before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    received: list[Message] = []
    while len(received) < count and time.monotonic() < deadline:
        message = live.receive(0.1)
        if message is not None:
            received.append(message)
    return received


def receive_until(live: Live, is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_reached() and time.monotonic() < deadline:
        live.receive(0.05)
    assert is_reached(), live.counts


def test_messages_arrive_whole_in_order_and_with_their_kind(detector):
    wire = Dectris2()
    live = Live(address(detector), Dectris2())
    before = time.monotonic_ns()
    for record in (SeriesStart(SERIES, images=2, shape=(32, 48)), [image(0)], [image(1)], SeriesEnd(SERIES)):
        detector.send_multipart(wire.encode(record), copy=True)
    received = messages(live, 4)
    assert [message.kind for message in received] == ["start", "image", "image", "end"]
    assert all(before < message.received_ns <= time.monotonic_ns() for message in received)
    assert all(message.nbytes == sum(part.nbytes for part in message.parts) for message in received)
    assert live.identify(received[2]) == (SERIES, 1)
    [frame] = live.decode(received[2])
    np.testing.assert_array_equal(frame.image, image(1).image)
    assert frame.received_ns == received[2].received_ns
    live.close()


def test_parts_are_views_that_outlive_the_socket(detector):
    live = Live(address(detector), Dectris2())
    first, second = Dectris2().encode(SeriesEnd(SERIES))[0], bytes(range(256)) * 4096
    detector.send_multipart([first, second])
    received = messages(live, 2)
    live.close()
    assert [isinstance(part, memoryview) for message in received for part in message.parts] == [True, True]
    assert [bytes(message.parts[0]) for message in received] == [first, second]
    assert [message.kind for message in received] == ["end", None]


def test_a_message_of_another_format_is_kept_in_one_piece_so_that_it_can_be_recognised(detector):
    live = Live(address(detector), Dectris2())
    detector.send_multipart([b'{"htype": "array-1.0"}', b"pixels"])
    [message] = messages(live, 1)
    assert [bytes(part) for part in message.parts] == [b'{"htype": "array-1.0"}', b"pixels"]
    live.close()


def test_a_detector_that_takes_the_place_of_a_peer_of_another_kind_is_heard(open_socket):
    wrong = open_socket(zmq.PUB)
    wrong.bind("tcp://127.0.0.1:*")
    live = Live(where := address(wrong), Dectris2())
    receive_until(live, lambda: live.counts["disconnected"] >= 1)
    wrong.close(linger=0)
    right = open_socket(zmq.PUSH)
    bound = False
    deadline = time.monotonic() + DEADLINE_S
    while not bound and time.monotonic() < deadline:
        with suppress(zmq.ZMQError):
            right.bind(where)
            bound = True
    receive_until(live, lambda: right.poll(0, zmq.POLLOUT))
    right.send(b"x")
    assert len(messages(live, 1)) == 1
    assert live.counts["refused"] >= 1
    live.close()


def test_bytes_that_are_no_message_are_received_and_refused_when_decoded(detector):
    live = Live(address(detector), Dectris2())
    detector.send(b"\xff" * 100)
    [message] = messages(live, 1)
    assert message.kind is None
    with pytest.raises(BadFrame):
        live.decode(message)
    live.close()


def test_receive_returns_nothing_when_nothing_comes(detector):
    live = Live(address(detector), Dectris2())
    assert live.receive(0.02) is None
    assert live.receive(0.0) is None
    live.close()
    live.close()


def test_a_subscriber_gets_what_it_asked_for(open_socket):
    publisher = open_socket(zmq.XPUB)
    publisher.bind("tcp://127.0.0.1:*")
    live = Live(address(publisher), Dectris2(), socket="sub", topic="wanted")
    assert not live.is_exclusive
    assert publisher.recv() == b"\x01wanted"
    publisher.send(b"other")
    publisher.send(b"wanted by many")
    [message] = messages(live, 1)
    assert bytes(message.parts[0]) == b"wanted by many"
    live.close()


def test_a_pulling_source_says_that_it_takes_messages_from_others_and_can_bind(open_socket):
    live = Live("tcp://127.0.0.1:*", Dectris2(), bind=True)
    pushing = open_socket(zmq.PUSH)
    pushing.connect(live.endpoint)
    pushing.send(b"x")
    assert live.is_exclusive
    assert len(messages(live, 1)) == 1
    live.close()


def test_connections_are_counted_and_logged_once_per_change(open_socket, free_port):
    with capture_logs() as logs:
        live = Live(f"tcp://127.0.0.1:{free_port}", Dectris2())
        assert live.connection == "waiting"
        receive_until(live, lambda: live.counts["retried"] >= 1)
        detector = open_socket(zmq.PUSH)
        detector.bind(live.address)
        receive_until(live, lambda: live.connection == "connected")
        detector.close(linger=0)
        receive_until(live, lambda: live.connection == "disconnected")
        again = open_socket(zmq.PUSH)
        again.bind(live.address)
        receive_until(live, lambda: live.connection == "connected")
        live.close()
    assert live.counts["connected"] == 2
    assert live.counts["disconnected"] == 1
    texts = [entry["event"] for entry in logs]
    assert texts.count("connected") == 2
    assert "nobody answers at this address, trying again" in texts
    assert all(entry["source"] == live.url for entry in logs)


def test_a_peer_that_does_not_speak_zeromq_is_counted_as_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
                peer.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        live = Live(f"tcp://127.0.0.1:{server.getsockname()[1]}", Dectris2())
        receive_until(live, lambda: live.counts["refused"] >= 1 or live.counts["disconnected"] >= 1)
        assert live.connection == "disconnected"
        live.close()
        thread.join()


def test_a_message_above_the_limit_costs_the_connection_and_not_the_memory(detector):
    live = Live(address(detector), Dectris2(), max_message_bytes=1000)
    detector.send(b"x" * 100)
    detector.send(b"x" * 10_000)
    assert [message.nbytes for message in messages(live, 1)] == [100]
    receive_until(live, lambda: live.counts["disconnected"] >= 1)
    live.close()


@pytest.mark.parametrize(
    "bad",
    [
        *("dcu.id02:31001", "dcu", "carrier://pigeon", "inproc://here", "ws://dcu:31001", "tcp://"),
        *("tcp://127.0.0.1:notaport", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:0", "tcp://:31001"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_to_write(bad):
    with pytest.raises(BadConfig, match=r"expected tcp://host:port"):
        Live(bad, Dectris2())


def test_an_address_in_use_cannot_be_bound(detector):
    with pytest.raises(SourceLost, match="another process holds it"):
        Live(address(detector), Dectris2(), bind=True)


def test_the_usual_port_of_a_format_is_taken_where_none_is_given():
    wire = Dectris2()
    assert with_port("tcp://dcu", wire) == f"tcp://dcu:{wire.default_port}"
    assert with_port("tcp://[::1]", wire) == f"tcp://[::1]:{wire.default_port}"
    assert with_port("tcp://[::1]:9", wire) == "tcp://[::1]:9"
    assert with_port("ipc:///tmp/x", wire) == "ipc:///tmp/x"
    wire.default_port = None
    with pytest.raises(BadConfig, match="has no port"):
        with_port("tcp://dcu", wire)


def test_parts_sent_together_are_messages_of_their_own_where_a_message_has_one_part(detector: zmq.Socket) -> None:
    speaks = Dectris2()
    start, frame = speaks.encode(SeriesStart(SERIES, images=1)), speaks.encode([image(0)])
    live = Live(address(detector), speaks)
    detector.send_multipart([*start, *frame])
    kinds = [message.kind for message in messages(live, 2)]
    live.close()
    assert kinds == ["start", "image"]
