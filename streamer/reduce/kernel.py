"""The pixels of an image added up per bin, exactly, in one pass on one core: the compiled loops and what they need.

A plain histogram adds each pixel to its bin: three loads and a store per pixel, and wherever neighbours share a bin the
second addition waits for the first. But which neighbours share a bin is known as soon as the geometry is. So the image
is cut into *tiles*, and in each tile *paths* lead from the first row to the last, side by side, a pixel in every row,
each row as far to the left or right of the one above as keeps most paths in their bins (`paths` chooses). Per tile and
frame, vector instructions add up all paths from the top: a sum at every pixel. What a path collects within a bin is
the sum where it leaves that bin, less the sum where it entered. So the sums are only needed at *crossings*, the last
pixels before the bin changes: 1000 bins on four million pixels are 600 000. Crossings from the same bin into the same
other one go to one counter, and four of them of a tile together make a *quad*, one addition. The sums of a tile's last
row are carried into the tile below, so paths end only with the image, or where nothing below is used. At the end every
counter is given to the bin left, and taken from the bin entered.

Sums are uint32, which hold four times the lowest 16 bits of 16 384 rows whatever these are. So pixels that are not used
(gaps, beamstop, outside the range) may hold anything: a path enters and leaves them like a bin. A used pixel that is
NODATA, saturated or beyond 16 bits is found because its tile has more such pixels than its gaps have; what was added
for its row of the tile is then taken out again. Such rows, pixels that are not integers, and images too small, or with
bins too narrow, for paths to pay are added pixel by pixel: in blocks of BLOCK that are checked first, neighbours in
sums of their own (LANES), and only in a block with a pixel that is none with a look at each. Totals are int64 or
float64, so no count is ever lost.

Tried on four million uint16 and 1000 bins, and left out: pieces of up to four neighbours along a row, added at once
(1.6 million of them, half as long again); for every piece of a path the difference of two sums (a third longer); quads
in an order in which neighbours have different counters, and all tables in huge pages (no difference). What pays,
besides the paths: a loop over the tiles that counts no references (a third, see `_add_tiles`).

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
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

__all__ = ["HEIGHT", "MARGIN", "SURE", "WIDTH", "Binning", "Limits", "PerBin", "Reduction", "Tiles"]

HEIGHT, WIDTH = 24, 128
"""Rows and columns of a tile: the pixels and sums of two take 41 kB of a first-level cache of 48 kB. With 32 rows there
are 3 % fewer quads, and an image takes 5 % longer."""

MARGIN = 16
"""Zeros beside every row of sums, where paths come from outside: no step is longer. Rows stay in whole cache lines,
vectors that cross lines are stored at half the speed."""

ROOM = (HEIGHT + 1) * (WIDTH + MARGIN) + MARGIN
"""Sums of a tile, whole cache lines of them."""

SURE = 2**16
"""Values below are added without a look: their lowest 16 bits are all of them."""

LANES = 4
"""Adding every fourth pixel to sums of its own more than doubles the speed. The loops spell the four out."""

BLOCK = 64
"""Pixels looked at together, in a loop the compiler turns into vectors, before any of them is added."""

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
    hole: a value that is none.
    """

    smallest: Any
    largest: Any
    top: Any
    hole: Any


class Tiles(NamedTuple):
    """Blocks of the image, up to HEIGHT × WIDTH pixels, with the crossings of their paths.

    A place among the sums of a tile is (row + 1) · (WIDTH + MARGIN) + MARGIN + column; row −1 is the last of the tile
    above. Place 0 is always zero.

    outlines: (t, 8) uintp: first pixel, number of rows, number of its strip, first column whose pixels are not another
        tile's, where its quads begin and end, and its gaps. The first and second, third and fourth … are of different
        strips, for which some are empty, as is the last: no rows, in a strip of their own.
    back: (t, HEIGHT) uint16, distance among the sums from the pixels of a row to those before on their paths.
    gaps: (g, 2) uint32, first pixel and length of stretches along a row that are not used, or another tile's.
    quads: (m,) uint64, four places of 16 bits.
    kinds: (m,) uint16 or uint32, which crossing the four are.
    crossings: (k, 2) uint32, bin that is left and bin that is entered, `Binning.bins` for none.
    """

    outlines: NDArray[np.uintp]
    back: NDArray[np.uint16]
    gaps: NDArray[np.uint32]
    quads: NDArray[np.uint64]
    kinds: NDArray[Any]
    crossings: NDArray[np.uint32]


