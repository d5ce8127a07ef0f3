"""Everything that is said of one curve without a model, in one compiled call.

On the live path a curve is brought onto the network's grid (`curves`), compared with its reference (`reference`), made
into what the network sees, and its shape is found (`shape`). Each of these is a function of its own, for batches of
curves as they are trained on; one after the other from Python they took ten times as long as all of them do here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.reduce.curves import Rebinning
from streamer.reduce.loops import read_curve
from streamer.reduce.reference import FLUX_STABILITY, LEAST_RATIO, SIGNAL_SCALE, SYSTEMATIC, Reference
from streamer.reduce.shape import GUINIER_LIMIT, LEAST_POINTS, SIGNIFICANT

__all__ = ["Reader", "Reading", "prepare"]

_NOTHING = np.empty(0)


class Reading(NamedTuple):
    """What is said of a curve; NaN where it cannot be said.

    I, sigma: (m,) on the grid. seen: (8, m) float32, `reference.channels`. rg, i0: after Guinier; porod: exponent of
    the power law behind; each with its standard uncertainty. scale: s against the reference; chi2 of the rest.
    """

    I: NDArray[np.float64]
    sigma: NDArray[np.float64]
    seen: NDArray[np.float32]
    rg: float
    sigma_rg: float
    i0: float
    sigma_i0: float
    porod: float
    sigma_porod: float
    scale: float
    sigma_scale: float
    chi2: float


class Reader:
    """Reads curves of one detector. May be used by any number of threads at once.

    rebinning: from the detector's bins to the grid. q: (m,) the grid, in the unit that 1/Rg is given in.
    """

    def __init__(self, rebinning: Rebinning, q: NDArray[np.float64]) -> None:
        self._edges = rebinning.edges
        self._q = np.ascontiguousarray(q, dtype=np.float64)

    def __call__(
        self,
        I: NDArray[np.float64],
        sigma: NDArray[np.float64],
        pixels: NDArray[Any],
        reference: Reference | None = None,
        stability: float = FLUX_STABILITY,
    ) -> Reading:
        """I, sigma, pixels: (n,) in the detector's bins. reference: on the grid. stability: see `reference.compare`."""
        I_ref = sigma_ref = _NOTHING
        noise = 1.0
        if reference is not None:
            I_ref, sigma_ref, noise = np.asarray(reference.I), np.asarray(reference.sigma), reference.noise
        limits = noise, SYSTEMATIC, stability, SIGNAL_SCALE, LEAST_RATIO, SIGNIFICANT, GUINIER_LIMIT, LEAST_POINTS
        on_grid, error, seen, figures = read_curve(I, sigma, pixels, self._edges, self._q, I_ref, sigma_ref, limits)
        rg, sigma_rg, i0, sigma_i0, slope, sigma_slope, scale, sigma_scale, chi2 = figures.tolist()
        return Reading(on_grid, error, seen, rg, sigma_rg, i0, sigma_i0, -slope, sigma_slope, scale, sigma_scale, chi2)


def prepare(points: int) -> None:
    """Compile, or load from disk, what reading takes. points: of the grid."""
    grid = np.geomspace(1, 2, points)
    flat = np.ones(points)
    Reader(Rebinning(grid, grid), grid)(flat, flat, np.ones(points, np.int64), Reference(flat, flat))
