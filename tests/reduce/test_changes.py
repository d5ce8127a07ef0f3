"""The probability of a change is what its model says it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.reduce.changes import ChangePoint


def test_a_change_is_believed_soon_after_it_happened_and_its_age_is_right() -> None:
    g, changes = np.random.default_rng(2), ChangePoint()
    calm = [changes.see(float(x)) for x in g.standard_normal(3000)]
    assert max(calm) < 0.5
    after = [changes.see(float(x)) for x in g.normal(2.0, 1, 30)]
    assert after[-1] > 0.99
    assert changes.age == pytest.approx(30, abs=4)


def test_the_probability_of_a_change_is_calibrated_on_its_own_model() -> None:
    g, hazard, said, true = np.random.default_rng(4), 0.01, [], []
    for _ in range(300):
        changes, mean = ChangePoint(hazard=hazard), 0.0
        for _ in range(40):
            if mean == 0.0 and g.random() < hazard:
                mean = float(g.normal(0, 3))
            said.append(changes.see(float(g.normal(mean, 1))))
            true.append(mean != 0.0)
    p, happened = np.array(said), np.array(true)
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0)):
        rows = (p >= low) & (p <= high)
        assert happened[rows].mean() == pytest.approx(p[rows].mean(), abs=0.12)


def test_no_more_beginnings_are_kept_than_asked_for() -> None:
    changes = ChangePoint(longest=20)
    for x in np.random.default_rng(0).standard_normal(100):
        changes.see(float(x))
    assert changes._kept == 20


def test_the_odds_are_those_of_adding_up_every_beginning() -> None:
    scores = np.concatenate([np.random.default_rng(7).standard_normal(40), np.random.default_rng(8).normal(1.5, 1, 20)])
    hazard, spread, changes = 1e-3, 3.0, ChangePoint(hazard=1e-3)
    for n, said in enumerate(map(changes.see, scores.tolist()), 1):
        odds = 0.0
        for first in range(n):
            since = scores[first:n]
            covariance = np.eye(len(since)) + spread**2
            ratio = np.linalg.slogdet(covariance)[1] + since @ np.linalg.solve(covariance, since) - since @ since
            odds += hazard / (1 - hazard) ** (n - first) * math.exp(-ratio / 2)
        assert said == pytest.approx(odds / (1 + odds), rel=1e-9)
