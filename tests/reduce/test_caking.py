"""Integration into q and χ: against pyFAI's, cell by cell, and against the integration over all χ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from streamer.records import BadFrame, BadInput
from streamer.reduce.azimuthal import Integrator
from streamer.reduce.caking import Cake
from tests.reduce.test_azimuthal import PIXEL_M, SHAPE, geometry

RANGE = (0.2, 6.0)


@pytest.mark.parametrize("bins", [(50, 12), (300, 360)])
@pytest.mark.parametrize("chi_range", [(-180.0, 180.0), (-30.0, 75.0), (-170.0, -20.0)])
def test_it_agrees_with_pyfai_cell_by_cell(bins: tuple[int, int], chi_range: tuple[float, float]) -> None:
    random = np.random.default_rng(1)
    mask = random.random(SHAPE) < 0.05
    flat = random.uniform(0.8, 1.2, SHAPE).astype(np.float32)
    bent = geometry(rotations=(0.1, -0.05, 0.0), mask=mask, flat=flat)
    image = random.poisson(3, SHAPE).astype(np.uint16)
    image[40:43] = 65535
    detector = Detector(PIXEL_M, PIXEL_M, max_shape=SHAPE)
    pyfai = AzimuthalIntegrator(bent.distance_m, *bent.poni_m, *bent.rotations, detector=detector, wavelength=1e-10)
    theirs = pyfai.integrate2d(
        image.astype(np.float32),
        *bins,
        variance=image.astype(np.float32),
        radial_range=RANGE,
        azimuth_range=chi_range,
        mask=mask | (image == 65535),
        flat=flat,
        unit="q_nm^-1",
        method=("no", "histogram", "cython"),
    )
    ours = Cake(bent, bins=bins, q_range=RANGE, chi_range=chi_range).integrate(image)
    np.testing.assert_allclose(ours.q, theirs.radial, rtol=1e-12)
    np.testing.assert_allclose(ours.chi, theirs.azimuthal, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(ours.pixels, theirs.count)
    seen = ours.counts > 0
    assert seen.any()
    np.testing.assert_allclose(ours.counts[seen], theirs.sum_signal[seen], rtol=1e-6)
    np.testing.assert_allclose(ours.intensity[seen], theirs.intensity[seen], rtol=1e-6)
    np.testing.assert_allclose(ours.sigma[seen], theirs.sigma[seen], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_summed_over_chi_it_is_the_profile(dtype: Any) -> None:
    image = np.random.default_rng(2).poisson(3, SHAPE).astype(dtype)
    profile = Integrator(geometry(), bins=200, q_range=RANGE).integrate(image, saturation=7)
    caked = Cake(geometry(), bins=(200, 400), q_range=RANGE).integrate(image, saturation=7)
    np.testing.assert_array_equal(caked.counts.sum(axis=0), profile.counts)
    np.testing.assert_array_equal(caked.pixels.sum(axis=0), profile.pixels)
    assert caked.saturated == profile.saturated > 0
    assert caked.invalid == profile.invalid == 0


def test_a_spot_appears_at_its_azimuth() -> None:
    flat = geometry(shape=(400, 400), poni_m=(0.2, 0.2))
    image = np.zeros((400, 400), np.uint16)
    image[250, 199] = image[250, 200] = 100
    caked = Cake(flat, bins=(50, 36)).integrate(image)
    chi, q = np.unravel_index(np.argmax(caked.counts), caked.counts.shape)
    assert caked.counts[chi, q] == 100
    assert abs(abs(caked.chi[chi]) - 90) <= 5
    assert caked.q[q] == pytest.approx(4 * np.pi / 0.1 * np.sin(np.arctan(0.0505 / 0.7) / 2), rel=0.05)


def test_more_cells_than_a_uint16_can_number_are_kept_apart() -> None:
    cake = Cake(geometry(), bins=(400, 400))
    cake.warm(["uint16"])
    image = np.random.default_rng(3).poisson(3, SHAPE).astype(np.uint16)
    caked = cake.integrate(image)
    assert caked.counts.shape == (400, 400)
    assert caked.counts.sum() == image.sum()
    with pytest.raises(BadFrame, match="the geometry"):
        cake.integrate(image[1:])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"bins": (0, 36)}, "expected 1 to"),
        ({"bins": (10_000, 10_000)}, "expected 1 to"),
        ({"unit": "nm"}, "expected one of"),
        ({"chi_range": (10.0, 10.0)}, "first < last"),
        ({"chi_range": (0.0, 360.0)}, "first < last"),
        ({"q_range": (50.0, 60.0)}, "the detector reaches"),
        ({"sigma": "none"}, "expected one of poisson, azimuthal"),
    ],
)
def test_a_cake_that_could_say_nothing_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        Cake(geometry(), **arguments)
