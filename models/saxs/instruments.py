"""Random instruments: range, bins, gaps, smearing, photons, and how honest the σ is.

An instrument counts in linear bins of q; `streamer.reduce.curves.rebin` then brings its curve onto the network's
grid. Both steps are linear and made of whole bins, so that they are one matrix here: the counts of all bins that fall
into one point of the grid are drawn as one Poisson number. `frames` makes curves the long way, pixel by pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from models.saxs.samples import Q, log_uniform, uniform
from streamer.reduce.curves import edges, log_grid

GRID = log_grid(0.05, 5.0, 128)
"""nm⁻¹, the network's grid. Steps of 3.7 %: finer than that no size distribution or peak here has structure."""


@dataclass(frozen=True)
class Instrument:
    """response: (128, len(Q)) from the sample's curve to the mean intensity at the points of the grid; 0 where nothing
    is measured. pixels: (128,) in each. bins: (128,) of the instrument in each.

    sigma_scale: reported over true counting σ. systematic: relative, what flat field, spline and monitor leave behind
    in every point. read_noise: photons per pixel. admits_read_noise: whether the reported σ contains it.
    """

    response: Tensor
    pixels: Tensor
    bins: Tensor
    sigma_scale: float = 1.0
    systematic: float = 0.0
    read_noise: float = 0.0
    admits_read_noise: bool = True

    @property
    def measured(self) -> Tensor:
        return self.pixels > 0

    def at_grid(self, I: Tensor) -> Tensor:
        """(…, len(Q)) → (…, 128), smeared."""
        return I @ self.response.T

    @classmethod
    def draw(cls, g: Generator) -> Instrument:
        """One of the family that is trained on."""
        return cls.of(
            g,
            n=int(log_uniform(250, 1200, (), g)),
            q_range=(float(log_uniform(0.03, 0.2, (), g)), float(log_uniform(1.3, 6.0, (), g))),
            resolution=(float(uniform(0, 0.03, (), g)), float(uniform(0, 0.01, (), g))),
        )

    @classmethod
    def unseen(cls, g: Generator) -> Instrument:
        """One that training never saw: a short range, few bins and a broad beam."""
        return cls.of(
            g,
            n=int(uniform(120, 200, (), g)),
            q_range=(float(log_uniform(0.05, 0.07, (), g)), float(log_uniform(0.9, 1.2, (), g))),
            resolution=(float(uniform(0.035, 0.05, (), g)), float(uniform(0.01, 0.015, (), g))),
        )

    @classmethod
    def of(cls, g: Generator, *, n: int, q_range: tuple[float, float], resolution: tuple[float, float]) -> Instrument:
        q = torch.linspace(*q_range, n, dtype=torch.float64)
        q_pixel = log_uniform(0.0015, 0.008, (), g)
        corner = float(uniform(0.3, 1, (), g)) * q_range[1]
        coverage = torch.where(q < corner, 1.0, (corner / q) ** float(uniform(0, 6, (), g)))
        pixels = 2 * math.pi * q * (q[1] - q[0]) / q_pixel**2 * coverage * ~_gaps(q, g)
        is_honest = bool(uniform(0, 1, (), g) < 0.7)
        reads = bool(uniform(0, 1, (), g) < 0.15)
        return cls(
            *onto_grid(q, pixels, smearing(*resolution)),
            sigma_scale=float(torch.exp(0.05 * torch.randn((), generator=g)))
            if is_honest
            else float(log_uniform(0.6, 2, (), g)),
            systematic=float(log_uniform(1e-3, 6e-3, (), g)),
            read_noise=float(uniform(0.05, 0.2, (), g)) if reads else 0.0,
            admits_read_noise=bool(uniform(0, 1, (), g) < 0.7),
        )


def onto_grid(q: Tensor, pixels: Tensor, smear: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Response, pixels and bins of the points of the grid, for bins at q with their numbers of pixels."""
    point = torch.from_numpy(np.searchsorted(edges(GRID), q.numpy(), side="right")) - 1
    is_used = (point >= 0) & (point < len(GRID)) & (pixels > 0)
    q, point, w = q[is_used], point[is_used], pixels[is_used].float()
    step = math.log(Q[1] / Q[0])
    at = ((q / Q[0]).log() / step).clamp(0, len(Q) - 1.001)
    k, t = at.long(), (at - at.long()).float()
    sums = torch.zeros(len(GRID), len(Q))
    flat = sums.view(-1)
    flat.index_add_(0, point * len(Q) + k, w * (1 - t))
    flat.index_add_(0, point * len(Q) + k + 1, w * t)
    total = torch.zeros(len(GRID)).index_add_(0, point, w)
    bins = torch.zeros(len(GRID)).index_add_(0, point, torch.ones_like(w))
    return (sums / total.clamp(min=1e-9)[:, None]) @ smear, total, bins


def _gaps(q: Tensor, g: Generator) -> Tensor:
    """Up to three ranges without pixels."""
    is_gap = torch.zeros(len(q), dtype=torch.bool)
    for _ in range(int(torch.randint(0, 4, (), generator=g))):
        width = float(log_uniform(0.002, 0.04, (), g) * (q[-1] - q[0]))
        is_gap |= (q - float(uniform(float(q[0]), float(q[-1]), (), g))).abs() < width / 2
    return is_gap


def smearing(relative: float, absolute: float) -> Tensor:
    """The matrix of a Gaussian resolution with standard deviation √((relative·q)² + absolute²)."""
    width = torch.sqrt(relative**2 + (absolute / Q) ** 2).clamp(min=1e-4)
    W = torch.exp(-(((Q / Q[:, None]).log() / width[:, None]) ** 2) / 2) * Q
    return W / W.sum(-1, keepdim=True)
