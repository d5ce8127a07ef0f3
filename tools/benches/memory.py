"""`memory`: does the resident set grow over a long series of small frames?

The images are those of the simulated detector with 4 × 4 pixels made one, and the series is one: what is kept per
frame, per bin or per message shows. The resident set is read at a tenth of the frames and at the last one, and in
between for whoever wants to see the curve.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer import compression
from streamer.analyses.saxs import Saxs
from streamer.decide import Decider
from streamer.doctor.capacity import RULE
from streamer.doctor.rehearsal import CHANNEL, Rehearsal, Series, simulated
from streamer.outputs import Output
from streamer.pipeline import Limits, Pipeline
from streamer.records import Alarm, Result
from streamer.reduce.detector import geometry_of
from streamer.sources.instrument import NODATA
from tools.benches.measure import Report

DETECTOR = "128k"
BINNED = 4
BINS = 100
LOOKS = 20


class Looking(Output):
    """Reads the resident set when certain frames come."""

    name = "looking"
    when_full = "wait"

    def __init__(self, frames: int) -> None:
        self.count = 0
        self.resident_MB: dict[int, float] = {}
        self._wanted = {frames // 10, frames, *(frames * i // LOOKS for i in range(1, LOOKS))}

    def write(self, result: Result) -> None:
        self.count += 1
        if self.count in self._wanted:
            self.resident_MB[self.count] = resident_MB()

    def alarm(self, alarm: Alarm) -> None:
        """Alarms are few."""


def bench(report: Report, frames: int) -> None:
    """One long run."""
    compression.warm()
    series = small(simulated(DETECTOR))
    analysis, output = Saxs(bins=BINS, device="cpu"), Looking(frames)
    source = Rehearsal(series, frames=frames)
    pipeline = Pipeline(source, [analysis], Decider([RULE]), [output], limits=Limits(when_behind="wait"))
    began = time.monotonic()
    pipeline.start()
    (account,) = pipeline.join().closed
    seconds = time.monotonic() - began
    if account.analysed != frames or account.unaccounted:
        raise SystemExit(f"memory: of {frames} frames sent {account.analysed} were analysed")
    early, late = output.resident_MB[frames // 10], output.resident_MB[frames]
    rows, columns = series.images[0].shape
    report.line(
        "memory",
        f"{frames} frames of {rows}×{columns}",
        fps=frames / seconds,
        early_frames=frames // 10,
        early_MB=early,
        late_MB=late,
        growth_MB=late - early,
        resident_MB={str(count): round(MB, 1) for count, MB in sorted(output.resident_MB.items())},
    )


def small(series: Series) -> Series:
    """The same instrument with BINNED × BINNED pixels added up, masked where one of them was."""
    start, masked = series.start, series.start.mask[CHANNEL]
    x, y = start.pixel_size_m or (0.0, 0.0)
    column, row = start.beam_center or (0.0, 0.0)
    mask = _added_up(masked) > 0
    images = [
        np.where(mask, NODATA, _added_up(np.where(masked, 0, image))).astype(np.uint16) for image in series.images
    ]
    rows, columns = mask.shape
    smaller = replace(
        start,
        shape=(rows, columns),
        pixel_size_m=(BINNED * x, BINNED * y),
        beam_center=(column / BINNED, row / BINNED),
        mask={CHANNEL: mask},
    )
    return Series(smaller, images, geometry_of(smaller, CHANNEL))


def _added_up(image: NDArray[Any]) -> NDArray[np.int64]:
    """(rows, columns) → (rows / BINNED, columns / BINNED); what is left over at the edges is cut off."""
    rows, columns = (length // BINNED for length in image.shape)
    cut = image[: rows * BINNED, : columns * BINNED].astype(np.int64)
    return cut.reshape(rows, BINNED, columns, BINNED).sum(axis=(1, 3))


def resident_MB() -> float:
    """The resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
