"""What goes wrong in a material, as small-angle scattering sees it: six classes of defects, each of one or more kinds.

A kind is a closed form in a few parameters, isotropic, dilute unless it says otherwise, in cm⁻¹ per unit of its
concentration; copper stands for the matrix. Parameters are drawn from the unit cube, whose coordinates are uniform in
the parameter or in its logarithm: prior, bank of templates, distances and the oracle all work on that cube.

    void         vacancy clusters, voids, bubbles: lognormal empty spheres, dilute or crowded (Percus–Yevick)
    edge         straight edge dislocations: I ∝ Λ q⁻³, cut off by R_c at low q and by the core at high q; decorated
                 ones: randomly oriented rods of solute, q⁻¹ and a Guinier fall
    point        isolated point defects: monotonic Laue scattering, flat but for short-range order
    precipitate  spheres whose solute came from a zone around them: no forward scattering
    separation   phase separation: Teubner–Strey, or Furukawa's late stage
    order        Bragg peaks of lamellae, hexagonal rods or a cubic array

Screw dislocations do not scatter here (no dilatation); loop densities cannot be told from one curve: none are claimed.

Sources. Edge: isotropic elasticity, dilatation −b k' sin φ/(2π r) with k' = (1 − 2ν)/(1 − ν), powder average. Laue:
monotonic, n c(1 − c) r_e² Δf². Decorated: cylinder with qL ≫ 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from models.saxs import forms

CLASSES = ("normal", "void", "edge", "point", "precipitate", "separation", "order")
"""What the material head answers; the mission's vacancy, edge dislocation and point defect are 1, 2 and 3."""

ELECTRON_RADIUS_NM = 2.8179403e-6
ELECTRONS_PER_NM3 = 2455.0
"""Copper: 29 electrons, 84.9 atoms per nm³."""
ATOMS_PER_NM3 = 84.9
BURGERS_NM, POISSON = 0.2556, 0.34
"""Copper: a/√2, and Poisson's ratio."""
PER_CM = 1e7

Form = Callable[..., Tensor]


@dataclass(frozen=True)
class Parameter:
    name: str
    low: float
    high: float
    is_log: bool = False

    def __call__(self, u: Tensor) -> Tensor:
        """The value at a coordinate of the unit cube."""
        if self.is_log:
            return self.low * (self.high / self.low) ** u
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class Kind:
    """One way a defect scatters. label: index into CLASSES. share: of its class. form: (q, *parameters) → (b, m)."""

    name: str
    label: int
    share: float
    parameters: tuple[Parameter, ...]
    form: Form

    def __call__(self, q: Tensor, u: Tensor) -> Tensor:
        """cm⁻¹ per unit of concentration, (b, m). q: (m,) nm⁻¹. u: (b, ≥ number of parameters) in the unit cube."""
        return self.form(q, *(parameter(u[:, k]) for k, parameter in enumerate(self.parameters)))


X = torch.logspace(-3, math.log10(500), 1536, dtype=torch.float64)
SPREADS = torch.linspace(0.05, 0.4, 15, dtype=torch.float64)
ZONES = torch.logspace(math.log10(1.25), math.log10(3.0), 16, dtype=torch.float64)


@functools.cache
def _sphere_table() -> Tensor:
    """(spreads, x) ⟨V²F²⟩/⟨V²⟩."""
    single = forms.sphere(X)[None] ** 2
    return forms.size_average(X, single.expand(len(SPREADS), -1), SPREADS).clamp(min=0).float()


@functools.cache
def _depleted_table() -> Tensor:
    """(zones × spreads, x) ⟨V²(F(x) − F(ζx))²⟩/⟨V²⟩."""
    single = (forms.sphere(X) - forms.sphere(X * ZONES[:, None])) ** 2
    spread = SPREADS.repeat(len(ZONES))
    return forms.size_average(X, single.repeat_interleave(len(SPREADS), 0), spread).clamp(min=0).float()


