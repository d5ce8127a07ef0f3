"""One stream to several readers, each with a queue, a thread and an account of its own. Nothing is decoded or copied.

Every message that was received is, for each destination and at every moment, under one of these names:

    received = sent + dropped + unheard + waiting

sent      handed to ZeroMQ. What ZeroMQ and the network hold (SNDHWM messages and the kernel's buffers) is lost with a
          reader that dies, and no sender can tell how much that was; the reader's successor sees it as missing numbers.
dropped   given up because the reader was too slow and the destination's queue was full. `when_full = "skip"` gives up
          the oldest image; starts and ends go only where no image is left to go. "wait" gives up nothing: it stops
          the relay, and so the detector, until there is room. One destination that waits holds up all the others.
unheard   published while nobody had subscribed (only on "pub", only with "skip").
waiting   in the queue, or in the hands of the thread that sends.

push. Each message goes to one reader; several readers share them. With nobody connected the queue fills.

pub. Each message goes to every subscriber. libzmq drops what a slow subscriber does not take without a word, unless
told not to (XPUB_NODROP): then a message is sent to all subscribers or to none, and what is given up is counted like
anywhere else. The price is that subscribers of one destination are as slow as the slowest of them: give readers of
different speed a destination each. A subscriber that takes nothing for STUCK_S is cut off, so that one that hangs
cannot blind the others for ever; with "wait" it is waited for. Subscriptions to a topic count like any other.

Who joins late needs the start of the series: its geometry and its mask. A reader that connects to a pushing destination
where nobody was is therefore sent the start that stands once more, before anything else; these repeats are counted
apart (`repeated`). That is done where a start is one message with a unique id, by which a reader that had it already
knows it again (DECTRIS stream v2); with `repeat_start = true` also where it is not, and a reader that was only cut off
for a moment then takes it for a new series. What is published reaches every subscriber, so nothing is repeated there.
The reader's ledger calls the frames before a repeated start missing; without the repeat it calls them before join.
"""

from __future__ import annotations

import abc
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer import config
from streamer.queues import Closed, Queue
from streamer.records import BadConfig, OutputDown
from streamer.sources import Message
from streamer.sources.live import KEEPALIVE
from streamer.sources.standing import Standing
from streamer.wire import Buffer

log = structlog.get_logger(__name__)

LOOK_S = 0.1
"""How often a thread that waits looks whether it should go on waiting."""
LINGER_S = 5.0
"""How long what was sent may take to reach the network at the end."""
STUCK_S = 10.0
"""A subscriber whose buffers take no byte for so long is cut off."""
HIGH_WATER_MARK = 8
"""Messages that ZeroMQ holds for one reader. Few: they are under no name when the reader dies."""
REPEAT_S = 1.0
"""Repeated warnings are summed to one in this time."""

