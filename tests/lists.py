"""A source whose messages are a list of records, for whatever is behind the wire."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamer.records import BadFrame, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.sources import Message

KEY = SeriesKey(7, "seven")


def frame(number: int, value: float = 0.0, *, key: SeriesKey = KEY, channel: str = "") -> Frame:
    return Frame(image=np.full((2, 2), value, dtype=np.float32), series=key, number=number, channel=channel)


def series(numbers: Sequence[int], images: int | None = None) -> list[list[WireRecord] | BadFrame]:
    """A start, frames whose pixels hold their number, and an end."""
    announced = len(numbers) if images is None else images
    middle: list[list[WireRecord] | BadFrame] = [[frame(number, number)] for number in numbers]
    return [[SeriesStart(KEY, images=announced)], *middle, [SeriesEnd(KEY)]]


@dataclass
class ListSource:
    """Gives what is in a list; a BadFrame in it is what decoding that message raises."""

    items: list[list[WireRecord] | BadFrame]
    url: str = "list"
    counts: Mapping[str, int] = field(default_factory=dict)
    may_end: threading.Event = field(default_factory=threading.Event)
    given: int = 0
    is_exclusive: bool = False
    readers: int = 1

    def __post_init__(self) -> None:
        self.may_end.set()

    def receive(self, timeout_s: float) -> Message | None:
        if self.given == len(self.items):
            if self.may_end.wait(timeout_s):
                raise EOFError
            return None
        item = self.items[self.given]
        self.given += 1
        return Message([item], _kind(item), nbytes=100, received_ns=1)

    def decode(self, message: Message, *, scratch: Any = None) -> list[WireRecord]:
        item = message.parts[0]
        if isinstance(item, BadFrame):
            raise item
        return item

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        first = message.parts[0][0]
        return first.series, first.number

    def close(self) -> None:
        pass


def _kind(item: list[WireRecord] | BadFrame) -> Any:
    if isinstance(item, BadFrame) or not item:
        return None
    return {SeriesStart: "start", Frame: "image", SeriesEnd: "end"}[type(item[0])]