class PerBin(NamedTuple):
    """What one image says of every bin. All arrays: (bins,).

    counts: Σ raw counts over valid pixels; uint64 or int64, exact, for integer images, else float64.
    intensity, sigma: float64, counts per pixel of the normal incidence and their σ from counting, by the formulae of
        `azimuthal`; NaN in a bin without a valid pixel.
    pixels: valid pixels, int64.   norm: Σ of their normalisation, float64, NaN where there is none.
    invalid: NODATA pixels of this image, saturated: pixels above saturation; neither counts what is not used.
    total_counts, total_pixels: Σ counts and Σ pixels over all bins.
    """

    counts: NDArray[Any]
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64]
    pixels: NDArray[np.int64]
    norm: NDArray[np.float64]
    invalid: int
    saturated: int
    total_counts: int | float
    total_pixels: int


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


class Image(NamedTuple):
    """What is added up. All arrays: (n,); dark (0,) where there is none. unused: in bin_of, "not used"."""

    pixels: NDArray[Any]
    bin_of: NDArray[Any]
    unused: np.uint32
    norm: NDArray[np.float32]
    dark: NDArray[np.float32]
    limits: Limits


class Account(NamedTuple):
    """Where it is added.

    totals: (LANES, bins + 1) Σ over usable pixels; the last bin takes what is not used.
    lost: (2, bins) int64, pixels that are NODATA | saturated.
    lost_norm: (2, bins) float64, Σ norm | Σ dark of those.
    """

    totals: NDArray[Any]
    lost: NDArray[np.int64]
    lost_norm: NDArray[np.float64]


