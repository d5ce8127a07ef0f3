"""I(q, χ) ± σ from an image: the detector in polar coordinates, where texture and missing wedges can be seen.

As `azimuthal`, with a bin for every step in q and in χ: the same corrections, the same σ, one pass over the pixels. The
bins are those of pyFAI's `integrate2d` with `method=("no", "histogram", "cython")` and both ranges given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamer.records import BadInput
from streamer.reduce.azimuthal import (
    DTYPES,
    UNIT_SCALE,
    Binned,
    SigmaModel,
    centres,
    corrections_of,
    positions,
    range_of,
)
from streamer.reduce.detector import Geometry, Unit

__all__ = ["Cake", "Caked"]

MOST_CELLS = 2**24
"""As many as a large detector has pixels."""


@dataclass(frozen=True, slots=True)
class Caked:
    """What one image says as a function of q and χ.

    q: (q bins,) centres in `unit`.   chi: (χ bins,) centres in degrees.
    intensity, sigma, counts, pixels: (χ bins, q bins), as in `kernel.PerBin`.   invalid, saturated: likewise.
    """

    q: NDArray[np.float64]
    chi: NDArray[np.float64]
    unit: Unit
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64]
    counts: NDArray[Any]
    pixels: NDArray[np.int64]
    invalid: int
    saturated: int


class Cake:
    """Integration into q and χ for one geometry.

    bins: (in q, in χ).   chi_range: degrees, within −180 … 180; the outer edges.
    The other arguments are those of `azimuthal.Integrator`. Raises BadInput.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        bins: tuple[int, int] = (500, 36),
        unit: Unit = "1/nm",
        q_range: tuple[float, float] | None = None,
        chi_range: tuple[float, float] = (-180.0, 180.0),
        mask: NDArray[np.bool_] | None = None,
        polarization: float | None = None,
        solid_angle: bool = True,
        sigma: SigmaModel = "poisson",
    ) -> None:
        q_bins, chi_bins = bins
        if min(bins) < 1 or q_bins * chi_bins > MOST_CELLS:
            raise BadInput(f"cake: found {q_bins} × {chi_bins} bins, expected 1 to {MOST_CELLS} together; change bins")
        if unit not in UNIT_SCALE:
            raise BadInput(f"cake: found unit {unit!r}, expected one of {', '.join(UNIT_SCALE)}; change unit")
        if not -180 <= chi_range[0] < chi_range[1] <= 180:
            raise BadInput(f"cake: found the χ range {chi_range}, expected −180 ≤ first < last ≤ 180; change chi_range")
        q = geometry.q("1/nm")
        norm, used = corrections_of(geometry, q.shape, mask, polarization=polarization, solid_angle=solid_angle)
        low, high = range_of(q, used, q_range, UNIT_SCALE[unit])
        first, last = np.radians(chi_range)
        along_q, q_width = positions(q, low, high, q_bins)
        along_chi, chi_width = positions(np.radians(geometry.chi()), first, last, chi_bins)

        self.shape: tuple[int, int] = (q.shape[0], q.shape[1])
        self.unit: Unit = unit
        self.bins = bins
        self.q_range, self.chi_range = (low * UNIT_SCALE[unit], high * UNIT_SCALE[unit]), chi_range
        self.q = centres(low, high, q_width, q_bins) * UNIT_SCALE[unit]
        self.chi = np.degrees(centres(first, last, chi_width, chi_bins))
        inside = used & (along_q >= 0) & (along_q < q_bins) & (along_chi >= 0) & (along_chi < chi_bins)
        cells = np.where(inside, along_chi * q_bins + along_q, q_bins * chi_bins)
        self._binned = Binned(geometry, cells, q_bins * chi_bins, norm, sigma)

    def integrate(self, image: NDArray[Any], *, nodata: int | None = None, saturation: int | None = None) -> Caked:
        """I(q, χ) ± σ of one image; see `azimuthal.Integrator.integrate`."""
        one = self._binned.add_up(image, nodata, saturation)
        cells = (len(self.chi), len(self.q))
        return Caked(
            q=self.q,
            chi=self.chi,
            unit=self.unit,
            intensity=one.intensity.reshape(cells),
            sigma=one.sigma.reshape(cells),
            counts=one.counts.reshape(cells),
            pixels=one.pixels.reshape(cells),
            invalid=one.invalid,
            saturated=one.saturated,
        )

    def warm(self, dtypes: Iterable[DTypeLike] = DTYPES) -> None:
        """See `azimuthal.Integrator.warm`."""
        self._binned.warm(dtypes)
