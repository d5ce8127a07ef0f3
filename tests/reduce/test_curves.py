"""Curves on a grid: means that conserve, σ that propagates, gaps that stay gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.curves import edges, log_grid, rebin

GRID = log_grid(0.05, 5.0, 256)
Q = np.linspace(0.06, 2.5, 800)
RNG = np.random.default_rng(20261121)


def porod_and_background(q: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1e-3 * q**-4 + 2.0 * np.exp(-((q * 3.0) ** 2) / 3) + 0.5


def counted(
    q: NDArray[np.float64], *, norm: float = 400.0, curves: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Poisson counts as the integrator reports them: I = n/norm, σ = √max(n, 1)/norm."""
    n = RNG.poisson(porod_and_background(q) * norm, size=(curves, q.size))
    return n / norm, np.sqrt(np.maximum(n, 1)) / norm


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Loading what numba compiled takes longer than hypothesis lets an example take."""
    rebin(Q, Q, Q, GRID)


def test_a_log_grid_has_the_points_it_was_asked_for_and_edges_between_them() -> None:
    bins = edges(GRID)
    assert GRID[[0, -1]] == pytest.approx([0.05, 5.0])
    assert bins.shape == (257,)
    assert np.all((bins[:-1] < GRID) & (bins[1:] > GRID))


@pytest.mark.parametrize("found", [(0.0, 1.0, 8), (2.0, 1.0, 8), (0.1, 1.0, 1)])
def test_a_grid_that_is_none_is_refused(found: tuple[float, float, int]) -> None:
    with pytest.raises(BadInput, match="expected 0 < start < stop"):
        log_grid(*found)


@given(level=st.floats(1e-6, 1e6), sigma=st.floats(1e-3, 1e3))
def test_a_flat_curve_stays_flat_and_its_sigma_falls_with_the_root_of_the_samples(level: float, sigma: float) -> None:
    I, error = rebin(Q, np.full_like(Q, level), np.full_like(Q, sigma), GRID)
    samples = np.diff(np.searchsorted(Q, edges(GRID)))
    assert I[samples > 0] == pytest.approx(level)
    assert error[samples > 0] == pytest.approx(sigma / np.sqrt(samples[samples > 0]))


@given(factor=st.floats(1e-3, 1e3))
def test_rebinning_is_linear(factor: float) -> None:
    I, sigma = porod_and_background(Q), np.sqrt(porod_and_background(Q))
    once, scaled = rebin(Q, I, sigma, GRID), rebin(Q, factor * I, factor * sigma, GRID)
    np.testing.assert_allclose(scaled, np.multiply(once, factor), rtol=1e-12)


def test_the_weighted_sum_over_a_coarse_grid_is_the_weighted_sum_over_the_samples() -> None:
    coarse, pixels = log_grid(0.07, 2.0, 30), 1000 * Q
    bins, I = edges(coarse), porod_and_background(Q)
    mean, _ = rebin(Q, I, I, coarse, weight=pixels)
    first = np.searchsorted(Q, bins)
    weights = np.add.reduceat(pixels[: first[-1]], first[:-1])
    assert mean @ weights == pytest.approx(I[first[0] : first[-1]] @ pixels[first[0] : first[-1]])


def test_the_mean_of_few_counts_is_not_pulled_down() -> None:
    norm = np.full_like(Q, 2.0)
    n = RNG.poisson(0.5 * norm, size=(4000, Q.size))
    I, _ = rebin(Q, n / norm, np.sqrt(np.maximum(n, 1)) / norm, log_grid(0.1, 2.0, 16), weight=norm)
    assert I.mean() == pytest.approx(0.5, rel=5e-3)


def test_sigma_says_how_far_the_mean_is_from_the_truth() -> None:
    coarse = log_grid(0.3, 2.0, 40)
    I, sigma = rebin(Q, *counted(Q, curves=400), coarse)
    truth, _ = rebin(Q, porod_and_background(Q), np.ones_like(Q), coarse)
    assert np.std((I - truth) / sigma) == pytest.approx(1.0, abs=0.03)


def test_a_batch_gives_what_its_curves_give_one_by_one() -> None:
    I, sigma = counted(Q, curves=3)
    I[1, 100:180] = np.nan
    together = rebin(Q, I, sigma, GRID)
    for row in range(3):
        np.testing.assert_array_equal(rebin(Q, I[row], sigma[row], GRID), (together[0][row], together[1][row]))


def test_bins_finer_than_the_samples_are_not_made_up() -> None:
    q, fine = np.array([0.1, 0.2, 0.4]), log_grid(0.05, 0.5, 40)
    I, sigma = rebin(q, np.log(q), np.array([1.0, 3.0, 5.0]), fine)
    measured = np.isfinite(I)
    assert measured.sum() == 3
    np.testing.assert_array_equal(measured, np.isfinite(sigma))
    np.testing.assert_allclose(I[measured], np.log(q))


def test_a_gap_of_the_detector_stays_a_gap() -> None:
    I, sigma = porod_and_background(Q), np.ones_like(Q)
    I[(Q > 0.5) & (Q < 0.6)] = np.nan
    mean, error = rebin(Q, I, sigma, GRID)
    inside = (GRID > 0.51) & (GRID < 0.59)
    assert np.isnan(mean[inside]).all()
    assert np.isnan(error[inside]).all()
    assert np.isnan(mean[(GRID < 0.059) | (GRID > 2.55)]).all()
    assert np.isfinite(mean[(GRID > 0.2) & (GRID < 0.49)]).all()


def test_a_masked_sample_changes_nothing_whatever_it_holds() -> None:
    I, sigma = counted(Q)
    I[:, 50:60], sigma[:, 50:60] = np.nan, np.nan
    other = I.copy()
    other[:, 50:60] = 1e30
    np.testing.assert_array_equal(rebin(Q, I, sigma, GRID), rebin(Q, other, sigma, GRID))


def test_samples_out_of_order_are_refused() -> None:
    with pytest.raises(BadInput, match="does not ascend"):
        rebin(Q[::-1], Q, Q, GRID)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="expected q"):
        rebin(Q, Q[1:], Q[1:], GRID)
