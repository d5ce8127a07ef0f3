"""SAXS curves, normal and anomalous, made on the fly: sample, fault, instrument, photons, reduction.

The declared normal family, in units of the flat background:

    I(q) = A·P(q) + S·(q/q₀)⁻ⁿ + 1

with at most one population P of compact scatterers (polydisperse spheroids, Guinier–Porod with a slope of 3 to 4,
Beaucage's unified level), a surface or parasitic power law with 3.2 ≤ n ≤ 4.2, and a flat background. Everything
else is anomalous, if it can be seen. How well it can be seen is the detectability

    D = √Σ (ΔI/σ)²,

the distance in standard uncertainties between the anomalous curve and the normal family, which is taken as flat around
the sample: the directions in which its size, shape, exponent and three levels move the curve are projected out of ΔI.
Voids that merely look like another particle size are therefore not called anomalous: without a reference curve nobody
could tell. D is made of mean curves and true uncertainties; no noise enters it.

The sample's curve is made on a fine logarithmic q axis, smeared, moved to the linear bins of a random instrument,
counted (Poisson), given an imperfect σ, and reduced by `streamer.reduce.curves`. q is in nm⁻¹, lengths in nm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from models.saxs import forms
from streamer.reduce import curves

GRID = curves.log_grid(0.05, 5.0, 256)
ANOMALOUS_FROM = 5.0
"""D from which a curve is labelled anomalous: five standard uncertainties from the nearest normal curve."""
NORMAL_BELOW = 2.0
"""D below which a faulty curve is labelled normal: nobody could tell. Between the two a curve has no label."""

Q = torch.logspace(math.log10(0.02), math.log10(8.0), 512, dtype=torch.float64)
Q_0 = 0.1
"""nm⁻¹, where the power law's level is quoted."""


@dataclass(frozen=True)
class Curves:
    """A batch as the network sees it.

    inputs: (b, 5, 256) float32, see `curves.channels`. label: (b,) 1 anomalous, 0 normal, −1 neither. fault: (b,) index
    into FAULTS. detectability: (b,) D, 0 without a fault. photons: (b,) in the curve.
    """

    inputs: Tensor
    label: Tensor
    fault: Tensor
    detectability: Tensor
    photons: Tensor


class Spheroids:
    """A catalogue of random spheroid populations. P depends on qR alone, so that one table serves all sizes."""

    SIZE = 192
    X = torch.logspace(-3, math.log10(400), 4096, dtype=torch.float64)

    def __init__(self, g: Generator) -> None:
        spread, aspect = _uniform(0.05, 0.35, (self.SIZE,), g), _log_uniform(0.4, 2.5, (self.SIZE,), g)
        single, longer = forms.spheroid(self.X, aspect), forms.spheroid(self.X, aspect * 1.05)
        self.tables = torch.stack(
            [
                forms.size_average(self.X, single, spread),
                forms.size_average(self.X, single, spread * 1.05),
                forms.size_average(self.X, longer, spread),
            ]
        )

    def __call__(self, radius: Tensor, entry: Tensor, variant: int = 0) -> Tensor:
        """P on Q, (b, 512). entry: (b,) of the catalogue. variant 1: its spread, 2: its aspect is 5 % larger."""
        at = (Q * radius[:, None] / self.X[0]).log() / (self.X[1] / self.X[0]).log()
        at = at.clamp(0, len(self.X) - 1.001)
        k = at.long()
        table, row = self.tables[variant], entry[:, None]
        return torch.lerp(table[row, k], table[row, k + 1], at - k)


