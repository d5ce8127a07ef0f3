"""What a curve says without a model: radius of gyration and forward scattering after Guinier, and the power law behind.

Weighted straight lines through logarithms; only points with I > 3σ take part, because the logarithm of less is biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.reduce.loops import shape_of

__all__ = ["GUINIER_LIMIT", "LEAST_POINTS", "SIGNIFICANT", "Guinier", "Line", "guinier", "power_law"]

Floats = NDArray[np.floating[Any]]

LEAST_POINTS = 6
GUINIER_LIMIT = 1.3
"""q·Rg up to which ln I is taken as straight in q²: there a sphere's curve is 1.5 % below the line."""
SIGNIFICANT = 3.0
"""I/σ from which on a point takes part."""


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
    return Guinier(*_shape_of(q, I, sigma)[:5])


def power_law(q: Floats, I: Floats, sigma: Floats) -> Line:
    """ln I = a − n ln q over the upper half, in ln q, of the significant points; −slope is the exponent.

    The uncertainties come from the weights, and are widened where the points scatter more.
    """
    return Line(*_shape_of(q, I, sigma)[5:])


def _shape_of(q: Floats, I: Floats, sigma: Floats) -> tuple[Any, ...]:
    q, I, sigma = (np.ascontiguousarray(values, dtype=np.float64) for values in (q, I, sigma))
    found: tuple[Any, ...] = shape_of(q, I, sigma, SIGNIFICANT, GUINIER_LIMIT, LEAST_POINTS)
    return found
