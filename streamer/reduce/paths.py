"""Paths across a detector that keep to their bins: what `kernel` needs to know of a geometry, found once for it.

The image is cut into bands of up to HEIGHT rows, and those into tiles of WIDTH columns. From row to row of a tile,
every path steps by the same number of columns: of STEPS the one that keeps most paths in the bin where they are. So
they follow a ring where it runs along the columns and where it runs aslant, whatever the bins are; only where it runs
along the rows do they cross it. A step that leads out of a tile ends a path, and one from outside begins one.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from streamer.reduce.kernel import BLOCK, HEIGHT, MARGIN, WIDTH, Binning, Tiles

__all__ = ["binning_of"]

STEPS = np.array([0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8])
"""Columns a path may step to the right from row to row; at most MARGIN. Of steps as good, the first is taken."""

MOST_QUADS = 0.18
"""Quads per used pixel beyond which adding the pixels one by one is as fast: then there are no tiles. A choice tile by
tile is slower than either, as stretches of single rows are."""

MOST_ROWS = 2**14
"""Of an image: four sums of 16 bits from so many fit a uint32."""

PLACES = 4
"""In a quad."""


def binning_of(bin_of: NDArray[Any], bins: int) -> Binning:
    """Prepare (rows, columns) bin numbers, 0 … bins − 1 or `bins` for "not used", for images of that shape."""
    rows, columns = bin_of.shape
    bin_of = np.ascontiguousarray(bin_of, dtype=np.uint16 if bins < 2**16 else np.uint32)
    tiles, in_tile = _tiles_of(bin_of, bins)
    runs = np.empty((rows * columns // 2 + 1, 2), dtype=np.uintp)
    flat, nowhere = bin_of.reshape(-1), np.zeros(rows * columns, dtype=np.bool_)
    every = runs[: _find_runs(flat, bins, nowhere, runs)].copy()
    rest = runs[: _find_runs(flat, bins, in_tile.reshape(-1), runs)].copy()
    return Binning(bins, columns, flat, every, rest, tiles)


def _tiles_of(bin_of: NDArray[Any], bins: int) -> tuple[Tiles, NDArray[np.bool_]]:
    """The tiles, none if they do not pay, and (rows, columns) which pixels are in one."""
    rows, columns = bin_of.shape
    strips = -(-columns // WIDTH)
    most = 2 * strips * -(-rows // HEIGHT) + 1
    outlines, back = np.zeros((most, 8), dtype=np.uintp), np.zeros((most, HEIGHT), dtype=np.uint16)
    most_quads = int(MOST_QUADS * np.count_nonzero(bin_of != bins))
    room = most_quads + 2 * (HEIGHT + 1) * (WIDTH + MARGIN)
    quads, keys = np.zeros(room, dtype=np.uint64), np.empty(room, dtype=np.int64)
    in_tile = np.zeros(bin_of.shape, dtype=np.bool_)
    layout = HEIGHT, WIDTH, MARGIN
    tile_count = quad_count = 0
    if columns >= WIDTH and rows <= MOST_ROWS:
        tile_count, quad_count = _cut(bin_of, bins, STEPS, layout, most_quads, outlines, back, quads, keys, in_tile)
    found, kinds = np.unique(keys[:quad_count], return_inverse=True)
    crossings = np.stack(np.divmod(found, bins + 1), axis=1).astype(np.uint32)
    kinds = kinds.astype(np.uint16 if len(found) < 2**16 else np.uint32)
    outlines = outlines[: tile_count + 1].copy()
    outlines[-1] = 0
    outlines[-1, 2] = strips
    gaps = _gaps(bin_of != bins, outlines)
    return Tiles(outlines, back[: tile_count + 1].copy(), gaps, quads[:quad_count].copy(), kinds, crossings), in_tile


def _gaps(used: NDArray[np.bool_], outlines: NDArray[np.uintp]) -> NDArray[np.uint32]:
    """What `Tiles.gaps` is, with the places of each tile's own put in the outlines."""
    columns, found, count = used.shape[1], [], 0
    for outline in outlines:
        first, rows, _, own = (int(number) for number in outline[:4])
        if rows == 0:
            continue
        top, left = divmod(first, columns)
        # With a used pixel at either side, runs of the others begin and end where this changes.
        is_gap = np.zeros((rows, WIDTH + 2), dtype=np.int8)
        is_gap[:, 1:-1] = ~used[top : top + rows, left : left + WIDTH]
        is_gap[:, 1 : own + 1] = 1
        change = np.diff(is_gap, axis=1)
        (row, start), (_, stop) = np.nonzero(change == 1), np.nonzero(change == -1)
        found.append(np.stack([first + row * columns + start, stop - start], axis=1).astype(np.uint32))
        outline[6:] = count, count + len(row)
        count += len(row)
    return np.concatenate([np.empty((0, 2), dtype=np.uint32), *found])


