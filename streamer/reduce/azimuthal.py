"""I(q) ± σ from an image: every pixel belongs to one bin of q, and a frame costs one pass over its pixels.

Everything that is the same for all frames of a geometry is computed once, by pyFAI: q of every pixel and from it the
pixel's bin, the normalisation (solid angle × polarisation × flat) and its sum per bin, the dark counts per bin. What
is left per frame is a sum of the raw counts per bin, and putting right those bins that lost pixels in this frame
because the detector marked them (NODATA) or they saturated:

    I = (Σ raw − Σ dark) / Σ norm        σ = √max(Σ raw, 1) / Σ norm        sums over the valid pixels of the bin

The bins are those of pyFAI's `integrate1d` without pixel splitting, `method=("no", "histogram", "cython")`, to the
last pixel; σ is its σ for `variance=raw`. Pixels are not split, so bins are statistically independent. Counts are
summed in integers, exactly.

`Integrator.integrate` may run on any number of threads at once; it holds the interpreter lock for some 50 µs a frame.
The loops are compiled by numba and kept on disk (`NUMBA_CACHE_DIR` where the package's own folder cannot be written).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamer.records import BadFrame, BadInput
from streamer.reduce.detector import Geometry, Unit

__all__ = ["DTYPES", "Integrator", "Profile"]

DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "uint32", "int32", "float32"))
"""What an image may consist of."""

LANES = 4
"""Neighbouring pixels often share a bin, and an addition would wait for the one before it to reach memory. Adding
every fourth pixel to sums of its own more than doubles the speed. `_accumulate` spells the four out."""

BLOCK = 64
"""Pixels looked at together, in a loop the compiler turns into vectors, before any of them is added."""

EXACT = {"u": np.uint64, "i": np.int64, "f": np.float64}
"""Kind of dtype → where its values are added up without loss."""

MOST_BINS = 65534
"""The bin of a pixel is kept as uint16, with one number more for "not used"."""

DECTRIS_BAD_PIXEL = 2**32 - 2
"""DECTRIS marks gaps with the maximum of uint32 and defective pixels with one less."""

UNIT_SCALE = {"1/nm": 1.0, "1/A": 0.1}
"""pyFAI bins in nm⁻¹ whatever the unit asked for; so do we, or pixels on an edge would change bins."""

UPPER_BOUND = 1 + float(np.finfo(np.float32).eps)
"""pyFAI widens the range by this factor, so that the largest q falls inside the last bin."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one image says as a function of q. All arrays: (bins,).

    q: bin centres in `unit`.
    intensity, sigma: float64, counts per pixel of the normal incidence; NaN in a bin without a valid pixel.
    counts: Σ raw counts over valid pixels; uint64 or int64, exact, for integer images, else float64.
    pixels: valid pixels, int64.
    invalid: NODATA pixels of this image, saturated: pixels above saturation; neither counts what the mask excludes or
        what lies outside the q range.
    """

    q: NDArray[np.float64]
    unit: Unit
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64]
    counts: NDArray[Any]
    pixels: NDArray[np.int64]
    invalid: int
    saturated: int


class Integrator:
    """Azimuthal integration for one geometry.

    bins: 2…65534 of equal width.   unit: of q and q_range.
    q_range: outer edges of the first and the last bin; None for all pixels that are used. As in pyFAI, the first bin
        also takes the pixels less than one bin below its edge.
    mask: (rows, columns) bool, True = not used, in addition to the geometry's.
    polarization: factor of the beam, 1 horizontal … −1 vertical; None for no correction.
    solid_angle: whether a pixel far from normal incidence is corrected for seeing less.
    Pixels whose flat is not positive, or flat or dark not finite, are not used.

    Building it for four million pixels takes about a second. Raises BadInput.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        bins: int = 1000,
        unit: Unit = "1/nm",
        q_range: tuple[float, float] | None = None,
        mask: NDArray[np.bool_] | None = None,
        polarization: float | None = None,
        solid_angle: bool = True,
    ) -> None:
        if not 2 <= bins <= MOST_BINS:
            raise BadInput(f"azimuthal: found {bins} bins, expected 2 to {MOST_BINS}; change bins")
        if unit not in UNIT_SCALE:
            raise BadInput(f"azimuthal: found unit {unit!r}, expected one of {', '.join(UNIT_SCALE)}; change unit")
        q = geometry.q("1/nm")
        if mask is not None and mask.shape != q.shape:
            raise BadInput(f"azimuthal: the mask has shape {mask.shape}, the detector {q.shape}; one value per pixel")
        norm = _norm(geometry, q.shape, polarization=polarization, solid_angle=solid_angle)
        used = _used(geometry, norm, mask)
        scale = UNIT_SCALE[unit]
        low, high = _q_range(q, used, q_range, scale)
        width = (high * UPPER_BOUND - low) / bins

        self.geometry = geometry
        self.shape: tuple[int, int] = q.shape
        self.unit: Unit = unit
        self.bins = bins
        self.q_range = low * scale, high * scale
        self.q = np.linspace(low + 0.5 * width, high * UPPER_BOUND - 0.5 * width, bins) * scale
        self._bin_of = _bin_of(q, used, low, width, bins)
        self._norm = norm.ravel()
        self._dark = np.empty(0, np.float32) if geometry.dark is None else geometry.dark.astype(np.float32).ravel()
        self._sum_pixels = np.bincount(self._bin_of, minlength=bins + 1)[:bins]
        self._sum_norm = self._per_bin(self._norm)
        self._sum_dark = self._per_bin(self._dark) if len(self._dark) else np.zeros(bins)

    def integrate(self, image: NDArray[Any], *, nodata: int | None = None, saturation: int | None = None) -> Profile:
        """I(q) ± σ of one image of `shape`, one of DTYPES.

        nodata: the value that marks a pixel without measurement; None, or a value that the dtype cannot hold, for the
            dtype's maximum, if it is unsigned. 2³²−2 in uint32, negative int32 and non-finite float32 are NODATA too.
        saturation: the largest valid value; None, or 0, where nobody knows.
        Raises BadFrame with reason "shape" or "dtype".
        """
        self._check(image)
        pixels = np.require(image, requirements=("C", "A")).reshape(-1)
        # One type for numba, whether the bytes came from a socket (read-only) or a buffer of ours.
        pixels = pixels.view()
        pixels.flags.writeable = False
        limits = _limits(pixels.dtype, nodata, saturation)
        sums = np.zeros((LANES, self.bins + 1), dtype=EXACT[pixels.dtype.kind])
        lost = np.zeros((2, self.bins), dtype=np.int64)
        lost_norm = np.zeros((2, self.bins))
        _accumulate(pixels, self._bin_of, self._norm, self._dark, limits, sums, lost, lost_norm)
        return self._profile(sums[:, : self.bins].sum(axis=0), lost, lost_norm)

    def warm(self, dtypes: Iterable[DTypeLike] = DTYPES) -> None:
        """Compile, or load from disk, what images of these dtypes need, and touch its memory once."""
        for dtype in dtypes:
            self.integrate(np.zeros(self.shape, dtype=dtype))

    def _profile(self, counts: NDArray[Any], lost: NDArray[np.int64], lost_norm: NDArray[np.float64]) -> Profile:
        pixels = self._sum_pixels - lost.sum(axis=0)
        norm = np.where(pixels > 0, self._sum_norm - lost_norm[0], np.nan)
        return Profile(
            q=self.q,
            unit=self.unit,
            intensity=(counts - (self._sum_dark - lost_norm[1])) / norm,
            sigma=np.sqrt(np.maximum(counts, 1)) / norm,
            counts=counts,
            pixels=pixels,
            invalid=int(lost[0].sum()),
            saturated=int(lost[1].sum()),
        )

    def _check(self, image: NDArray[Any]) -> None:
        if image.shape != self.shape:
            raise BadFrame(
                "shape",
                f"azimuthal: the image has shape {image.shape}, the geometry {self.shape}; "
                "give the geometry of this detector",
            )
        if image.dtype not in DTYPES:
            raise BadFrame(
                "dtype",
                f"azimuthal: the image is {image.dtype}, expected one of {', '.join(map(str, DTYPES))} "
                "in this machine's byte order",
            )

    def _per_bin(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        sums = np.bincount(self._bin_of, weights=values, minlength=self.bins + 1)
        return sums[: self.bins].astype(np.float64)


def _norm(
    geometry: Geometry, shape: tuple[int, ...], *, polarization: float | None, solid_angle: bool
) -> NDArray[np.float32]:
    """(rows, columns) counts a pixel sees of one at normal incidence; in pyFAI's order and precision."""
    norm = np.ones(shape, dtype=np.float32)
    if geometry.flat is not None:
        norm *= geometry.flat
    if polarization is not None:
        norm *= geometry.polarization(polarization)
    if solid_angle:
        norm *= geometry.solid_angle().astype(np.float32)
    return norm


def _used(geometry: Geometry, norm: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    used = np.isfinite(norm) & (norm > 0)
    for excluded in (geometry.mask, mask):
        if excluded is not None:
            used &= ~excluded
    if geometry.dark is not None:
        used &= np.isfinite(geometry.dark)
    if not used.any():
        raise BadInput("azimuthal: mask and flat leave no pixel to use; check that True in a mask means not used")
    return used


def _q_range(
    q: NDArray[np.float64], used: NDArray[np.bool_], q_range: tuple[float, float] | None, scale: float
) -> tuple[float, float]:
    """Outer edges in 1/nm."""
    smallest, largest = float(q.min(where=used, initial=np.inf)), float(q.max(where=used, initial=-np.inf))
    low, high = (smallest, largest) if q_range is None else (q_range[0] / scale, q_range[1] / scale)
    if not 0 <= low < high < np.inf:
        raise BadInput(f"azimuthal: found the q range {q_range}, expected 0 ≤ first < last; change q_range")
    if low > largest or high < smallest:
        raise BadInput(
            f"azimuthal: no pixel lies in {low:.4g} to {high:.4g} 1/nm, the detector reaches "
            f"{smallest:.4g} to {largest:.4g}; change q_range"
        )
    return low, high


def _bin_of(q: NDArray[np.float64], used: NDArray[np.bool_], low: float, width: float, bins: int) -> NDArray[np.uint16]:
    """(rows · columns,) the bin of every pixel, `bins` for pixels that are not used."""
    # trunc, not floor: pyFAI rounds towards zero, which lets pixels just below the range into the first bin.
    position = np.trunc((q - low) / width)
    inside = used & (position >= 0) & (position < bins)
    return np.where(inside, position, bins).astype(np.uint16).ravel()


def _limits(dtype: np.dtype[Any], nodata: int | None, saturation: int | None) -> tuple[Any, Any, Any, Any]:
    """Smallest and largest usable value, largest value that is a measurement, value that is none; all of dtype."""
    scalar = dtype.type
    if dtype.kind == "f":
        top = float(np.finfo(dtype).max)
        hole = np.nan if nodata is None else nodata
        largest = min(saturation, top) if saturation and saturation > 0 else top
        return scalar(-top), scalar(largest), scalar(top), scalar(hole)
    info = np.iinfo(dtype)
    top = DECTRIS_BAD_PIXEL - 1 if dtype == np.uint32 else info.max
    hole = nodata if nodata is not None and info.min <= nodata <= info.max else (info.max if dtype.kind == "u" else -1)
    if hole == top:
        top -= 1
    largest = min(saturation, top) if saturation and saturation > 0 else top
    return scalar(0), scalar(largest), scalar(top), scalar(hole)


@numba.njit(nogil=True, cache=True)
def _accumulate(
    pixels: NDArray[Any],
    bin_of: NDArray[np.uint16],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: tuple[Any, Any, Any, Any],
    sums: NDArray[Any],
    lost: NDArray[np.int64],
    lost_norm: NDArray[np.float64],
) -> None:
    """Add every usable pixel to the sum of its bin and lane, and take account of every other.

    pixels, bin_of, norm: (n,). dark: (n,), or (0,) where there is none. limits: see `_limits`.
    sums: (LANES, bins + 1), the last bin takes the pixels that are not used. lost: (2, bins) pixels that are NODATA |
    saturated. lost_norm: (2, bins) what those pixels would have added to Σ norm | Σ dark.
    """
    smallest, largest, _, hole = limits
    lane0, lane1, lane2, lane3 = sums[0], sums[1], sums[2], sums[3]
    in_blocks = len(pixels) // BLOCK * BLOCK
    for start in range(0, in_blocks, BLOCK):
        is_doubtful = False
        for i in range(start, start + BLOCK):
            is_doubtful |= not (smallest <= pixels[i] <= largest) or pixels[i] == hole
        if is_doubtful:
            _with_care(start, start + BLOCK, pixels, bin_of, norm, dark, limits, sums, lost, lost_norm)
            continue
        for i in range(start, start + BLOCK, LANES):
            lane0[bin_of[i]] += pixels[i]
            lane1[bin_of[i + 1]] += pixels[i + 1]
            lane2[bin_of[i + 2]] += pixels[i + 2]
            lane3[bin_of[i + 3]] += pixels[i + 3]
    _with_care(in_blocks, len(pixels), pixels, bin_of, norm, dark, limits, sums, lost, lost_norm)


@numba.njit(nogil=True, cache=True)
def _with_care(
    start: int,
    stop: int,
    pixels: NDArray[Any],
    bin_of: NDArray[np.uint16],
    norm: NDArray[np.float32],
    dark: NDArray[np.float32],
    limits: tuple[Any, Any, Any, Any],
    sums: NDArray[Any],
    lost: NDArray[np.int64],
    lost_norm: NDArray[np.float64],
) -> None:
    """As `_accumulate`, for the pixels start … stop − 1, of which some are not usable."""
    smallest, largest, top, hole = limits
    bins = lost.shape[1]
    for i in range(start, stop):
        value, b = pixels[i], bin_of[i]
        if b == bins:
            continue
        if (smallest <= value <= largest) and value != hole:
            sums[i % LANES, b] += value
            continue
        is_measured = (smallest <= value <= top) and value != hole
        lost[1 if is_measured else 0, b] += 1
        lost_norm[0, b] += norm[i]
        if len(dark) > 0:
            lost_norm[1, b] += dark[i]
