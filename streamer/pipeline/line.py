"""A message's place in line, what became of it, and how much may wait."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from streamer.pipeline.neighbours import Analysis
from streamer.pipeline.timing import Lap
from streamer.queues import Closed, Queue
from streamer.records import BadFrame, Reduced, Result, SeriesEnd, SeriesKey, SeriesStart

POLL_S = 0.1  # how soon a thread that waits notices that the stream was stopped
MOST_AHEAD = 64  # frames reduced and waiting for the model: when they pile up, the work queue fills and its rule holds
ORDER_SIZE = 4096  # messages between socket and ledger, whatever they weigh; their bytes are bounded by the work queue


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, and for how long.

    workers: threads that decode and reduce. when_behind: "skip" gives up the oldest frame and counts it, "wait" pushes
    back on the detector. queue_frames, queue_bytes: messages waiting to be decoded. max_batch, max_wait_s: frames asked
    of a model at once, and how long they wait for those behind them. drain_s: how long frames already received may
    take once the stream is stopped.
    """

    workers: int = 2
    when_behind: Literal["skip", "wait"] = "skip"
    queue_frames: int = 64
    queue_bytes: int = 256 * 2**20
    max_batch: int = 16
    max_wait_s: float = 0.002
    drain_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What all analyses made of one frame, before the models were asked; or what another streamer already said of it.

    is_more: the frame was counted already, and this is another result of it.
    """

    series: SeriesKey
    number: int
    received_ns: int
    reduced: Sequence[tuple[Analysis, Reduced]] = ()
    results: Sequence[Result] = ()
    is_more: bool = False


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A frame that a full queue gave up before it was decoded."""

    series: SeriesKey
    number: int


Outcome = SeriesStart | SeriesEnd | Answer | GivenUp | BadFrame | None


@dataclass(slots=True, eq=False)
class Slot:
    """One message's place in line. The message goes away as soon as it is worked off.

    is_taken: a worker took it, and it counts among those that are ahead of the model.
    is_done: it is worked off, and `outcome` says what became of it. laps: stage → what it took there; entered into the
    account later, where it is done for many frames at once.
    """

    message: Any | None
    kind: str | None
    received_ns: int
    outcome: Outcome = None
    is_taken: bool = False
    is_done: bool = False
    laps: list[tuple[str, Lap]] = field(default_factory=list)

    @property
    def is_image(self) -> bool:
        """Only an image may be given up, and only an image may be worked on beside others."""
        return self.kind == "image"


class Line(Queue[Slot]):
    """Messages in the order of arrival. They are worked off in any order, and leave the line in this one."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._awaited = 1

    def finish(self, slot: Slot, outcome: Outcome) -> None:
        """The message is worked off."""
        slot.outcome = outcome
        slot.message = None
        slot.is_done = True
        if self._takers_waiting:
            with self._lock:
                if self._are_done(self._awaited):
                    self._takers.notify()

    def take_done(self, most: int, max_wait_s: float, timeout_s: float) -> list[Slot]:
        """The first messages in line, as far as they are worked off, at most `most`; none after timeout_s.

        Those behind them are waited for, max_wait_s in all, but only while there are any: a frame that comes alone is
        not kept waiting for company. Where so many stand in line that latency is lost anyway, max_wait_s is waited for
        each of them: full batches get through a line fastest. Raises Closed once the line is closed and empty.
        """
        with self._lock:
            if not self._wait_for(1, timeout_s):
                return []
            if not self._items:
                raise Closed
            slots = self._pop_done(most)
            behind = min(most - len(slots), len(self._items))
            if behind and self._wait_for(behind, max_wait_s * (behind if len(self._items) >= most else 1)):
                slots += self._pop_done(most - len(slots))
            return slots

    def _wait_for(self, count: int, timeout_s: float) -> bool:
        """Wait until so many at the head are done, or some are and it took too long; whether any is."""
        self._awaited = count
        self._wait_to_take(lambda: self._are_done(count) or (self._closed and not self._items), timeout_s)
        return self._are_done(1) or (self._closed and not self._items)

    def _pop_done(self, most: int) -> list[Slot]:
        slots: list[Slot] = []
        while len(slots) < most and self._are_done(1):
            slots.append(self._pop())
        return slots

    def _wake_a_taker(self) -> None:
        """Nobody: what has just come is not worked off yet."""

    def _are_done(self, count: int) -> bool:
        return len(self._items) >= count and all(slot.is_done for slot, _ in itertools.islice(self._items, count))
