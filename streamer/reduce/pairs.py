"""From a pattern to pair distributions: I(q) → S(q) → F(q) → G(r), g(r), RDF(r), each with its uncertainty.

    S(q)  = (n·I − C − (⟨f²⟩ − ⟨f⟩²)) / ⟨f⟩²         Faber–Ziman; I without background, C Compton, n the normalisation
    F(q)  = q (S − 1)                                        Å⁻¹
    G(r)  = (2/π) ∫ F(q) sin(qr) dq                          Å⁻²
    g(r)  = 1 + G/(4π ρ₀ r)      RDF(r) = rG + 4π ρ₀ r²      ρ₀ in atoms/Å³

Keen, J. Appl. Cryst. 34 (2001) 172 sets these names apart from the dozen others in use. For neutrons C = 0, f is the
scattering length and recoil is not corrected for. I comes from `reduce.azimuthal`, corrected there for solid angle and
polarisation; absorption and multiple scattering are taken up by the normalisation only as far as they do not depend
on q.

Normalisations, all linear in the pattern:

    high-q       n·I ≈ ⟨f²⟩ + C beyond a cutoff, by least squares of F
    krogh-moe    the integral of q²(S − 1) is −2π²ρ₀ (Krogh-Moe 1956, Norman 1957), damped with exp(−q²/1000)
    hole         G = −4π ρ₀ r where no two atoms can be, by least squares
    polynomial   none of the above: what varies slowly in F is taken away as q·P(q), P of degree r_poly·q_max/π, as in
                 PDFgetX3 (Juhás et al., J. Appl. Cryst. 46 (2013) 560); needs no Compton and gives no absolute scale

Everything that depends on sample and geometry alone is computed once, in `PairChain`; of a frame remain three vector
operations and the transform. A q axis comes with its unit, which is never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamer.records import UNITS, BadInput, did_you_mean
from streamer.reduce.artefacts import Artefact, bridged, find_artefacts
from streamer.reduce.scattering import Composition, Radiation, scattering_of
from streamer.reduce.sine import SineTransform
from streamer.reduce.waves import reduced_structure, without_empty

__all__ = [
    "Normalisation",
    "PairChain",
    "PairDistribution",
    "Pattern",
    "Sample",
    "StructureFactor",
    "lorch",
    "per_angstrom",
    "read_pattern",
]

Floats = NDArray[np.float64]
Normalisation = Literal["high-q", "krogh-moe", "hole", "polynomial"]

DAMPING = 1e-3
"""Å², of the Krogh-Moe integral: enough to forgive the noise at 25 Å⁻¹, too little to touch the first peak's width."""
HOLE_FROM = 0.25
"""Part of the hole's radius below which the least squares do not look: slow errors of the intensity end there."""


@dataclass(frozen=True)
class Sample:
    """What is in the beam. density: atoms/Å³, of `composition` as a whole.   hole_A: no two atoms are nearer."""

    composition: Composition
    density: float
    radiation: Radiation = "xray"
    hole_A: float = 1.3

    def __post_init__(self) -> None:
        if not 0 < self.density < 1:
            raise BadInput(
                f"sample: density is {self.density}, expected atoms/Å³ such as 0.0335 for GeSe3; for g/cm³ use "
                "Composition.number_density"
            )
        if not 0.5 <= self.hole_A <= 4:
            raise BadInput(f"sample: hole_A is {self.hole_A}, expected 0.5 to 4 Å")


@dataclass(frozen=True)
class Pattern:
    """I(q): (n,) each. unit: of q, "1/A" or "1/nm"."""

    q: Floats
    intensity: Floats
    unit: str


@dataclass(frozen=True)
class StructureFactor:
    """(n,) each on q in Å⁻¹. scale: n of the normalisation, NaN for "polynomial". sigma: None where I had none."""

    q: Floats
    F: Floats
    sigma_F: Floats | None
    scale: float
    artefacts: list[Artefact] = field(default_factory=list)

    @property
    def S(self) -> Floats:
        """1 + F/q, NaN at q = 0."""
        return 1 + self.F / np.where(self.q > 0, self.q, np.nan)

    @property
    def sigma_S(self) -> Floats | None:
        return None if self.sigma_F is None else self.sigma_F / np.where(self.q > 0, self.q, np.nan)


