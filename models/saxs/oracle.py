"""The best anyone could do: the posterior of the classes by the simulator's own likelihood.

For every class the marginal likelihood of I − I_ref, over all its kinds, parameters and strengths, by importance
sampling around the tops of the likelihood, which are climbed first. The oracle is told more than the network: the
sample's curve where variances are computed, the true σ and the flat-field error. Its accuracy is therefore an upper
bound, but for its Monte-Carlo error, and a network that beats it by more than that shows a broken oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from models.saxs import defects
from models.saxs.defects import CLASSES, KINDS, MOST_PARAMETERS, Kind
from models.saxs.instruments import Instrument
from models.saxs.samples import BACKGROUND, Q, Spheroids, log_uniform
from models.saxs.simulate import D_RANGE, FLUX_STABILITY, Mix, Scene, detectability, observed
from streamer.infer import Model

FIRST, LAST = 800, 1000
"""Draws of the first look, and around the tops that were found."""
STARTS, CLIMB = 4, 14
PROBE = 1e-3
"""Of the finite differences, in the unit cube."""
HOPELESS = 40.0
"""Kinds whose highest point lies so many nats behind the best kind's are not refined: e⁻⁴⁰ decides nothing."""


@dataclass(frozen=True)
class Seen:
    """One curve of a scene of one row: d = I − I_ref where measured, and how to ask for the variance."""

    scene: Scene
    d: Tensor

    def log_likelihood(self, delta: Tensor) -> Tensor:
        """ln p(d | ΔI), (n,), of n mean differences (n, 128)."""
        truth = self.scene.truth
        measured = self.scene.instrument.measured
        I = truth + delta
        v = self.scene.variance(I)[:, measured].double()
        r, I = (self.d - delta)[:, measured].double(), I[:, measured].double()
        information = (I**2 / v).sum(-1)
        fitted = (r * I / v).sum(-1) ** 2 / (FLUX_STABILITY**-2 + information)
        return -((r**2 / v).sum(-1) - fitted + v.log().sum(-1) + torch.log1p(FLUX_STABILITY**2 * information)) / 2

    def strength(self, unit: Tensor, D: Tensor) -> Tensor:
        """Of `unit` (n, 128) for a detectability D (n,): as the simulator does it."""
        scaled = self.scene.repeat(len(unit)).scaled_to(unit, D)
        return scaled[0]


def evidence(seen: Seen, kind: Kind, best: float, g: Generator) -> tuple[float, float]:
    """ln of the marginal likelihood of a kind, and its Monte-Carlo standard error. best: of the kinds before it."""
    n = len(kind.parameters) + 1  # the last coordinate is ln D on the unit interval
    u = torch.rand((FIRST, n), generator=g)
    t = _matched(seen, kind, u)
    span = math.log(D_RANGE[1] / D_RANGE[0])
    centre = ((t.clamp(min=1.0) / D_RANGE[0]).log() / span).clamp(0, 1)
    width = (1.5 / t.clamp(min=1.5) / span).clamp(min=0.004)
    own = torch.rand(FIRST, generator=g) < 0.8
    u[:, -1] = torch.where(own, centre + width * torch.randn(FIRST, generator=g), u[:, -1])
    density = 0.8 * torch.exp(-(((u[:, -1] - centre) / width) ** 2) / 2) / width / math.sqrt(2 * math.pi) + 0.2
    weight = _target(seen, kind, u) - density.double().log()
    value, error = _mean(weight)
    tops, covariance, height = _climbed(seen, kind, u[weight.topk(STARTS).indices].clamp(0.001, 0.999))
    if height < best - HOPELESS:
        return max(value, height - HOPELESS / 2), error
    points, log_density = _around(tops, covariance, g)
    refined, refined_error = _mean(_target(seen, kind, points) - log_density)
    return (refined, refined_error) if refined_error < error else (value, error)


