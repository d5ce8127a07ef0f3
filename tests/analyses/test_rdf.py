"""The RDF analysis on frames of a glass whose structure is known: distances, averaging, refusals and alarms."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.analyses.rdf import Rdf
from streamer.decide import Decider, Rule
from streamer.records import BadFrame, BadInput, Frame, Quantity, Result, SeriesKey, SeriesStart
from streamer.reduce.detector import Geometry
from streamer.reduce.scattering import Composition, scattering_of

pytest.importorskip("glassure", reason="glassure not installed: pip install 'streamer[rdf]'")

DENSITY = 0.0335
GEOMETRY = Geometry(
    shape=(256, 256), pixel_size_m=(1.6e-3, 1.6e-3), distance_m=0.25, wavelength_A=0.1671, poni_m=(0.2048, 0.2048)
)


def image(position: float = 2.42, mean: float = 2000.0, *, crystal: float = 0.0) -> np.ndarray:
    """What the detector sees of a GeSe3-like glass: shells at `position` and 1.6 times that; crystal: Bragg peaks."""
    r = np.arange(0.01, 30, 0.01)
    rdf = 2.5 / (0.085 * np.sqrt(2 * np.pi)) * np.exp(-(((r - position) / 0.085) ** 2) / 2)
    second = 1.6 * position
    onset = 1 / (1 + np.exp(-(r - second - 0.7) / 0.2))
    others = 4 * np.pi * DENSITY * np.trapezoid(r**2 * (1 - onset), r) - 2.5 - 0.97  # so that S(0) is 0.03
    rdf += others / (0.25 * np.sqrt(2 * np.pi)) * np.exp(-(((r - second) / 0.25) ** 2) / 2)
    G = rdf / r + 4 * np.pi * DENSITY * r * (onset - 1)
    q_of_pixels = GEOMETRY.q("1/A")
    q = np.linspace(0.01, q_of_pixels.max() + 0.01, 4000)
    F = np.sin(np.outer(q, r)) @ G * 0.01
    for k in range(1, 30):
        peak = 3.0 * np.sqrt(k)
        F += crystal * 40 / peak * np.exp(-(((q - peak) / 0.06) ** 2) / 2) * np.exp(-((0.06 * q) ** 2))
    of = scattering_of(Composition.parse("Ge25Se75"), q, "xray")
    I = np.maximum(of.mean_squared * F / q + of.squared_mean, 0.05 * of.squared_mean) + of.compton
    expected = np.interp(q_of_pixels, q, I) * GEOMETRY.solid_angle() * GEOMETRY.polarization(0.99)
    scaled: np.ndarray = expected * mean / expected.mean()
    return scaled


def frame(number: int, expected: np.ndarray, **extra: Any) -> Frame:
    counts = np.random.default_rng(number).poisson(expected).astype(np.uint32)
    return Frame(counts, SeriesKey(1), number, **extra)


@pytest.fixture(scope="module")
def poni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geometry") / "instrument.poni"
    GEOMETRY.write(path)
    return path


def rdf(poni: Path, **options: Any) -> Rdf:
    given = {"composition": "Ge25Se75", "density": DENSITY, "poni": poni, "bins": 1200, "device": "cpu"} | options
    return Rdf(**given)


@pytest.fixture(scope="module")
def analysis(poni: Path) -> Rdf:
    return rdf(poni)


def analysed(analysis: Rdf, *frames: Frame) -> list[Result]:
    results = []
    for one in frames:
        reduced = analysis.reduce(one)
        assert analysis.model is not None
        said: Mapping[str, Any] = analysis.model.run({name: value[None] for name, value in reduced.inputs.items()})
        results.append(analysis.interpret(reduced, {name: rows[0] for name, rows in said.items()}))
    return results


def test_the_first_distance_and_its_neighbours_are_found(analysis: Rdf) -> None:
    [result] = analysed(analysis, frame(0, image()))
    position, N = result["first_position"], result["first_coordination"]
    assert position.value == pytest.approx(2.42, abs=0.015)
    assert N.value == pytest.approx(2.5, rel=0.1)
    assert position.sigma is not None
    assert 0 < position.sigma < 0.02
    assert result["q_max"].value == 25


def test_everything_that_is_promised_is_published_with_units(analysis: Rdf) -> None:
    [result] = analysed(analysis, frame(0, image()))
    assert set(result.quantities) == {*analysis.quantities, *analysis.curves}
    assert result["G"].unit == "1/A2"
    assert result["G"].axes["r"][1] == "A"
    assert result["structure_factor"].axes["q"][1] == "1/A"
    for name in analysis.quantities:
        assert np.ndim(result[name].value) == 0


def test_every_peak_has_a_place_a_width_and_neighbours(analysis: Rdf) -> None:
    [result] = analysed(analysis, frame(0, image()))
    n = int(result["peaks"].value)
    assert n >= 2
    for name in ("peak_position", "peak_height", "peak_width", "peak_coordination"):
        assert np.shape(result[name].value) == (n,)
    np.testing.assert_allclose(np.asarray(result["peak_position"].value)[:2], [2.42, 1.6 * 2.42], atol=0.08)


def test_averaging_says_what_it_averaged_and_lowers_the_noise(poni: Path) -> None:
    analysis = rdf(poni, window=4)
    exposure = {"start_s": Fraction(0), "stop_s": Fraction(1, 10)}
    results = analysed(analysis, *(frame(number, image(mean=300), **exposure) for number in range(6)))
    assert [float(one["frames"].value) for one in results] == [1, 2, 3, 4, 4, 4]
    assert results[-1]["exposure"].value == pytest.approx(0.4)
    assert results[3]["noise"].value == pytest.approx(results[0]["noise"].value / 2, rel=0.05)


def test_a_new_series_forgets_what_was_averaged(poni: Path) -> None:
    analysis = rdf(poni, window=4)
    analysed(analysis, *(frame(number, image()) for number in range(3)))
    analysis.begin(SeriesStart(SeriesKey(2), shape=(256, 256)))
    [result] = analysed(analysis, frame(0, image()))
    assert result["frames"].value == 1


def test_a_frame_counts_for_no_other_than_those_after_it(poni: Path) -> None:
    """Frames may be reduced out of order; one that comes late is not averaged with frames that follow it."""
    analysis = rdf(poni, window=3)
    results = analysed(analysis, *(frame(number, image()) for number in (0, 2, 1)))
    assert [float(one["frames"].value) for one in results] == [1, 2, 2]


def test_a_peak_that_moves_and_a_crystal_raise_alarms(analysis: Rdf) -> None:
    rules = [
        Rule(name="moved", watch="rdf.first_position", above=2.44, sigma=2, for_frames=2),
        Rule(name="crystals", watch="rdf.order", above=2.0, for_frames=2),
        Rule(name="strange", watch="rdf.novelty", above=1.0, for_frames=2),
    ]

    def raised(expected: np.ndarray) -> set[str]:
        decider = Decider(rules)
        results = analysed(analysis, *(frame(number, expected) for number in range(3)))
        return {alarm.name for wall, one in enumerate(results) for alarm in decider.decide(one, float(wall))}

    assert "moved" not in raised(image())
    assert "crystals" not in raised(image())
    assert "moved" in raised(image(2.52))
    assert {"crystals", "strange"} <= raised(image(crystal=0.3))


def test_a_distance_that_is_not_the_declared_one_is_strange(poni: Path) -> None:
    analysis = rdf(poni, first_distance=(2.35, 0.01))
    [result] = analysed(analysis, frame(0, image()))
    assert result["distance_shift"].value > 2.5
    assert result["novelty"].value > 1


def test_noise_that_wavelets_find_is_the_noise_that_was_propagated(analysis: Rdf) -> None:
    [result] = analysed(analysis, frame(0, image(mean=300)))
    assert 0.5 < float(result["noise_found"].value) / float(result["noise"].value) < 2


def test_an_empty_frame_is_refused_by_name(analysis: Rdf) -> None:
    with pytest.raises(BadFrame) as refused:
        analysis.reduce(Frame(np.zeros((256, 256), np.uint32), SeriesKey(1), 0))
    assert refused.value.reason == "empty"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"density": None}, "g_per_cm3"),
        ({"g_per_cm3": 4.3}, "g_per_cm3"),
        ({"density": 4.3}, "atoms/Å³"),
        ({"composition": "GeSeX"}, "composition"),
        ({"window": 0}, "window"),
        ({"q_max": 8.0}, "q_max"),
        ({"normalisation": "polynomial"}, "absolute scale"),
        ({"first_distance": (2.4, 0.0)}, "first_distance"),
        ({"bins": 50}, "bins"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_frame(poni: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        rdf(poni, **options)


def test_a_quantity_is_never_made_up_where_the_model_was_not_asked(analysis: Rdf) -> None:
    result = analysis.interpret(analysis.reduce(frame(0, image())), None)
    assert "G" not in result.quantities
    assert isinstance(result["noise"], Quantity)
