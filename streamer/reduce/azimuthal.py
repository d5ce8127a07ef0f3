"""I(q) ± σ from an image: every pixel belongs to one bin of q, and a frame costs one pass over its pixels.

Everything that is the same for all frames of a geometry is computed once, by pyFAI: q of every pixel and from it the
pixel's bin, the normalisation (solid angle × polarisation × flat) and its sum per bin, the dark counts per bin. What
is left per frame is a sum of the raw counts per bin (`kernel`), and putting right those bins that lost pixels in this
frame because the detector marked them (NODATA) or they saturated. With w for a pixel's normalisation, and sums over
the valid pixels of a bin:

    I = (Σ raw − Σ dark) / Σ w
    σ = √max(Σ raw, 1) / Σ w                             sigma = "poisson": photons that are counted
    σ = √max(Σ (raw − dark − I w)², 1) / Σ w             sigma = "azimuthal": the scatter of the pixels around I

The bins are those of pyFAI's `integrate1d` without pixel splitting, `method=("no", "histogram", "cython")`, to the
last pixel; σ is its σ for `variance=raw`. Pixels are not split, so bins are statistically independent. Counts are
summed in integers, exactly.

The azimuthal σ takes every difference between pixels of equal q for noise, texture and all, and needs a second pass
over the pixels. Its formula is the standard error of the weighted mean I = Σ w (raw − dark)/w / Σ w with the variance
propagated from deviations w ((raw − dark)/w − I); it is that of pyFAI's `error_model="azimuthal"` in its two-pass
engine, `method=("no", "csr", "python")`. pyFAI's one-pass engines in cython update Σ by w² (x − I_before)(x − I_after),
after Schubert & Gertz, SSDBM 2018, with a factor that is right for equal w alone: where w varies in a bin, they differ
by about one over the number of its pixels. The 1 under the root is the least an image of counts can tell; images of
float32 go without it. A bin with one pixel has no scatter: σ is NaN.

`Integrator.integrate` may run on any number of threads at once. A frame is one call of compiled code, which lets go
of the interpreter lock once (with the azimuthal σ, twice).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamer.records import BadFrame, BadInput
from streamer.reduce.detector import Geometry, Unit
from streamer.reduce.kernel import Limits, PerBin, Reduction
from streamer.reduce.paths import binning_of

__all__ = ["DTYPES", "Binned", "Integrator", "Profile", "SigmaModel", "prepare"]

DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "uint32", "int32", "float32"))
"""What an image may consist of."""

_DTYPES = frozenset(DTYPES)

SigmaModel = Literal["poisson", "azimuthal"]

MOST_BINS = 65534
"""More than the pixels along any detector's diagonal."""

DECTRIS_BAD_PIXEL = 2**32 - 2
"""DECTRIS marks gaps with the maximum of uint32 and defective pixels with one less."""

UNIT_SCALE = {"1/nm": 1.0, "1/A": 0.1}
"""pyFAI bins in nm⁻¹ whatever the unit asked for; so do we, or pixels on an edge would change bins."""

UPPER_BOUND = 1 + float(np.finfo(np.float32).eps)
"""pyFAI widens the range by this factor, so that the largest q falls inside the last bin."""


class Profile(NamedTuple):
    """What one image says as a function of q. All arrays: (bins,).

    q: bin centres in `unit`.
    intensity, sigma: float64, counts per pixel of the normal incidence; NaN in a bin without a valid pixel.
    counts: Σ raw counts over valid pixels; uint64 or int64, exact, for integer images, else float64.
    pixels: valid pixels, int64.   norm: Σ of their normalisation, float64.
    invalid: NODATA pixels of this image, saturated: pixels above saturation; neither counts what the mask excludes or
        what lies outside the range of the bins.
    totals: Σ counts and Σ pixels over all bins, where whoever made the profile has added them up.
    """

    counts: NDArray[Any]
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64]
    pixels: NDArray[np.int64]
    norm: NDArray[np.float64]
    invalid: int
    saturated: int
    q: NDArray[np.float64]
    unit: Unit
    totals: tuple[int | float, int] | None = None

    @property
    def total_counts(self) -> float:
        """Σ counts over all bins."""
        return float(self.counts.sum() if self.totals is None else self.totals[0])

    @property
    def total_pixels(self) -> int:
        """Σ pixels over all bins."""
        return int(self.pixels.sum() if self.totals is None else self.totals[1])


