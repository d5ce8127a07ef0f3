"""Any source to a socket, in any format: a detector for tests and rehearsals.

Frames are made and encoded ahead by a few threads and sent in order; messages that are in the wanted format already
are passed on byte for byte. Formats that only count frames have no start and no end to send.

The socket that pushes holds a message until a reader takes it; the one that publishes drops what a slow reader does
not take, as detectors do; the one that replies gives each reader that asks the next message. All wait for a first
reader before the first message, so that no start is lost, and give what was sent LINGER_S to reach the network when
they close.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import structlog
import zmq

from streamer.records import BadConfig, BadFrame, Buffer, Frame, OutputDown, SeriesEnd, SeriesStart
from streamer.sources import Message, Source
from streamer.sources.live import REQUEST, Live
from streamer.sources.playback import Playback
from streamer.sources.recording import Recording
from streamer.wire import Format, Kind

log = structlog.get_logger(__name__)

LINGER_S = 5.0
LOOK_S = 0.1
"""How often `stop` is asked while nothing happens."""
READY_LOOK_S = 0.005
"""How late a message that was made ahead may leave while the next one is not yet due."""
HIGH_WATER_MARK = 64

SocketName = Literal["push", "pub", "rep"]

_SOCKETS = {"push": zmq.PUSH, "pub": zmq.XPUB, "rep": zmq.REP}
_COUNTERPARTS: dict[str, SocketName] = {"pull": "push", "sub": "pub", "req": "rep"}


@dataclass(frozen=True, slots=True)
class Sent:
    """What left. frames: image messages. malformed: messages of the source that could not be read and were left out."""

    messages: int = 0
    frames: int = 0
    nbytes: int = 0
    malformed: int = 0
    seconds: float = 0.0


def simulate(
    source: Source,
    format: Format,  # noqa: A002
    address: str,
    *,
    socket: SocketName | None = None,
    bind: bool = True,
    rate: float | None = None,
    wait_s: float = 60.0,
    workers: int = 2,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] | None = None,
) -> Sent:
    """Send a source until its end or until stop() is true; the source is closed.

    address: "tcp://127.0.0.1:31001". socket: the usual one of the format's senders by default.
    bind: wait there for readers, as a detector does; else connect to one.
    rate: frames per second instead of the source's own. wait_s: how long a message may wait for a reader to take it.
    workers: threads that make and encode frames. progress: told the number of frames sent, after each.

    Raises BadConfig for an address or a rate that is none, OutputDown when nobody takes a message for wait_s.
    """
    if format.carries == "results":
        raise BadConfig(f"simulate: {format.name} are made by an analysis; run one with [publish.zeromq]")
    if rate is not None:
        if not isinstance(source, Playback):
            raise BadConfig(f"simulate: {source.url} is live and comes at its own rate; leave out the rate")
        source.play_at(rate)
    began = time.monotonic()
    messages = frames = nbytes = 0
    encoding = _Encoding(source, format, workers)
    try:
        with _Outlet(address, socket or _COUNTERPARTS[format.usual_socket], bind, wait_s) as outlet:
            outlet.wait_for_reader(stop)
            for kind, parts in encoding.run(stop):
                if not parts:
                    continue
                if not outlet.send(parts, stop):
                    break
                messages += 1
                nbytes += sum(memoryview(part).nbytes for part in parts)
                if kind == "image":
                    frames += 1
                    if progress is not None:
                        progress(frames)
    finally:
        encoding.close()
        source.close()
    return Sent(messages, frames, nbytes, encoding.malformed, time.monotonic() - began)


Parts = Sequence[Buffer]


class _Encoding:
    """Messages of a source in a format, made ahead on threads and given in order.

    A start is encoded after everything before it and before everything after it, as formats ask.
    """

    def __init__(self, source: Source, format: Format, workers: int) -> None:  # noqa: A002
        self.malformed = 0
        self._source = source
        self._format = format
        self._passes_on = isinstance(source, Live | Recording) and source.format.name == format.name
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="simulate")
        self._ahead: deque[tuple[Kind | None, Future[Parts]]] = deque()
        self._most_ahead = 2 * workers

    def run(self, stop: Callable[[], bool]) -> Iterator[tuple[Kind | None, Parts]]:
        while not stop():
            try:
                message = self._source.receive(READY_LOOK_S if self._ahead else LOOK_S)
            except EOFError:
                break
            if message is not None:
                if message.kind == "start":
                    yield from self._done(down_to=0)
                self._ahead.append((message.kind, self._pool.submit(self._encode, message)))
            yield from self._done(down_to=0 if message and message.kind == "start" else self._most_ahead)
        while self._ahead and not stop():
            yield from self._done(down_to=0)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _done(self, down_to: int) -> Iterator[tuple[Kind | None, Parts]]:
        """What is ready at the front; waits for it while more than `down_to` are on the way."""
        while self._ahead and (len(self._ahead) > down_to or self._ahead[0][1].done()):
            kind, future = self._ahead.popleft()
            try:
                yield kind, future.result()
            except BadFrame as bad:
                self.malformed += 1
                log.warning("a message could not be read and was left out", reason=bad.reason, text=str(bad))

    def _encode(self, message: Message) -> Parts:
        if self._passes_on:
            return message.parts
        records = self._source.decode(message)
        frames = [record for record in records if isinstance(record, Frame)]
        if frames:
            return self._format.encode(frames)
        if not records:
            return []
        control = records[0]
        if not isinstance(control, SeriesStart | SeriesEnd):
            raise BadFrame("type", f"simulate: a message of {self._source.url} holds neither frame, start nor end")
        return self._format.encode(control)


class _Outlet:
    """A socket that sends messages to readers."""

    def __init__(self, address: str, socket: SocketName, bind: bool, wait_s: float) -> None:
        self._address = address
        self._wait_s = wait_s
        self._is_asked = socket == "rep"
        self._first_sign = zmq.POLLOUT if socket == "push" else zmq.POLLIN
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(_SOCKETS[socket])
        for option, value in (
            (zmq.SNDHWM, HIGH_WATER_MARK),
            (zmq.IMMEDIATE, 1),
            (zmq.IPV6, 1),
            (zmq.LINGER, round(LINGER_S * 1000)),
        ):
            self._socket.setsockopt(option, value)
        try:
            if bind:
                self._socket.bind(address)
            else:
                self._socket.connect(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise BadConfig(f"simulate: cannot use {address} ({error}); expected a free tcp://host:port") from error

    def __enter__(self) -> _Outlet:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def wait_for_reader(self, stop: Callable[[], bool]) -> None:
        """Until somebody connected to a pushing socket, subscribed to a publishing one, or asked a replying one."""
        if self._poll(self._first_sign, stop):
            log.info("a reader is there", address=self._address)

    def send(self, parts: Parts, stop: Callable[[], bool]) -> bool:
        """False when it was stopped before a reader took the message."""
        if self._is_asked and not self._hear_request(stop):
            return False
        if not self._poll(zmq.POLLOUT, stop):
            return False
        self._socket.send_multipart(parts, copy=False)
        return True

    def _hear_request(self, stop: Callable[[], bool]) -> bool:
        """Until somebody asks for the next message; whatever else is asked gets an empty answer."""
        while self._poll(zmq.POLLIN, stop):
            request = self._socket.recv()
            if request == REQUEST:
                return True
            log.warning("a reader asked for something else than the next message", asked=request[:20])
            self._socket.send(b"")
        return False

    def _poll(self, event: int, stop: Callable[[], bool]) -> bool:
        """True when it came, False when stopped."""
        deadline = time.monotonic() + self._wait_s
        while not self._socket.poll(round(LOOK_S * 1000), event):
            if stop():
                return False
            if time.monotonic() >= deadline:
                raise OutputDown(f"simulate: nobody has read at {self._address} for {self._wait_s:g} s; start a reader")
        return True
