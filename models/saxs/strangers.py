"""Curves of nothing in particular: what a network is shown so that it learns where the known classes end.

A class that nobody trained for cannot be trained for; but that a curve is none of the known ones can be learned from
curves drawn from a broad prior (outlier exposure: Hendrycks, Mazeika and Dietterich, arXiv:1812.04606):

    ln I = −n ln q + a smooth random function of ln q     power laws, knees, humps, steps
    + up to three peaks of any width and shape

Nothing here is a formula of `defects`. Some of it will look like one of them by chance; that is what the network must
weigh, and why it answers with odds and not with a verdict.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from models.saxs.samples import Q, log_uniform, uniform

WAVES = 48
"""Random cosines that make up a smooth random function (Rahimi and Recht's features of a Gaussian kernel)."""
MOST_PEAKS = 3


def draw(n: int, g: Generator) -> Tensor:
    """(n, len(Q)) I in arbitrary units, positive, greatest value 1 before any instrument."""
    x = Q.log() - Q.log().mean()
    slope = uniform(-0.5, 4.0, (n, 1), g) * (uniform(0, 1, (n, 1), g) < 0.7)
    roughness, length = log_uniform(0.1, 2.0, (n, 1), g), log_uniform(0.15, 2.0, (n, 1, 1), g)
    waves = torch.randn((n, WAVES, 1), generator=g) / length
    phase = uniform(0, 2 * math.pi, (n, WAVES, 1), g)
    smooth = torch.cos(waves * x + phase).sum(1) * math.sqrt(2 / WAVES)
    body = torch.exp(_below(-slope * x + roughness * smooth))
    return (share := uniform(0, 1, (n, 1), g)) * body + (1 - share) * _peaks(x, n, g)


def _peaks(x: Tensor, n: int, g: Generator) -> Tensor:
    """One to MOST_PEAKS peaks anywhere in ln q, from a hundredth wide to a whole e-fold, Gaussian to Lorentzian."""
    at = uniform(float(x[0]), float(x[-1]), (n, MOST_PEAKS, 1), g)
    far = ((x - at) / log_uniform(0.01, 1.0, (n, MOST_PEAKS, 1), g)) ** 2
    lorentzian = uniform(0, 1, (n, MOST_PEAKS, 1), g)
    height = uniform(0, 1, (n, MOST_PEAKS, 1), g) ** 2
    height[:, 0] = 1
    both = lorentzian / (1 + far) + (1 - lorentzian) * torch.exp(-far / 2)
    total = (height * both).sum(1)
    return total / total.amax(-1, keepdim=True)


def _below(logs: Tensor) -> Tensor:
    """Logarithms brought to at most 0 and at least −60."""
    return (logs - logs.amax(-1, keepdim=True)).clamp(min=-60)