@numba.njit(nogil=True, cache=True)
def _find_runs(bin_of: NDArray[Any], bins: int, is_taken: NDArray[np.bool_], runs: NDArray[np.uintp]) -> int:
    """Fill runs that hold all used pixels which are not taken, and no taken ones; tell how many.

    Of pixels that are not used, a run has fewer than BLOCK together.
    """
    count, since_used = 0, BLOCK
    for i in range(len(bin_of)):
        if bin_of[i] == bins:
            since_used += 1
        elif is_taken[i]:
            since_used = BLOCK
        else:
            if since_used >= BLOCK:
                runs[count, 0] = i
                count += 1
            runs[count - 1, 1] = i + 1
            since_used = 0
    return count


@numba.njit(nogil=True, cache=True)
def _cut(
    bin_of: NDArray[Any],
    bins: int,
    steps: NDArray[np.int64],
    layout: tuple[int, int, int],
    most_quads: int,
    outlines: NDArray[np.uintp],
    back: NDArray[np.uint16],
    quads: NDArray[np.uint64],
    keys: NDArray[np.int64],
    in_tile: NDArray[np.bool_],
) -> tuple[int, int]:
    """Fill what Tiles consist of, tell how many tiles and quads.

    layout: HEIGHT, WIDTH, MARGIN. most_quads: with more, there are to be no tiles.
    keys: of every quad, bin left · (bins + 1) + bin entered.
    """
    (height, width, margin), (rows, columns) = layout, bin_of.shape
    bands, strips = (rows + height - 1) // height, (columns + width - 1) // width
    room = 2 * (height + 1) * (width + margin)
    crossings, places = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.uint64)
    tile_count = quad_count = 0
    for band in range(bands):
        top, bottom, below = rows * band // bands, rows * (band + 1) // bands, rows * (band + 2) // bands
        for strip in range(strips):
            # The last tile of a band also reads pixels of the one before: all tiles are equally wide.
            left, first = strip * width, min(strip * width, columns - width)
            own = bin_of[:, left : first + width]
            if not np.any(own[top:bottom] != bins):
                continue
            if tile_count % 2 and outlines[tile_count - 1, 2] == strip:
                outlines[tile_count, 2] = strips
                tile_count += 1
            is_last = bottom == rows or not np.any(own[bottom:below] != bins)
            count = _cross(
                own, bins, steps, top, bottom, is_last, left - first, layout, back[tile_count], crossings, places
            )
            before = quad_count
            quad_count = _join(crossings[:count], places[:count], quad_count, quads, keys)
            if quad_count > most_quads:
                in_tile[:] = False
                return 0, 0
            outline = top * columns + first, bottom - top, strip, left - first, before, quad_count
            outlines[tile_count, :6] = outline
            in_tile[top:bottom, left : first + width] = True
            tile_count += 1
    return tile_count, quad_count


@numba.njit(nogil=True, cache=True)
def _cross(
    own: NDArray[Any],
    bins: int,
    steps: NDArray[np.int64],
    top: int,
    bottom: int,
    is_last: bool,
    offset: int,
    layout: tuple[int, int, int],
    back: NDArray[np.uint16],
    crossings: NDArray[np.int64],
    places: NDArray[np.uint64],
) -> int:
    """Find the paths of a tile, fill where they leave which bin for which (see `_cut`), tell how often.

    own: (rows, columns) bins of the tile's own columns; offset: the column of the first one. top, bottom: its rows.
    is_last: whether paths end with it.
    """
    _, width, margin = layout
    stride, columns = width + margin, own.shape[1]
    count = 0
    for row in range(top, bottom + is_last):
        step = _best_step(own[row - 1], own[row], bins, steps) if 0 < row < bottom else 0
        if row < bottom:
            back[row - top] = stride + step
        for column in range(min(0, -step), columns + max(0, -step) if row > 0 else 0):
            after = column + step
            left = own[row - 1, column] if 0 <= column < columns else bins
            entered = own[row, after] if row < bottom and 0 <= after < columns else bins
            if left != entered and 0 <= offset + column < width:
                crossings[count] = left * (bins + 1) + entered
                places[count] = (row - top) * stride + margin + offset + column
                count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _best_step(above: NDArray[Any], row: NDArray[Any], bins: int, steps: NDArray[np.int64]) -> int:
    """The step that keeps most paths from the row above in their bins."""
    best, most = 0, -1
    for step in steps:
        kept = 0
        for column in range(max(0, -step), len(row) - max(0, step)):
            kept += (above[column] == row[column + step]) & (above[column] != bins)
        if kept > most:
            best, most = step, kept
    return best


@numba.njit(nogil=True, cache=True)
def _join(
    crossings: NDArray[np.int64],
    places: NDArray[np.uint64],
    count: int,
    quads: NDArray[np.uint64],
    keys: NDArray[np.int64],
) -> int:
    """Append four places each of the same crossing to `count` quads, tell how many there are now."""
    in_quad = PLACES
    for k in np.argsort(crossings, kind="mergesort"):
        if in_quad == PLACES or crossings[k] != keys[count - 1]:
            keys[count] = crossings[k]
            count, in_quad = count + 1, 0
        quads[count - 1] |= places[k] << np.uint64(16 * in_quad)
        in_quad += 1
    return count
