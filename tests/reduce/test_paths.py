"""Paths that keep to their bins, and what of an image is given to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.reduce.kernel import HEIGHT, MARGIN, WIDTH, Binning
from streamer.reduce.paths import STEPS, binning_of


def owners(binning: Binning, rows: int) -> NDArray[np.int64]:
    """(pixels,) in how many tiles and runs of the rest a used pixel is."""
    found = np.zeros(len(binning.bin_of), np.int64)
    image = found.reshape(rows, binning.columns)
    for first, height, own, *_ in binning.tiles.outlines.astype(int):
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


def test_a_mask_is_kept_only_for_tiles_with_unused_pixels() -> None:
    bin_of = np.zeros((2 * HEIGHT, 2 * WIDTH), np.int64)
    bin_of[3, 5] = 1
    tiles = binning_of(bin_of, 1).tiles
    assert tiles.outlines[:, 5].tolist() == [1, 0, 0, 0]
    assert np.argwhere(tiles.masks[1] == 0).tolist() == [[3, 5]]


def test_wide_bins_are_cut_into_few_quads_and_narrow_ones_into_none() -> None:
    rows, columns = np.indices((300, 300))
    wide, narrow = binning_of((rows + columns) // 10, 60), binning_of((31 * rows + 17 * columns) % 500, 500)
    assert 0 < len(wide.tiles.quads) < 0.05 * rows.size
    assert len(narrow.tiles.quads) == len(narrow.tiles.outlines) == 0
    assert narrow.rest.tolist() == [[0, rows.size]]
