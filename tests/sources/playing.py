"""A source played to its end, as lists."""

from __future__ import annotations

from collections.abc import Iterator

from streamer.records import WireRecord
from streamer.sources import Message, Source


def messages(source: Source) -> Iterator[Message]:
    """Every message until the end of the source, which is closed."""
    while True:
        try:
            message = source.receive(1.0)
        except EOFError:
            source.close()
            return
        if message is not None:
            yield message


def records(source: Source) -> list[WireRecord]:
    """What all its messages decode to."""
    return [record for message in messages(source) for record in source.decode(message)]
