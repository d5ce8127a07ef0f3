"""Samples in order: the family of curves that is called normal.

    I(q) = A·P(q) + S·(q/q₀)⁻ⁿ + 1, in units of the flat background

with at most one population P of compact scatterers (polydisperse spheroids, Guinier–Porod with a slope of 3 to 4,
Beaucage's unified level), a surface or parasitic power law with 3.2 ≤ n ≤ 4.2, and a flat background: a dilute
solution, a powder, an alloy. q is in nm⁻¹, lengths in nm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from models.saxs import forms

Q = torch.logspace(math.log10(0.03), math.log10(7.0), 320)
"""The axis samples and defects are computed on, before the instrument smears and bins them."""
Q_0 = 0.1
"""nm⁻¹, where the power law's level is quoted."""
BACKGROUND = 0.5
"""cm⁻¹ of the flat background, the unit of the sample's curve: fluorescing, diffusely scattering metal has 0.3–1."""


class Spheroids:
    """A catalogue of random spheroid populations. P depends on qR alone, so that one table serves all sizes."""

    SIZE = 192
    X = torch.logspace(-3, math.log10(400), 2048, dtype=torch.float64)

    def __init__(self, g: Generator) -> None:
        spread, aspect = uniform(0.05, 0.35, (self.SIZE,), g), log_uniform(0.4, 2.5, (self.SIZE,), g)
        single = forms.spheroid(self.X, aspect.double())
        self.table = forms.size_average(self.X, single, spread.double()).float()

    def __call__(self, radius: Tensor, entry: Tensor) -> Tensor:
        """P on Q, (b, len(Q)). entry: (b,) of the catalogue."""
        first, step = math.log(self.X[0]), math.log(self.X[1] / self.X[0])
        at = (((Q * radius[:, None]).log() - first) / step).clamp(0, len(self.X) - 1.001)
        k, row = at.long(), entry[:, None]
        return torch.lerp(self.table[row, k], self.table[row, k + 1], at - k)


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
            level=log_uniform(0.3, 1e4, (n,), g) * (uniform(0, 1, (n,), g) > 0.25),
            size=log_uniform(0.8, 12, (n,), g),
            entry=torch.randint(0, Spheroids.SIZE, (n,), generator=g),
            slope=uniform(3, 4, (n,), g),
            surface=log_uniform(1e-2, 1e4, (n,), g) * (uniform(0, 1, (n,), g) > 0.15),
            exponent=uniform(3.2, 4.2, (n,), g),
        )

    def __getitem__(self, rows: Tensor) -> Sample:
        return Sample(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.kind)

    def population(self, spheroids: Spheroids) -> Tensor:
        """P, (b, len(Q))."""
        P = torch.empty(len(self), len(Q))
        for kind, form in ((0, None), (1, forms.guinier_porod), (2, forms.unified)):
            rows = torch.nonzero(self.kind == kind)[:, 0]
            size = self.size[rows]
            P[rows] = spheroids(size, self.entry[rows]) if form is None else form(Q, size, self.slope[rows])
        return P

    def curve(self, spheroids: Spheroids) -> Tensor:
        """I, (b, len(Q)), the flat background being 1."""
        return self.level[:, None] * self.population(spheroids) + self.surface[:, None] * self.power_law() + 1

    def power_law(self) -> Tensor:
        return (Q / Q_0) ** -self.exponent[:, None]


def uniform(low: float, high: float, shape: tuple[int, ...], g: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def log_uniform(low: float, high: float, shape: tuple[int, ...], g: Generator) -> Tensor:
    return torch.exp(uniform(math.log(low), math.log(high), shape, g))
