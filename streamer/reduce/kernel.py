"""The pixels of an image added up per bin, exactly, in one pass on one core: the compiled loops and what they need.

A plain histogram adds each pixel to its bin: three loads and a store per pixel, and wherever neighbours share a bin the
second addition waits for the first. But which neighbours share a bin is known as soon as the geometry is. So the image
is cut into *tiles*, runs of used pixels that fit the first-level cache, and each tile's pixels into *pieces*: up to
four neighbours in one bin. Per tile and frame, vector instructions compute the sums of one, two, three and four
neighbours at every position, and check on the way that every pixel is a measurement; then each piece is one addition.
1000 bins on four million pixels are 1.6 million pieces. Unused pixels (gaps, beamstop, outside the range) are in no
tile and are not read.

Sums of neighbours are kept as uint16, which holds four times NARROW. A tile with a pixel above NARROW, NODATA or
saturated, pixels that are not integers, and runs too short or bins too narrow for pieces to pay are added pixel by
pixel: in blocks of BLOCK that are checked first, neighbours in sums of their own (LANES), and only in a block with a
pixel that is none with a look at each. Totals are uint64, int64 or float64, so no count is ever lost.

Tried on four million uint16 and 1000 bins, and left out: totals in uint32 (within 3 %, and they could overflow); sums
of neighbours in uint32 (a third slower); longer pieces (with eight neighbours a tenth fewer pieces, for twice the sums
to write). What pays, besides the pieces: asking for memory ahead (a third of the time where the frame is not in the
second-level cache), sums of neighbours in whole cache lines (a fifth of writing them), and having numba put the loops
over a tile into `_add_up` (a fifth). Indices are unsigned, because for signed ones numba tests at every access whether
they count from the end.

The loops hold no interpreter lock. They are compiled by numba and kept on disk (`NUMBA_CACHE_DIR` where the package's
own folder cannot be written).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

__all__ = ["NARROW", "Binning", "Limits", "Sums", "binning_of", "scatter_of", "sums_of"]

LANES = 4
"""Adding every fourth pixel to sums of its own more than doubles the speed. The loops spell the four out."""

BLOCK = 64
"""Pixels looked at together, in a loop the compiler turns into vectors, before any of them is added."""

LONGEST = 4
"""Neighbours in a piece. The loops spell the four out."""

NARROW = (2**16 - 1) // LONGEST
"""The largest count of which LONGEST together fit a uint16: 16383."""

TILE = 2048
"""Pixels in a tile: the sums of neighbours then take 16 kB of a first-level cache of 32 or 48 kB."""

STRIDE = TILE + 32
"""Distance between the rows of sums: not a multiple of 4096 bytes, or a load would seem to need an unrelated store."""

SHORTEST = 16
"""Fewer used pixels in a row are not worth a tile of pieces. At least three: `_fill`."""

MOST_PIECES = 0.6
"""Pieces per pixel beyond which adding the pixels one by one is as fast."""

EXACT = {"u": np.uint64, "i": np.int64, "f": np.float64}
"""Kind of dtype → where its values are added up without loss."""

LINE = 64
"""Bytes in a cache line."""

GROUP = 16
"""Pieces added between two requests for memory: one line of them."""

PIECES_AHEAD, PIXELS_AHEAD = 512, 1024
"""How far ahead memory is asked for: a few hundred ns. The processor's own look-ahead forgets the image while a tile's
pieces are added, and without asking a frame that comes from memory takes half as long again."""

_ROW1, _ROW2, _ROW3 = np.uintp(STRIDE), np.uintp(2 * STRIDE), np.uintp(3 * STRIDE)
_0, _1, _2, _3, _4 = (np.uintp(n) for n in range(5))
_LOW, _HIGH = np.uint32(0xFFFF), np.uint32(16)


class Limits(NamedTuple):
    """What counts as a measurement, in the image's dtype.

    smallest, largest: of the usable values. top: the largest that is a measurement, though it may be saturated.
    hole: a value that is none. narrow: no usable value up to this one is `hole`, and none is above NARROW.
    has_narrow: whether there is such a value.
    """

    smallest: Any
    largest: Any
    top: Any
    hole: Any
    narrow: Any
    has_narrow: bool


@dataclass(frozen=True, slots=True)
class Binning:
    """Which pixels belong to which bin.

    bin_of: (n,) uint16 or uint32, the bin of every pixel, `bins` for pixels that are not used.
    tiles: (t, 4) where a tile begins and ends among the pixels, and where its pieces do; none in a tile without.
    pieces: (m,) uint32, place among the sums of neighbours · 2¹⁶ + bin.
    """

    bins: int
    bin_of: NDArray[Any]
    tiles: NDArray[np.uintp]
    pieces: NDArray[np.uint32]

    def per_bin(self, values: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """(bins,) sum of (n,) values over the used pixels of each bin, float64; without values their number, int64."""
        sums = np.bincount(self.bin_of, weights=values, minlength=self.bins + 1)
        return sums[: self.bins]


@dataclass(frozen=True, slots=True)
class Sums:
    """What one image says per bin.

    counts: (bins,) Σ over usable pixels; uint64, int64 or float64.
    lost: (2, bins) int64, pixels that are NODATA | saturated.
    lost_norm: (2, bins) float64, Σ norm | Σ dark of those.
    """

    counts: NDArray[Any]
    lost: NDArray[np.int64]
    lost_norm: NDArray[np.float64]


def binning_of(bin_of: NDArray[Any], bins: int) -> Binning:
    """Prepare (n,) bin numbers, 0 … bins − 1 or `bins` for "not used", for adding up images of n pixels."""
    bin_of = np.ascontiguousarray(bin_of, dtype=np.uint16 if bins < 2**16 else np.uint32)
    pieces = np.empty(len(bin_of) if bins < 2**16 else 0, dtype=np.uint32)
    tiles = np.empty((len(bin_of) // SHORTEST + 2, 4), dtype=np.uintp)
    tile_count, piece_count = _cut(bin_of, bins, tiles, pieces)
    return Binning(bins, bin_of, tiles[:tile_count].copy(), pieces[:piece_count].copy())


def sums_of(
    pixels: NDArray[Any], binning: Binning, norm: NDArray[np.float32], dark: NDArray[np.float32], limits: Limits
) -> Sums:
    """Add up an image.

    pixels, norm: (n,), pixels contiguous and read-only. dark: (n,), or (0,) where there is none.
    """
    totals = np.zeros((LANES, binning.bins + 1), dtype=EXACT[pixels.dtype.kind])
    lost = np.zeros((2, binning.bins), dtype=np.int64)
    lost_norm = np.zeros((2, binning.bins))
    _add_up(
        pixels, binning.bin_of, binning.tiles, binning.pieces, _windows(), norm, dark, limits, totals, lost, lost_norm
    )
    return Sums(totals[:, : binning.bins].sum(axis=0), lost, lost_norm)


def scatter_of(
    pixels: NDArray[Any],
    binning: Binning,
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: Limits,
    intensity: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(bins,) Σ (pixel − dark − intensity · norm)² over the usable pixels of each bin; arguments as for `sums_of`.

    intensity: (bins,), what is expected of a pixel with norm 1.
    """
    squares = np.zeros((LANES, binning.bins))
    _add_squares(pixels, binning.bin_of, binning.tiles, norm, dark, limits, intensity, squares)
    scatter: NDArray[np.float64] = squares.sum(axis=0)
    return scatter