class Binned:
    """The pixels of a geometry in numbered bins: what every integration does with an image, whatever its bins mean.

    bin_of: (rows, columns) 0 … bins − 1, or `bins` for pixels that are not used.
    norm: (rows, columns), what a pixel sees of one count at normal incidence.
    """

    def __init__(
        self, geometry: Geometry, bin_of: NDArray[Any], bins: int, norm: NDArray[np.float32], sigma: SigmaModel
    ) -> None:
        if sigma not in get_args(SigmaModel):
            expected = ", ".join(get_args(SigmaModel))
            raise BadInput(f"azimuthal: found the model {sigma!r} of sigma, expected one of {expected}; change sigma")
        self.shape: tuple[int, int] = norm.shape
        self.sigma = sigma
        self.binning = binning_of(bin_of, bins)
        self.norm = norm.ravel()
        self.dark = np.empty(0, np.float32) if geometry.dark is None else geometry.dark.astype(np.float32).ravel()
        self._reduction = Reduction(self.binning, self.norm, self.dark)

    def add_up(self, image: NDArray[Any], nodata: int | None, saturation: int | None) -> PerBin:
        """See `Integrator.integrate`."""
        self._check(image)
        if not image.flags.carray:
            image = _lent(image)
        limits = _limits_array(image.dtype, nodata, saturation)
        found = self._reduction(image, limits)
        if self.sigma == "poisson":
            return found
        variance = self._reduction.scatter(image, limits, found.intensity)
        least = 0 if image.dtype.kind == "f" else 1
        variance = np.where(found.pixels > 1, np.maximum(variance, least), np.nan)
        return found._replace(sigma=np.sqrt(variance) / found.norm)

    def warm(self, dtypes: Iterable[DTypeLike]) -> None:
        """See `Integrator.warm`."""
        for dtype in dtypes:
            self.add_up(np.zeros(self.shape, dtype=dtype), None, None)

    def _check(self, image: NDArray[Any]) -> None:
        if image.shape != self.shape:
            raise BadFrame(
                "shape",
                f"azimuthal: the image has shape {image.shape}, the geometry {self.shape}; "
                "give the geometry of this detector",
            )
        if image.dtype not in _DTYPES:
            raise BadFrame(
                "dtype",
                f"azimuthal: the image is {image.dtype}, expected one of {', '.join(map(str, DTYPES))} "
                "in this machine's byte order",
            )


