"""Curves, bars and numbers in characters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from streamer.outputs.terminal.sketch import bar, loglog, measured, sparkline, unit_text

numbers = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize(
    ("value", "sigma", "text"),
    [
        (0.93123, 0.0421, "0.931 ± 0.042"),
        (0.81234, 0.0011, "0.8123 ± 0.0011"),
        (2.3, 1.4, "2.3 ± 1.4"),
        (1234.5, 99.0, "1234 ± 99"),
        (1.1e6, 1e3, "1.1e+06 ± 1e+03"),
        (0.5, None, "0.5"),
        (0.5, math.nan, "0.5"),
        (0.5, 0.0, "0.5"),
        (math.nan, 0.1, "nan"),
    ],
)
def test_a_value_is_given_to_two_digits_of_its_uncertainty(value: float, sigma: float | None, text: str) -> None:
    assert measured(value, sigma) == text


@pytest.mark.parametrize(("unit", "text"), [("1/nm", "nm⁻¹"), ("1", ""), ("nm", "nm"), ("1/cm", "cm⁻¹")])
def test_units_are_printed_as_the_field_writes_them(unit: str, text: str) -> None:
    assert unit_text(unit) == text


@given(st.floats(-1, 2), st.integers(0, 40))
def test_a_bar_is_as_long_as_it_was_asked_to_be(fraction: float, width: int) -> None:
    full, empty = bar(fraction, width)
    assert len(full) + len(empty) == width
    assert abs(len(full) - width * min(max(fraction, 0), 1)) <= 0.5


@given(st.lists(numbers, max_size=30), st.integers(-1, 40), st.none() | numbers)
def test_a_sparkline_shows_the_last_values_and_marks_those_that_are_none(
    values: list[float], width: int, limit: float | None
) -> None:
    line = sparkline(values, width, limit=limit)
    shown = values[-width:] if width > 0 else []
    assert len(line) == len(shown)
    assert [mark == "×" for mark in line] == [not math.isfinite(value) for value in shown]


def test_a_sparkline_reaches_from_the_lowest_to_the_highest_value() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"


def test_a_limit_above_the_values_keeps_them_low() -> None:
    assert sparkline([0, 1], 2, limit=7) == "▁▂"


def test_noise_is_not_blown_up_to_full_height() -> None:
    assert sparkline([0.9, 1.1], 2, least_span=10) == "▄▅"


@given(
    npst.arrays(np.float64, 12, elements=numbers),
    npst.arrays(np.float64, 12, elements=numbers),
    st.integers(-5, 90),
    st.integers(-5, 30),
)
def test_a_curve_never_needs_more_room_than_there_is(x: np.ndarray, y: np.ndarray, width: int, height: int) -> None:
    lines = loglog(x, y, width, height, x_unit="q / nm⁻¹")
    assert len(lines) <= max(height, 0)
    assert all(len(axis) + len(curve) <= width for axis, curve in lines)


@pytest.mark.parametrize("power", [-4.0, -1.0, 2.0])
def test_a_power_law_is_a_straight_line(power: float) -> None:
    x = np.geomspace(0.01, 10, 500)
    lines = loglog(x, x**power, 66, 22)
    rows = np.array([[character != " " for character in curve] for _, curve in lines[:-2]])
    middle = [np.flatnonzero(column).mean() for column in rows.T]
    expected = np.linspace(0, 19, 60) if power < 0 else np.linspace(19, 0, 60)
    assert np.max(np.abs(np.array(middle) - expected)) < 1.0


def test_the_axes_carry_the_decades_they_cross_and_the_unit() -> None:
    x = np.geomspace(0.05, 5, 200)
    lines = loglog(x, 1e3 * x**-2.0, 80, 20, x_unit="q / nm⁻¹")
    labels = [axis.strip(" │┤") for axis, _ in lines[:-2]]
    assert [label for label in labels if label] == ["10⁵", "10⁴", "10³", "10²"]
    assert lines[-1][0].split() == ["0.1", "0.2", "0.5", "1", "2", "q", "/", "nm⁻¹"]
    tick = lines[-2][0].index("┬")
    assert lines[-1][0][tick - 1 : tick + 2] == "0.1"


def test_bins_without_counts_are_left_out() -> None:
    x = np.linspace(0.1, 5, 100)
    y = np.where(np.arange(100) % 3 == 0, 0.0, 7.0)
    assert loglog(x, y, 60, 10) == loglog(x[y > 0], y[y > 0], 60, 10)


@pytest.mark.parametrize("y", [np.zeros(5), np.full(5, np.nan), np.array([0, 0, 1.0, 0, 0])])
def test_less_than_two_points_are_no_curve(y: np.ndarray) -> None:
    assert loglog(np.arange(1.0, 6.0), y, 60, 10) == []
