"""p-values that are what they say, and say where they end."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.records import BadInput
from streamer.reduce.conformal import Conformal


def exponential(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n)


@given(n=st.integers(1, 300), seed=st.integers(0, 10))
def test_p_counts_the_stranger_ones(n: int, seed: int) -> None:
    scores = exponential(n, seed)
    calibration = Conformal(scores)
    at = float(np.median(scores))
    assert calibration.p(at) == pytest.approx((1 + (scores >= at).sum()) / (n + 1))
    assert calibration.p(-1.0) == 1.0


@given(seed=st.integers(0, 20))
def test_a_stranger_frame_never_has_a_larger_p(seed: int) -> None:
    calibration = Conformal(exponential(500, seed))
    p = [calibration.p(score) for score in np.linspace(0, 30, 200)]
    assert all(a >= b for a, b in itertools.pairwise(p))


def test_false_alarms_are_as_rare_as_asked_for() -> None:
    limit = Conformal(exponential(20_000)).limit(1e-3)
    found = (exponential(400_000, 1) > limit.score).mean()
    assert not limit.is_extrapolated
    assert found == pytest.approx(1e-3, rel=0.35)


def test_beyond_the_frames_the_limit_is_extrapolated_and_says_how_many_it_takes() -> None:
    limit = Conformal(exponential(2000)).limit(1e-5)
    assert limit.is_extrapolated
    assert limit.frames_needed == 99_999
    assert limit.score == pytest.approx(-math.log(1e-5), rel=0.3)


def test_the_extrapolated_p_meets_the_measured_one_at_the_floor() -> None:
    calibration = Conformal(exponential(5000))
    assert calibration.p(float(calibration.scores[-1])) == pytest.approx(2 / 5001)
    assert calibration.p(float(calibration.scores[-1]) + 1e-9) <= calibration.floor


def test_too_few_frames_have_no_tail_and_name_the_number_that_has() -> None:
    with pytest.raises(BadInput, match=r"30 frames cannot tell a limit .* 19999 can, and from 200 on"):
        Conformal(exponential(30)).limit(5e-5)


def test_nothing_is_known_of_nan_and_nothing_learned_from_it() -> None:
    assert math.isnan(Conformal(np.array([1.0, np.nan, 2.0])).p(math.nan))
    assert Conformal(np.array([1.0, np.nan, 2.0])).scores.size == 2
    with pytest.raises(BadInput, match="found no frame"):
        Conformal(np.array([np.nan]))