def _climbed(seen: Seen, kind: Kind, u: Tensor) -> tuple[Tensor, Tensor, float]:
    """The tops that Levenberg and Marquardt reach from u (k, n), the posterior's covariance there (k, n, n), and the
    greatest ln of the likelihood."""
    k, n = u.shape
    damping, height = torch.full((k,), 1e-2, dtype=torch.float64), _target(seen, kind, u)
    covariance = torch.eye(n, dtype=torch.float64).repeat(k, 1, 1)
    measured = seen.scene.instrument.measured
    for _ in range(CLIMB):
        side = torch.where(u < 0.5, PROBE, -PROBE)
        probes = torch.cat((u[:, None], u[:, None] + torch.diag_embed(side)), 1)
        delta = _delta(seen, kind, probes.reshape(-1, n)).reshape(k, n + 1, -1)[..., measured].double()
        I = seen.scene.truth[0, measured].double() + delta[:, 0]
        root = seen.scene.variance(seen.scene.truth + _scattered(delta[:, 0], measured))[:, measured].double().sqrt()
        slope = (delta[:, 1:] - delta[:, :1]) / side[..., None] / root[:, None]
        A = torch.cat((slope, (I / root)[:, None]), 1)
        G = A @ A.transpose(1, 2)
        G[:, n, n] += FLUX_STABILITY**-2
        right = (A @ ((seen.d[0, measured].double() - delta[:, 0]) / root)[..., None])[..., 0]
        covariance = torch.linalg.inv(G + 1e-6 * torch.eye(n + 1, dtype=torch.float64))[:, :n, :n]
        held = G + torch.diag_embed(damping[:, None] * G.diagonal(dim1=1, dim2=2) + 1e-6)
        step = torch.linalg.solve(held, right)[:, :n]
        trial = (u + step.float()).clamp(0.0, 1.0)
        reached = _target(seen, kind, trial)
        is_better = reached > height
        u, height = torch.where(is_better[:, None], trial, u), torch.where(is_better, reached, height)
        damping = torch.where(is_better, damping / 5, damping * 8).clamp(1e-9, 1e6)
    return u, covariance, float(height.max())


def _scattered(values: Tensor, measured: Tensor) -> Tensor:
    """(k, measured points) back on the whole grid."""
    whole = torch.zeros(len(values), len(measured))
    whole[:, measured] = values.float()
    return whole


