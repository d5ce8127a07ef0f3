"""Wavelets: noise is measured beside structure, and a distance is a stripe in the map."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.reduce.wavelets import noise_of, wavelet_map

Q = np.arange(0.5, 25, 0.02)


@pytest.mark.parametrize("sigma", [0.003, 0.01, 0.03])
def test_noise_is_found_beside_structure(sigma: float) -> None:
    S = 1 + np.sin(2.4 * Q) / Q + 0.3 * np.sin(9.0 * Q) * np.exp(-Q / 5)
    found = [noise_of(S + sigma * np.random.default_rng(k).normal(size=Q.size)) for k in range(20)]
    assert np.mean(found) == pytest.approx(sigma, rel=0.05)


def test_a_distance_is_a_stripe_in_the_map() -> None:
    r = np.arange(1.0, 8.0, 0.1)
    power = wavelet_map(Q, 2.0 * np.sin(3.0 * Q), r)[:, 300:-300].mean(axis=1)
    assert r[np.argmax(power)] == pytest.approx(3.0, abs=0.11)
    assert power.max() == pytest.approx(2.0, rel=0.1)


def test_beyond_the_sampling_the_map_says_nothing() -> None:
    assert np.isnan(wavelet_map(Q, np.sin(Q), np.array([200.0]))).all()
