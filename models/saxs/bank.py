"""A bank of defect curves with their tangents: how well every class explains what is new in a curve.

For every kind of defect the bank holds curves spread evenly over its parameters, and for each of them the derivatives
with respect to those parameters. Against one measured curve, whitened by its own σ, that is a matched filter with one
Gauss–Newton step:

    t_k        = ⟨z, a_k⟩ / ‖a_k‖, how many standard uncertainties of template k are in the curve
    evidence_c = ln Σ_k p_k ∫ exp(t_k D − D²/2) dD/D, the marginal likelihood of class c over that of a normal curve
    gain_c     = how much of χ² the best template of c and its tangents explain
    residual_c = what they leave

Nothing here is learned. The flux is known to τ only, so the direction of the sample's own curve counts less, by κ =
(1 + τ²/σ_s²)^(−1/2): a ↦ a − (1 − κ) û ⟨û, a⟩, with û ∝ I_ref/√v and σ_s the uncertainty of the fitted scale.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from models.saxs.defects import CLASSES, KINDS, MOST_PARAMETERS
from models.saxs.instruments import GRID, Instrument
from models.saxs.samples import Q
from streamer.reduce.reference import FLUX_STABILITY

SIZES = {
    "voids": 160,
    "crowded voids": 224,
    "edge dislocations": 48,
    "decorated dislocations": 24,
    "point defects": 12,
    "precipitates": 224,
    "bicontinuous": 128,
    "late stage": 64,
    "lamellae": 160,
    "hexagonal": 160,
    "cubic": 160,
}
"""Templates per kind in the network: enough that the nearest one, with its tangents, misses under 2 % of any."""
DEFECTS = len(CLASSES) - 1
OCCAM = 3.0
"""What a defect's explanation must gain in χ²/2 before its residual counts instead of the normal one."""
STEP = 0.02
"""Of the finite differences, in the unit cube."""
TRUST = 0.15
"""How far along its tangents a template is trusted, in the unit cube: about the distance to its neighbours."""


def typical() -> Instrument:
    """Every point measured, 1.5 % resolution: what the bank in the network is smeared with."""
    g = Generator().manual_seed(0)
    q_range = float(GRID[0]) * 0.98, float(GRID[-1]) * 1.02
    instrument = Instrument.of(g, n=4000, q_range=q_range, resolution=(0.015, 0.003))
    return Instrument(instrument.response, torch.ones(len(GRID)), torch.ones(len(GRID)))


def places(kind: int, n: int) -> Tensor:
    """n points evenly spread over the unit cube of a kind, (n, MOST_PARAMETERS); unused coordinates are 1/2."""
    used = len(KINDS[kind].parameters)
    u = torch.full((n, MOST_PARAMETERS), 0.5)
    u[:, :used] = torch.quasirandom.SobolEngine(used, scramble=True, seed=kind).draw(n)
    return STEP + (1 - 2 * STEP) * u


