"""`latency`: from a frame's receipt to its decision and its result on the results socket, at a detector's pace.

The clock starts when ZeroMQ hands the message over (`Frame.received_ns`) and stops when both the rule, with
`for_frames = 1`, has decided and the ZeroMQ output has sent the result. The sender shares the cores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamer import compression
from streamer.decide import Decider
from streamer.demo import free_ports
from streamer.doctor.capacity import RULE
from streamer.outputs.zeromq import Zeromq
from streamer.pipeline import Limits, Pipeline
from streamer.records import Alarm, Result
from streamer.sources.live import Live
from streamer.wire.dectris2 import Dectris2
from tools.benches import sender
from tools.benches.frames import describe, saxs, series
from tools.benches.measure import Report

RATE_HZ = 100.0
WARM_FRAMES = 100
DEADLINE_S = 60.0

Moments = dict[int, int]
"""Frame number → monotonic nanoseconds."""


class Deciding(Decider):
    """Notes when each frame was decided."""

    def __init__(self) -> None:
        super().__init__([RULE])
        self.decided: Moments = {}

    def decide(self, result: Result, wall_time: float) -> list[Alarm]:
        alarms = super().decide(result, wall_time)
        self.decided[result.number] = time.monotonic_ns()
        return alarms


class Publishing(Zeromq):
    """Notes when each result was received and when it was sent."""

    when_full = "wait"

    def __init__(self) -> None:
        super().__init__("tcp://127.0.0.1:0")
        self.received: Moments = {}
        self.sent: Moments = {}

    def write(self, result: Result) -> None:
        super().write(result)
        self.received[result.number] = result.received_ns
        self.sent[result.number] = time.monotonic_ns()


def bench(report: Report, detectors: Sequence[str], seconds: float, workers: int, device: str) -> None:
    """One run on every detector."""
    compression.warm()
    for detector in detectors:
        describe(report, detector)
        with tempfile.TemporaryDirectory(prefix="streamer-bench-") as folder:
            messages = sender.write(series(detector), Path(folder))
            ms, sent = _latencies_ms(detector, messages, seconds, workers, device)
        p50, p90, p99 = np.percentile(ms, [50, 90, 99])
        report.line(
            "latency",
            f"{detector} socket {RATE_HZ:g} Hz, {workers} workers, {device}",
            frames=sent,
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            max_ms=float(ms.max()),
        )


def _latencies_ms(detector: str, messages: Path, seconds: float, workers: int, device: str) -> tuple[np.ndarray, int]:
    analysis, decider, output = saxs(detector, device), Deciding(), Publishing()
    (port,) = free_ports(1)
    with sender.running(messages, port, seconds, RATE_HZ) as process:
        source = Live(f"tcp://127.0.0.1:{port}", Dectris2())
        limits = Limits(workers=workers, when_behind="wait")
        pipeline = Pipeline(source, [analysis], decider, [output], limits=limits)
        pipeline.start()
        sent = int(process.communicate(timeout=seconds + DEADLINE_S)[0])
        deadline = time.monotonic() + DEADLINE_S
        while len(output.sent) < sent and time.monotonic() < deadline:
            time.sleep(0.01)
        pipeline.stop()
        pipeline.join()
    if len(output.sent) != sent:
        raise SystemExit(f"latency: of {sent} frames sent {len(output.sent)} were published")
    numbers = [number for number in output.sent if number >= min(WARM_FRAMES, sent // 2)]
    done = np.array([max(output.sent[number], decider.decided[number]) for number in numbers])
    return 1e-6 * (done - np.array([output.received[number] for number in numbers])), sent
