"""Learn what is normal here: a reference, its noise and its false alarms, from the user's own frames in order.

The model that comes with streamer is calibrated on simulated instruments of all kinds. On one instrument and one sample
much less is strange: a few hundred frames say how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer import config, stream
from streamer.analyses.saxs import Saxs
from streamer.analyses.saxs.said import normal_score
from streamer.records import BadInput, Quantity
from streamer.reduce.commissioned import Commissioned
from streamer.reduce.conformal import Conformal, Limit
from streamer.reduce.reference import Reference, channels, compare, gather
from streamer.sequential import Bank

__all__ = ["Commissioning", "commission"]

LEAST_FRAMES = 20
DEFAULT_ALPHA = 5e-5
LEAST_STABILITY = 1e-4
"""Of the flux: below that no monitor can be believed."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Commissioning:
    """what: to be written beside the card. frames: how many were used. limit: novelty for the share of false alarms
    asked for. changed: the largest sequential sum over its limit; beyond 1 the frames were not all in order."""

    what: Commissioned
    frames: int
    limit: Limit
    changed: float


def commission(source: str, *, frames: int = 300, alpha: float = DEFAULT_ALPHA, **options: Any) -> Commissioning:
    """Reduce `frames` frames of a source as `[analyse.saxs]` with these options would, and learn from them.

    Raises BadInput when there are too few, or nothing measured in common, BadConfig and BadModel as the analysis does.
    """
    analysis: Saxs = config.build("analyses", "saxs", options)
    curves = _curves(source, frames, options)
    if len(curves) < LEAST_FRAMES:
        raise BadInput(f"commission: {source} gave {len(curves)} usable frames, expected {LEAST_FRAMES} or more")
    reference = gather(curves)
    stability = _stability(curves, reference)
    novelty = _novelty(analysis, curves, stability)
    bank = Bank(1e6)
    changed = max(bank.see(normal_score(score)) for score in _by_rank(novelty))
    calibration = Conformal(novelty)
    card = analysis.model.card if analysis.model is not None else None
    grid = analysis.grid
    what = Commissioned(grid, reference, stability, calibration, source, card.sha256 if card else "")
    return Commissioning(what, len(curves), calibration.limit(alpha), changed)


def _curves(source: str, frames: int, options: dict[str, Any]) -> list[Curve]:
    with stream.open(source) as opened:
        results = islice(opened.analyse("saxs", **options), frames)
        found = [_arrays(result["curve"]) for result in results]
    return [curve for curve in found if np.any(curve[0] > 0)]


def _arrays(curve: Quantity) -> Curve:
    return np.asarray(curve.value, dtype=np.float64), np.asarray(curve.sigma, dtype=np.float64)


def _stability(curves: list[Curve], reference: Reference) -> float:
    """Standard deviation of ln(scale) that counting does not explain."""
    beside = [compare(*curve, reference) for curve in curves]
    scales = np.log1p(np.clip([float(one.scale) for one in beside], -0.9, None))
    counted = float(np.mean([float(one.sigma_scale) ** 2 for one in beside]))
    return max(float(np.sqrt(max(np.var(scales, ddof=1) - counted, 0.0))), LEAST_STABILITY)


def _novelty(analysis: Saxs, curves: list[Curve], stability: float) -> NDArray[np.float64]:
    """−log10 p of every frame by the model's own calibration, beside the mean of the half it is not in."""
    found = np.empty(len(curves))
    for half in (0, 1):
        other = gather(curves[1 - half :: 2])
        inputs = np.stack([channels(*curve, other, stability=stability) for curve in curves[half::2]])
        if analysis.model is None:
            raise BadInput("commission: the saxs analysis has no model; name one")
        found[half::2] = analysis.model.run({"curve": inputs})["surprise"]
    return found


def _by_rank(novelty: NDArray[np.float64]) -> list[float]:
    """−log10 of each frame's rank among all, in their order: what a CUSUM of frames that are in order should see."""
    rank = np.empty(len(novelty))
    rank[np.argsort(novelty, kind="stable")] = np.arange(len(novelty))
    return [float(-np.log10((len(novelty) - r - 0.5) / len(novelty))) for r in rank]


def default_path(model: str | Path = "saxs") -> Path:
    """Beside the card of a model."""
    from streamer.infer import find_model

    return find_model(model) / "commissioned.json"
