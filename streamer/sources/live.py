"""A detector on the network: messages from a ZeroMQ socket, as they come and without a copy.

Socket. PULL (the detector pushes, each message goes to one reader only) or SUB (the detector publishes and drops what
a slow reader does not take). `connect` is asynchronous: an address where nobody listens yet is waited for, and ZeroMQ
reconnects by itself. What happened to the connection is read from the socket monitor inside `receive`, so there is no
second thread; it is offered as `connection` and `counts` and logged once per change.

Loss. The high-water mark bounds what waits in the socket. PULL then pushes back on the detector; SUB drops at the
publisher without a word, which only the ledger notices. A message larger than `max_message_bytes` makes ZeroMQ drop
the connection: the log then says "disconnected" for every such message.

Threads. One thread calls `receive` and `close`; `decode` and `identify` may be called from any.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer.records import BadConfig, SeriesKey, SourceLost, WireRecord
from streamer.sources import Message, Source
from streamer.wire import Format, Scratch

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Ten times the largest message known, a start with every flat field of an EIGER2 16M (24 MB)."""

KEEPALIVE = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 30, zmq.TCP_KEEPALIVE_INTVL: 10, zmq.TCP_KEEPALIVE_CNT: 3}
"""A detector that lost its power says nothing: after a minute the kernel does, and ZeroMQ reconnects."""

REPEAT_S = 1.0
"""Repeated warnings are summed to one in this time."""

_EVENTS = {
    zmq.Event.CONNECTED: "connected",
    zmq.Event.ACCEPTED: "connected",
    zmq.Event.DISCONNECTED: "disconnected",
    zmq.Event.CONNECT_RETRIED: "retried",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "refused",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "refused",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "refused",
}


class Live(Source):
    """Messages of one wire format from a ZeroMQ socket.

    address: "tcp://host:port"; without a port the format's own is taken.
    socket: "pull" for a detector that pushes, "sub" for one that publishes. bind: wait for the detector to connect.
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
        socket: Literal["pull", "sub"] = "pull",
        bind: bool = False,
        high_water_mark: int = 64,
        topic: str = "",
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        if not 1 <= high_water_mark <= 1_000_000 or not 1 <= max_message_bytes < 2**62:
            raise BadConfig(
                f"live: found high_water_mark {high_water_mark}, max_message_bytes {max_message_bytes}; expected"
                " 1 to 1000000 messages and at least one byte (there is no 'without limit')"
            )
        self.address = with_port(address, format)
        self.format = format
        self.url = f"{format.name}+{self.address}"
        self.is_exclusive = socket == "pull"
        self._counts = dict.fromkeys(("connected", "disconnected", "retried", "refused"), 0)
        self.counts: Mapping[str, int] = self._counts
        self._peers: set[int] = set()
        self._quiet_until = 0.0
        self._next_retry_told = 1  # then after the fourth, the sixteenth, …: a detector may be off for the night
        self._waiting: deque[Message] = deque()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PULL if socket == "pull" else zmq.SUB)
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
        if socket == "sub":
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

    def receive(self, timeout_s: float) -> Message | None:
        if self._waiting:
            return self._waiting.popleft()
        deadline = time.monotonic() + timeout_s
        while True:
            left_ms = math.ceil(max(0.0, deadline - time.monotonic()) * 1000)
            try:
                ready = dict(self._poller.poll(left_ms))
                if self._monitor in ready:
                    self._note_events()
                if self._socket in ready:
                    return self._take()
            except zmq.ZMQError as error:
                raise SourceLost(f"live: the socket to {self.address} is gone ({error})") from error
            if time.monotonic() >= deadline:
                return None

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        return self.format.decode(message.parts, scratch=scratch, received_ns=message.received_ns)

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        return self.format.identify(message.parts)

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

    def _take(self) -> Message:
        frames = self._socket.recv_multipart(copy=False)
        received_ns = time.monotonic_ns()
        parts = [frame.buffer for frame in frames]
        messages = [[part] for part in parts] if self.format.is_one_part else [parts]
        self._waiting.extend(
            Message(message, self.format.kind(message), sum(part.nbytes for part in message), received_ns)
            for message in messages
        )
        return self._waiting.popleft()

    def _note_events(self) -> None:
        while self._monitor.poll(0):
            event: dict[str, Any] = dict(recv_monitor_message(self._monitor))
            name = _EVENTS[event["event"]]
            self._counts[name] += 1
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


def with_port(address: str, format: Format) -> str:  # noqa: A002
    """The address with the format's default port where it names none: "tcp://dcu" → "tcp://dcu:31001"."""
    scheme, separator, rest = address.partition("://")
    if not separator or not rest:
        raise BadConfig(f"live: {address!r} is no address; expected tcp://host:port or ipc://path")
    if scheme != "tcp" or ":" in rest.rpartition("]")[2]:
        return address
    if format.default_port is None:
        raise BadConfig(f"live: {address!r} has no port and {format.name} has no usual one; write tcp://host:port")
    return f"{address}:{format.default_port}"
