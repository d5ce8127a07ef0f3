"""From boxes of atoms to partial pair distributions, totals and the structure factors an instrument would see.

A box gives g_ij(r) up to half its edge. Beyond, where a structure factor still needs it, r(g − 1) is carried on as the
decaying oscillation that fits its last ångströms: what the truth says there is a guess, and no figure looks there.

g_ij are histograms of 0.02 Å. Fifty frames of 120 atoms leave a ripple in them that is no structure: the two halves
of one run differ by 13–17 % (Rw, 1.5–7 Å) in curves smoothed with 0.03 Å. So the histograms are smoothed with a
Gaussian of 0.03 Å up to the first shell and of 0.07 Å from the second on, whose own width is 0.2 Å and more;
everything said of a "truth" means these curves. Positions in Å, q in Å⁻¹, densities in atoms/Å³.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import least_squares

from streamer.reduce.scattering import Composition, Radiation, pair_weights

Floats = NDArray[np.float64]

STEP_A = 0.02
R = np.arange(STEP_A, 20.0 + STEP_A / 2, STEP_A)
"""The grid of all truths, (1000,) Å. Beyond 20 Å a glass has no structure that matters at ΔQ = 0.02 Å⁻¹."""
SMOOTHING_A = (0.03, 0.07)
"""Standard deviation of the smoothing, below and above `SMOOTHING_AT_A`, between which it changes over."""
SMOOTHING_AT_A = (2.9, 3.6)
TAIL_FROM_A = 4.5
"""From here to half the edge the decaying oscillation is fitted."""
BLEND_A = 0.5
"""The last ångströms of a box in which its own g fades into the oscillation."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Box:
    """A cubic periodic box: symbols (N,), edge L in Å, positions (frames, N, 3)."""

    symbols: NDArray[np.str_]
    L: float
    positions: Floats

    @property
    def density(self) -> float:
        return len(self.symbols) / self.L**3

    @cached_property
    def composition(self) -> Composition:
        names, counts = np.unique(self.symbols, return_counts=True)
        return Composition.parse({str(name): float(count) for name, count in zip(names, counts, strict=True)})

    def part(self, frames: slice) -> Box:
        """The same box in some of its frames."""
        return Box(self.symbols, self.L, self.positions[frames])


def read_extxyz(path: Path) -> Box:
    """All frames of an extended XYZ file of a cubic box whose atoms keep their order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    atoms = int(lines[0])
    L = float(lines[1].split('Lattice="')[1].split()[0])
    rows = [line.split() for first in range(2, len(lines), atoms + 2) for line in lines[first : first + atoms]]
    symbols = np.array([row[0] for row in rows[:atoms]])
    return Box(symbols, L, np.array([row[1:4] for row in rows], dtype=np.float64).reshape(-1, atoms, 3))


def read_sova(path: Path) -> Box:
    """One frame, as sova writes it: the number of atoms, "CUB L", then symbols and coordinates."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines[2 : 2 + int(lines[0])]]
    positions = np.array([row[1:4] for row in rows], dtype=np.float64)
    return Box(np.array([row[0] for row in rows]), float(lines[1].split()[1]), positions[None])


@dataclass(frozen=True)
class Partials:
    """g_ij on `R` (1000,) for every pair of elements, up to `reach` from the box and continued beyond."""

    composition: Composition
    density: float
    reach: float
    g: dict[Pair, Floats]

    def total(self, radiation: Radiation) -> Floats:
        """G = 4π ρ₀ r Σ w_ij (g_ij − 1) in Å⁻², with the weights of q = 0."""
        weights = pair_weights(self.composition, np.zeros(1), radiation)
        mixed = sum(weights[pair][0] * (g - 1) for pair, g in self.g.items())
        return 4 * np.pi * self.density * R * mixed

    def scattered(self, radiation: Radiation, q: Floats) -> Floats:
        """F(q) in Å⁻¹ as it would be measured: with form factors that change with q where they do."""
        weights = pair_weights(self.composition, q, radiation)
        return sum(weights[pair] * (sines(q) @ (4 * np.pi * self.density * R * (g - 1))) for pair, g in self.g.items())


