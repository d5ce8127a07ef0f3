"""Formats: how frames look on a wire, one file each, both directions, no socket and no thread.

A format is a class whose `decode` turns the parts of one message into records and whose `encode` turns a record into
the parts of one message; `decode(encode(record))` is the identity. Its memory is small: the image sizes of the last
few series, so that a message cannot ask for more memory than its detector's images need.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Literal

from streamer.pixels import Scratch
from streamer.records import Buffer, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord

Kind = Literal["start", "image", "end"]
SocketKind = Literal["pull", "sub", "req"]


class Format(abc.ABC):
    """One wire format. Decoding may run on several threads at once; a start message is never decoded beside others.

    title: what people call it. default_port, usual_socket: where and how its senders are usually reached.
    is_one_part: a message has one part, so that several parts sent together are several messages.
    is_counted: its messages know no series, only a running number. Its records then have `SeriesKey(0, sender)` and the
        number as it was sent, and whoever receives them makes series of it (see `sources.wired`). `encode` gives no
        parts for a start or an end. step: the distance between two consecutive numbers.
    carries: a detector's frames, or the results of another streamer.
    """

    name: str
    title: str
    default_port: int | None = None
    usual_socket: SocketKind = "pull"
    is_one_part: bool = False
    is_counted: bool = False
    step: int = 1
    carries: Literal["frames", "results"] = "frames"

    @abc.abstractmethod
    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        """What the message says it is, from its first bytes in about a microsecond; None if it cannot be told.

        None for the messages of every other format. Never raises.
        """

    def claims(self, parts: Sequence[Buffer]) -> bool:
        """Whether the message looks like one of this format, and of no other. Never raises."""
        return self.kind(parts) is not None

    def split(self, parts: Sequence[Buffer]) -> list[Sequence[Buffer]]:
        """The messages in what came as one: some senders put what they say in quick succession into one message."""
        return [[part] for part in parts] if self.is_one_part and self.claims(parts[:1]) else [parts]

    @abc.abstractmethod
    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        """Series and number of an image message without touching its pixels. Raises BadFrame."""

    @abc.abstractmethod
    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        """The records in one message: one SeriesStart, one Frame per channel, one SeriesEnd, one Result, or nothing.

        parts: the parts of one ZeroMQ message. scratch: where images are decompressed to; None allocates new arrays.
        Raises BadFrame (with series and number where they could be read); nothing else, whatever the bytes.
        """

    @abc.abstractmethod
    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> Sequence[Buffer]:
        """The parts of one message: a start, an end, or all channels of one frame."""
