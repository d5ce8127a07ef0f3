"""The instrument behind `sim:glass`: total scattering of a GeSe3 glass at 74 keV, close to the detector (q to 25 Å⁻¹).

The glass is two shells of neighbours and a mean density that sets in behind them, so that what an analysis should find
is known: `FIRST_A`, `NEIGHBOURS` and `DENSITY`. Two things can happen to it:

    crystallisation   a part of it becomes a cubic crystal: Bragg peaks, and order at all distances
    compression       more neighbours, further away, as pressure makes them in network glasses

Compton scattering, form factors, solid angle and polarisation are in the expected counts; everything else is as in
`instrument`. Needs the extra `rdf`, for the tables.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from streamer.records import HC_EV_A
from streamer.reduce.detector import Geometry
from streamer.reduce.scattering import Composition, scattering_of
from streamer.reduce.sine import SineTransform
from streamer.sources.instrument import Instrument, State

Floats = NDArray[np.float64]

COMPOSITION = "Ge25Se75"
DENSITY = 0.0335
"""Atoms per Å³, of the glass that is not compressed."""
FIRST_A, NEIGHBOURS, WIDTH_A = 2.37, 2.5, 0.085
"""Of the first shell: 4 neighbours of germanium and 2 of selenium, at the distance published for Ge–Se."""
COMPRESSED_A, COMPRESSED_NEIGHBOURS = 2.43, 3.2
SECOND, SECOND_WIDTH_A = 1.6, 0.25
"""The second shell, in units of the first distance."""
S_0 = 0.03
"""S(0), of a glass's compressibility: it sets how many atoms the second shell holds."""
CRYSTAL_A = 2.87
"""Edge of the crystal's primitive cube: rock salt of 5.74 Å whose two atoms scatter alike."""
PEAK_WIDTH, DEBYE_WALLER = 0.06, 0.012
"""Å⁻¹ and Å², of the Bragg peaks."""

POLARIZATION = 0.99


def pair_distribution(r: Floats, compressed: float = 0.0) -> Floats:
    """G(r) in Å⁻². r: (n,) Å, uniform. compressed: 0 to 1."""
    first = FIRST_A + compressed * (COMPRESSED_A - FIRST_A)
    neighbours = NEIGHBOURS + compressed * (COMPRESSED_NEIGHBOURS - NEIGHBOURS)
    second = SECOND * first
    onset = 1 / (1 + np.exp(-(r - second - 0.7) / 0.2))
    excluded = 4 * np.pi * DENSITY * np.trapezoid(r**2 * (1 - onset), r)
    rdf = neighbours * _gaussian(r - first, WIDTH_A)
    rdf += (excluded - neighbours - 1 + S_0) * _gaussian(r - second, SECOND_WIDTH_A)
    found: Floats = rdf / r + 4 * np.pi * DENSITY * r * (onset - 1)
    return found


def of_glass(q: Floats, compressed: float = 0.0) -> Floats:
    """S(q) of the glass. q: (n,) Å⁻¹, above 0."""
    r = np.arange(0.01, 30, 0.01)
    F = np.pi / 2 * SineTransform(r, q)(pair_distribution(r, compressed))
    return 1 + F / q


def of_crystal(q: Floats) -> Floats:
    """S(q) of the crystal's powder: 2π² ρ Σ m δ(q − G)/q² with thermal motion, which puts 1 − exp(−B q²) between."""
    edge = int(q[-1] * CRYSTAL_A / (2 * np.pi)) + 2
    h = np.arange(-edge, edge + 1)
    squares, multiplicity = np.unique(np.add.outer(np.add.outer(h**2, h**2), h**2), return_counts=True)
    rings = 2 * np.pi / CRYSTAL_A * np.sqrt(squares[1:])
    seen = rings < q[-1] + 1
    peaks = _gaussian(q[:, None] - rings[seen], PEAK_WIDTH) @ (multiplicity[1:][seen] / rings[seen] ** 2)
    moving = np.exp(-DEBYE_WALLER * q**2)
    found: Floats = 2 * np.pi**2 / CRYSTAL_A**3 * peaks * moving + 1 - moving
    return found


def _gaussian(x: Floats, width: float) -> Floats:
    found: Floats = np.exp(-((x / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    return found


class Glass(Instrument):
    """Expected counts of the glass, and exposures drawn from them."""

    energy_eV = 74_200.0
    wavelength_A = HC_EV_A / energy_eV
    distance_m = 0.075

    def expected(self, state: State) -> Floats:
        """(rows, columns): expected counts of every pixel."""
        return self._on_detector(state, self._flux * state.sample * self._scattered(state))

    def _scattered(self, state: State) -> Floats:
        """(rows, columns): electrons² per atom, times solid angle and polarisation."""
        q, glass = self._q_axis, of_glass(self._q_axis, state.compressed)
        S = glass + state.crystallised * (of_crystal(q) - glass) if state.crystallised else glass
        atoms = scattering_of(Composition.parse(COMPOSITION), q, "xray")
        intensity = np.maximum(S - 1, -1) * atoms.mean_squared + atoms.squared_mean + atoms.compton
        values: Floats = np.interp(self._q, q, intensity) * self._per_pixel
        return values

    @functools.cached_property
    def _flux(self) -> float:
        return self._mean / float(self._scattered(State())[~self.mask].mean())

    @functools.cached_property
    def _geometry(self) -> Geometry:
        pixel_m = self.detector.pixel_m
        column, row = self.detector.beam_center
        return Geometry(
            shape=self.shape,
            pixel_size_m=(pixel_m, pixel_m),
            distance_m=self.distance_m,
            wavelength_A=self.wavelength_A,
            poni_m=(row * pixel_m, column * pixel_m),
        )

    @functools.cached_property
    def _q(self) -> Floats:
        return self._geometry.q("1/A")

    @functools.cached_property
    def _q_axis(self) -> Floats:
        return np.linspace(0.02, float(self._q.max()) + 0.02, 3000)

    @functools.cached_property
    def _per_pixel(self) -> Floats:
        return self._geometry.solid_angle() * self._geometry.polarization(POLARIZATION)