@dataclass(frozen=True)
class Sample:
    """One normal sample per row, (b,) each.

    kind: 0 spheroids, 1 Guinier–Porod, 2 unified level. level, surface: in units of the flat background. size: median
    radius or Rg, nm. entry: in the catalogue of spheroids. slope: d of kinds 1 and 2. exponent: n of the power law.
    """

    kind: Tensor
    level: Tensor
    size: Tensor
    entry: Tensor
    slope: Tensor
    surface: Tensor
    exponent: Tensor

    @classmethod
    def draw(cls, n: int, g: Generator) -> Sample:
        return cls(
            kind=torch.tensor([0, 0, 1, 2])[torch.randint(0, 4, (n,), generator=g)],
            level=_log_uniform(0.3, 1e4, (n,), g) * (_uniform(0, 1, (n,), g) > 0.12),
            size=_log_uniform(0.8, 12, (n,), g),
            entry=torch.randint(0, Spheroids.SIZE, (n,), generator=g),
            slope=_uniform(3, 4, (n,), g),
            surface=_log_uniform(1e-2, 1e4, (n,), g) * (_uniform(0, 1, (n,), g) > 0.15),
            exponent=_uniform(3.2, 4.2, (n,), g),
        )

    def __getitem__(self, rows: Tensor) -> Sample:
        return Sample(*(getattr(self, field.name)[rows] for field in fields(self)))

    def population(self, spheroids: Spheroids, *, growth: float = 1.0, variant: int = 0) -> Tensor:
        """P, (b, 512). growth: factor on the size. variant 1: another spread or slope, 2: another aspect."""
        size, slope = self.size * growth, self.slope + (0.05 if variant == 1 else 0.0)
        P = spheroids(size, self.entry, variant)
        for kind, form in ((1, forms.guinier_porod), (2, forms.unified)):
            rows = self.kind == kind
            P[rows] = form(Q, size[rows], slope[rows])
        return P

    def curve(self, spheroids: Spheroids) -> Tensor:
        """I, (b, 512), the flat background being 1."""
        return self.level[:, None] * self.population(spheroids) + self.surface[:, None] * self.power_law() + 1

    def power_law(self) -> Tensor:
        return (Q / Q_0) ** -self.exponent[:, None]

    def directions(self, spheroids: Spheroids) -> Tensor:
        """How the curve moves with its seven parameters: (b, 7, 512); the flat background comes last."""
        P = self.population(spheroids)
        grown, shaped, longer = (
            self.population(spheroids, **change) - P for change in ({"growth": 1.01}, {"variant": 1}, {"variant": 2})
        )
        law = self.power_law()
        return torch.stack((P, grown, shaped, longer, law, law * (Q / Q_0).log(), torch.ones_like(P)), dim=1)


@dataclass(frozen=True)
class Instrument:
    """A random instrument.

    q: (n,) bins. pixels: (n,) in each, 0 in a gap and outside the grid. smear: (512, 512). sigma_scale: reported over
    true counting σ. systematic: relative, what flat field, spline and monitor leave behind.
    """

    q: Tensor
    pixels: Tensor
    smear: Tensor
    sigma_scale: float
    systematic: float

    @classmethod
    def draw(cls, g: Generator) -> Instrument:
        n = int(_log_uniform(250, 1200, (), g))
        q_min, q_max = float(_log_uniform(0.03, 0.16, (), g)), float(_log_uniform(1.3, 6.0, (), g))
        q = torch.linspace(q_min, q_max, n, dtype=torch.float64)
        q_pixel = _log_uniform(0.0015, 0.008, (), g)
        corner = _uniform(0.3, 1, (), g) * q_max
        coverage = torch.where(q < corner, 1.0, (corner / q) ** _uniform(0, 6, (), g))
        is_unseen = (q < GRID[0]) | (q > GRID[-1])  # what the network does not see must not count as detectable
        is_honest = bool(_uniform(0, 1, (), g) < 0.6)
        return cls(
            q=q,
            pixels=2 * math.pi * q * (q[1] - q[0]) / q_pixel**2 * coverage * ~(_gaps(q, g) | is_unseen),
            smear=_resolution(_uniform(0, 0.03, (), g), _uniform(0, 0.01, (), g)),
            sigma_scale=1.0 if is_honest else float(_log_uniform(0.6, 2, (), g)),
            systematic=float(_log_uniform(1e-3, 1e-2, (), g)),
        )

    @cached_property
    def response(self) -> Tensor:
        """(n, 512) float32: Q, smeared, at the bins. In single precision: half of the simulation's time goes here."""
        at = (self.q / Q[0]).log() / (Q[1] / Q[0]).log()
        k = at.long()
        return torch.lerp(self.smear[k], self.smear[k + 1], (at - k)[:, None]).float()

    def at_bins(self, I: Tensor) -> Tensor:
        """(…, 512) on Q → (…, n), smeared."""
        return (I.float() @ self.response.T).double()


