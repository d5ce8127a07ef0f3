"""A detector on the network: messages from a ZeroMQ socket, as they come and without a copy.

Socket. PULL (the detector pushes, each message goes to one reader only), SUB (the detector publishes and drops what a
slow reader does not take) or REQ (the sender answers each request with the next message; one request is under way at
any time, and asked again where the connection was lost). `connect` is asynchronous: an address where nobody listens yet
is waited for, and ZeroMQ reconnects by itself. What happened to the connection is read from the socket monitor inside
`receive`, so there is no second thread; it is offered as `connection` and `counts` and logged once per change.

Loss. The high-water mark bounds what waits in the socket. PULL then pushes back on the detector; SUB drops at the
publisher without a word, which only the ledger notices. A message larger than `max_message_bytes` makes ZeroMQ drop
the connection: the log then says "disconnected" for every such message.

Threads. One thread calls `receive` and `close`; `decode` and `identify` may be called from any.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer.records import BadConfig, SourceLost
from streamer.sources import Message
from streamer.sources.wired import Wired
from streamer.wire import Format, SocketKind

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Ten times the largest message known, a start with every flat field of an EIGER2 16M (24 MB)."""

KEEPALIVE = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 30, zmq.TCP_KEEPALIVE_INTVL: 10, zmq.TCP_KEEPALIVE_CNT: 3}
"""A detector that lost its power says nothing: after a minute the kernel does, and ZeroMQ reconnects."""

REPEAT_S = 1.0
"""Repeated warnings are summed to one in this time."""

REQUEST = b"next"
"""What a REQ socket says: the Karabo bridge knows no other word."""

GIVEN_UP_S = 1.0
"""ZeroMQ tries an address that refuses it again and again, but gives up one where a peer of the wrong kind hung up. A
connection that was lost and is not tried again for so long is made anew: ZeroMQ itself tries every 0.1 s."""

LOOK_S = 0.1
"""How often it is looked what became of the connection, while messages come."""

UNASKED_S = 0.02
"""How often it is looked whether a request can be sent, while nobody is connected."""

_SOCKETS = {"pull": zmq.PULL, "sub": zmq.SUB, "req": zmq.REQ}

_EVENTS = {
    zmq.Event.CONNECTED: "connected",
    zmq.Event.ACCEPTED: "connected",
    zmq.Event.DISCONNECTED: "disconnected",
    zmq.Event.CONNECT_RETRIED: "retried",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "refused",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "refused",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "refused",
}


