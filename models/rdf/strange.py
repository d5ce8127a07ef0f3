"""Ten kinds of input that the model was not made for, made from curves that it was.

Each takes F (n, 1226) on `simulate.Q` without noise and its density, and returns both, spoilt. Counting noise comes
after.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.rdf.simulate import Q
from models.rdf.structure import R, sines

Floats = NDArray[np.float64]
Spoiler = Callable[[Floats, Floats, np.random.Generator], tuple[Floats, Floats]]

CRYSTALS = {"fcc": (4.09, 0.25), "diamond": (5.66, 0.5)}
"""Lattice parameter in Å (silver, germanium), and what tells the lattices apart: the offset of a second fcc lattice."""


def crystal(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Silver or germanium powder in place of the glass, with the glass's density declared."""
    kinds = list(CRYSTALS)
    patterns = {name: _crystal_F(name) for name in kinds}
    chosen = rng.integers(len(kinds), size=len(F))
    return np.array([patterns[kinds[k]] for k in chosen]), density


def wrong_composition(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Another substance than declared: a silica-like glass (1.62 Å, fourfold) under the density of the sample."""
    r1, r2 = 1.62 * (1 + rng.normal(0, 0.01, (len(F), 1))), 2.63
    rho = 0.066
    rdf = 2.7 / (0.05 * np.sqrt(2 * np.pi)) * np.exp(-(((R - r1) / 0.05) ** 2) / 2)
    rdf = rdf + 4.0 / (0.1 * np.sqrt(2 * np.pi)) * np.exp(-(((R - r2) / 0.1) ** 2) / 2)
    g = rdf / (4 * np.pi * rho * R**2) + 1 / (1 + np.exp(-(R - 3.1) / 0.12))
    G = 4 * np.pi * rho * R * (g - 1)
    return G @ sines(Q).T, density


def scale(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Normalised 10 % too high or too low: S·(1 ± 0.1)."""
    wrong = rng.choice([-0.1, 0.1], size=(len(F), 1))
    return F + wrong * (F + Q), density


def amplitude(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """F itself 10 % too large or too small, where S still tends to 1: half of the container, or a wrong ⟨f⟩²."""
    return F * (1 + rng.choice([-0.1, 0.1], size=(len(F), 1))), density


def q_error(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """q 1 % too large or too small: distance or wavelength wrong."""
    factor = 1 + rng.choice([-0.01, 0.01], size=len(F))
    return np.array([np.interp(Q * s, Q, f) / s for f, s in zip(F, factor, strict=True)]), density


def bragg(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """5 % of the sample crystallised: Bragg peaks on the glass."""
    kinds = [_crystal_F(name) for name in CRYSTALS]
    chosen = rng.integers(len(kinds), size=len(F))
    return 0.95 * F + 0.05 * np.array([kinds[k] for k in chosen]), density


def background(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """5 % of a silica container left in the pattern."""
    other, _ = wrong_composition(F, density, rng)
    return F + 0.05 * other, density


def wrong_density(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The density declared 15 % too high or too low."""
    return F, density * (1 + rng.choice([-0.15, 0.15], size=len(F)))


def spikes(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Three single points of the pattern ten times their noise off: hot pixels in a ring, or a ring half masked."""
    out = F.copy()
    for row in out:
        where = rng.choice(np.flatnonzero((Q > 2) & (Q < 12)), 3, replace=False)
        row[where] += 0.1 * Q[where] * rng.choice([-1, 1], 3)
    return out, density


def more_noise(F: Floats, density: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Twice the noise that is declared."""
    return F + np.sqrt(3) * 0.01 * Q * rng.normal(size=F.shape), density


KINDS: dict[str, Spoiler] = {
    "crystal": crystal,
    "wrong_composition": wrong_composition,
    "scale_10_percent": scale,
    "amplitude_10_percent": amplitude,
    "q_error_1_percent": q_error,
    "bragg_5_percent": bragg,
    "background_5_percent": background,
    "density_15_percent": wrong_density,
    "spikes": spikes,
    "noise_times_2": more_noise,
}


def _crystal_F(name: str) -> Floats:
    """F of a cubic crystal up to 20 Å, resolved like a detector's 0.03 Å⁻¹: with thermal widths of 0.08 Å."""
    a, offset = CRYSTALS[name]
    n = np.arange(-6, 7)
    corners = np.stack(np.meshgrid(n, n, n, indexing="ij"), -1).reshape(-1, 3)
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = fcc if name == "fcc" else np.concatenate([fcc, fcc + offset / 2])
    distance = a * np.sqrt((((corners[:, None] + sites).reshape(-1, 3)) ** 2).sum(1))
    shells, counts = np.unique(np.round(distance[distance > 0.1], 4), return_counts=True)
    rho = len(sites) / a**3
    rdf = sum(
        count / (0.08 * np.sqrt(2 * np.pi)) * np.exp(-(((R - shell) / 0.08) ** 2) / 2)
        for shell, count in zip(shells, counts, strict=True)
        if shell < R[-1] + 1
    )
    G = (rdf / R - 4 * np.pi * rho * R) * np.exp(-((0.09 * R) ** 2) / 2)
    F: Floats = np.sin(np.outer(Q, R)) @ G * (R[1] - R[0])
    return F
