"""Sums per bin against numpy, for bins, gaps and images that send pixels down every path through the loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.reduce.kernel import NARROW, TILE, Binning, Limits, binning_of, sums_of

NO_DARK = np.empty(0, np.float32)


def added(
    pixels: NDArray[Any], binning: Binning, *, largest: int | None = None, hole: int | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sums and numbers of lost pixels per bin, for a norm of one."""
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    scalar, top = pixels.dtype.type, np.iinfo(pixels.dtype).max
    usable = top if largest is None else largest
    narrow = min(usable, NARROW)
    limits = Limits(
        scalar(0),
        scalar(usable),
        scalar(top),
        scalar(top if hole is None else hole),
        scalar(narrow),
        hole is None or hole > narrow,
    )
    sums = sums_of(pixels, binning, np.ones(len(pixels), np.float32), NO_DARK, limits)
    np.testing.assert_array_equal(sums.lost_norm[0], sums.lost.sum(axis=0))
    return sums.counts, sums.lost


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compiling takes seconds the first time, longer than one example may."""
    for dtype in (np.uint8, np.uint16, np.uint32, np.int32):
        for bins in (1, 2**16):
            added(np.zeros(TILE, dtype), binning_of(np.zeros(TILE, np.int64), bins))


def runs(random: np.random.Generator, n: int, bins: int, longest: int, gap: float) -> NDArray[np.int64]:
    """(n,) bins in runs of up to `longest` pixels, a fraction of the runs not used."""
    lengths = random.integers(1, longest + 1, n)
    numbers = np.where(random.random(n) < gap, bins, random.integers(0, bins, n))
    return np.repeat(numbers, lengths)[:n]


@given(
    st.integers(0, 2**32),
    st.integers(1, 3 * TILE),
    st.sampled_from([1, 2, 7, 1000, 65_535, 65_536, 70_000]),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.02, 0.5, 0.99, 1.0]),
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32]),
    st.sampled_from([3, 200, NARROW, 2**31 - 2]),
)
def test_every_pixel_is_added_once(
    seed: int, n: int, bins: int, longest: int, gap: float, dtype: Any, brightest: int
) -> None:
    random = np.random.default_rng(seed)
    bin_of = runs(random, n, bins, longest, gap)
    pixels = random.integers(0, min(brightest, np.iinfo(dtype).max - 1), n, endpoint=True).astype(dtype)
    counts, lost = added(pixels, binning_of(bin_of, bins))
    expected = np.zeros(bins + 1, dtype=np.int64)
    np.add.at(expected, bin_of, pixels.astype(np.int64))
    np.testing.assert_array_equal(counts, expected[:bins])
    assert lost.sum() == 0


@given(st.integers(0, 2**32), st.integers(1, 3 * TILE), st.integers(1, 40), st.sampled_from([None, 0, 5, NARROW]))
def test_what_is_no_measurement_is_left_out_and_counted(seed: int, n: int, longest: int, hole: int | None) -> None:
    random = np.random.default_rng(seed)
    bin_of = runs(random, n, 50, longest, 0.1)
    pixels = random.poisson(3, n).astype(np.uint16)
    pixels[random.random(n) < 0.001] = 65535 if hole is None else hole
    pixels[random.random(n) < 0.001] = 2001
    _, lost = added(pixels, binning_of(bin_of, 50), largest=2000, hole=hole)
    used = bin_of < 50
    is_hole = pixels == (65535 if hole is None else hole)
    np.testing.assert_array_equal(lost[0], np.bincount(bin_of[used & is_hole], minlength=50))
    np.testing.assert_array_equal(lost[1], np.bincount(bin_of[used & ~is_hole & (pixels > 2000)], minlength=50))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
@pytest.mark.parametrize("brightest", [NARROW, NARROW + 1])
def test_neighbours_as_bright_as_they_may_be_do_not_overflow(dtype: Any, brightest: int) -> None:
    pixels = np.full(3 * TILE, brightest, dtype)
    counts, _ = added(pixels, binning_of(np.zeros(len(pixels), np.uint16), 1))
    assert counts.tolist() == [3 * TILE * brightest]


def test_pixels_that_are_not_used_are_in_no_tile() -> None:
    bin_of = np.full(10_000, 10)
    bin_of[3000:5000] = 1
    binning = binning_of(bin_of, 10)
    assert binning.tiles[:, :2].tolist() == [[3000, 5000]]


def test_wide_bins_are_cut_into_few_pieces_and_narrow_ones_into_none() -> None:
    n = 100_000
    wide, narrow = binning_of(np.arange(n) // 10 % 500, 500), binning_of(np.arange(n) % 500, 500)
    assert len(wide.pieces) < 0.32 * n
    assert len(narrow.pieces) == 0
    assert len(narrow.tiles) == 1
