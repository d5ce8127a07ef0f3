"""A message's place in line, what became of it, and how much may wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from streamer.pipeline.neighbours import Analysis
from streamer.records import BadFrame, Reduced, Result, SeriesEnd, SeriesKey, SeriesStart

POLL_S = 0.1  # how soon a thread that waits notices that the stream was stopped
MOST_AHEAD = 64  # frames reduced and waiting for the model: when they pile up, the work queue fills and its rule holds
ORDER_SIZE = 4096  # messages between socket and ledger, whatever they weigh; their bytes are bounded by the work queue


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, and for how long.

    workers: threads that decode and reduce. when_behind: "skip" gives up the oldest frame and counts it, "wait" pushes
    back on the detector. queue_frames, queue_bytes: messages waiting to be decoded. max_batch, max_wait_s: frames asked
    of a model at once, and how long the first of them waits for company. drain_s: how long frames already received may
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
    """

    message: Any | None
    kind: str | None
    received_ns: int
    outcome: Outcome = None
    is_taken: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_image(self) -> bool:
        """Only an image may be given up, and only an image may be worked on beside others."""
        return self.kind == "image"

    def finish(self, outcome: Outcome) -> None:
        """The message is worked off."""
        self.outcome = outcome
        self.message = None
        self.done.set()
