"""The sine transform between F(q) and G(r), exact on its grids, with its uncertainty.

    G(r) = (2/π) Σ F(qⱼ) sin(qⱼ r) Δqⱼ           σ_G²(r) = (2/π)² Σ (σ_F(qⱼ) sin(qⱼ r) Δqⱼ)²

Measured patterns are finer in q than waves up to r_max need, and G(r) is finer in r than waves up to q_max. So where
both grids are uniform, the points of F are gathered on a coarse grid with Kaiser–Bessel weights, a matrix leads to
a coarse grid in r, and from there weights of the same kind lead to r; what the weights do to a wave is divided out (the
non-uniform Fourier transform of Greengard & Lee, SIAM Review 46 (2004) 443, on both sides). Up to far r, where that
matrix would be large, chirps take its place (Bluestein 1970): three FFTs. Both are the sum to rounding, no matter how
the steps of q and r relate. On other grids the whole matrix is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.waves import gathered

__all__ = ["SineTransform"]

Floats = NDArray[np.float64]

UNIFORM = 1e-3
"""Largest departure from a uniform grid, in steps: what a text file of seven digits leaves. With a step of 0.02 Å⁻¹ it
shifts the phase at r = 60 Å by 10⁻³ rad."""
SMALL = 200_000
"""Elements of a matrix that is faster than FFTs."""
TAPS, OVERSAMPLING = 16, 2.0
"""Coarse points that a fine one gives to, and how much denser they are than the waves need. What is left is rounding,
10⁻¹⁴ of Σ|F|Δq."""
BETA = np.pi * TAPS * (1 - 1 / (2 * OVERSAMPLING))
"""Of the Kaiser–Bessel function I₀(β√(1 − x²)): the value of Beatty, Nishimura & Pauly, IEEE Trans. Med. Imaging 24
(2005) 799, without their correction for the few taps of images."""


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
        self._sines = _sums(self.q, self.r, np.sin)
        self._cosines = _sums(self.q, 2 * self.r, np.cos)
        self(np.zeros(self.q.size))  # compiled before the first frame

    def __call__(self, F: Floats) -> Floats:
        """G: (m,) Å⁻² of F: (n,) Å⁻¹."""
        return self._sines(np.asarray(F, dtype=np.float64), self._weight)

    def sigma(self, sigma_F: Floats) -> Floats:
        """σ of G where the points of F are independent with σ_F. It is sin² x = (1 − cos 2x)/2 that is summed."""
        variance = (sigma_F * self._weight) ** 2
        spread = (variance.sum() - self._cosines(variance, np.ones_like(variance))) / 2
        sigma: Floats = np.sqrt(np.maximum(spread, 0))
        return sigma


Wave = Callable[[Floats], Floats]
"""np.sin or np.cos."""


def _sums(q: Floats, r: Floats, wave: Wave) -> Callable[[Floats, Floats], Floats]:
    """What makes Σ wⱼ xⱼ wave(qⱼ rₖ) of x and w, by the way that is fastest on these grids."""
    if q.size * r.size > SMALL and _is_uniform(q) and _is_uniform(r):
        of_q = _Coarse(q, r[-1])
        of_r = _Coarse(r, float(np.abs(of_q.grid).max()))
        is_small = of_q.grid.size * of_r.grid.size <= SMALL and of_q.is_coarser and of_r.is_coarser
        return _Gathered(of_q, of_r, wave) if is_small else _Chirp(q, r, wave)
    matrix = wave(np.outer(r, q))
    return lambda x, weight: matrix @ (weight * x)


class _Coarse:
    """The coarse grid that stands for a uniform fine one, for waves up to `fastest`: a distance for q, a q for r.

    Blocks of `together` fine points begin at a coarse one.   grid: the coarse points, `TAPS`/2 − 1 before the first and
    `TAPS`/2 behind the last block.   taps: (together, TAPS), what the fine points of a block share with those around.
    is_coarser: whether there is such a grid at all.
    """

    def __init__(self, fine: Floats, fastest: float) -> None:
        step = (fine[-1] - fine[0]) / (fine.size - 1)
        together = int(np.pi / (OVERSAMPLING * fastest * step))
        self.is_coarser = together > 0
        together = max(together, 1)
        blocks = -(-fine.size // together)
        self.fine, self._step = fine, step * together
        self.grid = fine[0] + self._step * (1 - TAPS // 2 + np.arange(blocks + TAPS - 1))
        away = np.arange(1 - TAPS // 2, TAPS // 2 + 1) - np.arange(together)[:, None] / together
        self.taps = np.i0(BETA * np.sqrt(np.maximum(1 - (2 * away / TAPS) ** 2, 0))) / np.i0(BETA)

    def divisor(self, frequency: Floats) -> Floats:
        """What the taps multiply a wave of this frequency with: the Fourier transform of the Kaiser–Bessel function."""
        reach = TAPS * self._step / 2
        root = np.sqrt(BETA**2 - (reach * frequency) ** 2)
        found: Floats = 2 * reach / self._step * np.sinh(root) / (root * np.i0(BETA))
        return found


class _Gathered:
    """The sums by way of two coarse grids."""

    def __init__(self, q: _Coarse, r: _Coarse, wave: Wave) -> None:
        self._q_taps, self._r_taps = q.taps, r.taps
        self._waves = wave(np.outer(r.grid, q.grid)) / r.divisor(q.grid)
        self._after = 1 / q.divisor(r.fine)

    def __call__(self, x: Floats, weight: Floats) -> Floats:
        found: Floats = gathered(x, weight, self._q_taps, self._waves, self._r_taps, self._after)
        return found


class _Chirp:
    """The sums on two uniform grids: jk = (j² + k² − (k − j)²)/2 makes a convolution of them."""

    def __init__(self, q: Floats, r: Floats, wave: Wave) -> None:
        n, m = q.size, r.size
        dq, dr = (q[-1] - q[0]) / (n - 1), (r[-1] - r[0]) / (m - 1)
        j, k = np.arange(n), np.arange(m)
        self._size = _fast_size(n + m - 1)
        self._n, self._m, self._wave = n, m, wave
        self._before = np.exp(1j * (j * dq * r[0] + 0.5 * dq * dr * j.astype(np.float64) ** 2))
        self._after = np.exp(1j * (q[0] * r + 0.5 * dq * dr * k.astype(np.float64) ** 2))
        lags = np.zeros(self._size, dtype=np.complex128)
        lag = np.concatenate([k, np.arange(-(n - 1), 0)]).astype(np.float64)
        lags[np.concatenate([k, np.arange(self._size - n + 1, self._size)])] = np.exp(-0.5j * dq * dr * lag**2)
        self._response = np.fft.fft(lags)

    def __call__(self, x: Floats, weight: Floats) -> Floats:
        spectrum = np.fft.fft(weight * x * self._before, self._size)
        spectrum *= self._response
        found: Any = np.fft.ifft(spectrum)[: self._m] * self._after
        part: Floats = found.imag if self._wave is np.sin else found.real
        return part


def _is_uniform(grid: Floats) -> bool:
    steps = np.diff(grid)
    return bool(np.abs(grid - np.linspace(grid[0], grid[-1], grid.size)).max() < UNIFORM * steps.mean())


def _fast_size(least: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least this: the lengths that FFTs are fast at."""
    sizes: list[int] = [2**a * 3**b * 5**c for b in range(4) for c in range(4) for a in range(least.bit_length() + 1)]
    return min(size for size in sizes if size >= least)
