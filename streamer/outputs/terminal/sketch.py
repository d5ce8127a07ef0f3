"""Curves, bars and numbers in characters: what the terminal view draws with. Functions of their arguments only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["bar", "loglog", "measured", "sparkline", "unit_text"]

LEVELS = "▁▂▃▄▅▆▇█"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DECADES = 8  # a curve is drawn down to 10⁻⁸ of its maximum; below lie the bins with almost no counts
# Dots of a braille character by (row, column), Unicode 15, block "Braille Patterns".
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def unit_text(unit: str) -> str:
    """A unit as it is printed: "1/nm" is nm⁻¹, "1" is nothing."""
    if unit == "1":
        return ""
    return f"{unit[2:]}⁻¹" if unit.startswith("1/") else unit


def measured(value: float, sigma: float | None) -> str:
    """A value and its standard uncertainty, to two digits of the latter: "0.931 ± 0.042"."""
    if sigma is None or not math.isfinite(sigma) or sigma <= 0 or not math.isfinite(value):
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(sigma))
    if 0 <= decimals <= 6 and abs(value) < 1e6:
        return f"{value:.{decimals}f} ± {sigma:.{decimals}f}"
    return f"{value:.4g} ± {sigma:.2g}"


def bar(fraction: float, width: int) -> tuple[str, str]:
    """The full and the empty part of a progress bar."""
    full = round(width * min(max(fraction, 0.0), 1.0))
    return "━" * full, "─" * (width - full)


def sparkline(values: Sequence[float], width: int, *, limit: float | None = None, least_span: float = 0.0) -> str:
    """The last `width` values as blocks from the lowest to the highest of them and `limit`; "×" where there is none.

    least_span: a smaller range than this is noise and is not blown up to full height.
    """
    shown = np.asarray(values[-width:] if width > 0 else [], dtype=float)
    finite = shown[np.isfinite(shown)]
    if not finite.size:
        return "×" * shown.size
    marks = [*finite, limit] if limit is not None and math.isfinite(limit) else finite
    low, high = float(np.min(marks)), float(np.max(marks))
    middle, span = 0.5 * low + 0.5 * high, max(high - low, least_span)
    if span <= 0 or not math.isfinite(span):
        span = math.inf
    with np.errstate(over="ignore"):
        heights = np.clip((np.where(np.isfinite(shown), shown, middle) - middle) / span + 0.5, 0, 1)
    blocks = [LEVELS[round(height)] for height in heights * (len(LEVELS) - 1)]
    return "".join(block if np.isfinite(value) else "×" for block, value in zip(blocks, shown, strict=True))


def loglog(
    x: NDArray[np.floating], y: NDArray[np.floating], width: int, height: int, *, x_unit: str = ""
) -> list[tuple[str, str]]:
    """A curve on two logarithmic axes, at most `width` × `height` characters, as lines of (axis, curve).

    x, y: (n,); points that are not positive and finite in both are left out. Returns [] where there are not two points
    apart from each other, or not the room.
    """
    usable = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    usable &= y >= np.max(y, where=usable, initial=0.0) * 10.0**-DECADES
    log_x, log_y = np.log10(x[usable].astype(float)), np.log10(y[usable].astype(float))
    rows = height - 2
    if rows < 2 or log_x.size < 2 or log_x.max() - log_x.min() < 1e-6:
        return []
    low, high = float(log_y.min()), float(log_y.max())
    if high - low < 0.1:  # nearly constant: a quarter of a decade of air
        low, high = low - 0.125, high + 0.125
    labels = _y_labels(low, high, rows)
    margin = max(5, *map(len, labels.values()))
    columns = width - margin - 1
    if columns < 8:
        return []
    curve = _braille(_trace(log_x, log_y, 2 * columns), low, high, rows)
    axis = [f"{labels.get(row, ''):>{margin}}{'┤' if row in labels else '│'}" for row in range(rows)]
    rule, names = _x_axis(float(log_x.min()), float(log_x.max()), columns, x_unit)
    return [*zip(axis, curve, strict=True), (f"{'':{margin}}└{rule}", ""), (f"{'':{margin}} {names}", "")]


def _trace(log_x: NDArray[np.float64], log_y: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The curve at equal steps of log x: the mean of the points in a step, a straight line where a step has none."""
    low, high = log_x.min(), log_x.max()
    step = np.minimum(((log_x - low) / (high - low) * steps).astype(int), steps - 1)
    count = np.bincount(step, minlength=steps)
    filled = np.flatnonzero(count)
    mean = np.bincount(step, weights=log_y, minlength=steps)[filled] / count[filled]
    return np.interp(np.arange(steps), filled, mean)


def _braille(trace: NDArray[np.float64], low: float, high: float, rows: int) -> list[str]:
    """The trace in braille characters, `rows` lines of half as many characters as it has points."""
    dots = np.zeros((4 * rows, trace.size), dtype=np.int64)
    level = np.rint((high - trace) / (high - low) * (4 * rows - 1)).astype(int)
    before = np.concatenate([level[:1], level[:-1]])
    for column, (a, b) in enumerate(zip(before, level, strict=True)):
        # From the middle of a jump each of its two columns draws its half.
        dots[min(b, (a + b + 1) // 2) : max(b, (a + b) // 2) + 1, column] = 1
    cells = dots.reshape(rows, 4, trace.size // 2, 2)
    codes = np.einsum("rdcs,ds->rc", cells, DOTS)
    return ["".join(" " if code == 0 else chr(0x2800 + code) for code in row) for row in codes]


def _y_labels(low: float, high: float, rows: int) -> dict[int, str]:
    """Row → label: the decades, as many as fit; where there is less than two of them, the ends."""
    decades = range(math.ceil(low), math.floor(high) + 1)
    every = max(1, math.ceil(2 * len(decades) / rows))
    labels = {
        round((high - decade) / (high - low) * (rows - 1)): f"10{str(decade).translate(SUPERSCRIPTS)}"
        for decade in decades
        if decade % every == 0
    }
    return labels if len(labels) > 1 else {0: _power(high), rows - 1: _power(low)}


def _power(exponent: float) -> str:
    """10 to the power of `exponent`, in two digits, also where no float can hold it."""
    whole = math.floor(exponent)
    return f"{10**exponent:.2g}" if -3 < whole < 2 else f"{10 ** (exponent - whole):.1f}e{whole}"


def _x_axis(low: float, high: float, columns: int, unit: str) -> tuple[str, str]:
    """The axis with its ticks at 1, 2 and 5 times the powers of ten, decades first, and the line of their labels."""
    rule, names = ["─"] * columns, [" "] * columns
    unit = unit if len(unit) < columns // 2 else ""
    place_of_unit = columns - len(unit)
    names[place_of_unit:] = unit
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for factor in (1, 2, 5):
        for exponent in exponents:
            position = (exponent + math.log10(factor) - low) / (high - low) * (columns - 1)
            label = f"{float(f'{factor}e{exponent}'):g}"
            left = round(position) - len(label) // 2
            if not 0 <= position <= columns - 1 or left < 0 or left + len(label) > place_of_unit - 1:
                continue
            if "".join(names[max(left - 1, 0) : left + len(label) + 1]).strip():
                continue
            rule[round(position)] = "┬"
            names[left : left + len(label)] = label
    return "".join(rule), "".join(names)
