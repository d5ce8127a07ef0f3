"""Curves to learn from: pairs of F(q) and G(r) of glasses there are boxes of, and of a broad family of others.

    family   boxes of Ge–Se and Ag–Ge–Se, seen by X-rays, neutrons and weightings between; stretched,
             broadened, and mixed with each other, so that compositions between and beside the boxes are there too
    broad    analytic glasses and liquids: one to three shells and a density that sets in behind the first one

Every F carries the errors that a careful experiment leaves: a scale that is off by a percent, and a slow polynomial of
half a percent. Counting noise is not in them: the operators take it in exactly, at any level (`network`).

All curves of one set lie on one q grid from 0.5 Å⁻¹ to the largest q_max; a smaller q_max is a cut of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.rdf.structure import STEP_A, Box, Partials, R, partials, read_extxyz, sines
from streamer.reduce.scattering import Radiation, pair_weights

Floats = NDArray[np.float64]

Q_MIN, Q_STEP, Q_MAX = 0.5, 0.02, 25.0
Q = np.round(np.arange(Q_MIN, Q_MAX + Q_STEP / 2, Q_STEP), 10)
"""(1226,) Å⁻¹: the grid of the model."""
SCALE_ERROR, SLOW_ERROR, SLOW_DEGREE = 0.01, 0.005, 3
"""Standard deviations of n and of the coefficients of a Chebyshev polynomial in S."""

STRETCH, WIDE_STRETCH = 0.004, 0.025
"""Of the family's distances: as compositions differ among themselves, and as the boxes may be off what is measured
(their Ge–Se is 2 to 3 % longer than published)."""
FAMILY_UNFORESEEN, BROAD_UNFORESEEN, FAMILY_HOLE_A = 0.06, 0.3, 2.0
"""Å⁻²: standard deviation of what is added to G where the first shell begins. For the family that is how far two
halves of one run lie apart."""

FOLDER = Path(__file__).parent / "boxes"
COMPOSITIONS = (0, 5, 10, 15, 20, 25)
"""Atomic percent of silver in Ag_x(Ge0.25Se0.75)_{100−x}."""
RADIATIONS: tuple[Radiation, ...] = ("xray", "neutron")


@dataclass(frozen=True)
class Curves:
    """G: (n, 1000) on `structure.R`, Å⁻².   F: (n, 1226) on `Q`, Å⁻¹, without noise.   density: (n,) atoms/Å³."""

    G: Floats
    F: Floats
    density: Floats

    def __len__(self) -> int:
        return len(self.G)

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Curves:
        return Curves(self.G[rows], self.F[rows], self.density[rows])


def joined(*parts: Curves) -> Curves:
    """All curves of several sets."""
    return Curves(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("G", "F", "density")))


def box_of(x: float, folder: Path = FOLDER) -> Box:
    """The box of a composition in the folder."""
    return read_extxyz(folder / f"ag{x:02g}_300K.extxyz")


def windows(box: Box) -> list[Partials]:
    """The whole run, its halves and its fifths: what one composition gives to learn from."""
    n = len(box.positions)
    cuts = [slice(0, n)]
    cuts += [slice(k * n // 2, (k + 1) * n // 2) for k in range(2)]
    cuts += [slice(k * n // 5, (k + 1) * n // 5) for k in range(5)]
    return [partials(box.part(cut)) for cut in cuts]


def truths(windows_of_one: Sequence[Partials]) -> Curves:
    """What is tested on: the whole run and its halves (the first three windows), X-rays and neutrons, nothing added."""
    rows = [(one, radiation) for one in windows_of_one[:3] for radiation in RADIATIONS]
    return Curves(
        np.array([one.total(radiation) for one, radiation in rows]),
        np.array([one.scattered(radiation, Q) for one, radiation in rows]),
        np.array([one.density for one, _ in rows]),
    )


class Family:
    """Draws of glasses between and beside the boxes. share: part of the (window, radiation) curves that may be used."""

    def __init__(self, boxes: Sequence[Sequence[Partials]], rng: np.random.Generator, *, share: float = 1.0) -> None:
        self.bases = [_based(one, weighting, rng) for some in boxes for one in some for weighting in (0, 1, 2, 3)]
        if share < 1:
            kept = rng.permutation(len(self.bases))[: max(2, round(share * len(self.bases)))]
            self.bases = [self.bases[k] for k in kept]

    def draw(self, n: int, rng: np.random.Generator, *, stretch: float = STRETCH) -> Curves:
        """n curves with the errors of an experiment. stretch: standard deviation of the logarithm of the scale of r."""
        G, extra, density = (np.array(column) for column in zip(*self.bases, strict=True))
        first, second = rng.integers(len(self.bases), size=(2, n))
        share = np.where(rng.random(n) < 0.5, 1.0, rng.uniform(0.0, 1.0, n))[:, None]
        mixed = share * G[first] + (1 - share) * G[second]
        beside = share * extra[first] + (1 - share) * extra[second]
        rho = share[:, 0] * density[first] + (1 - share[:, 0]) * density[second]
        mixed, rho = _varied(mixed, rho, stretch, rng)
        mixed = _unforeseen(mixed, np.full(n, FAMILY_HOLE_A), FAMILY_UNFORESEEN, rng)
        return _measured(mixed, rho, rng, beside)


def _based(one: Partials, weighting: int, rng: np.random.Generator) -> tuple[Floats, Floats, float]:
    """G, what F has beside the transform of G, and density of a box seen in one way."""
    if weighting < 2:
        G = one.total(RADIATIONS[weighting])
        return G, one.scattered(RADIATIONS[weighting], Q) - sines(Q) @ G, one.density
    at_zero = pair_weights(one.composition, np.zeros(1), "xray")
    factor = {symbol: np.exp(rng.normal(0, 0.25)) for symbol in one.composition.symbols}
    weights = {(i, j): float(w[0]) * factor[i] * factor[j] for (i, j), w in at_zero.items()}
    total = sum(weights.values())
    mixed = sum(weights[pair] / total * (g - 1) for pair, g in one.g.items())
    return 4 * np.pi * one.density * R * mixed, np.zeros(Q.size), one.density


def _varied(G: Floats, density: Floats, stretch: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Stretched and, every second one, broadened: another temperature, potential or pressure."""
    n = len(G)
    scale = np.exp(rng.normal(0, stretch, n))
    stretched = np.array([np.interp(R / s, R, g) for s, g in zip(scale, G, strict=True)]) / scale[:, None] ** 2
    width = np.where(rng.random(n) < 0.5, 0.0, rng.uniform(0.0, 0.06, n))
    return _broadened(stretched, width), density / scale**3


