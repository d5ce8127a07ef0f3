"""SAXS curves made on the fly: sample, defect or fault, instrument, photons, reduction, reference.

What is there to be seen. D is the distance, in standard uncertainties, between the mean curve with a defect and that of
the same sample without it:

    D² = Σ ΔI²/v − (Σ ΔI·I/v)² / (1/τ² + Σ I²/v)

v: true variance of the frame, of the reference and of what the flat field leaves behind. The second term takes out what
a change of scale explains: the flux is stable to τ only, and a defect that merely looks like more beam is none that
anyone can see. `distance` has D_min, the distance to the nearest curve of any other class.

Strengths are drawn so that D is log-uniform: concentration follows from what the exposure lets one see, and a curve is
labelled with its defect however faint, so that probabilities mean what they say. A defect scatters at most three
times the photons of the sample; beyond, it would be a sample of its own.

Everything is drawn from one generator: the same seed makes the same curves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from models.saxs import defects, faults, strangers
from models.saxs.instruments import GRID, Instrument
from models.saxs.samples import BACKGROUND, Q, Sample, Spheroids, log_uniform, uniform
from streamer.reduce.reference import FLUX_STABILITY, Reference, channels

__all__ = ["D_RANGE", "GRID", "Curves", "Mix", "Scene", "join", "simulate"]

D_RANGE = (0.5, 1000.0)
PHOTONS = (3e3, 1e8)
REFERENCE_RATIO = (1.0, 200.0)
"""Exposure of the reference over that of a frame."""
BRIGHTEST = 3.0
STRANGE = len(defects.CLASSES)
"""The label of a curve of `strangers`: of no class."""


@dataclass(frozen=True)
class Mix:
    """What is drawn. classes: share of each material class. faulty: share of curves with an instrument's fault.
    with_reference: share of curves that come with one. strange: share of curves of no class, see `strangers`. D: range
    of the log-uniform detectability."""

    classes: tuple[float, ...] = (1 / 7,) * 7
    faulty: float = 0.3
    with_reference: float = 0.75
    strange: float = 0.0
    D: tuple[float, float] = D_RANGE

    @classmethod
    def normal(cls) -> Mix:
        """Frames in order, with their reference."""
        return cls(classes=(1.0,) + (0.0,) * 6, faulty=0.0, with_reference=1.0)

    @classmethod
    def material(cls, *labels: int, D: tuple[float, float] = D_RANGE, with_reference: float = 1.0) -> Mix:
        """These classes in equal shares on instruments in order."""
        return cls(tuple(float(k in labels) for k in range(7)), faulty=0.0, with_reference=with_reference, D=D)


@dataclass(frozen=True)
class Curves:
    """b curves: what the network sees, what is true of them, and what the oracle needs.

    inputs: (b, 8, 128) float32, see `streamer.reduce.reference.channels`. label: (b,) index into CLASSES, or STRANGE.
    faults: (b, 7) 1 where the fault of `faults.NAMES` is present with D ≥ 2. D: (b,) of the defect. D_fault: (b,) of
    the fault. has_reference: (b,). kind, u, strength: of the defect, see `defects`; strength in units of the flat
    background. photons: (b,) expected in the frame. truth, I, reference: (b, 128) mean curve without the defect, the
    frame and the reference as measured. variance, variance_0: (b, 128) true variance of I − reference with and without
    the defect, infinite where not measured. instrument: (b,) which of the batch's.
    """

    inputs: Tensor
    label: Tensor
    faults: Tensor
    D: Tensor
    D_fault: Tensor
    has_reference: Tensor
    kind: Tensor
    u: Tensor
    strength: Tensor
    photons: Tensor
    truth: Tensor
    I: Tensor
    reference: Tensor
    variance: Tensor
    variance_0: Tensor
    instrument: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> Curves:
        return Curves(*(getattr(self, field.name)[rows] for field in fields(self)))


def join(parts: list[Curves]) -> Curves:
    """Batches in one; instruments are numbered through."""
    first = np.cumsum([0, *(int(part.instrument.max()) + 1 if len(part) else 0 for part in parts)])
    columns = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Curves)}
    columns["instrument"] = torch.cat([part.instrument + int(k) for part, k in zip(parts, first, strict=False)])
    return Curves(**columns)


@dataclass(frozen=True)
class Scene:
    """Samples on one instrument. truth: (b, 128) I of the sample in order at the points of the grid. norm: (b, 128)
    photons per unit of intensity. ratio: (b, 1) exposure of the reference over that of the frame."""

    sample: Sample
    spheroids: Spheroids
    instrument: Instrument
    truth: Tensor
    norm: Tensor
    ratio: Tensor
    g: Generator

    @classmethod
    def draw(cls, n: int, spheroids: Spheroids, instrument: Instrument, g: Generator, **more: Any) -> Self:
        sample = Sample.draw(n, g)
        truth = instrument.at_grid(sample.curve(spheroids))
        exposure = log_uniform(*PHOTONS, (n, 1), g)
        norm = instrument.pixels * exposure / (truth @ instrument.pixels)[:, None]
        ratio = log_uniform(*REFERENCE_RATIO, (n, 1), g)
        return cls(sample, spheroids, instrument, truth, norm, ratio, g, **more)

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: Tensor) -> Scene:
        own = {name: getattr(self, name)[rows] for name in ("sample", "truth", "norm", "ratio")}
        return replace(self, **own)

    def repeat(self, n: int) -> Self:
        """The same sample n times; of a scene of one row."""
        return self[torch.zeros(n, dtype=torch.int64)]

    def variance(self, I: Tensor) -> Tensor:
        """True variance of I − I_ref for a frame whose mean is I, (b, 128); infinite where nothing is measured."""
        one = self._variance_of(I, self.norm) + (self.instrument.systematic * I) ** 2
        reference = self._variance_of(self.truth, self.norm) + (self.instrument.systematic * self.truth) ** 2
        return torch.where(self.instrument.measured, one + reference / self.ratio, torch.inf)

    def _variance_of(self, I: Tensor, norm: Tensor) -> Tensor:
        floor = self.instrument.pixels * self.instrument.read_noise**2
        return ((norm * I).clamp(min=0.3) + floor) / norm.clamp(min=1e-30) ** 2

    def scaled_to(self, unit: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        """The factor that brings ΔI = unit (b, 128) to a detectability D (b,), and the D reached: less where the defect
        would scatter more than BRIGHTEST times the photons of the sample."""
        most = BRIGHTEST * (self.truth * self.norm).sum(-1) / (unit * self.norm).sum(-1).clamp(min=1e-30)
        strength = torch.zeros_like(D)
        for _ in range(4):  # σ grows with the defect
            variance = self.variance(self.truth + strength[:, None] * unit)
            strength = torch.minimum(D / detectability(unit, self.truth, variance).clamp(min=1e-12), most)
        variance = self.variance(self.truth + strength[:, None] * unit)
        return strength, strength * detectability(unit, self.truth, variance)

    def measure(self, mean: Tensor, taken: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """I, σ of one frame and of its reference, (b, 128), NaN where not measured. taken: subtracted later."""
        I, sigma = self._counted(mean * torch.exp(FLUX_STABILITY * self._normal((len(self), 1))), self.norm, 1.0)
        I_ref, sigma_ref = self._counted(self.truth, self.norm * self.ratio, self.ratio)
        return I - taken, sigma, I_ref, sigma_ref

    def _counted(self, mean: Tensor, norm: Tensor, frames: Tensor | float) -> tuple[Tensor, Tensor]:
        instrument = self.instrument
        ripple = instrument.systematic * self._normal(mean.shape) / torch.as_tensor(frames) ** 0.5
        expected = (mean * (1 + ripple) * norm).clamp(min=0).double()
        seen = torch.poisson(expected, generator=self.g)
        electronics = instrument.pixels * instrument.read_noise**2 * frames
        read = seen + electronics.sqrt() * self._normal(mean.shape) if instrument.read_noise else seen
        # A bin without a photon counts as one in σ; how many of a point's bins are empty follows from their mean.
        empty = instrument.bins * torch.exp(-seen / instrument.bins.clamp(min=1))
        counts = seen + empty + (electronics if instrument.admits_read_noise else 0.0)
        scale = torch.where(instrument.measured, norm.double(), torch.nan)
        return (read / scale).float(), (counts.sqrt() / scale * instrument.sigma_scale).float()

    def _normal(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.g)


def detectability(delta: Tensor, I: Tensor, variance: Tensor, stability: float = FLUX_STABILITY) -> Tensor:
    """D of ΔI on a sample I, (b,): see the head of this module. All (b, 128); variance infinite where not measured."""
    weight = 1 / variance.double()
    delta, I = delta.double(), I.double()
    along = (delta * I * weight).sum(-1) ** 2 / (stability**-2 + (I**2 * weight).sum(-1))
    return ((delta**2 * weight).sum(-1) - along).clamp(min=0).sqrt().float()


def simulate(
    n: int,
    spheroids: Spheroids,
    g: Generator,
    mix: Mix | None = None,
    *,
    instrument: Instrument | None = None,
    scene: Scene | None = None,
) -> Curves:
    """n curves of one instrument, a random one by default, or of a scene."""
    mix = mix or Mix()
    scene = scene or Scene.draw(n, spheroids, instrument or Instrument.draw(g), g)
    is_faulty = uniform(0, 1, (n,), g) < mix.faulty
    label = torch.multinomial(torch.tensor(mix.classes), n, replacement=True, generator=g)
    label = torch.where(is_faulty & (uniform(0, 1, (n,), g) < 0.8), 0, label)
    if mix.strange:
        label = torch.where(~is_faulty & (uniform(0, 1, (n,), g) < mix.strange), STRANGE, label)
    kind, u = defects.draw(label, g)
    unit = scene.instrument.at_grid(_intensity(label, kind, u, g)) / BACKGROUND
    strength, D = scene.scaled_to(unit, log_uniform(*mix.D, (n,), g))
    strength, D = torch.where(label > 0, strength, 0), torch.where(label > 0, D, 0)
    return observed(scene, label, kind, u, strength, D, unit, is_faulty, mix)


def _intensity(label: Tensor, kind: Tensor, u: Tensor, g: Generator) -> Tensor:
    """Of defects and of strangers, (b, len(Q))."""
    I = defects.intensity(Q, kind, u)
    rows = torch.nonzero(label == STRANGE)[:, 0]
    if len(rows):
        I[rows] = strangers.draw(len(rows), g)
    return I


def observed(
    scene: Scene,
    label: Tensor,
    kind: Tensor,
    u: Tensor,
    strength: Tensor,
    D: Tensor,
    unit: Tensor,
    is_faulty: Tensor,
    mix: Mix,
) -> Curves:
    """Expose these samples once, with a fault of the instrument where `is_faulty`, and once more for the reference."""
    g, n = scene.g, len(scene)
    mean = scene.truth + strength[:, None] * unit
    variance = scene.variance(mean)
    fault = torch.where(is_faulty, torch.randint(0, len(faults.NAMES), (n,), generator=g), -1)
    exposed, taken, D_fault = faults.apply(scene, mean, fault, log_uniform(*mix.D, (n,), g), detectability)
    I, sigma, I_ref, sigma_ref = scene.measure(exposed, taken)
    has_reference = uniform(0, 1, (n,), g) < mix.with_reference
    I_ref = torch.where(has_reference[:, None], I_ref, torch.nan)
    inputs = channels(I.numpy(), sigma.numpy(), Reference(I_ref.numpy(), sigma_ref.numpy()))
    present = (
        torch.nn.functional.one_hot(fault.clamp(min=0), len(faults.NAMES)) * (D_fault >= faults.PRESENT_FROM)[:, None]
    )
    return Curves(
        inputs=torch.from_numpy(
            np.nan_to_num(inputs)
        ),  # a curve without a photon: `infer` flags it, no network sees it
        label=label,
        faults=(present * (fault >= 0)[:, None]).float(),
        D=D,
        D_fault=D_fault,
        has_reference=has_reference,
        kind=kind,
        u=u,
        strength=strength,
        photons=(scene.norm * mean).sum(-1),
        truth=scene.truth,
        I=I,
        reference=I_ref,
        variance=variance,
        variance_0=scene.variance(scene.truth),
        instrument=torch.zeros(n, dtype=torch.int64),
    )
