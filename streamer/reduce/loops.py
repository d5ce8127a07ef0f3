"""Compiled loops over the bins of a curve: what NumPy would do in thirty small steps, each slow once an image of
megabytes has passed through the caches.

Everything is float64 and runs without the interpreter lock. Division by zero gives what IEEE 754 says.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["channel_rows", "curve_of", "rebin_rows"]

Floats = NDArray[np.float64]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def curve_of(
    counts: NDArray[Any],
    lost: NDArray[np.int64],
    lost_norm: Floats,
    sum_pixels: NDArray[np.int64],
    sum_norm: Floats,
    sum_dark: Floats,
) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
    """Intensity, its σ from counting, valid pixels and their norm: (bins,) each, by the formulae of `azimuthal`.

    counts: (bins,). lost, lost_norm: (2, bins) of `kernel.Sums`. sum_…: (bins,) over all pixels in use.
    """
    bins = len(counts)
    intensity, sigma, norm = np.empty(bins), np.empty(bins), np.empty(bins)
    valid = np.empty(bins, np.int64)
    for b in range(bins):
        valid[b] = sum_pixels[b] - lost[0, b] - lost[1, b]
        norm[b] = sum_norm[b] - lost_norm[0, b] if valid[b] > 0 else np.nan
        total = np.float64(counts[b])
        intensity[b] = (total - (sum_dark[b] - lost_norm[1, b])) / norm[b]
        sigma[b] = np.sqrt(max(total, 1.0)) / norm[b]
    return intensity, sigma, valid, norm


@numba.njit(nogil=True, cache=True, error_model="numpy")
def rebin_rows(
    I: Floats,
    sigma: Floats,
    weight: Floats,
    edges: NDArray[np.int64],
    between: NDArray[np.int64],
    right: NDArray[np.int64],
    t: Floats,
) -> tuple[Floats, Floats]:
    """`curves.rebin` of curves of one q axis: I, σ (rows, m), NaN where nothing was measured.

    I, sigma: (rows, n). weight: (rows, n), or (1, n) for all rows. edges: (m + 1,) where each bin's samples begin.
    between: bins without a sample that lie between samples right − 1 and right, at the part t of the way.
    """
    rows, points = len(I), len(edges) - 1
    means, errors = np.full((rows, points), np.nan), np.full((rows, points), np.nan)
    for row in range(rows):
        value, error, w = I[row], sigma[row], weight[row if len(weight) > 1 else 0]
        for k in range(points):
            total = counts = squares = 0.0
            for i in range(edges[k], edges[k + 1]):
                if np.isfinite(value[i]) and np.isfinite(error[i]) and error[i] > 0:
                    total += w[i]
                    counts += w[i] * value[i]
                    squares += (w[i] * error[i]) ** 2
            if edges[k + 1] > edges[k]:
                means[row, k], errors[row, k] = counts / total, np.sqrt(squares) / total
        for k in range(len(between)):
            i = right[k]
            is_measured = True
            for j in (i - 1, i):
                is_measured &= np.isfinite(value[j]) and np.isfinite(error[j]) and error[j] > 0 and w[j] > 0
            if is_measured:
                means[row, between[k]] = (1 - t[k]) * value[i - 1] + t[k] * value[i]
                errors[row, between[k]] = (1 - t[k]) * error[i - 1] + t[k] * error[i]
    return means, errors


@numba.njit(nogil=True, cache=True, error_model="numpy")
def channel_rows(I: Floats, sigma: Floats, I_ref: Floats, sigma_ref: Floats, scale: float) -> NDArray[np.float32]:
    """`curves.channels`: (rows, 5, n) float32 of I, sigma (rows, n).

    I_ref, sigma_ref: (rows, n), (1, n) for all rows, or (0, n) where there is no reference. scale: of asinh I/σ.
    """
    rows, points = I.shape
    out = np.zeros((rows, 5, points), np.float32)
    logs = np.empty(points)
    for row in range(rows):
        measured, has_signal = 0, False
        for i in range(points):
            if not (np.isfinite(I[row, i]) and np.isfinite(sigma[row, i]) and sigma[row, i] > 0):
                continue
            value, error = I[row, i], sigma[row, i]
            has_signal |= value > 0
            logs[measured] = np.log10(max(value, error))
            measured += 1
            out[row, 1, i], out[row, 2, i] = scale * np.arcsinh(value / error), 1
            if len(I_ref) == 0:
                continue
            known = row if len(I_ref) > 1 else 0
            if np.isfinite(I_ref[known, i]) and np.isfinite(sigma_ref[known, i]):
                z = (value - I_ref[known, i]) / np.hypot(error, sigma_ref[known, i])
                out[row, 3, i], out[row, 4, i] = np.arcsinh(z), 1
        if not has_signal:
            out[row] = np.nan
            continue
        median = np.sort(logs[:measured])[(measured - 1) // 2]
        at = 0
        for i in range(points):
            if out[row, 2, i] > 0:
                out[row, 0, i] = logs[at] - median
                at += 1
    return out