def _windows() -> NDArray[np.uint16]:
    """Room for the sums of neighbours, in whole cache lines: vectors that cross lines are stored at half the speed."""
    room = np.empty(2 * (LONGEST + 1) * STRIDE + LINE, dtype=np.uint8)
    offset = -room.ctypes.data % LINE
    return room[offset : offset + 2 * (LONGEST + 1) * STRIDE].view(np.uint16)


@numba.njit(nogil=True, cache=True)
def _cut(bin_of: NDArray[Any], bins: int, tiles: NDArray[np.uintp], pieces: NDArray[np.uint32]) -> tuple[int, int]:
    """Fill tiles and pieces (see Binning), tell how many. Without room for pieces, tiles go without."""
    n, tile_count, piece_count = len(bin_of), 0, 0
    start = run_stop = 0
    while True:
        if start == run_stop:
            while start < n and bin_of[start] == bins:
                start += 1
            run_stop = start
            while run_stop < n and bin_of[run_stop] != bins:
                run_stop += 1
        if start == n:
            return tile_count, piece_count
        # Tiles of equal length: a run a little longer than a tile would leave one of a few pixels.
        tiles_left = (run_stop - start + TILE - 1) // TILE
        stop = start + (run_stop - start) // tiles_left
        first, i = piece_count, start
        while len(pieces) > 0 and stop - start >= SHORTEST and i < stop:
            length = 1
            while length < LONGEST and i + length < stop and bin_of[i + length] == bin_of[i]:
                length += 1
            pieces[piece_count] = ((length - 1) * STRIDE + i - start) << 16 | bin_of[i]
            piece_count += 1
            i += length
        if piece_count - first > MOST_PIECES * (stop - start):
            piece_count = first
        is_plain = piece_count == first
        before = tile_count - 1
        if is_plain and before >= 0 and tiles[before, 2] == tiles[before, 3] and start - tiles[before, 1] < BLOCK:
            tiles[before, 1] = stop
        else:
            tiles[tile_count] = start, stop, first, piece_count
            tile_count += 1
        start = stop


