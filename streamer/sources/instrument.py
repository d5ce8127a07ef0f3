"""The instrument behind `sim:saxs`: what the sample scatters, what the detector expects of it, what it counts.

The sample is a 1 vol% suspension of silica spheres in water. Its differential cross-section dΣ/dΩ(q), in cm⁻¹, is put
on the pixels of a real detector layout (solid angle included; the beam is unpolarised, which at these angles changes
less than 0.3 %), scaled to a mean number of counts per pixel, shaded by a beamstop on its arm, and counted: every pixel
of every frame is an independent Poisson number. Gaps between modules read NODATA; some pixels are dead, some hot.

Everything here is a function of its arguments; clock, faults and messages are the business of `simulated`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.records import HC_EV_A

Floats = NDArray[np.float64]

ENERGY_EV = 12_400.0
WAVELENGTH_A = HC_EV_A / ENERGY_EV
DISTANCE_M = 2.0
BEAMSTOP_M = 1.5e-3
"""Radius; the arm that holds it is as wide. 0.05 nm⁻¹ at this distance and energy."""
PENUMBRA_M = 0.2e-3
"""Masked around the beamstop, because its edge is soft."""
SHIFT_M = 0.6e-3

NODATA = 65_535
SATURATION = 21_517
"""Largest valid count; the value a real EIGER2 16M announced."""
HOT_COUNTS = 400.0
BAD_FRACTION = 5e-5
"""Of the pixels that are dead, and of those that are hot."""


def momentum_transfer(tangent: Floats) -> Floats:
    """q = 4π/λ sin θ in 1/nm, where tangent = tan 2θ = distance from the beam over distance from the sample."""
    q: Floats = 40 * np.pi / WAVELENGTH_A * np.sin(np.arctan(tangent) / 2)
    return q


# What scatters. Lengths in nm, q in 1/nm, dΣ/dΩ in 1/cm.

ELECTRON_RADIUS_NM = 2.8179403e-6
SILICA_E_NM3 = 661.5
"""Electrons per nm³: 30 e, 60.08 g/mol, 2.20 g/cm³."""
WATER_E_NM3 = 334.3
"""Electrons per nm³: 10 e, 18.015 g/mol, 1.00 g/cm³."""
WATER_CM1 = 0.01632
"""dΣ/dΩ of water at 293 K. Source: Orthaber, Bergmann & Glatter, J. Appl. Cryst. 33 (2000) 218."""


def sphere(x: Floats) -> Floats:
    """Amplitude of a sphere, 1 at x = q R = 0: 3 (sin x − x cos x) / x³.

    Source: Rayleigh, Proc. R. Soc. A 90 (1914) 219. Below x = 0.01 its series 1 − x²/10 is used (error 4e-11).
    """
    small = x < 0.01
    safe = np.where(small, 1.0, x)
    amplitude: Floats = np.where(small, 1 - x**2 / 10, 3 * (np.sin(safe) - safe * np.cos(safe)) / safe**3)
    return amplitude


def spheres(q: Floats, radius: float, spread: float, fraction: float, contrast: float) -> Floats:
    """dΣ/dΩ in 1/cm of dilute spheres: φ Δρ² ⟨V² F²⟩ / ⟨V⟩, the radii log-normally distributed.

    q: (n,) 1/nm. radius: median, nm. spread: standard deviation of ln R. fraction: φ, of the volume.
    contrast: difference of electron densities, 1/nm³. The averages are over the number of spheres, by Gauss–Hermite
    quadrature with 40 nodes.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    radii = radius * np.exp(spread * nodes)
    volumes = 4 / 3 * np.pi * radii**3
    squares = weights * volumes**2 @ sphere(np.multiply.outer(radii, q)) ** 2
    per_nm: Floats = fraction * (ELECTRON_RADIUS_NM * contrast) ** 2 * squares / (weights @ volumes)
    return per_nm * 1e7


def aggregates(q: Floats, size: float, dimension: float) -> Floats:
    """Shape of fractal aggregates, 1 at q = 0 and falling as q to the power −dimension: (1 + q² ξ²)^(−D/2)."""
    shape: Floats = (1 + (q * size) ** 2) ** (-dimension / 2)
    return shape


def power_law(q: Floats, at_q0: float, exponent: float, q0: float = 0.1) -> Floats:
    """Porod-like scattering of surfaces, windows and slits: at_q0 (q/q0)^−n."""
    law: Floats = at_q0 * (q / q0) ** -exponent
    return law


