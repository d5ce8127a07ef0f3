"""Two branches from F(q) to G(r), side by side in one network.

WT-RDF+, re-derived. The wavelet transform of the phase u = q r, one wavelet for every r:

    G(r) = Λ Σ F(q) D(q r) Δq + C r exp(−(r q_min)²/2)         D(u) = exp(−½ max(0, (u − b)/a)²) sin(K_f u)

    a    rad    coherence: how far beyond b the phase is damped; peaks at r are broadened by about r/a
    b    rad    the phase up to which nothing is damped
    K_f  –      carrier: the scale of r, 1 within two percent
    C    Å⁻³    what is missing below q_min, and an offset of the density
    Λ    –      amplitude

The mother wavelet of the published WT-RDF+ and the meaning of its K_f and C are not public: this is our derivation of
a form that has them, not theirs. With a → ∞, K_f = 1, C = 0, Λ = 2/π it is the sine transform (`WtRdf.sine`). The
five are bounded by construction, and learned with a loss that looks at the peaks (`selective_loss`).

The amplitude branch is `operators`: `Bank` is its network, for several q_max, with everything that is made of a
posterior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.rdf.operators import DENSITY_GAIN, Q_MAXIMA, R_OUT, Gaussian, basis, to_range
from models.rdf.shell import (
    BEHIND_A,
    BELOW_A,
    LIMIT_SMOOTHING_A,
    POSITION_SMOOTHING_A,
    SEARCH_A,
)
from models.rdf.simulate import Q_MIN, Q_STEP, Q

BOUNDS = {"a": (5.0, 1e4), "b": (0.0, 200.0), "Kf": (0.98, 1.02), "C": (-0.5, 0.5), "Lambda": (0.45, 0.95)}
"""Of WT-RDF+, in the units above. a, which spans decades, is bounded in its logarithm."""
START = {"a": 300.0, "b": 20.0, "Kf": 1.0, "C": 0.0, "Lambda": 2 / math.pi}
SELECTIVE = 4.0
"""How much more the highest peak weighs in the loss than a point where G is 0."""


class WtRdf(nn.Module):
    """WT-RDF+ for one q_max: five bounded parameters."""

    def __init__(self, q_max: float, start: Mapping[str, float] = START) -> None:
        super().__init__()
        self.q_max = q_max
        self.register_buffer("q", torch.from_numpy(Q[q_max + 1e-9 >= Q]))
        self.register_buffer("r", torch.from_numpy(R_OUT))
        free = {name: torch.tensor(_unbounded(name, value), dtype=torch.float64) for name, value in start.items()}
        self.free = nn.ParameterDict({name: nn.Parameter(value) for name, value in free.items()})

    @property
    def parameters_now(self) -> dict[str, Tensor]:
        """a, b, Kf, C, Lambda within their bounds."""
        return {name: _bounded(name, value) for name, value in self.free.items()}

    def kernel(self) -> Tensor:
        """(400, n): what F is multiplied with, Δq included."""
        return _kernel(self.q, self.r, **{k: v for k, v in self.parameters_now.items() if k != "C"})

    def line(self) -> Tensor:
        """(400,): the term C r exp(−(r q_min)²/2)."""
        return self.parameters_now["C"] * self.r * torch.exp(-((self.r * Q_MIN) ** 2) / 2)

    def forward(self, F: Tensor) -> Tensor:
        """G: (B, 400) of F: (B, 1226) or (B, n), float64."""
        return F[:, : len(self.q)] @ self.kernel().T + self.line()

    @staticmethod
    def sine(q: Tensor, r: Tensor) -> Tensor:
        """The kernel in the limit a → ∞, K_f = 1, Λ = 2/π, built in float64 as every kernel here: (len(r), len(q))."""
        one = torch.ones((), dtype=torch.float64)
        return _kernel(q, r, a=one * math.inf, b=0 * one, Kf=one, Lambda=one * 2 / math.pi)


def _kernel(q: Tensor, r: Tensor, a: Tensor, b: Tensor, Kf: Tensor, Lambda: Tensor) -> Tensor:
    u = torch.outer(r, q)
    return Lambda * Q_STEP * torch.exp(-(torch.relu(u - b) / a).square() / 2) * torch.sin(Kf * u)


def _bounded(name: str, free: Tensor) -> Tensor:
    low, high = BOUNDS[name]
    if name == "a":
        return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * torch.sigmoid(free))
    return low + (high - low) * torch.sigmoid(free)


def _unbounded(name: str, value: float) -> float:
    low, high = BOUNDS[name]
    if name == "a":
        low, high, value = math.log(low), math.log(high), math.log(value)
    part = min(max((value - low) / (high - low), 1e-6), 1 - 1e-6)
    return math.log(part / (1 - part))


def selective_loss(G: Tensor, truth: Tensor) -> Tensor:
    """Mean square difference, relative to the truth's mean square, with the truth's peaks weighing more."""
    size = truth.abs()
    weight = 1 + SELECTIVE * size / size.amax(dim=1, keepdim=True)
    return ((weight * (G - truth).square()).mean(dim=1) / truth.square().mean(dim=1)).mean()


@dataclass(frozen=True)
class Seen:
    """A batch of measurements as the K operators of their q_max see them.

    z, shrink: (B, K, m) coordinates and 1/(S² + s²).   beside: (B, 1227) what no operator can describe.
    rotated: (B, M) coordinates in `basis`.   points: (B,) measured.   rest, surprise, evidence, weight: (B, K).
    """

    z: Tensor
    shrink: Tensor
    beside: Tensor
    rotated: Tensor
    points: Tensor
    rest: Tensor
    surprise: Tensor
    evidence: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Mixture:
    """The posterior of G: Gaussians of weights `likely` (B, 2), means (B, 2, 400) and covariances
    spread·spreadᵀ − gamma·diag(shrunk)·gammaᵀ, spread (B, 2, 400, L) and gamma (B, 2, 400, m)."""

    likely: Tensor
    means: Tensor
    spread: Tensor
    gamma: Tensor
    shrunk: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of G at every point: (B, 400) each."""
        variances = self.spread.square().sum(3) - (self.gamma.square() @ self.shrunk[..., None])[..., 0]
        G = (self.likely[:, :, None] * self.means).sum(1)
        apart = (self.means - G[:, None]).square()
        return G, (self.likely[:, :, None] * (variances.clamp(min=0) + apart)).sum(1)

    def sigma_of(self, functional: Tensor) -> Tensor:
        """σ (B,) of Σ functional·G. functional: (B, 400)."""
        row = functional[:, None, None]
        prior = (row @ self.spread)[:, :, 0].square().sum(2)
        known = ((row @ self.gamma)[:, :, 0].square() * self.shrunk).sum(2)
        each = (row[:, :, 0] * self.means).sum(2)
        mean = (self.likely * each).sum(1, keepdim=True)
        variance = (self.likely * ((prior - known).clamp(min=0) + (each - mean).square())).sum(1)
        return variance.sqrt()


