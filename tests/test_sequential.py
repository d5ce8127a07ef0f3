"""Tests that remember: thresholds from theory, and the theory from simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.records import BadInput
from streamer.reduce.loops import run_of_signs
from streamer.sequential import SHIFTS, Bank, Still, run_length, run_probability, threshold

# Brook and Evans' chain for ARL₀ = 10⁶, from an independent calculation: shift → h, mean delay.
KNOWN = {0.5: (22.4, 86.0), 1.0: (12.0, 24.0), 2.0: (6.1, 6.9), 3.0: (4.0, 3.3)}


@pytest.mark.parametrize("shift", SHIFTS)
def test_limits_and_delays_of_the_cusum_are_those_of_the_literature(shift: float) -> None:
    h, delay = KNOWN[shift]
    assert threshold(shift, 1e6) == pytest.approx(h, abs=0.1)
    assert run_length(shift, threshold(shift, 1e6), mean=shift) == pytest.approx(delay, rel=0.03)


def test_false_alarms_come_as_rarely_as_the_limit_promises() -> None:
    g, h = np.random.default_rng(3), threshold(1.0, 500.0)
    sums, alarms = np.zeros(4000), 0
    frames = 3000
    for _ in range(frames):
        sums = np.maximum(sums + g.standard_normal(4000) - 0.5, 0)
        fired = sums > h
        alarms += int(fired.sum())
        sums[fired] = 0
    assert 4000 * frames / alarms == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_bank_finds_a_step_about_as_fast_as_the_cusum_made_for_it(shift: float) -> None:
    g, bank, delays = np.random.default_rng(5), Bank(1e6), []
    for _ in range(150):
        bank.start_over()
        scores = (float(g.normal(shift, 1)) for _ in itertools.count())
        delays.append(next(n for n, score in enumerate(scores, 1) if bank.see(score) > 1))
    assert np.mean(delays) < 1.3 * run_length(shift, threshold(shift, 1e6), mean=shift)


def test_a_two_sided_bank_sees_falling_scores_and_a_one_sided_one_does_not() -> None:
    one, both = Bank(1e4), Bank(1e4, is_two_sided=True)
    assert max(one.see(-2.0) for _ in range(50)) == 0.0
    assert max(both.see(-2.0) for _ in range(50)) > 1


def test_a_score_that_is_not_known_changes_nothing_and_an_infinite_one_ends_nothing_for_ever() -> None:
    bank = Bank(1e4)
    before = bank.see(3.0)
    assert bank.see(math.nan) == before
    assert bank.see(math.inf) > 1
    assert min(bank.see(-3.0) for _ in range(60)) == 0.0


@pytest.mark.parametrize(("shift", "arl"), [(0.0, 1e4), (-1.0, 1e4), (1.0, 1.0), (1.0, math.nan)])
def test_a_cusum_without_meaning_is_refused(shift: float, arl: float) -> None:
    with pytest.raises(BadInput, match="frames between false alarms"):
        threshold(shift, arl)


def test_a_value_that_stands_still_is_counted() -> None:
    still = Still()
    assert [still.see(x) for x in (1.0, 1.0, 1.0, 2.0, 2.0)] == [1, 2, 3, 1, 2]
    assert [still.see(x) for x in (math.nan, math.nan)] == [1, 1]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Loading what numba compiled takes longer than hypothesis lets an example take."""
    run_of_signs(np.ones(1), np.zeros(1))


@given(signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=1, max_size=40))
def test_the_longest_run_is_the_longest_group(signs: list[float]) -> None:
    longest = max(len(list(group)) for _, group in itertools.groupby(signs))
    assert run_of_signs(np.array(signs), np.zeros(len(signs))) == (longest, len(signs))


def test_bins_that_tell_no_sign_are_passed_over() -> None:
    assert run_of_signs(np.array([1.0, np.nan, 0.0, 2.0, -1.0]), np.zeros(5)) == (2, 3)
    assert run_of_signs(np.array([np.nan]), np.zeros(1)) == (0, 0)


@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_the_chance_of_a_run_is_that_of_counting_all_sequences(n: int) -> None:
    runs = [
        max(len(list(group)) for _, group in itertools.groupby(signs)) for signs in itertools.product((0, 1), repeat=n)
    ]
    for run in range(n + 2):
        assert run_probability(n, run) == pytest.approx(np.mean([longest >= run for longest in runs]))


@pytest.mark.parametrize(("n", "run"), [(20, 5), (100, 9), (474, 14)])
def test_the_chance_of_a_run_is_that_of_freesas(n: int, run: int) -> None:
    cormap = pytest.importorskip("freesas.cormap", reason="freesas not installed: pip install 'streamer[test]'")
    assert run_probability(n, run) == pytest.approx(cormap.LongestRunOfHeads().probaLongerRun(n, run - 1), rel=1e-6)
