"""Where messages go, and how that is written in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

from streamer import config
from streamer.records import BadConfig
from streamer.sources.live import has_port


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages go.

    address: "tcp://host:port" or "ipc://path". socket: "push" to one reader, "pub" to all that subscribe.
    connect: connect to the reader instead of waiting for it there.
    queue, queue_MB: what may wait for a slow reader, in messages and bytes. when_full: "skip" gives up the oldest image
    and counts it, "wait" pushes back on the source.
    repeat_start: a reader that joins a "push" late is sent the start of the series once more; None for where that is
        safe.
    Raises BadConfig for an address or sizes that are none.
    """

    address: str
    socket: Literal["push", "pub"] = "push"
    when_full: Literal["skip", "wait"] = "skip"
    queue: int = 100
    queue_MB: float = 256.0
    connect: bool = False
    repeat_start: bool | None = None

    def __post_init__(self) -> None:
        if not has_port(self.address, "--to"):
            raise BadConfig(f"--to: {self.address!r} has no port; write tcp://host:port")
        if not 1 <= self.queue <= 1_000_000 or not 0 < self.queue_MB < math.inf:
            raise BadConfig(
                f"--to {self.address}: found queue {self.queue}, queue_MB {self.queue_MB:g}; expected 1 to 1000000"
                " messages and a positive number"
            )


def destination(text: str, speaks: str, when_full: Literal["skip", "wait"] = "skip") -> Destination:
    """A destination as it is written: "tcp://127.0.0.1:31002?socket=pub&queue=1000".

    speaks: the format of the messages, which stays as it is; it may stand before the address. when_full: the default.
    Raises BadConfig with everything that is wrong.
    """
    address, _, query = text.partition("?")
    prefix, plus, rest = address.partition("+")
    if plus and "/" not in prefix:
        if prefix != speaks:
            raise BadConfig(
                f"--to '{text}': messages are passed on as they are, in {speaks}; leave out '{prefix}+', or let"
                " `streamer simulate` translate them"
            )
        address = rest
    options = {"when_full": when_full, **dict(parse_qsl(query, keep_blank_values=True))}
    arguments, problems = config.fit(Destination, options, f"--to '{text}'", given=("address",), from_text=True)
    if problems:
        raise BadConfig(*problems)
    return Destination(address, **arguments)
