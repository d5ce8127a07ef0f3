"""Any source to a socket in any format."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import zmq

from streamer import relay
from streamer.records import BadConfig, BadFrame, Frame, OutputDown, SeriesEnd, SeriesStart, WireRecord
from streamer.sources.live import Live
from streamer.sources.recording import Recorder, Recording
from streamer.wire.array import Array
from streamer.wire.dectris2 import Dectris2
from streamer.wire.karabo import Karabo
from tests.relay.sending import DEADLINE_S, Sending, record_series, simulated


def read_series(live: Live) -> list[WireRecord]:
    """Records up to the first end, decoded."""
    records: list[WireRecord] = []
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and not (records and isinstance(records[-1], SeriesEnd)):
        message = live.receive(0.1)
        if message is not None:
            records += live.decode(message)
    live.close()
    return records


@pytest.mark.parametrize("socket", ["push", "pub"])
def test_a_series_arrives_complete_and_in_order(free_port, socket):
    address, source = f"tcp://127.0.0.1:{free_port}", simulated()
    told: list[int] = []
    reader = Live(address, Dectris2(), socket="pull" if socket == "push" else "sub")
    with Sending(source, Dectris2(), address, socket=socket, progress=told.append) as sending:
        records = read_series(reader)
    assert isinstance(records[0], SeriesStart)
    assert [record.number for record in records if isinstance(record, Frame)] == list(range(12))
    assert isinstance(records[-1], SeriesEnd)
    assert (sending.sent.messages, sending.sent.frames, sending.sent.malformed) == (14, 12, 0)
    assert told == list(range(1, 13))
    again = simulated()
    [expected] = again.decode(
        next(message for message in iter(lambda: again.receive(1), None) if message.kind == "image")
    )
    np.testing.assert_array_equal(records[1].image, expected.image)


def test_a_sender_can_connect_to_its_reader():
    reader = Live("tcp://127.0.0.1:*", Dectris2(), bind=True)
    with Sending(simulated(frames=3), Dectris2(), reader.endpoint, bind=False) as sending:
        assert len(read_series(reader)) == 5
    assert sending.sent.frames == 3


def test_nothing_is_sent_before_somebody_reads(free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    with Sending(simulated(), Dectris2(), address, wait_s=0.3) as sending:
        pass
    assert isinstance(sending.error, OutputDown)
    assert "nobody has read" in str(sending.error)


def test_a_sender_that_is_told_to_stop_stops(free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    stopped: list[bool] = []
    with Sending(simulated(), Dectris2(), address, stop=lambda: bool(stopped)) as sending:
        stopped.append(True)  # while it waits for a reader
    assert sending.sent.messages == 0

    stopped.clear()
    reader = Live(address, Dectris2())
    source = simulated(frames=10_000, rate=50.0)
    with Sending(source, Dectris2(), address, stop=lambda: bool(stopped), progress=stopped.append) as sending:
        reader_saw = read_until_quiet(reader, lambda: bool(stopped))
    assert 1 <= sending.sent.frames < 100
    assert reader_saw == sending.sent.messages
    with pytest.raises(EOFError):
        source.receive(0.0)  # the source was closed


def read_until_quiet(live: Live, is_over: Callable[[], bool]) -> int:
    """How many messages came until it was over and nothing more arrived."""
    count = 0
    while True:
        message = live.receive(0.5)
        count += message is not None
        if message is None and is_over():
            live.close()
            return count


def test_a_rate_replaces_that_of_the_source(free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    reader = Live(address, Dectris2())
    with Sending(simulated(frames=5, rate=0.001), Dectris2(), address, rate=1000.0):
        assert len(read_series(reader)) == 7
    with pytest.raises(BadConfig, match="rate is -1"):
        relay.simulate(simulated(), Dectris2(), address, rate=-1)
    live = Live(address, Dectris2())
    with pytest.raises(BadConfig, match="comes at its own rate"):
        relay.simulate(live, Dectris2(), address, rate=10)
    live.close()


def test_messages_in_the_wanted_format_are_passed_on_byte_for_byte(tmp_path, free_port):
    path = record_series(simulated(frames=4), tmp_path / "run.wire")
    address = f"tcp://127.0.0.1:{free_port}"
    live = Live(address, Dectris2())
    with Sending(Recording(path, lambda _: Dectris2()), Dectris2(), address):
        kept = relay.record(live, tmp_path / "copy.wire", messages=6)
    assert (kept.messages, kept.frames) == (6, 4)
    assert kept.nbytes == (tmp_path / "copy.wire").stat().st_size
    original, copy = (Recording(file, lambda _: Dectris2()) for file in (path, tmp_path / "copy.wire"))
    for _ in range(6):
        ours, theirs = original.receive(1.0), copy.receive(1.0)
        assert list(map(bytes, ours.parts)) == list(map(bytes, theirs.parts))
    original.close()
    copy.close()


class Other(Dectris2):
    """The same bytes under another name, so that messages are decoded and encoded again."""

    name = "other"


def test_a_message_that_cannot_be_read_is_left_out_and_counted(tmp_path, free_port):
    good = Recording(record_series(simulated(frames=3), tmp_path / "good.wire"), lambda _: Dectris2())
    path = tmp_path / "run.wire"
    with Recorder(path, "other") as recorder:
        for index in range(5):
            recorder.write(good.receive(1.0).parts if index != 2 else [b"\xff\x00"], index)
            if index == 2:
                good.receive(1.0)
    good.close()
    with pytest.raises(BadFrame):
        Dectris2().decode([b"\xff\x00"])
    address = f"tcp://127.0.0.1:{free_port}"
    reader = Live(address, Dectris2())
    with Sending(Recording(path, lambda _: Other()), Dectris2(), address) as sending:
        records = read_series(reader)
    assert [record.number for record in records if isinstance(record, Frame)] == [0, 2]
    assert (sending.sent.messages, sending.sent.frames, sending.sent.malformed) == (4, 2, 1)


def test_an_address_that_is_none_or_taken_is_refused(free_port):
    with pytest.raises(BadConfig, match="expected a free tcp://host:port"):
        relay.simulate(simulated(), Dectris2(), "tcp://nowhere")
    with zmq.Context() as context, context.socket(zmq.PUSH) as taken:
        taken.bind(f"tcp://127.0.0.1:{free_port}")
        with pytest.raises(BadConfig, match="cannot use"):
            relay.simulate(simulated(), Dectris2(), f"tcp://127.0.0.1:{free_port}")


def test_a_format_that_only_counts_has_no_start_and_no_end_to_send(free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    reader = Live(address, Array(), socket="pull")
    with Sending(simulated(frames=5), Array(), address, socket="push") as sending:
        records = read_number(reader, 6)
    assert (sending.sent.messages, sending.sent.frames) == (5, 5)
    assert isinstance(records[0], SeriesStart)  # which the reader's source wrote itself
    assert [record.number for record in records[1:]] == list(range(5))


def test_a_reader_that_asks_gets_the_next_message(free_port):
    """The Karabo bridge's usual way."""
    address = f"tcp://127.0.0.1:{free_port}"
    with (
        zmq.Context() as context,
        context.socket(zmq.REQ) as asking,
        Sending(simulated(frames=4), Array(), address, socket="rep"),
    ):
        asking.linger = 0
        asking.rcvtimeo = round(DEADLINE_S * 1000)
        asking.connect(address)
        asking.send(b"what is there?")
        assert asking.recv() == b""
        frames: list[Frame] = []
        for _ in range(4):
            asking.send(b"next")
            frames += Array().decode(asking.recv_multipart())
    assert [frame.number for frame in frames] == [0, 1, 2, 3]


def test_nobody_asking_is_nobody_reading(free_port):
    with Sending(simulated(), Karabo(), f"tcp://127.0.0.1:{free_port}", wait_s=0.2) as sending:
        pass
    assert isinstance(sending.error, OutputDown)


def read_number(live: Live, n: int) -> list[WireRecord]:
    """The first n records."""
    records: list[WireRecord] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(records) < n and time.monotonic() < deadline:
        message = live.receive(0.1)
        if message is not None:
            records += live.decode(message)
    live.close()
    return records
