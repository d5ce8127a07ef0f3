"""Live runs against DectrisSim of libertem-dectris, a detector not written here, in stream version 1.

Every pixel of its frame k is k, which is checked pixel by pixel. What it does differently from a detector: the header
and the configuration are two messages; the 12 bytes before the blocks of an image are zero; all images have the same
times; the series id is 34 in every run, as if the detector had been restarted between them.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.config import open_source
from streamer.decide import Decider
from streamer.pipeline import Limits, Pipeline
from streamer.records import BadFrame, Frame, Reduced, Result, SeriesKey, SeriesStart, Status
from streamer.sources.live import Live

pytestmark = pytest.mark.peers

SIMULATOR = Path(__file__).parent.parent / "peers" / "dectris_sim.py"
DEADLINE_S = 60.0

Check = Callable[[Frame], bool]


class Pixels(Analysis):
    """Keeps the starts, and the numbers of the frames whose pixels and all else are as they must be."""

    name = "pixels"

    def __init__(self, is_right: Check) -> None:
        self.starts: list[SeriesStart] = []
        self.right: list[tuple[int, int]] = []
        self._is_right = is_right
        self._lock = threading.Lock()

    def begin(self, series: SeriesStart) -> None:
        self.starts.append(series)

    def accepts(self, frame: Frame) -> bool:
        return True

    def reduce(self, frame: Frame) -> Reduced:
        if not self._is_right(frame):
            raise BadFrame("pixels", "not what was sent")
        with self._lock:
            self.right.append((frame.series.number, frame.number))
        return Reduced(frame.series, frame.number, {})

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        return Result(self.name, reduced.series, reduced.number, {})

    def came(self, series: int) -> list[int]:
        """Numbers of the frames of a series, ascending."""
        return sorted(number for key, number in self.right if key == series)


class Run:
    """A pipeline that reads a detector, and its accounts when it is over."""

    def __init__(self, address: str, is_right: Check) -> None:
        self.pixels = Pixels(is_right)
        self.source = open_source(f"dectris1+{address}")
        self.pipeline = Pipeline(self.source, [self.pixels], Decider([]), [], limits=Limits(when_behind="wait"))
        self.pipeline.start()

    def waits_for(self, is_so: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
        """Until something is so; fails when it does not become so in time."""
        deadline, pause = time.monotonic() + within_s, threading.Event()
        while not is_so():
            assert time.monotonic() < deadline, (self.pipeline.ledger.wire(), self.pipeline.ledger.accounts())
            pause.wait(0.01)

    def waits_for_connection(self) -> None:
        assert isinstance(self.source, Live)
        source = self.source
        self.waits_for(lambda: source.connection == "connected")

    def waits_for_frames(self, frames: int) -> None:
        """Until so many have come in all, and every series is closed."""
        ledger = self.pipeline.ledger
        self.waits_for(lambda: ledger.wire().accepted >= frames and all(each.closed_by for each in ledger.accounts()))

    def waits_for_silence(self) -> None:
        """Until no message came for two seconds; for senders of which nobody knows how much will come."""
        seen, since, ledger = -1, time.monotonic(), self.pipeline.ledger

        def is_silent() -> bool:
            nonlocal seen, since
            if ledger.wire().messages != seen:
                seen, since = ledger.wire().messages, time.monotonic()
            return time.monotonic() - since > 2.0

        self.waits_for(is_silent)

    def ends(self) -> Status:
        """The last status, after the stream was stopped; every frame and message of it under a name."""
        self.pipeline.stop()
        status = self.pipeline.join()
        assert all(account.unaccounted == account.pending == 0 for account in status.closed)
        wire = status.wire
        counted = wire.control + wire.accepted + wire.duplicate + wire.late + wire.stale + wire.unannounced
        assert wire.messages == counted + sum(wire.malformed.values())
        assert wire.malformed == {}
        return status


@contextmanager
def simulator(python: Path, address: str, frames: int, log: Path) -> Iterator[None]:
    with log.open("a") as said:
        command = [str(python), str(SIMULATOR), address, str(frames)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        try:
            yield
        finally:
            process.kill()
            process.communicate()


def holds_its_number(frame: Frame) -> bool:
    return (
        frame.image.shape == (512, 512)
        and frame.image.dtype == np.uint16
        and bool((frame.image == frame.number).all())
        and (frame.start_s, frame.real_s) == (Fraction(5396052835800, 10**9), Fraction(1, 2000))
    )


@pytest.fixture
def address(free_port: int) -> str:
    return f"tcp://127.0.0.1:{free_port}"


def test_every_pixel_of_every_frame_of_two_runs_is_what_was_sent(
    peers_python: Path, address: str, tmp_path: Path
) -> None:
    run = Run(address, holds_its_number)
    for frames, in_all in ((300, 300), (120, 420)):
        with simulator(peers_python, address, frames, tmp_path / "simulator.log"):
            run.waits_for_frames(in_all)
    status = run.ends()
    assert [
        (account.series, account.announced, account.analysed, account.closed_by, account.is_announced)
        for account in status.closed
    ] == [(SeriesKey(34), frames, frames, "end", True) for frames in (300, 120)]
    totals = run.pipeline.ledger.totals()
    assert (totals["announced"], totals["analysed"], totals["unaccounted"]) == (420, 420, 0)
    assert run.pixels.came(34) == sorted([*range(300), *range(120)])
    # header, configuration and end, twice
    assert (status.wire.control, status.wire.accepted, status.wire.out_of_order) == (6, 420, 0)

    start = run.pixels.starts[0]
    assert [each.images for each in run.pixels.starts] == [300, 120]
    assert (start.shape, start.dtype, start.saturation) == ((512, 512), np.uint16, 3825)
    assert (start.distance_m, start.energy_eV) == (None, None)
    assert start.wavelength_A == pytest.approx(1.5419)
    assert (start.pixel_size_m, start.detector) == ((75e-6, 75e-6), "Dectris QUADRO Si 250K")
    assert (start.extra["ntrigger"], start.extra["trigger_mode"]) == (300, "exte")
