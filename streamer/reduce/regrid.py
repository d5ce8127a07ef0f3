"""A curve on another uniform grid, with its uncertainty: what brings a detector's bins to a network's.

Where the measured bins are finer than the grid, the points of a cell are averaged, each with the part of it that lies
in the cell; where they are coarser, the curve is interpolated linearly. Both are one sparse row per point, computed
once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput

__all__ = ["Regrid"]

Floats = NDArray[np.float64]


class Regrid:
    """From measured to grid, both ascending in one unit; the grid uniform. Points outside what was measured become 0.

    is_inside: (m,) which points of the grid were measured.
    thinning: noise of one point of the grid that carries the same information as the measured bins: where bins are
        coarser than the grid, neighbouring points share them, and each counts for less than its σ says.
    """

    def __init__(self, measured: Floats, grid: Floats) -> None:
        if measured.size < 2 or grid.size < 2 or np.any(np.diff(measured) <= 0) or np.any(np.diff(grid) <= 0):
            raise BadInput("regrid: both axes must ascend and hold two points at least")
        step, bin_width = float(grid[1] - grid[0]), float(np.median(np.diff(measured)))
        self.is_inside = (grid >= measured[0] - step / 2) & (grid <= measured[-1] + step / 2)
        self.thinning = max(1.0, float(np.sqrt(bin_width / step)))
        rows = _averaging(measured, grid, step) if bin_width < step else _interpolating(measured, grid)
        self._columns, self._weights = rows
        self._weights[~self.is_inside] = 0.0

    def __call__(self, values: Floats) -> Floats:
        """(m,) of (n,) values."""
        found: Floats = (self._weights * values[self._columns]).sum(axis=1)
        return found

    def sigma(self, sigma: Floats) -> Floats:
        """(m,) of independent points' σ (n,), multiplied with `thinning`."""
        found: Floats = np.sqrt(((self._weights * sigma[self._columns]) ** 2).sum(axis=1)) * self.thinning
        return found


def _averaging(measured: Floats, grid: Floats, step: float) -> tuple[NDArray[np.int64], Floats]:
    """For every cell of the grid the bins that overlap with it, and how much each does."""
    middles = (measured[1:] + measured[:-1]) / 2
    edges = np.concatenate([[2 * measured[0] - middles[0]], middles, [2 * measured[-1] - middles[-1]]])
    first = np.clip(np.searchsorted(edges, grid - step / 2, side="right") - 1, 0, measured.size - 1)
    last = np.clip(np.searchsorted(edges, grid + step / 2, side="left") - 1, 0, measured.size - 1)
    width = int((last - first).max()) + 1
    columns = np.minimum(first[:, None] + np.arange(width), measured.size - 1)
    overlap = np.minimum(edges[columns + 1], grid[:, None] + step / 2) - np.maximum(
        edges[columns], grid[:, None] - step / 2
    )
    overlap = np.where(first[:, None] + np.arange(width) <= last[:, None], np.maximum(overlap, 0), 0)
    total = overlap.sum(axis=1, keepdims=True)
    return columns, overlap / np.where(total > 0, total, 1)


def _interpolating(measured: Floats, grid: Floats) -> tuple[NDArray[np.int64], Floats]:
    left = np.clip(np.searchsorted(measured, grid, side="right") - 1, 0, measured.size - 2)
    t = np.clip((grid - measured[left]) / (measured[left + 1] - measured[left]), 0, 1)
    return np.stack([left, left + 1], axis=1), np.stack([1 - t, t], axis=1)
