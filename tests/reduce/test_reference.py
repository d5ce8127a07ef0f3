"""A curve beside its reference: the scale is taken out, z is what is left, and nothing is made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.records import BadInput
from streamer.reduce.curves import log_grid, rebin
from streamer.reduce.reference import CHANNELS, SYSTEMATIC, Reference, channels, compare, gather

GRID = log_grid(0.05, 5.0, 128)
CURVE = 100 * GRID**-2 + 3
SIGMA = 0.02 * CURVE + 0.05
REFERENCE = Reference(CURVE, SIGMA / 10)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Loading what numba compiled takes longer than hypothesis lets an example take."""
    channels(*frame(0), REFERENCE)


def frame(seed: int, scale: float = 1.0, change: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed).standard_normal(GRID.size)
    return scale * CURVE + change + SIGMA * noise, SIGMA


def test_a_bin_of_the_grid_without_a_sample_is_not_measured() -> None:
    q = np.linspace(0.1, 4.0, 400)
    I, sigma = rebin(q, np.ones(400), np.full(400, 0.1), GRID)
    spacing = q[1] - q[0]
    assert np.isnan(I[0.1 - spacing > GRID]).all()
    assert np.isnan(I).sum() > (GRID < 0.1).sum()  # the coarse bins at low q leave holes
    assert np.isfinite(I[(GRID > 1) & (GRID < 3.9)]).all()
    assert np.array_equal(np.isnan(I), np.isnan(sigma))


@given(scale=st.floats(0.3, 3.0))
def test_a_change_of_scale_alone_leaves_nothing_new(scale: float) -> None:
    beside = compare(scale * CURVE, SIGMA, REFERENCE)
    assert float(beside.scale) == pytest.approx(scale - 1, abs=1e-9)
    np.testing.assert_allclose(beside.z, 0, atol=1e-8)


def test_z_of_frames_in_order_has_unit_variance() -> None:
    z = np.stack([compare(*frame(seed), REFERENCE).z for seed in range(200)])
    expected = np.sqrt((SIGMA**2) / (SIGMA**2 + (SIGMA / 10) ** 2 + (SYSTEMATIC * CURVE) ** 2))
    np.testing.assert_allclose(z.std(axis=0).mean(), expected.mean(), rtol=0.02)


def test_the_scale_is_as_uncertain_as_it_says() -> None:
    scales = [float(compare(*frame(seed), REFERENCE).scale) for seed in range(400)]
    assert np.std(scales) == pytest.approx(float(compare(*frame(0), REFERENCE).sigma_scale), rel=0.15)


def test_what_is_not_known_in_both_is_not_compared() -> None:
    I, sigma = frame(1)
    I[:10], reference = np.nan, Reference(np.where(GRID > 3, np.nan, CURVE), SIGMA)
    known = np.isfinite(compare(I, sigma, reference).z)
    assert not known[:10].any()
    assert not known[GRID > 3].any()
    assert known[10:100].all()


@given(factor=st.sampled_from([1e-6, 1e-2, 7.0, 1e5]))
def test_the_network_sees_pure_numbers(factor: float) -> None:
    I, sigma = frame(2, change=0.3)
    scaled = channels(factor * I, factor * sigma, Reference(factor * CURVE, factor * SIGMA / 10))
    np.testing.assert_allclose(scaled, channels(I, sigma, REFERENCE), atol=1e-4)


def test_without_a_reference_the_rows_about_it_are_zero_and_say_so() -> None:
    rows = dict(zip(CHANNELS, channels(*frame(3)), strict=True))
    for name in ("asinh z", "reference", "log10 I_ref", "asinh scale"):
        assert not rows[name].any()
    assert rows["measured"].all()
    assert np.isfinite(list(rows.values())).all()


def test_bins_that_were_not_measured_are_zero_and_say_so() -> None:
    I, sigma = frame(4)
    I[20:40] = np.nan
    rows = dict(zip(CHANNELS, channels(I, sigma, REFERENCE), strict=True))
    assert not any(row[20:40].any() for row in rows.values())
    assert rows["measured"].sum() == rows["reference"].sum() == GRID.size - 20
    assert np.isfinite(list(rows.values())).all()


def test_the_median_of_the_measured_logarithms_is_zero() -> None:
    row = channels(*frame(5))[0]
    assert (row <= 0).mean() == pytest.approx(0.5, abs=0.01)


def test_an_oversubtracted_curve_keeps_its_sign() -> None:
    I, sigma = np.full(GRID.size, 1.0), np.full(GRID.size, 0.1)
    I[100:] = -1.0
    rows = channels(I, sigma)
    assert (rows[1, 100:] < 0).all()
    assert np.isfinite(rows).all()


