"""Live runs of array-1.0: headers written letter by letter as areaDetector's plug-in and std-daq write them.

No sender of this format can be installed: the plug-in needs an EPICS IOC. What it does: it counts on from acquisition
to acquisition, drops what its socket does not take, and begins again with 1 when its IOC was restarted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.config import open_source
from streamer.decide import Decider
from streamer.pipeline import Limits, Pipeline
from streamer.records import BadFrame, Frame, Reduced, Result, Status

ROWS, COLUMNS = 48, 64
DEADLINE_S = 60.0

BEFORE_1_4 = (
    b'{"htype":["array-1.0"], "type":"uint16", "shape":[64,48], "frame":%d, "timeStamp":1037719800.25, '
    b'"encoding":"", "ndattr":{"File":"C:\\data\\"a".tif","Bits":\x0c}}'
)
SINCE_1_4 = (
    b'{"htype":"array-1.0", "type":"uint16", "shape":[48,64], "frame":%d, "timeStamp":1037719800.25, '
    b'"encoding":"", "ndattr":{"ColorMode":0}}'
)
STD_DAQ = b'{"htype":"array-1.0", "shape":[48,64], "type":"uint16", "frame":%d}'
CHUNK = b'{"htype":["chunk-1.0"], "shape":[64,48], "type":"uint16", "frame":%d}'


def pixels(number: int) -> NDArray[np.uint16]:
    y, x = np.indices((ROWS, COLUMNS))
    return ((number * 7 + y * 3 + x) % 65521).astype(np.uint16)


class Pixels(Analysis):
    """Compares every pixel with what was sent."""

    name = "pixels"

    def accepts(self, frame: Frame) -> bool:
        return True

    def reduce(self, frame: Frame) -> Reduced:
        if not np.array_equal(frame.image, pixels(frame.number)):
            raise BadFrame("pixels", "not what was sent")
        return Reduced(frame.series, frame.number, {})

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        return Result(self.name, reduced.series, reduced.number, {})


class Camera:
    """The socket of a sender, and a pipeline that reads it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> None:
        self.socket = context.socket(kind)
        self.socket.linger, self.socket.sndtimeo, self.socket.rcvtimeo = 0, *[int(1000 * DEADLINE_S)] * 2
        self.socket.sndhwm = 1000
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        options = "" if kind == zmq.XPUB else "?socket=pull"
        source = open_source(f"array+tcp://127.0.0.1:{port}{options}")
        self.pipeline = Pipeline(source, [Pixels()], Decider([]), [], limits=Limits(when_behind="wait"))
        self.pipeline.start()
        if kind == zmq.XPUB:
            assert self.socket.recv() == b"\x01"  # the subscription

    def send(self, header: bytes, *numbers: int) -> None:
        for number in numbers:
            self.socket.send_multipart([header % number, pixels(number).tobytes()])

    def status(self, messages: int) -> Status:
        """What became of so many messages, when the stream was stopped behind them."""
        deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
        while self.pipeline.ledger.wire().messages < messages and time.monotonic() < deadline:
            pause.wait(0.005)
        self.pipeline.stop()
        status = self.pipeline.join()
        assert all(account.unaccounted == account.pending == 0 for account in status.closed)
        return status


@pytest.fixture
def camera() -> Iterator[Callable[[int], Camera]]:
    """Starts a camera with a socket of some kind."""
    cameras: list[Camera] = []
    with zmq.Context() as context:

        def start(kind: int) -> Camera:
            cameras.append(Camera(context, kind))
            return cameras[-1]

        yield start
        for one in cameras:
            one.socket.close()


@pytest.mark.parametrize("kind", [zmq.PUSH, zmq.XPUB], ids=["PUSH", "PUB"])
@pytest.mark.parametrize("header", [BEFORE_1_4, SINCE_1_4, STD_DAQ], ids=["before 1.4.0", "since 1.4.0", "std-daq"])
def test_frames_that_the_camera_dropped_are_missing_and_a_restart_begins_a_series(
    camera: Callable[[int], Camera], kind: int, header: bytes
) -> None:
    plugin = camera(kind)
    plugin.send(header, *range(1, 17), *range(19, 41))
    plugin.send(header, *range(1, 16))
    status = plugin.status(messages=2 + 38 + 15)
    assert status.wire.malformed == {}
    first, second = status.closed
    assert (first.announced, first.analysed, first.missing) == (40, 38, 2)
    assert (second.announced, second.analysed, second.missing) == (15, 15, 0)


def test_the_predecessor_is_counted_as_of_another_type(camera: Callable[[int], Camera]) -> None:
    plugin = camera(zmq.PUSH)
    plugin.send(CHUNK, 1, 2, 3)
    plugin.send(STD_DAQ, 4)
    status = plugin.status(messages=5)
    assert status.wire.malformed == {"type": 3}
    assert sum(account.analysed for account in status.closed) == 1
