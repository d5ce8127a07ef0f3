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
TRIPLE = torch.stack([torch.eye(len(GRID))[:, k : len(GRID) - 2 + k] for k in range(3)]).sum(0)
"""(128, 126): sums over a point and its neighbours."""
BEND = (TRIPLE - 3 * torch.eye(len(GRID))[:, 1:-1]) / math.sqrt(6)
"""(128, 126): second differences of variance 1."""
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
    """What the bank makes of curves. t: (b, 1, 7) of the best template of each class. evidence: (b, 1, 7). gain:
    (b, 1, 7) of χ², and residual: (b, 7, 128) whitened. The first are those of a normal curve, which has a t and an
    evidence of 0. log_noise: (b, 1, 1) ln f, by which everything was divided."""

    t: Tensor
    evidence: Tensor
    gain: Tensor
    residual: Tensor
    log_noise: Tensor


class Bank(nn.Module):
    """Asks the templates about whitened curves. Classes without templates have evidence and gain of nothing.

    Everywhere: what a curve has one of is (b, 1, 1), what it has one of per class (b, 1, n), what has points
    (b, n, 128). So nothing needs to be reshaped before it meets: an operator of the graph costs a microsecond, whatever
    it does.
    """

    def __init__(self, templates: Templates) -> None:
        super().__init__()
        members = nn.functional.one_hot(templates.label, len(CLASSES)).float()
        # The last template is nothing: the best one of a normal curve, whose evidence is 0 by its prior, and of classes
        # that have none.
        members = nn.functional.pad(members, (0, 0, 0, 1))
        members[-1] = (members.sum(0) == 0).float()
        prior = members * nn.functional.pad(templates.log_prior.exp(), (0, 1))[:, None]
        prior[-1, 0] = torch.exp(-log_marginal(torch.zeros(())))
        curves = nn.functional.pad(templates.curves, (0, 0, 0, 1))
        self.register_buffer("curves", curves)
        self.register_buffer("tangents", nn.functional.pad(templates.tangents.flatten(1), (0, 0, 0, 1)).half())
        self.register_buffer("halves", members.T / 2)
        self.register_buffer("barred", (members.T - 1) * 1e30)
        self.register_buffer("prior", prior)
        self.register_buffer("over_normal", one_against_each())

    def forward(self, z: Tensor, weight: Tensor, flux: Tensor, kappa: Tensor, known: Tensor | None = None) -> Explained:
        """z: (b, 1, 128) whitened, the scale's excess along flux included. weight: (b, 1, 128) 1/√v, 0 where not known.
        flux: (b, 1, 128) û. kappa: (b, 1, 1). known: (b, 1, 128) 1 where known, else 0: the noise f is measured there
        from what the likeliest explanation leaves, and all are divided by it; None takes it as 1. On a common factor in
        weight nothing depends."""
        # What follows from the templates alone is no part of the file, and is computed when a graph is loaded.
        filters, held = self.curves.T, (1 - kappa) * flux
        free = z - (z @ flux.mT) * held
        found, along = ((torch.cat((free, flux), 1) * weight) @ filters).split(1, 1)
        norm2 = weight.square() @ filters.square() - (1 - kappa.square()) * along.square()
        t = found / norm2.clamp(min=1e-20).sqrt()
        best, top = (t + self.barred).topk(1)
        residual = self._residual(z, weight, flux, held, top, best)
        gain = torch.relu((self.over_normal @ residual.square()).sum(-1))[:, None]
        log_noise = torch.zeros_like(kappa) if known is None else scatter(likeliest(gain, residual), known)
        noise = log_noise.exp()
        t, best, gain = t / noise, best.mT / noise, gain / noise.square()
        bright = best.clamp(min=0).square()
        # Relative to the best template of its class, whose exponent alone would be too large for a number.
        exponent, square = marginal_parts(t)
        evidence = ((exponent - bright @ self.halves).exp() / square.sqrt() @ self.prior).log()
        evidence = (evidence + torch.maximum(gain, bright) / 2).clamp(min=-20.0)
        return Explained(best, evidence, gain, residual / noise, log_noise)

    def _residual(self, z: Tensor, weight: Tensor, flux: Tensor, held: Tensor, top: Tensor, t: Tensor) -> Tensor:
        """(b, 7, 128): what the chosen template of each class and its tangents leave, held back beyond TRUST. top, t:
        (b, 7, 1)."""
        n = 1 + MOST_PARAMETERS
        columns = torch.cat((self.curves, self.tangents.float()), -1).index_select(0, top.flatten())
        A = columns.view(-1, len(CLASSES) * n, len(GRID)) * weight
        A = (A - (A @ flux.mT) * held).view(-1, len(CLASSES), n, len(GRID))
        G, y, t = A @ A.mT, z[:, None], t[..., None]
        # Ridge: 1e-4 of every squared length, and 1/TRUST² for the tangents, in units of the template.
        trusted = torch.eye(n) / TRUST**2
        trusted[0, 0] = 1e-8
        length2 = G[..., :1, :1] / t.clamp(min=1).square()
        found = solve(G * (1 + 1e-4 * torch.eye(n)) + length2 * trusted, y @ A.mT)
        return (y - torch.where(t > 0, found, 0.0) @ A)[..., 0, :]


