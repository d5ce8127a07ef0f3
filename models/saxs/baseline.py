"""What one would do without a network: χ² fits of templates, and gradient boosting on features; on the same curves.

The template fit is the textbook's: every class's curves, without tangents and without a prior, a scale, the smallest χ²
wins, and a defect must improve χ² by BIC's penalty for its parameters. Gradient boosting sees what an analyst would
tabulate: the difference to the reference in eight bands, its significance, slopes, where it peaks, the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.saxs import pool
from models.saxs.bank import Bank, Templates, stability_factor, typical
from models.saxs.defects import CLASSES, KINDS
from models.saxs.simulate import Curves, Mix

Floats = NDArray[np.float64]
TRAIN_SEED = 700_001
BANDS = 16


def template_fit(inputs: torch.Tensor) -> NDArray[np.int64]:
    """The class of every curve (b, 8, 128) by the best χ² among the bank's curves."""
    bank = Bank(Templates.make(typical())).eval()
    parameters = [0] + [
        max(len(kind.parameters) for kind in KINDS if kind.label == c) + 1 for c in range(1, len(CLASSES))
    ]
    answers = []
    with torch.no_grad():
        for x in inputs.split(256):
            known = x[:, 4:5]
            weight = torch.pow(10.0, -x[:, 5:6]) * known
            flux, kappa = stability_factor(weight * torch.pow(10.0, x[:, 6:7]))
            scale = torch.sinh(x[:, 7:].sum(-1, keepdim=True) / x[:, 2:3].sum(-1, keepdim=True).clamp(min=1))
            said = bank(torch.sinh(x[:, 3:4]) * known + scale * flux, weight, flux, kappa, torch.ones_like(kappa))
            gain = torch.nn.functional.pad(said.t[:, 0].clamp(min=0) ** 2, (1, 0))
            penalty = torch.tensor(parameters) * known.sum(-1).clamp(min=2).log()
            answers.append((gain - penalty).argmax(-1))
    found: NDArray[np.int64] = torch.cat(answers).numpy()
    return found


def features(inputs: torch.Tensor) -> Floats:
    """(b, 3·BANDS + 6): mean z, relative difference and its slope in bands of ln q, and numbers of the whole curve."""
    x = inputs.double()
    known, z = x[:, 4], torch.sinh(x[:, 3])
    error, reference = torch.pow(10.0, x[:, 5]), torch.pow(10.0, x[:, 6])
    n = known.unflatten(-1, (BANDS, -1)).sum(-1).clamp(min=1)
    relative = z * error / reference.clamp(min=1e-6) * known
    in_bands = [(values * known).unflatten(-1, (BANDS, -1)).sum(-1) / n for values in (z, relative, z**2)]
    whole = [
        (z**2 * known).sum(-1) / known.sum(-1).clamp(min=1),
        (z.abs() * known).amax(-1),
        (z * known).argmax(-1).double(),
        x[:, 7].sum(-1) / x[:, 2].sum(-1).clamp(min=1),
        known.sum(-1),
        (x[:, 5] * known).sum(-1) / known.sum(-1).clamp(min=1),
    ]
    columns = torch.cat((*[torch.asinh(block) for block in in_bands], torch.stack(whole, -1)), -1)
    found: Floats = columns.numpy()
    return found


