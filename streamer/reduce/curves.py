"""One-dimensional curves on the grid a network was trained on: the same functions in training and at the beamline.

A curve is I(q) ± σ(q). Every array may carry leading dimensions (a batch of curves measured on one q axis); the last
dimension is q. "Not measured" is NaN in I and σ, never zero: a bin that saw no photon is measured, I = 0 and σ > 0.
q, I and σ keep whatever unit they came with; the network's channels are pure numbers and do not change when I and σ
are multiplied by one factor, so that the analysis works without an absolute intensity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput

__all__ = ["CHANNELS", "Rebinning", "channels", "edges", "log_grid", "rebin"]

Floats = NDArray[np.floating[Any]]

CHANNELS = ("log10 I", "asinh I/σ", "measured", "asinh z", "reference")
"""What the rows of `channels` are."""

SIGNAL_SCALE = 0.2
"""Brings asinh(I/σ), which is 8 at σ/I = 0.1 %, to the size of the other channels."""


def log_grid(start: float, stop: float, points: int) -> NDArray[np.float64]:
    """Centres of `points` bins, equally spaced in log q. start, stop: first and last centre, in the unit of q."""
    if not 0 < start < stop or points < 2:
        raise BadInput(f"log grid: found start {start}, stop {stop}, {points} points; expected 0 < start < stop, ≥ 2")
    return np.geomspace(start, stop, points)


def edges(grid: Floats) -> NDArray[np.float64]:
    """The n + 1 edges of the bins around the n centres of a log grid: geometric means, mirrored at both ends."""
    logs = np.log(np.asarray(grid, dtype=np.float64))
    inner = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate(([2 * logs[0] - inner[0]], inner, [2 * logs[-1] - inner[-1]])))


def rebin(
    q: Floats, I: Floats, sigma: Floats, grid: Floats, *, weight: Floats | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve on another, coarser or finer, q grid; for more than one curve of the same q make a `Rebinning`.

    q: (n,) ascending. I, sigma: (…, n) in one unit; a sample is used where I and σ are finite and σ > 0.
    grid: (m,) centres in the unit of q. weight: (n,) or (…, n) what each sample weighs in the mean of its bin, e.g. its
    number of pixels; None for equal weights.
    Returns I, σ: (…, m) float64, NaN where nothing was measured.

    A bin that holds samples gets their weighted mean Σwᵢ Iᵢ / Σwᵢ and σ = √Σ(wᵢσᵢ)² / Σwᵢ. The weights are not 1/σ²:
    σ² is estimated from the same counts as I, and such weights pull a mean of few counts down.
    A bin without a sample, but between two neighbouring samples that were both measured, is interpolated, I and σ both
    linearly in log q: σ is what one sample would have there, and such bins are correlated with their neighbours.
    Bins in a gap of the detector, or outside the samples, are NaN. Raises BadInput when q does not ascend.
    """
    return Rebinning(q, grid)(I, sigma, weight)


