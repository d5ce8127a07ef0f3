"""Guinier and power law on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.reduce.shape import guinier, power_law

Q = np.linspace(0.05, 3.0, 600)


def ball(radius: float, i0: float = 1000.0) -> np.ndarray:
    x = Q * radius
    return i0 * (3 * (np.sin(x) - x * np.cos(x)) / x**3) ** 2


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Loading what numba compiled takes longer than hypothesis lets an example take."""
    guinier(Q, ball(2.0), 1e-3 * ball(2.0))


@given(radius=st.floats(1.0, 8.0))
def test_a_spheres_radius_of_gyration(radius: float) -> None:
    I = ball(radius)
    found = guinier(Q, I, 0.01 * I + 0.01)
    assert found.rg == pytest.approx(math.sqrt(0.6) * radius, rel=0.03)
    assert found.i0 == pytest.approx(1000, rel=0.03)


def test_the_uncertainty_of_rg_is_its_scatter() -> None:
    I, g = ball(4.0), np.random.default_rng(1)
    sigma = np.sqrt(I + 1)
    found = [guinier(Q, I + sigma * g.standard_normal(Q.size), sigma) for _ in range(200)]
    rg = np.array([one.rg for one in found])
    assert np.isfinite(rg).all()
    assert rg.std() == pytest.approx(np.median([one.sigma_rg for one in found]), rel=0.4)
    assert found[0].i0 == pytest.approx(1000, rel=0.05)


def test_a_curve_that_only_falls_like_a_power_has_no_guinier_range() -> None:
    assert math.isnan(guinier(Q, 10 * Q**-4, 0.001 * Q**-4).rg)


def test_a_flat_or_empty_curve_has_no_radius() -> None:
    flat = np.ones(Q.size) + 0.01 * np.random.default_rng(0).standard_normal(Q.size)
    assert math.isnan(guinier(Q, flat, np.full(Q.size, 0.01)).rg)
    nothing = np.full(Q.size, np.nan)
    assert math.isnan(guinier(Q, nothing, nothing).rg)
    assert math.isnan(power_law(Q, nothing, nothing).slope)


@given(exponent=st.floats(1.0, 5.0))
def test_the_exponent_of_a_power_law(exponent: float) -> None:
    I = Q**-exponent
    found = power_law(Q, I, 0.01 * I)
    assert -found.slope == pytest.approx(exponent, abs=1e-6)
    assert found.sigma_slope < 0.05
