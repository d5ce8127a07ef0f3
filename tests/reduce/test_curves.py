"""Curves on a grid: means that conserve, σ that propagates, gaps that stay gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.curves import CHANNELS, channels, edges, log_grid, rebin

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


def test_bins_finer_than_the_samples_are_interpolated_in_log_q() -> None:
    q, fine = np.array([0.1, 0.2, 0.4]), log_grid(0.11, 0.19, 30)
    I, sigma = rebin(q, np.log(q), np.array([1.0, 3.0, 5.0]), fine)
    np.testing.assert_allclose(I, np.log(fine))
    np.testing.assert_allclose(sigma, 1 + 2 * np.log2(fine / 0.1))


def test_a_gap_of_the_detector_stays_a_gap() -> None:
    I, sigma = porod_and_background(Q), np.ones_like(Q)
    I[(Q > 0.5) & (Q < 0.6)] = np.nan
    mean, error = rebin(Q, I, sigma, GRID)
    inside = (GRID > 0.51) & (GRID < 0.59)
    assert np.isnan(mean[inside]).all()
    assert np.isnan(error[inside]).all()
    assert np.isnan(mean[(GRID < 0.059) | (GRID > 2.55)]).all()
    assert np.isfinite(mean[(GRID > 0.061) & (GRID < 0.49)]).all()


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


def test_a_measured_curve_gives_five_finite_channels_in_single_precision() -> None:
    rows = channels(*rebin(Q, *counted(Q, norm=0.5), GRID))
    assert rows.shape == (1, len(CHANNELS), 256)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


@given(factor=st.floats(1e-6, 1e6))
def test_the_channels_do_not_know_the_unit_of_intensity(factor: float) -> None:
    I, sigma = rebin(Q, porod_and_background(Q), np.sqrt(porod_and_background(Q)) / 20, GRID)
    np.testing.assert_allclose(channels(factor * I, factor * sigma), channels(I, sigma), atol=1e-5)


def test_bins_that_were_not_measured_are_zero_and_say_so() -> None:
    rows = channels(*rebin(Q, *counted(Q), GRID))[0]
    missing = (GRID < 0.058) | (GRID > 2.6)
    assert not rows[:, missing].any()
    assert rows[2].sum() == (rows[2] == 1).sum()


def test_the_median_of_the_measured_logarithms_is_zero() -> None:
    rows = channels(*rebin(Q, *counted(Q), GRID))[0]
    assert (rows[0][rows[2] == 1] <= 0).mean() == pytest.approx(0.5, abs=0.01)


def test_an_oversubtracted_curve_keeps_its_sign() -> None:
    I, sigma = np.full(256, 1.0), np.full(256, 0.1)
    I[200:] = -1.0
    rows = channels(I, sigma)
    assert (rows[1, 200:] < 0).all()
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("level", [np.nan, 0.0])
def test_a_curve_with_nothing_in_it_is_nan_throughout(level: float) -> None:
    assert np.isnan(channels(np.full(256, level), np.ones(256))).all()


def test_only_the_empty_curve_of_a_batch_is_nan() -> None:
    rows = channels(np.stack([np.ones(256), np.zeros(256)]), np.full((2, 256), 0.1))
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()


def test_against_a_reference_the_fourth_channel_is_the_distance_in_uncertainties() -> None:
    reference = np.full(256, 1.0), np.full(256, 0.3)
    reference[0][:10] = np.nan
    rows = channels(np.full(256, 2.0), np.full(256, 0.4), reference)
    assert rows[3, 10:] == pytest.approx(np.arcsinh(2.0))
    assert rows[4, 10:] == pytest.approx(1.0)
    assert not rows[3:, :10].any()


def test_without_a_reference_both_reference_channels_are_zero() -> None:
    assert not channels(np.full(256, 2.0), np.full(256, 0.4))[3:].any()
