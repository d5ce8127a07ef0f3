"""What physics alone says of a curve beside its reference, before anything is learned: features and novelty scores.

Built of tensor operations with a form in ONNX, so that training, evaluation and the beamline use the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.saxs.bank import DEFECTS, Bank, likeliest, stability_factor
from models.saxs.defects import CLASSES
from models.saxs.instruments import GRID

WIDTHS = (1, 2, 4, 8, 16)
"""Points of the grid over which residuals are summed: what is wrong may be one point, or a slow bend."""
TOLERANCE = 0.02
"""Relative: what the nearest template with its tangents misses of a curve of its own class."""
BANDS = 4
SCORES = 2 + BANDS + 2
FEATURES = 7 + 2 * DEFECTS + 2 * (len(WIDTHS) + 1) + 6
HAS_REFERENCE = FEATURES - 1
"""Which feature is 1 if a curve has a reference, and 0 otherwise."""


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
        windows = [torch.eye(points // n).repeat_interleave(n, 0) for n in (*WIDTHS, points // BANDS)]
        of_width = torch.eye(len(WIDTHS)).repeat_interleave(torch.tensor([points // n for n in WIDTHS]), 0)
        self.register_buffer("windows", torch.cat(windows, 1))
        self.register_buffer("widths", 4.5 * nn.functional.pad(of_width, (0, 0, 0, BANDS)))
        for name, constant in (*_whitening(), *_assembly(), *_pooling()):
            self.register_buffer(name, constant)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, measured, _, count, _, scale, *_ = x.sum(-1, keepdim=True).split((2, 1, 1, 1, 2, 1), 1)
        measured = measured.clamp(min=1)
        known, has = x[:, 4:5], count.clamp(max=1)
        powers = (self.exponents @ x.clamp(min=-self.limits, max=self.limits)).exp()
        z, weight, u = ((self.combined @ powers) * known).split(1, 1)
        flux, kappa = stability_factor(u)
        scale = torch.sinh(scale / measured)
        # Along the sample's own curve there is what the fitted scale took out and what it left; κ of it can be seen.
        along = z * flux
        left_along = along.sum(-1, keepdim=True)
        said = self.bank(z + (scale - (1 - kappa) * left_along) * flux, weight, flux, kappa, known)
        noise = said.log_noise.exp()
        left, plain = likeliest(said.gain, said.residual), z / noise
        # The bank knows its curves to TOLERANCE: of a bright defect it leaves that much, and it is no news.
        allowed = (TOLERANCE * (plain - left)).abs()
        news = left / (1 + allowed)
        everywhere, bands = self._structure(torch.cat((plain, left, left, allowed, known), 1))
        highest = torch.cat((plain, left, news), 1).abs().amax(-1, keepdim=True)
        shape = torch.cat((everywhere, highest), -1).view(-1, 1, 3 * (len(WIDTHS) + 1))
        # The scatter about the scale, with its weights or with equal ones, widens what counting leaves uncertain of it,
        # and not how far the flux may wander.
        weighted = along / (1 - flux.square()).clamp(min=0.1)
        mean = z @ z.mT / count.clamp(min=1)
        scattered = torch.relu(torch.maximum(weighted @ weighted.mT, mean) - 1)
        excess = scale / (kappa.square() * scattered + 1).sqrt()
        sizes = torch.cat((shape, scale / noise, excess), -1)
        terms = torch.cat((torch.maximum(sizes, self.least).square() / 2, said.evidence), -1)
        distances = torch.minimum(terms, self.most) + self.pooled
        best = said.gain.amax(-1, keepdim=True)
        parts = (
            torch.log_softmax(said.evidence, -1).clamp(min=-20),
            torch.asinh(said.t / 3),
            torch.log1p(best - said.gain),
            torch.asinh(sizes),
            kappa,
            said.log_noise,
            count,
            measured,
            has,
            torch.logsumexp(distances, -1)[:, None],
            # A frame that scatters more than the noise found in its neighbours says by so much less.
            bands / (mean / noise.square()).clamp(min=1).sqrt(),
            excess,
            best.sqrt(),
        )
        features, scores = (torch.cat(parts, -1) @ self.assembled * has)[:, 0].split((FEATURES, SCORES), -1)
        return features, torch.asinh(news), scores

    def _structure(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normal scores of the mean squares of three residuals summed over WIDTHS points, (b, 3, 5), and the first
        one's sums over BANDS, (b, 1, BANDS), in units of their σ.

        rows: (b, 5, 128) the residuals, 0 where not known; errors that all neighbours may share, added to the third
        one's variance; 1 where known. A mean of n squares becomes a normal score by Wilson and Hilferty's cube root
        (PNAS 17 (1931) 684), whose variance is 2/9n: the factor 9/2 is in the widths.
        """
        total, shared, n = (rows @ self.windows).split((3, 1, 1), 1)
        total = total / (n.clamp(min=1) + shared.square() * self.third).sqrt()
        inverse_variance = (n.clamp(max=1) @ self.widths).clamp(min=4.5)
        mean = (total.square() @ self.widths) / inverse_variance
        precision = inverse_variance.sqrt()
        return (mean.clamp(min=1e-6) ** (1 / 3) - 1) * precision + 1 / precision, total[:, :1, -BANDS:]