@dataclass(frozen=True)
class PairDistribution:
    """(m,) each on r in Å: G in Å⁻², g, RDF in Å⁻¹, σ of G."""

    r: Floats
    G: Floats
    g: Floats
    rdf: Floats
    sigma_G: Floats | None


class PairChain:
    """The chain for one geometry, one sample and one set of empty measurements.

    q, unit: (n,) ascending axis of the patterns, "1/A" or "1/nm".   r: (m,) Å, ascending.
    q_min, q_max: Å⁻¹, what of it is used; None for all.
    background, container: (n,) empty instrument, and container measured in it; scales: what they are multiplied with
        (monitor, transmission). Both are subtracted.
    cutoff: Å⁻¹, where "high-q" begins.   r_poly: Å, of "polynomial".
    s_0: S(0), to which S is led from its first point with q²; None leaves out what was not measured.
    window: "lorch" multiplies F with sin(x)/x, x = π q/q_max, when G is made.
    bridge: whether artefacts of the pattern are looked for and bridged.
    Raises BadInput.
    """

    def __init__(
        self,
        q: Floats,
        unit: str,
        sample: Sample,
        r: Floats,
        *,
        q_min: float | None = None,
        q_max: float | None = None,
        background: Floats | None = None,
        background_scale: float = 1.0,
        container: Floats | None = None,
        container_scale: float = 1.0,
        normalisation: Normalisation = "high-q",
        cutoff: float = 3.0,
        r_poly: float = 0.9,
        compton: bool = True,
        s_0: float | None = 0.0,
        window: Literal["none", "lorch"] = "none",
        bridge: bool = False,
    ) -> None:
        axis = per_angstrom(q, unit)
        if axis.ndim != 1 or axis.size < 16 or not np.all(np.diff(axis) > 0) or axis[0] < -1e-9:
            raise BadInput("pairs: q does not ascend from 0 or more with 16 points at least; sort and merge its points")
        low, high = axis[0] if q_min is None else q_min, axis[-1] if q_max is None else q_max
        used = np.flatnonzero((axis >= low - 1e-9) & (axis <= high + 1e-9))
        if used.size < 16:
            raise BadInput(
                f"pairs: {used.size} points lie between q_min {low:g} and q_max {high:g} Å⁻¹, the pattern reaches "
                f"{axis[0]:.3g}–{axis[-1]:.3g} Å⁻¹ (unit {unit}); expected 16 or more"
            )
        self.sample, self.normalisation, self.bridge = sample, normalisation, bridge
        self.r = np.asarray(r, dtype=np.float64)
        self._axis = axis
        self._used = slice(int(used[0]), int(used[-1]) + 1)
        self.q = axis[self._used]
        self._empty = _empty(axis, background, background_scale, container, container_scale)
        self._prepare(cutoff, r_poly, compton)
        self._extend(s_0)
        self._transform = SineTransform(
            self._q_all, self.r, window=lorch(self._q_all, self.q[-1]) if window == "lorch" else None
        )

    def structure_factor(self, intensity: Floats, sigma: Floats | None = None) -> StructureFactor:
        """S and F of a pattern. intensity, sigma: (n,) on the whole axis, one unit. Raises BadInput for other shapes.

        Points without a measurement (NaN) are interpolated.
        """
        if np.shape(intensity) != self._axis.shape or (sigma is not None and np.shape(sigma) != self._axis.shape):
            found = f"intensity {np.shape(intensity)}, sigma {None if sigma is None else np.shape(sigma)}"
            raise BadInput(f"pairs: found {found}, expected one value for each of the {self._axis.size} points of q")
        artefacts = find_artefacts(self._axis, intensity) if self.bridge else []
        I = np.asarray(intensity, dtype=np.float64)
        if artefacts:
            I = bridged(I, artefacts)
        I, is_complete = without_empty(I, self._empty, self._used.start, self._used.stop)
        if not is_complete:
            I = _filled(I)
        scale = self._scale(I)
        F = reduced_structure(I, self._gain, self._offset, scale)
        if self.normalisation == "polynomial":
            F = F - self._slow @ (self._kept * (self._slow.T @ F))
        sigma_F = None if sigma is None else np.abs(scale * self._gain) * _filled(np.asarray(sigma[self._used], float))
        absolute = float("nan") if self.normalisation == "polynomial" else scale
        return StructureFactor(self.q, F, sigma_F, absolute, artefacts)

    def pair_distribution(self, factor: StructureFactor) -> PairDistribution:
        """G, g and RDF of what `structure_factor` returned."""
        G = self._transform(self._with_origin(factor.F))
        sigma_G = None
        if factor.sigma_F is not None:
            sigma_G = self._transform.sigma(np.concatenate([np.zeros(self._points_below), factor.sigma_F]))
        return PairDistribution(self.r, G, 1 + G * self._per_density, self.r * G + self._parabola, sigma_G)

    def __call__(self, intensity: Floats, sigma: Floats | None = None) -> PairDistribution:
        """From I(q) to the pair distributions."""
        return self.pair_distribution(self.structure_factor(intensity, sigma))

    def _prepare(self, cutoff: float, r_poly: float, compton: bool) -> None:
        """What the sample scatters on q, and the weights of the normalisation: F = scale·gain·I + offset."""
        q, sample = self.q, self.sample
        of_atoms = scattering_of(sample.composition, q, sample.radiation)
        inelastic = of_atoms.compton if compton and sample.radiation == "xray" else np.zeros_like(q)
        expected = of_atoms.squared_mean + inelastic
        if self.normalisation == "polynomial":
            expected = of_atoms.squared_mean
        self._gain = q / of_atoms.mean_squared
        self._offset = -self._gain * expected
        self._per_density = 1 / (4 * np.pi * sample.density * np.where(self.r > 0, self.r, np.inf))
        self._parabola = 4 * np.pi * sample.density * self.r**2
        if self.normalisation == "krogh-moe":
            self._krogh_moe(expected / of_atoms.mean_squared, 1 / of_atoms.mean_squared)
        elif self.normalisation == "hole":
            self._hole()
        else:
            self._high_q(expected, of_atoms.mean_squared, cutoff)
        if self.normalisation == "polynomial":
            self._polynomial(r_poly)

    def _high_q(self, expected: Floats, mean_squared: Floats, cutoff: float) -> None:
        weight = np.where(self.q > cutoff, (self.q / mean_squared) ** 2, 0.0)
        if not weight.any():
            raise BadInput(f"pairs: cutoff is {cutoff:g} Å⁻¹, expected less than q_max {self.q[-1]:g} Å⁻¹")
        self._target, self._weight = weight * expected, weight

    def _krogh_moe(self, expected: Floats, per_atom: Floats) -> None:
        measure = np.gradient(self.q) * self.q**2 * np.exp(-DAMPING * self.q**2)
        self._total = float(-2 * np.pi**2 * self.sample.density + (measure * expected).sum())
        self._measure = measure * per_atom

    def _hole(self) -> None:
        r = np.linspace(HOLE_FROM, 1, 24) * self.sample.hole_A
        transform = np.sin(np.outer(r, self.q)) * (2 / np.pi * np.gradient(self.q))
        self._of_gain = transform * self._gain
        self._wanted = -4 * np.pi * self.sample.density * r - transform @ self._offset

    def _polynomial(self, r_poly: float) -> None:
        """Orthonormal q·P(q). A degree between two whole numbers takes its last member in part."""
        degree = r_poly * self.q[-1] / np.pi
        whole = int(degree)
        x = self.q / self.q[-1]
        powers = np.polynomial.chebyshev.chebvander(2 * x - 1, whole + 1) * x[:, None]
        self._slow = np.linalg.qr(powers)[0]
        self._kept = np.ones(whole + 2)
        self._kept[-1] = degree - whole

    def _scale(self, I: Floats) -> float:
        if self.normalisation == "krogh-moe":
            scale = self._total / float(self._measure @ I)
        elif self.normalisation == "hole":
            of_I = self._of_gain @ I
            scale = float(of_I @ self._wanted) / float(of_I @ of_I)
        else:
            weighted = self._weight * I
            scale = float(self._target @ I) / float(weighted @ I)
        return scale

    def _extend(self, s_0: float | None) -> None:
        """Points from 0 up to the first one measured, on the axis's own step."""
        step = float(self.q[1] - self.q[0])
        self._points_below = 0 if s_0 is None else int(self.q[0] / step + 1e-3)
        q = np.maximum(self.q[0] - step * np.arange(self._points_below, 0, -1), 0.0)
        self._q_all = np.concatenate([q, self.q])
        if self._points_below:
            from_zero = (q / self.q[0]) ** 2
            self._below = q * (1 - (s_0 or 0.0)) * (from_zero - 1)
            self._below_per_F = q * from_zero / self.q[0]

    def _with_origin(self, F: Floats) -> Floats:
        """F from 0 on: S goes from S(0) to its first value with q²."""
        if not self._points_below:
            return F
        return np.concatenate([self._below + F[0] * self._below_per_F, F])