def _gaps(q: Tensor, g: Generator) -> Tensor:
    """Up to three ranges without pixels."""
    is_gap = torch.zeros(len(q), dtype=torch.bool)
    for _ in range(int(torch.randint(0, 4, (), generator=g))):
        width = _log_uniform(0.002, 0.04, (), g) * (q[-1] - q[0])
        is_gap |= (q - _uniform(float(q[0]), float(q[-1]), (), g)).abs() < width / 2
    return is_gap


def _resolution(relative: Tensor, absolute: Tensor) -> Tensor:
    """The matrix of a Gaussian resolution with standard deviation √((relative·q)² + absolute²)."""
    width = torch.sqrt(relative**2 + (absolute / Q) ** 2).clamp(min=1e-4)
    W = torch.exp(-(((Q / Q[:, None]).log() / width[:, None]) ** 2) / 2) * Q
    return W / W.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Scene:
    """Samples on one instrument: what a fault is applied to. truth: (b, n) I at the bins. exposure: (b, 1) photons."""

    sample: Sample
    spheroids: Spheroids
    instrument: Instrument
    truth: Tensor
    exposure: Tensor
    g: Generator

    @classmethod
    def draw(cls, n: int, spheroids: Spheroids, g: Generator) -> Scene:
        instrument, sample = Instrument.draw(g), Sample.draw(n, g)
        truth = instrument.at_bins(sample.curve(spheroids))
        return cls(sample, spheroids, instrument, truth, _log_uniform(3e3, 1e8, (n, 1), g), g)

    def __getitem__(self, rows: Tensor) -> Scene:
        return replace(self, sample=self.sample[rows], truth=self.truth[rows], exposure=self.exposure[rows])

    def __len__(self) -> int:
        return len(self.truth)

    def norm(self) -> Tensor:
        """Photons per unit of intensity in every bin, (b, n), so that the normal curve holds `exposure` photons."""
        pixels = self.instrument.pixels
        return pixels * self.exposure / (self.truth @ pixels)[:, None]

    def variance(self, I: Tensor) -> Tensor:
        """True variance of I, (b, n): photons and the systematic part; infinite in gaps."""
        norm = self.norm()
        counting = torch.where(norm > 0, (I.clamp(min=0) * norm).clamp(min=1) / norm**2, torch.inf)
        return counting + (self.instrument.systematic * I) ** 2

    @cached_property
    def directions(self) -> Tensor:
        """The normal family around the samples, at the bins: (b, 7, n)."""
        return self.instrument.at_bins(self.sample.directions(self.spheroids))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return _uniform(low, high, (len(self), *shape), self.g)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return _log_uniform(low, high, (len(self), *shape), self.g)

    def added(self, I: Tensor) -> Tensor:
        """I, (b, 512), added at a strength that spreads D evenly over log D in 0.5–2000; (b, n).

        At most 30 times the sample: a fault that is all there is would be a sample of its own.
        """
        change = self.instrument.at_bins(I)
        D = detectability(change, self.directions, self.variance(self.truth))
        strength = self.log_uniform(0.5, 2000) / D.clamp(min=1e-12)
        return torch.minimum(strength, 30 * self.truth.amax(-1) / change.amax(-1))[:, None] * change


