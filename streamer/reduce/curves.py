"""One-dimensional curves on the grid a network was trained on: the same functions in training and at the beamline.

A curve is I(q) ± σ(q). Every array may carry leading dimensions (a batch of curves measured on one q axis); the last
dimension is q. "Not measured" is NaN in I and σ, never zero: a bin that saw no photon is measured, I = 0 and σ > 0.
q, I and σ keep whatever unit they came with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.loops import rebin_rows

__all__ = ["Rebinning", "as_rows", "edges", "log_grid", "rebin", "rows_like"]

Floats = NDArray[np.floating[Any]]


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
    A bin without a sample, finer than the samples, in a gap of the detector or outside of it, is NaN: it is not
    interpolated, so that bins stay independent. Raises BadInput when q does not ascend.
    """
    return Rebinning(q, grid)(I, sigma, weight)


class Rebinning:
    """`rebin` for many curves measured on one q axis: which sample goes where is found once.

    q: (n,) ascending. grid: (m,) centres of a log grid in the unit of q. Raises BadInput when q does not ascend.
    edges: (m + 1,) where the samples of each point begin.
    """

    def __init__(self, q: Floats, grid: Floats) -> None:
        q, grid = np.asarray(q, dtype=np.float64), np.asarray(grid, dtype=np.float64)
        if q.ndim != 1 or not np.all(np.diff(q) > 0):
            raise BadInput("rebin: q does not ascend; sort the samples and merge those with the same q")
        self.samples, self.points = q.size, grid.size
        self.edges = first = np.searchsorted(q, edges(grid))
        self.filled = np.flatnonzero(np.diff(first))
        self.inside = slice(first[0], first[-1])
        self.starts = first[self.filled] - first[0]

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
        means, errors = rebin_rows(as_rows(I), as_rows(sigma), as_rows(weight), self.edges)
        return means.reshape(*shape[:-1], self.points), errors.reshape(*shape[:-1], self.points)


def as_rows(values: NDArray[Any]) -> NDArray[np.float64]:
    """(…, n) as (rows, n) float64, one after the other in memory."""
    rows = np.ascontiguousarray(values, dtype=np.float64)
    return rows.reshape(-1, rows.shape[-1])


def rows_like(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The same of values that may be one curve for all."""
    return as_rows(values if np.ndim(values) == 1 else np.broadcast_to(values, shape))
