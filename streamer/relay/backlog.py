"""What waits for one destination, and the account of everything that ever did.

Every message that was received is, for each destination and at every moment, under one of these names:

    received = sent + dropped + unheard + waiting

sent      handed to ZeroMQ. What ZeroMQ and the network hold (SNDHWM messages and the kernel's buffers) is lost with a
          reader that dies, and no sender can tell how much that was; the reader's successor sees it as missing numbers.
dropped   given up because the reader was too slow and the destination's queue was full. `when_full = "skip"` gives up
          the oldest image; starts and ends go only where no image is left to go. "wait" gives up nothing: it stops
          the relay, and so the detector, until there is room. One destination that waits holds up all the others.
unheard   published while nobody had subscribed (only on "pub", only with "skip").
waiting   in the queue, or in the hands of the thread that sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamer.queues import Queue
from streamer.relay.destinations import Destination
from streamer.sources import Message

Outcome = Literal["sent", "unheard"]


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
