"""The first shell of a G(r): where its peak is, how high, where the shell ends and how many neighbours it holds.

One definition for truths, for ours and for every other method. The peak is the highest point of G between 1.2 and 3.6 Å
(a parabola through three points). The shell reaches from 0.8 Å below it to the first minimum of the RDF behind it, found
in the RDF smoothed with a Gaussian of 0.15 Å: unsmoothed, ripples of termination and counting choose the minimum.
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
LIMIT_SMOOTHING_A = 0.15


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
    top = np.argmax(np.where(search, G, -np.inf), axis=1)
    position, height = _parabola(r, G, top)
    rdf = r * G + 4 * np.pi * density[:, None] * r**2
    if limit is None:
        smooth = rdf @ _smoothing(r).T
        behind = (r > position[:, None] + BEHIND_A[0]) & (r < position[:, None] + BEHIND_A[1])
        limit = _parabola(r, -smooth, np.argmax(np.where(behind, -smooth, -np.inf), axis=1))[0]
    inside = window(r, position - BELOW_A, limit)
    return Shells(position, height, (inside * rdf).sum(axis=1) * step, limit)


def window(r: Floats, low: Floats, high: Floats) -> Floats:
    """(n, m): which part of every point's cell lies between low and high (n,)."""
    step = r[1] - r[0]
    upper = np.clip((high[:, None] - r) / step + 0.5, 0, 1)
    lower = np.clip((low[:, None] - r) / step + 0.5, 0, 1)
    return upper - lower


def _smoothing(r: Floats) -> Floats:
    kernel = np.exp(-(((r[:, None] - r) / LIMIT_SMOOTHING_A) ** 2) / 2)
    smoothing: Floats = kernel / kernel.sum(axis=1, keepdims=True)
    return smoothing


def _parabola(r: Floats, y: Floats, top: NDArray[np.int64]) -> tuple[Floats, Floats]:
    top = np.clip(top, 1, y.shape[1] - 2)
    rows = np.arange(len(y))
    a, b, c = y[rows, top - 1], y[rows, top], y[rows, top + 1]
    bend = a - 2 * b + c
    shift = np.where(bend < 0, 0.5 * (a - c) / np.where(bend < 0, bend, -1), 0.0)
    return r[top] + shift * (r[1] - r[0]), b - 0.25 * (a - c) * shift