def _around(tops: Tensor, covariance: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
    """LAST draws from Gaussians around the tops, a fifth of them three times as wide, a tenth from the prior; and ln of
    their density."""
    k, n = tops.shape
    root = torch.linalg.cholesky(1.3 * covariance + 1e-10 * torch.eye(n, dtype=torch.float64))
    root = root.clamp(-1.0, 1.0)
    component = torch.randint(0, k, (LAST,), generator=g)
    heavy = torch.where(torch.rand((LAST, 1), generator=g) < 0.2, 3.0, 1.0)
    noise = torch.randn((LAST, n), generator=g, dtype=torch.float64)
    u = tops[component].double() + heavy * (root[component] @ noise[..., None])[..., 0]
    from_prior = torch.rand(LAST, generator=g) < 0.1
    u[from_prior] = torch.rand((int(from_prior.sum()), n), generator=g, dtype=torch.float64)
    away = torch.linalg.solve_triangular(root[None], (u[:, None] - tops)[..., None], upper=False)[..., 0]
    square = (away**2).sum(-1)
    constant = -n / 2 * math.log(2 * math.pi) - root.diagonal(dim1=1, dim2=2).log().sum(-1)
    narrow, wide = -square / 2 + math.log(0.8), -square / 18 - n * math.log(3) + math.log(0.2)
    gaussian = torch.logsumexp(torch.logaddexp(narrow, wide) + constant, 1) - math.log(k)
    return u.float(), torch.logaddexp(gaussian + math.log(0.9), torch.full((LAST,), math.log(0.1), dtype=torch.float64))


def _delta(seen: Seen, kind: Kind, u: Tensor) -> Tensor:
    """The mean difference at coordinates (n, parameters + 1)."""
    unit = _unit(seen, kind, u)
    return seen.strength(unit, D_RANGE[0] * (D_RANGE[1] / D_RANGE[0]) ** u[:, -1])[:, None] * unit


def _matched(seen: Seen, kind: Kind, u: Tensor) -> Tensor:
    """t of the curves at u, by the variance of the sample in order."""
    unit = _unit(seen, kind, u)
    v = seen.scene.variance(seen.scene.truth).double()
    D = detectability(unit, seen.scene.truth, v).double()
    w, I = 1 / v, seen.scene.truth.double()
    along = (seen.d * I * w).nansum(-1) * (unit * I * w).sum(-1) / (FLUX_STABILITY**-2 + (I**2 * w).sum(-1))
    return (((seen.d.nan_to_num(0) * unit * w).sum(-1) - along) / D.clamp(min=1e-12)).float()


def _unit(seen: Seen, kind: Kind, u: Tensor) -> Tensor:
    padded = torch.full((len(u), MOST_PARAMETERS), 0.5)
    used = len(kind.parameters)
    padded[:, :used] = u[:, :used]
    return seen.scene.instrument.at_grid(kind(Q, padded)) / BACKGROUND


def _target(seen: Seen, kind: Kind, u: Tensor) -> Tensor:
    """ln of likelihood times prior, −∞ outside the cube."""
    inside = ((u >= 0) & (u <= 1)).all(-1)
    return seen.log_likelihood(_delta(seen, kind, u.clamp(0, 1))).masked_fill(~inside, -torch.inf)


def _mean(log_weight: Tensor) -> tuple[float, float]:
    """ln of the mean weight and its relative standard error."""
    top = float(log_weight.max())
    w = torch.exp(log_weight - top)
    return top + math.log(float(w.mean())), float(w.std() / w.mean() / math.sqrt(len(w)))


def posterior(seen: Seen, g: Generator) -> tuple[Tensor, Tensor]:
    """(7,) ln of each class's marginal likelihood, and its standard error."""
    normal = float(seen.log_likelihood(torch.zeros_like(seen.d))[0])
    log_p, error = [normal], [0.0]
    best = normal
    for label in range(1, len(CLASSES)):
        kinds = [KINDS[k] for k in defects.kinds_of(label)]
        found = []
        for kind in kinds:
            found.append(evidence(seen, kind, best, g))
            best = max(best, found[-1][0])
        parts = torch.tensor([value + math.log(kind.share) for (value, _), kind in zip(found, kinds, strict=True)])
        shares = torch.softmax(parts, 0)
        log_p.append(float(torch.logsumexp(parts, 0)))
        error.append(float(torch.tensor([e for _, e in found]) @ shares))
    return torch.tensor(log_p), torch.tensor(error)


def judged(seed: int, curves: int) -> dict[str, Any]:
    """Curves of one instrument, of the mix that is trained on but with a reference and without faults, and what the
    oracle says of them: inputs, label, D, log_p and error, see `posterior`."""
    g = Generator().manual_seed(seed)
    scene = Scene.draw(curves, Spheroids(g), Instrument.draw(g), g)
    label = torch.randint(0, len(CLASSES), (curves,), generator=g)
    kind, u = defects.draw(label, g)
    unit = scene.instrument.at_grid(defects.intensity(Q, kind, u)) / BACKGROUND
    strength, D = scene.scaled_to(unit, log_uniform(*D_RANGE, (curves,), g))
    strength, D = strength.masked_fill(label == 0, 0), D.masked_fill(label == 0, 0)
    none = torch.zeros(curves, dtype=torch.bool)
    seen = observed(scene, label, kind, u, strength, D, unit, none, Mix(faulty=0.0, with_reference=1.0))
    rows = torch.arange(curves).split(1)
    said = [posterior(Seen(scene[row], (seen.I - seen.reference)[row]), g) for row in rows]
    log_p, error = (torch.stack(column).numpy() for column in zip(*said, strict=True))
    return {"inputs": seen.inputs.numpy(), "label": label.numpy(), "D": D.numpy(), "log_p": log_p, "error": error}


def figures(found: dict[str, Any], model: Model, seed: int) -> dict[str, Any]:
    """Accuracy of the oracle and of the network on the same curves, over all D, and the gap between them.

    found: of several instruments, see `judged`.
    """
    label, log_p = found["label"], found["log_p"]
    oracle = log_p.argmax(-1) == label
    network = model.run({"curve": found["inputs"]})["classes"].argmax(-1) == label
    # How often the oracle's own Monte-Carlo noise changes its answer.
    noise = np.random.default_rng(seed)
    again = (log_p + found["error"] * noise.standard_normal((20, *log_p.shape))).argmax(-1) == label
    difference = oracle.astype(float) - network
    return {
        "oracle_accuracy": float(oracle.mean()),
        "oracle_monte_carlo_error": float(again.mean(-1).std() + abs(again.mean() - oracle.mean())),
        "network_accuracy_all_D": float(network.mean()),
        "bayes_gap": float(difference.mean()),
        "bayes_gap_standard_error": float(difference.std() / math.sqrt(len(label))),
        "n_bayes_gap": len(label),
    }
