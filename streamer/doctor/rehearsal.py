"""A detector's messages out of memory, as fast as they are taken: what the pipeline is rehearsed and measured with.

A few images are encoded once, in DECTRIS stream v2. From then on an image message costs four bytes: its number is
written over the one before, into the next of COPIES buffers, so that a message is never changed while it is still on
its way, and the bytes come from memory and not from a cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamer.pixels import Scratch
from streamer.records import Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.reduce.detector import Geometry
from streamer.sources import Message, Source
from streamer.sources.instrument import SATURATION, parasitic, suspension
from streamer.sources.simulated import Simulated
from streamer.wire import Kind
from streamer.wire.dectris2 import Dectris2

Size = Literal["128k", "500k", "1M", "4M"]
"""Of a simulated detector."""

IMAGES = 8
"""Different ones, taken in turn: a branch predictor learns one."""

MEAN = 3.0
"""Expected counts per good pixel: what a SAXS detector at an undulator sees in a millisecond or two."""

COPIES = 96
"""Buffers of image messages: more than a pipeline's queue, its workers and a socket hold at a time."""

LEAST_Q = 0.05
"""1/nm: where the simulated instrument's beamstop begins, and Porod's law would end in infinity."""

CHANNEL = "threshold_1"
ANY_NUMBER = 0x7A_5E_ED_01
"""Encoded as four bytes behind a head of one, as every number is that is written over it."""


class Series:
    """The messages of one series: a start, images without end, an end.

    start: as it is encoded. images: (rows, columns) uint16, all of one shape. geometry: what the start announces.
    nbytes: of an image message, on average.
    """

    def __init__(self, start: SeriesStart, images: Sequence[NDArray[np.uint16]], geometry: Geometry) -> None:
        self.start, self.images, self.geometry = start, images, geometry
        format = Dectris2()  # noqa: A001
        (self.opening,) = format.encode(start)
        (self.closing,) = format.encode(SeriesEnd(start.series))
        encoded = [format.encode([Frame(image, start.series, ANY_NUMBER, CHANNEL)])[0] for image in images]
        self.templates = [bytes(message) for message in encoded]
        marked = b"\x1a" + ANY_NUMBER.to_bytes(4, "big")
        self.places = [message.index(marked) + 1 for message in self.templates]
        self.nbytes = sum(map(len, self.templates)) // len(self.templates)
        self._copies: list[bytearray] = []

    def image(self, number: int) -> bytearray:
        """The message of one image. It is valid until COPIES others were asked for."""
        if not self._copies:
            self._copies = [bytearray(self.templates[i % len(self.templates)]) for i in range(COPIES)]
        turn = number % COPIES
        copy, place = self._copies[turn], self.places[turn % len(self.places)]
        copy[place : place + 4] = number.to_bytes(4, "big")
        return copy


class Rehearsal(Source):
    """A series as a source: images for some seconds from the first one on, or `frames` of them.

    sent: images given out so far.
    """

    url = "memory:rehearsal"

    def __init__(self, series: Series, *, seconds: float | None = None, frames: int | None = None) -> None:
        self.series = series
        self.sent = 0
        self._format = Dectris2()
        self._messages = self._play(seconds, frames)

    def receive(self, timeout_s: float) -> Message | None:
        try:
            return next(self._messages)
        except StopIteration:
            raise EOFError from None

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        return self._format.decode(message.parts, scratch=scratch, received_ns=message.received_ns)

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        return self._format.identify(message.parts)

    def _play(self, seconds: float | None, frames: int | None) -> Iterator[Message]:
        yield self._message(self.series.opening, "start")
        until = None
        while frames is None or self.sent < frames:
            if until is None:
                until = time.monotonic() + seconds if seconds is not None else float("inf")
            elif time.monotonic() > until:
                break
            self.sent += 1
            yield self._message(self.series.image(self.sent - 1), "image")
        yield self._message(self.series.closing, "end")

    @staticmethod
    def _message(octets: Any, kind: Kind) -> Message:
        return Message([memoryview(octets)], kind, len(octets), time.monotonic_ns())


def simulated(detector: Size, mean: float = MEAN) -> Series:
    """IMAGES exposures of the simulated instrument, always the same ones."""
    source = Simulated(detector=detector, mean=mean, frames=IMAGES, rate="max", seed=0)
    images: list[NDArray[np.uint16]] = []
    while len(images) < IMAGES:
        message = source.receive(1.0)
        records = source.decode(message) if message is not None else []
        images += [record.image for record in records if isinstance(record, Frame)]
    source.close()
    return Series(replace(source.start, images=None), images, source.geometry)


def like(geometry: Geometry, mean: float = MEAN) -> Series:
    """IMAGES exposures of the simulated sample as a detector of this geometry would count them. Raises BadInput."""
    q = geometry.q("1/nm")
    is_used = np.ones(q.shape, np.bool_) if geometry.mask is None else ~geometry.mask
    axis = np.geomspace(LEAST_Q, max(2 * LEAST_Q, float(q.max())), 4096)
    scattered = np.interp(q, axis, suspension(axis) + parasitic(axis))
    expected = scattered * (mean / float(scattered[is_used].mean()))
    photons = np.random.Generator(np.random.SFC64(0))
    images = [np.minimum(photons.poisson(expected), SATURATION).astype(np.uint16) for _ in range(IMAGES)]
    for image in images:
        image[~is_used] = np.iinfo(np.uint16).max
    start = SeriesStart(
        SeriesKey(1, "rehearsal"),
        shape=q.shape,
        dtype=np.dtype(np.uint16),
        channels=(CHANNEL,),
        saturation=SATURATION,
        wavelength_A=geometry.wavelength_A,
        detector=geometry.detector,
    )
    return Series(start, images, geometry)