def lorch(q: Floats, q_max: float) -> Floats:
    """Lorch's window sin(x)/x, x = π q/q_max: no ripples, at the price of peaks broadened by about 0.9 π/q_max."""
    window: Floats = np.sinc(q / q_max)
    return window


def per_angstrom(q: Floats, unit: str) -> Floats:
    """A q axis in Å⁻¹. Raises BadInput for a unit that is missing or not one of q: it is never guessed."""
    kind, factor = UNITS.get(unit, ("", 0.0))
    if kind != "inverse length":
        known = [name for name, (of, _) in UNITS.items() if of == "inverse length"]
        raise BadInput(
            f"pairs: the unit of q is {unit!r}{did_you_mean(unit, known)}; an axis of 2θ or without a unit cannot be "
            "told from q, integrate it again with a unit"
        )
    return np.asarray(q, dtype=np.float64) * (factor / UNITS["1/A"][1])


HEADER_UNITS = {"q_A^-1": "1/A", "q_nm^-1": "1/nm", "Q(1/A)": "1/A", "Q(1/nm)": "1/nm"}
"""How pyFAI and its friends write the unit of q in the last line of a header."""


def read_pattern(path: Path) -> Pattern:
    """Two or three columns under a header that names the unit of q, as pyFAI writes it ("# q_A^-1  I").

    Raises BadInput where the header names none, or another axis: 2θ in degrees and q in Å⁻¹ look alike.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = [line for line in lines if line.lstrip().startswith("#")]
    words = [word for line in header for word in line.replace("#", " ").split()]
    units = {HEADER_UNITS[word] for word in words if word in HEADER_UNITS}
    if len(units) != 1:
        raise BadInput(
            f"{path.name}: its header names {'no unit' if not units else 'two units'} of q, expected one of "
            f"{', '.join(HEADER_UNITS)}; 2θ and q look alike, so that nothing is assumed"
        )
    rows = [line.split()[:2] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    columns = np.array(rows, dtype=np.float64).T
    return Pattern(columns[0], columns[1], units.pop())


def _empty(
    axis: Floats, background: Floats | None, background_scale: float, container: Floats | None, container_scale: float
) -> Floats:
    total = np.zeros(axis.size)
    for name, pattern, scale in (
        ("background", background, background_scale),
        ("container", container, container_scale),
    ):
        if pattern is None:
            continue
        if np.shape(pattern) != axis.shape:
            raise BadInput(f"pairs: {name} has shape {np.shape(pattern)}, q {axis.shape}; measure it on the same axis")
        total += scale * np.asarray(pattern, float)
    return total


def _filled(values: Floats) -> Floats:
    """NaN interpolated between neighbours."""
    known = np.isfinite(values)
    if known.all():
        return values
    if not known.any():
        return values
    x = np.arange(values.size)
    return np.interp(x, x[known], values[known])
