"""A face-centred cubic crystal's G(r), to be fitted to a measured one: the check of the chain on a real standard.

G(r) = [RDF(r)/r − 4π ρ₀ r] exp(−(δ r)²/2), with a Gaussian for every shell of neighbours, of width
σ² = 2 U (1 − c/r²) + (b r)² (correlated motion as in PDFgui, Farrow et al. 2007), cut off at q_max as the measured
one is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]

STEP_A = 0.02
FURTHER_A = 4.0
"""How much further than the fit the model reaches, so that the cut-off in q spreads no edge into it."""


@dataclass(frozen=True)
class Fit:
    """a_A: lattice parameter.   residual: Rw = √(Σ(G − model)² / ΣG²) over the range of the fit."""

    a_A: float
    residual: float
    scale: float
    U_A2: float
    damping_per_A: float


class Fcc:
    """The model on the uniform grid r of a measured G, cut off at q_max (Å⁻¹)."""

    def __init__(self, r: Floats, q_max: float) -> None:
        self.r = r
        self.grid = np.arange(STEP_A, r[-1] + FURTHER_A, STEP_A)
        q = np.arange(0.01, q_max, np.pi / (2 * self.grid[-1]))
        forward = np.sin(np.outer(q, self.grid)) * STEP_A
        back = np.sin(np.outer(r, q)) * (2 / np.pi) * (q[1] - q[0])
        self._cut = back @ forward
        edge = int(np.ceil(1.5 * self.grid[-1] / 3.4)) + 1
        n = np.arange(-edge, edge + 1)
        corners = np.stack(np.meshgrid(n, n, n, indexing="ij"), -1).reshape(-1, 3)
        sites = (corners[:, None] + np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])).reshape(-1, 3)
        squares, self._count = np.unique(np.round(2 * (sites**2).sum(1)).astype(int), return_counts=True)
        self._shell, self._count = np.sqrt(squares[1:] / 2), self._count[1:]

    def __call__(self, parameters: Floats) -> Floats:
        """G on r. parameters: a, scale, U, damping δ, broadening b, correlation c."""
        a, scale, U, damping, broadening, correlation = parameters
        R = a * self._shell
        inside = self.grid[-1] + 1 > R
        R, count = R[inside], self._count[inside]
        width = np.sqrt(np.maximum(2 * U * (1 - correlation / R**2), 1e-4) + (broadening * R) ** 2)
        rdf = np.zeros_like(self.grid)
        for distance, number, sigma in zip(R, count, width, strict=True):
            near = slice(*np.searchsorted(self.grid, [distance - 6 * sigma, distance + 6 * sigma]))
            rdf[near] += (
                number / (sigma * np.sqrt(2 * np.pi)) * np.exp(-(((self.grid[near] - distance) / sigma) ** 2) / 2)
            )
        G = rdf / self.grid - 16 * np.pi / a**3 * self.grid
        return scale * (self._cut @ (G * np.exp(-((damping * self.grid) ** 2) / 2)))


def fit_fcc(r: Floats, G: Floats, *, q_max: float, a: float, low: float = 1.5, high: float = 30.0) -> Fit:
    """The lattice parameter and what a least-squares fit leaves, between low and high (Å). a: where to begin."""
    rows = (r >= low) & (r <= high)
    model, wanted = Fcc(r[rows], q_max), G[rows]
    start = np.array([a, 1.0, 0.006, 0.03, 0.005, 1.0])
    shape = model(start)
    start[1] = float(shape @ wanted) / float(shape @ shape)
    bounds = ([a - 0.05, 0, 1e-3, 0, 0, -5], [a + 0.05, np.inf, 0.05, 0.3, 0.05, 5])
    found = least_squares(lambda p: model(p) - wanted, start, bounds=bounds, x_scale=np.abs(start))
    residual = float(np.sqrt((found.fun**2).sum() / (wanted**2).sum()))
    return Fit(found.x[0], residual, found.x[1], found.x[2], found.x[3])
