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
from streamer.reduce.loops import channel_rows, rebin_rows

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
        self._edges = first = np.searchsorted(q, edges(grid))
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
        shape = np.shape(I)
        if shape[-1:] != (self.samples,) or np.shape(sigma) != shape:
            found = f"q ({self.samples},), I {shape}, σ {np.shape(sigma)}"
            raise BadInput(f"rebin: found shapes {found}; expected q (n,) and I, σ both (…, n)")
        weight = np.ones(self.samples) if weight is None else weight
        weight = weight if np.ndim(weight) == 1 else np.broadcast_to(weight, shape)
        means, errors = rebin_rows(_rows(I), _rows(sigma), _rows(weight), self._edges, self.between, self.right, self.t)
        return means.reshape(*shape[:-1], self.points), errors.reshape(*shape[:-1], self.points)


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
    shape = np.shape(I)
    none = np.empty((0, shape[-1]))
    I_ref, sigma_ref = (none, none) if reference is None else (_rows_like(values, shape) for values in reference)
    rows: NDArray[np.float32] = channel_rows(_rows(I), _rows(sigma), I_ref, sigma_ref, SIGNAL_SCALE)
    return rows.reshape(*shape[:-1], len(CHANNELS), shape[-1])


def _rows(values: NDArray[Any]) -> NDArray[np.float64]:
    """(…, n) as (rows, n) float64, one after the other in memory."""
    rows = np.ascontiguousarray(values, dtype=np.float64)
    return rows.reshape(-1, rows.shape[-1])


def _rows_like(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The same of values that may be one curve for all."""
    return _rows(values if np.ndim(values) == 1 else np.broadcast_to(values, shape))
