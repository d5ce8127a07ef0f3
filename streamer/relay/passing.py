"""Messages passed on as they are: from a live source (`relay`) or from a recording (`replay`) to several readers.

A relay ends when it is told to: it takes no more messages, gives what it has DRAIN_S to be sent, and returns the
account. What its source's socket holds at that moment was never received by it. A source that is lost is waited for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog

from streamer import config
from streamer.records import BadConfig, OutputDown
from streamer.relay.backlog import Delivered
from streamer.relay.destinations import Destination, destination
from streamer.relay.fanout import Fanout
from streamer.relay.lanes import LOOK_S
from streamer.sources import Source
from streamer.sources.live import Live
from streamer.sources.playback import Rate
from streamer.sources.recording import Recording

log = structlog.get_logger(__name__)

DRAIN_S = 5.0
STATUS_S = 1.0


@dataclass(frozen=True, slots=True)
class Relayed:
    """What was received, and what became of it at each destination.

    messages, images, nbytes, seconds: received so far, and in what time. per_second, MB_per_s: lately, and in a last
    word on the whole. connection: what happened to the connection to the source, by name.
    """

    source: str
    messages: int = 0
    images: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    per_second: float = 0.0
    MB_per_s: float = 0.0
    connection: Mapping[str, int] = field(default_factory=dict)
    destinations: tuple[Delivered, ...] = ()

    @property
    def unaccounted(self) -> int:
        """Messages under no name at some destination: 0, or there is a defect in streamer."""
        return sum(abs(one.unaccounted) + abs(self.messages - one.received) for one in self.destinations)

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        numbers = asdict(self) | {name: round(getattr(self, name), 3) for name in ("seconds", "per_second", "MB_per_s")}
        return numbers | {"unaccounted": self.unaccounted}


OnStatus = Callable[[Relayed], None]


def relay(
    source: Source,
    to: Sequence[Destination | str],
    *,
    stop: Callable[[], bool] = lambda: False,
    on_status: OnStatus = lambda status: None,
) -> Relayed:
    """Pass the messages of a detector on to several readers until stop(); the source is closed.

    to: destinations, or how they are written (see `relay.destination`). on_status: told every STATUS_S.
    Raises BadConfig for a destination that cannot be used, OutputDown when a socket breaks, SourceLost.
    """
    try:
        if not isinstance(source, Live):
            raise BadConfig(f"relay: {source.url} is no live stream of messages; `streamer replay` sends a recording")
        return _pass_on(source, _destinations(to, source, "skip"), stop, on_status, wait_s=math.inf)
    finally:
        source.close()


def replay(
    path: Path | str,
    to: Sequence[Destination | str],
    *,
    rate: Literal["real"] | Rate = "real",
    begin_s: float = 0.0,
    end_s: float | None = None,
    loop: int = 1,
    wait_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    on_status: OnStatus = lambda status: None,
) -> Relayed:
    """Send a recording, byte for byte, to its end or until stop().

    rate: "real" keeps the recorded intervals, "max" is as fast as readers take it, a number is messages per second.
    begin_s, end_s, loop: see `sources.recording.Recording`. A file can wait, so destinations do unless they say "skip".
    The first message leaves when every destination has a reader.

    Raises BadConfig, SourceLost for what is no recording, OutputDown when nobody takes a message for wait_s.
    """
    source = Recording(Path(path), _format_named, rate=rate, begin_s=begin_s, end_s=end_s, loop=loop)
    try:
        return _pass_on(source, _destinations(to, source, "wait"), stop, on_status, wait_s=wait_s)
    finally:
        source.close()


def _format_named(name: str) -> Any:
    return config.find("wire", name)()


def _destinations(
    to: Sequence[Destination | str], source: Live | Recording, when_full: Literal["skip", "wait"]
) -> list[Destination]:
    return [destination(one, source.format.name, when_full) if isinstance(one, str) else one for one in to]


def _pass_on(
    source: Live | Recording,
    destinations: Sequence[Destination],
    stop: Callable[[], bool],
    on_status: OnStatus,
    *,
    wait_s: float,
) -> Relayed:
    with Fanout(destinations, is_one_part=source.format.is_one_part) as fanout:
        passing = _Passing(source, fanout, stop, on_status, wait_s)
        if isinstance(source, Recording):
            passing.wait_for_readers()
        passing.run()
        passing.drain()
        return passing.report(passing.began, 0, 0)


class _Passing:
    """One stream on its way, with the numbers of it."""

    def __init__(
        self,
        source: Live | Recording,
        fanout: Fanout,
        stop: Callable[[], bool],
        on_status: OnStatus,
        wait_s: float,
    ) -> None:
        self.began = time.monotonic()
        self._source = source
        self._fanout = fanout
        self._stop = stop
        self._on_status = on_status
        self._wait_s = wait_s
        self._messages = self._images = self._nbytes = 0
        self._told = (self.began, 0, 0)
        self._moved: tuple[float, int] | None = None

    def wait_for_readers(self) -> None:
        while not all(one.readers for one in self._fanout.account()) and not self._stop():
            if time.monotonic() - self.began > self._wait_s:
                without = ", ".join(one.address for one in self._fanout.account() if not one.readers)
                raise OutputDown(f"replay: nobody has read at {without} for {self._wait_s:g} s; start a reader")
            time.sleep(LOOK_S / 10)

    def run(self) -> None:
        while not self._stop():
            self._look()
            try:
                message = self._source.receive(LOOK_S)
            except EOFError:
                return
            if message is None or not message.parts:
                continue  # a start that streamer wrote itself was never on the wire
            self._messages += 1
            self._images += message.kind == "image"
            self._nbytes += message.nbytes
            self._moved = None
            self._fanout.give(message, self._is_over)

    def drain(self) -> None:
        asked: list[float] = []
        self._moved = None

        def is_over() -> bool:
            if self._stop() and not asked:
                asked.append(time.monotonic())
            self._look(is_blocked=True)
            return bool(asked) and time.monotonic() - asked[0] > DRAIN_S

        self._fanout.drain(is_over)

    def report(self, since: float, messages: int, nbytes: int) -> Relayed:
        """The account so far, with the rates since a moment when so much had been received."""
        now = time.monotonic()
        return Relayed(
            source=self._source.url,
            messages=self._messages,
            images=self._images,
            nbytes=self._nbytes,
            seconds=now - self.began,
            per_second=(self._messages - messages) / max(now - since, 1e-9),
            MB_per_s=(self._nbytes - nbytes) / 1e6 / max(now - since, 1e-9),
            connection=dict(self._source.counts),
            destinations=self._fanout.account(),
        )

    def _is_over(self) -> bool:
        """While a destination has no room."""
        self._look(is_blocked=True)
        return self._stop()

    def _look(self, *, is_blocked: bool = False) -> None:
        """Tell the status when it is time. Raises OutputDown where nobody takes anything for wait_s."""
        now = time.monotonic()
        if now - self._told[0] >= STATUS_S:
            self._on_status(self.report(*self._told))
            self._told = (now, self._messages, self._nbytes)
        if not is_blocked or math.isinf(self._wait_s):
            return
        taken = sum(one.sent for one in self._fanout.account())
        if self._moved is None or taken != self._moved[1]:
            self._moved = (now, taken)
        elif now - self._moved[0] > self._wait_s:
            slow = ", ".join(one.address for one in self._fanout.account() if one.waiting)
            raise OutputDown(f"replay: nobody has read at {slow} for {self._wait_s:g} s; start a reader")