class Rebinning:
    """`rebin` for many curves measured on one q axis: which sample goes where is found once.

    q: (n,) ascending. grid: (m,) centres of a log grid in the unit of q. Raises BadInput when q does not ascend.
    """

    def __init__(self, q: Floats, grid: Floats) -> None:
        q, grid = np.asarray(q, dtype=np.float64), np.asarray(grid, dtype=np.float64)
        if q.ndim != 1 or not np.all(np.diff(q) > 0):
            raise BadInput("rebin: q does not ascend; sort the samples and merge those with the same q")
        self.samples, self.points = q.size, grid.size
        first = np.searchsorted(q, edges(grid))
        self.filled = np.flatnonzero(np.diff(first))
        self.inside = slice(first[0], first[-1])
        self.starts = first[self.filled] - first[0]
        right = np.searchsorted(q, grid)
        is_between = (np.diff(first) == 0) & (right > 0) & (right < q.size)
        self.between = np.flatnonzero(is_between)
        self.right = right[self.between]
        self.left = self.right - 1
        below, above = np.log(q[self.left]), np.log(q[self.right])
        self.t = (np.log(grid[self.between]) - below) / (above - below)

    def __call__(
        self, I: Floats, sigma: Floats, weight: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """I, sigma: (…, n) → (…, m). Raises BadInput for another n."""
        if np.shape(I)[-1:] != (self.samples,) or np.shape(sigma) != np.shape(I):
            found = f"q ({self.samples},), I {np.shape(I)}, σ {np.shape(sigma)}"
            raise BadInput(f"rebin: found shapes {found}; expected q (n,) and I, σ both (…, n)")
        measured = np.isfinite(I) & np.isfinite(sigma) & (np.asarray(sigma) > 0)
        w = np.where(measured, 1.0 if weight is None else weight, 0.0)
        I, sigma = np.where(measured, I, 0.0), np.where(measured, sigma, 0.0)
        means = np.full((2, *I.shape[:-1], self.points), np.nan)
        if self.filled.size:
            means[..., self.filled] = self._means(I, sigma, w)
        if self.between.size:
            means[..., self.between] = self._interpolated(I, sigma, w > 0)
        return means[0], means[1]

    def _means(self, I: Floats, sigma: Floats, w: Floats) -> NDArray[np.float64]:
        """(2, …, filled) weighted mean and its σ of the samples in every bin; NaN where none was measured."""
        summands = np.stack([w, w * I, (w * sigma) ** 2])[..., self.inside]
        total, counts, squares = np.add.reduceat(summands, self.starts, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            means: NDArray[np.float64] = np.stack([counts, np.sqrt(squares)]) / total
        return means

    def _interpolated(self, I: Floats, sigma: Floats, measured: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(2, …, between) linear in log q between two neighbouring measured samples, else NaN."""
        both = np.stack([I, sigma])
        between = (1 - self.t) * both[..., self.left] + self.t * both[..., self.right]
        return np.where(measured[..., self.left] & measured[..., self.right], between, np.nan)


def channels(I: Floats, sigma: Floats, reference: tuple[Floats, Floats] | None = None) -> NDArray[np.float32]:
    """What the network sees of a curve: (…, 5, n) float32, rows as in `CHANNELS`.

    I, sigma: (…, n) on the network's grid, in one unit, NaN where not measured (see `rebin`).
    reference: (I, σ) of the same sample when it was known to be normal, on the same grid and scale; None if there is
    none.

    log10 I    log10 max(I, σ) minus its median over the measured bins; below σ there is no logarithm worth having.
    asinh I/σ  the significance with its sign, × 0.2.
    measured   1 where the curve was measured, 0 where it was not; there all other rows are 0.
    asinh z    z = (I − I_ref) / √(σ² + σ_ref²), 0 without a reference.
    reference  1 where z is known, else 0.

    Never NaN for a measured curve. A curve without any measured bin, or without a photon in any of them, has nothing
    to be judged by and is NaN throughout, which `infer` flags.
    """
    measured = np.isfinite(I) & np.isfinite(sigma) & (np.asarray(sigma) > 0)
    I = np.where(measured, I, 0.0).astype(np.float64)
    sigma = np.where(measured, sigma, 1.0).astype(np.float64)
    rows = np.zeros((*I.shape[:-1], len(CHANNELS), I.shape[-1]), dtype=np.float64)
    logs = np.log10(np.maximum(I, sigma))
    rows[..., 0, :] = np.where(measured, logs - _median(logs, measured)[..., None], 0.0)
    rows[..., 1, :] = SIGNAL_SCALE * np.arcsinh(I / sigma)
    rows[..., 2, :] = measured
    if reference is not None:
        rows[..., 3, :], rows[..., 4, :] = _against_reference(I, sigma, measured, *reference)
    rows[~np.any(I > 0, axis=-1)] = np.nan
    return rows.astype(np.float32)


def _against_reference(
    I: Floats, sigma: Floats, measured: NDArray[np.bool_], I_ref: Floats, sigma_ref: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    known = measured & np.isfinite(I_ref) & np.isfinite(sigma_ref)
    z = (I - np.where(known, I_ref, 0.0)) / np.hypot(sigma, np.where(known, sigma_ref, 0.0))
    return np.where(known, np.arcsinh(z), 0.0), known


def _median(values: Floats, measured: NDArray[np.bool_]) -> Floats:
    """Median over the last axis of the measured values (the lower one of two); 0 where none was measured."""
    ordered = np.sort(np.where(measured, values, np.inf), axis=-1)
    middle = (np.maximum(measured.sum(axis=-1), 1) - 1) // 2
    median: Floats = np.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0]
    return np.where(np.isfinite(median), median, 0.0)
