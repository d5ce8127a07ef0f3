"""Spikes and dips are found; Bragg peaks, noise and the edges of a pattern are not taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.reduce.artefacts import bridged, find_artefacts

Q = np.arange(0.3, 25, 0.02)


def pattern(rng: np.random.Generator, *, crystal: bool = False) -> np.ndarray:
    I = 2000 * np.exp(-Q / 6) + 30 * np.sin(2.4 * Q) * np.exp(-Q / 12) + 60
    if crystal:
        for k, height in enumerate(np.geomspace(9000, 50, 24)):
            I += height * np.exp(-(((Q - 2.5 - 0.75 * k) / 0.05) ** 2) / 2)
    return rng.poisson(40 * I) / 40


@given(seed=st.integers(0, 10**6), crystal=st.booleans())
def test_a_good_pattern_has_none(seed: int, crystal: bool) -> None:
    assert find_artefacts(Q, pattern(np.random.default_rng(seed), crystal=crystal)) == []


@given(seed=st.integers(0, 10**6), where=st.integers(120, 1150))
def test_a_hot_point_is_a_spike_and_is_bridged(seed: int, where: int) -> None:
    clean = pattern(np.random.default_rng(seed))
    spoilt = clean.copy()
    spoilt[where] *= 3
    [one] = find_artefacts(Q, spoilt)
    assert (one.kind, one.first, one.last) == ("spike", where, where)
    assert bridged(spoilt, [one])[where] == pytest.approx(clean[where], rel=0.2)


@given(seed=st.integers(0, 10**6), where=st.integers(120, 1150), width=st.integers(1, 8))
def test_a_shadow_is_a_dip(seed: int, where: int, width: int) -> None:
    spoilt = pattern(np.random.default_rng(seed))
    spoilt[where : where + width] *= 0.05
    found = find_artefacts(Q, spoilt)
    assert [one.kind for one in found] == ["dip"]
    assert (found[0].first, found[0].last) == (where, where + width - 1)


def test_points_without_a_measurement_are_passed_over() -> None:
    I = pattern(np.random.default_rng(1))
    I[300:310] = np.nan
    assert find_artefacts(Q, I) == []


def test_too_short_a_pattern_says_nothing() -> None:
    assert find_artefacts(Q[:100], np.ones(100)) == []
