"""Readers of a relay that take a message only when the test says so, and a source they are fed from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import zmq

from streamer.records import Frame, SeriesEnd, SeriesKey, SeriesStart
from streamer.relay.backlog import Delivered
from streamer.relay.destinations import Destination
from streamer.relay.fanout import Fanout
from streamer.sources import Message
from streamer.wire.dectris2 import Dectris2

DEADLINE_S = 20.0
SERIES = SeriesKey(7, "relayed")
WIRE = Dectris2()
NOISE = np.random.default_rng(1).integers(0, 60_000, (400, 500), np.uint16)


def start(images: int | None = None) -> Message:
    return _message(WIRE.encode(SeriesStart(SERIES, images=images)))


def image(number: int, *, is_large: bool = False) -> Message:
    """A small image, or one of 400 kB: a few of these fill the buffers of a connection nobody reads from."""
    pixels = NOISE if is_large else np.full((2, 3), number, np.uint16)
    return _message(WIRE.encode([Frame(pixels, SERIES, number, "threshold_1")]))


def end() -> Message:
    return _message(WIRE.encode(SeriesEnd(SERIES)))


def _message(parts: list[bytes]) -> Message:
    return Message(parts, WIRE.kind(parts), sum(map(len, parts)), time.monotonic_ns())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@contextmanager
def fanning_out(*destinations: Destination) -> Iterator[Fanout]:
    with Fanout(destinations, is_one_part=True) as fanout:
        yield fanout


class Reader:
    """A PULL or SUB socket with small buffers. It takes a message only when `take` is called."""

    def __init__(self, context: zmq.Context, address: str, kind: int = zmq.PULL, *, small: bool = False) -> None:
        self.socket = context.socket(kind)
        self.socket.linger = 0
        self.socket.rcvtimeo = round(DEADLINE_S * 1000)
        if small:
            self.socket.rcvhwm = 1
            self.socket.rcvbuf = 4096
        if kind == zmq.SUB:
            self.socket.subscribe(b"")
        self.socket.connect(address)

    def take(self, n: int) -> list[str]:
        """What the next n messages are: "start", "end", or a number."""
        return [self._name(self.socket.recv_multipart()) for _ in range(n)]

    def take_all(self) -> list[str]:
        """Everything that still comes."""
        names = []
        while self.socket.poll(500):
            names.append(self._name(self.socket.recv_multipart()))
        return names

    def take_everything(self) -> list[list[bytes]]:
        """Everything that still comes, as it comes."""
        messages = []
        while self.socket.poll(1000):
            messages.append(self.socket.recv_multipart())
        return messages

    def close(self) -> None:
        self.socket.close()

    @staticmethod
    def _name(parts: list[bytes]) -> str:
        kind = WIRE.kind(parts[:1])
        return str(WIRE.identify(parts)[1]) if kind == "image" else str(kind)


def lane(fanout: Fanout, index: int = 0) -> Delivered:
    return fanout.account()[index]
