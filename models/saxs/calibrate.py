"""What is fitted once a network is trained, on curves of its own: temperature, the density of embeddings, p-values.

Conformal: with n normal frames, p = (1 + number of them at least as strange) / (n + 1). It is right for exchangeable
frames whatever the score, and never below 1/(n + 1): there the tables are flat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, nll_loss

from models.saxs import pool
from models.saxs.evidence import BANDS
from models.saxs.network import CLASS_COUNT, KNOTS, KNOWN, NORMAL, Calibration, Exported, add, fuse, surprise
from models.saxs.pool import Shard

RIDGE = 1e-2
"""Added to the embedding's covariances, relative to their mean diagonal: units that never light up have none."""


@dataclass(frozen=True)
class Answers:
    """logits: (draws, n, LOGITS). embedding: (n, e). scores: (n, 2 + SCORES)."""

    logits: Tensor
    embedding: Tensor
    scores: Tensor


@torch.no_grad()
def answers(exported: Exported, shard: Shard) -> Answers:
    """The network on curves whose physics was computed before."""
    parts = (shard[part] for part in torch.arange(len(shard)).split(256))
    rows = [exported.judge(part.seen.float(), part.features.float(), part.scores) for part in parts]
    logits, embedding, scores = zip(*rows, strict=True)
    return Answers(torch.cat(logits, 1), torch.cat(embedding), torch.cat(scores))


def temperatures(logits: Tensor, shard: Shard) -> tuple[float, float]:
    """Those that make classes and faults of held-out curves most likely, over all draws."""
    grid = torch.logspace(-0.3, 0.5, 33)
    clean = shard.D_fault == 0
    material, faulty = logits[:, clean, :CLASS_COUNT], logits[..., CLASS_COUNT:-1]
    classes = [
        nll_loss(torch.softmax(material / T, -1).mean(0).clamp(min=1e-9).log(), shard.label[clean]) for T in grid
    ]
    present = [binary_cross_entropy_with_logits((faulty / T).mean(0), shard.faults) for T in grid]
    return float(grid[torch.stack(classes).argmin()]), float(grid[torch.stack(present).argmin()])


def gaussians(embedding: Tensor, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """Means, inverse Cholesky factors and log weights of one Gaussian per class, with and without a reference."""
    means, factors, weights = [], [], []
    clean = shard.D_fault == 0
    for has in (True, False):
        for label in range(CLASS_COUNT):
            rows = embedding[clean & (shard.label == label) & (shard.has_reference == has)].double()
            if len(rows) < 16:
                continue
            covariance = torch.cov(rows.T)
            covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
            root = torch.linalg.cholesky(covariance)
            means.append(rows.mean(0))
            factors.append(torch.linalg.inv(root))
            weights.append(-root.diagonal().log().sum())
    return torch.stack(means).float(), torch.stack(factors).float(), torch.stack(weights).float()


def table(scores: Tensor) -> Tensor:
    """(2, KNOTS): scores, and −log10 of the conformal p there, from p = 1 to the floor 1/(n + 1)."""
    ordered = scores.sort(descending=True).values
    n = len(ordered)
    p = torch.logspace(0, -torch.log10(torch.tensor(n + 1.0)), KNOTS, dtype=torch.float64)
    rank = (p * (n + 1) - 1).round().long().clamp(0, n - 1)  # p = (1 + rank + 1)/(n + 1) at the score of that rank
    x = ordered[rank].double()
    y = -torch.log10((rank + 2).double() / (n + 1))
    x[-1], y[-1] = (
        ordered[0] + 1e-3 * (ordered[0] - ordered[-1]).abs() + 1e-6,
        -torch.log10(torch.tensor(1 / (n + 1.0))),
    )
    x = torch.cummax(x + 1e-7 * torch.arange(KNOTS), 0).values
    return torch.stack((x, y.clamp(min=0))).float()


def known_tables(scores: Tensor) -> Tensor:
    """(4, 2, KNOTS): density, residual and strangeness of known curves, (n, ≥ 3), and their fusion."""
    scores = scores[:, KNOWN]
    each = torch.stack([table(column) for column in scores.T])
    return torch.cat((each, table(add(surprise(scores, each)))[None]))


def normal_table(score: Tensor) -> Tensor:
    """(2, KNOTS): scores, and the standard normal score that as many fall below.

    Both tails by themselves: a point with few counts by chance has a small σ, so that scores lean to the negative side.
    """
    ordered, n = score.sort().values.double(), len(score)
    y = torch.linspace(-1, 1, KNOTS, dtype=torch.float64) * torch.special.ndtri(
        torch.tensor(1 - 1 / (n + 1.0)).double()
    )
    rank = (torch.special.ndtr(y) * (n + 1) - 1).clamp(0, n - 1)
    below, above = ordered[rank.floor().long()], ordered[rank.ceil().long()]
    x = torch.lerp(below, above, rank.frac())
    return torch.stack((torch.cummax(x + 1e-7 * torch.arange(KNOTS), 0).values, y)).float()


def calibrate(exported: Exported, mixed: Shard, normal: Iterator[Shard]) -> tuple[Calibration, int]:
    """Fit everything to held-out curves of the training mix and to normal frames; and the number of normal frames."""
    said = answers(exported, mixed)
    temperature = temperatures(said.logits, mixed)
    means, factors, weights = gaussians(said.embedding, mixed)
    blank = exported.normal, exported.alone, exported.known, exported.bands
    exported.calibrate(Calibration(temperature, means, factors, weights, *blank))
    clean = (mixed.D_fault == 0) & mixed.has_reference
    density = torch.cat([exported.density(part) for part in said.embedding.split(4096)])[:, 0]
    scores = torch.cat((density[:, None], said.scores[:, 1:]), -1)[clean]
    in_order = torch.cat([answers(exported, shard).scores for shard in normal])
    by_score = in_order[:, NORMAL]
    tables = torch.stack([table(column) for column in by_score.T])
    together = fuse(surprise(by_score, tables))
    alone = density[(mixed.D_fault == 0) & ~mixed.has_reference & (mixed.label == 0)]
    calibration = Calibration(
        temperature,
        means,
        factors,
        weights,
        torch.cat((tables, table(together)[None])),
        table(alone),
        known_tables(scores),
        torch.stack([normal_table(in_order[:, 4 + k]) for k in range(BANDS + 1)]),
    )
    exported.calibrate(calibration)
    return calibration, len(in_order)


def from_folder(folder: Path) -> Iterator[Shard]:
    return (pool.read(path) for path in pool.shards(folder))
