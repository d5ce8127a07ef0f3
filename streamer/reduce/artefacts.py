"""What a powder or liquid pattern cannot hold: points that no scattering explains, found and named.

    spike   narrower than the instrument's resolution: its neighbours do not rise with it
    dip     far below everything around it: a pattern of intensities has peaks, never holes

A Bragg peak is several points wide and positive, and is neither. What is found can be bridged, so that one hot pixel or
one wrongly masked ring does not run through the whole of G(r) as a sine wave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Artefact", "bridged", "find_artefacts"]

Floats = NDArray[np.float64]

BLOCK = 48
"""Points of which the median is the local level: several Bragg peaks wide, and short beside the form factor."""
SPIKE_SIGMAS, DIP_SIGMAS = 12.0, 4.5
"""Robust standard deviations of the noise around. A spike must also fall to under `SPIKE_WIDTH` at both neighbours."""
SPIKE_WIDTH = 0.25
"""A Gaussian of 1.4 points full width at half maximum falls to 0.25 in one point; no detector resolves less than 2."""
DEEP, DARK = 0.35, 0.1
"""A dip is at most DEEP of the local level and beyond the noise. Below DARK it is one in any noise: Compton and thermal
diffuse scattering fill the space between Bragg peaks."""
EDGE = 0.04
"""Part of the points at either end where a beamstop or the detector's corner makes the intensity fall: not judged."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """Points from q_first to q_last (in the unit of q) that no scattering explains. ratio: to the level around."""

    kind: Literal["spike", "dip"]
    q_first: float
    q_last: float
    ratio: float
    first: int
    last: int

    def __str__(self) -> str:
        where = f"{self.q_first:.2f}" if self.first == self.last else f"{self.q_first:.2f}–{self.q_last:.2f}"
        return f"{self.kind} at q = {where}: {self.ratio:.2g} × the level around"


def find_artefacts(q: Floats, I: Floats) -> list[Artefact]:
    """Spikes and dips of a pattern, by q. q, I: (n,), I > 0 where it was measured; NaN is passed over."""
    I = np.asarray(I, dtype=np.float64)
    positive = np.where(np.isfinite(I) & (I > 0), I, np.nan)
    if np.isfinite(positive).sum() < 4 * BLOCK:
        return []
    known = np.isfinite(positive)
    filled = np.interp(np.arange(I.size), np.flatnonzero(known), positive[known])
    level, spread = _level(np.log(filled))
    runs = [("spike", run) for run in _runs(_is_spike(filled))]
    runs += [("dip", run) for run in _runs(_is_dip(np.log(filled), level, spread))]
    found = [_named(kind, run, q, filled, np.exp(level)) for kind, run in runs]
    return sorted(found, key=lambda one: one.first)


def bridged(I: Floats, artefacts: list[Artefact], *, margin: int = 1) -> Floats:
    """The pattern with a straight line across every artefact and `margin` points beside it."""
    is_good = np.isfinite(I)
    for one in artefacts:
        is_good[max(one.first - margin, 0) : one.last + margin + 1] = False
    x = np.arange(I.size)
    return np.where(is_good, I, np.interp(x, x[is_good], I[is_good]))


def _is_spike(I: Floats) -> NDArray[np.bool_]:
    """Points that stand alone. The noise is that of second differences, which a smooth curve does not have."""
    higher = np.maximum(I[:-2], I[2:])
    base = np.median(
        np.stack([I[np.clip(np.arange(1, I.size - 1) + k, 0, I.size - 1)] for k in (-4, -3, 3, 4)]), axis=0
    )
    base = np.minimum(base, higher)
    noise = _around(np.abs(I[:-2] - 2 * I[1:-1] + I[2:])) * 1.4826 / np.sqrt(6)
    excess = I[1:-1] - base
    found = np.zeros(I.size, dtype=bool)
    found[1:-1] = (excess > SPIKE_SIGMAS * noise) & (higher - base < SPIKE_WIDTH * excess)
    return found


def _is_dip(log_I: Floats, level: Floats, spread: Floats) -> NDArray[np.bool_]:
    edge = int(EDGE * log_I.size)
    depth = log_I - level
    is_deep = depth < np.log(DEEP)
    found: NDArray[np.bool_] = is_deep & (depth < -DIP_SIGMAS * spread) | (depth < np.log(DARK))
    for first, last in _runs(is_deep):
        found[first : last + 1] = found[first : last + 1].any() and is_deep[first : last + 1]
    found[:edge] = found[log_I.size - edge :] = False
    return found


def _level(log_I: Floats) -> tuple[Floats, Floats]:
    """(n,) median around every point, and the robust deviation of what lies below: its median is the quantile 0.75."""
    level = _around(log_I)
    below = np.minimum(log_I - level, 0)
    return level, 1.4826 * _around(np.abs(below), quantile=0.75)


def _around(values: Floats, quantile: float = 0.5) -> Floats:
    """(n,) a quantile in windows of three blocks, linear between the windows' centres."""
    blocks = values.size // BLOCK
    cut = values[: blocks * BLOCK].reshape(blocks, BLOCK)
    padded = np.concatenate([cut[:1], cut, cut[-1:]])
    window = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
    centres = (np.arange(blocks) + 0.5) * BLOCK - 0.5
    found: Floats = np.interp(np.arange(values.size), centres, np.quantile(window, quantile, axis=1))
    return found


def _runs(found: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of every run of True; runs with one point between them are one."""
    marked = np.flatnonzero(found)
    if not marked.size:
        return []
    breaks = np.flatnonzero(np.diff(marked) > 2)
    starts, ends = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [marked.size - 1]])
    return [(int(marked[a]), int(marked[b])) for a, b in zip(starts, ends, strict=True)]


def _named(kind: Any, run: tuple[int, int], q: Floats, I: Floats, level: Floats) -> Artefact:
    first, last = run
    middle = I[first : last + 1]
    extreme = middle.max() if kind == "spike" else middle.min()
    return Artefact(kind, float(q[first]), float(q[last]), float(extreme / level[(first + last) // 2]), first, last)
