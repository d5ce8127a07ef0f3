"""The reduction as a graph, run by ONNX Runtime on the CPU, against the compiled kernel: the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.graphs import Graph
from streamer.infer import choose_device, cuda_obstacle
from streamer.reduce.azimuthal import DTYPES, Integrator, SigmaModel
from streamer.reduce.curves import Rebinning, log_grid
from streamer.reduce.detector import Geometry
from streamer.reduce.graph import (
    channels_graph,
    fingerprint,
    has_hole,
    limits_row,
    per_bin,
    places,
    reference_rows,
    rows_of,
)
from streamer.reduce.reference import Reference, channels
from tests import strategies

SHAPE = (61, 43)
GRID = log_grid(0.2, 6.0, 40)
STABILITY = 0.007
REFERENCES = (
    None,
    Reference(3 + GRID, 0.1 * GRID, noise=1.3),
    Reference(np.where(GRID > 2, np.nan, 4.0), np.full(GRID.size, 0.2)),
)
"""Beside which the first frame, the second and the third are judged."""

FIELDS = ("intensity", "sigma", "counts", "pixels", "norm", "invalid", "saturated")


def geometry(shape: tuple[int, int] = SHAPE, **changes: Any) -> Geometry:
    rows, columns = shape
    fields: dict[str, Any] = {
        "shape": shape,
        "pixel_size_m": (1e-3, 1e-3),
        "distance_m": 0.2,
        "wavelength_A": 1.0,
        "poni_m": (0.53e-3 * rows, 0.41e-3 * columns),
    }
    return Geometry(**(fields | changes))


class Drawn:
    """The graph of an integrator, in a session: called with images, it answers as many profiles."""

    def __init__(
        self,
        integrator: Integrator,
        dtype: np.dtype[Any],
        *,
        nodata: int | None = None,
        saturation: int | None = None,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        self.limits = limits_row(dtype, nodata, saturation)
        graph = Graph("test")
        bins = per_bin(graph, integrator.binned, dtype, has_hole=has_hole(self.limits))
        for name in FIELDS:
            shape = ["batch"] if name in ("invalid", "saturated") else ["batch", integrator.bins]
            graph.output(name, getattr(bins, name), np.float64, shape)
        seen, I, sigma = channels_graph(graph, bins, Rebinning(integrator.q, GRID))
        graph.output("seen", seen, np.float32, ["batch", 8, len(GRID)])
        graph.output("I", I, np.float64, ["batch", len(GRID)])
        graph.output("sigma_I", sigma, np.float64, ["batch", len(GRID)])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(graph.to_bytes(), options, providers=[provider])

    def __call__(self, *images: NDArray[Any], slots: list[int] | None = None) -> dict[str, NDArray[Any]]:
        frames = np.zeros((len(images), places(images[0].size)), images[0].dtype)
        for row, image in zip(frames, images, strict=True):
            row[: image.size] = image.ravel()
        chosen = np.array(range(len(images)) if slots is None else slots)
        names = [*FIELDS, "seen", "I", "sigma_I"]
        beside = [reference_rows(REFERENCES[i % len(REFERENCES)], STABILITY, len(GRID)) for i in range(len(chosen))]
        feeds = {
            "frames": frames,
            "slot": chosen,
            "limits": np.tile(self.limits, (len(chosen), 1)),
            **{name: np.stack([one[name] for one in beside]) for name in beside[0]},
        }
        return dict(zip(names, self.session.run(names, feeds), strict=True))


def assert_agrees(
    found: dict[str, NDArray[Any]], integrator: Integrator, *images: NDArray[Any], **limits: int | None
) -> None:
    rebinning = Rebinning(integrator.q, GRID)
    for i, image in enumerate(images):
        profile = integrator.integrate(image, **limits)
        np.testing.assert_array_equal(found["pixels"][i], profile.pixels)
        if image.dtype.kind == "f":
            np.testing.assert_allclose(found["counts"][i], profile.counts, rtol=1e-12)
        else:
            np.testing.assert_array_equal(found["counts"][i], profile.counts.astype(np.float64))
        assert (found["invalid"][i], found["saturated"][i]) == (profile.invalid, profile.saturated)
        np.testing.assert_allclose(found["norm"][i], profile.norm, rtol=1e-7)
        np.testing.assert_allclose(found["intensity"][i], profile.intensity, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found["sigma"][i], profile.sigma, rtol=1e-5, atol=1e-12)
        I, sigma = rebinning(profile.intensity, profile.sigma, profile.pixels)
        np.testing.assert_allclose(found["I"][i], I, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found["sigma_I"][i], sigma, rtol=1e-5, atol=1e-12)
        seen = channels(I, sigma, REFERENCES[i % len(REFERENCES)], stability=STABILITY)
        np.testing.assert_allclose(found["seen"][i], seen, rtol=1e-4, atol=1e-5)


# Rows.


@given(st.integers(0, 2**32), st.integers(0, 400), st.integers(1, 30), st.integers(1, 20))
def test_every_thing_has_one_place_in_a_row_of_its_bin(seed: int, things: int, bins: int, width: int) -> None:
    bin_of = np.random.default_rng(seed).integers(0, bins, things, endpoint=True)
    index, bin_of_row = rows_of(bin_of, bins, width)
    assert index.shape == (len(bin_of_row), width)
    assert sorted(index[index < things]) == np.flatnonzero(bin_of < bins).tolist()
    assert set(bin_of_row) == set(range(bins))
    for row, b in zip(index, bin_of_row, strict=True):
        assert (bin_of[row[row < things]] == b).all()


@given(st.integers(0, 2**32), st.integers(0, 400), st.integers(1, 30), st.integers(1, 20))
def test_no_row_is_filled_up_that_could_be_left_out(seed: int, things: int, bins: int, width: int) -> None:
    bin_of = np.random.default_rng(seed).integers(0, bins, things, endpoint=True)
    _, bin_of_row = rows_of(bin_of, bins, width)
    needed = np.maximum(-(-np.bincount(bin_of, minlength=bins + 1)[:bins] // width), 1)
    np.testing.assert_array_equal(np.bincount(bin_of_row, minlength=bins), needed)


def test_behind_the_pixels_is_room_for_at_least_one_zero() -> None:
    for pixels in (1, 127, 128, 129, 4_485_690):
        assert pixels < places(pixels) <= pixels + 128


# Against the kernel.


@settings(deadline=None, max_examples=15)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    bins=st.sampled_from([2, 7, 60, 300]),
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    sigma=st.sampled_from(["poisson", "poisson", "azimuthal"]),
    nodata=st.sampled_from([None, None, 0, 3, 200]),
    saturation=st.sampled_from([None, None, 2, 150]),
    has_dark=st.booleans(),
)
def test_it_says_of_any_image_what_the_kernel_says(
    data: st.DataObject,
    dtype: np.dtype[Any],
    bins: int,
    seed: int,
    batch: int,
    sigma: SigmaModel,
    nodata: int | None,
    saturation: int | None,
    has_dark: bool,
) -> None:
    random = np.random.default_rng(seed)
    bent = geometry(
        mask=random.random(SHAPE) < random.choice([0.0, 0.1, 0.9]),
        flat=random.uniform(0.5, 1.5, SHAPE).astype(np.float32),
        dark=random.uniform(0, 0.2, SHAPE).astype(np.float32) if has_dark else None,
    )
    integrator = Integrator(bent, bins=bins, polarization=0.95, sigma=sigma)
    images = [counted(data, random, dtype) for _ in range(batch)]
    drawn = Drawn(integrator, dtype, nodata=nodata, saturation=saturation)
    assert_agrees(drawn(*images), integrator, *images, nodata=nodata, saturation=saturation)


def counted(data: st.DataObject, random: np.random.Generator, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An image as detectors count them, with gaps, hot pixels and, of floats, what is no number."""
    image = data.draw(strategies.images(SHAPE, dtype)).copy()
    if dtype.kind == "f":
        image = random.normal(3, 2, SHAPE).astype(dtype)
        image[random.random(SHAPE) < 0.02] = random.choice([np.nan, np.inf, -np.inf])
    return image


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_exact_where_every_pixel_is_as_bright_as_can_be(dtype: np.dtype[Any]) -> None:
    integrator = Integrator(geometry((300, 300)), bins=3)
    top = 1e30 if dtype.kind == "f" else np.iinfo(dtype).max - (0 if dtype.kind == "i" else 2)
    image = np.full((300, 300), top, dtype)
    image[::3] = 1
    assert_agrees(Drawn(integrator, dtype)(image), integrator, image)


