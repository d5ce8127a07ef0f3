"""The pixels of an image added up per bin, exactly, in one pass on one core: the compiled loops and what they need.

A plain histogram adds each pixel to its bin: three loads and a store per pixel, and wherever neighbours share a bin the
second addition waits for the first. But which neighbours share a bin is known as soon as the geometry is. So the image
is cut into *tiles*, and in each tile *paths* lead from the first row to the last, side by side, a pixel in every row,
each row as far to the left or right of the one above as keeps most paths in their bins (`paths` chooses). Per tile and
frame, vector instructions add up all paths from the top: a sum at every pixel. What a path collects within a bin is
the sum where it leaves that bin, less the sum where it entered. So the sums are only needed at *crossings*, the last
pixels before the bin changes: 1000 bins on four million pixels are 700 000. Crossings from the same bin into the same
other one go to one counter, and four of them of a tile together make a *quad*, one addition. At the end every counter
is given to the bin left, and taken from the bin entered.

Sums are uint32, which hold the lowest 16 bits of HEIGHT pixels whatever these are. So pixels that are not used (gaps,
beamstop, outside the range) may hold anything: a path enters and leaves them like a bin. A used pixel that is NODATA,
saturated or beyond 16 bits is found by the highest of its tile; what was added for its row of the tile is then taken
out again. Such rows, pixels that are not integers, and images too small, or with bins too narrow, for paths to pay are
added pixel by pixel: in blocks of BLOCK that are checked first, neighbours in sums of their own (LANES), and
only in a block with a pixel that is none with a look at each. Totals are int64 or float64, so no count is ever lost.

Tried on four million uint16 and 1000 bins, and left out: pieces of up to four neighbours along a row, added at once
(1.6 million of them, half as long again); for every piece of a path the difference of two sums (a third longer). What
pays, besides the paths: a loop over the tiles that counts no references (a third, see `_add_tiles`).

The loops hold no interpreter lock. They are compiled by numba and kept on disk (`NUMBA_CACHE_DIR` where the package's
own folder cannot be written). Indices are unsigned, because for signed ones numba tests at every access whether they
count from the end.
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

__all__ = ["HEIGHT", "MARGIN", "SURE", "WIDTH", "Binning", "Limits", "Sums", "Tiles", "scatter_of", "sums_of"]

HEIGHT, WIDTH = 32, 128
"""Rows and columns of a tile: its pixels and sums then take 27 kB of a first-level cache of 32 or 48 kB."""

MARGIN = 16
"""Zeros beside every row of sums, where paths come from outside: no step is longer. Rows stay in whole cache lines,
vectors that cross lines are stored at half the speed."""

SURE = 2**16
"""Values below are added without a look: HEIGHT of them fit a uint32."""

LANES = 4
"""Adding every fourth pixel to sums of its own more than doubles the speed. The loops spell the four out."""

BLOCK = 64
"""Pixels looked at together, in a loop the compiler turns into vectors, before any of them is added."""

EXACT = {"u": np.uint64, "i": np.int64, "f": np.float64}
"""Kind of dtype → what its sums are given as. uint64 is added up as int64: no detector counts to 2⁶³."""

LINE = 64
"""Bytes in a cache line."""

GROUP = 8
"""Quads added between two requests for memory: one line of them, and two rows of the next tile."""

QUADS_AHEAD, PIXELS_AHEAD = 64, 1024
"""How far ahead memory is asked for: a few hundred ns. The processor's own look-ahead forgets the image while a tile's
crossings are added."""

_STRIDE, _WIDTH, _MARGIN = np.uintp(WIDTH + MARGIN), np.uintp(WIDTH), np.uintp(MARGIN)
_0, _1, _2, _3, _4 = (np.uintp(n) for n in range(5))
_LOW, _16, _32, _48 = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)


class Limits(NamedTuple):
    """What counts as a measurement, in the image's dtype.

    smallest, largest: of the usable values. top: the largest that is a measurement, though it may be saturated.
    hole: a value that is none. sure: uint32, at most SURE; every value below it is usable, 0 where none need be.
    """

    smallest: Any
    largest: Any
    top: Any
    hole: Any
    sure: Any


class Tiles(NamedTuple):
    """Blocks of the image, up to HEIGHT × WIDTH pixels, with the crossings of their paths.

    A place among the sums of a tile is (row + 1) · (WIDTH + MARGIN) + MARGIN + column. Place 0 is always zero.

    outlines: (t, 6) uintp: first pixel, number of rows, first column whose pixels are not another tile's, where its
        quads begin and end, and its mask.
    back: (t, HEIGHT) uint16, distance among the sums from the pixels of a row to those before on their paths.
    masks: (u, HEIGHT, WIDTH) uint8, 1 for pixels that are used, and the tile's own; the first is for most tiles, all 1.
    quads: (m,) uint64, four places of 16 bits.
    kinds: (m,) uint16 or uint32, which crossing the four are.
    crossings: (k, 2) uint32, bin that is left and bin that is entered, `Binning.bins` for none.
    """

    outlines: NDArray[np.uintp]
    back: NDArray[np.uint16]
    masks: NDArray[np.uint8]
    quads: NDArray[np.uint64]
    kinds: NDArray[Any]
    crossings: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Binning:
    """Which pixels belong to which bin.

    columns: of the image.   bin_of: (n,) uint16 or uint32, the bin of every pixel, `bins` for those not used.
    runs: (r, 2) uintp, where stretches of pixels begin and end that hold all used ones.
    rest: likewise, for the used pixels that are in no tile.
    """

    bins: int
    columns: int
    bin_of: NDArray[Any]
    runs: NDArray[np.uintp]
    rest: NDArray[np.uintp]
    tiles: Tiles

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


class Image(NamedTuple):
    """What is added up. All arrays: (n,); dark (0,) where there is none. unused: in bin_of, "not used"."""

    pixels: NDArray[Any]
    bin_of: NDArray[Any]
    unused: np.uint32
    norm: NDArray[np.float32]
    dark: NDArray[np.float32]
    limits: Limits


class Account(NamedTuple):
    """Where it is added: totals (LANES, bins + 1), the last bin takes what is not used. The others: see Sums."""

    totals: NDArray[Any]
    lost: NDArray[np.int64]
    lost_norm: NDArray[np.float64]


def sums_of(
    pixels: NDArray[Any], binning: Binning, norm: NDArray[np.float32], dark: NDArray[np.float32], limits: Limits
) -> Sums:
    """Add up an image.

    pixels, norm: (n,), pixels contiguous and read-only. dark: (n,), or (0,) where there is none.
    """
    bins, is_integer = binning.bins, pixels.dtype.kind != "f"
    totals = np.zeros((LANES, bins + 1), dtype=np.int64 if is_integer else np.float64)
    image = Image(pixels, binning.bin_of, np.uint32(bins), norm, dark, limits)
    account = Account(totals, np.zeros((2, bins), dtype=np.int64), np.zeros((2, bins)))
    if is_integer:
        _add_up(image, np.uintp(binning.columns), binning.tiles, binning.rest, account)
    else:
        _add_runs(image, binning.runs, account)
    return Sums(totals[:, :bins].sum(axis=0).view(EXACT[pixels.dtype.kind]), account.lost, account.lost_norm)


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
    _add_squares(
        Image(pixels, binning.bin_of, np.uint32(binning.bins), norm, dark, limits), binning.runs, intensity, squares
    )
    scatter: NDArray[np.float64] = squares.sum(axis=0)
    return scatter


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
def _add_up(image: Image, columns: np.uintp, tiles: Tiles, rest: NDArray[np.uintp], account: Account) -> None:
    """Add every usable integer of an image to the total of its bin and some lane, and take account of every other."""
    size = (HEIGHT + 1) * (WIDTH + MARGIN) + MARGIN
    room = np.zeros(size + LINE // 4, np.uint32)
    in_lines = -(room.ctypes.data // 4) % (LINE // 4)
    counters, is_unsure = np.zeros(len(tiles.crossings), np.int64), np.zeros(len(tiles.outlines), np.bool_)
    _add_tiles(
        image.pixels,
        columns,
        tiles.outlines,
        tiles.back,
        tiles.masks,
        tiles.quads,
        tiles.kinds,
        room[in_lines : in_lines + size],
        counters,
        image.limits.sure,
        is_unsure,
    )
    totals, crossings = account.totals[0], tiles.crossings
    for k in range(len(counters)):
        totals[np.uintp(crossings[k, 0])] += counters[k]
        totals[np.uintp(crossings[k, 1])] -= counters[k]
    for t in range(len(is_unsure)):
        if is_unsure[t]:
            _put_right(image, columns, tiles.outlines[t], tiles.masks, account)
    _add_runs(image, rest, account)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_tiles(
    pixels: NDArray[Any],
    columns: np.uintp,
    outlines: NDArray[np.uintp],
    back: NDArray[np.uint16],
    masks: NDArray[np.uint8],
    quads: NDArray[np.uint64],
    kinds: NDArray[Any],
    sums: NDArray[np.uint32],
    counters: NDArray[np.int64],
    sure: Any,
    is_unsure: NDArray[np.bool_],
) -> None:
    """Add all crossings to their counters. sums: room for those of a tile; is_unsure: (t,) is set where `_put_right`
    has to look.

    Nothing in here may count references to an array, which numba does with the bus locked, and which for every row
    takes as long as all the rest: it takes no tuples, allocates nothing, and has its loops put in, not called.
    """
    count = len(outlines)
    for t in range(count):
        start, rows, first, last = outlines[t, 0], outlines[t, 1], outlines[t, 3], outlines[t, 4]
        highest = _add_paths(pixels, start, columns, back[t], rows, sums)
        if highest >= sure:
            is_unsure[t] = not _are_sure(pixels, start, columns, masks[outlines[t, 5]], rows, sure)
        ahead = outlines[min(t + 1, count - 1), 0]
        _add_quads(quads[first:last], kinds[first:last], sums, counters, pixels, ahead, columns)


@numba.njit(nogil=True, cache=True, inline="always")
def _add_paths(
    pixels: NDArray[Any],
    start: np.uintp,
    columns: np.uintp,
    back: NDArray[np.uint16],
    rows: np.uintp,
    sums: NDArray[np.uint32],
) -> Any:
    """Put the sums of the lowest 16 bits along the paths of a tile in their places; tell the highest pixel."""
    highest = np.uint32(0)
    place = _STRIDE + _MARGIN
    for row in range(rows):
        before = place - np.uintp(back[row])
        here, above, values = (
            sums[place : place + _WIDTH],
            sums[before : before + _WIDTH],
            pixels[start : start + _WIDTH],
        )
        for c in range(_WIDTH):
            value = np.uint32(values[c])
            highest = max(highest, value)
            here[c] = np.uint32(np.uint16(value)) + above[c]
        start += columns
        place += _STRIDE
    return highest


@numba.njit(nogil=True, cache=True, inline="always")
def _add_quads(
    quads: NDArray[np.uint64],
    kinds: NDArray[Any],
    sums: NDArray[np.uint32],
    counters: NDArray[np.int64],
    pixels: NDArray[Any],
    ahead: np.uintp,
    columns: np.uintp,
) -> None:
    """Add the crossings of a tile to their counters, and meanwhile fetch the pixels of the tile that begins `ahead`."""
    n, group = np.uintp(len(quads)), np.uintp(GROUP)
    line, lines = np.uintp(LINE // pixels.itemsize), np.uintp(WIDTH * pixels.itemsize // LINE + 1)
    in_groups = n - n % group
    rows_left = HEIGHT
    for at in range(_0, in_groups, group):
        _prefetch(quads, at + np.uintp(QUADS_AHEAD))
        _prefetch(kinds, at + np.uintp(QUADS_AHEAD))
        if rows_left > 0:
            for k in range(lines):
                _prefetch(pixels, ahead + k * line)
                _prefetch(pixels, ahead + columns + k * line)
            ahead += _2 * columns
            rows_left -= 2
        for k in range(at, at + group):
            quad = quads[k]
            one, two = sums[np.uintp(quad & _LOW)], sums[np.uintp((quad >> _16) & _LOW)]
            three, four = sums[np.uintp((quad >> _32) & _LOW)], sums[np.uintp(quad >> _48)]
            counters[np.uintp(kinds[k])] += np.int64(np.uint32(one + two + three + four))
    for k in range(in_groups, n):
        quad = quads[k]
        one, two = sums[np.uintp(quad & _LOW)], sums[np.uintp((quad >> _16) & _LOW)]
        three, four = sums[np.uintp((quad >> _32) & _LOW)], sums[np.uintp(quad >> _48)]
        counters[np.uintp(kinds[k])] += np.int64(np.uint32(one + two + three + four))


@numba.njit(nogil=True, cache=True)
def _put_right(
    image: Image, columns: np.uintp, outline: NDArray[np.uintp], masks: NDArray[np.uint8], account: Account
) -> None:
    """Take out again what was added for those rows of a tile with a used pixel that is not sure to be usable."""
    pixels, bin_of, sure, totals = image.pixels, image.bin_of, image.limits.sure, account.totals[0]
    first, rows, own, mask = outline[0], outline[1], outline[2], masks[outline[5]]
    for row in range(rows):
        if not _are_sure(pixels, first + row * columns, columns, mask[row:], _1, sure):
            start, stop = first + row * columns + own, first + row * columns + _WIDTH
            for i in range(start, stop):
                totals[np.uintp(bin_of[i])] -= np.int64(np.uint16(pixels[i]))
            _add_blocks(image, start, stop, account)


@numba.njit(nogil=True, cache=True, inline="always")
def _are_sure(
    pixels: NDArray[Any], start: np.uintp, columns: np.uintp, mask: NDArray[np.uint8], rows: np.uintp, sure: Any
) -> Any:
    """Whether all pixels in the first rows of the mask, which begins at the pixel `start`, are below `sure`."""
    highest = np.uint32(0)
    for row in range(rows):
        values, used = pixels[start : start + _WIDTH], mask[row]
        for c in range(_WIDTH):
            highest = max(highest, np.uint32(values[c]) * np.uint32(used[c]))
        start += columns
    return highest < sure


@numba.njit(nogil=True, cache=True)
def _add_runs(image: Image, runs: NDArray[np.uintp], account: Account) -> None:
    """Add the pixels of runs one by one."""
    for r in range(len(runs)):
        _add_blocks(image, runs[r, 0], runs[r, 1], account)


@numba.njit(nogil=True, cache=True)
def _add_blocks(image: Image, start: np.uintp, stop: np.uintp, account: Account) -> None:
    """Add every usable pixel of start … stop − 1 to the total of its bin and some lane, take account of every other."""
    pixels, bin_of, limits = image.pixels, image.bin_of, image.limits
    lane0, lane1, lane2, lane3 = account.totals[0], account.totals[1], account.totals[2], account.totals[3]
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
            _add_with_care(image, at, at + block, account)
            continue
        for i in range(at, at + block, _4):
            lane0[np.uintp(bin_of[i])] += pixels[i]
            lane1[np.uintp(bin_of[i + _1])] += pixels[i + _1]
            lane2[np.uintp(bin_of[i + _2])] += pixels[i + _2]
            lane3[np.uintp(bin_of[i + _3])] += pixels[i + _3]
    _add_with_care(image, in_blocks, stop, account)


@numba.njit(nogil=True, cache=True)
def _add_with_care(image: Image, start: np.uintp | int, stop: np.uintp | int, account: Account) -> None:
    """As `_add_blocks`, for pixels of which some are not usable."""
    pixels, bin_of, unused, norm, dark, limits = image
    totals, lost, lost_norm = account
    for i in range(start, stop):
        value, b = pixels[i], np.uintp(bin_of[i])
        if b == unused:
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
    image: Image, runs: NDArray[np.uintp], intensity: NDArray[np.float64], squares: NDArray[np.float64]
) -> None:
    """See `scatter_of`. squares: (LANES, bins)."""
    pixels, bin_of, unused, norm, dark, limits = image
    has_dark = len(dark) > 0
    for r in range(len(runs)):
        for i in range(runs[r, 0], runs[r, 1]):
            value, b = pixels[i], np.uintp(bin_of[i])
            if b == unused or not (limits.smallest <= value <= limits.largest) or value == limits.hole:
                continue
            signal = np.float64(value) - np.float64(dark[i]) if has_dark else np.float64(value)
            off = signal - intensity[b] * np.float64(norm[i])
            squares[i % _4, b] += off * off
