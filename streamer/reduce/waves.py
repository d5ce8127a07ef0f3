"""Compiled loops from a pattern to G(r): what NumPy would do in thirty small steps, each slow once an image has passed
through the caches.

Everything is float64 and runs without the interpreter lock.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["gathered", "reduced_structure", "without_empty"]

Floats = NDArray[np.float64]


@numba.njit(nogil=True, cache=True)
def without_empty(I: Floats, empty: Floats, first: int, last: int) -> tuple[Floats, bool]:
    """I − empty between two indices, and whether all of it is finite. I, empty: (n,)."""
    found = np.empty(last - first)
    is_finite = True
    for k in range(last - first):
        found[k] = I[first + k] - empty[first + k]
        is_finite &= np.isfinite(found[k])
    return found, is_finite


@numba.njit(nogil=True, cache=True)
def reduced_structure(I: Floats, gain: Floats, offset: Floats, scale: float) -> Floats:
    """F = scale·gain·I + offset: (n,) each."""
    F = np.empty(len(I))
    for k in range(len(I)):
        F[k] = scale * gain[k] * I[k] + offset[k]
    return F


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def gathered(x: Floats, weight: Floats, q_taps: Floats, waves: Floats, r_taps: Floats, after: Floats) -> Floats:
    """after · (r_taps ∘ waves ∘ q_taps)(weight · x), the sums of `sine.SineTransform`: (m,).

    x, weight: (n,). q_taps: (D, T), what a point gives to the T coarse ones around it, by its place in a block of D.
    waves: (coarse r, coarse q). r_taps: (E, T), the same for r, in blocks of E. after: (m,).
    """
    D, T = q_taps.shape
    u = np.zeros(waves.shape[1])
    for first in range(0, len(x), D):
        sums = u[first // D : first // D + T]
        for i in range(min(D, len(x) - first)):
            value = x[first + i] * weight[first + i]
            for t in range(T):
                sums[t] += value * q_taps[i, t]
    h = np.empty(len(waves))
    for k in range(len(waves)):
        total = 0.0
        for b in range(len(u)):
            total += waves[k, b] * u[b]
        h[k] = total
    out = np.empty(len(after))
    E = len(r_taps)
    for k in range(len(after)):
        total = 0.0
        for t in range(T):
            total += r_taps[k % E, t] * h[k // E + t]
        out[k] = total * after[k]
    return out