def _prefetch_code(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index], and do not wait. The index may lie behind the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data  # type: ignore[no-untyped-call]
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        llvm_prefetch = builder.module.declare_intrinsic("llvm.prefetch", (address.type,), signature)
        # To read, to keep in every level, data.
        builder.call(llvm_prefetch, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_prefetch_code)


@numba.njit(nogil=True, cache=True)
def _add_up(
    pixels: NDArray[Any],
    bin_of: NDArray[Any],
    tiles: NDArray[np.uintp],
    pieces: NDArray[np.uint32],
    windows: NDArray[np.uint16],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: Limits,
    totals: NDArray[Any],
    lost: NDArray[np.int64],
    lost_norm: NDArray[np.float64],
) -> None:
    """Add every usable pixel to the total of its bin and some lane, and take account of every other.

    totals: (LANES, bins + 1), the last bin takes the pixels that are not used. lost, lost_norm: see Sums.
    """
    for t in range(len(tiles)):
        start, stop, first, last = tiles[t, 0], tiles[t, 1], tiles[t, 2], tiles[t, 3]
        if limits.has_narrow and first < last and _fill_from(pixels[start:stop], limits, windows):
            _add_pieces(pieces[first:last], windows, totals, pixels[stop:], stop - start)
        else:
            _add_blocks(start, stop, pixels, bin_of, norm, dark, limits, totals, lost, lost_norm)


@numba.njit(nogil=True, cache=True, inline="always")
def _fill_from(tile: NDArray[Any], limits: Limits, windows: NDArray[np.uint16]) -> Any:
    """Put the sums of 1 … LONGEST neighbours from every pixel on into a row of windows each, STRIDE apart.

    False if a pixel is not one up to limits.narrow; then windows mean nothing.
    """
    if tile.itemsize == windows.itemsize:
        return _fill(tile, limits.smallest, limits.narrow, windows)
    narrow = windows[LONGEST * STRIDE :]
    lowest = highest = tile[0]
    for i in range(np.uintp(len(tile))):
        lowest, highest = min(lowest, tile[i]), max(highest, tile[i])
        narrow[i] = np.uint16(tile[i])
    if lowest < limits.smallest or highest > limits.narrow:
        return False
    return _fill(narrow[: len(tile)], np.uint16(0), np.uint16(NARROW), windows)


@numba.njit(nogil=True, cache=True, inline="always")
def _fill(tile: NDArray[Any], smallest: Any, largest: Any, windows: NDArray[np.uint16]) -> Any:
    """As `_fill_from`, for at least three pixels of uint16."""
    n = np.uintp(len(tile))
    lowest = highest = tile[0]
    for i in range(n - _3):
        one, two, three, four = tile[i], tile[i + _1], tile[i + _2], tile[i + _3]
        lowest, highest = min(lowest, one), max(highest, one)
        windows[i] = one
        windows[i + _ROW1] = one + two
        windows[i + _ROW2] = one + two + three
        windows[i + _ROW3] = one + two + three + four
    one, two, three = tile[n - _3], tile[n - _2], tile[n - _1]
    windows[n - _3], windows[n - _3 + _ROW1], windows[n - _3 + _ROW2] = one, one + two, one + two + three
    windows[n - _2], windows[n - _2 + _ROW1] = two, two + three
    windows[n - _1] = three
    lowest, highest = min(lowest, one, two, three), max(highest, one, two, three)
    return smallest <= lowest and highest <= largest


