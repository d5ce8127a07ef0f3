"""Compiled loops over the bins of a curve: what NumPy would do in thirty small steps, each slow once an image of
megabytes has passed through the caches.

Everything is float64. Division by zero gives what IEEE 754 says. The loops run without the interpreter lock, but for
`read_curve` and `learn_score`: they take ten or twenty microseconds, and to give the lock away and wait for it would
take longer.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["channel_rows", "compare_rows", "learn_score", "read_curve", "rebin_rows", "run_of_signs", "shape_of"]

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
def _fit_line(x: Floats, y: Floats, w: Floats) -> tuple[float, float, float, float]:
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
def shape_of(
    q: Floats, I: Floats, sigma: Floats, significant: float, limit: float, least: int
) -> tuple[float, float, float, float, int, float, float, float, float]:
    """Guinier's Rg, its σ, I(0), its σ, the points that took part; intercept and slope of the power law, and their σ.

    q, I, sigma: (n,). significant: I/σ from which on a point takes part. limit: q·Rg up to which it does. least: fewer
    points make no line. See `shape`.
    """
    x, y, w, count = np.empty(len(q)), np.empty(len(q)), np.empty(len(q)), 0
    for i in range(len(q)):
        if _is_measured(I[i], sigma[i]) and significant * sigma[i] < I[i]:
            x[count], y[count], w[count] = q[i], np.log(I[i]), (I[i] / sigma[i]) ** 2
            count += 1
    x, y, w = x[:count], y[:count], w[:count]
    rg, sigma_rg, i0, sigma_i0, points = np.nan, np.nan, np.nan, np.nan, 0
    last, squares = count, x**2
    while last >= least:
        height, slope, sigma_height, sigma_slope = _fit_line(squares[:last], y[:last], w[:last])
        if not slope < 0:
            break
        radius = np.sqrt(-3 * slope)
        reach = int(np.searchsorted(x, limit / radius, side="right"))
        if reach >= last:
            if -slope >= 3 * sigma_slope:
                rg, sigma_rg, points = radius, 1.5 * sigma_slope / radius, last
                i0 = np.exp(height)
                sigma_i0 = i0 * sigma_height
            break
        last = reach
    middle = np.searchsorted(x, np.sqrt(x[0] * x[-1]), side="left") if count else 0
    law = (np.nan, np.nan, np.nan, np.nan)
    if count - middle >= least:
        law = _fit_line(np.log(x[middle:]), y[middle:], w[middle:])
    return rg, sigma_rg, i0, sigma_i0, points, law[0], law[1], law[2], law[3]


@numba.njit(cache=True, error_model="numpy")
def read_curve(
    intensity: Floats,
    sigma: Floats,
    pixels: NDArray[Any],
    edges: NDArray[np.int64],
    q: Floats,
    I_ref: Floats,
    sigma_ref: Floats,
    limits: tuple[float, float, float, float, float, float, float, int],
) -> tuple[Floats, Floats, NDArray[np.float32], Floats]:
    """Everything that is said of one curve without a model; see `reading`, which gives the numbers their names.

    intensity, sigma, pixels: (n,) of the detector's own bins. edges: (m + 1,) where those of each point of the grid
    begin. q: (m,). I_ref, sigma_ref: (m,), or (0,) without a reference. limits: noise, systematic, stability,
    signal scale and least ratio of `reference`; significant, limit and least of `shape_of`.
    Returns I, σ: (m,); what the network sees: (8, m); Rg, σ, I(0), σ, slope, σ, s, σ, χ²: (9,).
    """
    noise, systematic, stability, signal_scale, least_ratio, significant, limit, least = limits
    weight = pixels.astype(np.float64).reshape(1, -1)
    I, errors = rebin_rows(intensity.reshape(1, -1), sigma.reshape(1, -1), weight, edges)
    figures = np.full(9, np.nan)
    z = root = theirs = np.empty((0, len(q)))
    excess = np.empty(0)
    if len(I_ref):
        theirs = I_ref.reshape(1, -1)
        z, root, s, counted, scattered = compare_rows(I, errors, theirs, sigma_ref.reshape(1, -1), noise, systematic)
        excess = s / np.hypot(counted, stability)
        figures[6], figures[7], figures[8] = s[0], scattered[0], _mean_square(z[0])
    seen = channel_rows(I, errors, z, root, excess, theirs, signal_scale, least_ratio)
    shape = shape_of(q, I[0], errors[0], significant, limit, least)
    figures[0], figures[1], figures[2], figures[3] = shape[0], shape[1], shape[2], shape[3]
    figures[4], figures[5] = shape[6], shape[8]
    return I[0], errors[0], seen[0], figures


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mean_square(z: Floats) -> float:
    """χ² over the freedom that the fitted scale leaves: as `reference.Comparison.chi2`."""
    total, count = 0.0, 0
    for i in range(len(z)):
        if np.isfinite(z[i]):
            total += z[i] ** 2
            count += 1
    return total / max(count - 1, 1)


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


@numba.njit(cache=True)
def learn_score(
    beginnings: NDArray[np.float64], kept: int, x: float, hazard: float, spread: float
) -> tuple[int, float]:
    """Let a score into every possible beginning and add one that begins with it; how many there are then, and the
    probability that there was one.

    beginnings: (longest + 1, 3), of which `kept` hold ln of the posterior odds "it began here" to "nothing has
    changed", the sum of the scores since, and their number. The least likely one goes where there is no room for all.
    """
    beginnings[kept] = np.log(hazard), 0.0, 0.0
    kept += 1
    unchanged, prior = np.log1p(-hazard), spread**-2
    odds, least = 0.0, 0
    for k in range(kept):
        so_far, total, count = beginnings[k]
        variance = 1 / (count + prior)
        width = 1 + variance
        so_far += x**2 / 2 - unchanged - (x - total * variance) ** 2 / (2 * width) - np.log(width) / 2
        beginnings[k] = so_far, total + x, count + 1
        if so_far < beginnings[least, 0]:
            least = k
    if kept == len(beginnings):
        kept -= 1
        beginnings[least] = beginnings[kept]
    for k in range(kept):
        odds += np.exp(min(beginnings[k, 0], 700.0))
    return kept, odds / (1 + odds)