class Boosting:
    """Gradient-boosted trees of depth DEPTH on binned features, multinomial deviance: plain Friedman (Ann. Statist. 29
    (2001) 1189), enough for a fair baseline without another dependency."""

    DEPTH, TREES, RATE, CUTS = 4, 60, 0.2, 24

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.trees: list[list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]] = []

    def fit(self, x: Floats, label: NDArray[np.int64]) -> Boosting:
        self.cuts = np.quantile(x, np.linspace(0, 1, self.CUTS + 2)[1:-1], axis=0)
        binned = self._binned(x)
        logits = np.zeros((len(x), self.classes))
        target = np.eye(self.classes)[label]
        for _ in range(self.TREES):
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            grown = []
            for c in range(self.classes):
                tree = self._grow(binned, target[:, c] - p[:, c], p[:, c] * (1 - p[:, c]))
                logits[:, c] += self.RATE * self._leaf(tree, binned)
                grown.append(tree)
            self.trees.append(grown)
        return self

    def predict(self, x: Floats) -> NDArray[np.int64]:
        binned = self._binned(x)
        logits = np.zeros((len(x), self.classes))
        for grown in self.trees:
            for c, tree in enumerate(grown):
                logits[:, c] += self.RATE * self._leaf(tree, binned)
        found: NDArray[np.int64] = logits.argmax(1)
        return found

    def _binned(self, x: Floats) -> NDArray[np.int64]:
        return np.stack([np.searchsorted(self.cuts[:, k], x[:, k]) for k in range(x.shape[1])], axis=1)

    def _grow(
        self, binned: NDArray[np.int64], g: Floats, h: Floats
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """A complete tree: feature and cut of every inner node, Newton's step in every leaf."""
        inner = 2**self.DEPTH - 1
        feature, cut = np.zeros(inner, np.int64), np.full(inner, self.CUTS + 1)
        node = np.zeros(len(binned), np.int64)
        bins = self.CUTS + 1
        for k in range(inner):
            rows = np.flatnonzero(node == k)
            if len(rows) > 20:
                feature[k], cut[k] = self._split(binned[rows], g[rows], h[rows], bins)
            right = binned[rows, feature[k]] >= cut[k]
            node[rows] = 2 * k + 1 + right
        leaf = node - inner
        size = 2**self.DEPTH
        steps = np.bincount(leaf, g, size) / (np.bincount(leaf, h, size) + 1.0)
        return feature, cut, steps

    @staticmethod
    def _split(binned: NDArray[np.int64], g: Floats, h: Floats, bins: int) -> tuple[int, int]:
        width = binned.shape[1]
        place = (binned + bins * np.arange(width)).ravel()
        sums = [np.bincount(place, np.repeat(values, width), bins * width).reshape(width, bins) for values in (g, h)]
        left = [np.cumsum(one, axis=1)[:, :-1] for one in sums]
        right = [one.sum(1, keepdims=True) - part for one, part in zip(sums, left, strict=True)]
        gain = left[0] ** 2 / (left[1] + 1) + right[0] ** 2 / (right[1] + 1)
        best = int(gain.argmax())
        return best // (bins - 1), best % (bins - 1) + 1

    def _leaf(self, tree: tuple[NDArray[np.int64], NDArray[np.int64], Floats], binned: NDArray[np.int64]) -> Floats:
        feature, cut, steps = tree
        node = np.zeros(len(binned), np.int64)
        for _ in range(self.DEPTH):
            node = 2 * node + 1 + (binned[np.arange(len(binned)), feature[node]] >= cut[node])
        found: Floats = steps[node - (2**self.DEPTH - 1)]
        return found


def boosted(curves: Curves) -> Boosting:
    return Boosting(len(CLASSES)).fit(features(curves.inputs), curves.label.numpy())


def figures(curves: Curves) -> dict[str, Any]:
    """Accuracy of both on decisive curves; the boosting learned from 8,064 curves of the same mix as the network."""
    mix = Mix(faulty=0.0, with_reference=1.0)
    learned = boosted(pool.make(TRAIN_SEED, mix, instruments=32))
    label = curves.label.numpy()
    fitted, grown = template_fit(curves.inputs), learned.predict(features(curves.inputs))
    of_three = np.isin(label, (1, 2, 3))
    return {
        "baseline_template_accuracy_7_D5": float((fitted == label).mean()),
        "baseline_boosting_accuracy_7_D5": float((grown == label).mean()),
        "baseline_template_accuracy_3": float((fitted == label)[of_three].mean()),
        "baseline_boosting_accuracy_3": float((grown == label)[of_three].mean()),
        "n_baseline": len(label),
    }
