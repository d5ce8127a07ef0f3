"""How far a curve is from everything else it could be: D_min, the distance to the nearest curve of any other class.

The mean curve with its defect is compared, in the metric of `simulate.detectability` (true σ of frame and reference,
flux stable to τ), with the sample in order and with every curve of every other class, over all parameters and strengths
of that class: the nearest of a dense bank seen by the same instrument, and one Gauss–Newton step from there.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from models.saxs import defects
from models.saxs.bank import Bank, Templates, stability_factor
from models.saxs.instruments import Instrument
from models.saxs.samples import BACKGROUND, Q, Spheroids, log_uniform
from models.saxs.simulate import Curves, Mix, Scene, observed

DENSITY = 2.0
"""Templates in the bank of distances over those in the network."""


def distances(delta: Tensor, I: Tensor, variance: Tensor, bank: Bank) -> Tensor:
    """(b, 7): to the sample in order and to the nearest curve of each class. delta, I, variance: (b, 128)."""
    weight = variance.rsqrt()  # 0 where not measured
    flux, kappa = stability_factor(weight * I)
    a = delta * weight
    z = a - (1 - kappa) * (a * flux).sum(-1, keepdim=True) * flux
    with torch.no_grad():
        said = [bank(*rows) for rows in zip(*(x[:, None].split(256) for x in (z, weight, flux, kappa)), strict=True)]
    return torch.cat([(one.residual**2).sum(-1).sqrt() for one in said])


def smallest(distance: Tensor, label: Tensor) -> Tensor:
    """D_min (b,): the smallest of `distances` but that to the own class."""
    own = torch.nn.functional.one_hot(label, distance.shape[-1]).bool()
    return distance.masked_fill(own, torch.inf).amin(-1)


def decisive(
    n: int,
    spheroids: Spheroids,
    g: Generator,
    instrument: Instrument,
    D_min: tuple[float, float],
    classes: tuple[int, ...],
) -> tuple[Curves, Tensor]:
    """n curves of these classes in equal shares, with a reference and without faults, D_min log-uniform; and D_min,
    (n,), ∞ for normal curves. Curves that cannot be so decisive, the defect outshining the sample, are left out."""
    scene = Scene.draw(n, spheroids, instrument, g)
    label = torch.tensor(classes)[torch.randint(0, len(classes), (n,), generator=g)]
    kind, u = defects.draw(label, g)
    unit = instrument.at_grid(defects.intensity(Q, kind, u)) / BACKGROUND
    bank = Bank(Templates.make(instrument, DENSITY)).eval()
    wanted = log_uniform(*D_min, (n,), g)
    strength, D = scene.scaled_to(unit, 2 * wanted)
    for _ in range(2):
        found = _smallest(scene, strength, unit, label, bank)
        ratio = torch.where(label > 0, wanted / found.clamp(min=1e-6), 1.0)
        strength, D = scene.scaled_to(unit, D * ratio)
    found = _smallest(scene, strength, unit, label, bank)
    is_normal = label == 0
    strength, D = strength.masked_fill(is_normal, 0), D.masked_fill(is_normal, 0)
    curves = observed(
        scene, label, kind, u, strength, D, unit, torch.zeros(n, dtype=torch.bool), Mix(with_reference=1.0)
    )
    keep = torch.nonzero(is_normal | ((found >= D_min[0]) & (found <= D_min[1])))[:, 0]
    return curves[keep], found.masked_fill(is_normal, torch.inf)[keep]


def _smallest(scene: Scene, strength: Tensor, unit: Tensor, label: Tensor, bank: Bank) -> Tensor:
    delta = strength[:, None] * unit
    mean = scene.truth + delta
    return smallest(distances(delta, scene.truth, scene.variance(mean), bank), label)
