"""What one would do without a network: χ² fits of templates, and gradient boosting on features; on the same curves.

The template fit is the textbook's: every class's curves, without tangents and without a prior, a scale, the smallest χ²
wins, and a defect must improve χ² by BIC's penalty for its parameters. Gradient boosting sees what an analyst would
tabulate: the difference to the reference in sixteen bands, its significance, where it peaks, the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

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
            said = bank(torch.sinh(x[:, 3:4]) * known + scale * flux, weight, flux, kappa)
            gain = said.t[:, 0].clamp(min=0) ** 2
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


def boosted(curves: Curves) -> HistGradientBoostingClassifier:
    """Gradient boosting that has learned these curves. Early stopping holds a tenth of them back."""
    return HistGradientBoostingClassifier(random_state=0, early_stopping=True).fit(
        features(curves.inputs), curves.label.numpy()
    )


def figures(curves: Curves) -> dict[str, Any]:
    """Accuracy of both on decisive curves; the boosting learned from 16,384 curves of the same mix as the network."""
    mix = Mix(faulty=0.0, with_reference=1.0)
    learned = boosted(pool.make(TRAIN_SEED, mix))
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
