"""What is said of one frame, as Quantities: by physics, by the model, and by what was remembered of the frames before.

A frame brings fifty numbers, and all of them are made under the interpreter lock: so they are taken out of their arrays
at once, and what can be made in a compiled loop is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import Quantity
from streamer.reduce.azimuthal import Profile, SigmaModel
from streamer.reduce.changes import ChangePoint
from streamer.reduce.conformal import Conformal
from streamer.reduce.loops import run_of_signs
from streamer.reduce.reading import Reading
from streamer.sequential import run_probability

__all__ = [
    "AGAINST",
    "BANDS",
    "CLASSES",
    "FAULTS",
    "OUTPUTS",
    "Memory",
    "judged",
    "normal_score",
    "of_curve",
    "of_profile",
    "prepare",
]

CLASSES = ("normal", "void", "edge", "point", "precipitate", "separation", "order")
FAULTS = ("aggregation", "repulsion", "background", "beamstop", "beam", "saturation", "detector")
BANDS = ("low_q", "mid_q", "high_q", "top_q", "flux")
AGAINST = ("scale", "chi2", *BANDS, "detectability", "exposure")
"""What needs a reference."""

OUTPUTS = (
    "classes",
    "classes_sigma",
    "faults",
    "faults_sigma",
    "anomaly",
    "anomaly_sigma",
    "total",
    "aleatoric",
    "epistemic",
    "scores",
    "bands",
    "detectability",
    "surprise",
    "surprise_known",
    "embedding",
)
"""What a model must answer."""

DECISIVE = 5.0
"""D that is asked for: one defect is then told from none 99 times in 100."""

LEAST_P = 1e-300
"""Of what a float can hold."""

_NORMAL = statistics.NormalDist()
_NOT_KNOWN = Quantity(math.nan)


def of_profile(profile: Profile, sigma: SigmaModel) -> dict[str, Quantity]:
    """profile, total, invalid and saturated."""
    counts, pixels = profile.total_counts, profile.total_pixels
    # Bins are independent, and σ · norm is the uncertainty of the counts in one.
    uncertainty = math.sqrt(max(counts, 1)) if sigma == "poisson" else _root_sum_square(profile.sigma * profile.norm)
    looked_at = max(pixels + profile.invalid + profile.saturated, 1)
    return {
        "profile": Quantity(profile.intensity, profile.sigma, axes={"q": (profile.q, profile.unit)}),
        "total": Quantity(counts / max(pixels, 1), uncertainty / max(pixels, 1)),
        "invalid": Quantity(profile.invalid / looked_at),
        "saturated": Quantity(profile.saturated / looked_at),
    }


def of_curve(
    reading: Reading, axes: Mapping[str, tuple[NDArray[Any], str]], *, has_reference: bool
) -> dict[str, Quantity]:
    """curve, its shape, and what comparing it with its reference says by itself. axes: of the curve, its one q."""
    ((_, unit),) = axes.values()
    return {
        "curve": Quantity(reading.I, reading.sigma, axes=axes),
        "rg": Quantity(reading.rg, reading.sigma_rg, unit.removeprefix("1/")),
        "i0": Quantity(reading.i0, reading.sigma_i0),
        "porod": Quantity(reading.porod, reading.sigma_porod),
        "has_reference": Quantity(float(has_reference)),
        "scale": Quantity(1 + reading.scale, reading.sigma_scale) if has_reference else _NOT_KNOWN,
        "chi2": Quantity(reading.chi2),
    }


def judged(
    outputs: Mapping[str, NDArray[Any]], calibration: Conformal | None, *, has_reference: bool
) -> dict[str, Quantity]:
    """What the model says of one frame, by the names of the Quantities. calibration: of this sample's own frames."""
    probabilities: list[float] = outputs["classes"].tolist()
    named = dict(zip(CLASSES, map(Quantity, probabilities, outputs["classes_sigma"].tolist()), strict=True))
    named.update(zip(FAULTS, map(Quantity, outputs["faults"].tolist(), outputs["faults_sigma"].tolist()), strict=True))
    best = probabilities.index(max(probabilities)) if math.isfinite(sum(probabilities)) else None
    novelty = float(outputs["surprise"])
    if calibration is not None and has_reference:
        novelty = -math.log10(calibration.p(novelty)) if math.isfinite(novelty) else math.nan
    named.update(
        {
            "class": _NOT_KNOWN if best is None else Quantity(float(best)),
            "probability": _NOT_KNOWN if best is None else named[CLASSES[best]],
            "anomaly": Quantity(float(outputs["anomaly"]), float(outputs["anomaly_sigma"])),
            "entropy": Quantity(float(outputs["total"])),
            "aleatoric": Quantity(float(outputs["aleatoric"])),
            "epistemic": Quantity(float(outputs["epistemic"])),
            "novelty": Quantity(novelty),
            "score": Quantity(normal_score(novelty)),
        }
    )
    if not has_reference:
        return named | dict.fromkeys(("unknown", *BANDS, "detectability", "exposure"), _NOT_KNOWN)
    named.update(zip(BANDS, map(Quantity, outputs["bands"].tolist()), strict=True))
    D = float(outputs["detectability"])
    named["unknown"] = Quantity(float(outputs["surprise_known"]))
    named["detectability"] = Quantity(D)
    named["exposure"] = Quantity(max(1.0, (DECISIVE / D) ** 2)) if D > 0 else _NOT_KNOWN
    return named


def normal_score(surprise: float) -> float:
    """The standard normal score that is exceeded with p = 10^−surprise; NaN for NaN."""
    if not math.isfinite(surprise):
        return math.nan
    return -_NORMAL.inv_cdf(min(max(10.0**-surprise, LEAST_P), 1 - 1e-9))


@dataclass
class Memory:
    """What is remembered from frame to frame, in their order."""

    changes: ChangePoint = field(default_factory=ChangePoint)
    _before: NDArray[np.float64] | None = None

    def of(self, quantities: Mapping[str, Quantity]) -> dict[str, Quantity]:
        """cormap and changed of this frame."""
        I = np.asarray(quantities["profile"].value, dtype=np.float64)
        before, self._before = self._before, I
        surprise = math.nan
        if before is not None and before.shape == I.shape:
            run, bins = run_of_signs(I, before)
            surprise = -math.log10(max(run_probability(bins, run), LEAST_P))
        return {
            "cormap": Quantity(surprise),
            "changed": Quantity(self.changes.see(float(quantities["score"].value))),
        }


def prepare() -> None:
    """Compile, or load from disk, what remembering takes."""
    run_of_signs(np.ones(2), np.ones(2))
    ChangePoint().see(0.0)


def _root_sum_square(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(np.nansum(values**2)))
