"""Time per stage, latency and rate, in bounded memory. Safe to call from several threads."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from typing import NamedTuple

import numpy as np

# Logarithmic bins 2 % wide from 10 µs to 100 s: a day's latencies take no more room than a minute's.
EDGES_S = np.geomspace(1e-5, 1e2, 815)
_EDGES_S = EDGES_S.tolist()


class Lap(NamedTuple):
    """seconds: by the clock. waited_s: those in which the thread did not run: it waited for the interpreter lock or a
    core."""

    seconds: float
    waited_s: float


class Stopwatch:
    """Time that passed, and time that the calling thread ran in it."""

    def __init__(self) -> None:
        self._began, self._ran = time.perf_counter(), time.thread_time()

    def lap(self) -> Lap:
        """Since the last lap, or since the watch was made."""
        began, ran = self._began, self._ran
        self._began, self._ran = time.perf_counter(), time.thread_time()
        seconds = self._began - began
        return Lap(seconds, max(0.0, seconds - (self._ran - ran)))


class Timing:
    """What the frames' way through the pipeline took."""

    def __init__(self) -> None:
        self._latencies = np.zeros(EDGES_S.size + 1, dtype=np.int64)
        self._recent: deque[float] = deque(maxlen=1024)
        self._stages: dict[str, tuple[float, float, int]] = {}
        self._frames = 0
        self._rate_from: tuple[float, int] | None = None
        self._lock = threading.Lock()

    def stage(self, name: str, lap: Lap, frames: int = 1) -> None:
        """One stage took this long for so many frames."""
        with self._lock:
            seconds, waited_s, count = self._stages.get(name, (0.0, 0.0, 0))
            self._stages[name] = (seconds + lap.seconds, waited_s + lap.waited_s, count + frames)

    def frame(self, latency_s: float | None) -> None:
        """A frame was decided, this long after it was received (None where nobody stamped it)."""
        with self._lock:
            self._frames += 1
            if latency_s is not None:
                self._latencies[bisect_left(_EDGES_S, latency_s)] += 1
                self._recent.append(latency_s)

    @property
    def frames(self) -> int:
        """How many were decided."""
        return self._frames

    def take_stages(self) -> dict[str, tuple[float, float]]:
        """Stage → mean milliseconds per frame since the last call, and the share of them in which it waited."""
        with self._lock:
            stages, self._stages = self._stages, {}
        return {
            name: (1e3 * seconds / count, waited_s / seconds if seconds else 0.0)
            for name, (seconds, waited_s, count) in stages.items()
            if count
        }

    def take_rate(self, now: float) -> float:
        """Frames per second decided since the last call. now: monotonic seconds."""
        with self._lock:
            began, self._rate_from = self._rate_from, (now, self._frames)
            if began is None or now <= began[0]:
                return 0.0
            return (self._frames - began[1]) / (now - began[0])

    def recent_ms(self) -> dict[str, float]:
        """Percentiles of the last 1024 latencies."""
        with self._lock:
            recent = list(self._recent)
        if not recent:
            return {}
        p50, p99 = np.percentile(recent, [50, 99])
        return {"p50": 1e3 * float(p50), "p99": 1e3 * float(p99), "max": 1e3 * max(recent)}

    def overall_ms(self) -> dict[str, float]:
        """Percentiles of every latency of the run, rounded up to the edge of a bin."""
        with self._lock:
            cumulative = np.cumsum(self._latencies)
        total = int(cumulative[-1])
        if not total:
            return {}
        places = np.searchsorted(cumulative, np.array([0.5, 0.99, 1.0]) * total)
        p50, p99, longest = 1e3 * EDGES_S[np.minimum(places, EDGES_S.size - 1)]
        return {"p50": float(p50), "p99": float(p99), "max": float(longest)}
