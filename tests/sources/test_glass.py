"""The simulated glass is what it says: its shells, its limits, and the crystal it becomes."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.records import BadConfig
from streamer.sources.instrument import DETECTORS, State
from streamer.sources.simulated import Simulated, parse_faults

pytest.importorskip("glassure", reason="glassure not installed: pip install 'streamer[rdf]'")

from streamer.sources import glass


@pytest.mark.parametrize(("compressed", "first", "neighbours"), [(0.0, 2.37, 2.5), (1.0, 2.43, 3.2)])
def test_the_first_shell_is_where_it_is_said_to_be(compressed: float, first: float, neighbours: float) -> None:
    r = np.arange(0.01, 10, 0.005)
    G = glass.pair_distribution(r, compressed)
    rdf = r * G + 4 * np.pi * glass.DENSITY * r**2
    assert r[np.argmax(G)] == pytest.approx(first, abs=0.01)
    inside = np.abs(r - first) < 0.4
    assert np.trapezoid(rdf[inside], r[inside]) == pytest.approx(neighbours, rel=0.01)


def test_nothing_is_nearer_than_the_first_shell_and_far_away_is_the_mean_density() -> None:
    r = np.arange(0.01, 30, 0.01)
    g = 1 + glass.pair_distribution(r) / (4 * np.pi * glass.DENSITY * r)
    assert np.abs(g[(r > 1) & (r < 1.9)]).max() < 1e-4
    assert np.abs(g[r > 10] - 1).max() < 1e-6


def test_its_structure_factor_begins_at_the_compressibility_and_tends_to_one() -> None:
    q = np.linspace(0.02, 27, 3000)
    S = glass.of_glass(q)
    assert S[0] == pytest.approx(glass.S_0, abs=0.005)
    assert S[q > 25] == pytest.approx(1, abs=0.02)
    assert S.min() > 0


def test_the_crystal_scatters_as_much_as_its_density_asks_for() -> None:
    """∫ q² (S − 1) dq = −2π² ρ: no two atoms are at one place (Krogh-Moe)."""
    q = np.linspace(0.02, 40, 20_000)
    measure = q**2 * np.exp(-0.01 * q**2)
    of_crystal = np.trapezoid(measure * (glass.of_crystal(q) - 1), q)
    assert of_crystal == pytest.approx(-2 * np.pi**2 / glass.CRYSTAL_A**3, rel=0.05)


def test_the_mean_is_the_one_asked_for_and_frames_reach_far_enough() -> None:
    source = Simulated("glass", detector="128k", mean=5.0)
    expected = source.instrument.expected(State())
    assert expected[~source.instrument.mask].mean() == pytest.approx(5.0)
    q = source.geometry.q("1/A")
    assert q[~source.instrument.mask].max() > 25
    assert expected.shape == DETECTORS["128k"].shape


def test_the_same_frame_is_the_same_photons() -> None:
    one, other = (Simulated("glass", detector="128k", frames=2, rate="max") for _ in range(2))
    images = []
    for source in (one, other):
        records = [record for _ in range(2) for record in source.decode(source.receive(1.0))]  # type: ignore[arg-type]
        images.append(records[-1].image)  # type: ignore[union-attr]
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(("kind", "fault"), [("glass", "radiation_damage@3"), ("saxs", "crystallisation@3")])
def test_a_fault_of_another_sample_is_refused(kind: str, fault: str) -> None:
    with pytest.raises(BadConfig, match="expected name@frame"):
        parse_faults(fault, 10, kind)