@numba.njit(nogil=True, cache=True, inline="always")
def _add_pieces(
    pieces: NDArray[np.uint32],
    windows: NDArray[np.uint16],
    totals: NDArray[Any],
    ahead: NDArray[Any],
    tile_length: np.uintp,
) -> None:
    """Add the pieces of a tile, and meanwhile fetch as many pixels of those ahead."""
    lane0, lane1 = totals[0], totals[1]
    n, group = np.uintp(len(pieces)), np.uintp(GROUP)
    in_groups = n - n % group
    fetched, step = _0, tile_length * group // n + _1
    half = step // _2
    for at in range(_0, in_groups, group):
        _prefetch(pieces, at + np.uintp(PIECES_AHEAD))
        _prefetch(ahead, fetched)
        _prefetch(ahead, fetched + half)
        fetched += step
        for k in range(_0, group, _2):
            one, other = pieces[at + k], pieces[at + k + _1]
            lane0[np.uintp(one & _LOW)] += windows[np.uintp(one >> _HIGH)]
            lane1[np.uintp(other & _LOW)] += windows[np.uintp(other >> _HIGH)]
    for k in range(in_groups, n):
        lane0[np.uintp(pieces[k] & _LOW)] += windows[np.uintp(pieces[k] >> _HIGH)]


@numba.njit(nogil=True, cache=True)
def _add_blocks(
    start: np.uintp,
    stop: np.uintp,
    pixels: NDArray[Any],
    bin_of: NDArray[Any],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: Limits,
    totals: NDArray[Any],
    lost: NDArray[np.int64],
    lost_norm: NDArray[np.float64],
) -> None:
    """As `_add_up`, for the pixels start … stop − 1, by their bins."""
    lane0, lane1, lane2, lane3 = totals[0], totals[1], totals[2], totals[3]
    block = np.uintp(BLOCK)
    in_blocks = stop - (stop - start) % block
    for at in range(start, in_blocks, block):
        for i in range(at, at + block, np.uintp(LINE // pixels.itemsize)):
            _prefetch(pixels, i + np.uintp(PIXELS_AHEAD))
        for i in range(at, at + block, np.uintp(LINE // bin_of.itemsize)):
            _prefetch(bin_of, i + np.uintp(PIXELS_AHEAD))
        is_doubtful = False
        for i in range(at, at + block):
            is_doubtful |= not (limits.smallest <= pixels[i] <= limits.largest) or pixels[i] == limits.hole
        if is_doubtful:
            _with_care(at, at + block, pixels, bin_of, norm, dark, limits, totals, lost, lost_norm)
            continue
        for i in range(at, at + block, _4):
            lane0[np.uintp(bin_of[i])] += pixels[i]
            lane1[np.uintp(bin_of[i + _1])] += pixels[i + _1]
            lane2[np.uintp(bin_of[i + _2])] += pixels[i + _2]
            lane3[np.uintp(bin_of[i + _3])] += pixels[i + _3]
    _with_care(in_blocks, stop, pixels, bin_of, norm, dark, limits, totals, lost, lost_norm)


@numba.njit(nogil=True, cache=True)
def _with_care(
    start: np.uintp | int,
    stop: np.uintp | int,
    pixels: NDArray[Any],
    bin_of: NDArray[Any],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: Limits,
    totals: NDArray[Any],
    lost: NDArray[np.int64],
    lost_norm: NDArray[np.float64],
) -> None:
    """As `_add_blocks`, for pixels of which some are not usable."""
    bins = lost.shape[1]
    for i in range(start, stop):
        value, b = pixels[i], np.uintp(bin_of[i])
        if b == bins:
            continue
        if (limits.smallest <= value <= limits.largest) and value != limits.hole:
            totals[i % _4, b] += value
            continue
        is_measured = (limits.smallest <= value <= limits.top) and value != limits.hole
        lost[1 if is_measured else 0, b] += 1
        lost_norm[0, b] += norm[i]
        if len(dark) > 0:
            lost_norm[1, b] += dark[i]


@numba.njit(nogil=True, cache=True)
def _add_squares(
    pixels: NDArray[Any],
    bin_of: NDArray[Any],
    tiles: NDArray[np.uintp],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: Limits,
    intensity: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> None:
    """See `scatter_of`. squares: (LANES, bins)."""
    bins, has_dark = len(intensity), len(dark) > 0
    for t in range(len(tiles)):
        for i in range(tiles[t, 0], tiles[t, 1]):
            value, b = pixels[i], np.uintp(bin_of[i])
            if b == bins or not (limits.smallest <= value <= limits.largest) or value == limits.hole:
                continue
            signal = np.float64(value) - np.float64(dark[i]) if has_dark else np.float64(value)
            off = signal - intensity[b] * np.float64(norm[i])
            squares[i % _4, b] += off * off
