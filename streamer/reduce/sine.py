"""The sine transform between F(q) and G(r), exact on its grids, with its uncertainty.

    G(r) = (2/π) Σ F(qⱼ) sin(qⱼ r) Δqⱼ           σ_G²(r) = (2/π)² Σ (σ_F(qⱼ) sin(qⱼ r) Δqⱼ)²

On two uniform grids both are chirp transforms (Bluestein 1970): three FFTs of a few thousand points in place of a
matrix of millions. The sum is the same to rounding, no matter how the steps of q and r relate; on other grids the
matrix is used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput

__all__ = ["SineTransform"]

Floats = NDArray[np.float64]

UNIFORM = 1e-3
"""Largest departure from a uniform grid, in steps: what a text file of seven digits leaves. With a step of 0.02 Å⁻¹ it
shifts the phase at r = 60 Å by 10⁻³ rad."""
SMALL = 200_000
"""Elements of a matrix that is faster than FFTs."""


class SineTransform:
    """From q (n,) Å⁻¹ to r (m,) Å, both ascending.

    window: (n,) factor on F, e.g. Lorch's sinc(q/q_max); None for none. The weights Δq are those of the trapezoidal
    rule. Raises BadInput if a grid does not ascend.
    """

    def __init__(self, q: Floats, r: Floats, *, window: Floats | None = None) -> None:
        self.q, self.r = np.asarray(q, dtype=np.float64), np.asarray(r, dtype=np.float64)
        for name, grid in (("q", self.q), ("r", self.r)):
            if grid.ndim != 1 or grid.size < 2 or not np.all(np.diff(grid) > 0):
                raise BadInput(f"sine transform: {name} does not ascend; sort it and merge equal points")
        self._weight = (2 / np.pi) * np.gradient(self.q)
        self._weight[[0, -1]] /= 2
        if window is not None:
            self._weight = self._weight * window
        self._matrix: Floats | None = None
        if self.q.size * self.r.size > SMALL and _is_uniform(self.q) and _is_uniform(self.r):
            self._chirp, self._double = _Chirp(self.q, self.r), _Chirp(self.q, 2 * self.r)
        else:
            self._matrix = np.sin(np.outer(self.r, self.q)) * self._weight

    def __call__(self, F: Floats) -> Floats:
        """G: (m,) Å⁻² of F: (n,) Å⁻¹."""
        if self._matrix is not None:
            G: Floats = self._matrix @ F
            return G
        return self._chirp(F * self._weight).imag

    def sigma(self, sigma_F: Floats) -> Floats:
        """σ of G where the points of F are independent with σ_F."""
        variance = (sigma_F * self._weight) ** 2
        if self._matrix is not None:
            spread = (self._matrix / self._weight) ** 2 @ variance
        else:
            spread = (variance.sum() - self._double(variance).real) / 2
        sigma: Floats = np.sqrt(np.maximum(spread, 0))
        return sigma


class _Chirp:
    """Σ xⱼ exp(i qⱼ rₖ) on two uniform grids: jk = (j² + k² − (k − j)²)/2 makes a convolution of the sum."""

    def __init__(self, q: Floats, r: Floats) -> None:
        n, m = q.size, r.size
        dq, dr = (q[-1] - q[0]) / (n - 1), (r[-1] - r[0]) / (m - 1)
        j, k = np.arange(n), np.arange(m)
        self._size = _fast_size(n + m - 1)
        self._n, self._m = n, m
        self._before = np.exp(1j * (j * dq * r[0] + 0.5 * dq * dr * j.astype(np.float64) ** 2))
        self._after = np.exp(1j * (q[0] * r + 0.5 * dq * dr * k.astype(np.float64) ** 2))
        lags = np.zeros(self._size, dtype=np.complex128)
        lag = np.concatenate([k, np.arange(-(n - 1), 0)]).astype(np.float64)
        lags[np.concatenate([k, np.arange(self._size - n + 1, self._size)])] = np.exp(-0.5j * dq * dr * lag**2)
        self._response = np.fft.fft(lags)

    def __call__(self, x: Floats) -> NDArray[np.complex128]:
        spectrum = np.fft.fft(x * self._before, self._size)
        spectrum *= self._response
        found: NDArray[np.complex128] = np.fft.ifft(spectrum)[: self._m] * self._after
        return found


def _is_uniform(grid: Floats) -> bool:
    steps = np.diff(grid)
    return bool(np.abs(grid - np.linspace(grid[0], grid[-1], grid.size)).max() < UNIFORM * steps.mean())


def _fast_size(least: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least this: the lengths that FFTs are fast at."""
    sizes: list[int] = [2**a * 3**b * 5**c for b in range(4) for c in range(4) for a in range(least.bit_length() + 1)]
    return min(size for size in sizes if size >= least)
