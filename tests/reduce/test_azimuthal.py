"""Azimuthal integration: against pyFAI to the last pixel, against analytic truth, and against bad images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from streamer.records import BadFrame, BadInput
from streamer.reduce.azimuthal import DTYPES, Integrator, Profile
from streamer.reduce.detector import Geometry, Unit

SHAPE = (121, 97)
PIXEL_M = 1e-3


def geometry(shape: tuple[int, int] = SHAPE, **changes: object) -> Geometry:
    rows, columns = shape
    fields = {
        "shape": shape,
        "pixel_size_m": (PIXEL_M, PIXEL_M),
        "distance_m": 0.7,
        "wavelength_A": 1.0,
        "poni_m": (0.53 * rows * PIXEL_M, 0.41 * columns * PIXEL_M),
    }
    return Geometry(**(fields | changes))  # type: ignore[arg-type]


def by_pyfai(
    geometry: Geometry, image: NDArray[Any], mask: NDArray[np.bool_], integrator: Integrator, **corrections: object
) -> Any:
    detector = Detector(PIXEL_M, PIXEL_M, max_shape=geometry.shape)
    rot1, rot2, rot3 = geometry.rotations
    pyfai = AzimuthalIntegrator(
        geometry.distance_m, *geometry.poni_m, rot1, rot2, rot3, detector=detector, wavelength=1e-10
    )
    return pyfai.integrate1d(
        image.astype(np.float32),
        integrator.bins,
        variance=image.astype(np.float32),
        radial_range=integrator.q_range,
        unit={"1/nm": "q_nm^-1", "1/A": "q_A^-1"}[integrator.unit],
        mask=mask,
        flat=geometry.flat,
        dark=geometry.dark,
        method=("no", "histogram", "cython"),
        **corrections,
    )


def assert_agrees(ours: Profile, theirs: Any) -> None:
    np.testing.assert_array_equal(ours.pixels, theirs.count)
    np.testing.assert_allclose(ours.q, theirs.radial, rtol=1e-14)
    counted = ours.counts > 0
    assert counted.any()
    np.testing.assert_allclose(ours.intensity[counted], theirs.intensity[counted], rtol=1e-6)
    np.testing.assert_allclose(ours.sigma[counted], theirs.sigma[counted], rtol=1e-5)


@pytest.mark.parametrize("unit", ["1/nm", "1/A"])
@pytest.mark.parametrize("q_range", [None, (0.2, 6.0), (1.0, 3.0)])
@pytest.mark.parametrize(("polarization", "solid_angle"), [(None, True), (0.95, True), (None, False)])
@pytest.mark.parametrize("rot1", [0.0, 0.1])
def test_it_agrees_with_pyfai_with_every_correction(
    unit: Unit, q_range: tuple[float, float] | None, polarization: float | None, solid_angle: bool, rot1: float
) -> None:
    random = np.random.default_rng(1)
    mask = random.random(SHAPE) < 0.05
    flat = random.uniform(0.8, 1.2, SHAPE).astype(np.float32)
    flat[7] = 0
    dark = random.uniform(0, 0.1, SHAPE).astype(np.float32)
    bent = geometry(rotations=(rot1, 0.0, 0.0), mask=mask, flat=flat, dark=dark)
    in_unit = q_range if q_range is None or unit == "1/nm" else (q_range[0] / 10, q_range[1] / 10)
    integrator = Integrator(
        bent, bins=200, unit=unit, q_range=in_unit, polarization=polarization, solid_angle=solid_angle
    )
    image = random.poisson(3, SHAPE).astype(np.uint16)
    image[40:43] = 65535
    theirs = by_pyfai(
        bent,
        image,
        mask | (image == 65535),
        integrator,
        correctSolidAngle=solid_angle,
        polarization_factor=polarization,
    )
    assert_agrees(integrator.integrate(image), theirs)


@pytest.mark.parametrize("bins", [2, 37, 1000, 4000])
def test_it_agrees_with_pyfai_whatever_the_number_of_bins(bins: int) -> None:
    integrator = Integrator(geometry(), bins=bins)
    image = np.random.default_rng(2).poisson(0.3, SHAPE).astype(np.uint8)
    assert_agrees(integrator.integrate(image), by_pyfai(geometry(), image, np.zeros(SHAPE, bool), integrator))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_gives_the_same_answer(dtype: np.dtype[Any]) -> None:
    counts = np.random.default_rng(3).poisson(3, SHAPE).astype(np.uint8)
    integrator = Integrator(geometry(), bins=50)
    reference = integrator.integrate(counts)
    profile = integrator.integrate(counts.astype(dtype))
    np.testing.assert_array_equal(profile.counts, reference.counts)
    np.testing.assert_array_equal(profile.intensity, reference.intensity)
    np.testing.assert_array_equal(profile.sigma, reference.sigma)


def test_counts_are_exact_where_floats_would_round() -> None:
    integrator = Integrator(geometry(), bins=2)
    image = np.full(SHAPE, 2**32 - 3, dtype=np.uint32)
    profile = integrator.integrate(image)
    assert profile.counts.tolist() == [(2**32 - 3) * int(pixels) for pixels in profile.pixels]


def test_a_uniform_sample_gives_a_constant_after_solid_angle_and_flat() -> None:
    flat = np.random.default_rng(4).uniform(0.5, 2, SHAPE).astype(np.float32)
    far = geometry(flat=flat)
    image = (1000 * flat * far.solid_angle()).astype(np.float32)
    profile = Integrator(far, bins=80).integrate(image)
    seen = profile.pixels > 0
    np.testing.assert_allclose(profile.intensity[seen], 1000, rtol=1e-6)


def test_a_ring_appears_where_braggs_law_puts_it() -> None:
    near = geometry(shape=(400, 400))
    rows, columns = np.indices((400, 400)) + 0.5
    radius_m = np.hypot(rows - 0.53 * 400, columns - 0.41 * 400) * PIXEL_M
    ring = (100 * np.exp(-0.5 * ((radius_m - 0.1) / PIXEL_M) ** 2)).astype(np.float32)
    profile = Integrator(near, bins=500).integrate(ring)
    two_theta = np.arctan(0.1 / 0.7)
    q_ring = 4 * np.pi / 0.1 * np.sin(two_theta / 2)
    width = profile.q[1] - profile.q[0]
    assert profile.q[np.nanargmax(profile.intensity)] == pytest.approx(q_ring, abs=1.5 * width)
    weight = np.nan_to_num(profile.intensity)
    assert (profile.q * weight).sum() / weight.sum() == pytest.approx(q_ring, abs=0.2 * width)


def test_sigma_is_the_scatter_of_repeated_exposures() -> None:
    random = np.random.default_rng(5)
    integrator = Integrator(geometry(), bins=30)
    mean = np.exp(-integrator.geometry.q() / 2) * 4
    profiles = [integrator.integrate(random.poisson(mean).astype(np.uint16)) for _ in range(400)]
    scatter = np.std([profile.intensity for profile in profiles], axis=0, ddof=1)
    claimed = np.sqrt(np.mean([profile.sigma**2 for profile in profiles], axis=0))
    # The standard deviation of 400 exposures is known to 1/√800 = 3.5 %; four of those for the worst of 30 bins.
    np.testing.assert_allclose(scatter / claimed, 1, atol=0.14)
    assert np.mean(scatter / claimed) == pytest.approx(1, abs=0.03)


def test_an_empty_bin_has_the_uncertainty_of_one_count() -> None:
    profile = Integrator(geometry(), bins=20, solid_angle=False).integrate(np.zeros(SHAPE, dtype=np.uint16))
    np.testing.assert_array_equal(profile.intensity, 0)
    np.testing.assert_allclose(profile.sigma, 1 / profile.pixels)


def by_scatter(image: NDArray[Any], integrator: Integrator, method: tuple[str, str, str]) -> Any:
    place = integrator.geometry
    detector = Detector(PIXEL_M, PIXEL_M, max_shape=place.shape)
    pyfai = AzimuthalIntegrator(place.distance_m, *place.poni_m, *place.rotations, detector=detector, wavelength=1e-10)
    return pyfai.integrate1d(
        image.astype(np.float32),
        integrator.bins,
        error_model="azimuthal",
        radial_range=integrator.q_range,
        unit="q_nm^-1",
        flat=place.flat,
        dark=place.dark,
        method=method,
        correctSolidAngle=place.flat is not None,
    )


@pytest.mark.parametrize("mean", [0.3, 3, 3000])
def test_the_azimuthal_sigma_is_that_of_pyfais_two_passes(mean: float) -> None:
    random = np.random.default_rng(7)
    flat = random.uniform(0.8, 1.2, SHAPE).astype(np.float32)
    dark = random.uniform(0, 0.1, SHAPE).astype(np.float32)
    bent = geometry(rotations=(0.1, 0.0, 0.0), flat=flat, dark=dark)
    integrator = Integrator(bent, bins=60, sigma="azimuthal")
    image = random.poisson(mean, SHAPE).astype(np.uint16)
    ours, theirs = integrator.integrate(image), by_scatter(image, integrator, ("no", "csr", "python"))
    np.testing.assert_allclose(ours.intensity, theirs.intensity, rtol=1e-6)
    # Below one count our σ is that of one count.
    varied = theirs.sum_variance > 1
    assert varied.sum() > 30
    np.testing.assert_allclose(ours.sigma[varied], theirs.sigma[varied], rtol=1e-5)


@pytest.mark.parametrize("engine", ["histogram", "csc", "csr"])
def test_with_equal_normalisation_the_azimuthal_sigma_is_that_of_pyfais_one_pass(engine: str) -> None:
    integrator = Integrator(geometry(), bins=60, solid_angle=False, sigma="azimuthal")
    image = np.random.default_rng(8).poisson(30, SHAPE).astype(np.uint16)
    ours, theirs = integrator.integrate(image), by_scatter(image, integrator, ("no", engine, "cython"))
    np.testing.assert_allclose(ours.sigma, theirs.sigma, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pixels_that_do_not_count_do_not_scatter(dtype: np.dtype[Any]) -> None:
    random = np.random.default_rng(9)
    image = random.poisson(5, SHAPE).astype(dtype)
    lost = random.random(SHAPE) < 0.1
    dynamic = Integrator(geometry(), bins=40, sigma="azimuthal")
    static = Integrator(geometry(mask=lost), bins=40, sigma="azimuthal", q_range=dynamic.q_range)
    marked = np.where(lost, 200, image).astype(dtype)
    expected = static.integrate(image)
    np.testing.assert_allclose(dynamic.integrate(marked, nodata=200).sigma, expected.sigma, rtol=1e-9)
    np.testing.assert_allclose(dynamic.integrate(marked, saturation=199).sigma, expected.sigma, rtol=1e-9)


def test_a_single_pixel_has_no_scatter_and_equal_ones_that_of_one_count() -> None:
    image = np.full(SHAPE, 7, dtype=np.uint16)
    profile = Integrator(geometry(), bins=2000, solid_angle=False, sigma="azimuthal").integrate(image)
    assert np.isnan(profile.sigma[profile.pixels <= 1]).all()
    several = profile.pixels > 1
    np.testing.assert_allclose(profile.sigma[several], 1 / profile.pixels[several])
    assert (profile.pixels == 1).any()


images = arrays.arrays(np.uint16, SHAPE, elements=st.integers(0, 2**14), fill=st.integers(0, 50))
masks = arrays.arrays(np.bool_, SHAPE, fill=st.booleans())
PLAIN = Integrator(geometry(), bins=60)


@given(images, images)
def test_it_is_linear_in_the_image(one: NDArray[np.uint16], other: NDArray[np.uint16]) -> None:
    both = PLAIN.integrate(one + other)
    np.testing.assert_array_equal(both.counts, PLAIN.integrate(one).counts + PLAIN.integrate(other).counts)
    np.testing.assert_allclose(
        both.intensity, PLAIN.integrate(one).intensity + PLAIN.integrate(other).intensity, rtol=1e-12
    )


@given(images, st.integers(0, 2**32))
def test_what_masked_pixels_say_changes_nothing(image: NDArray[np.uint16], seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(SHAPE) < 0.3
    masked = Integrator(geometry(mask=mask), bins=60)
    before = masked.integrate(image)
    image[mask] = random.integers(0, 2**16, mask.sum())
    after = masked.integrate(image, saturation=2**14)
    np.testing.assert_array_equal(after.counts, before.counts)
    np.testing.assert_array_equal(after.intensity, before.intensity)
    assert (after.invalid, after.saturated) == (0, 0)


@settings(deadline=None, max_examples=40)  # builds three integrators each time
@given(images, masks)
def test_a_nodata_pixel_is_a_masked_pixel(image: NDArray[np.uint16], lost: NDArray[np.bool_]) -> None:
    lost[0, 0] = False
    dark = np.full(SHAPE, 0.25, dtype=np.float32)
    marked = np.where(lost, 65535, image).astype(np.uint16)
    dynamic = Integrator(geometry(dark=dark), bins=60, q_range=(0.1, 8)).integrate(marked)
    static = Integrator(geometry(dark=dark, mask=lost), bins=60, q_range=(0.1, 8)).integrate(image)
    np.testing.assert_array_equal(dynamic.counts, static.counts)
    np.testing.assert_array_equal(dynamic.pixels, static.pixels)
    np.testing.assert_allclose(dynamic.intensity, static.intensity, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dynamic.sigma, static.sigma, rtol=1e-9)
    inside = Integrator(geometry(dark=dark), bins=60, q_range=(0.1, 8)).integrate(np.zeros(SHAPE, np.uint8))
    assert dynamic.invalid == inside.pixels.sum() - static.pixels.sum()


@given(images, st.integers(0, 2**14))
def test_pixels_above_saturation_are_left_out_and_counted(image: NDArray[np.uint16], saturation: int) -> None:
    profile = PLAIN.integrate(image, saturation=saturation)
    too_high = (image > saturation) if saturation else np.zeros(SHAPE, bool)
    assert profile.saturated == too_high.sum()
    assert profile.counts.sum() == image[~too_high].sum(dtype=np.uint64)
    assert profile.pixels.sum() == image.size - too_high.sum()


@pytest.mark.parametrize(
    ("dtype", "nodata", "values", "invalid"),
    [
        (np.uint8, None, [255, 254], 1),
        (np.uint16, None, [65535, 65534], 1),
        (np.uint16, 65534, [65535, 65534, 65534], 2),
        (np.uint16, 0, [0, 1, 0, 0], 3),
        (np.uint16, 2**32 - 1, [65535, 65534], 1),
        (np.uint16, -1, [65535, 65534], 1),
        (np.uint32, None, [2**32 - 1, 2**32 - 2, 2**32 - 3], 2),
        (np.uint32, 7, [2**32 - 1, 2**32 - 2, 7, 8], 3),
        (np.int32, None, [-1, -2, -(2**31), 2**31 - 1], 3),
        (np.int32, 9, [-1, 9, 10], 2),
        (np.float32, None, [np.nan, np.inf, -np.inf, -3.5], 3),
        (np.float32, -1, [np.nan, -1.0, 0.0], 2),
    ],
)
def test_what_counts_as_no_measurement(dtype: Any, nodata: int | None, values: list[float], invalid: int) -> None:
    image = np.full(SHAPE, 3, dtype=dtype)
    image[20, 20 : 20 + len(values)] = values
    profile = PLAIN.integrate(image, nodata=nodata)
    assert profile.invalid == invalid
    assert profile.saturated == 0
    assert profile.pixels.sum() == image.size - invalid
    assert np.isfinite(profile.intensity).all()


def test_a_saturated_pixel_is_not_mistaken_for_nodata() -> None:
    image = np.full(SHAPE, 3, dtype=np.uint32)
    image[5, :4] = [1_000_001, 1_000_000, 2**32 - 2, 2**32 - 1]
    profile = PLAIN.integrate(image, saturation=1_000_000)
    assert (profile.invalid, profile.saturated) == (2, 1)


def test_a_bin_that_lost_all_its_pixels_is_nan() -> None:
    image = np.full(SHAPE, 3, dtype=np.uint16)
    image[geometry().q() > 5] = 65535
    profile = Integrator(geometry(), bins=50).integrate(image)
    empty = profile.pixels == 0
    assert 0 < empty.sum() < 50
    assert np.isnan(profile.intensity[empty]).all()
    assert np.isnan(profile.sigma[empty]).all()
    assert (profile.counts[empty] == 0).all()
    assert np.isfinite(profile.intensity[~empty]).all()


def test_the_extra_mask_adds_to_that_of_the_geometry() -> None:
    one, other = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[:30], other[:, :30] = True, True
    profile = Integrator(geometry(mask=one), bins=10, mask=other).integrate(np.ones(SHAPE, np.uint8))
    assert profile.pixels.sum() == (~(one | other)).sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_from_a_socket_is_read_as_it_lies(dtype: np.dtype[Any]) -> None:
    image = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.uint8).astype(dtype)
    expected = PLAIN.integrate(image).counts
    odd = np.frombuffer(b"x" + image.tobytes(), dtype=dtype, offset=1).reshape(SHAPE)
    np.testing.assert_array_equal(PLAIN.integrate(odd).counts, expected)
    strided = np.zeros((SHAPE[0], 2 * SHAPE[1]), dtype=dtype)
    strided[:, ::2] = image
    np.testing.assert_array_equal(PLAIN.integrate(strided[:, ::2]).counts, expected)


def test_several_workers_share_an_integrator() -> None:
    random = np.random.default_rng(6)
    frames = [random.poisson(3, SHAPE).astype(np.uint16) for _ in range(40)]
    alone = [PLAIN.integrate(frame).counts for frame in frames]
    with ThreadPoolExecutor(4) as workers:
        together = list(workers.map(PLAIN.integrate, frames))
    for expected, profile in zip(alone, together, strict=True):
        np.testing.assert_array_equal(profile.counts, expected)


def test_integrating_leaves_the_image_as_it_was() -> None:
    image = np.full(SHAPE, 3, dtype=np.uint16)
    PLAIN.integrate(image)
    assert image.flags.writeable
    assert (image == 3).all()


def test_warming_compiles_for_every_dtype() -> None:
    integrator = Integrator(geometry(shape=(9, 11)), bins=5)
    integrator.warm(["uint16", np.float32])
    integrator.warm()
    assert integrator.integrate(np.ones((9, 11), np.int32)).pixels.sum() == 99


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((97, 121), np.uint16), "shape"),
        (np.zeros(SHAPE[0] * SHAPE[1], np.uint16), "shape"),
        (np.zeros(SHAPE, np.float64), "dtype"),
        (np.zeros(SHAPE, np.int16), "dtype"),
        (np.zeros(SHAPE, ">u2"), "dtype"),
        (np.zeros(SHAPE, object), "dtype"),
    ],
)
def test_an_image_it_cannot_use_is_a_bad_frame(image: NDArray[Any], reason: str) -> None:
    with pytest.raises(BadFrame, match=r"expected|the geometry") as caught:
        PLAIN.integrate(image)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"bins": 1}, "expected 2 to"),
        ({"bins": 70000}, "expected 2 to"),
        ({"unit": "nm"}, "expected one of 1/nm, 1/A"),
        ({"sigma": "gauss"}, "expected one of poisson, azimuthal"),
        ({"mask": np.zeros((3, 3), bool)}, r"\(3, 3\).*\(121, 97\)"),
        ({"mask": np.ones(SHAPE, bool)}, "leave no pixel"),
        ({"q_range": (2.0, 1.0)}, "expected 0 ≤ first < last"),
        ({"q_range": (0.0, float("nan"))}, "expected 0 ≤ first < last"),
        ({"q_range": (50.0, 60.0)}, "the detector reaches"),
    ],
)
def test_an_integrator_that_could_say_nothing_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        Integrator(geometry(), **arguments)