def _place(value: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Index below a value on an equally spaced axis, and the fraction of the way to the next."""
    at = ((value - axis[0]) / (axis[1] - axis[0])).clamp(0, len(axis) - 1.001)
    k = at.long()
    return k, (at - k).float()


def _along_x(table: Tensor, row: Tensor, qR: Tensor) -> Tensor:
    k, t = _place(qR.log(), X.log().float())
    row = row[:, None]
    return torch.lerp(table[row, k], table[row, k + 1], t)


def spheres(q: Tensor, radius: Tensor, spread: Tensor) -> Tensor:
    """Voids per volume fraction: (r_e ρ_e)² ⟨V²F²⟩/⟨V⟩, lognormal radii with median `radius`."""
    k, t = _place(spread, SPREADS.float())
    qR, t = q * radius[:, None], t[:, None]
    shape = torch.lerp(_along_x(_sphere_table(), k, qR), _along_x(_sphere_table(), k + 1, qR), t)
    return _per_fraction(radius, spread)[:, None] * shape


def _per_fraction(radius: Tensor, spread: Tensor) -> Tensor:
    """(r_e ρ_e)² ⟨V²⟩/⟨V⟩ in cm⁻¹; of lognormal radii, ⟨R⁶⟩/⟨R³⟩ = R₀³ exp(27 s²/2)."""
    volume = 4 / 3 * math.pi * radius**3 * torch.exp(13.5 * spread**2)
    return (ELECTRON_RADIUS_NM * ELECTRONS_PER_NM3) ** 2 * volume * PER_CM


def crowded_spheres(q: Tensor, radius: Tensor, spread: Tensor, fraction: Tensor, shell: Tensor) -> Tensor:
    """Voids that keep apart: times Percus–Yevick S(q) of hard spheres `shell` times as large."""
    S = forms.hard_spheres(q.double(), (radius * shell).double(), fraction.double()).float()
    return spheres(q, radius, spread) * S


def edge(q: Tensor, cutoff: Tensor, core: Tensor) -> Tensor:
    """Straight edge dislocations per 10¹⁵ m⁻²: r_e² ρ_e² Λ (b k')² (π/2) q/(q² + R_c⁻²)² exp(−(q r_c)²).

    cutoff: R_c, beyond which other dislocations screen the strain. core: r_c.
    """
    k = (1 - 2 * POISSON) / (1 - POISSON)
    strength = (ELECTRON_RADIUS_NM * ELECTRONS_PER_NM3 * BURGERS_NM * k) ** 2 * 1e-3 * math.pi / 2 * PER_CM
    return strength * q / (q**2 + cutoff[:, None] ** -2) ** 2 * torch.exp(-((q * core[:, None]) ** 2))


def decorated_edge(q: Tensor, radius: Tensor) -> Tensor:
    """Rods of solute along dislocations, per 10¹⁵ m⁻² and (1000 e/nm³)²: (π/q) Λ (r_e Δρ π R²)² exp(−q²R²/4)."""
    R = radius[:, None]
    strength = math.pi * 1e-3 * (ELECTRON_RADIUS_NM * 1000 * math.pi * R**2) ** 2 * PER_CM
    return strength / q * torch.exp(-((q * R) ** 2) / 4)


def laue(q: Tensor, order: Tensor, distance: Tensor) -> Tensor:
    """Isolated point defects per c(1 − c), Δf = 29: n r_e² Δf² (1 + α sin(qr)/(qr)).

    order: α of the nearest shell at `distance` r, weighted with its coordination.
    """
    strength = ATOMS_PER_NM3 * (ELECTRON_RADIUS_NM * 29) ** 2 * PER_CM
    qr = q * distance[:, None]
    return strength * (1 + order[:, None] * torch.sin(qr) / qr)


def precipitates(q: Tensor, radius: Tensor, spread: Tensor, zone: Tensor) -> Tensor:
    """Precipitates with depletion per volume fraction, contrast ρ_e: (ζ³/(ζ³ − 1))² ⟨V²(F(qR) − F(qζR))²⟩/⟨V⟩.

    zone: ζ, radius of the depleted zone over that of the precipitate. What the precipitate gained the zone lost.
    """
    (i, s), (j, t) = _place(zone.log(), ZONES.log().float()), _place(spread, SPREADS.float())
    n, qR, table = len(SPREADS), q * radius[:, None], _depleted_table()
    near = torch.lerp(_along_x(table, i * n + j, qR), _along_x(table, i * n + j + 1, qR), t[:, None])
    far = torch.lerp(_along_x(table, (i + 1) * n + j, qR), _along_x(table, (i + 1) * n + j + 1, qR), t[:, None])
    gain = (zone**3 / (zone**3 - 1)) ** 2 * _per_fraction(radius, spread)
    return gain[:, None] * torch.lerp(near, far, s[:, None])


def bicontinuous(q: Tensor, period: Tensor, ratio: Tensor) -> Tensor:
    """Teubner–Strey per ⟨η²⟩ = (r_e · 100 e/nm³)². ratio: ξ/d."""
    return (ELECTRON_RADIUS_NM * 100) ** 2 * PER_CM * forms.teubner_strey(q, period, period * ratio)


def peaks(
    q: Tensor, first: Tensor, width: Tensor, decay: Tensor, lorentzian: Tensor, *, at: tuple[float, ...]
) -> Tensor:
    """Bragg peaks at multiples `at` of the first, each `decay` times as high as the one before, of one relative width.

    width: FWHM/q. Per height of the first, cm⁻¹.
    """
    return torch.stack(
        [
            decay[:, None] ** n * forms.pseudo_voigt(q, x * first, x * first * width, lorentzian)
            for n, x in enumerate(at)
        ]
    ).sum(0)


_RADIUS = Parameter("radius", 0.6, 12.0, is_log=True)
_SPREAD = Parameter("spread", 0.05, 0.4)
_PEAKS = (
    Parameter("first peak", 0.25, 3.5, is_log=True),
    Parameter("relative width", 0.025, 0.08, is_log=True),
    Parameter("decay", 0.05, 0.6),
    Parameter("Lorentzian share", 0.0, 1.0),
)

KINDS: tuple[Kind, ...] = (
    Kind("voids", 1, 0.7, (_RADIUS, _SPREAD), spheres),
    Kind(
        "crowded voids",
        1,
        0.3,
        (_RADIUS, _SPREAD, Parameter("fraction", 0.02, 0.25), Parameter("shell", 1.0, 1.6)),
        crowded_spheres,
    ),
    Kind("edge dislocations", 2, 0.7, (Parameter("R_c", 30, 500, is_log=True), Parameter("r_c", 0.3, 0.8)), edge),
    Kind("decorated dislocations", 2, 0.3, (Parameter("radius", 0.3, 3.0, is_log=True),), decorated_edge),
    Kind("point defects", 3, 1.0, (Parameter("order", -0.3, 0.3), Parameter("distance", 0.2, 0.4)), laue),
    Kind(
        "precipitates",
        4,
        1.0,
        (Parameter("radius", 0.8, 20.0, is_log=True), _SPREAD, Parameter("zone", 1.3, 2.9)),
        precipitates,
    ),
    Kind(
        "bicontinuous",
        5,
        0.6,
        (Parameter("period", 3.0, 60.0, is_log=True), Parameter("ξ/d", 0.2, 1.5, is_log=True)),
        bicontinuous,
    ),
    Kind("late stage", 5, 0.4, (Parameter("peak", 0.12, 2.0, is_log=True), Parameter("γ", 4.0, 6.0)), forms.furukawa),
    Kind("lamellae", 6, 0.34, _PEAKS, functools.partial(peaks, at=(1.0, 2.0, 3.0))),
    Kind("hexagonal", 6, 0.33, _PEAKS, functools.partial(peaks, at=(1.0, math.sqrt(3), 2.0, math.sqrt(7)))),
    Kind("cubic", 6, 0.33, _PEAKS, functools.partial(peaks, at=(1.0, math.sqrt(2), math.sqrt(3), 2.0))),
)
MOST_PARAMETERS = max(len(kind.parameters) for kind in KINDS)


def kinds_of(label: int) -> list[int]:
    """Indices into KINDS of the kinds of one class."""
    return [k for k, kind in enumerate(KINDS) if kind.label == label]


def draw(label: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
    """Kind (b,) and coordinates u (b, MOST_PARAMETERS) from the prior, for classes (b,); kind −1 for normal."""
    kind = torch.full_like(label, -1)
    for one in range(1, len(CLASSES)):
        rows = torch.nonzero(label == one)[:, 0]
        choices = kinds_of(one)
        shares = torch.tensor([KINDS[k].share for k in choices])
        if len(rows):
            kind[rows] = torch.tensor(choices)[torch.multinomial(shares, len(rows), replacement=True, generator=g)]
    return kind, torch.rand((len(label), MOST_PARAMETERS), generator=g)


def intensity(q: Tensor, kind: Tensor, u: Tensor) -> Tensor:
    """cm⁻¹ per unit of concentration, (b, m) float32; 0 where kind is −1."""
    I = torch.zeros(len(kind), len(q))
    for k in np.unique(kind.numpy()):
        if k >= 0:
            rows = torch.nonzero(kind == int(k))[:, 0]
            I[rows] = KINDS[k](q, u[rows])
    return I