def suspension(q: Floats) -> Floats:
    """The normal sample: silica spheres of 4 nm in water, 1 vol%."""
    return spheres(q, 4.0, 0.15, 0.01, SILICA_E_NM3 - WATER_E_NM3) + WATER_CM1


def aggregated(q: Floats) -> Floats:
    """What radiation damage adds in the end: aggregates of 30 nm, at q = 0 forty times the particles' scattering.

    A cluster of n particles scatters n times as much at q = 0 as they do apart; with a fractal dimension of 2.2 one of
    30 nm holds about 80 particles of 4 nm, so this is half of them aggregated.
    """
    forward = spheres(np.zeros(1), 4.0, 0.15, 0.01, SILICA_E_NM3 - WATER_E_NM3)
    return 40 * forward * aggregates(q, 30.0, 2.2)


def voids(q: Floats) -> Floats:
    """A few spheres three times as large."""
    return spheres(q, 12.0, 0.2, 3e-4, SILICA_E_NM3 - WATER_E_NM3)


def parasitic(q: Floats) -> Floats:
    """What is there without a sample."""
    return power_law(q, 0.3, 4.0)


@dataclass(frozen=True)
class Detector:
    """Modules in a grid with gaps between them. modules, module, gap: (rows, columns). pixel_m: edge of a pixel."""

    modules: tuple[int, int]
    module: tuple[int, int] = (514, 1030)
    gap: tuple[int, int] = (37, 10)
    pixel_m: float = 75e-6

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = (
            n * size + (n - 1) * gap for n, size, gap in zip(self.modules, self.module, self.gap, strict=True)
        )
        return rows, columns

    @property
    def beam_center(self) -> tuple[float, float]:
        """(column, row), counted from the outer edge of the first pixel; off the middle, to reach higher q."""
        rows, columns = self.shape
        return 0.47 * columns, 0.3 * rows

    def gaps(self) -> NDArray[np.bool_]:
        """(rows, columns), True between the modules."""
        rows, columns = (
            np.arange(length) % (size + gap) >= size
            for length, size, gap in zip(self.shape, self.module, self.gap, strict=True)
        )
        between: NDArray[np.bool_] = rows[:, None] | columns
        return between

    def offsets_m(self) -> tuple[Floats, Floats]:
        """x: (1, columns) and y: (rows, 1) of the pixel centres from the beam."""
        column, row = self.beam_center
        columns = np.arange(self.shape[1], dtype=np.float64)[None, :]
        rows = np.arange(self.shape[0], dtype=np.float64)[:, None]
        return (columns + 0.5 - column) * self.pixel_m, (rows + 0.5 - row) * self.pixel_m


DETECTORS = {
    "128k": Detector((2, 1), (172, 344), (12, 4), 225e-6),
    "500k": Detector((1, 1)),
    "1M": Detector((2, 1)),
    "4M": Detector((4, 2)),
}
"""EIGER layouts; 128k is the 1M read out in groups of 3 × 3 pixels."""


@dataclass(frozen=True)
class State:
    """What the beam and the sample are doing in one frame.

    damage: 0 to 1. has_voids: the second population is there. crystallised, compressed: 0 to 1, of a glass.
    sample: fraction of the beam that meets sample.
    flux: relative to normal. is_overexposed: so many photons that
    the brightest pixel of a normal frame expects three times SATURATION. stop_shift_m: of the
    beamstop, along x. is_module_dead: the last one.
    """

    damage: float = 0.0
    has_voids: bool = False
    crystallised: float = 0.0
    compressed: float = 0.0
    sample: float = 1.0
    flux: float = 1.0
    is_overexposed: bool = False
    stop_shift_m: float = 0.0
    is_module_dead: bool = False


def count(expected: Floats, dark: NDArray[np.float32], photons: np.random.Generator, out: NDArray[np.uint16]) -> None:
    """Poisson numbers, in half the time of Generator.poisson where most pixels see nothing.

    expected: (n,) λ. dark: (n,) e^−λ. out: (n,), what exceeds NODATA − 1 is set to it.
    Whether a pixel sees a photon at all is drawn first, to 2⁻²⁴ in probability. Where it does, the first one comes at a
    random moment of the exposure (λ left after it), and the number in the rest of the exposure is Poisson again.
    """
    lit = np.flatnonzero(photons.random(expected.size, dtype=np.float32) >= dark)
    all_of_it = expected[lit]
    rest = all_of_it + np.log1p(photons.random(lit.size) * np.expm1(-all_of_it))
    counts = 1 + photons.poisson(np.maximum(rest, 0))
    out[...] = 0
    out[lit] = np.minimum(counts, NODATA - 1)


