"""A queue neither loses nor invents, says what is full, and lets barriers run alone."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.queues import Closed, Queue, WorkQueue
from streamer.records import BadInput


def test_items_come_out_in_the_order_they_went_in() -> None:
    queue: Queue[int] = Queue(3)
    for item in (1, 2, 3):
        assert queue.put(item)
    assert [queue.take(), queue.take(), queue.take()] == [1, 2, 3]


def test_a_full_queue_makes_the_giver_wait_until_there_is_room() -> None:
    queue: Queue[int] = Queue(1)
    queue.put(1)
    assert not queue.put(2, timeout_s=0.01)
    giver = threading.Thread(target=queue.put, args=(2,))
    giver.start()
    assert queue.take() == 1
    giver.join(10)
    assert queue.take() == 2
    assert queue.statistics().waited_s > 0


def test_a_giver_is_woken_once_a_quarter_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Queue[int] = Queue(8)
    for item in range(8):
        queue.put(item)
    woken: list[int] = []
    monkeypatch.setattr(queue._givers, "notify_all", lambda: woken.append(len(queue)))
    monkeypatch.setattr(queue, "_givers_waiting", 1)
    assert [queue.take() for _ in range(4)] == [0, 1, 2, 3]
    assert woken == [6, 5, 4]


def test_a_giver_of_large_items_is_woken_once_a_quarter_of_the_bytes_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Queue[int] = Queue(8, max_bytes=100)
    for item in range(5):
        queue.put(item, nbytes=20)
    woken: list[int] = []
    monkeypatch.setattr(queue._givers, "notify_all", lambda: woken.append(len(queue)))
    monkeypatch.setattr(queue, "_givers_waiting", 1)
    assert [queue.take() for _ in range(3)] == [0, 1, 2]
    assert woken == [3, 2]


def test_what_is_put_quietly_wakes_nobody_until_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Queue[int] = Queue(8)
    woken: list[int] = []
    monkeypatch.setattr(queue._takers, "notify", lambda: woken.append(len(queue)))
    monkeypatch.setattr(queue, "_takers_waiting", 1)
    queue.put(1, quietly=True)
    queue.put_evicting(2, quietly=True)
    assert woken == []
    queue.wake()
    queue.put(3)
    assert woken == [2, 3]


def test_a_giver_who_must_wait_has_what_was_put_quietly_taken() -> None:
    queue: Queue[int] = Queue(1)
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.extend(queue.take() for _ in range(2)))
    taker.start()
    queue.put(1, quietly=True)
    queue.put(2, quietly=True)
    queue.wake()
    taker.join()
    assert taken == [1, 2]


def test_a_full_queue_gives_up_the_oldest_that_may_go() -> None:
    queue: Queue[str] = Queue(3)
    for item in ("start", "frame 0", "frame 1"):
        queue.put(item)
    assert queue.put_evicting("frame 2", may_go=lambda item: item != "start") == ["frame 0"]
    assert [queue.take() for _ in range(3)] == ["start", "frame 1", "frame 2"]


def test_what_may_not_go_lets_the_queue_grow() -> None:
    queue: Queue[str] = Queue(1)
    queue.put("start")
    assert queue.put_evicting("end", may_go=lambda _: False, may_grow=True) == []
    assert queue.statistics().depth == 2


def test_where_nothing_may_go_the_giver_waits() -> None:
    queue: Queue[str] = Queue(1)
    queue.put("start")
    giver = threading.Thread(target=queue.put_evicting, args=("end",), kwargs={"may_go": lambda _: False})
    giver.start()
    assert queue.take() == "start"
    giver.join(10)
    assert queue.take() == "end"


def test_bytes_are_bounded_too_and_one_large_item_passes_alone() -> None:
    queue: Queue[str] = Queue(10, max_bytes=100)
    assert queue.put("large", nbytes=1000)
    assert not queue.put("small", nbytes=1, timeout_s=0.01)
    queue.take()
    assert queue.put("half", nbytes=60)
    assert queue.put_evicting("half", nbytes=60) == ["half"]


def test_a_closed_queue_gives_what_it_has_and_then_says_so() -> None:
    queue: Queue[int] = Queue(2)
    queue.put(1)
    queue.close()
    with pytest.raises(Closed):
        queue.put(2)
    assert queue.take() == 1
    with pytest.raises(Closed):
        queue.take()


def test_all_that_is_there_is_taken_and_no_more_than_asked() -> None:
    queue: Queue[int] = Queue(10)
    for item in range(5):
        queue.put(item)
    assert queue.take_all(3) == [0, 1, 2]
    assert queue.take_all(3) == [3, 4]
    assert queue.take_all(3, timeout_s=0.01) == []
    queue.close()
    with pytest.raises(Closed):
        queue.take_all(3)


def test_a_queue_of_no_size_is_refused() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        Queue(0)


@given(st.lists(st.integers(0, 3)), st.integers(1, 5))
def test_a_queue_neither_loses_nor_invents(steps: list[int], size: int) -> None:
    queue: Queue[int] = Queue(size)
    given_to, taken, evicted = 0, [], []
    for step in steps:
        if step == 0:
            item = queue.take(timeout_s=0.0)
            taken += [] if item is None else [item]
        else:
            evicted += queue.put_evicting(given_to)
            given_to += 1
    rest = queue.clear()
    assert sorted(taken + evicted + rest) == list(range(given_to))
    assert taken == sorted(taken)
    assert queue.statistics().highest <= size


def test_a_barrier_runs_alone_and_nothing_overtakes_it() -> None:
    queue: WorkQueue[str] = WorkQueue(10, is_barrier=lambda item: item == "barrier")
    for item in ("a", "b", "barrier", "c"):
        queue.put(item)
    assert [queue.take(), queue.take()] == ["a", "b"]
    assert queue.take(timeout_s=0.01) is None
    queue.done()
    assert queue.take(timeout_s=0.01) is None
    queue.done()
    assert queue.take() == "barrier"
    assert queue.take(timeout_s=0.01) is None
    queue.done()
    assert queue.take() == "c"


def test_many_workers_see_every_item_once_and_barriers_alone() -> None:
    queue: WorkQueue[int] = WorkQueue(4, is_barrier=lambda item: item % 10 == 0)
    running, seen, worst = [0], [], []
    lock = threading.Lock()

    def work() -> None:
        try:
            while True:
                item = queue.take(timeout_s=0.1)
                if item is None:
                    continue
                with lock:
                    running[0] += 1
                    worst.append((item % 10 == 0, running[0]))
                    seen.append(item)
                with lock:
                    running[0] -= 1
                queue.done()
        except Closed:
            pass

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for item in range(500):
        queue.put(item)
    queue.close()
    for worker in workers:
        worker.join(20)
    assert sorted(seen) == list(range(500))
    assert all(count == 1 for is_barrier, count in worst if is_barrier)