def test_the_fourth_channel_is_the_distance_in_uncertainties() -> None:
    one = np.ones(GRID.size)
    change = np.where(np.arange(GRID.size) % 2, 1.0, -1.0)  # the scale cannot follow it
    rows = channels(one + change * 0.5, 0.4 * one, Reference(one, 0.3 * one))
    np.testing.assert_allclose(rows[3], np.arcsinh(change), rtol=1e-4)


def test_only_the_empty_curve_of_a_batch_is_nan() -> None:
    rows = channels(np.stack([np.ones(GRID.size), np.zeros(GRID.size)]), np.full((2, GRID.size), 0.1), REFERENCE)
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()


def test_few_counts_do_not_pull_the_scale_down() -> None:
    """The frame's own σ is small where its counts happen to be few; 3 counts a bin would make that half a σ."""
    g = np.random.default_rng(7)
    mean = 1.5 + 3 * np.exp(-GRID)
    counts = g.poisson(mean, (4000, GRID.size))
    many = g.poisson(100 * mean, (4000, GRID.size))
    reference = Reference(many / 100, np.sqrt(np.maximum(many, 1)) / 100)
    beside = compare(counts.astype(float), np.sqrt(np.maximum(counts, 1)), reference)
    off = beside.scale / beside.sigma_scale
    assert off.mean() == pytest.approx(0, abs=0.06)
    assert off.std() == pytest.approx(1, abs=0.05)


def test_a_reference_that_is_mostly_noise_does_not_pull_the_scale_down() -> None:
    """A point that is weighed with its own noise would be compared with it: by a hundred points, ten σ."""
    g = np.random.default_rng(8)
    truth, sigma = 1 + 3 * np.exp(-GRID), np.full(GRID.size, 2.0)
    noise = g.standard_normal((2, 4000, GRID.size))
    reference = Reference(truth + 2 * noise[0], np.broadcast_to(sigma, noise[0].shape))
    beside = compare(truth + 2 * noise[1], np.broadcast_to(sigma, noise[1].shape), reference)
    off = beside.scale / beside.sigma_scale
    assert off.mean() == pytest.approx(0, abs=0.06)
    assert off.std() == pytest.approx(1, abs=0.1)


def test_the_scale_is_no_surer_than_the_scatter_about_it() -> None:
    ripple = 1 + 0.05 * np.random.default_rng(9).standard_normal((400, GRID.size))
    beside = compare(CURVE * ripple, np.full((400, GRID.size), 1e-3) * CURVE, Reference(CURVE, 1e-4 * CURVE))
    assert np.std(beside.scale / beside.sigma_scale) == pytest.approx(1, abs=0.15)


def test_a_curve_without_a_photon_is_nan_throughout() -> None:
    assert np.isnan(channels(np.zeros(GRID.size), SIGMA, REFERENCE)).all()


def test_a_batch_is_its_curves_one_by_one() -> None:
    curves = [frame(seed) for seed in range(4)]
    together = channels(*(np.stack(column) for column in zip(*curves, strict=True)), REFERENCE)
    for row, curve in zip(together, curves, strict=True):
        np.testing.assert_allclose(row, channels(*curve, REFERENCE), atol=1e-6)


def test_a_reference_of_many_frames_is_their_mean_with_its_sigma() -> None:
    reference = gather(frame(seed) for seed in range(64))
    assert reference.frames == 64
    np.testing.assert_allclose(reference.sigma, SIGMA / 8, rtol=0.02)
    assert np.abs((reference.I - CURVE) / reference.sigma).mean() < 1.2
    assert reference.noise == 1.0


def test_frames_of_another_scale_are_brought_to_that_of_the_first() -> None:
    reference = gather([frame(0), *(frame(seed, scale=1.5) for seed in range(1, 9))])
    assert float(compare(CURVE, SIGMA, reference).scale) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_frames_that_scatter_more_than_their_sigma_says_are_noticed(factor: float) -> None:
    curves = [(I, sigma / factor) for I, sigma in (frame(seed) for seed in range(30))]
    reference = gather(curves)
    assert reference.noise == pytest.approx(factor, rel=0.05)
    assert float(compare(*curves[0], reference).chi2) == pytest.approx(1, abs=0.35)


def test_two_frames_are_too_few_to_doubt_an_honest_sigma() -> None:
    assert gather([frame(0), frame(1)]).noise == 1.0


def test_no_frame_and_no_common_bin_are_refused() -> None:
    with pytest.raises(BadInput, match="found no frame"):
        gather([])
    blind = np.full(GRID.size, np.nan)
    with pytest.raises(BadInput, match="no bin is measured in all 2 frames"):
        gather([frame(0), (blind, blind)])
