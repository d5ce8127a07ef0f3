"""The start that stands: what a reader that joins in the middle of a series needs to be told first.

Some senders put the start of a series into several messages, so starts in a row belong together.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from streamer.wire import Kind

T = TypeVar("T")

MOST_HEADERS = 8
"""Messages in one start: DECTRIS stream v1 has up to six (configuration, flat field, mask, count rates, appendix)."""


class Standing(Generic[T]):
    """The messages of the start that stands, none before the first start and after an end.

    is_one_part: a start is one message, so that of several in a row only the last one stands.
    """

    def __init__(self, is_one_part: bool) -> None:
        self.messages: list[T] = []
        self._most = 1 if is_one_part else MOST_HEADERS
        self._is_open = False

    def note(self, kind: Kind | None, message: T) -> None:
        """The next message of the stream."""
        if kind == "start":
            earlier = self.messages if self._is_open else []
            self.messages = [*earlier, message][-self._most :]
        elif kind == "end":
            self.messages = []
        self._is_open = kind == "start"