class Reduction:
    """Images of one geometry to numbers per bin, in one call of compiled code each.

    norm: (n,), what a pixel sees of one count. dark: (n,), or (0,) where there is none.
    """

    def __init__(self, binning: Binning, norm: NDArray[np.float32], dark: NDArray[np.float32]) -> None:
        sum_dark = binning.per_bin(dark) if len(dark) else np.zeros(binning.bins)
        sums = binning.per_bin(), binning.per_bin(norm), sum_dark
        self._of_integers = (*binning.tiles, binning.rest, binning.bin_of, norm, dark, *sums)
        self._of_floats = binning.runs, binning.bin_of, norm, dark, *sums
        self._of_squares = binning.runs, binning.bin_of, norm, dark

    def __call__(self, image: NDArray[Any], limits: NDArray[Any]) -> PerBin:
        """See `PerBin`. image: (rows, columns), writable as compiled code knows it, but only read.
        limits: (4,) of the image's dtype, see `Limits`."""
        if image.dtype.kind == "f":
            return PerBin(*_reduce_floats(image, limits, *self._of_floats))
        # uint64 is added up as int64: no detector counts to 2⁶³.
        found = _reduce_integers(image, limits, *self._of_integers)
        return PerBin(*found) if image.dtype.kind == "i" else PerBin(found[0].view(np.uint64), *found[1:])

    def scatter(self, image: NDArray[Any], limits: NDArray[Any], intensity: NDArray[np.float64]) -> NDArray[np.float64]:
        """(bins,) Σ (pixel − dark − intensity · norm)² over the usable pixels of each bin; arguments as for a call.

        intensity: (bins,), what is expected of a pixel with norm 1.
        """
        squares = np.zeros((LANES, len(intensity)))
        _add_squares(image, limits, *self._of_squares, intensity, squares)
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
        # To read, to keep in the second level (the first is full of sums), data.
        builder.call(llvm_prefetch, [address, flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_prefetch_code)


def _add_paths_code(
    typing_context: Any,
    pixels: Any,
    columns: Any,
    outlines: Any,
    tile: Any,
    back: Any,
    carried: Any,
    sums: Any,
    sure: Any,
    unsure: Any,
) -> Any:
    """Put the sums of the lowest 16 bits along the paths of a tile and of the next in their places, beginning with
    those carried here from above; carry the last row's on; put in `unsure` how many pixels are not below `sure`.

    A row is one vector of WIDTH numbers, which LLVM cuts into those of the processor. What numba makes of loops over
    the columns takes longer: for every row it asks whether rows overlap, and adds up the count. Two tiles go side by
    side, because a row waits for the sums of the row above to be stored.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pixels, columns, outlines, tile, back, carried, sums, sure, unsure = (
            make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value  # type: ignore[no-untyped-call]
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        size, word, pixel = columns.type, ir.IntType(32), context.get_data_type(signature.args[0].dtype)
        values, totals = ir.VectorType(pixel, WIDTH), ir.VectorType(word, WIDTH)
        stride, margin = size(WIDTH + MARGIN), size(MARGIN)

        def place(array: Any, index: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(array, [index]), kind.as_pointer())

        def load(array: Any, index: Any, kind: Any) -> Any:
            return builder.load(place(array, index, kind), align=kind.element.width // 8)

        def store(value: Any, array: Any, index: Any) -> None:
            builder.store(value, place(array, index, value.type), align=value.type.element.width // 8)

        def moved(index: Any, by: Any, times: Any) -> Any:
            return builder.add(index, builder.mul(by, times))

        bound = builder.trunc(sure, pixel) if pixel.width < word.width else sure
        bounds = builder.insert_element(values(ir.Undefined), bound, word(0))
        bounds = builder.shuffle_vector(bounds, bounds, ir.Constant(totals, None))

        class Path:
            """Where a tile lies, and what has been found in it."""

            def __init__(self, beside: int) -> None:
                number = builder.add(tile, size(beside))
                self.start, self.rows, strip = (
                    builder.load(builder.gep(outlines, [moved(size(k), number, size(8))])) for k in range(3)
                )
                self.sums = builder.gep(sums, [size(beside * ROOM)])
                self.back = builder.gep(back, [builder.mul(number, size(HEIGHT))])
                self.above = builder.mul(strip, size(WIDTH))
                self.found = cgutils.alloca_once_value(builder, values(None))  # type: ignore[no-untyped-call]
                store(load(carried, self.above, totals), self.sums, margin)

            def add(self, row: Any) -> None:
                value = load(pixels, moved(self.start, row, columns), values)
                is_unsure = builder.sext(builder.icmp_unsigned(">=", value, bounds), values)
                builder.store(builder.sub(builder.load(self.found), is_unsure), self.found)
                here = moved(margin, builder.add(row, size(1)), stride)
                distance = builder.zext(builder.load(builder.gep(self.back, [row])), size)
                if pixel.width < word.width:
                    low = builder.zext(value, totals)
                else:
                    low = builder.and_(value, totals([0xFFFF] * WIDTH))
                store(builder.add(low, load(self.sums, builder.sub(here, distance), totals)), self.sums, here)

            def finish(self) -> Any:
                store(load(self.sums, moved(margin, self.rows, stride), totals), carried, self.above)
                lanes = builder.load(self.found)
                lanes = builder.zext(lanes, totals) if pixel.width < word.width else lanes
                kind = ir.FunctionType(word, [totals])
                name = f"llvm.vector.reduce.add.v{WIDTH}i32"
                add_up = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
                return builder.call(add_up, [lanes])

        one, other = paths = Path(0), Path(1)
        fewer = builder.select(builder.icmp_unsigned("<", one.rows, other.rows), one.rows, other.rows)
        with cgutils.for_range(builder, fewer, intp=size) as loop:
            one.add(loop.index)
            other.add(loop.index)
        for beside, path in enumerate(paths):
            with cgutils.for_range_slice(builder, fewer, path.rows, size(1), size) as (row, _):
                path.add(row)
            builder.store(path.finish(), builder.gep(unsure, [size(beside)]))
        return context.get_dummy_value()

    arguments = pixels, types.uintp, outlines, types.uintp, back, carried, sums, types.uint32, unsure
    return types.void(*arguments), generate


_add_paths: Any = intrinsic(_add_paths_code)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _reduce_integers(
    image: NDArray[Any],
    limits: NDArray[Any],
    outlines: NDArray[np.uintp],
    back: NDArray[np.uint16],
    gaps: NDArray[np.uint32],
    quads: NDArray[np.uint64],
    kinds: NDArray[Any],
    crossings: NDArray[np.uint32],
    rest: NDArray[np.uintp],
    bin_of: NDArray[Any],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    sum_pixels: NDArray[np.int64],
    sum_norm: NDArray[np.float64],
    sum_dark: NDArray[np.float64],
) -> Any:
    """See `Reduction`; what is in `PerBin`, with the counts as int64."""
    bins, pixels, columns = len(sum_pixels), image.reshape(-1), np.uintp(image.shape[1])
    room = np.zeros(2 * ROOM + LINE // 4, np.uint32)
    carried = np.zeros((image.shape[1] // WIDTH + 2) * WIDTH, np.uint32)
    in_lines = -(room.ctypes.data // 4) % (LINE // 4)
    counters, is_unsure = np.zeros(len(crossings), np.int64), np.zeros(len(outlines), np.bool_)
    highest_sure = min(np.int64(limits[1]), np.int64(SURE - 1))
    if limits[3] >= 0:
        highest_sure = min(highest_sure, np.int64(limits[3]) - 1)
    sure = np.uint32(highest_sure + 1)
    _add_tiles(
        pixels,
        columns,
        outlines,
        back,
        gaps,
        quads,
        kinds,
        room[in_lines : in_lines + 2 * ROOM],
        carried,
        counters,
        sure,
        np.zeros(2, np.uint32),
        is_unsure,
    )
    account = Account(np.zeros((LANES, bins + 1), np.int64), np.zeros((2, bins), np.int64), np.zeros((2, bins)))
    for k in range(len(counters)):
        account.totals[0, np.uintp(crossings[k, 0])] += counters[k]
        account.totals[0, np.uintp(crossings[k, 1])] -= counters[k]
    what_counts = Limits(limits[0], limits[1], limits[2], limits[3])
    whole = Image(pixels, bin_of, np.uint32(bins), norm, dark, what_counts)
    for t in range(len(is_unsure)):
        if is_unsure[t]:
            _put_right(whole, columns, outlines[t], sure, account)
    _add_runs(whole, rest, account)
    return _curve_of(account, sum_pixels, sum_norm, sum_dark)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _reduce_floats(
    image: NDArray[Any],
    limits: NDArray[Any],
    runs: NDArray[np.uintp],
    bin_of: NDArray[Any],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    sum_pixels: NDArray[np.int64],
    sum_norm: NDArray[np.float64],
    sum_dark: NDArray[np.float64],
) -> Any:
    """See `Reduction`; what is in `PerBin`."""
    bins = len(sum_pixels)
    account = Account(np.zeros((LANES, bins + 1)), np.zeros((2, bins), np.int64), np.zeros((2, bins)))
    what_counts = Limits(limits[0], limits[1], limits[2], limits[3])
    _add_runs(Image(image.reshape(-1), bin_of, np.uint32(bins), norm, dark, what_counts), runs, account)
    return _curve_of(account, sum_pixels, sum_norm, sum_dark)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _curve_of(
    account: Account, sum_pixels: NDArray[np.int64], sum_norm: NDArray[np.float64], sum_dark: NDArray[np.float64]
) -> Any:
    """What is in `PerBin`, by the formulae of `azimuthal`. sum_…: (bins,) over all pixels in use."""
    totals, lost, lost_norm = account
    bins = len(sum_pixels)
    counts, intensity, sigma = np.empty(bins, totals.dtype), np.empty(bins), np.empty(bins)
    valid, norm = np.empty(bins, np.int64), np.empty(bins)
    invalid = saturated = pixels = 0
    total = totals[0, 0] * 0
    for b in range(bins):
        counted = totals[0, b] + totals[1, b] + totals[2, b] + totals[3, b]
        counts[b] = counted
        valid[b] = sum_pixels[b] - lost[0, b] - lost[1, b]
        norm[b] = sum_norm[b] - lost_norm[0, b] if valid[b] > 0 else np.nan
        intensity[b] = (np.float64(counted) - (sum_dark[b] - lost_norm[1, b])) / norm[b]
        sigma[b] = np.sqrt(max(np.float64(counted), 1.0)) / norm[b]
        invalid += lost[0, b]
        saturated += lost[1, b]
        total += counted
        pixels += valid[b]
    return counts, intensity, sigma, valid, norm, invalid, saturated, total, pixels


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_tiles(
    pixels: NDArray[Any],
    columns: np.uintp,
    outlines: NDArray[np.uintp],
    back: NDArray[np.uint16],
    gaps: NDArray[np.uint32],
    quads: NDArray[np.uint64],
    kinds: NDArray[Any],
    sums: NDArray[np.uint32],
    carried: NDArray[np.uint32],
    counters: NDArray[np.int64],
    sure: Any,
    unsure: NDArray[np.uint32],
    is_unsure: NDArray[np.bool_],
) -> None:
    """Add all crossings to their counters. sums: room for those of a tile; carried: (strips · WIDTH,) the last of those
    above; is_unsure: (t,) is set where `_put_right` has to look.

    Nothing in here may count references to an array, which numba does with the bus locked, and which for every row
    takes as long as all the rest: it takes no tuples, allocates nothing, and has its loops put in, not called.
    """
    count = np.uintp(len(outlines) - 1)
    for t in range(_0, count, _2):
        _add_paths(pixels, columns, outlines, t, back, carried, sums, sure, unsure)
        for beside in range(_2):
            tile = t + beside
            if unsure[beside] > 0:
                found = _unsure_in_gaps(pixels, gaps, outlines[tile, 6], outlines[tile, 7], sure)
                is_unsure[tile] = unsure[beside] != found
            first, last, ahead = outlines[tile, 4], outlines[tile, 5], outlines[min(tile + _2, count), 0]
            own = sums[beside * np.uintp(ROOM) : (beside + _1) * np.uintp(ROOM)]
            _add_quads(quads[first:last], kinds[first:last], own, counters, pixels, ahead, columns)


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
    image: Image,
    columns: np.uintp,
    outline: NDArray[np.uintp],
    sure: Any,
    account: Account,
) -> None:
    """Take out again what was added for those rows of a tile with a used pixel that is not sure to be usable."""
    pixels, bin_of, totals = image.pixels, image.bin_of, account.totals[0]
    first, rows, own = outline[0], outline[1], outline[3]
    for row in range(rows):
        start, stop = first + row * columns + own, first + row * columns + _WIDTH
        is_unsure = False
        for i in range(start, stop):
            is_unsure |= np.uint32(pixels[i]) >= sure and bin_of[i] != image.unused
        if is_unsure:
            for i in range(start, stop):
                totals[np.uintp(bin_of[i])] -= np.int64(np.uint16(pixels[i]))
            _add_blocks(image, start, stop, account)


@numba.njit(nogil=True, cache=True, inline="always")
def _unsure_in_gaps(pixels: NDArray[Any], gaps: NDArray[np.uint32], first: np.uintp, last: np.uintp, sure: Any) -> Any:
    """How many pixels of the gaps first … last − 1 are not below `sure`."""
    found = np.uint32(0)
    for gap in range(first, last):
        start = np.uintp(gaps[gap, _0])
        for i in range(start, start + np.uintp(gaps[gap, _1])):
            found += np.uint32(np.uint32(pixels[i]) >= sure)
    return found


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
    image: NDArray[Any],
    limits: NDArray[Any],
    runs: NDArray[np.uintp],
    bin_of: NDArray[Any],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    intensity: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> None:
    """See `Reduction.scatter`. squares: (LANES, bins)."""
    pixels, unused, has_dark = image.reshape(-1), np.uintp(len(intensity)), len(dark) > 0
    smallest, largest, hole = limits[0], limits[1], limits[3]
    for r in range(len(runs)):
        for i in range(runs[r, 0], runs[r, 1]):
            value, b = pixels[i], np.uintp(bin_of[i])
            if b == unused or not (smallest <= value <= largest) or value == hole:
                continue
            signal = np.float64(value) - np.float64(dark[i]) if has_dark else np.float64(value)
            off = signal - intensity[b] * np.float64(norm[i])
            squares[i % _4, b] += off * off