def one_against_each() -> Tensor:
    """(7, 7): from numbers of classes to what the first has more than each."""
    differences = -torch.eye(len(CLASSES))
    differences[:, 0] += 1
    return differences


def likeliest(gain: Tensor, residual: Tensor) -> Tensor:
    """What the likeliest explanation leaves, (b, 1, 128); of several that are as good, their mean. gain: (b, 1, 7),
    residual: (b, 7, 128), both in units of the same σ; the first are those of a normal curve."""
    handicap = torch.tensor([0.0] + [OCCAM] * DEFECTS)
    return torch.softmax(gain / 2 - handicap, -1) @ residual


def scatter(z: Tensor, known: Tensor) -> Tensor:
    """ln f, by how much neighbouring points scatter in units of their σ, (…, 1); 0 where not plainly another than 0.

    From √|second difference|, so that a few sharp peaks do not count as noise. E√|x| = 0.8222 for x of N(0, 1). Fewer
    than eight comparable points tell nothing; a deviation of less than a fifth is chance as likely as not.
    """
    bend = z @ (BEND / 0.8222**2)
    triple = torch.relu(nn.functional.conv1d(known, torch.ones(1, 1, 3), torch.tensor([-2.0])))
    n = triple.sum(-1, keepdim=True)
    mean = bend.abs().sqrt() @ triple.mT / n
    raw = torch.where(n >= 8, mean.square().clamp(0.4, 4.0).log(), 0.0)
    return raw * torch.sigmoid(raw.abs() * 20 - 4)


def log_marginal(t: Tensor) -> Tensor:
    """ln ∫ exp(tD − D²/2) dD/D / ∫ dD/D over D_RANGE, to 0.13 for t > −5; fitted, because a graph has no quadrature."""
    exponent, square = marginal_parts(t)
    return exponent - torch.log(square) / 2


def marginal_parts(t: Tensor) -> tuple[Tensor, Tensor]:
    """The marginal likelihood (`log_marginal`) is the exponential of the first over the root of the second, which takes
    a quarter of the time of a logarithm."""
    above2, below = t.clamp(min=0).square(), t.clamp(max=0)
    bump = 0.895 * torch.exp((t - 1.887).square() * (-1 / 4.704))
    return above2 / 2 + 0.694 * below + bump - 0.777, above2 + 23.29


def solve(G: Tensor, right: Tensor) -> Tensor:
    """right G⁻¹ for symmetric positive G (…, n, n) and right (…, 1, n): a graph has no solver.

    Elimination of G from [[G, −1], [right, 0]] leaves right G⁻¹ in the corner. Its rows and columns go as they are
    done, so that a step takes six operators. Of a G that is 0, the answer is 0 where right is.
    """
    n = right.shape[-1]
    pad = nn.functional.pad
    least = torch.cat((-1e-24 * torch.eye(n), torch.eye(n)), -1)
    rows = pad(torch.cat((G, right), -2), (0, n)) - pad(least, (0, 0, 0, 1))
    for _ in range(n):
        pivots, rest = rows.split((1, rows.shape[-2] - 1), -2)
        pivot, along = pivots.split((1, pivots.shape[-1] - 1), -1)
        below, rest = rest.split((1, rest.shape[-1] - 1), -1)
        rows = rest - below * (along / pivot)
    return rows


def stability_factor(u: Tensor) -> tuple[Tensor, Tensor]:
    """û (…, 128) and κ (…, 1) of a sample whose flux is stable to FLUX_STABILITY. u: its curve over σ, I_ref/√v."""
    length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    return u / length.clamp(min=1e-10), (1 + (FLUX_STABILITY * length).square()).pow(-0.5)
