"""The way to one destination: a queue, a socket, and the thread that empties the one into the other.

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
import threading
import time

import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamer.queues import Closed
from streamer.records import BadConfig, Buffer, OutputDown
from streamer.relay.backlog import Backlog, Delivered, Outcome
from streamer.relay.destinations import Destination
from streamer.sources import Message
from streamer.sources.live import KEEPALIVE
from streamer.sources.standing import Standing

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


class Lane(abc.ABC):
    """The way to one destination: a queue, a socket, and the thread that empties the one into the other."""

    _type: int
    _options: dict[int, int]

    def __init__(self, to: Destination, context: zmq.Context[zmq.Socket[bytes]], *, is_one_part: bool) -> None:
        self.to = to
        self.backlog = Backlog(to.queue, round(to.queue_MB * 1e6))
        self.readers = 0
        self.repeated = 0
        self.error: Exception | None = None
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

    def check(self) -> None:
        """Raises what ended the thread before its time: OutputDown where the socket is broken."""
        if self.error is not None:
            raise self.error

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
            self.error = OutputDown(f"the socket to {self.to.address} is broken ({error})")
        except Exception as error:
            log.exception("a lane failed", to=self.to.address)
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
