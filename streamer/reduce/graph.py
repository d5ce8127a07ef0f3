"""The reduction of `azimuthal` as an ONNX graph, for devices that the compiled loops of `kernel` do not reach.

    frames  (slots, pixels + at least one zero)  in the image's dtype: images wait here for their turn
    slot    (batch,) int64                       which of them are reduced
    limits  (batch, 4) float64                   smallest, largest, top, hole of `kernel.Limits`

What comes out means the same as `kernel.PerBin`, by the same formulae, in float64. Counts of integer images are
exact.

The layout. Pixels are gathered by bin, and each bin is filled up to whole *rows* of `width` pixels with places that
point to the zero behind the image. A row is then one sum along the last axis: exact in float32 while width × the
largest count stays below 2²⁴, so 256 pixels of uint16; images of 32 bits are summed in float64. The sums of rows are
gathered by bin again, in float64, until each bin has one row. 1000 bins on four million pixels need two such levels,
3 % more places than pixels, and 18 MB of indices. This in place of a ScatterElements that adds each pixel to its bin,
because
  - sums along an axis run in parallel everywhere, in one order: the answer is the same every time. ONNX Runtime's
    ScatterElements adds one by one on the CPU, and with atomic operations on CUDA;
  - it is exact without integers. ONNX Runtime's CUDA reduction took int32 for float32 until its pull request 29879;
  - TensorRT refuses to scatter more indices than there are outputs (its issue 3650).
On one core of a CPU the graph takes half as long as the same with ScatterElements (four million uint16: 0.17 against
0.31 s, both 36 MB on disk), and some fifty times as long as the kernel. It is made for thousands of cores.

No operator is used that ONNX Runtime lacks on CUDA, none that looks at a value to decide what to do next, and none
with an output whose shape depends on values: the graph can be captured as a CUDA graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamer.graphs import BESIDE, FRAMES, LIMITS, REFERENCE, SLOT, Graph
from streamer.reduce.azimuthal import Binned, limits_of
from streamer.reduce.curves import Rebinning
from streamer.reduce.reference import LEAST_RATIO, SIGNAL_SCALE, SYSTEMATIC, Reference

__all__ = [
    "Bins",
    "channels_graph",
    "fingerprint",
    "has_hole",
    "limits_row",
    "per_bin",
    "places",
    "reference_rows",
    "rows_of",
]

VERSION = 2
"""Of what is drawn here; to be raised with every change of it, for graphs are kept on disk."""

MOST_IN_ROW = 256
"""Pixels. 256 × 65535 < 2²⁴, and a row is what eight warps of a GPU add in one step."""

LEAST_IN_ROW = 8

SPARE = 4
"""Rows per bin, on average, that make what is filled up small against what is there: an eighth."""

ROWS_AT_ONCE = 64
"""Sums of rows that the next level adds."""

IN_FLOAT32 = (np.dtype(np.uint8), np.dtype(np.uint16))
"""Images whose rows float32 adds exactly."""


@dataclass(frozen=True, slots=True)
class Bins:
    """The tensors with what `kernel.PerBin` says of every frame, float64.

    invalid, saturated: (batch,), the others (batch, bins).
    """

    intensity: str
    sigma: str
    counts: str
    pixels: str
    norm: str
    invalid: str
    saturated: str


def per_bin(graph: Graph, binned: Binned, dtype: DTypeLike, *, has_hole: bool) -> Bins:
    """Draw the reduction of images of one dtype, its inputs included.

    has_hole: whether the value that marks a pixel without measurement lies among those that are one; see `has_hole`.
    """
    return _Drawing(graph, binned, np.dtype(dtype), has_hole).per_bin()


def places(pixels: int) -> int:
    """Length of a row of `frames`: the pixels, and behind them zeros, at least one, up to a multiple of 128."""
    return pixels + 128 - pixels % 128


def limits_row(dtype: np.dtype[Any], nodata: int | None, saturation: int | None) -> NDArray[np.float64]:
    """(4,) what goes into `limits` for a frame; nodata, saturation: see `Integrator.integrate`."""
    limits = limits_of(dtype, nodata, saturation)
    return np.array([limits.smallest, limits.largest, limits.top, limits.hole], dtype=np.float64)


def has_hole(limits: NDArray[np.float64]) -> bool:
    """Whether a value that marks a pixel without measurement has to be looked for among the others, from (4,) limits.

    Detectors mark with the largest value of a dtype, or with a negative one, which the limits exclude anyway.
    """
    smallest, _, top, hole = limits
    return bool(smallest <= hole <= top)


def fingerprint(binned: Binned, rebinning: Rebinning) -> str:
    """The same for `per_bin` and `channels_graph` that are drawn alike, whatever that came from; 64 hex digits."""
    numbers = (VERSION, binned.shape, binned.sigma, binned.binning.bins, rebinning.points, rebinning.inside)
    digest = hashlib.sha256(repr(numbers).encode())
    on_detector = (binned.binning.bin_of, binned.norm, binned.dark)
    for array in (*on_detector, rebinning.filled, rebinning.starts):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def rows_of(bin_of: NDArray[Any], bins: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Sort things by bin and cut each bin into rows.

    bin_of: (n,) 0 … bins − 1, or `bins` for things that are left out.
    Returns (rows, width) number of a thing, n where a row is filled up, and (rows,) the bin of every row. A bin without
    a thing has a row, too.
    """
    things = np.bincount(bin_of, minlength=bins + 1)[:bins]
    rows = np.maximum(-(-things // width), 1)
    order = np.argsort(bin_of, kind="stable")[: things.sum()]
    first_row, first_thing = np.cumsum(rows) - rows, np.cumsum(things) - things
    place = np.arange(len(order)) + np.repeat(first_row * width - first_thing, things)
    index = np.full(rows.sum() * width, len(bin_of), dtype=np.int32)
    index[place] = order
    return index.reshape(-1, width), np.repeat(np.arange(bins), rows)


class _Drawing:
    """The reduction, half drawn. `wide` is the dtype in which pixels are looked at and rows of them added."""

    def __init__(self, graph: Graph, binned: Binned, dtype: np.dtype[Any], has_hole: bool) -> None:
        self.graph, self.binned, self.dtype, self.has_hole = graph, binned, dtype, has_hole
        self.wide = np.dtype(np.float32 if dtype in IN_FLOAT32 else np.float64)
        self.bins, pixels = binned.binning.bins, binned.norm.size
        used = np.bincount(binned.binning.bin_of, minlength=self.bins + 1)[: self.bins]
        mean = used.sum() / max(np.count_nonzero(used), 1)
        width = int(np.clip(2 ** np.floor(np.log2(max(mean / SPARE, 1))), LEAST_IN_ROW, MOST_IN_ROW))
        self.index, self.bin_of_row = rows_of(binned.binning.bin_of, self.bins, width)
        self.is_pixel = self.index < pixels
        self.places = graph.constant(self.index)
        self.levels = list(_levels(self.bin_of_row, self.bins))

    def per_bin(self) -> Bins:
        graph, dark = self.graph, self.binned.dark
        x, limits = self._pixels(), self._limits()
        is_usable = self._is_among(x, limits[0], limits[1], limits[3])
        is_measured = self._is_among(x, limits[0], limits[2], limits[3])
        signal = graph("Where", is_usable, x, graph.scalar(0, self.wide))
        counts = self._sum(graph.total(signal, -1))
        pixels_of_row = self._kept(is_usable, graph.cast(self._is_pixel(), np.float32), np.float32)
        pixels = self._sum(pixels_of_row)
        norm_of_pixel = self._placed(self.binned.norm)
        norm = self._sum(self._norm_of_row(is_usable, norm_of_pixel, pixels_of_row))
        norm = graph("Where", graph("Greater", pixels, graph.scalar(0)), norm, graph.scalar(np.nan))
        is_saturated = graph("And", is_measured, graph("Not", is_usable))
        saturated = graph.total(graph.cast(graph.total(graph.cast(is_saturated, np.float32), -1), np.float64), -1)
        usable_or_saturated = graph("Add", graph.total(pixels, -1), saturated)
        invalid = graph("Sub", graph.scalar(float(self.is_pixel.sum())), usable_or_saturated)
        net = counts
        if dark.size:
            net = graph("Sub", counts, self._sum(self._kept(is_usable, self._wide(self._placed(dark)), np.float64)))
        intensity = graph("Div", net, norm)
        if self.binned.sigma == "poisson":
            variance = graph("Max", counts, graph.scalar(1))
        else:
            variance = self._scatter(is_usable, x, intensity, norm_of_pixel, pixels)
        sigma = graph("Div", graph("Sqrt", variance), norm)
        return Bins(intensity, sigma, counts, pixels, norm, invalid, saturated)

    def _pixels(self) -> str:
        """(batch, rows, width) the pixels in `wide`."""
        graph = self.graph
        frames = graph.input(FRAMES, self.dtype, ["slots", places(self.binned.norm.size)])
        chosen = graph("Gather", frames, graph.input(SLOT, np.int64, ["batch"]), axis=0)
        return graph.cast(graph("Gather", chosen, self.places, axis=1), self.wide)

    def _limits(self) -> list[str]:
        """Four tensors (batch, 1, 1) in `wide`."""
        graph = self.graph
        limits = graph.cast(graph.input(LIMITS, np.float64, ["batch", 4]), self.wide)
        columns = [graph("Gather", limits, graph.constant(np.array([i])), axis=1) for i in range(4)]
        return [graph("Unsqueeze", column, graph.axes(2)) for column in columns]

    def _is_among(self, x: str, smallest: str, largest: str, hole: str) -> str:
        graph = self.graph
        is_among = graph("LessOrEqual", x, largest)
        if self.dtype.kind != "u":
            is_among = graph("And", is_among, graph("GreaterOrEqual", x, smallest))
        if self.has_hole:
            is_among = graph("And", is_among, graph("Not", graph("Equal", x, hole)))
        return is_among

    def _placed(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(rows, width) what belongs to the pixels; 0 where a row is filled up."""
        return np.append(values, np.float32(0))[self.index]

    def _is_pixel(self) -> str:
        """(rows, width) whether there is a pixel, or a row filled up. ONNX Runtime works it out once, when it loads."""
        return self.graph("Less", self.places, self.graph.scalar(self.binned.norm.size, np.int32))

    def _wide(self, values: NDArray[np.float32]) -> str:
        """The values in float64, and half as many bytes on disk."""
        return self.graph.cast(self.graph.constant(values), np.float64)

    def _kept(self, is_usable: str, values: str, dtype: DTypeLike) -> str:
        """(batch, rows) float64, the sum over a row's usable pixels of what belongs to them, added in dtype."""
        graph = self.graph
        kept = graph("Where", is_usable, values, graph.scalar(0, dtype))
        return graph.cast(graph.total(kept, -1), np.float64)

    def _norm_of_row(self, is_usable: str, norm: NDArray[np.float32], pixels_of_row: str) -> str:
        """(batch, rows) float64. What is added in float32 is the difference from the row's mean: few digits to lose."""
        graph = self.graph
        mean = norm.sum(axis=1, dtype=np.float64) / np.maximum(self.is_pixel.sum(axis=1), 1)
        difference = np.where(self.is_pixel, norm - mean[:, None], 0).astype(np.float32)
        sums = self._kept(is_usable, graph.constant(difference), np.float32)
        return graph("Add", sums, graph("Mul", pixels_of_row, graph.constant(mean)))

    def _sum(self, rows: str) -> str:
        """(batch, bins) float64, the sums of rows added up."""
        graph = self.graph
        rows = graph.cast(rows, np.float64)
        for index in self.levels:
            # One row of zeros behind the others, for the places that are filled up.
            rows = graph("Pad", rows, graph.axes(0, 0, 0, 1))
            rows = graph.total(graph("Gather", rows, graph.constant(index), axis=1), -1)
        return rows

    def _scatter(self, is_usable: str, x: str, intensity: str, norm: NDArray[np.float32], pixels: str) -> str:
        """(batch, bins) Σ (pixel − dark − I norm)², at least 1 for integers; NaN for fewer than two pixels."""
        graph, least = self.graph, 0.0 if self.dtype.kind == "f" else 1.0
        of_row = graph("Unsqueeze", graph("Gather", intensity, graph.constant(self.bin_of_row), axis=1), graph.axes(2))
        expected = graph("Mul", of_row, self._wide(norm))
        if self.binned.dark.size:
            expected = graph("Add", expected, self._wide(self._placed(self.binned.dark)))
        off = graph("Sub", graph.cast(x, np.float64), expected)
        off = graph("Where", graph("And", is_usable, self._is_pixel()), off, graph.scalar(0))
        squares = self._sum(graph.total(graph("Mul", off, off), -1))
        is_known = graph("Greater", pixels, graph.scalar(1))
        return graph("Where", is_known, graph("Max", squares, graph.scalar(least)), graph.scalar(np.nan))


def _levels(bin_of: NDArray[np.intp], bins: int) -> Iterator[NDArray[np.int32]]:
    """Indices that gather rows by bin, one array a level, until every bin has one row."""
    while len(bin_of) > bins:
        most = int(np.bincount(bin_of).max())
        index, bin_of = rows_of(bin_of, bins, min(most, ROWS_AT_ONCE))
        yield index


def channels_graph(graph: Graph, bins: Bins, rebinning: Rebinning) -> tuple[str, str, str]:
    """What `reference.channels` makes of the bins on the model's grid, (batch, 8, points) float32, and the curve there:
    I and σ, (batch, points) float64.

    Each frame brings its reference along, by the inputs REFERENCE and BESIDE; see `reference_rows`.
    """
    I, sigma = _rebinned(graph, bins, rebinning)
    zero, one = graph.scalar(0), graph.scalar(1)
    measured = _is_measured(graph, I, sigma)
    value, error = graph("Where", measured, I, zero), graph("Where", measured, sigma, one)
    logs = _log10(graph, graph("Max", value, error))
    median = _median(graph, logs, measured, rebinning.points)
    against = _compared(graph, value, error, measured, rebinning.points)
    significance = graph("Mul", graph.asinh(graph("Div", value, error)), graph.scalar(SIGNAL_SCALE))
    floor = graph("Mul", graph("Exp", graph("Mul", median, graph.scalar(np.log(10)))), graph.scalar(LEAST_RATIO))
    I_ref = graph("Max", graph("Where", against.known, against.I_ref, one), floor)
    root = graph("Where", against.known, against.root, error)
    flags, known = graph.cast(measured, np.float64), graph.cast(against.known, np.float64)
    rows = (
        graph("Where", measured, graph("Sub", logs, median), zero),
        significance,
        flags,
        graph("Where", against.known, graph.asinh(against.z), zero),
        known,
        graph("Where", measured, graph("Sub", _log10(graph, root), median), zero),
        graph("Where", against.known, graph("Sub", _log10(graph, I_ref), median), zero),
        graph("Mul", graph.asinh(against.excess), flags),
    )
    stacked = graph("Concat", *(graph("Unsqueeze", row, graph.axes(1)) for row in rows), axis=1)
    has_photons = graph("Greater", graph("ReduceMax", value, graph.axes(-1), keepdims=1), zero)
    seen = graph("Where", graph("Unsqueeze", has_photons, graph.axes(1)), stacked, graph.scalar(np.nan))
    return graph.cast(seen, np.float32), I, sigma


def reference_rows(reference: Reference | None, stability: float, points: int) -> dict[str, NDArray[np.float64]]:
    """What goes into REFERENCE, (2, points): I and σ, NaN without one, and BESIDE, (2,): noise factor, stability."""
    if reference is None:
        return {REFERENCE: np.full((2, points), np.nan), BESIDE: np.array([1.0, stability])}
    curve = np.stack((reference.I, reference.sigma)).astype(np.float64)
    return {REFERENCE: curve, BESIDE: np.array([reference.noise, stability])}


@dataclass(frozen=True, slots=True)
class _Compared:
    """`reference.compare`. known: (batch, points) bool. I_ref, z, root: (batch, points), arbitrary where not known.
    excess: (batch, 1), 0 where nothing is known."""

    known: str
    I_ref: str
    z: str
    root: str
    excess: str


def _compared(graph: Graph, I: str, sigma: str, measured: str, points: int) -> _Compared:
    """I, sigma: (batch, points), 0 and 1 where not measured."""
    zero, one = graph.scalar(0), graph.scalar(1)
    both = graph.input(REFERENCE, np.float64, ["batch", 2, points])
    I_ref, sigma_ref = (graph("Gather", both, graph.constant(np.array(i)), axis=1) for i in range(2))
    known = graph("And", measured, _is_measured(graph, I_ref, sigma_ref))
    I_ref, sigma_ref = graph("Where", known, I_ref, zero), graph("Where", known, sigma_ref, one)
    beside = graph.input(BESIDE, np.float64, ["batch", 2])
    noise, stability = (graph("Gather", beside, graph.constant(np.array([i])), axis=1) for i in range(2))
    flags, f2 = graph.cast(known, np.float64), graph("Mul", noise, noise)

    def product(*factors: str) -> str:
        found = factors[0]
        for factor in factors[1:]:
            found = graph("Mul", found, factor)
        return found

    def total(values: str) -> str:
        return graph("Unsqueeze", graph.total(values, -1), graph.axes(1))

    own, theirs = product(sigma, sigma), product(sigma_ref, sigma_ref)
    beyond = product(I_ref, I_ref, graph.scalar(SYSTEMATIC**2))
    significance = graph("Div", product(I_ref, I_ref), theirs)
    has = graph("Greater", total(flags), zero)
    shorter = graph("Div", total(graph("Div", product(significance, own), theirs)), total(significance))
    expected = graph("Add", product(f2, graph("Add", shorter, one), theirs), beyond)
    weight = product(_of_neighbours(graph, graph("Div", I_ref, expected), known, points), flags)
    difference = graph("Sub", I, I_ref)
    below = total(product(weight, I_ref))
    s = graph("Div", total(product(weight, difference)), below)
    variance = graph("Add", product(f2, graph("Add", own, theirs)), beyond)
    root, information = graph("Sqrt", variance), total(product(graph("Div", product(I_ref, I_ref), variance), flags))
    spread = graph("Sqrt", graph("Add", graph("Div", one, information), product(stability, stability)))
    z = graph("Div", graph("Sub", difference, product(s, I_ref)), root)
    return _Compared(known, I_ref, z, root, graph("Where", has, graph("Div", s, spread), zero))


def _of_neighbours(graph: Graph, weight: str, known: str, points: int) -> str:
    """(batch, points) the mean of the weights of the known points before and after, or of the one there is."""
    place = np.arange(points)
    others = graph("Unsqueeze", known, graph.axes(1))

    def nearest(is_there: NDArray[np.bool_], reduce: str, otherwise: float) -> tuple[str, str]:
        candidates = graph("And", others, graph.constant(is_there))
        number = graph("Where", candidates, graph.constant(place.astype(np.float64)), graph.scalar(otherwise))
        found = graph(reduce, number, graph.axes(-1), keepdims=0)
        inside = graph("Min", graph("Max", found, graph.scalar(0)), graph.scalar(points - 1))
        return graph("GatherElements", weight, graph.cast(inside, np.int64), axis=1), graph(
            "Not", graph("Equal", found, graph.scalar(otherwise))
        )

    before, has_before = nearest(place[None, :] < place[:, None], "ReduceMax", -1.0)
    after, has_after = nearest(place[None, :] > place[:, None], "ReduceMin", float(points))
    first = graph("Where", has_before, before, graph("Where", has_after, after, weight))
    second = graph("Where", has_after, after, first)
    return graph("Mul", graph("Add", first, second), graph.scalar(0.5))


def _is_measured(graph: Graph, I: str, sigma: str) -> str:
    are_finite = graph("And", graph.is_finite(I), graph.is_finite(sigma))
    return graph("And", are_finite, graph("Greater", sigma, graph.scalar(0)))


def _log10(graph: Graph, values: str) -> str:
    return graph("Mul", graph("Log", values), graph.scalar(1 / np.log(10)))


def _rebinned(graph: Graph, bins: Bins, rebinning: Rebinning) -> tuple[str, str]:
    """I and σ, (batch, points): what `Rebinning` makes of the bins, weighted with their pixels."""
    zero = graph.scalar(0)
    measured = _is_measured(graph, bins.intensity, bins.sigma)
    I, sigma, w = (graph("Where", measured, values, zero) for values in (bins.intensity, bins.sigma, bins.pixels))
    weighted = graph("Mul", w, sigma)
    total, counts, squares = (
        _sum_of_samples(graph, summand, rebinning)
        for summand in (w, graph("Mul", w, I), graph("Mul", weighted, weighted))
    )
    return graph("Div", counts, total), graph("Div", graph("Sqrt", squares), total)


def _sum_of_samples(graph: Graph, samples: str, rebinning: Rebinning) -> str:
    """(batch, points) sums over the samples in every bin of the grid, 0 where there are none."""
    bin_of = np.full(rebinning.samples, rebinning.points)
    inside = rebinning.inside
    lengths = np.diff(np.append(rebinning.starts, inside.stop - inside.start))
    bin_of[inside] = np.repeat(rebinning.filled, lengths)
    most = max(int(np.bincount(bin_of, minlength=1)[: rebinning.points].max(initial=1)), 1)
    index, _ = rows_of(bin_of, rebinning.points, most)
    padded = graph("Pad", samples, graph.axes(0, 0, 0, 1))
    return graph.total(graph("Gather", padded, graph.constant(index), axis=1), -1)


def _median(graph: Graph, values: str, measured: str, points: int) -> str:
    """(batch, 1) the lower median over the measured values, 0 where there is none."""
    last = graph.scalar(np.inf)
    ordered = graph.smallest(graph("Where", measured, values, last), points)
    number = graph.total(graph.cast(measured, np.float64), -1)
    number = graph("Max", number, graph.scalar(1))
    middle = graph("Floor", graph("Mul", graph("Sub", number, graph.scalar(1)), graph.scalar(0.5)))
    place = graph.constant(np.arange(points, dtype=np.float64))
    is_middle = graph("Equal", place, graph("Unsqueeze", middle, graph.axes(1)))
    median = graph.total(graph("Where", is_middle, ordered, graph.scalar(0)), -1)
    median = graph("Where", graph.is_finite(median), median, graph.scalar(0))
    return graph("Unsqueeze", median, graph.axes(1))
