"""The schedule of what is played back, with the time injected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.records import BadConfig
from streamer.sources.playback import Pace, natural_order, period_s


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_message_is_held_back_until_it_is_due():
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    assert pace.wait(0.0, 1.0)
    assert not pace.wait(2.5, 1.0)
    assert not pace.wait(2.5, 1.0)
    assert pace.wait(2.5, 1.0)
    assert clock.now == pytest.approx(1002.5)


def test_what_is_overdue_comes_at_once():
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.wait(0.0, 1.0)
    clock.now += 60
    assert all(pace.wait(due, 0.0) for due in (1.0, 2.0, 59.0))
    assert clock.now == 1060.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20).map(sorted), st.floats(0.001, 5))
def test_no_message_comes_early_and_no_call_outlasts_its_timeout(schedule, timeout):
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.wait(0.0, timeout)
    for due in schedule:
        before = clock.now
        is_due = pace.wait(due, timeout)
        assert clock.now - before <= timeout + 1e-9
        assert clock.now >= 1000.0 + due - 1e-9 if is_due else clock.now < 1000.0 + due + 1e-9


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(BadConfig, match="expected a positive number of messages per second, or max"):
        period_s(rate, "sim:saxs")


def test_numbers_in_names_are_numbers():
    names = ["run_10.tif", "run_9.tif", "run_1.tif", "9_a.tif", "a²_1.tif"]
    ordered = [path.name for path in natural_order(Path(name) for name in names)]
    assert ordered == ["9_a.tif", "a²_1.tif", "run_1.tif", "run_9.tif", "run_10.tif"]
