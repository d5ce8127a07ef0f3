"""The physics of the simulated instrument against analytic truth, its counts against Poisson."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.sources.instrument import aggregates, count, power_law, sphere, spheres

Q = np.geomspace(0.05, 5, 200)


def test_a_sphere_has_its_published_zeros_and_its_forward_scattering():
    zeros = np.array([4.493409458, 7.725251837, 10.904121659])  # tan x = x
    np.testing.assert_allclose(sphere(zeros), 0, atol=1e-9)
    np.testing.assert_allclose(sphere(np.array([0.0, 0.01 - 1e-12, 0.01])), [1, 1 - 1e-5, 1 - 1e-5], rtol=1e-9)


def test_small_spheres_obey_guinier_and_large_ones_porod():
    one_size = spheres(Q, 3.0, 1e-6, 0.01, 327.2)
    forward = spheres(np.zeros(1), 3.0, 1e-6, 0.01, 327.2)
    low = Q * 3.0 < 0.3
    np.testing.assert_allclose(one_size[low], (forward * np.exp(-((Q * 3) ** 2) / 5))[low], rtol=1e-3)
    many = spheres(Q, 30.0, 0.25, 0.01, 327.2)
    tail = Q > 1
    slope = np.polyfit(np.log(Q[tail]), np.log(many[tail]), 1)[0]
    assert slope == pytest.approx(-4, abs=0.02)


def test_forward_scattering_of_spheres_is_fraction_times_contrast_squared_times_volume():
    volume_cm3 = 4 / 3 * np.pi * (3e-7) ** 3
    contrast_cm2 = 2.8179403e-13 * 327.2e21
    [forward] = spheres(np.zeros(1), 3.0, 1e-9, 0.01, 327.2)
    assert forward == pytest.approx(0.01 * contrast_cm2**2 * volume_cm3, rel=1e-9)


def test_the_invariant_of_spheres_does_not_depend_on_their_size():
    """∫ q² I dq = 2π² φ Δρ² for a dilute system, whatever the size distribution."""
    q = np.linspace(1e-3, 60, 20_000)
    for radius, spread in ((3.0, 0.1), (6.0, 0.3)):
        invariant = np.trapezoid(q**2 * spheres(q, radius, spread, 0.01, 327.2), q)  # nm⁻³ cm⁻¹
        expected = 2 * np.pi**2 * 0.01 * (2.8179403e-6 * 327.2) ** 2 * 1e7
        assert invariant == pytest.approx(expected, rel=0.02)


def test_aggregates_fall_with_their_fractal_dimension_and_power_laws_with_their_exponent():
    far = np.array([10.0, 20.0])
    assert np.diff(np.log(aggregates(far, 30.0, 2.2)))[0] / np.log(2) == pytest.approx(-2.2, abs=1e-4)
    assert aggregates(np.zeros(1), 30.0, 2.2) == 1
    assert power_law(np.array([0.1]), 0.3, 4.0) == pytest.approx(0.3)
    assert np.diff(np.log(power_law(far, 0.3, 4.0)))[0] / np.log(2) == pytest.approx(-4)


@given(st.floats(1e-4, 50), st.integers(0, 2**32))
def test_counts_are_poisson_numbers(mean, seed):
    n = 40_000
    expected = np.full(n, mean)
    counted = np.empty(n, np.uint16)
    count(expected, np.exp(-expected).astype(np.float32), np.random.Generator(np.random.SFC64(seed)), counted)
    sigma = np.sqrt(mean / n)
    assert abs(counted.mean() - mean) < 6 * sigma
    for k in (0, 1, 2):
        probability = np.exp(-mean) * mean**k / (1, 1, 2)[k]
        assert abs(np.mean(counted == k) - probability) < 6 * np.sqrt(probability / n) + 2 / n
    excess = counted.var() / mean - 1
    assert abs(excess) < 8 * np.sqrt((2 + 1 / mean) / n)
