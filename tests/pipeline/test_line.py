"""Messages leave the line in the order they came, in batches, and nobody is woken for nothing."""

from __future__ import annotations

import threading

import pytest

from streamer.pipeline.line import Line, Slot
from streamer.queues import Closed

LONG_S = 30.0


def lined_up(count: int) -> tuple[Line, list[Slot]]:
    line, slots = Line(64), [Slot(None, "image", 0) for _ in range(count)]
    for slot in slots:
        line.put(slot)
    return line, slots


def notified(line: Line, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stood in line whenever a taker was woken."""
    woken: list[int] = []
    monkeypatch.setattr(line._takers, "notify", lambda: woken.append(len(line)))
    monkeypatch.setattr(line, "_takers_waiting", 1)
    return woken


def test_what_is_done_first_waits_for_those_before_it() -> None:
    line, slots = lined_up(3)
    line.finish(slots[1], None)
    assert line.take_done(16, 0.0, 0.0) == []
    line.finish(slots[0], None)
    assert line.take_done(16, 0.0, 0.0) == slots[:2]


def test_no_more_leave_at_once_than_asked_for() -> None:
    line, slots = lined_up(5)
    for slot in slots:
        line.finish(slot, None)
    assert [len(line.take_done(2, LONG_S, LONG_S)) for _ in range(3)] == [2, 2, 1]


def test_a_frame_that_comes_alone_is_not_kept_waiting() -> None:
    line, slots = lined_up(1)
    line.finish(slots[0], None)
    assert line.take_done(16, LONG_S, LONG_S) == slots


def test_those_behind_are_waited_for() -> None:
    line, slots = lined_up(3)
    line.finish(slots[0], None)
    worker = threading.Thread(target=lambda: [line.finish(slot, None) for slot in slots[1:]])
    worker.start()
    assert line.take_done(16, LONG_S, LONG_S) == slots
    worker.join()


def test_those_behind_are_waited_for_no_longer_than_allowed() -> None:
    line, slots = lined_up(3)
    line.finish(slots[0], None)
    assert line.take_done(16, 0.001, LONG_S) == slots[:1]


def test_a_batch_is_filled_from_a_long_line() -> None:
    line, slots = lined_up(40)
    line.finish(slots[0], None)
    worker = threading.Thread(target=lambda: [line.finish(slot, None) for slot in slots[1:]])
    worker.start()
    assert line.take_done(16, LONG_S, LONG_S) == slots[:16]
    worker.join()


def test_a_message_that_comes_wakes_nobody_and_one_that_is_done_only_as_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, slots = lined_up(2)
    woken = notified(line, monkeypatch)
    line.put(Slot(None, "image", 0))
    line.finish(slots[1], None)
    assert woken == []
    line.finish(slots[0], None)
    assert woken == [3]


def test_a_closed_line_gives_out_what_stands_in_it() -> None:
    line, slots = lined_up(2)
    line.close()
    for slot in slots:
        line.finish(slot, None)
    assert line.take_done(16, 0.0, LONG_S) == slots
    with pytest.raises(Closed):
        line.take_done(16, 0.0, LONG_S)