@pytest.mark.parametrize("bins", [2, 1000, 65_534])
def test_bins_may_hold_half_the_detector_or_nothing(bins: int) -> None:
    integrator = Integrator(geometry((400, 300)), bins=bins, q_range=(0.001, 20.0))
    image = np.random.default_rng(5).poisson(3, (400, 300)).astype(np.uint16)
    assert_agrees(Drawn(integrator, image.dtype)(image), integrator, image)


def test_a_bin_that_loses_all_but_one_pixel_keeps_that_ones_norm() -> None:
    flat = np.random.default_rng(6).uniform(0.5, 1.5, SHAPE).astype(np.float32)
    integrator = Integrator(geometry(flat=flat), bins=5)
    image = np.full(SHAPE, 65535, np.uint16)
    image[::30, ::20] = 7
    assert_agrees(Drawn(integrator, image.dtype)(image), integrator, image)


def test_a_frame_of_gaps_alone_says_nothing() -> None:
    integrator = Integrator(geometry(), bins=20)
    found = Drawn(integrator, np.dtype(np.uint16))(np.full(SHAPE, 65535, np.uint16))
    assert np.isnan(found["intensity"]).all()
    assert np.isnan(found["seen"]).all()
    assert found["invalid"] == found["invalid"].astype(int) > 0