class Live(Wired):
    """Messages of one wire format from a ZeroMQ socket.

    address: "tcp://host:port"; without a port the format's own is taken.
    socket: "pull" for a detector that pushes, "sub" for one that publishes, "req" for one that is asked; the format's
    usual one by default. bind: wait for the detector to connect. readers: how many readers share a pushing socket on
    purpose, so that nobody takes the frames of the others for lost to a stranger.
    high_water_mark: messages that may wait in the socket. topic: what a "sub" socket subscribes to, all by default.
    max_message_bytes: a larger message ends the connection it came over.

    connection: "waiting" (nobody yet), "connected" or "disconnected". counts: "connected", "disconnected", "retried"
    and "refused" (a peer that does not speak ZeroMQ, or is of the wrong socket type) since the source was opened.
    Raises BadConfig for an address that ZeroMQ does not accept, SourceLost where it cannot be bound.
    """

    def __init__(
        self,
        address: str,
        format: Format,  # noqa: A002
        *,
        socket: SocketKind | None = None,
        bind: bool = False,
        readers: Annotated[int, msgspec.Meta(ge=1)] = 1,
        high_water_mark: int = 64,
        topic: str = "",
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        super().__init__()
        if not 1 <= high_water_mark <= 1_000_000 or not 1 <= max_message_bytes < 2**62:
            raise BadConfig(
                f"live: found high_water_mark {high_water_mark}, max_message_bytes {max_message_bytes}; expected"
                " 1 to 1000000 messages and at least one byte (there is no 'without limit')"
            )
        self.address = with_port(address, format)
        self.format = format
        self.url = f"{format.name}+{self.address}"
        self.socket: SocketKind = socket or format.usual_socket
        self.is_exclusive = self.socket != "sub"
        self.readers = readers
        self._must_ask = self.socket == "req"
        self._has_asked = False
        self._lost_at: float | None = None
        self._binds = bind
        self._counts = dict.fromkeys(("connected", "disconnected", "retried", "refused"), 0)
        self.counts: Mapping[str, int] = self._counts
        self._peers: set[int] = set()
        self._quiet_until = 0.0
        self._next_look = 0.0
        self._next_retry_told = 1  # then after the fourth, the sixteenth, …: a detector may be off for the night
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(_SOCKETS[self.socket])
        self._monitor = self._socket.get_monitor_socket(sum(_EVENTS))
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        options = {
            zmq.RCVHWM: high_water_mark,
            zmq.MAXMSGSIZE: max_message_bytes,
            zmq.LINGER: 0,
            zmq.IPV6: 1,
            **KEEPALIVE,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        if self._must_ask:
            for option in (zmq.IMMEDIATE, zmq.REQ_RELAXED, zmq.REQ_CORRELATE):
                self._socket.setsockopt(option, 1)
        if self.socket == "sub":
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        try:
            self._attach(bind)
        except (BadConfig, SourceLost):
            self.close()
            raise

    @property
    def connection(self) -> str:
        if self._peers:
            return "connected"
        return "disconnected" if self.counts["connected"] else "waiting"

    @property
    def endpoint(self) -> str:
        """The address in use, with the port that was chosen for "tcp://127.0.0.1:*"."""
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def _arrivals(self, timeout_s: float) -> Sequence[Message]:
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            try:
                if now >= self._next_look:
                    self._next_look = now + LOOK_S
                    self._note_events()
                    self._connect_anew()
                if self._must_ask and not self._has_asked:
                    self._ask()
                elif messages := self._take():
                    return messages
                if now >= deadline:
                    return ()
                self._wait(deadline - now)
            except zmq.ZMQError as error:
                raise SourceLost(f"live: the socket to {self.address} is gone ({error})") from error

    def _wait(self, longest_s: float) -> None:
        """Until a message is there, something happened to the connection, or the time is over."""
        longest_s = min(longest_s, UNASKED_S if self._must_ask and not self._has_asked else LOOK_S)
        if self._monitor in dict(self._poller.poll(math.ceil(longest_s * 1000))):
            self._next_look = 0.0

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _attach(self, bind: bool) -> None:
        try:
            if bind:
                self._socket.bind(self.address)
            else:
                self._socket.connect(self.address)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EADDRINUSE, zmq.EADDRNOTAVAIL):
                raise SourceLost(
                    f"live: cannot bind {self.address} ({error}); another process holds it or this machine "
                    "has no such interface: choose a free address"
                ) from error
            raise BadConfig(
                f"live: {self.address!r} is no address ({error}); expected tcp://host:port or ipc://path"
            ) from error

    def _ask(self) -> None:
        """Request the next message, if somebody is connected.

        What happened to the connection is noted first: else a request may be taken for one that a lost connection
        swallowed, and be asked twice, or the other way round.
        """
        self._note_events()
        if self._socket.poll(0, zmq.POLLOUT):
            with suppress(zmq.Again):  # the connection was lost this very moment
                self._socket.send(REQUEST, zmq.NOBLOCK)
                self._has_asked = True

    def _connect_anew(self) -> None:
        """Where ZeroMQ has given the address up."""
        if self._binds or self._lost_at is None or time.monotonic() < self._lost_at + GIVEN_UP_S:
            return
        self._lost_at = None
        self._counts["refused"] += 1
        self._warn("the peer hung up and ZeroMQ gave up: is its socket of another type? Connecting anew")
        with suppress(zmq.ZMQError):
            self._socket.disconnect(self.address)
        self._socket.connect(self.address)

    def _take(self) -> list[Message]:
        """What came; nothing where it was an answer to a request of long ago, which ZeroMQ throws away."""
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return []
        received_ns = time.monotonic_ns()
        self._has_asked = False
        parts = [frame.buffer for frame in frames]
        return [
            Message(message, self.format.kind(message), sum(memoryview(part).nbytes for part in message), received_ns)
            for message in self.format.split(parts)
        ]

    def _note_events(self) -> None:
        while self._monitor.poll(0):
            event: dict[str, Any] = dict(recv_monitor_message(self._monitor))
            name = _EVENTS[event["event"]]
            self._lost_at = time.monotonic() if name == "disconnected" else None
            self._counts[name] += 1
            if name in ("connected", "disconnected"):
                self._has_asked = False  # what was asked over another connection is not answered over this one
            if name == "connected":
                self._peers.add(event["value"])
                log.info("connected", source=self.url, peers=len(self._peers))
            elif name == "disconnected":
                self._peers.discard(event["value"])
                self._warn("the peer is gone, waiting for it to come back")
            elif name == "refused":
                self._warn("the peer does not speak ZeroMQ, or its socket is of another type")
            elif not self._peers and self.counts["retried"] >= self._next_retry_told:
                self._next_retry_told = 4 * self.counts["retried"]
                self._warn("nobody answers at this address, trying again")

    def _warn(self, text: str) -> None:
        """One warning a second at most; `counts` holds what was left out."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + REPEAT_S
            log.warning(text, source=self.url, **self.counts)


def with_port(address: str, format: Format | type[Format]) -> str:  # noqa: A002
    """The address with the format's default port where it names none: "tcp://dcu" → "tcp://dcu:31001"."""
    if has_port(address, "live"):
        return address
    if format.default_port is None:
        raise BadConfig(f"live: {address!r} has no port and {format.name} has no usual one; write tcp://host:port")
    return f"{address}:{format.default_port}"


def has_port(address: str, who: str) -> bool:
    """Whether an address says where to go, and does not leave its port to the format.

    who: begins the sentence of the error. Raises BadConfig for what is no address of this house: neither tcp nor ipc,
    or a port that is none ("*" is any free one).
    """
    scheme, separator, rest = address.partition("://")
    if scheme not in ("tcp", "ipc") or not separator or not rest:
        raise BadConfig(f"{who}: {address!r} is no address; expected tcp://host:port or ipc://path")
    if scheme == "ipc":
        return True
    host, colon, port = rest.rpartition(":") if ":" in rest.rpartition("]")[2] else (rest, "", "")
    if not host or (colon and port != "*" and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise BadConfig(f"{who}: {address!r} is no address; expected tcp://host:port, the port from 1 to 65535")
    return bool(colon)
