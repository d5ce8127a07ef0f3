"""One stream to several readers: what each of them gets, and what becomes of the rest."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq
from structlog.testing import capture_logs

from streamer.records import BadConfig, OutputDown
from streamer.relay import lanes as room
from streamer.relay.destinations import Destination
from streamer.relay.fanout import Fanout
from streamer.relay.lanes import PushLane
from streamer.sources import Message
from tests.relay.readers import Reader, end, fanning_out, image, lane, start, wait_for

LOCAL = "tcp://127.0.0.1:*"


def never() -> bool:
    return False


@pytest.fixture
def read() -> Iterator[Callable[..., Reader]]:
    """Opens a reader; all are closed at the end of a test."""
    opened: list[Reader] = []
    with zmq.Context() as context:

        def opens(*arguments: object, **options: object) -> Reader:
            opened.append(Reader(context, *arguments, **options))
            return opened[-1]

        yield opens
        for reader in opened:
            reader.close()


def test_every_reader_gets_every_message_in_order_and_byte_for_byte(read):
    with fanning_out(Destination(LOCAL), Destination(LOCAL, when_full="wait"), Destination(LOCAL, "pub")) as fanout:
        kinds = (zmq.PULL, zmq.PULL, zmq.SUB)
        readers = [read(one.endpoint, kind) for one, kind in zip(fanout.lanes, kinds, strict=True)]
        wait_for(lambda: all(one.readers for one in fanout.account()))
        sent = [start(), *map(image, range(20)), end()]
        for message in sent:
            fanout.give(message, never)
        for reader in readers:
            assert [reader.socket.recv_multipart() for _ in sent] == [message.parts for message in sent]
        fanout.drain(never)
        for one in fanout.account():
            assert (one.received, one.sent, one.dropped, one.unheard, one.waiting) == (22, 22, 0, 0, 0)
            assert one.nbytes == sum(message.nbytes for message in sent)


def test_what_was_received_over_zeromq_is_passed_on_without_a_copy():
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.linger = 0
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        push.send(bytes(100_000))
        received = pull.recv(copy=False)
    passed = room._as_received(received.buffer)
    assert isinstance(passed, zmq.Frame)
    assert np.frombuffer(passed, np.uint8).ctypes.data == np.frombuffer(received, np.uint8).ctypes.data
    assert isinstance(room._as_received(received.buffer[10:]), memoryview)  # a piece is not the whole message


def test_a_reader_that_stands_still_costs_itself_images_and_the_others_nothing(read):
    slow, fast = Destination(LOCAL, queue=5), Destination(LOCAL, when_full="wait")
    with fanning_out(slow, fast) as fanout, capture_logs() as logs:
        stands = read(fanout.lanes[0].endpoint, small=True)
        reads = read(fanout.lanes[1].endpoint)
        wait_for(lambda: all(one.readers for one in fanout.account()))
        fanout.give(start(), never)
        names = reads.take(1)
        for number in range(60):
            fanout.give(image(number, is_large=True), never)
            names += reads.take(1)
        fanout.give(end(), never)
        assert [*names, *reads.take(1)] == ["start", *map(str, range(60)), "end"]
        got = stands.take_all()
        fanout.drain(never)
        account = lane(fanout)
    assert account.dropped > 0
    assert account.received == 62 == account.sent + account.dropped
    assert len(got) == account.sent
    assert (got[0], got[-1]) == ("start", "end")  # images go first
    missing = set(map(str, range(60))) - set(got)
    assert len(missing) == account.dropped  # as the reader's ledger will say
    assert sum(entry.get("dropped", 0) for entry in logs) > 0


def test_a_destination_that_waits_holds_the_source_until_there_is_room(read):
    with fanning_out(Destination(LOCAL, when_full="wait", queue=2)) as fanout:
        asked: list[bool] = []

        def stop_at_the_third() -> bool:
            asked.append(True)
            return len(asked) == 3

        for message in (start(), image(0)):
            fanout.give(message, never)
        wait_for(lambda: fanout.lanes[0].backlog.statistics().depth == 1)  # one is in the hands of the thread
        fanout.give(image(1), never)
        fanout.give(image(2), stop_at_the_third)  # nobody is there, and the source is told to end
        assert len(asked) == 3
        assert lane(fanout).waiting == 4
        reader = read(fanout.lanes[0].endpoint)
        assert reader.take(4) == ["start", "0", "1", "2"]
        fanout.drain(never)
        assert (lane(fanout).sent, lane(fanout).waiting) == (4, 0)


def test_what_nobody_takes_until_the_end_is_named():
    destinations = (Destination(LOCAL, queue=3), Destination(LOCAL, "pub"), Destination(LOCAL, "pub", "wait"))
    with fanning_out(*destinations) as fanout:
        for message in (start(), *map(image, range(10)), end()):
            fanout.give(message, never)
        wait_for(lambda: not lane(fanout, 1).waiting)
        fanout.drain(lambda: True)
        pushed, published, held = fanout.account()
    assert (pushed.sent, pushed.unaccounted, pushed.dropped + pushed.waiting) == (0, 0, 12)
    assert pushed.waiting in (3, 4)  # with or without one in hand
    assert (published.sent, published.waiting, published.unheard) == (0, 0, 12)
    assert (held.sent, held.waiting, held.unheard) == (0, 12, 0)


def test_a_reader_that_joins_late_is_told_the_start_that_stands(read):
    reads = zmq.PULL
    with fanning_out(Destination(LOCAL)) as fanout:
        first = read(fanout.lanes[0].endpoint, reads)
        wait_for(lambda: lane(fanout).readers == 1)
        for message in (start(), image(0)):
            fanout.give(message, never)
        assert first.take(2) == ["start", "0"]
        first.close()
        wait_for(lambda: lane(fanout).readers == 0)
        second = read(fanout.lanes[0].endpoint, reads)
        assert second.take(1) == ["start"]
        for message in (image(1), end()):
            fanout.give(message, never)
        assert second.take(2) == ["1", "end"]
        second.close()
        wait_for(lambda: lane(fanout).readers == 0)
        third = read(fanout.lanes[0].endpoint, reads)
        wait_for(lambda: lane(fanout).readers == 1)
        fanout.give(start(), never)
        assert third.take(1) == ["start"]  # after an end nothing stands
        fanout.drain(never)
        account = lane(fanout)
    assert (account.received, account.sent, account.repeated) == (5, 5, 1)


def test_a_new_subscriber_does_not_disturb_the_others(read):
    with fanning_out(Destination(LOCAL, "pub")) as fanout:
        readers = [read(fanout.lanes[0].endpoint, zmq.SUB) for _ in range(2)]
        wait_for(lambda: lane(fanout).readers == 2)
        for message in (start(), image(0)):
            fanout.give(message, never)
        assert [reader.take(2) for reader in readers] == [["start", "0"], ["start", "0"]]
        readers.append(read(fanout.lanes[0].endpoint, zmq.SUB))
        wait_for(lambda: lane(fanout).readers == 3)
        fanout.give(image(1), never)
        assert [reader.take(1) for reader in readers] == [["1"], ["1"], ["1"]]
        assert lane(fanout).repeated == 0


@pytest.mark.parametrize(("repeat_start", "expected"), [(None, ["1", "2"]), (True, ["start", "start", "1"])])
def test_a_start_in_several_messages_is_repeated_only_on_request(read, repeat_start, expected):
    with Fanout([Destination(LOCAL, repeat_start=repeat_start)], is_one_part=False) as fanout:
        first = read(fanout.lanes[0].endpoint, zmq.PULL)
        wait_for(lambda: lane(fanout).readers == 1)
        for message in (start(), start(3), image(0)):
            fanout.give(message, never)
        assert first.take(3) == ["start", "start", "0"]
        first.close()
        wait_for(lambda: lane(fanout).readers == 0)
        second = read(fanout.lanes[0].endpoint, zmq.PULL)
        wait_for(lambda: lane(fanout).readers == 1)
        for message in (image(1), image(2)):
            fanout.give(message, never)
        assert second.take(len(expected)) == expected


def test_subscribers_come_and_go_and_a_topic_is_heeded(read):
    with fanning_out(Destination(LOCAL, "pub")) as fanout:
        reader = read(fanout.lanes[0].endpoint, zmq.SUB)
        wait_for(lambda: lane(fanout).readers == 1)
        reader.socket.unsubscribe(b"")
        wait_for(lambda: lane(fanout).readers == 0)
        fanout.give(image(0), never)
        wait_for(lambda: lane(fanout).unheard == 1)
        reader.socket.subscribe(bytes(image(2).parts[0][:4]))
        wait_for(lambda: lane(fanout).readers == 1)
        fanout.give(image(1), never)
        assert reader.take(1) == ["1"]


STUCK = """
import sys, zmq
reads = zmq.Context().socket(zmq.SUB)
reads.setsockopt(zmq.RCVHWM, 1)
reads.setsockopt(zmq.SUBSCRIBE, b"")
reads.connect(sys.argv[1])
while True:
    reads.recv()
