"""Times per stage are means, and say how much of them a thread did not run."""

from __future__ import annotations

import threading

import pytest

from streamer.pipeline.timing import Lap, Stopwatch, Timing


def test_a_stage_takes_the_mean_over_its_frames_and_waits_a_share_of_it() -> None:
    timing = Timing()
    timing.stage("decode", Lap(0.003, 0.0))
    timing.stage("decode", Lap(0.005, 0.002))
    timing.stage("infer", Lap(0.008, 0.0), frames=4)
    assert timing.take_stages() == {"decode": pytest.approx((4.0, 0.25)), "infer": pytest.approx((2.0, 0.0))}
    assert timing.take_stages() == {}


def test_a_thread_that_stands_still_waits_and_one_that_computes_does_not() -> None:
    watch = Stopwatch()
    threading.Event().wait(0.05)
    still = watch.lap()
    total = sum(range(300_000))
    busy = watch.lap()
    assert total > 0
    assert still.seconds >= 0.05
    assert still.waited_s > 0.8 * still.seconds
    assert 0 <= busy.waited_s < busy.seconds


def test_a_latency_falls_into_a_bin_that_is_two_percent_wide() -> None:
    timing = Timing()
    for latency_s in (0.001, 0.002, 0.0031):
        timing.frame(latency_s)
    timing.frame(None)
    assert timing.frames == 4
    overall = timing.overall_ms()
    assert overall["p50"] == pytest.approx(2.0, rel=0.03)
    assert overall["max"] == pytest.approx(3.1, rel=0.03)
