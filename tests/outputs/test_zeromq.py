"""The ZeroMQ output, with real sockets on loopback: what is sent arrives, and who comes late is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import zmq
from structlog.testing import capture_logs

from streamer.metrics import Metrics
from streamer.outputs.zeromq import Zeromq
from streamer.records import (
    Alarm,
    BadConfig,
    OutputDown,
    Quantity,
    Result,
    SeriesKey,
    Severity,
    Status,
    WireAccount,
)
from streamer.wire import results

DEADLINE_S = 20.0
PROFILE = Quantity(np.ones(8), None, "1/cm", {"q": (np.arange(8.0), "1/nm")})
RESULT = Result("saxs", SeriesKey(7), 42, {"anomaly": Quantity(0.93, 0.04), "profile": PROFILE})
DAMAGE = Alarm("damage#1@5", "damage", Severity.MAJOR, "the sample changes", "saxs.anomaly", 5.0)
RUNNING = Status("running", True, "sim:saxs", WireAccount(messages=3))


@pytest.fixture
def output() -> Iterator[Zeromq]:
    zeromq = Zeromq("tcp://127.0.0.1:0")
    zeromq.open(Metrics())
    yield zeromq
    zeromq.close()


@contextmanager
def subscriber(output: Zeromq, *topics: str, receive_high_water_mark: int = 1000) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.RCVHWM, receive_high_water_mark)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(output.endpoint)
        for topic in topics or ("",):
            socket.subscribe(topic)
        yield socket


def receive(socket: zmq.Socket[bytes], say: Callable[[], None], count: int = 1) -> list[results.Record]:
    """So many messages, while `say` is called again and again as the stream would."""
    received: list[results.Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(received) < count:
        assert time.monotonic() < deadline, f"only {len(received)} of {count} messages came"
        say()
        while len(received) < count and socket.poll(10):
            received.append(results.decode(socket.recv_multipart()))
    return received


@pytest.mark.parametrize(("address", "is_open"), [("tcp://127.0.0.1:0", False), ("tcp://*:0", True)])
def test_an_address_that_others_reach_is_warned_of(address: str, is_open: bool) -> None:
    output = Zeromq(address)
    with capture_logs() as logs:
        output.open(Metrics())
    output.close()
    assert any("anybody who reaches" in entry["event"] for entry in logs) == is_open


def test_a_result_arrives_with_its_arrays(output: Zeromq) -> None:
    with subscriber(output, "result.saxs") as socket:
        (received,) = receive(socket, lambda: output.write(RESULT))
    assert isinstance(received, Result)
    assert (received.number, received["anomaly"]) == (42, Quantity(0.93, 0.04))
    np.testing.assert_array_equal(received["profile"].value, np.ones(8))


def test_without_arrays_only_scalars_are_sent() -> None:
    output = Zeromq("tcp://127.0.0.1:*", arrays=False)
    output.open(Metrics())
    with subscriber(output) as socket:
        (received,) = receive(socket, lambda: output.write(RESULT))
    output.close()
    assert isinstance(received, Result)
    assert list(received.quantities) == ["anomaly"]


def test_a_late_joiner_learns_which_alarms_are_active_and_how_the_stream_is_doing(output: Zeromq) -> None:
    over = replace(DAMAGE, id="damage#0@1", began=1.0)
    output.alarm(over)
    output.alarm(DAMAGE)
    output.alarm(replace(over, ended=2.0))
    output.status(RUNNING)
    with subscriber(output, "alarm.", "status") as socket:
        received = receive(socket, lambda: output.write(RESULT), count=2)
    assert received == [DAMAGE, RUNNING]


def test_a_late_joiner_gets_only_what_it_asked_for(output: Zeromq) -> None:
    output.alarm(DAMAGE)
    output.status(RUNNING)
    with subscriber(output, "alarm.damage") as socket:
        received = receive(socket, lambda: output.write(RESULT))
        assert received == [DAMAGE]
        assert not socket.poll(0)


def test_a_second_late_joiner_to_the_same_topic_is_told_as_well(output: Zeromq) -> None:
    output.alarm(DAMAGE)
    with subscriber(output, "alarm.") as first, subscriber(output, "alarm.") as second:
        assert receive(first, lambda: output.write(RESULT)) == [DAMAGE]
        assert receive(second, lambda: output.write(RESULT)) == [DAMAGE]


def test_the_alarm_state_is_repeated_with_the_status() -> None:
    output = Zeromq("tcp://127.0.0.1:0", repeat_s=0)
    output.open(Metrics())
    output.alarm(DAMAGE)
    with subscriber(output, "alarm.") as socket:
        assert receive(socket, lambda: output.status(RUNNING), count=3) == [DAMAGE] * 3
    output.close()


def test_a_subscriber_that_does_not_read_holds_nobody_up() -> None:
    output = Zeromq("tcp://127.0.0.1:0", high_water_mark=1)
    output.open(Metrics())
    large = replace(RESULT, quantities={"profile": Quantity(np.zeros(100_000))})
    sent = 200  # 160 MB, far beyond every buffer on the way
    with subscriber(output, receive_high_water_mark=1) as socket:
        receive(socket, lambda: output.write(RESULT))
        for number in range(sent):
            output.write(replace(large, number=number))
        arrived = 0
        while socket.poll(200):
            socket.recv_multipart()
            arrived += 1
    output.close()
    assert arrived < sent


def test_an_address_in_use_says_what_to_do(output: Zeromq) -> None:
    second = Zeromq(output.endpoint)
    with pytest.raises(OutputDown, match=r"in use; stop whoever holds it \(ss .*set another address"):
        second.open(Metrics())


def test_an_address_in_use_is_taken_once_it_is_free(output: Zeromq) -> None:
    second = Zeromq(output.endpoint)
    with pytest.raises(OutputDown):
        second.open(Metrics())
    output.close()
    second.open(Metrics())
    with subscriber(second, "status") as socket:
        assert receive(socket, lambda: second.status(RUNNING)) == [RUNNING]
    second.close()


def test_closing_twice_is_harmless_and_writing_afterwards_is_refused(output: Zeromq) -> None:
    output.close()
    output.close()
    with pytest.raises(OutputDown, match="closed"):
        output.write(RESULT)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(BadConfig) as caught:
        Zeromq("127.0.0.1:5556", high_water_mark=0, repeat_s=-1)
    assert len(caught.value.problems) == 3