Outcome = Literal["sent", "unheard"]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages go.

    address: "tcp://host:port" or "ipc://path". socket: "push" to one reader, "pub" to all that subscribe.
    connect: connect to the reader instead of waiting for it there.
    queue, queue_MB: what may wait for a slow reader, in messages and bytes. when_full: "skip" gives up the oldest image
    and counts it, "wait" pushes back on the source.
    repeat_start: a reader that joins a "push" late is sent the start of the series once more; None for where that is
        safe.
    Raises BadConfig for sizes that are none.
    """

    address: str
    socket: Literal["push", "pub"] = "push"
    when_full: Literal["skip", "wait"] = "skip"
    queue: int = 100
    queue_MB: float = 256.0
    connect: bool = False
    repeat_start: bool | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.queue <= 1_000_000 or not 0 < self.queue_MB < math.inf:
            raise BadConfig(
                f"{self.address}: found queue {self.queue}, queue_MB {self.queue_MB:g}; expected 1 to 1000000 messages"
                " and a positive number"
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


@dataclass(frozen=True, slots=True)
class Delivered:
    """The account of one destination (see the head of this file). nbytes: of what was sent. readers: there now."""

    address: str
    socket: str
    when_full: str
    readers: int
    received: int = 0
    sent: int = 0
    dropped: int = 0
    unheard: int = 0
    waiting: int = 0
    repeated: int = 0
    nbytes: int = 0

    @property
    def unaccounted(self) -> int:
        """Messages under no name: 0, or there is a defect in streamer."""
        return self.received - self.sent - self.dropped - self.unheard - self.waiting


class Backlog(Queue[Message]):
    """What waits for one destination, and what became of everything that ever did.

    One thread adds, another takes one message in hand and says what became of it before it takes the next.
    """

    def __init__(self, size: int, max_bytes: int) -> None:
        super().__init__(size, max_bytes=max_bytes)
        self._received = self._dropped = self._sent = self._unheard = self._sent_bytes = 0
        self._in_hand: Message | None = None

    def add(self, message: Message, timeout_s: float) -> bool:
        """False if there was no room within timeout_s. Raises Closed."""
        with self._lock:
            is_in = self.put(message, message.nbytes, timeout_s=timeout_s)
            self._received += is_in
            return is_in

    def add_evicting(self, message: Message) -> int:
        """The oldest images make room, then the newest one itself, then the oldest of the rest; how many went."""
        with self._lock:
            evicted = len(self.put_evicting(message, message.nbytes, may_go=_is_spare, may_grow=True))
            while self._is_overfull():
                place = next((i for i, (held, _) in enumerate(self._items) if _is_spare(held)), 0)
                self._nbytes -= self._items[place][1]
                del self._items[place]
                evicted += 1
            self._received += 1
            self._dropped += evicted
            return evicted

    def add_regardless(self, message: Message) -> None:
        """Whether there is room or not: the last message, which nothing will follow."""
        with self._lock:
            self.put_evicting(message, message.nbytes, may_go=lambda _: False, may_grow=True)
            self._received += 1

    def take_in_hand(self, timeout_s: float) -> Message | None:
        """The oldest message, or None after timeout_s. Raises Closed once the queue is closed and empty."""
        with self._lock:
            self._in_hand = self.take(timeout_s)
            return self._in_hand

    def done(self, outcome: Outcome) -> None:
        """What became of the message in hand."""
        with self._lock:
            if self._in_hand is None:
                return
            if outcome == "sent":
                self._sent += 1
                self._sent_bytes += self._in_hand.nbytes
            else:
                self._unheard += 1
            self._in_hand = None

    def account(self, to: Destination, readers: int, repeated: int) -> Delivered:
        with self._lock:
            return Delivered(
                address=to.address,
                socket=to.socket,
                when_full=to.when_full,
                readers=readers,
                received=self._received,
                sent=self._sent,
                dropped=self._dropped,
                unheard=self._unheard,
                waiting=len(self._items) + (self._in_hand is not None),
                repeated=repeated,
                nbytes=self._sent_bytes,
            )

    def _is_overfull(self) -> bool:
        is_large = self.max_bytes is not None and self._nbytes > self.max_bytes
        return len(self._items) > 1 and (len(self._items) > self.size or is_large)


def _is_spare(message: Message) -> bool:
    return message.kind not in ("start", "end")


class Lane(abc.ABC):
    """The way to one destination: a queue, a socket, and the thread that empties the one into the other."""

    _type: int
    _options: dict[int, int]

    def __init__(self, to: Destination, context: zmq.Context[zmq.Socket[bytes]], *, is_one_part: bool) -> None:
        self.to = to
        self.backlog = Backlog(to.queue, round(to.queue_MB * 1e6))
        self.readers = 0
        self.repeated = 0
        self.error: zmq.ZMQError | None = None
        self._standing: Standing[Message] = Standing(is_one_part)
        self._repeats = is_one_part if to.repeat_start is None else to.repeat_start
        self._gives_up = threading.Event()
        self._quiet_until = 0.0
        self._dropped_quietly = 0
        self._socket = context.socket(self._type)
        usual = {zmq.SNDHWM: HIGH_WATER_MARK, zmq.IPV6: 1, zmq.LINGER: round(LINGER_S * 1000), **KEEPALIVE}
        for option, value in (*usual.items(), *self._options.items()):
            self._socket.setsockopt(option, value)
        self._thread = threading.Thread(target=self._run, name=f"to {to.address}", daemon=True)

    def attach(self) -> None:
        """Raises BadConfig for an address that is none or taken."""
        try:
            if self.to.connect:
                self._socket.connect(self.to.address)
            else:
                self._socket.bind(self.to.address)
        except zmq.ZMQError as error:
            raise BadConfig(
                f"--to {self.to.address}: cannot be used ({error}); expected a free tcp://host:port"
            ) from error

    @property
    def endpoint(self) -> str:
        """The address in use, with the port that was chosen for "tcp://127.0.0.1:*"."""
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def start(self) -> None:
        self._thread.start()

    def add_evicting(self, message: Message) -> None:
        self._dropped_quietly += self.backlog.add_evicting(message)
        now = time.monotonic()
        if self._dropped_quietly and now >= self._quiet_until:
            self._quiet_until = now + REPEAT_S
            log.warning("a reader is too slow", to=self.to.address, dropped=self._dropped_quietly)
            self._dropped_quietly = 0

    def account(self) -> Delivered:
        return self.backlog.account(self.to, self.readers, self.repeated)

    def give_up(self) -> None:
        """What still waits stays under that name."""
        self._gives_up.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._gives_up.is_set():
                self._note_readers()
                message = self.backlog.take_in_hand(LOOK_S)
                if message is not None:
                    self._deliver(message)
        except Closed:
            """Everything was sent."""
        except zmq.ZMQError as error:
            self.error = error

    def _deliver(self, message: Message) -> None:
        while not self._gives_up.is_set():
            outcome = self._offer(message)
            if outcome is not None:
                self._standing.note(message.kind, message)
                self.backlog.done(outcome)
                return
            self._note_readers()

    def _close(self) -> None:
        self._socket.close()

    @abc.abstractmethod
    def _note_readers(self) -> None:
        """Hear who came and who went."""

    @abc.abstractmethod
    def _offer(self, message: Message) -> Outcome | None:
        """Send a message; None if nobody took it within LOOK_S."""


_COMING = (zmq.Event.ACCEPTED, zmq.Event.CONNECTED)


class PushLane(Lane):
    """To one reader, or to several that share the messages."""

    _type = zmq.PUSH
    _options = {zmq.IMMEDIATE: 1}  # noqa: RUF012 - never changed

    def __init__(self, to: Destination, context: zmq.Context[zmq.Socket[bytes]], *, is_one_part: bool) -> None:
        super().__init__(to, context, is_one_part=is_one_part)
        self._monitor = self._socket.get_monitor_socket(sum(_COMING) + zmq.Event.DISCONNECTED)
        self._connections: set[int] = set()
        self._owed: list[Message] = []

    def _note_readers(self) -> None:
        # A connection is told of before anything can be sent over it, so the start goes first.
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] in _COMING:
                if not self._connections and self._repeats:
                    self._owed = list(self._standing.messages)
                self._connections.add(event["value"])
            else:
                self._connections.discard(event["value"])
        self.readers = len(self._connections)
        while self._owed and self.readers and self._socket.poll(0, zmq.POLLOUT):
            _send(self._socket, self._owed.pop(0))
            self.repeated += 1

    def _offer(self, message: Message) -> Outcome | None:
        if not self.readers:
            self._monitor.poll(round(LOOK_S * 1000))
            return None
        if not self._socket.poll(round(LOOK_S * 1000), zmq.POLLOUT) or self._owed:
            return None
        _send(self._socket, message)
        return "sent"

    def _close(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        super()._close()


class PubLane(Lane):
    """To every subscriber."""

    _type = zmq.XPUB
    _options = {  # noqa: RUF012 - never changed
        zmq.XPUB_NODROP: 1,
        zmq.XPUB_MANUAL: 1,
        zmq.SNDTIMEO: round(LOOK_S * 1000),
    }

    def __init__(self, to: Destination, context: zmq.Context[zmq.Socket[bytes]], *, is_one_part: bool) -> None:
        super().__init__(to, context, is_one_part=is_one_part)
        if to.when_full == "skip":
            self._socket.setsockopt(zmq.TCP_MAXRT, round(STUCK_S * 1000))

    def _note_readers(self) -> None:
        while self._socket.poll(0, zmq.POLLIN):
            word = self._socket.recv()
            if word[:1] == b"\x01":
                self._socket.setsockopt(zmq.SUBSCRIBE, word[1:])
                self.readers += 1
            elif word[:1] == b"\x00":
                self._socket.setsockopt(zmq.UNSUBSCRIBE, word[1:])
                self.readers -= 1

    def _offer(self, message: Message) -> Outcome | None:
        self._note_readers()
        if not self.readers:
            if self.to.when_full == "skip":
                return "unheard"
            self._socket.poll(round(LOOK_S * 1000), zmq.POLLIN)
            return None
        try:
            _send(self._socket, message)
        except zmq.Again:
            return None
        return "sent"


def _send(socket: zmq.Socket[bytes], message: Message) -> None:
    """Without a copy: what ZeroMQ received is handed on by reference. Raises zmq.Again before the first part only."""
    socket.send_multipart([_as_received(part) for part in message.parts], copy=False)


def _as_received(part: Buffer) -> Buffer | zmq.Frame:
    frame: object = part.obj if isinstance(part, memoryview) else None
    return frame if isinstance(frame, zmq.Frame) and len(frame) == len(part) else part


class Fanout:
    """Several destinations that are given the same messages. Use it in a `with` statement, on one thread.

    is_one_part: of the format (see `wire.Format`). Raises BadConfig for an address that is none or taken.
    """

    def __init__(self, destinations: Sequence[Destination], *, is_one_part: bool) -> None:
        if not destinations:
            raise BadConfig("nowhere to send to: give at least one destination")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=min(4, len(destinations)))
        lanes = {"push": PushLane, "pub": PubLane}
        self.lanes: list[Lane] = [lanes[to.socket](to, self._context, is_one_part=is_one_part) for to in destinations]
        try:
            for lane in self.lanes:
                lane.attach()
        except BadConfig:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Fanout:
        for lane in self.lanes:
            lane.start()
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self.lanes:
            lane.give_up()
        self._context.term()

    def give(self, message: Message, meanwhile: Callable[[], bool]) -> None:
        """Queue a message for every destination.

        meanwhile: called every LOOK_S while one that waits has no room; True ends the waiting: the message is queued
        all the same. Raises OutputDown when a socket is broken.
        """
        waiting = [lane for lane in self.lanes if lane.to.when_full == "wait"]
        for lane in self.lanes:
            if lane.to.when_full == "skip":
                lane.add_evicting(message)
        for lane in waiting:
            while not lane.backlog.add(message, LOOK_S):
                if meanwhile():
                    lane.backlog.add_regardless(message)
                    break

    def account(self) -> tuple[Delivered, ...]:
        """Of every destination, in order. Raises OutputDown when a socket is broken."""
        for lane in self.lanes:
            if lane.error is not None:
                raise OutputDown(f"the socket to {lane.to.address} is broken ({lane.error})")
        return tuple(lane.account() for lane in self.lanes)

    def drain(self, meanwhile: Callable[[], bool]) -> None:
        """Take no more, and wait until everything was sent. After that the account is final.

        meanwhile: called often; True gives up the rest, which stays under "waiting".
        """
        for lane in self.lanes:
            lane.backlog.close()
        pause = threading.Event()
        while any(lane.is_alive for lane in self.lanes) and not meanwhile():
            pause.wait(LOOK_S / 10)
        for lane in self.lanes:
            lane.give_up()
