"""What physics alone says of a curve beside its reference, before anything is learned: features and novelty scores.

Built of tensor operations with a form in ONNX, so that training, evaluation and the beamline use the same lines.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.saxs.bank import DEFECTS, Bank, likeliest, stability_factor
from models.saxs.instruments import GRID

WIDTHS = (1, 2, 4, 8, 16)
"""Points of the grid over which residuals are summed: what is wrong may be one point, or a slow bend."""
TOLERANCE = 0.02
"""Relative: what the nearest template with its tangents misses of a curve of its own class."""
BANDS = 4
SCORES = 2 + BANDS + 2
FEATURES = 7 + 2 * DEFECTS + 2 * (len(WIDTHS) + 1) + 6


class Evidence(nn.Module):
    """(b, 8, 128) → features (b, FEATURES), what is left (b, 1, 128) and scores (b, SCORES): residual and reference
    distance in nats, about 0 if all is well; what is new in each of the BANDS, and the scale, in standard
    uncertainties; and the detectability, √ of the χ² that the best defect explains.

    Without a reference there is nothing to say: all are 0.

    What is left: asinh of what the likeliest explanation leaves, in units of noise and of what the bank is known to.

    residual: how much more structure the best explanation leaves than noise would: ln Σ exp(½ x²) over the normal
    scores x of its sums over WIDTHS points. reference: the same of what distinguishes the frame from its reference,
    with the scale and the evidence for every known defect.
    """

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank
        points = len(GRID)
        windows = [torch.eye(points // width).repeat_interleave(width, 0) for width in WIDTHS]
        self.register_buffer("windows", torch.cat(windows, 1))
        self.register_buffer(
            "widths", torch.eye(len(WIDTHS)).repeat_interleave(torch.tensor([w.shape[1] for w in windows]), 0)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        known = x[:, 4]
        count = known.sum(-1, keepdim=True)
        has = (count > 0).to(x.dtype)
        z = torch.sinh(x[:, 3].clamp(-9, 9)) * known
        weight = torch.pow(10.0, -x[:, 5].clamp(-12, 12)) * known
        measured = x[:, 2].sum(-1, keepdim=True).clamp(min=1)
        scale = torch.sinh(x[:, 7].sum(-1, keepdim=True) / measured) * has
        flux, kappa = stability_factor(weight, torch.pow(10.0, x[:, 6].clamp(-12, 12)) * known)
        said = self.bank(z + scale * flux, weight, flux, kappa)
        noise = said.noise
        left = likeliest(said.gain, said.residual)
        plain = z / noise
        explained = TOLERANCE * (plain - left)
        nothing = torch.zeros_like(plain)
        # The bank knows its curves to TOLERANCE: of a bright defect it leaves that much, and it is no news.
        allowed = torch.stack((nothing, nothing, explained), 1)
        everywhere, highest = self._structure(torch.stack((plain, left, left), 1), known, allowed)
        normal, peak = everywhere[:, :2], highest[:, :2]
        everything = torch.cat((torch.zeros_like(count), said.evidence), -1)
        posterior = (everything - torch.logsumexp(everything, -1, keepdim=True)).clamp(min=-20)
        behind = said.gain.amax(-1, keepdim=True) - said.gain
        shape = torch.asinh(torch.cat((normal, peak), -1)) / 2
        features = torch.cat(
            (
                posterior / 4,
                torch.asinh(said.t / 3),
                torch.log1p(behind) / 3,
                shape.flatten(1),
                torch.asinh(scale / noise) / 2,
                kappa,
                noise.log(),
                count / 128,
                measured / 128,
                has,
            ),
            -1,
        )
        # The peak pays for the points it was chosen from.
        terms = torch.cat((everywhere.clamp(min=0) ** 2 / 2, highest**2 / 2 - math.log(128)), -1).clamp(max=1e4)
        residual = torch.logsumexp(terms[:, 2], -1) - math.log(terms.shape[-1])
        # The scatter about the scale widens what counting leaves uncertain of it, and not how far the flux may wander.
        share = flux**2
        scattered = (share * (z / (1 - share).clamp(min=0.1)) ** 2).sum(-1, keepdim=True)
        excess = scale / torch.sqrt(kappa**2 * scattered.clamp(min=1) + 1 - kappa**2)
        distance = torch.cat((terms[:, 0], excess**2 / 2, said.evidence), -1)
        pooled = torch.logsumexp(distance.clamp(max=1e4), -1) - math.log(distance.shape[-1])
        D = said.gain.amax(-1).sqrt()
        scores = torch.cat((torch.stack((residual, pooled), -1), _bands(plain, known), excess, D[:, None]), -1)
        remains = torch.asinh(left / (1 + explained.abs())) * known
        return torch.where(has > 0, features, torch.zeros_like(features)), remains[:, None], scores * has

    def _structure(self, r: Tensor, known: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Normal scores of the mean squares of r (b, k, 128) summed over WIDTHS points, (b, k, 5), and of its greatest
        |r|, (b, k, 1). allowed: (b, k, 128) errors that all neighbours may share, added to the variance.

        A mean of n squares becomes a normal score by Wilson and Hilferty's cube root (PNAS 17 (1931) 684). Its σ is in
        units of √(2/9n).
        """
        r = r * known[:, None]
        total, allowed = r @ self.windows, (allowed * known[:, None]).abs()
        shared = (allowed @ self.windows) ** 2
        n = (known @ self.windows)[:, None]
        is_there = (n > 0.5).to(r.dtype)
        cells = (is_there @ self.widths).clamp(min=1)
        mean = (total**2 / (n.clamp(min=1) + shared) * is_there) @ self.widths / cells
        spread = 2 / (9 * cells)
        return (mean.clamp(min=1e-6) ** (1 / 3) - (1 - spread)) / spread.sqrt(), (r.abs() / (1 + allowed)).amax(
            -1, keepdim=True
        )


def _bands(r: Tensor, known: Tensor) -> Tensor:
    """Σ r / √n over the measured points of each of BANDS equal parts of the grid, (b, BANDS)."""
    n = known.unflatten(-1, (BANDS, -1)).sum(-1)
    return (r * known).unflatten(-1, (BANDS, -1)).sum(-1) / n.clamp(min=1).sqrt()