def test_a_frame_without_a_photon_has_a_profile_and_no_curve() -> None:
    integrator = Integrator(geometry(), bins=60)
    image = np.zeros(SHAPE, np.uint16)
    found = Drawn(integrator, image.dtype)(image)
    assert_agrees(found, integrator, image)
    assert np.isnan(found["seen"]).all()


def test_frames_are_taken_from_the_slots_that_are_named() -> None:
    integrator = Integrator(geometry(), bins=60)
    images = [np.random.default_rng(i).poisson(3, SHAPE).astype(np.uint16) for i in range(4)]
    found = Drawn(integrator, images[0].dtype)(*images, slots=[2, 0, 2])
    assert_agrees(found, integrator, images[2], images[0], images[2])


def test_one_graph_serves_any_saturation() -> None:
    integrator = Integrator(geometry(), bins=60)
    image = np.random.default_rng(8).poisson(3, SHAPE).astype(np.uint16)
    drawn = Drawn(integrator, image.dtype, saturation=6)
    assert_agrees(drawn(image), integrator, image, saturation=6)
    drawn.limits = limits_row(image.dtype, None, 3)
    assert_agrees(drawn(image), integrator, image, saturation=3)


# What the network is given.


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**32),
    st.sampled_from([20, 100, 400]),
    st.sampled_from([0.02, 1.0, 300.0]),
    st.sampled_from([(None, None), (0.1, 2.0), (2.0, 9.0)]),
)
@example(0, 100, 1.0, (None, None))
def test_the_curve_is_that_of_the_cpu_on_any_grid(
    seed: int, bins: int, mean: float, q_range: tuple[float | None, float | None]
) -> None:
    low, high = q_range
    integrator = Integrator(geometry(), bins=bins, q_range=None if low is None or high is None else (low, high))
    image = np.random.default_rng(seed).poisson(mean, SHAPE).astype(np.uint16)
    image[20:24] = 65535
    assert_agrees(Drawn(integrator, image.dtype)(image), integrator, image)


# Fingerprints.


def test_only_what_is_drawn_alike_has_the_same_fingerprint() -> None:
    def of(bins: int = 60, grid: NDArray[np.float64] = GRID, **changes: Any) -> str:
        sigma = changes.pop("sigma", "poisson")
        integrator = Integrator(geometry(**changes), bins=bins, sigma=sigma)
        return fingerprint(integrator.binned, Rebinning(integrator.q, grid))

    flat = np.ones(SHAPE, np.float32)
    flat[3, 4] = 1.001
    others = [
        of(bins=61),
        of(sigma="azimuthal"),
        of(distance_m=0.21),
        of(flat=flat),
        of(dark=np.zeros(SHAPE, np.float32)),
        of(mask=flat > 1),
        of(grid=log_grid(0.2, 6.0, 41)),
        of(grid=log_grid(0.2, 6.1, 40)),
    ]
    assert of() == of()
    assert len({of(), *others}) == 1 + len(others)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sigma", ["poisson", "azimuthal"])
def test_cuda_says_what_the_kernel_says(dtype: np.dtype[Any], sigma: SigmaModel) -> None:
    if obstacle := cuda_obstacle():
        pytest.skip(f"no CUDA device to test on: {obstacle}")
    assert choose_device("cuda")[0] == "cuda"
    random = np.random.default_rng(9)
    shape = (1065, 1030)
    flat, dark = random.uniform(0.8, 1.2, shape).astype(np.float32), random.uniform(0, 0.1, shape).astype(np.float32)
    integrator = Integrator(geometry(shape, flat=flat, dark=dark), bins=1000, sigma=sigma)
    bright = np.full(shape, 120 if dtype == np.uint8 else 60_000, dtype)
    images = [random.poisson(3, shape).astype(dtype), bright]
    if dtype.kind == "u":
        images[0][500:520] = np.iinfo(dtype).max
    drawn = Drawn(integrator, dtype, provider="CUDAExecutionProvider")
    assert_agrees(drawn(*images), integrator, *images)
