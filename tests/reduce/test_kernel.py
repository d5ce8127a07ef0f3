"""Sums per bin against numpy, for bins, gaps and images that send pixels down every path through the loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.reduce.kernel import SURE, WIDTH, Binning, Limits, PerBin, Reduction
from streamer.reduce.paths import MOST_ROWS, binning_of

NO_DARK = np.empty(0, np.float32)


def added(image: NDArray[Any], binning: Binning, *, largest: int | None = None, hole: int | None = None) -> PerBin:
    """Numbers per bin for a norm of one."""
    scalar, top = image.dtype.type, np.iinfo(image.dtype).max
    limits = Limits(
        scalar(0), scalar(top if largest is None else largest), scalar(top), scalar(top if hole is None else hole)
    )
    found = Reduction(binning, np.ones(image.size, np.float32), NO_DARK)(image, np.array(limits, image.dtype))
    assert found.total_counts == found.counts.sum()
    assert found.total_pixels == found.pixels.sum()
    seen = found.pixels > 0
    np.testing.assert_array_equal(found.norm[seen], found.pixels[seen])
    np.testing.assert_array_equal(found.intensity[seen], found.counts[seen] / found.pixels[seen])
    np.testing.assert_array_equal(found.sigma[seen], np.sqrt(np.maximum(found.counts[seen], 1)) / found.pixels[seen])
    assert np.isnan([found.norm[~seen], found.intensity[~seen], found.sigma[~seen]]).all()
    return found


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compiling takes seconds the first time, longer than one example may."""
    for dtype in (np.uint8, np.uint16, np.uint32, np.int32):
        for bins in (1, 2**16):
            added(np.zeros((2, WIDTH), dtype), binning_of(np.zeros((2, WIDTH), np.int64), bins))


def stripes(
    random: np.random.Generator, shape: tuple[int, int], bins: int, width: float, gap: float
) -> NDArray[np.int64]:
    """Bins in stripes of this width around a random point, or across in any direction; a fraction of pixels unused."""
    rows, columns = np.indices(shape)
    row, column = random.uniform(-1, 2, 2) * shape
    phase = np.hypot(rows - row, columns - column)
    if random.random() < 0.5:
        angle = random.uniform(0, np.pi)
        phase = np.abs((rows - row) * np.cos(angle) + (columns - column) * np.sin(angle))
    found = (phase / width).astype(np.int64) % bins
    if random.random() < 0.5:
        found[:, : random.integers(0, shape[1] + 1)] = bins
    found[random.random(shape) < gap] = bins
    return found


shapes = st.tuples(st.integers(1, 90), st.integers(1, 3 * WIDTH))
seeds = st.integers(0, 2**32)
gaps = st.sampled_from([0.0, 0.001, 0.02, 0.5, 1.0])
widths = st.sampled_from([0.2, 1.0, 1.5, 5.0, 40.0])


@given(
    seeds,
    shapes,
    st.sampled_from([1, 2, 7, 1000, 65_535, 65_536, 70_000]),
    widths,
    gaps,
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32]),
    st.sampled_from([3, 200, SURE - 1, 2**31 - 2]),
)
def test_every_pixel_is_added_once(
    seed: int, shape: tuple[int, int], bins: int, width: float, gap: float, dtype: Any, brightest: int
) -> None:
    random = np.random.default_rng(seed)
    bin_of = stripes(random, shape, bins, width, gap)
    image = random.integers(0, min(brightest, np.iinfo(dtype).max - 1), shape, endpoint=True).astype(dtype)
    # What is not used may hold anything.
    image[bin_of == bins] = np.iinfo(dtype).max
    found = added(image, binning_of(bin_of, bins))
    expected = np.zeros(bins + 1, dtype=np.int64)
    np.add.at(expected, bin_of, image.astype(np.int64))
    np.testing.assert_array_equal(found.counts, expected[:bins])
    np.testing.assert_array_equal(found.pixels, np.bincount(bin_of.ravel(), minlength=bins + 1)[:bins])
    assert (found.invalid, found.saturated) == (0, 0)


@given(seeds, shapes, widths, gaps, st.sampled_from([np.uint16, np.int32]), st.sampled_from([None, 0, 5, 1999]))
def test_what_is_no_measurement_is_left_out_and_counted(
    seed: int, shape: tuple[int, int], width: float, gap: float, dtype: Any, hole: int | None
) -> None:
    random = np.random.default_rng(seed)
    bin_of = stripes(random, shape, 50, width, gap)
    hole = np.iinfo(dtype).max if hole is None else hole
    image = random.poisson(3, shape).astype(dtype)
    image[random.random(shape) < 0.001] = hole
    image[random.random(shape) < 0.001] = 2001
    found = added(image, binning_of(bin_of, 50), largest=2000, hole=hole)
    used, is_hole, is_bright = bin_of < 50, image == hole, image > 2000
    usable = used & ~is_hole & ~is_bright
    np.testing.assert_array_equal(found.counts, np.bincount(bin_of[usable], image[usable], minlength=50))
    np.testing.assert_array_equal(found.pixels, np.bincount(bin_of[usable], minlength=50))
    assert (found.invalid, found.saturated) == ((used & is_hole).sum(), (used & is_bright & ~is_hole).sum())


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
@pytest.mark.parametrize("brightest", [SURE - 2, SURE - 1, SURE, SURE + 1, 2**31 - 2])
def test_paths_as_bright_as_they_may_be_do_not_overflow(dtype: Any, brightest: int) -> None:
    brightest = min(brightest, np.iinfo(dtype).max - 1)
    image = np.full((200, 2 * WIDTH), brightest, dtype)
    counts = added(image, binning_of(np.zeros(image.shape, np.uint16), 1)).counts
    assert counts.tolist() == [image.size * brightest]


def test_the_highest_image_of_the_brightest_pixels_does_not_overflow() -> None:
    image = np.full((MOST_ROWS, WIDTH), SURE - 2, np.uint16)
    # Stripes, so that paths are left all the way down, and quads hold four of the highest sums.
    bin_of = np.add.outer(np.arange(MOST_ROWS) // 64, np.arange(WIDTH) // 40) % 2
    found = added(image, binning_of(bin_of, 2))
    assert found.counts.tolist() == [int(n) * (SURE - 2) for n in np.bincount(bin_of.ravel())]
