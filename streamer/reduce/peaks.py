"""The peaks of a pair distribution: where, how high, how wide, and how many neighbours they hold.

A peak is a maximum of G that stands out of its surroundings by several of its own σ. Its neighbours are counted
between the minima of the RDF on either side, so that N of overlapping shells is divided where they are lowest. Its σ
is an upper estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Peaks", "find_peaks"]

Floats = NDArray[np.float64]

PROMINENCE_SIGMAS = 4.0
"""Of the σ of G at the maximum, and at least a twentieth of the highest peak: below, ripples of termination begin."""
LEAST_PROMINENCE = 0.05
FROM_A = 1.0
"""Below there is no bond of any two atoms but hydrogen's."""


@dataclass(frozen=True)
class Peaks:
    """(k,) each, by position: Å, Å⁻², full width at half prominence in Å, N, and σ of N and of the position."""

    position: Floats
    sigma_position: Floats
    height: Floats
    width: Floats
    N: Floats
    sigma_N: Floats


def find_peaks(r: Floats, G: Floats, sigma: Floats, rdf: Floats, q_max: float) -> Peaks:
    """The peaks of one G ± σ on a uniform r, resolved with q_max (Å⁻¹): points within π/q_max err together."""
    step = float(r[1] - r[0])
    together = np.pi / q_max
    tops = np.flatnonzero((G[1:-1] > G[:-2]) & (G[1:-1] >= G[2:])) + 1
    tops = tops[r[tops] > FROM_A]
    if not tops.size:
        return Peaks(*(np.empty(0) for _ in range(6)))
    prominence = np.array([_prominence(G, int(top)) for top in tops])
    limit = np.maximum(PROMINENCE_SIGMAS * sigma[tops], LEAST_PROMINENCE * prominence.max())
    tops, prominence = tops[prominence > limit], prominence[prominence > limit]
    rows = [_measured(r, G, sigma, rdf, tops, k, prominence[k], step, together) for k in range(tops.size)]
    return Peaks(*(np.array(column) for column in zip(*rows, strict=True))) if rows else Peaks(*(np.empty(0),) * 6)


def _prominence(G: Floats, top: int) -> float:
    """How far one must go down from a maximum before a higher one is reached."""
    higher = np.flatnonzero(G[top] < G)
    left = int(higher[higher < top].max(initial=-1)) + 1
    right = int(higher[higher > top].min(initial=G.size))
    return float(G[top] - max(G[left : top + 1].min(), G[top:right].min()))


def _measured(
    r: Floats,
    G: Floats,
    sigma: Floats,
    rdf: Floats,
    tops: NDArray[np.int64],
    k: int,
    prominence: float,
    step: float,
    together: float,
) -> tuple[float, ...]:
    top = int(tops[k])
    a, b, c = G[top - 1], G[top], G[top + 1]
    bend = 2 * b - a - c
    shift = 0.5 * (c - a) / bend if bend > 0 else 0.0
    half = b - prominence / 2
    left, right = _crossing(r, G, top, half, -1), _crossing(r, G, top, half, 1)
    first = _lowest(rdf, int(tops[k - 1]) if k else 0, top)
    last = _lowest(rdf, top, int(tops[k + 1]) if k + 1 < tops.size else min(G.size - 1, top + round(1.2 / step)))
    inside = slice(first, last + 1)
    N = float(np.trapezoid(rdf[inside], r[inside]))
    # Points within π/q_max of each other are taken to err together: over that distance σ adds up, beyond it its square.
    # Noise of a bare transform changes sign within that and N is known several times better; a posterior's does not.
    sigma_N = float(np.sqrt(((r[inside] * sigma[inside]) ** 2).sum() * step * together))
    curvature = bend / step**2
    sigma_position = float(sigma[top] / together / curvature) if curvature > 0 else float("nan")
    return float(r[top] + shift * step), sigma_position, float(b), right - left, N, sigma_N


def _crossing(r: Floats, G: Floats, top: int, level: float, way: int) -> float:
    i = top
    while 0 < i < G.size - 1 and G[i] > level:
        i += way
    before = i - way
    if G[before] == G[i]:
        return float(r[i])
    return float(r[before] + (r[i] - r[before]) * (G[before] - level) / (G[before] - G[i]))


def _lowest(rdf: Floats, first: int, last: int) -> int:
    return first + int(np.argmin(rdf[first : last + 1])) if last > first else first