class Bank(nn.Module):
    """All operators at all q_max, and both branches' answers. Buffers are float32; a batch may mix any q_max.

    gaussians: for every one of Q_MAXIMA the family's two operators first, then those of the broad prior's classes.
    wt: q_max → trained WT-RDF+.   inflation: what the posterior's σ is multiplied with.
    limits: values of the `SCORES` beyond which an input is called strange (novelty > 1).
    """

    def __init__(
        self,
        gaussians: Mapping[float, Sequence[Gaussian]],
        wt: Mapping[float, WtRdf],
        *,
        inflation: Sequence[float] = (1.0, 1.0, 1.0),
        limits: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        q = torch.from_numpy(Q)
        self.of_G, self.of_position, self.of_N = inflation
        ranges = [to_range(q_max) for q_max in Q_MAXIMA]
        M = basis().shape[1]
        flat = [one for q_max in Q_MAXIMA for one in gaussians[q_max]]
        m = max(len(one.S2) for one in flat)
        L = max(one.spread.shape[1] for one in flat)
        banks, K = len(Q_MAXIMA), len(flat) // len(Q_MAXIMA)

        def stacked(values: Sequence[np.ndarray], *shape: int, fill: float = 0.0) -> Tensor:
            out = np.full((len(values), *shape), fill)
            for k, value in enumerate(values):
                out[(k, *(slice(n) for n in value.shape))] = value
            return torch.from_numpy(out).reshape(banks, -1, *shape).float()

        self.register_buffer("q", q.float())
        self.register_buffer("r", torch.from_numpy(R_OUT).float())
        self.register_buffer("q_maxima", torch.tensor(Q_MAXIMA))
        self.register_buffer("basis", torch.from_numpy(basis()).float())
        self.register_buffer("ranges", stacked(ranges, M, M)[:, 0])
        self.register_buffer("mean_y", stacked([one.mean_y for one in flat], M))
        self.register_buffer("P", stacked([one.P for one in flat], M, m))
        self.register_buffer("S2", stacked([one.S2 for one in flat], m))
        self.register_buffer("gamma", stacked([one.gamma for one in flat], len(R_OUT), m))
        self.register_buffer("mean_G", torch.from_numpy(np.array([one.mean_G for one in flat[:K]])).float())
        self.register_buffer("spread", stacked([one.spread for one in flat], len(R_OUT), L)[0].contiguous())
        self.register_buffer("freedom", torch.tensor([len(one.S2) for one in flat]).float().reshape(banks, K))
        lines = [wt[q_max].line().detach().float() for q_max in Q_MAXIMA]
        kernels = [_on_basis(wt[q_max]) for q_max in Q_MAXIMA]
        self.register_buffer("wt_line", torch.stack(lines))
        self.register_buffer("wt_kernel", torch.stack(kernels))
        self.register_buffer("limits", torch.tensor(limits).float())
        self.K = K

    def forward(self, F: Tensor, noise: Tensor, density: Tensor, q_max: Tensor) -> tuple[Tensor, ...]:
        """F: (B, 1226) Å⁻¹.   noise: (B,) σ_S.   density: (B,) Å⁻³.   q_max: (B,) Å⁻¹ of the measurement.

        Returns `OUTPUTS`, in that order.
        """
        said = self.examine(F, noise, density, q_max)
        return tuple(said[name] for name in OUTPUTS)

    def examine(self, F: Tensor, noise: Tensor, density: Tensor, q_max: Tensor) -> dict[str, Tensor]:
        """The outputs by name, and the `SCORES` (B, 5) that novelty is the largest of."""
        index = (q_max[:, None] >= self.q_maxima - 1e-3).sum(1).clamp(min=1) - 1
        seen = self._seen(F, noise, density, index)
        mixture = self._mixed(seen, index)
        G, variance = mixture.moments()
        rdf = self.r * G + 4 * math.pi * density[:, None] * self.r.square()
        chi2, scores = self._judged(seen, noise, index)
        wavelet = torch.einsum("bm,brm->br", seen.rotated, self.wt_kernel[index]) + self.wt_line[index]
        return {
            "G": G,
            "sigma": self.of_G * variance.sqrt(),
            "g": 1 + G / (4 * math.pi * density[:, None] * self.r),
            "rdf": rdf,
            "wavelet": wavelet,
            **self._first_shell(G, rdf, mixture),
            "wavelet_position": self._top(wavelet)[0],
            "chi2": chi2,
            "novelty": (scores / self.limits).amax(1),
            "family": seen.weight[:, :FAMILY].sum(1),
            "scores": scores,
        }

    def _seen(self, F: Tensor, noise: Tensor, density: Tensor, index: Tensor) -> Seen:
        """The measurement in the coordinates of every operator, and how well each explains it."""
        used = (self.q <= self.q_maxima[index][:, None] + 1e-3).float()
        y = torch.cat([F / self.q * used, DENSITY_GAIN * density[:, None]], dim=1)
        coordinates = torch.einsum("bm,bmn->bn", y @ self.basis, self.ranges[index])
        s2 = noise.square()[:, None, None]
        P, S2 = self.P[index], self.S2[index]
        centred = coordinates[:, None] - self.mean_y[index]
        z = torch.einsum("bkm,bkmj->bkj", centred, P)
        shrink = 1 / (S2 + s2)
        # The parts no curve of a set has: inside the basis, and beside it.
        inside = centred - torch.einsum("bkj,bkmj->bkm", z, P)
        rotated = torch.einsum("bmn,bn->bm", self.ranges[index], coordinates)
        beside = y - torch.cat([used, torch.ones_like(density)[:, None]], dim=1) * (rotated @ self.basis.T)
        rest = (inside.square().sum(2) + beside.square().sum(1, keepdim=True)) / s2[:, :, 0]
        surprise = (z.square() * shrink).sum(2)
        evidence = -(surprise + rest + torch.log1p(S2 / s2).sum(2)) / 2
        return Seen(z, shrink, beside, rotated, used.sum(1), rest, surprise, evidence, torch.softmax(evidence, dim=1))

    def _mixed(self, seen: Seen, index: Tensor) -> Mixture:
        """What two operators cannot explain no third one does: the others' weight is passed on to the likelier two."""
        likely, which = torch.topk(seen.weight, MIXED, dim=1)
        pair = which[:, :, None].expand(-1, -1, seen.z.shape[2])
        shrunk, gamma = seen.shrink.gather(1, pair), self.gamma[index[:, None], which]
        means = self.mean_G[which] + (gamma @ (seen.z.gather(1, pair) * shrunk)[..., None])[..., 0]
        return Mixture(likely / likely.sum(1, keepdim=True), means, self.spread[which], gamma, shrunk)

    def _first_shell(self, G: Tensor, rdf: Tensor, mixture: Mixture) -> dict[str, Tensor]:
        """Position, height, limit and N, with the σ that the posterior of G gives to the first order.

        N moves with the curve inside the shell and, where the RDF does not fall to 0 behind it, with the limit.
        """
        position, rise = self._top(G)
        limit, shift = self._limit(rdf, position)
        inside = self._window(position - BELOW_A, limit)
        step = self.r[1] - self.r[0]
        at_limit = ((1 - (self.r - limit[:, None]).abs() / step).clamp(min=0) * rdf).sum(1)
        search = (self.r > SEARCH_A[0]) & (self.r < SEARCH_A[1])
        return {
            "position": position,
            "position_sigma": self.of_position * mixture.sigma_of(rise),
            "height": torch.where(search, G, torch.full_like(G, -1e9)).amax(1),
            "coordination": (inside * rdf).sum(1) * step,
            "coordination_sigma": self.of_N * mixture.sigma_of(inside * self.r * step + at_limit[:, None] * shift),
            "limit": limit,
        }

    def _judged(self, seen: Seen, noise: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """χ² of the back-transform (B,) and the `SCORES` (B, 5)."""
        points = seen.points
        residual = seen.rest + (seen.z.square() * (noise.square()[:, None, None] * seen.shrink.square())).sum(2)
        best = seen.weight.argmax(1, keepdim=True)
        freedom = self.freedom[index]
        scores = [
            (seen.beside[:, :-1].abs() / noise[:, None]).amax(1),
            ((seen.rest - (points[:, None] - freedom)) / torch.sqrt(2 * points[:, None])).gather(1, best)[:, 0],
            ((seen.surprise - freedom) / torch.sqrt(2 * freedom)).gather(1, best)[:, 0],
            (seen.z.square() * seen.shrink).amax(2).sqrt().gather(1, best)[:, 0],
            torch.where(best[:, 0] < FAMILY, seen.evidence[:, 1] - seen.evidence[:, 0], torch.zeros_like(noise)),
        ]
        return (seen.weight * residual).sum(1) / points, torch.stack(scores, dim=1)

    def _top(self, G: Tensor) -> tuple[Tensor, Tensor]:
        """Position of the first peak (B,), and by how much a change of G moves it: (B, 400) Å per Å⁻²."""
        smooth = self._smoothed(G, POSITION_SMOOTHING_A)
        search = (self.r > SEARCH_A[0]) & (self.r < SEARCH_A[1])
        return self._highest(smooth, search, POSITION_SMOOTHING_A)

    def _limit(self, rdf: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Where the first shell ends (B,), and by how much a change of G moves it: (B, 400) Å per Å⁻²."""
        smooth = -self._smoothed(rdf, LIMIT_SMOOTHING_A)
        away = self.r - position[:, None]
        limit, shift = self._highest(smooth, (away > BEHIND_A[0]) & (away < BEHIND_A[1]), LIMIT_SMOOTHING_A)
        return limit, -shift * self.r

    def _highest(self, smooth: Tensor, search: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """The maximum (B,) of a smoothed curve, and by how much a change of the curve before smoothing moves it."""
        top = torch.where(search, smooth, torch.full_like(smooth, -1e9)).argmax(1)
        place, bend = self._vertex(smooth, top)
        step = self.r[1] - self.r[0]
        ahead, behind = (_gauss(self.r - self.r[top + k][:, None], width) for k in (1, -1))
        return place, (ahead - behind) / 2 * (step.square() / bend)[:, None]

    def _smoothed(self, y: Tensor, width: float) -> Tensor:
        """(B, 400) convolved with a Gaussian, as `shell.smoothing` does where the curve does not end."""
        step = float(R_OUT[1] - R_OUT[0])
        reach = round(4 * width / step)
        kernel = _gauss(torch.arange(-reach, reach + 1) * step, width)
        return nn.functional.conv1d(y[:, None], (kernel / kernel.sum())[None, None], padding=reach)[:, 0]

    def _vertex(self, y: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Of the parabola through the points top: its place, and minus its second difference."""
        top = top.clamp(1, y.shape[1] - 2)
        a, b, c = (y.gather(1, (top + k)[:, None])[:, 0] for k in (-1, 0, 1))
        bend = (2 * b - a - c).clamp(min=1e-6)
        shift = (0.5 * (c - a) / bend).clamp(-1, 1)
        return self.r[top] + shift * (self.r[1] - self.r[0]), bend

    def _window(self, low: Tensor, high: Tensor) -> Tensor:
        step = self.r[1] - self.r[0]
        upper = ((high[:, None] - self.r) / step + 0.5).clamp(0, 1)
        return upper - ((low[:, None] - self.r) / step + 0.5).clamp(0, 1)


MIXED = 2
"""Operators whose answers are mixed."""
FAMILY = 2
"""The first operators are the family's: as the boxes are, and with distances that may be off by some percent."""
SCORES = ("spike", "rest", "surprise", "direction", "stretch")
"""What novelty looks at: the largest deviation of a point in σ; χ² of what no curve of the class has; how unlikely the
curve is among its class; its most unlikely direction; and, in the family, by how much a curve with other distances is
more likely than one with those of the boxes. The class is the one that explains the input best."""

OUTPUTS = (
    "G",
    "sigma",
    "g",
    "rdf",
    "wavelet",
    "position",
    "position_sigma",
    "height",
    "wavelet_position",
    "coordination",
    "coordination_sigma",
    "limit",
    "chi2",
    "novelty",
    "family",
)


def _gauss(x: Tensor, width: float) -> Tensor:
    return torch.exp(-(x / width).square() / 2) / (width * math.sqrt(2 * math.pi))


def _on_basis(wt: WtRdf) -> Tensor:
    """(400, M): the kernel of WT-RDF+ on the sine waves below 11 Å. What F holds beyond is noise to r < 10 Å."""
    kernel = torch.zeros(len(R_OUT), len(Q), dtype=torch.float64)
    kernel[:, : len(wt.q)] = wt.kernel().detach()
    return (kernel * torch.from_numpy(Q) @ torch.from_numpy(basis()[:-1])).float()
