"""Paths that keep to their bins, and what of an image is given to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.reduce.kernel import HEIGHT, MARGIN, WIDTH, Binning
from streamer.reduce.paths import MOST_ROWS, STEPS, binning_of


def owners(binning: Binning, rows: int) -> NDArray[np.int64]:
    """(pixels,) in how many tiles and runs of the rest a used pixel is."""
    found = np.zeros(len(binning.bin_of), np.int64)
    image = found.reshape(rows, binning.columns)
    for first, height, _, own, *_ in binning.tiles.outlines.astype(int):
        top, left = divmod(first, binning.columns)
        image[top : top + height, left + own : left + WIDTH] += 1
    for start, stop in binning.rest:
        found[start:stop] += 1
    return found


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 90), st.integers(1, 3 * WIDTH)),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_every_used_pixel_is_in_one_tile_or_in_the_rest(
    seed: int, shape: tuple[int, int], width: int, gap: float
) -> None:
    random = np.random.default_rng(seed)
    bin_of = np.repeat(random.integers(0, 9, shape), width, axis=1)[:, : shape[1]]
    bin_of[random.random(shape) < gap] = 9
    binning = binning_of(bin_of, 9)
    used = bin_of.ravel() < 9
    np.testing.assert_array_equal(owners(binning, shape[0])[used], 1)
    in_runs = np.zeros(len(used), np.int64)
    for start, stop in binning.runs:
        in_runs[start:stop] += 1
    np.testing.assert_array_equal(in_runs[used], 1)


@pytest.mark.parametrize("step", STEPS)
def test_paths_follow_stripes_that_run_aslant(step: int) -> None:
    rows, columns = np.indices((HEIGHT, WIDTH))
    binning = binning_of((columns - step * rows) // 3 % 40, 40)
    assert (binning.tiles.back[0, 1:] == WIDTH + MARGIN + step).all()
    # A path ends at the foot of the tile, or where it leaves at the side.
    assert len(binning.tiles.quads) < (WIDTH + HEIGHT * abs(step)) / 2


def test_pixels_that_are_not_used_are_in_no_run() -> None:
    bin_of = np.full((1, 10_000), 10)
    bin_of[0, 3000:5000] = 1
    assert binning_of(bin_of, 10).runs.tolist() == [[3000, 5000]]


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 90), st.integers(WIDTH, 3 * WIDTH)),
    st.sampled_from([0.0, 0.02, 0.5, 0.99]),
)
def test_gaps_are_the_pixels_of_a_tile_that_it_does_not_add(seed: int, shape: tuple[int, int], gap: float) -> None:
    random = np.random.default_rng(seed)
    bin_of = np.where(random.random(shape) < gap, 1, 0)
    tiles = binning_of(bin_of, 1).tiles
    for first, rows, _, own, _, _, begin, end in tiles.outlines.astype(int):
        top, left = divmod(first, shape[1])
        expected = np.zeros(shape, np.bool_)
        expected[top : top + rows, left : left + WIDTH] = bin_of[top : top + rows, left : left + WIDTH] == 1
        expected[top : top + rows, left : left + own] = True
        found = np.zeros(bin_of.size, np.int64)
        for start, length in tiles.gaps[begin:end].astype(int):
            found[start : start + length] += 1
        np.testing.assert_array_equal(found.reshape(shape), expected)


def test_paths_go_on_from_tile_to_tile_and_end_before_a_gap() -> None:
    bin_of = np.tile(np.arange(WIDTH) // 4, (4 * HEIGHT, 1))
    bin_of[2 * HEIGHT : 3 * HEIGHT] = WIDTH
    tiles = binning_of(bin_of, WIDTH).tiles
    outlines = tiles.outlines[tiles.outlines[:, 1] > 0].astype(int)
    assert outlines[:, 0].tolist() == [0, HEIGHT * WIDTH, 3 * HEIGHT * WIDTH]
    # No bin is left in the first tile. In the second all are left for the gap, in the last all are entered and left.
    assert (outlines[:, 5] - outlines[:, 4]).tolist() == [0, WIDTH // 4, 2 * WIDTH // 4]


@pytest.mark.parametrize("columns", [WIDTH, WIDTH + 1, 2 * WIDTH, 3 * WIDTH])
def test_two_tiles_side_by_side_are_never_of_one_strip(columns: int) -> None:
    bin_of = np.zeros((6 * HEIGHT, columns), np.uint16)
    bin_of[HEIGHT : 3 * HEIGHT, WIDTH:] = 1
    strips = binning_of(bin_of, 1).tiles.outlines[:, 2]
    even = len(strips) // 2 * 2
    assert (strips[:even:2] != strips[1:even:2]).all()


def test_an_image_higher_than_sums_can_hold_is_added_pixel_by_pixel() -> None:
    high = binning_of(np.zeros((MOST_ROWS + 1, WIDTH), np.uint16), 1)
    assert len(high.tiles.quads) == 0
    assert high.rest.tolist() == [[0, high.bin_of.size]]


def test_wide_bins_are_cut_into_few_quads_and_narrow_ones_into_none() -> None:
    rows, columns = np.indices((300, 300))
    wide, narrow = binning_of((rows + columns) // 10, 60), binning_of((31 * rows + 17 * columns) % 500, 500)
    assert 0 < len(wide.tiles.quads) < 0.05 * rows.size
    assert len(narrow.tiles.quads) == len(narrow.tiles.outlines[:-1]) == 0
    assert narrow.rest.tolist() == [[0, rows.size]]
