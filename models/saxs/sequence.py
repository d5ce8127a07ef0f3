"""How the rules that remember behave: false alarms on frames in order, delays after a step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.decide import Rule
from streamer.sequential import SHIFTS, Bank, run_length, threshold

Floats = NDArray[np.floating[Any]]

ALPHA = 5e-5
"""The default share of false alarms among single frames, of both rules together."""
ALPHA_NOVELTY, ALPHA_FLUX = 0.8 * ALPHA, 0.2 * ALPHA
FLUX_LIMIT = 4.4172
"""|flux| that a standard normal score exceeds with a probability ALPHA_FLUX."""
EVERY = 1e7
"""Frames to a false alarm of all sequential rules together, the default."""
SHARES = {"score": 2.0, "low_q": 10.0, "mid_q": 10.0, "high_q": 10.0, "top_q": 10.0, "flux": 10.0}
"""Each rule's ARL₀ over EVERY: their rates, 1/2 + 5/10, add up to one in EVERY."""
FRAMES = 12_000_000
STREAMS = 2_000


def scores_of(surprise: Floats) -> Floats:
    """Standard normal scores of −log10 p."""
    from scipy.stats import norm

    found: Floats = norm.isf(np.clip(10.0 ** -np.asarray(surprise, dtype=np.float64), 1e-300, 1 - 1e-9))
    return found


def alarms(scores: Floats, bank: Bank, frames: int, g: np.random.Generator) -> int:
    """False alarms of a bank on `frames` scores drawn with replacement, in STREAMS streams; an alarm starts it over."""
    sums, count = np.zeros((STREAMS, len(bank.limits))), 0
    for _ in range(frames // STREAMS):
        x = g.choice(scores, STREAMS)[:, None]
        sums = np.maximum(sums + bank.signs * x - bank.slack, 0)
        fired = (sums > bank.limits).any(-1)
        count += int(fired.sum())
        sums[fired] = 0
    return count


def rules() -> tuple[Rule, ...]:
    """The default rules of `saxs`: those for a single frame, and those that remember."""
    remembering = (
        Rule(
            name=f"{quantity}_changed",
            watch=f"saxs.{quantity}",
            test="step" if quantity == "score" else "drift",
            false_alarm_every=EVERY * share,
        )
        for quantity, share in SHARES.items()
    )
    single = (
        Rule(name="strange_frame", watch="saxs.novelty", above=-math.log10(ALPHA_NOVELTY)),
        Rule(name="flux_high", watch="saxs.flux", above=FLUX_LIMIT),
        Rule(name="flux_low", watch="saxs.flux", below=-FLUX_LIMIT),
    )
    return (*single, *remembering)


def is_alarm(surprise: Floats, flux: Floats) -> NDArray[np.bool_]:
    """Which frames the rules for a single frame call strange."""
    found: NDArray[np.bool_] = (surprise > -math.log10(ALPHA_NOVELTY)) | (np.abs(flux) > FLUX_LIMIT)
    return found


def false_alarms(surprise: Floats, bands: Floats, *, seed: int, frames: int = FRAMES) -> dict[str, Any]:
    """Of all rules together at their defaults, per 10⁶ frames, on shuffled scores of frames in order."""
    g = np.random.default_rng(seed)
    columns = dict(zip(SHARES, (scores_of(surprise), *np.asarray(bands, dtype=np.float64).T), strict=True))
    found = {
        name: alarms(columns[name], Bank(EVERY * share, is_two_sided=name != "score"), frames, g)
        for name, share in SHARES.items()
    }
    total = sum(found.values())
    return {
        "sequential_false_alarms": found,
        "sequential_false_alarms_per_1e6": 1e6 * total / frames,
        "n_sequential_false_alarms_per_1e6": frames,
        "sequential_arl": EVERY,
    }


def delays(*, seed: int, arl: float = 1e6, runs: int = 20_000) -> dict[str, Any]:
    """Mean delay of one bank after a step, over the delay in theory of the one CUSUM that was made for that step."""
    g = np.random.default_rng(seed)
    ratio, mean = {}, {}
    for shift in SHIFTS:
        theory = run_length(shift, threshold(shift, arl), mean=shift)
        mean[f"{shift:g}"] = round(_delay(Bank(arl), shift, runs, g), 3)
        ratio[f"{shift:g}"] = round(mean[f"{shift:g}"] / theory, 4)
    return {
        "delay_frames": mean,
        "delay_ratio": ratio,
        "delay_ratio_max": max(ratio.values()),
        "n_delay_ratio_max": runs,
        "delay_arl": arl,
    }


def _delay(bank: Bank, shift: float, runs: int, g: np.random.Generator) -> float:
    """From a bank that begins at 0, as in the theory."""
    sums, frames = np.zeros((runs, len(bank.limits))), np.zeros(runs)
    running = np.ones(runs, dtype=bool)
    while running.any():
        x = g.normal(shift, 1, int(running.sum()))[:, None]
        frames[running] += 1
        sums[running] = np.maximum(sums[running] + bank.signs * x - bank.slack, 0)
        running &= ~(sums > bank.limits).any(-1)
    return float(frames.mean())
