"""The sine transform: every way to it is the sum, on any pair of uniform grids, and its σ is that of the sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.records import BadInput
from streamer.reduce.sine import SineTransform, _Gathered


def direct(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    weight = np.gradient(q)
    weight[[0, -1]] /= 2
    return 2 / np.pi * np.sin(np.outer(r, q)) * weight


@settings(deadline=None)  # the loops are compiled the first time
@given(
    first=st.floats(0.0, 2.0),
    step=st.floats(0.003, 0.03),
    r_first=st.floats(0.0, 2.0),
    r_step=st.floats(0.003, 0.1),
    points=st.tuples(st.integers(900, 1500), st.integers(250, 500)),
)
def test_it_is_the_sum_on_any_uniform_grids(
    first: float, step: float, r_first: float, r_step: float, points: tuple[int, int]
) -> None:
    q, r = first + step * np.arange(points[0]), r_first + r_step * np.arange(points[1])
    rng = np.random.default_rng(points)
    F, sigma = rng.normal(size=q.size), rng.uniform(0, 1, q.size)
    transform, matrix = SineTransform(q, r), direct(q, r)
    np.testing.assert_allclose(transform(F), matrix @ F, atol=1e-10)
    np.testing.assert_allclose(transform.sigma(sigma), np.sqrt(matrix**2 @ sigma**2), atol=1e-7)


@pytest.mark.parametrize(("reach", "gathers"), [(10.0, True), (25.0, True), (100.0, False)])
def test_both_ways_are_the_sum_to_rounding(reach: float, gathers: bool) -> None:
    """Near r is reached by way of coarse grids, far r by chirps; a pattern of 3600 points, G(r) of 1000."""
    q, r = np.arange(3600) * 0.0056 + 0.011, np.linspace(0, reach, 1000)
    F = q * np.random.default_rng(2).normal(size=q.size)
    transform, expected = SineTransform(q, r), direct(q, r)
    assert isinstance(transform._sines, _Gathered) == gathers
    np.testing.assert_allclose(transform(F), expected @ F, atol=1e-12 * (np.abs(F) @ np.gradient(q)))


def test_a_grid_that_is_not_uniform_is_summed_as_it_is() -> None:
    q, r = np.geomspace(0.5, 25, 800), np.linspace(0, 10, 400)
    F = np.exp(-q / 5)
    np.testing.assert_allclose(SineTransform(q, r)(F), direct(q, r) @ F, atol=1e-12)


def test_the_noise_of_many_draws_is_sigma() -> None:
    q, r = np.arange(0.5, 16, 0.02), np.linspace(0.5, 9, 40)
    rng = np.random.default_rng(3)
    transform = SineTransform(q, r)
    drawn = np.std([transform(0.01 * q * rng.normal(size=q.size)) for _ in range(2000)], axis=0)
    np.testing.assert_allclose(drawn, transform.sigma(0.01 * q), rtol=0.1)


def test_a_shell_of_neighbours_comes_back_where_it_is() -> None:
    """F of a Gaussian shell at 2.4 Å is a damped sine wave; its transform has its maximum there."""
    q, r = np.arange(0.0, 30, 0.01), np.arange(0.0, 5, 0.005)
    F = 4 * np.sin(2.4 * q) / 2.4 * np.exp(-((0.08 * q) ** 2) / 2)
    assert r[np.argmax(SineTransform(q, r)(F))] == pytest.approx(2.4, abs=0.006)


def test_a_grid_that_does_not_ascend_is_refused() -> None:
    with pytest.raises(BadInput, match="ascend"):
        SineTransform(np.array([1.0, 1.0, 2.0]), np.linspace(0, 1, 5))
