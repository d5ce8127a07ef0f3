"""What every source that plays something back shares: the schedule, and the order of files.

The schedule begins with the first call of `receive`. A reader that falls behind is not waited for: what is overdue
comes at once until it has caught up, as a detector with a buffer behaves.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from streamer.records import BadConfig
from streamer.sources import Message, Source
from streamer.wire import Kind

Rate = Literal["max"] | float
"""Messages per second, or as fast as they are taken."""


@dataclass(frozen=True, slots=True)
class Cue:
    """A message and its place in the schedule, counted in periods from the first one."""

    place: float
    parts: Sequence[Any]
    kind: Kind | None
    nbytes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Playback(Source):
    """A source whose messages are all there and come by the clock. `announced_frames` is known.

    After `_play`, `receive` hands out the cues in order, each when it is due by its `pace`, which may be replaced
    before the first message by one with another clock.
    """

    def __init__(self, url: str, rate: Rate) -> None:
        self.url = url
        self._period_s = period_s(rate, url)
        self.pace = Pace()
        self._cues: Iterator[Cue] = iter(())
        self._due: Cue | None = None

    def play_at(self, rate: Rate) -> None:
        """Another rate than the one it was opened with, before the first message. Raises BadConfig."""
        self._period_s = period_s(rate, self.url)

    def receive(self, timeout_s: float) -> Message | None:
        cue = self._due
        if cue is None:
            raise EOFError(f"{self.url} has been played to its end")
        if not self.pace.wait(cue.place * self._period_s, timeout_s):
            return None
        self._due = next(self._cues, None)
        return Message(cue.parts, cue.kind, cue.nbytes, received_ns=time.monotonic_ns(), extra=cue.extra)

    def close(self) -> None:
        self._due = None

    def _play(self, cues: Iterator[Cue]) -> None:
        self._cues = cues
        self._due = next(cues, None)


class Pace:
    """Waits until a moment of the schedule. The clock is monotonic."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._began: float | None = None

    def wait(self, due_s: float, timeout_s: float) -> bool:
        """Sleep until due_s seconds after the first call, at most timeout_s. True when it is time."""
        now = self._clock()
        if self._began is None:
            self._began = now
        left = self._began + due_s - now
        if left > 0:
            self._sleep(min(left, timeout_s))
        return left <= timeout_s


def period_s(rate: Rate, who: str) -> float:
    """Seconds between two messages, 0 for "max". Raises BadConfig, naming `who`, for a rate that is none."""
    if rate == "max":
        return 0.0
    if not (math.isfinite(rate) and rate > 0):
        raise BadConfig(f"{who}: rate is {rate!r}; expected a positive number of messages per second, or max")
    return 1.0 / rate


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted by name with numbers as numbers: image_2 before image_10."""
    return sorted(paths, key=lambda path: [int(part) if part.isdecimal() else part for part in _digits(path.name)])


def _digits(name: str) -> list[str]:
    return re.split(r"([0-9]+)", name)
