"""Has the mean of the scores changed? The probability, over all moments at which it may have begun to be another one.

Bayesian online change-point detection (Adams and MacKay, arXiv:0710.3742) for standardised scores: N(0, 1) and
independent from frame to frame while nothing changes. Tests with a limit that follows from the false alarms one can
bear are in `sequential`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamer.reduce.loops import learn_score
from streamer.sequential import MOST

__all__ = ["ChangePoint"]


@dataclass(slots=True)
class ChangePoint:
    """Probability that the scores' mean is no longer 0: Bayesian online change-point detection.

    Before the change scores are N(0, 1); after it their mean is a draw from N(0, spread²), held from then on. hazard:
    probability of a change between two frames. longest: how many possible beginnings are kept, the likeliest ones.
    """

    hazard: float = 1e-5
    spread: float = 3.0
    longest: int = 500
    probability: float = field(default=0.0, init=False)
    _beginnings: NDArray[np.float64] = field(init=False)
    _kept: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._beginnings = np.zeros((self.longest + 1, 3))

    def see(self, score: float) -> float:
        """The probability after this score; NaN changes nothing."""
        if not math.isnan(score):
            bounded = min(max(score, -MOST), MOST)
            self._kept, self.probability = learn_score(self._beginnings, self._kept, bounded, self.hazard, self.spread)
        return self.probability

    @property
    def age(self) -> int:
        """Frames since the likeliest beginning of the change; 0 before any score."""
        kept = self._beginnings[: self._kept]
        return int(kept[kept[:, 0].argmax(), 2]) if self._kept else 0
