"""Has something changed? Tests that remember: CUSUM, CorMap, a value that stands still.

All of them take standardised scores: N(0, 1) and independent from frame to frame while nothing changes. Then the mean
number of frames to a false alarm (ARL₀) is known, and a threshold is computed from it rather than tuned.

    CUSUM   S ← max(0, S + x − δ/2), alarm at S > h. For a shift of δ standard deviations nothing detects faster at the
            same ARL₀ (Moustakides, Ann. Statist. 14 (1986) 1379). h from Brook and Evans, Biometrika 59 (1972) 539.
    CorMap  the longest run of one sign in the difference of two curves (Franke, Jeffries and Svergun, Nature Methods 12
            (2015) 419): needs no σ. Bins must be independent, pixels not split.

The probability of a change, over all moments at which it may have begun, is `reduce.changes`.

No thread, no clock. An object follows one stream of scores and belongs to one thread.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput

__all__ = ["MOST", "SHIFTS", "Bank", "Still", "run_probability", "threshold"]

Floats = NDArray[np.floating[Any]]

SHIFTS = (0.5, 1.0, 2.0, 3.0)
"""Standard deviations. A bank tuned to these four detects any shift between about as fast as one tuned to it."""

CELLS = 240
"""Of the Markov chain that stands for the CUSUM; ARL₀ is within 1 % of its limit."""

MOST = 38.0
"""Scores are cut off here: N(0, 1) has no larger number whose probability a float can hold."""


@functools.cache
def threshold(shift: float, arl: float) -> float:
    """h of the one-sided CUSUM for a shift, at which the mean number of frames to a false alarm is arl.

    Raises BadInput for arl < 2 or a shift that is not positive.
    """
    if not arl >= 2 or not shift > 0:
        raise BadInput(f"CUSUM: found a shift of {shift} and {arl} frames between false alarms; expected > 0 and ≥ 2")
    low, high = 0.0, 2 * math.log(arl) / shift + 5
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if run_length(shift, middle) < arl else (low, middle)
    return (low + high) / 2


def run_length(shift: float, h: float, mean: float = 0.0) -> float:
    """Mean number of frames until a CUSUM for `shift` that begins at 0 exceeds h, when the scores are N(mean, 1)."""
    width = 2 * h / (2 * CELLS - 1)
    drift = mean - shift / 2
    steps = np.arange(-CELLS, CELLS)
    below = np.array([0.5 * math.erfc(-(width * (step + 0.5) - drift) / math.sqrt(2)) for step in steps])
    step = np.arange(CELLS)[None, :] - np.arange(CELLS)[:, None] + CELLS
    transition = below[step] - below[step - 1]
    transition[:, 0] = below[step[:, 0]]
    return float(np.linalg.solve(np.eye(CELLS) - transition, np.ones(CELLS))[0])


@dataclass(slots=True)
class Bank:
    """One-sided CUSUMs for several shifts, as one test.

    arl: mean number of frames to a false alarm of the whole bank: each has its share, and as their alarms coincide more
        often than not, the true number is rather larger. is_two_sided: falling scores count as well.
    """

    arl: float
    shifts: tuple[float, ...] = SHIFTS
    is_two_sided: bool = False
    limits: NDArray[np.float64] = field(init=False)
    slack: NDArray[np.float64] = field(init=False)
    signs: NDArray[np.float64] = field(init=False)
    _sums: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        signs = (1.0, -1.0) if self.is_two_sided else (1.0,)
        share = self.arl * len(self.shifts) * len(signs)
        self.limits = np.array([threshold(shift, share) for _ in signs for shift in self.shifts])
        self.slack = np.array([shift / 2 for _ in signs for shift in self.shifts])
        self.signs = np.array([one for one in signs for _ in self.shifts])
        self._sums = np.zeros(len(self.limits))

    def see(self, score: float) -> float:
        """The largest CUSUM over its limit after this score: beyond 1 is an alarm. A score that is not known (NaN)
        changes nothing."""
        if not math.isnan(score):
            bounded = min(max(score, -MOST), MOST)
            self._sums = np.minimum(np.maximum(self._sums + self.signs * bounded - self.slack, 0), 1.2 * self.limits)
        return float((self._sums / self.limits).max())

    def start_over(self) -> None:
        self._sums = np.zeros(len(self.limits))


@dataclass(slots=True)
class Still:
    """How many frames in a row have had the very same value: counted photons never do."""

    _last: float = math.nan
    _same: int = 0

    def see(self, value: float) -> int:
        self._same = self._same + 1 if value == self._last else 1
        self._last = value
        return self._same


@functools.cache
def run_probability(n: int, run: int) -> float:
    """Probability that n fair signs hold a run of at least `run` equal ones.

    Equal neighbours are n − 1 fair tosses, and a run of r signs is one of r − 1 heads among them: f(m) = f(m − 1) +
    2^−(h+1) (1 − f(m − h − 1)), exact in floating point where integers of 2ⁿ would be slow.
    """
    heads, tosses = run - 1, n - 1
    if heads <= 0:
        return 1.0 if n >= run else 0.0
    if tosses < heads:
        return 0.0
    f = np.zeros(tosses + 1)
    f[heads] = 2.0**-heads
    for m in range(heads + 1, tosses + 1):
        f[m] = f[m - 1] + 2.0 ** -(heads + 1) * (1 - f[m - heads - 1])
    return float(f[tosses])
