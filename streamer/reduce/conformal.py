"""How strange is this frame, in false alarms: p-values from frames in order, and honest about where they end.

With n frames in order, p = (1 + number of them at least as strange) / (n + 1) is the chance of a frame in order being
as strange, whatever the score, as long as frames are exchangeable. It cannot be less than 1/(n + 1): beyond the
strangest of the n frames a generalised Pareto tail is fitted to the upper tenth of the scores, and what comes from it
is called extrapolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput

__all__ = ["Conformal", "Limit"]

TAIL = 0.1
"""Share of the scores that the tail is fitted to."""
LEAST_TAIL = 20
"""Scores; with fewer there is no tail, and p ends at 1/(n + 1)."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The score beyond which frames in order lie with a probability alpha.

    is_extrapolated: the frames do not reach so far, the tail says so. frames_needed: how many it takes to measure it.
    """

    alpha: float
    score: float
    is_extrapolated: bool
    frames_needed: int


@dataclass(frozen=True)
class Conformal:
    """scores: of frames in order, any number of them, larger is stranger. Raises BadInput without a finite one."""

    scores: NDArray[np.float64]
    _tail: tuple[float, float, float] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        ordered = np.sort(np.asarray(self.scores, dtype=np.float64))
        ordered = ordered[np.isfinite(ordered)]
        if not ordered.size:
            raise BadInput("calibration: found no frame with a score; expected frames of the sample in order")
        object.__setattr__(self, "scores", ordered)
        object.__setattr__(self, "_tail", _pareto(ordered))

    @property
    def floor(self) -> float:
        """The smallest p that is measured."""
        return 1 / (self.scores.size + 1)

    def p(self, score: float) -> float:
        """Chance of a frame in order being as strange; NaN for NaN."""
        if math.isnan(score):
            return math.nan
        n = self.scores.size
        stranger = n - int(np.searchsorted(self.scores, score, side="left"))
        if stranger or self._tail is None:
            return (1 + stranger) / (n + 1)
        return min(self.floor, self._beyond(score))

    def limit(self, alpha: float) -> Limit:
        """The score for at most a share alpha of false alarms. Raises BadInput unless 0 < alpha < 1, or where neither
        frames nor tail reach so far."""
        if not 0 < alpha < 1:
            raise BadInput(f"calibration: found a share of {alpha} false alarms, expected between 0 and 1")
        n, needed = self.scores.size, math.ceil(1 / alpha) - 1
        rank = math.floor(alpha * (n + 1)) - 1
        if rank >= 0:
            return Limit(alpha, float(self.scores[n - 1 - rank]), False, needed)
        if self._tail is None:
            raise BadInput(
                f"calibration: {n} frames cannot tell a limit for {alpha:g} false alarms per frame; {needed} can, and "
                f"from {math.ceil(LEAST_TAIL / TAIL)} on it is extrapolated"
            )
        start, scale, shape = self._tail
        ratio = alpha / TAIL
        beyond = -scale * math.log(ratio) if abs(shape) < 1e-6 else scale / shape * (ratio**-shape - 1)
        return Limit(alpha, max(start + beyond, float(self.scores[-1])), True, needed)

    def _beyond(self, score: float) -> float:
        start, scale, shape = self._tail or (0.0, 1.0, 0.0)
        x = (score - start) / scale
        if abs(shape) < 1e-6:
            return TAIL * math.exp(-min(x, 700.0))
        base = 1 + shape * x
        return TAIL * float(base ** (-1 / shape)) if base > 0 else 1e-300


def _pareto(ordered: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Start, scale and shape of the tail of sorted scores, by probability-weighted moments (Hosking and Wallis,
    Technometrics 29 (1987) 339). A shape below 0 would say that nothing stranger exists: it is taken as 0."""
    count = int(TAIL * ordered.size)
    if count < LEAST_TAIL:
        return None
    start = float(ordered[-count - 1])
    excess = ordered[-count:] - start
    mean: Any = excess.mean()
    weighted = float((excess * (1 - (np.arange(1, count + 1) - 0.35) / count)).mean())
    if not mean > 2 * weighted > 0:
        return start, max(float(mean), 1e-9), 0.0
    shape = 2 - mean / (mean - 2 * weighted)
    if shape <= 0:
        return start, float(mean), 0.0
    return start, float(2 * mean * weighted / (mean - 2 * weighted)), min(float(shape), 0.9)
