"""Peaks of a pair distribution: position, width and number of neighbours of shells that are known."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.reduce.peaks import find_peaks

R = np.arange(0.025, 10.0125, 0.025)
DENSITY = 0.03


def curves(*shells: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """G and RDF of Gaussian shells (position, neighbours, width) on a mean density that begins at 6 Å."""
    rdf = 4 * np.pi * DENSITY * R**2 / (1 + np.exp(-(R - 6) / 0.4))
    for position, count, width in shells:
        rdf = rdf + count / (width * np.sqrt(2 * np.pi)) * np.exp(-(((R - position) / width) ** 2) / 2)
    return rdf / R - 4 * np.pi * DENSITY * R, rdf


def test_two_shells_are_two_peaks_with_their_neighbours() -> None:
    G, rdf = curves((2.4, 4.0, 0.09), (3.9, 8.0, 0.15))
    found = find_peaks(R, G, np.full_like(G, 0.02), rdf, 20.0)
    assert found.position[:2] == pytest.approx([2.4, 3.9], abs=0.01)
    assert found.N[:2] == pytest.approx([4.0, 8.0], rel=0.02)
    assert found.width[0] == pytest.approx(2.355 * 0.09, rel=0.15)


def test_what_does_not_stand_out_of_the_noise_is_no_peak() -> None:
    G, rdf = curves((2.4, 4.0, 0.09), (4.5, 0.05, 0.1))
    few = find_peaks(R, G, np.full_like(G, 0.05), rdf, 20.0)
    assert not np.any(np.abs(few.position - 4.5) < 0.2)


def test_a_curve_without_a_maximum_has_no_peaks() -> None:
    found = find_peaks(R, -R, np.full_like(R, 0.1), R, 20.0)
    assert found.position.size == found.N.size == 0


def test_sigma_of_n_is_an_upper_estimate_of_the_spread_of_many_curves() -> None:
    """Noise that is correlated over π/q_max, as that of a transform is."""
    rng = np.random.default_rng(7)
    G, rdf = curves((2.4, 4.0, 0.09), (3.9, 8.0, 0.15))
    q = np.arange(0.5, 16, 0.02)
    waves = np.sin(np.outer(R, q)) * q * 0.01 * 0.02 * 2 / np.pi
    sigma = np.sqrt((waves**2).sum(axis=1))
    drawn = []
    for _ in range(200):
        noise = waves @ rng.normal(size=q.size)
        drawn.append(find_peaks(R, G + noise, sigma, rdf + R * noise, 16.0).N[0])
    said = find_peaks(R, G, sigma, rdf, 16.0).sigma_N[0]
    assert np.std(drawn) < said < 10 * np.std(drawn)
