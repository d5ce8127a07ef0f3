"""Bounded queues: back-pressure or counted loss, batches, statistics: how the stages' threads meet.

The failure first: an unbounded queue hides a stage that is too slow until the machine runs out of memory, and then
everything is lost at once. So every queue has a size, says what happens when it is full, and measures itself.

`Queue` carries anything. `WorkQueue` is a queue whose *barriers* run alone: a worker gets a barrier only when all that
was taken before it is finished, and nothing behind it is handed out until the barrier itself is finished.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from streamer.records import BadInput

T = TypeVar("T")


class Closed(Exception):
    """The queue is closed and, for a taker, empty."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """depth: items waiting. size: the most that may wait. nbytes: bytes waiting. passed: items taken so far.

    waited_s: how long givers stood still because the queue was full. highest: the deepest it ever was.
    """

    depth: int
    size: int
    nbytes: int
    passed: int
    waited_s: float
    highest: int


class Queue(Generic[T]):
    """First in, first out, bounded by number and by bytes.

    size: items at most. max_bytes: bytes at most, by the `nbytes` given with each item; one item is always let in, so
    that an item larger than max_bytes passes alone.

    Whoever waits is woken alone, and only by what it waits for: a thread woken for nothing costs all others their turn
    at the interpreter. A giver is woken once a quarter of the queue is free, so that it has work for a while.
    """

    def __init__(self, size: int, *, max_bytes: int | None = None) -> None:
        if size < 1:
            raise BadInput(f"queue: size is {size}, expected at least 1")
        self.size = size
        self.max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._lock = threading.RLock()
        self._takers = threading.Condition(self._lock)
        self._givers = threading.Condition(self._lock)
        self._takers_waiting = 0
        self._givers_waiting = 0
        self._nbytes = 0
        self._passed = 0
        self._highest = 0
        self._waited_s = 0.0
        self._closed = False

    def __len__(self) -> int:
        """Items waiting."""
        return len(self._items)

    def put(self, item: T, nbytes: int = 0, *, timeout_s: float | None = None, quietly: bool = False) -> bool:
        """Add an item, waiting while the queue is full. Returns False if timeout_s passed first. Raises Closed.

        quietly: a taker is not woken, because more items follow; then `wake`.
        """
        with self._lock:
            if not self._closed and not self._has_room(nbytes) and not self._room_came(nbytes, timeout_s):
                return False
            if self._closed:
                raise Closed
            self._append(item, nbytes, quietly)
            return True

    def put_evicting(
        self,
        item: T,
        nbytes: int = 0,
        *,
        may_go: Callable[[T], bool] = lambda _: True,
        may_grow: bool = False,
        quietly: bool = False,
    ) -> list[T]:
        """Add an item: the oldest items that `may_go` make room and are returned, oldest first.

        Where nothing may go the giver waits, or with `may_grow` the queue grows past its size. quietly: as for `put`.
        """
        evicted: list[T] = []
        with self._lock:
            if self._closed:
                raise Closed
            while not self._has_room(nbytes):
                place = next((i for i, (held, _) in enumerate(self._items) if may_go(held)), None)
                if place is None and may_grow:
                    break
                if place is None:
                    self._wait_to_give(lambda: self._closed or self._has_room(nbytes), None)
                    if self._closed:
                        raise Closed
                    continue
                held, held_bytes = self._items[place]
                del self._items[place]
                self._nbytes -= held_bytes
                evicted.append(held)
            self._append(item, nbytes, quietly)
        return evicted

    def wake(self) -> None:
        """Have what was put quietly taken."""
        with self._lock:
            if self._items:
                self._wake_a_taker()

    def take(self, timeout_s: float | None = None) -> T | None:
        """The oldest item, or None after timeout_s. Raises Closed once the queue is closed and empty."""
        with self._lock:
            if not self._items and not self._wait_to_take(lambda: bool(self._items) or self._closed, timeout_s):
                return None
            if not self._items:
                raise Closed
            return self._pop()

    def take_all(self, most: int, timeout_s: float | None = None) -> list[T]:
        """The oldest items, at most `most`; none after timeout_s. Raises Closed once the queue is closed and empty."""
        with self._lock:
            if not self._items and not self._wait_to_take(lambda: bool(self._items) or self._closed, timeout_s):
                return []
            if not self._items:
                raise Closed
            return [self._pop() for _ in range(min(most, len(self._items)))]

    def close(self) -> None:
        """No more items: givers get Closed at once, takers when the last item is gone."""
        with self._lock:
            self._closed = True
            self._wake_all()

    def clear(self) -> list[T]:
        """Take everything that waits."""
        with self._lock:
            items = [item for item, _ in self._items]
            self._items.clear()
            self._nbytes = 0
            self._wake_all()
            return items

    def statistics(self) -> QueueStatistics:
        """How the queue is doing."""
        with self._lock:
            return QueueStatistics(
                depth=len(self._items),
                size=self.size,
                nbytes=self._nbytes,
                passed=self._passed,
                waited_s=self._waited_s,
                highest=self._highest,
            )

    def _has_room(self, nbytes: int) -> bool:
        if not self._items:
            return True
        fits = self.max_bytes is None or self._nbytes + nbytes <= self.max_bytes
        return fits and len(self._items) < self.size

    def _is_low(self) -> bool:
        """Whether a quarter is free, so that a giver who is woken has work for a while."""
        if len(self._items) > self.size - max(1, self.size // 4):
            return False
        return self.max_bytes is None or self._nbytes <= self.max_bytes - self.max_bytes // 4

    def _room_came(self, nbytes: int, timeout_s: float | None) -> bool:
        began = time.monotonic()
        came = self._wait_to_give(lambda: self._closed or self._has_room(nbytes), timeout_s)
        self._waited_s += time.monotonic() - began
        return came

    def _wait_to_give(self, is_ready: Callable[[], bool], timeout_s: float | None) -> bool:
        self._wake_a_taker()  # of what was put quietly
        self._givers_waiting += 1
        try:
            return self._givers.wait_for(is_ready, timeout_s)
        finally:
            self._givers_waiting -= 1

    def _wait_to_take(self, is_ready: Callable[[], bool], timeout_s: float | None) -> bool:
        self._takers_waiting += 1
        try:
            return self._takers.wait_for(is_ready, timeout_s)
        finally:
            self._takers_waiting -= 1

    def _append(self, item: T, nbytes: int, quietly: bool) -> None:
        self._items.append((item, nbytes))
        self._nbytes += nbytes
        self._highest = max(self._highest, len(self._items))
        if not quietly:
            self._wake_a_taker()

    def _wake_a_taker(self) -> None:
        if self._takers_waiting:
            self._takers.notify()

    def _pop(self) -> T:
        item, nbytes = self._items.popleft()
        self._nbytes -= nbytes
        self._passed += 1
        if self._givers_waiting and self._is_low():
            self._givers.notify_all()  # what fits one giver may be too large for another
        if self._closed and not self._items:
            self._takers.notify_all()
        return item

    def _wake_all(self) -> None:
        self._takers.notify_all()
        self._givers.notify_all()


class WorkQueue(Queue[T]):
    """A queue for several workers whose barriers run alone and in order.

    is_barrier: tells which items are barriers. A worker calls `done` after every item it took.
    """

    def __init__(self, size: int, *, is_barrier: Callable[[T], bool], max_bytes: int | None = None) -> None:
        super().__init__(size, max_bytes=max_bytes)
        self._is_barrier = is_barrier
        self._running = 0
        self._alone = False

    def take(self, timeout_s: float | None = None) -> T | None:
        """The oldest item that may be worked on now, or None after timeout_s. Raises Closed when closed and empty."""
        with self._lock:
            if not self._may_go_on() and not self._wait_to_take(self._may_go_on, timeout_s):
                return None
            if not self._items:
                raise Closed
            item = self._pop()
            self._running += 1
            self._alone = self._is_barrier(item)
            return item

    def done(self) -> None:
        """The item taken by the calling worker is finished."""
        with self._lock:
            self._running -= 1
            if self._alone or (self._running == 0 and self._items and self._is_barrier(self._items[0][0])):
                self._alone = False
                self._takers.notify_all()

    def _may_go_on(self) -> bool:
        return self._may_start() or (self._closed and not self._items)

    def _may_start(self) -> bool:
        if not self._items or self._alone:
            return False
        return self._running == 0 or not self._is_barrier(self._items[0][0])
