"""What every source shares whose messages come from a wire, live or recorded: one format, and the series in it.

Series. Some formats have none: an areaDetector camera only counts. `Runs` makes series of such numbers, in the order of
arrival: a run lasts as long as its numbers do not fall back, and begins with a start that streamer writes itself, so
that everything behind it sees what it sees of any detector.

Results. Another streamer's results come one message per analysis and channel; together they are one frame.

Wrong prefix. A message that its format cannot use, and that another format claims, is refused with that one's name.

Threads. `receive` is called from one thread, `decode` and `identify` from any.
"""

from __future__ import annotations

import abc
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from streamer.pixels import Scratch
from streamer.records import BadFrame, Buffer, Frame, SeriesKey, SeriesStart, WireRecord
from streamer.sources import Message, Source
from streamer.wire import Format

log = structlog.get_logger(__name__)

REORDERED = 64
"""How many frames a number may fall back and still be one that was overtaken. Parallel connections shuffle frames; a
camera that was restarted falls back to its first number, which came already or lies further away."""

REPEAT_S = 1.0
"""Repeated news are summed to one in this time."""

MOST_SENDERS = 64
"""Senders told apart by the name in their messages. A name is read from the wire, so their number is bounded."""

Claim = tuple[str, str]
"""The name and the title of a format."""


class Wired(Source):
    """A source of wire messages. The class that derives from it offers `format` and `_arrivals`.

    recognise: tells which format a message is of, among all there are; None if nobody claims it.
    """

    format: Format
    recognise: Callable[[Sequence[Buffer]], Claim | None] = staticmethod(lambda parts: None)

    def __init__(self) -> None:
        self._sorted: deque[Message] = deque()
        self._runs = Runs()
        self._last: tuple[SeriesKey, int] | None = None

    def receive(self, timeout_s: float) -> Message | None:
        if not self._sorted:
            for message in self._arrivals(timeout_s):
                self._sorted.extend(self._sort(message))
        return self._sorted.popleft() if self._sorted else None

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        start: SeriesStart | None = message.extra.get("start")
        if start is not None:
            return [start]
        series: SeriesKey | None = message.extra.get("series")
        try:
            records = self.format.decode(message.parts, scratch=scratch, received_ns=message.received_ns)
        except BadFrame as bad:
            bad.series = series or bad.series
            raise self._explained(bad, message.parts) from bad
        if series is None:
            return records
        return [replace(record, series=series) if isinstance(record, Frame) else record for record in records]

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        series, number = self.format.identify(message.parts)
        return message.extra.get("series", series), number

    @abc.abstractmethod
    def _arrivals(self, timeout_s: float) -> Sequence[Message]:
        """The messages that came within timeout_s, as they came. Raises EOFError after the last one, SourceLost."""

    def _sort(self, message: Message) -> list[Message]:
        """The message with its place among the others, and what has to be said before it."""
        if message.kind != "image" or not (self.format.is_counted or self.format.carries == "results"):
            return [message]
        try:
            key, number = self.format.identify(message.parts)
        except BadFrame:
            return [message]  # whoever decodes it will count it
        if self.format.is_counted:
            return self._in_its_run(message, key.unique, number)
        if self._last == (key, number):
            return [replace(message, kind=None, extra=message.extra | {"more": True})]
        self._last = key, number
        return self._after_its_restart(message, key, number)

    def _after_its_restart(self, message: Message, key: SeriesKey, number: int) -> list[Message]:
        """A result, after a start if its numbers fell back: its detector or its streamer began again under that key."""
        is_known = self._runs.knows(str(key))
        _, is_new = self._runs.place(str(key), number, self.format.step)
        if not (is_known and is_new):
            return [message]
        return [self._start(SeriesStart(key, first=number, received_ns=message.received_ns)), message]

    def _in_its_run(self, message: Message, sender: str, number: int) -> list[Message]:
        series, is_new = self._runs.place(sender, number, self.format.step)
        placed = replace(message, extra=message.extra | {"series": series})
        if not is_new:
            return [placed]
        start = SeriesStart(series, first=number, step=self.format.step, received_ns=message.received_ns)
        return [self._start(start), placed]

    def _start(self, start: SeriesStart) -> Message:
        """A message that nobody sent."""
        return Message((), "start", 0, start.received_ns, {"start": start})

    def _explained(self, bad: BadFrame, parts: Sequence[Buffer]) -> BadFrame:
        """The error, or a better one where the message is of another format."""
        if self.format.claims(parts):
            return bad
        claim = self.recognise(parts)
        if claim is None or claim[0] == self.format.name:
            return bad
        name, title = claim
        address = self.url.partition("+")[2] if "+" in self.url.partition(":")[0] else ""
        remedy = f"open {name}+{address}" if address else f"name the format {name}"
        return BadFrame("format", f"this looks like {title}, not {self.format.title}: {remedy}")


class Runs:
    """Series of running numbers, for each sender its own.

    A run ends where a number falls back: by more than REORDERED, below its first one, or to one that came already. The
    highest number once more is a duplicate of the same run. Runs are numbered from 1.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._count = 0
        self._quiet_until = 0.0

    def knows(self, sender: str) -> bool:
        """Whether a number of this sender was placed before."""
        return sender in self._runs

    def place(self, sender: str, number: int, step: int = 1) -> tuple[SeriesKey, bool]:
        """The series a number belongs to, and whether it begins with it."""
        run = self._runs.get(sender)
        if run is not None and run.takes(number, REORDERED * step):
            run.note(number)
            return run.key, False
        if run is not None:
            self._tell(sender, run.highest, number)
        elif len(self._runs) >= MOST_SENDERS:
            del self._runs[next(iter(self._runs))]
        self._count += 1
        run = self._runs[sender] = _Run(SeriesKey(self._count, sender), number)
        run.note(number)
        return run.key, True

    def _tell(self, sender: str, last: int, now: int) -> None:
        """Once a second: a sender that counts backwards falls back at every message."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + REPEAT_S
            log.info(
                "the running number fell back: a new series", sender=sender, last=last, now=now, series=self._count + 1
            )


class _Run:
    """Numbers that go up."""

    def __init__(self, key: SeriesKey, first: int) -> None:
        self.key = key
        self.first = self.highest = first
        self._latest: deque[int] = deque(maxlen=4 * REORDERED)

    def takes(self, number: int, reordered: int) -> bool:
        if number >= self.highest:
            return True
        return max(self.first, self.highest - reordered) <= number and number not in self._latest

    def note(self, number: int) -> None:
        self.highest = max(self.highest, number)
        self._latest.append(number)
