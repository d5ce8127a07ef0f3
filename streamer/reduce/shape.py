"""What a curve says without a model: radius of gyration and forward scattering after Guinier, and the power law behind.

Weighted straight lines through logarithms; only points with I > 3σ take part, because the logarithm of less is biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.reduce.loops import fit_line

__all__ = ["Guinier", "Line", "guinier", "power_law"]

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

LEAST_POINTS = 6
GUINIER_LIMIT = 1.3
"""q·Rg up to which ln I is taken as straight in q²: there a sphere's curve is 1.5 % below the line."""
SIGNIFICANT = 3.0


@dataclass(frozen=True, slots=True)
class Line:
    """intercept, slope and their standard uncertainties; NaN where there are too few points."""

    intercept: float = math.nan
    slope: float = math.nan
    sigma_intercept: float = math.nan
    sigma_slope: float = math.nan


@dataclass(frozen=True, slots=True)
class Guinier:
    """rg and i0 with standard uncertainties, in 1/(unit of q) and the unit of I; NaN where no Guinier range was found.

    points: how many took part.
    """

    rg: float = math.nan
    sigma_rg: float = math.nan
    i0: float = math.nan
    sigma_i0: float = math.nan
    points: int = 0


def guinier(q: Floats, I: Floats, sigma: Floats) -> Guinier:
    """ln I = ln I(0) − q²Rg²/3 from the lowest q up to q·Rg = 1.3. q, I, sigma: (n,), NaN where not measured.

    The range follows from Rg and Rg from the range: it is narrowed, from all points, until it lies within. Where the
    lowest points rise too little to tell a slope from 0 by 3σ there is no Rg.
    """
    x, y, w = _significant(q, I, sigma)
    last = len(x)
    while last >= LEAST_POINTS:
        line = _fit(x[:last] ** 2, y[:last], w[:last])
        if not line.slope < 0:
            break
        rg = math.sqrt(-3 * line.slope)
        reach = int(np.searchsorted(x, GUINIER_LIMIT / rg, side="right"))
        if reach >= last:
            return _concluded(line, rg, last)
        last = reach
    return Guinier()


def power_law(q: Floats, I: Floats, sigma: Floats) -> Line:
    """ln I = a − n ln q over the upper half, in ln q, of the significant points; −slope is the exponent."""
    x, y, w = _significant(q, I, sigma)
    if not len(x):
        return Line()
    upper = x >= math.sqrt(x[0] * x[-1])
    return _fit(np.log(x[upper]), y[upper], w[upper])


def _concluded(line: Line, rg: float, points: int) -> Guinier:
    if -line.slope < 3 * line.sigma_slope:
        return Guinier()
    i0 = math.exp(line.intercept)
    return Guinier(rg, 1.5 * line.sigma_slope / rg, i0, i0 * line.sigma_intercept, points)


def _significant(q: Floats, I: Floats, sigma: Floats) -> tuple[Doubles, Doubles, Doubles]:
    """q, ln I and its weight (I/σ)² of the points that can be trusted."""
    with np.errstate(invalid="ignore"):
        good = np.isfinite(I) & np.isfinite(sigma) & (SIGNIFICANT * sigma < I)
    q, I, sigma = (np.asarray(values[good], dtype=np.float64) for values in (q, I, sigma))
    return q, np.log(I), np.square(I / sigma)


def _fit(x: Doubles, y: Doubles, w: Doubles) -> Line:
    """Weighted straight line; uncertainties from the weights, widened where the points scatter more."""
    if len(x) < LEAST_POINTS:
        return Line()
    return Line(*fit_line(x, y, w))
