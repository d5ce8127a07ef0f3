"""The first shell of a G(r): where its peak is, how high, where the shell ends and how many neighbours it holds.

One definition for truths, for ours and for every other method. The peak is where G, smoothed with a Gaussian of 0.08 Å,
is highest between 1.2 and 3.6 Å: the whole peak decides, not the ripple on its top, which where two distances overlap
(Ge–Se and Ag–Se) moves the bare maximum by 0.1 Å. Its height is that of G itself. The shell reaches from 0.8 Å below
it to the first minimum of the RDF behind it, found in the RDF smoothed with a Gaussian of 0.15 Å: unsmoothed, ripples
of termination and counting choose the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SEARCH_A = (1.2, 3.6)
BELOW_A = 0.8
BEHIND_A = (0.15, 1.2)
"""Behind the peak, where the minimum is looked for."""
POSITION_SMOOTHING_A, LIMIT_SMOOTHING_A = 0.08, 0.15


@dataclass(frozen=True)
class Shells:
    """(n,) each: position and limit in Å, height of G in Å⁻², N."""

    position: Floats
    height: Floats
    N: Floats
    limit: Floats


def first_shells(r: Floats, G: Floats, density: Floats, *, limit: Floats | None = None) -> Shells:
    """Of n curves. r: (m,) uniform. G: (n, m). density: (n,). limit: (n,) where the shells end, if that is given."""
    step = r[1] - r[0]
    search = (r > SEARCH_A[0]) & (r < SEARCH_A[1])
    height = parabola(r, G, np.argmax(np.where(search, G, -np.inf), axis=1))[1]
    smooth = G @ smoothing(r, POSITION_SMOOTHING_A).T
    position = parabola(r, smooth, np.argmax(np.where(search, smooth, -np.inf), axis=1))[0]
    rdf = r * G + 4 * np.pi * density[:, None] * r**2
    if limit is None:
        smooth = rdf @ smoothing(r, LIMIT_SMOOTHING_A).T
        behind = (r > position[:, None] + BEHIND_A[0]) & (r < position[:, None] + BEHIND_A[1])
        limit = parabola(r, -smooth, np.argmax(np.where(behind, -smooth, -np.inf), axis=1))[0]
    inside = window(r, position - BELOW_A, limit)
    return Shells(position, height, (inside * rdf).sum(axis=1) * step, limit)


def window(r: Floats, low: Floats, high: Floats) -> Floats:
    """(n, m): which part of every point's cell lies between low and high (n,)."""
    step = r[1] - r[0]
    upper = np.clip((high[:, None] - r) / step + 0.5, 0, 1)
    lower = np.clip((low[:, None] - r) / step + 0.5, 0, 1)
    return upper - lower


def smoothing(r: Floats, width: float) -> Floats:
    """(m, m): what smooths a curve on r with a Gaussian of that standard deviation (Å)."""
    kernel = np.exp(-(((r[:, None] - r) / width) ** 2) / 2)
    found: Floats = kernel / kernel.sum(axis=1, keepdims=True)
    return found


def parabola(r: Floats, y: Floats, top: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(n,) place and height of the parabolas through (n, m) curves at the points top (n,) and their neighbours."""
    top = np.clip(top, 1, y.shape[1] - 2)
    rows = np.arange(len(y))
    a, b, c = y[rows, top - 1], y[rows, top], y[rows, top + 1]
    bend = a - 2 * b + c
    shift = np.where(bend < 0, 0.5 * (a - c) / np.where(bend < 0, bend, -1), 0.0)
    return r[top] + shift * (r[1] - r[0]), b - 0.25 * (a - c) * shift
