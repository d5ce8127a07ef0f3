"""Compiled loops over the bins of a curve: what NumPy would do in thirty small steps, each slow once an image of
megabytes has passed through the caches.

Everything is float64 and runs without the interpreter lock. Division by zero gives what IEEE 754 says.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["channel_rows", "compare_rows", "fit_line", "rebin_rows", "run_of_signs"]

Floats = NDArray[np.float64]


@numba.njit(nogil=True, cache=True, inline="always")
def _is_measured(value: float, error: float) -> bool:
    return np.isfinite(value) and np.isfinite(error) and error > 0


@numba.njit(nogil=True, cache=True, inline="always")
def _of_neighbours(weight: Floats, k: int, count: int) -> float:
    """The mean weight of the points before and after k, or of the one there is."""
    before, after = float(weight[max(k - 1, 0)]), float(weight[min(k + 1, count - 1)])
    if k == 0:
        return after
    if k == count - 1:
        return before
    return (before + after) / 2


@numba.njit(nogil=True, cache=True, error_model="numpy")
def rebin_rows(
    I: Floats,
    sigma: Floats,
    weight: Floats,
    edges: NDArray[np.int64],
) -> tuple[Floats, Floats]:
    """`curves.rebin` of curves of one q axis: I, σ (rows, m), NaN where nothing was measured.

    I, sigma: (rows, n). weight: (rows, n), or (1, n) for all rows. edges: (m + 1,) where each bin's samples begin.
    """
    rows, points = len(I), len(edges) - 1
    means, errors = np.full((rows, points), np.nan), np.full((rows, points), np.nan)
    for row in range(rows):
        value, error, w = I[row], sigma[row], weight[row if len(weight) > 1 else 0]
        for k in range(points):
            total = counts = squares = 0.0
            for i in range(edges[k], edges[k + 1]):
                if _is_measured(value[i], error[i]):
                    total += w[i]
                    counts += w[i] * value[i]
                    squares += (w[i] * error[i]) ** 2
            if edges[k + 1] > edges[k]:
                means[row, k], errors[row, k] = counts / total, np.sqrt(squares) / total
    return means, errors


@numba.njit(nogil=True, cache=True, error_model="numpy")
def compare_rows(
    I: Floats, sigma: Floats, I_ref: Floats, sigma_ref: Floats, noise: float, systematic: float
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """`reference.compare`: z, √v (rows, n), NaN where not known; s, σ_s from counting and what s is known to if the
    scatter about it is believed as well (rows,), NaN where nothing is known.

    I, sigma: (rows, n). I_ref, sigma_ref: (rows, n), or (1, n) for all rows. noise: f. systematic: ε.
    """
    rows, points = I.shape
    z, root = np.full((rows, points), np.nan), np.full((rows, points), np.nan)
    scale, counted, scattered = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    known, weight, expected = np.empty(points, np.int64), np.empty(points), np.empty(points)
    f2 = noise**2
    for row in range(rows):
        value, error = I[row], sigma[row]
        theirs, their_error = I_ref[row if len(I_ref) > 1 else 0], sigma_ref[row if len(I_ref) > 1 else 0]
        count, shorter, total = 0, 0.0, 0.0
        for i in range(points):
            if _is_measured(value[i], error[i]) and _is_measured(theirs[i], their_error[i]):
                known[count] = i
                count += 1
                w = (theirs[i] / their_error[i]) ** 2
                total += w
                shorter += w * (error[i] / their_error[i]) ** 2
        if count == 0:
            continue
        ratio = shorter / total if total > 0 else 0.0
        for k in range(count):
            i = known[k]
            expected[k] = f2 * (ratio + 1) * their_error[i] ** 2 + (systematic * theirs[i]) ** 2
            weight[k] = theirs[i] / expected[k]
        above, below, variance = 0.0, 0.0, 0.0
        for k in range(count):
            i, w = known[k], _of_neighbours(weight, k, count)
            above += w * (value[i] - theirs[i])
            below += w * theirs[i]
            variance += w**2 * expected[k]
        s, scatter, information = above / below, 0.0, 0.0
        for k in range(count):
            i, w = known[k], _of_neighbours(weight, k, count)
            left = value[i] - (1 + s) * theirs[i]
            root[row, i] = np.sqrt(f2 * (error[i] ** 2 + their_error[i] ** 2) + (systematic * theirs[i]) ** 2)
            z[row, i] = left / root[row, i]
            scatter += (w * left / max(1 - w * theirs[i] / below, 0.1)) ** 2
            information += (theirs[i] / root[row, i]) ** 2
        scale[row], counted[row] = s, 1 / np.sqrt(information)
        scattered[row] = np.sqrt(max(variance, scatter)) / abs(below)
    return z, root, scale, counted, scattered


@numba.njit(nogil=True, cache=True, error_model="numpy")
def channel_rows(
    I: Floats,
    sigma: Floats,
    z: Floats,
    root: Floats,
    excess: Floats,
    I_ref: Floats,
    signal_scale: float,
    least_ratio: float,
) -> NDArray[np.float32]:
    """`reference.channels`: (rows, 8, n) float32 of I, sigma (rows, n).

    z, root: (rows, n) and excess: (rows,) of `reference.compare`; (0, n) and (0,) without a reference. I_ref:
    (rows, n), or (1, n) for all rows.
    """
    rows, points = I.shape
    out = np.zeros((rows, 8, points), np.float32)
    logs = np.empty(points)
    for row in range(rows):
        measured, has_signal, has_reference = 0, False, False
        for i in range(points):
            if not _is_measured(I[row, i], sigma[row, i]):
                continue
            value, error = I[row, i], sigma[row, i]
            has_signal |= value > 0
            logs[measured] = np.log10(max(value, error))
            measured += 1
            out[row, 1, i], out[row, 2, i] = signal_scale * np.arcsinh(value / error), 1
        if not has_signal:
            out[row] = np.nan
            continue
        median = np.sort(logs[:measured])[(measured - 1) // 2]
        floor = least_ratio * 10**median
        at = 0
        for i in range(points):
            if out[row, 2, i] == 0:
                continue
            out[row, 0, i] = logs[at] - median
            at += 1
            if len(z) == 0 or not np.isfinite(z[row, i]):
                out[row, 5, i] = np.log10(sigma[row, i]) - median
                continue
            has_reference = True
            known = row if len(I_ref) > 1 else 0
            out[row, 3, i], out[row, 4, i] = np.arcsinh(z[row, i]), 1
            out[row, 5, i] = np.log10(root[row, i]) - median
            out[row, 6, i] = np.log10(max(I_ref[known, i], floor)) - median
        if has_reference:
            out[row, 7] = np.arcsinh(excess[row]) * out[row, 2]
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fit_line(x: Floats, y: Floats, w: Floats) -> tuple[float, float, float, float]:
    """Weighted straight line through (n,) points: intercept, slope and their σ, widened where the points scatter more
    than their weights say. NaN where they do not spread."""
    total, centre, at_centre = w.sum(), 0.0, 0.0
    for i in range(len(x)):
        centre += w[i] * x[i]
        at_centre += w[i] * y[i]
    centre /= total
    at_centre /= total
    spread, slope, chi2 = 0.0, 0.0, 0.0
    for i in range(len(x)):
        spread += w[i] * (x[i] - centre) ** 2
        slope += w[i] * (x[i] - centre) * y[i]
    if not spread > 0:
        return np.nan, np.nan, np.nan, np.nan
    slope /= spread
    for i in range(len(x)):
        chi2 += w[i] * (y[i] - at_centre - slope * (x[i] - centre)) ** 2
    wider = max(1.0, chi2 / (len(x) - 2))
    return (
        at_centre - slope * centre,
        slope,
        np.sqrt(wider * (1 / total + centre**2 / spread)),
        np.sqrt(wider / spread),
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def run_of_signs(I: Floats, before: Floats) -> tuple[int, int]:
    """The longest run of one sign in the difference of two curves (n,) brought to one sum, and the bins compared."""
    total, total_before = 0.0, 0.0
    for i in range(len(I)):
        total += I[i] if np.isfinite(I[i]) else 0.0
        total_before += before[i] if np.isfinite(before[i]) else 0.0
    scale = total / max(total_before, 1e-300)
    longest, run, bins, last = 0, 0, 0, 0.0
    for i in range(len(I)):
        difference = I[i] - scale * before[i]
        if not np.isfinite(difference) or difference == 0:
            continue
        sign = 1.0 if difference > 0 else -1.0
        run = run + 1 if sign == last else 1
        longest, bins, last = max(longest, run), bins + 1, sign
    return longest, bins