_SINES: dict[bytes, Floats] = {}


def sines(q: Floats) -> Floats:
    """(n, 1000): the matrix that makes F(q) of G on `R`. Kept for the grids in use."""
    key = q.tobytes()
    if key not in _SINES:
        _SINES[key] = np.sin(np.outer(q, R)) * STEP_A
    return _SINES[key]


def pair_counts(box: Box) -> dict[Pair, tuple[Floats, float]]:
    """For i ≤ j: histogram of distances per frame on the bins of `R` up to half the edge, and the pairs there are."""
    L, reach = box.L, box.L / 2
    edges = np.concatenate([R - STEP_A / 2, [R[-1] + STEP_A / 2]])
    names = sorted(set(map(str, box.symbols)))
    index = {name: np.flatnonzero(box.symbols == name) for name in names}
    found: dict[Pair, tuple[Floats, float]] = {}
    for i, j in combinations_with_replacement(names, 2):
        counts = np.zeros(R.size)
        for positions in box.positions:
            away = positions[index[i]][:, None] - positions[index[j]][None]
            away -= L * np.round(away / L)
            distance = np.sqrt((away**2).sum(-1))
            distance = distance[np.triu_indices(len(distance), 1)] if i == j else distance.ravel()
            counts += np.histogram(distance[distance < reach], edges)[0]
        pairs = len(index[i]) * (len(index[i]) - 1) / 2 if i == j else len(index[i]) * len(index[j])
        found[(i, j)] = counts / len(box.positions), pairs
    return found


def partials(box: Box) -> Partials:
    """g_ij of a box, smoothed and carried on beyond half its edge."""
    shell = 4 * np.pi * R**2 * STEP_A / box.L**3
    reach = box.L / 2
    g: dict[Pair, Floats] = {}
    order = box.composition.symbols
    for (i, j), (counts, pairs) in pair_counts(box).items():
        pair = (i, j) if order.index(i) <= order.index(j) else (j, i)
        if pairs == 0:
            g[pair] = np.ones(R.size)
            continue
        raw = counts / (pairs * shell)
        g[pair] = _carried_on(_smoothed(raw), reach)
    return Partials(box.composition, box.density, reach, g)


def _smoothed(g: Floats) -> Floats:
    """g without the ripple of few atoms; the number of neighbours (r²g) is what the Gaussian keeps."""
    fine, coarse = (gaussian_filter1d(g * R**2, width / STEP_A, mode="nearest") / R**2 for width in SMOOTHING_A)
    first, last = SMOOTHING_AT_A
    x = np.clip((R - first) / (last - first), 0, 1)
    change = x**2 * (3 - 2 * x)
    return fine * (1 - change) + coarse * change


def _carried_on(g: Floats, reach: float) -> Floats:
    """g with a decaying oscillation from half the edge on, without a step."""
    last = reach - 3 * SMOOTHING_A[1]
    rows = (R > TAIL_FROM_A) & (last > R)
    x, h = R[rows], (R * (g - 1))[rows]
    best = None
    for period in (1.8, 2.4, 3.0):
        start = np.array([np.abs(h).max(), 2.0, 2 * np.pi / period, 0.0])
        fit = least_squares(
            lambda p: p[0] * np.exp(-(x - TAIL_FROM_A) / p[1]) * np.cos(p[2] * (x - TAIL_FROM_A) + p[3]) - h,
            start,
            bounds=([0, 0.5, 1.5, -7], [50, 3.0, 4.5, 7]),
        )
        if best is None or fit.cost < best.cost:
            best = fit
    A, decay, k, phase = best.x
    tail = 1 + A * np.exp(-(R - TAIL_FROM_A) / decay) * np.cos(k * (R - TAIL_FROM_A) + phase) / R
    fade = np.clip((last - R) / BLEND_A, 0, 1)
    fade = fade**2 * (3 - 2 * fade)
    return np.where(last > R, g, 0) * fade + tail * (1 - fade)
