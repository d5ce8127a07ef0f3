"""Another grid: averages keep the mean and the information, lines stay lines, and nothing is made up outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.records import BadInput
from streamer.reduce.regrid import Regrid

GRID = np.arange(0.5, 25.01, 0.02)


@given(first=st.floats(0.1, 1.0), step=st.floats(0.003, 0.06), slope=st.floats(-3, 3))
def test_a_straight_line_stays_one(first: float, step: float, slope: float) -> None:
    measured = np.arange(first, 20, step)
    regrid = Regrid(measured, GRID)
    inner = regrid.is_inside & (measured[1] + 0.02 < GRID) & (measured[-2] - 0.02 > GRID)
    np.testing.assert_allclose(regrid(1 + slope * measured)[inner], 1 + slope * GRID[inner], atol=abs(slope) * step)


def test_averaging_four_bins_halves_sigma() -> None:
    measured = np.arange(0.3, 26, 0.005)
    regrid = Regrid(measured, GRID)
    assert regrid.thinning == 1
    assert np.median(regrid.sigma(np.ones_like(measured))) == pytest.approx(0.5, rel=0.1)


def test_a_point_of_a_finer_grid_knows_less_than_its_bin() -> None:
    regrid = Regrid(np.arange(0.3, 26, 0.08), GRID)
    assert regrid.thinning == pytest.approx(2)


def test_outside_the_measurement_there_is_nothing() -> None:
    measured = np.arange(1.0, 15.0, 0.01)
    regrid = Regrid(measured, GRID)
    values = regrid(np.ones_like(measured))
    assert not values[(GRID < 0.9) | (GRID > 15.1)].any()
    assert not regrid.is_inside[GRID > 15.1].any()


def test_an_axis_that_does_not_ascend_is_refused() -> None:
    with pytest.raises(BadInput, match="ascend"):
        Regrid(GRID[::-1], GRID)