def detectability(delta: Tensor, directions: Tensor, variance: Tensor) -> Tensor:
    """D, (b,): √Σ ΔI²/σ² of what weighted least squares along the directions of the normal family leaves of ΔI.

    delta, variance: (b, n). directions: (b, k, n).
    """
    y = delta / variance.sqrt()
    A = directions / variance.sqrt()[:, None]
    A = A / A.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    gram = A @ A.mT + 1e-9 * torch.eye(A.shape[1], dtype=A.dtype)
    along = torch.linalg.solve(gram, A @ y[..., None])
    return (y - (A * along).sum(1)).norm(dim=-1)


def aggregation(scene: Scene) -> Tensor:
    """Radiation damage: aggregates with ξ of 10–200 nm and D_f of 1.7–2.75 add an upturn at low q."""
    return scene.added(forms.mass_fractal(Q, scene.log_uniform(10, 200), scene.uniform(1.7, 2.75)))


def second_population(scene: Scene) -> Tensor:
    """Voids, vacancy clusters, bubbles or dust: spheroids of another size."""
    entry = torch.randint(0, Spheroids.SIZE, (len(scene),), generator=scene.g)
    return scene.added(scene.spheroids(scene.log_uniform(0.6, 40), entry))


def repulsion(scene: Scene) -> Tensor:
    """The population's S(q) is that of hard spheres, one to two and a half times as large as the particles."""
    S = forms.hard_spheres(Q, scene.sample.size * scene.uniform(1, 2.5), scene.log_uniform(0.01, 0.4))
    population = scene.sample.population(scene.spheroids)
    return scene.instrument.at_bins(scene.sample.level[:, None] * population * (S - 1))


def precipitation(scene: Scene) -> Tensor:
    """Precipitates with a depleted zone around them."""
    return scene.added(forms.depleted_precipitate(Q, scene.log_uniform(0.8, 20), scene.uniform(1.4, 3)))


def phase_separation(scene: Scene) -> Tensor:
    """A bicontinuous structure with a period of 3–60 nm."""
    period = scene.log_uniform(3, 60)
    return scene.added(forms.teubner_strey(Q, period, period * scene.uniform(0.2, 1.5)))


def beamstop(scene: Scene) -> Tensor:
    """The lowest bins are shadowed, or parasitic scattering leaks past the beamstop."""
    q, leaks = scene.instrument.q, scene.uniform(0, 1, 1) < 0.5
    q_min = q[scene.instrument.pixels > 0][0]
    factor = torch.where(leaks, scene.log_uniform(1.2, 50, 1), scene.uniform(0.1, 0.9, 1))
    reach = scene.log_uniform(0.003, 0.05, 1).clamp(min=1.5 * float(q[1] - q[0]))
    return scene.truth * (factor - 1) * torch.sigmoid((q_min + reach - q) / (0.1 * reach))


def background(scene: Scene) -> Tensor:
    """More background was subtracted than there is."""
    return -scene.log_uniform(0.01, 1, 1).expand_as(scene.truth)


def dead_time(scene: Scene) -> Tensor:
    """Pixels count n/(1 + nτ): strong intensities come out too small."""
    lost = scene.log_uniform(0.01, 3, 1) * scene.truth / scene.truth.amax(-1, keepdim=True)
    return -scene.truth * lost / (1 + lost)


FAULTS: Mapping[str, Callable[[Scene], Tensor]] = {
    "aggregation": aggregation,
    "second population": second_population,
    "repulsion": repulsion,
    "precipitation": precipitation,
    "phase separation": phase_separation,
    "beamstop": beamstop,
    "background": background,
    "dead time": dead_time,
}
"""ΔI at the instrument's bins, (b, n), for every kind of fault."""
NAMES = ("normal", *FAULTS)
"""What the indices in `Curves.fault` mean."""