Constants = Iterator[tuple[str, Tensor]]


def _whitening() -> Constants:
    """From channels to z, 1/√v and I_ref/√v: limits (8, 1) of what is believed, exponents (4, 8) of what their
    powers, z = (eʸ − e⁻ʸ)/2 among them, are combined (3, 4) of."""
    limits = torch.full((8, 1), torch.inf)
    limits[3], limits[5], limits[6] = 9.0, 12.0, 12.0
    exponents = torch.zeros(4, 8)
    exponents[0, 3], exponents[1, 3] = 1.0, -1.0
    exponents[2:, 5], exponents[3, 6] = -math.log(10), math.log(10)
    yield "limits", limits
    yield "exponents", exponents
    yield "combined", torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def _assembly() -> Constants:
    """From what was found to features and scores: (found, FEATURES + SCORES), each in its unit, or left out."""
    shape = len(WIDTHS) + 1
    kept = [(1 + DEFECTS, 1 / 4), (1, 0.0), (DEFECTS, 1.0), (1, 0.0), (DEFECTS, 1 / 3), (2 * shape, 1 / 2)]
    kept += [(shape, 0.0)]
    kept += [(1, 1 / 2), (1, 0.0), (2, 1.0), (2, 1 / len(GRID)), (1 + SCORES, 1.0)]
    factors = torch.cat([torch.full((n,), factor) for n, factor in kept])
    yield "assembled", torch.diag(factors)[:, factors > 0]


def _pooling() -> Constants:
    """From sizes x, those of three shapes and the scale's two, to ½ x²: only what is more than expected counts (least),
    and the peak pays for the points it was chosen from, whatever is the most that counts. Then the means that are
    pooled: (2, all), all being the sizes and the evidence of every class; that of a normal curve is in none."""
    shape = len(WIDTHS) + 1
    place = torch.arange(3 * shape + 2 + len(CLASSES))
    is_third = place.div(shape, rounding_mode="floor") == 2
    is_first = (place < shape) | (place == 3 * shape + 1) | (place > 3 * shape + 2)
    paid = torch.zeros(len(place))
    paid[shape - 1 : 3 * shape : shape] = math.log(len(GRID))
    members = torch.stack((is_third, is_first)).float()
    yield "least", torch.cat((torch.zeros(3 * shape), torch.full((2,), -torch.inf)))
    yield "most", 1e4 + paid
    yield "pooled", (members - 1) * 1e9 - members.sum(-1, keepdim=True).log() - paid
    yield "third", torch.tensor([0.0, 0.0, 1.0])[:, None]