class Instrument:
    """Expected counts per pixel, and the exposures drawn from them. May be used by several threads at once.

    A map of expected counts is kept for each thing that scatters (8 bytes per pixel), and what the state in use needs.
    """

    energy_eV = ENERGY_EV
    wavelength_A = WAVELENGTH_A
    distance_m = DISTANCE_M

    def __init__(self, detector: Detector, mean: float, seed: int) -> None:
        self.detector = detector
        self.shape = detector.shape
        self.gaps = detector.gaps()
        places = np.random.default_rng([seed, 2**32 - 1]).permutation(np.flatnonzero(~self.gaps))
        n_bad = max(1, round(BAD_FRACTION * places.size))
        self.dead, self.hot = places[:n_bad], places[n_bad : 2 * n_bad]
        self.mask = self.gaps | (self._shadow(0.0, PENUMBRA_M) < 1)
        self.mask.ravel()[places[: 2 * n_bad]] = True
        self._mean = mean
        self._lock = threading.Lock()
        self._maps: dict[Callable[[Floats], Floats], Floats] = {}
        self._state: State | None = None
        self._now: tuple[Floats, NDArray[np.float32]]

    def expose(self, state: State, photons: np.random.Generator, image: NDArray[np.uint16]) -> None:
        """One exposure into `image`: Poisson counts, with gaps, dead and hot pixels."""
        pixels = image.reshape(-1)
        count(*self._prepared(state), photons, out=pixels)
        pixels[self.dead] = 0
        pixels[self.hot] = photons.poisson(HOT_COUNTS, self.hot.size)
        image[self.gaps] = NODATA

    def _prepared(self, state: State) -> tuple[Floats, NDArray[np.float32]]:
        """What `count` asks for: expected counts and the probability of none, flat."""
        with self._lock:
            if self._state != state:
                expected = self.expected(state).ravel()
                self._state, self._now = state, (expected, np.exp(-expected, dtype=np.float32, casting="same_kind"))
            return self._now

    def expected(self, state: State) -> Floats:
        """(rows, columns): expected counts of every pixel."""
        counts = self._map(parasitic) + state.sample * self._map(suspension)
        if state.damage:
            counts += state.sample * state.damage * self._map(aggregated)
        if state.has_voids:
            counts += state.sample * self._map(voids)
        return self._on_detector(state, counts)

    def _on_detector(self, state: State, counts: Floats) -> Floats:
        """What is left of the counts behind the beamstop, with what beam and detector make of them."""
        counts *= state.flux * self._shadow(state.stop_shift_m) * (self._overexposure if state.is_overexposed else 1)
        if state.is_module_dead:
            rows, columns = self.detector.module
            counts[-rows:, -columns:] = 0
        return counts

    def _map(self, curve: Callable[[Floats], Floats]) -> Floats:
        """Expected counts of a curve on the whole detector, without beamstop."""
        if curve not in self._maps:
            self._maps[curve] = self._flux * self._on_pixels(curve)
        return self._maps[curve]

    def _on_pixels(self, curve: Callable[[Floats], Floats]) -> Floats:
        """(rows, columns): dΣ/dΩ times solid angle; the curve is interpolated between 4096 points (error 2e-5)."""
        x, y = self.detector.offsets_m()
        tangent = np.hypot(x, y) / DISTANCE_M
        axis = np.geomspace(1e-3, 20, 4096)
        values: Floats = np.interp(momentum_transfer(tangent), axis, curve(axis))
        return values * (1 + tangent**2) ** -1.5

    @functools.cached_property
    def _overexposure(self) -> float:
        """The factor that takes the brightest pixel of a normal frame to three times SATURATION."""
        return 3 * SATURATION / float(self.expected(State())[~self.mask].max())

    @functools.cached_property
    def _flux(self) -> float:
        """Counts per 1/cm at the beam, such that the good pixels of a normal frame have the wanted mean."""
        normal = self._on_pixels(lambda q: suspension(q) + parasitic(q))
        return self._mean / float(normal[~self.mask].mean())

    def _shadow(self, shift_m: float, margin_m: float = 0.0) -> Floats:
        """(rows, columns): 0 behind the beamstop and its arm, 1 elsewhere, with an edge one pixel wide."""
        x, y = self.detector.offsets_m()
        reach_m = BEAMSTOP_M + margin_m
        disc = np.hypot(x - shift_m, y) - reach_m
        arm = np.where(y < 0, np.abs(x - shift_m) - reach_m / 2, np.inf)
        shadow: Floats = np.clip(np.minimum(disc, arm) / self.detector.pixel_m + 0.5, 0, 1)
        return shadow
