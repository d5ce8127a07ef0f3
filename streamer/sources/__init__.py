"""Sources: where frames come from. Receiving and decoding are two steps, so that decoding can be spread over workers.

`receive` is called from one thread only and touches no pixels; `decode` is called from any worker.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from streamer.pixels import Scratch
from streamer.records import SeriesKey, WireRecord
from streamer.wire import Kind


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was received, not yet decoded.

    parts: its bytes, or whatever the source's own `decode` understands. nbytes: what it holds in memory.
    kind: "start", "image", "end", or None when it cannot be told without decoding.
    received_ns: monotonic clock.
    """

    parts: Sequence[Any]
    kind: Kind | None
    nbytes: int
    received_ns: int
    extra: dict[str, Any] = field(default_factory=dict)


class Source(abc.ABC):
    """Where frames come from.

    url: as the user wrote it. announced_frames: how many will come in all, None if nobody knows (for progress bars).
    is_exclusive: reading takes messages away from other readers (a PUSH socket). readers: how many share it on purpose.
    counts: what happened to the connection so far, by name ("connected", "disconnected", …).
    """

    url: str
    announced_frames: int | None = None
    is_exclusive: bool = False
    readers: int = 1
    counts: Mapping[str, int] = MappingProxyType({})

    @abc.abstractmethod
    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None when none came within timeout_s. Raises EOFError after the last one, SourceLost."""

    @abc.abstractmethod
    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        """The records in a message (see `wire.Format.decode`). Raises BadFrame and nothing else."""

    @abc.abstractmethod
    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        """Series and number of an image message without decoding its pixels. Raises BadFrame."""

    def close(self) -> None:
        """Release sockets and files. Calling it twice is harmless."""