@dataclass(frozen=True)
class Templates:
    """curves: (K, 128), greatest value 1. tangents: (K, MOST_PARAMETERS, 128), zero for unused parameters. kind, label:
    (K,). u: (K, MOST_PARAMETERS). log_prior: (K,), ln of each one's share of its class."""

    curves: Tensor
    tangents: Tensor
    kind: Tensor
    label: Tensor
    u: Tensor
    log_prior: Tensor

    @classmethod
    def make(cls, instrument: Instrument, density: float = 1.0) -> Templates:
        """The bank as an instrument sees it. density: templates over those in SIZES."""
        raw = unsmeared(density)
        I, tangents = instrument.at_grid(raw.curves), instrument.at_grid(raw.tangents)
        top = I.amax(-1, keepdim=True).clamp(min=1e-30)
        return cls(I / top, tangents / top[..., None], raw.kind, raw.label, raw.u, raw.log_prior)

    def without(self, label: int | None) -> Templates:
        """The bank of somebody who never heard of a class."""
        rows = self.label != (-1 if label is None else label)
        return Templates(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@functools.cache
def unsmeared(density: float) -> Templates:
    """Curves and tangents on Q, (K, len(Q)) and (K, MOST_PARAMETERS, len(Q)), cm⁻¹."""
    rows = []
    for k, kind in enumerate(KINDS):
        n = math.ceil(SIZES[kind.name] * density)
        u = places(k, n)
        tangents = torch.zeros(n, MOST_PARAMETERS, len(Q))
        for p in range(len(kind.parameters)):
            h = STEP * torch.nn.functional.one_hot(torch.tensor(p), MOST_PARAMETERS)
            tangents[:, p] = (kind(Q, u + h) - kind(Q, u - h)) / (2 * STEP)
        label, share = torch.full((n,), kind.label), torch.full((n,), math.log(kind.share / n))
        rows.append((kind(Q, u), tangents, torch.full((n,), k), label, u, share))
    return Templates(*(torch.cat(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Explained:
    """What the bank makes of curves. t: (b, 6) of the best template of each class. evidence, gain: (b, 6). residual:
    (b, 7, 128) whitened; the first is that of a normal curve. noise: (b, 1) f, by which everything was divided."""

    t: Tensor
    evidence: Tensor
    gain: Tensor
    residual: Tensor
    noise: Tensor


class Bank(nn.Module):
    """Asks the templates about whitened curves. Classes without templates have evidence and gain of nothing."""

    def __init__(self, templates: Templates) -> None:
        super().__init__()
        order = torch.argsort(templates.label, stable=True)
        self.register_buffer("curves", templates.curves[order])
        self.register_buffer("squares", templates.curves[order] ** 2)
        self.register_buffer("tangents", templates.tangents[order].half())
        # Every class gets as many places as the largest has, so that one reduction serves all of them.
        counts = [int((templates.label == c).sum()) for c in range(1, len(CLASSES))]
        place = torch.zeros(DEFECTS, max(counts), dtype=torch.int64)
        log_prior = torch.full(place.shape, -1e4)
        for c, n in enumerate(counts):
            first = sum(counts[:c])
            place[c] = min(first, len(order) - 1)
            place[c, :n] = first + torch.arange(n)
            log_prior[c, :n] = templates.log_prior[order][first : first + n]
        self.register_buffer("place", place.flatten())
        self.register_buffer("log_prior", log_prior)
        self.register_buffer("is_known", (torch.tensor(counts) > 0).float())

    def forward(self, z: Tensor, weight: Tensor, flux: Tensor, kappa: Tensor, noise: Tensor | None = None) -> Explained:
        """z: (b, 128) whitened, the scale's excess along flux included. weight: (b, 128) 1/√v, 0 where not known.
        flux: (b, 128) û. kappa: (b, 1). noise: (b, 1) f, by which all are divided; None measures it from what the
        likeliest explanation leaves. On a common factor in weight nothing depends."""
        found = torch.stack((weight * z, weight * flux), 1) @ self.curves.T
        along = found[:, 1]
        down = (1 - kappa) * (z * flux).sum(-1, keepdim=True)
        norm2 = (weight**2) @ self.squares.T - (1 - kappa**2) * along**2
        t = (found[:, 0] - down * along) / norm2.clamp(min=1e-20).sqrt()
        t = t[:, self.place].unflatten(-1, self.log_prior.shape) * self.is_known[:, None]
        t_best, top = t.max(-1)
        chosen = self.place.reshape(self.log_prior.shape)[torch.arange(DEFECTS), top]
        gain, residual = self._refined(z, weight, flux, kappa, chosen, t_best)
        whole = torch.cat((z[:, None], residual), 1)
        if noise is None:
            noise = scatter(likeliest(gain, whole), (weight > 0).to(z.dtype))
        t, t_best, gain = t / noise[..., None], t_best / noise, gain / noise**2
        evidence = torch.logsumexp(log_marginal(t) + self.log_prior, -1)
        refined = evidence + (gain - t_best.clamp(min=0) ** 2).clamp(min=0) / 2
        return Explained(t_best, refined.clamp(min=-20.0), gain, whole / noise[:, None], noise)

    def _refined(
        self, z: Tensor, weight: Tensor, flux: Tensor, kappa: Tensor, chosen: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """gain (b, 6) and residual (b, 6, 128) of the best template and its tangents, held back beyond TRUST."""
        columns = torch.cat((self.curves[chosen][:, :, None], self.tangents[chosen].float()), 2)
        A = columns * weight[:, None, None]
        f = flux[:, None, None]
        A = A - (1 - kappa)[..., None, None] * (A * f).sum(-1, keepdim=True) * f
        length = (A**2).sum(-1).clamp(min=1e-20).sqrt()
        A = A / length[..., None]
        y = z[:, None, :, None]
        right = (A @ y)[..., 0]
        trust = TRUST * t.clamp(min=1.0)[..., None] * length[..., 1:] / length[..., :1]
        ridge = torch.cat((torch.full_like(length[..., :1], 1e-4), 1e-4 + 1 / trust.clamp(min=1e-3) ** 2), -1)
        found = solve(A @ A.transpose(-1, -2) + torch.diag_embed(ridge), right)
        found = torch.where((t > 0)[..., None], found, torch.zeros_like(found))
        residual = y[..., 0] - (found[..., None, :] @ A)[..., 0, :]
        gain = (y[..., 0] ** 2).sum(-1) - (residual**2).sum(-1)
        return gain.clamp(min=0), residual


def likeliest(gain: Tensor, residual: Tensor) -> Tensor:
    """What the likeliest explanation leaves, (b, 128); of several that are as good, their mean. gain: (b, 6), residual:
    (b, 7, 128), both in units of the same σ."""
    share = torch.softmax(torch.cat((torch.zeros_like(gain[:, :1]), gain / 2 - OCCAM), -1), -1)
    return (share[:, :, None] * residual).sum(1)


def scatter(z: Tensor, known: Tensor) -> Tensor:
    """f, how much neighbouring points scatter in units of their σ, (b, 1); 1 where it is not plainly another.

    From √|second difference|, so that a few sharp peaks do not count as noise. E√|x| = 0.8222 for x of N(0, 1). Fewer
    than eight comparable points tell nothing; a deviation of less than a fifth is chance as likely as not.
    """
    triple = known[:, :-2] * known[:, 1:-1] * known[:, 2:]
    bend = (z[:, :-2] - 2 * z[:, 1:-1] + z[:, 2:]) / math.sqrt(6)
    n = triple.sum(-1, keepdim=True)
    mean = (bend.abs().clamp(min=1e-12).sqrt() * triple).sum(-1, keepdim=True) / n.clamp(min=1)
    raw = torch.where(n >= 8, ((mean / 0.8222) ** 2).clamp(0.4, 4.0), torch.ones_like(mean)).log()
    return (raw * torch.sigmoid((raw.abs() - 0.2) / 0.05)).exp()


def log_marginal(t: Tensor) -> Tensor:
    """ln ∫ exp(tD − D²/2) dD/D / ∫ dD/D over D_RANGE, to 0.13 for t > −5; fitted, because a graph has no quadrature."""
    above, below = t.clamp(min=0), t.clamp(max=0)
    bump = 0.895 * torch.exp(-((t - 1.887) ** 2) / 4.704)
    return above**2 / 2 - 0.777 - torch.log(above**2 + 23.29) / 2 + bump + 0.694 * below


def solve(G: Tensor, right: Tensor) -> Tensor:
    """G⁻¹ right for symmetric positive G (…, n, n), by elimination written out: a graph has no solver."""
    n = right.shape[-1]
    rows = torch.cat((G, right[..., None]), -1)
    unit = torch.eye(n)
    for k in range(n):
        pivot = rows[..., k : k + 1, :] / rows[..., k : k + 1, k : k + 1]
        rows = rows - (rows[..., k : k + 1] - unit[k][:, None]) * pivot
    return rows[..., n]


def stability_factor(weight: Tensor, I_ref: Tensor) -> tuple[Tensor, Tensor]:
    """û (b, 128) and κ (b, 1) of a sample I_ref whose flux is stable to FLUX_STABILITY."""
    u = weight * I_ref
    information = (u**2).sum(-1, keepdim=True)
    return u / information.clamp(min=1e-20).sqrt(), (1 + FLUX_STABILITY**2 * information).rsqrt()