class Integrator:
    """Azimuthal integration for one geometry.

    bins: 2…65534 of equal width.   unit: of q and q_range.
    q_range: outer edges of the first and the last bin; None for all pixels that are used. As in pyFAI, the first bin
        also takes the pixels less than one bin below its edge.
    mask: (rows, columns) bool, True = not used, in addition to the geometry's.
    polarization: factor of the beam, 1 horizontal … −1 vertical; None for no correction.
    solid_angle: whether a pixel far from normal incidence is corrected for seeing less.
    sigma: whether σ comes from counting ("poisson") or from the scatter within a bin ("azimuthal").
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
        sigma: SigmaModel = "poisson",
    ) -> None:
        if not 2 <= bins <= MOST_BINS:
            raise BadInput(f"azimuthal: found {bins} bins, expected 2 to {MOST_BINS}; change bins")
        if unit not in UNIT_SCALE:
            raise BadInput(f"azimuthal: found unit {unit!r}, expected one of {', '.join(UNIT_SCALE)}; change unit")
        q = geometry.q("1/nm")
        norm, used = corrections_of(geometry, q.shape, mask, polarization=polarization, solid_angle=solid_angle)
        scale = UNIT_SCALE[unit]
        low, high = range_of(q, used, q_range, scale)
        position, width = positions(q, low, high, bins)

        self.geometry = geometry
        self.shape: tuple[int, int] = norm.shape
        self.unit: Unit = unit
        self.bins = bins
        self.sigma: SigmaModel = sigma
        self.q_range = low * scale, high * scale
        self.q = centres(low, high, width, bins) * scale
        inside = used & (position >= 0) & (position < bins)
        self.binned = Binned(geometry, np.where(inside, position, bins), bins, norm, sigma)

    def integrate(self, image: NDArray[Any], *, nodata: int | None = None, saturation: int | None = None) -> Profile:
        """I(q) ± σ of one image of `shape`, one of DTYPES.

        nodata: the value that marks a pixel without measurement; None, or a value that the dtype cannot hold, for the
            dtype's maximum, if it is unsigned. 2³²−2 in uint32, negative int32 and non-finite float32 are NODATA too.
        saturation: the largest valid value; None, or 0, where nobody knows.
        Raises BadFrame with reason "shape" or "dtype".
        """
        one = self.binned.add_up(image, nodata, saturation)
        return Profile(*one[:7], self.q, self.unit, one[7:])

    def warm(self, dtypes: Iterable[DTypeLike] = DTYPES) -> None:
        """Compile, or load from disk, what images of these dtypes need, and touch its memory once."""
        self.binned.warm(dtypes)


def prepare(dtypes: Iterable[DTypeLike]) -> None:
    """Compile, or load from disk, what images of these dtypes need, before there is a geometry."""
    binning = binning_of(np.arange(256).reshape(1, 256) // 64, 4)
    reduction = Reduction(binning, np.ones(256, np.float32), np.empty(0, np.float32))
    for dtype in dtypes:
        image = np.zeros((1, 256), dtype)
        reduction(image, _limits_array(image.dtype, None, None))


def corrections_of(
    geometry: Geometry,
    shape: tuple[int, ...],
    mask: NDArray[np.bool_] | None,
    *,
    polarization: float | None,
    solid_angle: bool,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(rows, columns) normalisation of every pixel, and whether it is used. BadInput if none is."""
    if mask is not None and mask.shape != shape:
        raise BadInput(f"azimuthal: the mask has shape {mask.shape}, the detector {shape}; one value per pixel")
    norm = _norm(geometry, shape, polarization=polarization, solid_angle=solid_angle)
    return norm, _used(geometry, norm, mask)


def positions(values: NDArray[np.float64], low: float, high: float, bins: int) -> tuple[NDArray[np.float64], float]:
    """The bin of every value on the way from low to high, < 0 or ≥ bins outside, and the width of a bin."""
    width = (high * UPPER_BOUND - low) / bins
    # trunc, not floor: pyFAI rounds towards zero, which lets pixels just below the range into the first bin.
    return np.trunc((values - low) / width), width


def centres(low: float, high: float, width: float, bins: int) -> NDArray[np.float64]:
    """(bins,) of the bins of `positions`."""
    return np.linspace(low + 0.5 * width, high * UPPER_BOUND - 0.5 * width, bins)


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


def range_of(
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


@functools.lru_cache(maxsize=16)
def limits_of(dtype: np.dtype[Any], nodata: int | None, saturation: int | None) -> Limits:
    """What counts as a measurement; arguments as for `Integrator.integrate`."""
    scalar = dtype.type
    if dtype.kind == "f":
        top = float(np.finfo(dtype).max)
        hole = np.nan if nodata is None else nodata
        largest = min(saturation, top) if saturation and saturation > 0 else top
        return Limits(scalar(-top), scalar(largest), scalar(top), scalar(hole))
    info = np.iinfo(dtype)
    top = DECTRIS_BAD_PIXEL - 1 if dtype == np.uint32 else info.max
    hole = nodata if nodata is not None and info.min <= nodata <= info.max else (info.max if dtype.kind == "u" else -1)
    if hole == top:
        top -= 1
    largest = min(saturation, top) if saturation and saturation > 0 else top
    return Limits(scalar(0), scalar(largest), scalar(top), scalar(hole))


@functools.lru_cache(maxsize=16)
def _limits_array(dtype: np.dtype[Any], nodata: int | None, saturation: int | None) -> NDArray[Any]:
    return np.array(limits_of(dtype, nodata, saturation), dtype)


class _Lent:
    """Memory of a read-only array for code that only reads, but knows no read-only arrays."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.owner = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def _lent(image: NDArray[Any]) -> NDArray[Any]:
    """The image as an array that is contiguous, aligned and writable: one type for compiled code. Memory that is
    read-only because it came from a socket is not copied."""
    image = np.require(image, requirements=("C", "A"))
    return image if image.flags.writeable else np.asarray(_Lent(image))
