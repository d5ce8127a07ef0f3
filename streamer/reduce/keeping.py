"""The reference of a running stream: loaded, averaged from the first frames of a series, or sliding along with it."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.commissioned import Commissioned, read_commissioned
from streamer.reduce.conformal import Conformal
from streamer.reduce.reference import FLUX_STABILITY, Reference, gather

__all__ = ["Keeper"]

log = structlog.get_logger(__name__)


@dataclass
class Keeper:
    """Keeps the reference that frames are judged beside; they may come from several threads at once.

    grid: (m,) the model's q. commissioned: what `streamer commission` wrote. reference_frames: so many frames at the
    beginning of a series become its reference. sliding_frames: the reference is the mean of the last so many frames in
    order. stability: standard deviation of ln(scale) that is normal for this beam. novelty: calibration on the sample's
    own frames, where there is one.

    Raises BadInput when more than one source of the reference is asked for, or the file cannot be used.
    """

    grid: NDArray[np.float64]
    commissioned: Path | None
    reference_frames: int
    sliding_frames: int
    stability: float = FLUX_STABILITY
    novelty: Conformal | None = None
    _reference: Reference | None = None
    _first: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    _last: deque[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=deque)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._last = deque(maxlen=max(self.sliding_frames, 1))
        if self.commissioned is None:
            return
        if self.reference_frames:
            raise BadInput("saxs: found commissioned and reference_frames, expected one of them: each is a reference")
        known: Commissioned = read_commissioned(self.commissioned, self.grid)
        self._reference, self.stability, self.novelty = known.reference, known.stability, known.novelty

    def start_over(self) -> None:
        """Another series, another sample: a reference out of its frames is forgotten, a commissioned one stays."""
        with self._changing:
            self._first.clear()
            self._last.clear()
            if self.commissioned is None:
                self._reference = None

    @property
    def known(self) -> Reference | None:
        """The reference as it is; None while there is none yet."""
        return self._reference

    def learn_first(self, I: NDArray[np.float64], sigma: NDArray[np.float64]) -> None:
        """A frame that was judged without a reference is one of those it is made of, as long as they are too few."""
        if self._reference is not None or not self.reference_frames:
            return
        with self._changing:
            if len(self._first) < self.reference_frames and np.any(I > 0):
                self._first.append((I, sigma))
                if len(self._first) == self.reference_frames:
                    self._reference = gather(self._first)
                    log.info("saxs reference", frames=self.reference_frames, noise=round(self._reference.noise, 3))

    def learn(self, I: NDArray[np.float64], sigma: NDArray[np.float64]) -> None:
        """Let a frame in order into the sliding reference; it is used once as many are there as were asked for."""
        if not self.sliding_frames or self._reference is None:
            return
        with self._changing:
            self._last.append((I, sigma))
            if len(self._last) == self.sliding_frames:
                self._reference = gather(self._last)