def simulate(n: int, spheroids: Spheroids, g: Generator, *, normal: float = 0.5) -> Curves:
    """n curves of one random instrument. normal: the share without a fault."""
    scene = Scene.draw(n, spheroids, g)
    fault = torch.randint(1, len(NAMES), (n,), generator=g)
    fault = torch.where(_uniform(0, 1, (n,), g) < normal, 0, fault)
    delta, D = torch.zeros_like(scene.truth), torch.zeros(n, dtype=torch.float64)
    for kind, name in enumerate(NAMES):
        rows = torch.nonzero(fault == kind)[:, 0]
        if name in FAULTS and len(rows):
            delta[rows], D[rows] = _apply(name, scene[rows])
    inputs, photons = _measure(scene, delta, fault == NAMES.index("background"))
    label = torch.where(D >= ANOMALOUS_FROM, 1, torch.where(D < NORMAL_BELOW, 0, -1))
    is_empty = inputs.isnan().any(-1).any(-1)  # no intensity above zero is left: `infer` flags it, no network sees it
    return Curves(inputs.nan_to_num(0), torch.where(is_empty, -1, label), fault, D.float(), photons.float())


def _apply(name: str, scene: Scene) -> tuple[Tensor, Tensor]:
    """ΔI of one kind of fault and its D."""
    delta = FAULTS[name](scene)
    if name == "background":  # no photon is missing, and the normal family cannot follow below zero
        return delta, detectability(delta, scene.directions[:, :-1], scene.variance(scene.truth))
    variance = scene.variance(scene.truth + delta)
    D = detectability(delta, scene.directions, variance)
    if name == "second population":  # whichever population is the sample's own, the nearer normal curve counts
        own = scene.instrument.at_bins(scene.sample.level[:, None] * scene.sample.population(scene.spheroids))
        grown = _stretched(delta, scene.instrument.q)
        other = (delta, grown, _stretched(grown, scene.instrument.q), *scene.directions[:, -3:].unbind(1))
        D = torch.minimum(D, detectability(own, torch.stack(other, dim=1), variance))
    return delta, D


def _stretched(I: Tensor, q: Tensor) -> Tensor:
    """dI/d ln q of a population, (b, n): how it changes with its size; done twice, with the spread of its sizes."""
    return torch.gradient(I, spacing=(q.log(),), dim=-1)[0]


def _measure(scene: Scene, delta: Tensor, is_oversubtracted: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of the network, and the photons in each curve. Every seventh curve lost a part of its background."""
    norm, g, b = scene.norm(), scene.g, len(delta)
    mean = scene.truth + torch.where(is_oversubtracted[:, None], 0, delta)
    mean = mean * (1 + scene.instrument.systematic * _ripple(mean.shape, g))
    seen = torch.poisson((mean * norm).clamp(min=0), generator=g)
    taken = _uniform(0, 1, (b, 1), g) * (_uniform(0, 1, (b, 1), g) < 0.15)
    taken = torch.where(is_oversubtracted[:, None], 1 - delta, taken)
    I = torch.where(norm > 0, seen / norm - taken, torch.nan)
    sigma = torch.where(norm > 0, seen.clamp(min=1).sqrt() / norm, torch.nan) * scene.instrument.sigma_scale
    q, pixels = scene.instrument.q.numpy(), scene.instrument.pixels.numpy()
    inputs = curves.channels(*curves.rebin(q, I.numpy(), sigma.numpy(), GRID, weight=pixels))
    return torch.from_numpy(inputs), seen.sum(-1)


def _ripple(shape: torch.Size, g: Generator) -> Tensor:
    """Unit variance, half of it different from bin to bin, half smooth in q."""
    rough = torch.randn(shape, generator=g, dtype=torch.float64)
    knots = torch.randn((shape[0], 1, 12), generator=g, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(knots, size=shape[1], mode="linear", align_corners=True)[:, 0]
    return (rough + smooth) / math.sqrt(2)


def _uniform(low: float, high: float, shape: tuple[int, ...], g: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)


def _log_uniform(low: float, high: float, shape: tuple[int, ...], g: Generator) -> Tensor:
    return torch.exp(_uniform(math.log(low), math.log(high), shape, g))
