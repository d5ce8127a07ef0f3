"""What goes wrong around a material: radiation damage, the solution, the beamline, the detector.

Faults may be there beside any material; they are answered one by one, not against each other.

    aggregation   radiation damage: mass-fractal aggregates, ξ 10–200 nm, D_f 1.7–2.75
    repulsion     the particles' S(q) is that of hard spheres
    background    more, or less, of the buffer was subtracted than there is
    beamstop      it moved or leaks: the lowest q are shadowed or lit by parasitic scattering
    beam          bubble, empty cell, sample out of the beam, beam lost in part
    saturation    pixels count n/(1 + nτ)
    detector      hot points, a dead or drifting module
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.saxs import forms
from models.saxs.instruments import GRID
from models.saxs.samples import Q, log_uniform, uniform

if TYPE_CHECKING:
    from models.saxs.simulate import Scene

PRESENT_FROM = 2.0
"""D from which a fault is labelled: below, nobody could tell."""

Q_GRID = torch.from_numpy(GRID).float()
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fault:
    """change: ΔI at the grid, (b, 128), of its natural strength. is_free: whether any strength is natural. is_counted:
    whether the photons themselves changed, and not only what was subtracted from them."""

    change: Callable[[Scene, Tensor], Tensor]
    is_free: bool = True
    is_counted: bool = True


def _uniform(scene: Scene, low: float, high: float, columns: int = 1) -> Tensor:
    return uniform(low, high, (len(scene), columns), scene.g)


def _log_uniform(scene: Scene, low: float, high: float, columns: int = 1) -> Tensor:
    return log_uniform(low, high, (len(scene), columns), scene.g)


def aggregation(scene: Scene, mean: Tensor) -> Tensor:
    size, dimension = _log_uniform(scene, 10, 200)[:, 0], _uniform(scene, 1.7, 2.75)[:, 0]
    return scene.instrument.at_grid(forms.mass_fractal(Q, size, dimension))


def repulsion(scene: Scene, mean: Tensor) -> Tensor:
    radius = (scene.sample.size[:, None] * _uniform(scene, 1, 2.5))[:, 0]
    S = forms.hard_spheres(Q.double(), radius.double(), _log_uniform(scene, 0.01, 0.4)[:, 0].double()).float()
    population = scene.sample.level[:, None] * scene.sample.population(scene.spheroids)
    return scene.instrument.at_grid(population * (S - 1))


def background(scene: Scene, mean: Tensor) -> Tensor:
    """The buffer: flat, with a capillary's rise towards low q."""
    rise = _uniform(scene, 0, 0.3) * (_uniform(scene, 0, 1) < 0.5)
    sign = torch.where(_uniform(scene, 0, 1) < 0.6, -1.0, 1.0)
    return sign * (1 + rise * (Q_GRID / 0.1) ** -2)


def beamstop(scene: Scene, mean: Tensor) -> Tensor:
    """Half of them shadow or leak at the lowest points, half are parasitic scattering with an exponent of 3 to 4.5."""
    lit = Q_GRID[scene.instrument.measured]
    q_min = float(lit[0]) if len(lit) else float(Q_GRID[0])
    reach = _log_uniform(scene, 0.003, 0.05).clamp(min=0.04 * q_min)
    edge = torch.sigmoid((q_min + reach - Q_GRID) / (0.15 * reach))
    factor = torch.where(_uniform(scene, 0, 1) < 0.5, _log_uniform(scene, 1.2, 50), _uniform(scene, 0.1, 0.9))
    parasitic = (
        scene.truth.amax(-1, keepdim=True) * _log_uniform(scene, 1e-3, 1) * (Q_GRID / q_min) ** -_uniform(scene, 3, 4.5)
    )
    return torch.where(_uniform(scene, 0, 1) < 0.5, mean * (factor - 1) * edge, parasitic)


def beam(scene: Scene, mean: Tensor) -> Tensor:
    """A part of the beam meets no sample (the power law and a third of the background remain), or is not there."""
    part = _log_uniform(scene, 0.01, 1.0)
    empty = scene.instrument.at_grid(
        scene.sample.surface[:, None] * scene.sample.power_law() * _uniform(scene, 0, 1) + 0.3
    )
    return torch.where(_uniform(scene, 0, 1) < 0.5, -part * mean, part * (empty - mean))


def saturation(scene: Scene, mean: Tensor) -> Tensor:
    lost = _log_uniform(scene, 0.003, 3) * mean / mean.amax(-1, keepdim=True)
    return -mean * lost / (1 + lost)


def detector(scene: Scene, mean: Tensor) -> Tensor:
    """One to six hot or dead points, or a module that counts too little over a range of q."""
    place = torch.rand(mean.shape, generator=scene.g)
    is_hot = place < _uniform(scene, 0.5, 6) / max(int(scene.instrument.measured.sum()), 1)
    is_hot |= place == torch.where(scene.instrument.measured, place, 2.0).amin(-1, keepdim=True)
    centre, width = _log_uniform(scene, 0.1, 4), _uniform(scene, 0.05, 0.6)
    is_in_module = ((Q_GRID / centre).log().abs() < width).float()
    share = _uniform(scene, 0.02, 0.5)
    hot = is_hot * torch.where(_uniform(scene, 0, 1) < 0.7, 1.0, -0.3) * _uniform(scene, 0.3, 1, mean.shape[1])
    return mean * torch.where(_uniform(scene, 0, 1) < 0.6, hot, -share * is_in_module)


FAULTS: dict[str, Fault] = {
    "aggregation": Fault(aggregation),
    "repulsion": Fault(repulsion, is_free=False),
    "background": Fault(background, is_counted=False),
    "beamstop": Fault(beamstop, is_free=False),
    "beam": Fault(beam, is_free=False),
    "saturation": Fault(saturation, is_free=False),
    "detector": Fault(detector, is_free=False),
}
NAMES = tuple(FAULTS)
"""What the fault head answers, in this order."""


def apply(scene: Scene, mean: Tensor, fault: Tensor, D: Tensor, distance: Distance) -> tuple[Tensor, Tensor, Tensor]:
    """The mean that is exposed, what is subtracted afterwards, both (b, 128), and the D reached.

    fault: (b,) index into NAMES, −1 for none. D: (b,) wanted; faults whose strength is bounded by nature are weakened
    to it, never strengthened. distance: of ΔI on a sample, see `simulate.detectability`.
    """
    exposed, taken, reached = mean.clone(), torch.zeros_like(mean), torch.zeros_like(D)
    for k, one in enumerate(FAULTS.values()):
        rows = torch.nonzero(fault == k)[:, 0]
        if not len(rows):
            continue
        part, before = scene[rows], mean[rows]
        change = one.change(part, before)
        strength = (
            torch.ones(len(rows)) if not one.is_free else before.amax(-1) / change.abs().amax(-1).clamp(min=1e-30)
        )
        bound = strength.clone() if not one.is_free else 30 * strength
        for _ in range(4):
            after = (before + strength[:, None] * change).clamp(min=0) if one.is_counted else before
            unit = distance(change, before, part.variance(after)).clamp(min=1e-12)
            strength = torch.minimum(D[rows] / unit, bound)
        delta = strength[:, None] * change
        reached[rows] = distance(
            delta, before, part.variance((before + delta).clamp(min=0) if one.is_counted else before)
        )
        if one.is_counted:
            exposed[rows] = (before + delta).clamp(min=0)
        else:
            taken[rows] = -delta
    return exposed, taken, reached