"""


def test_a_subscriber_that_hangs_is_cut_off_and_the_others_go_on(read, monkeypatch):
    monkeypatch.setattr(room, "STUCK_S", 1.0)
    with fanning_out(Destination(LOCAL, "pub", queue=3)) as fanout:
        endpoint = fanout.lanes[0].endpoint
        hangs = subprocess.Popen([sys.executable, "-c", STUCK, endpoint])
        try:
            reads = read(endpoint, zmq.SUB)
            wait_for(lambda: lane(fanout).readers == 2)
            hangs.send_signal(signal.SIGSTOP)
            number = 0
            while not lane(fanout).dropped:  # its buffers are full, and the other one hears nothing either
                fanout.give(image(number, is_large=True), never)
                number += 1
            wait_for(lambda: lane(fanout).readers == 1)
            fanout.give(end(), never)
            fanout.drain(never)
            got = reads.take_all()
            account = lane(fanout)
        finally:
            hangs.kill()
            hangs.wait()
    assert got[-1] == "end"
    assert len(got) == account.sent == account.received - account.dropped  # exact for whoever reads


def test_whoever_knocks_and_does_not_speak_zeromq_is_no_reader(read):
    with fanning_out(Destination(LOCAL)) as fanout:
        port = int(fanout.lanes[0].endpoint.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as knocks:
            wait_for(lambda: lane(fanout).readers == 1)  # it could become one
            knocks.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(64))
            wait_for(lambda: lane(fanout).readers == 0)
        for message in (start(), image(0)):
            fanout.give(message, never)
        reader = read(fanout.lanes[0].endpoint)
        assert reader.take(2) == ["start", "0"]


def test_a_destination_can_connect_to_its_reader():
    with zmq.Context() as context, context.socket(zmq.PULL) as reads:
        port = reads.bind_to_random_port("tcp://127.0.0.1")
        with fanning_out(Destination(f"tcp://127.0.0.1:{port}", connect=True)) as fanout:
            fanout.give(image(0), never)
            assert reads.poll(5000)
            assert reads.recv() == image(0).parts[0]


@pytest.mark.parametrize(
    ("trouble", "told", "words"),
    [
        (zmq.ZMQError(zmq.ENOTSOCK), OutputDown, "the socket to .* is broken"),
        (ZeroDivisionError("a defect"), ZeroDivisionError, "a defect"),
    ],
)
def test_what_ends_a_lane_ends_the_relay_that_waits_for_it(monkeypatch, trouble, told, words):
    class Failing(PushLane):
        def _offer(self, message: Message) -> None:
            raise trouble

    monkeypatch.setattr("streamer.relay.fanout.PushLane", Failing)
    with fanning_out(Destination(LOCAL, when_full="wait", queue=1)) as fanout:
        fanout.give(image(0), never)
        wait_for(lambda: not fanout.lanes[0].is_alive)
        fanout.give(image(1), never)
        with pytest.raises(told, match=words):
            fanout.give(image(2), never)
        with pytest.raises(told, match=words):
            fanout.account()


def test_an_address_that_is_none_or_taken_is_refused():
    with pytest.raises(BadConfig, match="at least one destination"):
        Fanout([], is_one_part=True)
    with pytest.raises(BadConfig, match="expected a free tcp://host:port"):
        Fanout([Destination("tcp://nowhere.invalid:*")], is_one_part=True)
    with fanning_out(Destination(LOCAL)) as fanout:
        taken = fanout.lanes[0].endpoint
        with pytest.raises(BadConfig, match="cannot be used"):
            Fanout([Destination(LOCAL), Destination(taken)], is_one_part=True)