def _broadened(G: Floats, width: Floats) -> Floats:
    """G convolved with Gaussians, as an odd function of r: the density line −4πρ₀r is what it leaves alone."""
    both = np.concatenate([-G[:, ::-1], np.zeros((len(G), 1)), G], axis=1)
    k = 2 * np.pi * np.fft.rfftfreq(both.shape[1], STEP_A)
    smooth = np.fft.irfft(np.fft.rfft(both) * np.exp(-((k * width[:, None]) ** 2) / 2), both.shape[1])
    return smooth[:, G.shape[1] + 1 :]


def _unforeseen(G: Floats, start: Floats, amplitude: float, rng: np.random.Generator) -> Floats:
    """G with smooth random curves beyond start (n,), fading over 4 Å: what neither boxes nor formulas thought of."""
    n = len(G)
    k = 2 * np.pi * np.fft.rfftfreq(R.size, STEP_A)
    length = rng.uniform(0.1, 0.35, (n, 1))
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=(n, R.size))) * np.exp(-((k * length) ** 2) / 2), R.size)
    noise /= noise.std(axis=1, keepdims=True)
    away = R - start[:, None]
    return G + amplitude * np.where(away > 0, noise * np.exp(-np.abs(away) / 4) * np.clip(away / 0.3, 0, 1), 0.0)


def _measured(G: Floats, density: Floats, rng: np.random.Generator, beside: Floats | float = 0.0) -> Curves:
    return Curves(G, with_errors(G @ sines(Q).T + beside, rng), density)


def with_errors(F: Floats, rng: np.random.Generator, *, scale: float = SCALE_ERROR, slow: float = SLOW_ERROR) -> Floats:
    """F as a normalisation leaves it: S becomes (1 + α)S + polynomial."""
    n = len(F)
    alpha = rng.normal(0, scale, (n, 1))
    polynomial = rng.normal(0, slow, (n, SLOW_DEGREE + 1)) @ _slow().T
    return F + alpha * (F + Q) + Q * polynomial


def _slow() -> Floats:
    return np.polynomial.chebyshev.chebvander(2 * Q / Q_MAX - 1, SLOW_DEGREE)


def broad(n: int, rng: np.random.Generator) -> tuple[Curves, Floats]:
    """n analytic glasses with the errors of an experiment, and the distance of their first shell (n,) in Å.

    One to four shells of Gaussians in the RDF, then a smooth onset of the mean density with a decaying oscillation.
    """
    density = rng.uniform(0.02, 0.09, n)
    r1 = rng.uniform(1.45, 3.3, n)
    count = np.where(r1 >= 2.7, rng.uniform(1.5, 13, n), rng.uniform(1.5, 6, n))
    width = rng.uniform(0.05, 0.16, n) * np.maximum(1, r1 / 2.5)
    rdf = _gaussian(count, r1, width)
    for shell in range(3):
        is_there = rng.random(n) < (1.0, 0.7, 0.5)[shell]
        r1_next = r1 * rng.uniform(1.05, 1.45, n) if shell == 0 else r1 + rng.uniform(0.45, 1.6, n) * (shell + 1) / 2
        rdf += _gaussian(np.where(is_there, rng.uniform(0.5, 10, n), 0.0), r1_next, rng.uniform(0.07, 0.4, n))
    onset = rng.uniform(r1 + 0.4, 1.8 * r1 + 0.5)
    steep = rng.uniform(0.15, 0.5, n)
    period, decay = rng.uniform(1.4, 3.4, n), rng.uniform(1.5, 5, n)
    swing, phase = rng.uniform(0, 0.35, n), rng.uniform(0, 2 * np.pi, n)
    rise = 1 / (1 + np.exp(-np.clip((R - onset[:, None]) / steep[:, None] * 2, -60, 60)))
    wave = (
        swing[:, None]
        * np.exp(-(R - onset[:, None]) / decay[:, None])
        * np.cos(2 * np.pi * (R - onset[:, None]) / period[:, None] + phase[:, None])
    )
    g = rdf / (4 * np.pi * density[:, None] * R**2) + rise * (1 + np.where(onset[:, None] < R, wave, 0))
    g = np.where(r1[:, None] - 6 * width[:, None] > R, 0.0, g)
    G = _unforeseen(4 * np.pi * density[:, None] * R * (g - 1), r1 - 3 * width, BROAD_UNFORESEEN, rng)
    return _measured(G, density, rng), r1


def _gaussian(count: Floats, position: Floats, width: Floats) -> Floats:
    x = (R - position[:, None]) / width[:, None]
    return count[:, None] / (width[:, None] * np.sqrt(2 * np.pi)) * np.exp(-(x**2) / 2)
