"""The chain from I(q) to g(r): on analytic glasses, on measured patterns, and with units that are never guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamer.records import BadInput
from streamer.reduce.pairs import Normalisation, PairChain, Sample, lorch, per_angstrom, read_pattern
from streamer.reduce.scattering import Composition, scattering_of

pytest.importorskip("glassure", reason="glassure not installed: pip install 'streamer[rdf]'")

GLASS = Sample(Composition.parse("Ge25Se75"), 0.0335)
Q = np.arange(0.4, 24.0, 0.02)
R = np.arange(0.0, 10.0, 0.02)


def reduced_pdf(r: np.ndarray, density: float = 0.0335) -> np.ndarray:
    """One shell of 2.5 neighbours at 2.4 Å, and the mean density from 3.3 Å on."""
    rdf = 2.5 / (0.09 * np.sqrt(2 * np.pi)) * np.exp(-(((r - 2.4) / 0.09) ** 2) / 2)
    onset = 1 / (1 + np.exp(-(r - 3.4) / 0.15))
    with np.errstate(divide="ignore", invalid="ignore"):
        G = rdf / r + 4 * np.pi * density * r * (onset - 1)
    return np.nan_to_num(G)


def intensity(scale: float = 3.7) -> np.ndarray:
    """What an X-ray detector sees of it, on an arbitrary scale."""
    r = np.arange(0.005, 30, 0.01)
    F = np.sin(np.outer(Q, r)) @ reduced_pdf(r) * 0.01
    of = scattering_of(GLASS.composition, Q, "xray")
    return scale * (of.mean_squared * F / Q + of.squared_mean + of.compton)


@pytest.mark.parametrize("normalisation", ["high-q", "krogh-moe", "hole"])
def test_the_scale_of_the_intensity_is_found(normalisation: Normalisation) -> None:
    chain = PairChain(Q, "1/A", GLASS, R, normalisation=normalisation)
    assert chain.structure_factor(intensity(3.7)).scale * 3.7 == pytest.approx(1, rel=0.02)


def test_the_first_shell_is_where_it_is_and_holds_its_neighbours() -> None:
    result = PairChain(Q, "1/A", GLASS, R, normalisation="krogh-moe")(intensity())
    assert R[np.argmax(result.G)] == pytest.approx(2.4, abs=0.02)
    shell = (R > 1.8) & (R < 2.85)
    expected = np.trapezoid((R * reduced_pdf(R) + 4 * np.pi * 0.0335 * R**2)[shell], R[shell])
    assert np.trapezoid(result.rdf[shell], R[shell]) == pytest.approx(expected, rel=0.05)


def test_the_three_curves_say_the_same() -> None:
    result = PairChain(Q, "1/A", GLASS, R)(intensity())
    r = R[1:]
    np.testing.assert_allclose(result.G[1:], 4 * np.pi * 0.0335 * r * (result.g[1:] - 1), atol=1e-9)
    np.testing.assert_allclose(result.rdf[1:], 4 * np.pi * 0.0335 * r**2 * result.g[1:], atol=1e-9)


def test_an_empty_measurement_is_subtracted_with_its_scale() -> None:
    empty = 40 * np.exp(-Q / 6)
    chain = PairChain(Q, "1/A", GLASS, R, background=empty, background_scale=0.5, container=empty, container_scale=2.0)
    with_empty, without = chain(intensity() + 2.5 * empty), PairChain(Q, "1/A", GLASS, R)(intensity())
    np.testing.assert_allclose(with_empty.G, without.G, atol=1e-8)


def test_inverse_nanometres_are_the_same_axis() -> None:
    one, other = PairChain(Q, "1/A", GLASS, R), PairChain(10 * Q, "1/nm", GLASS, R)
    np.testing.assert_allclose(one(intensity()).G, other(intensity()).G, atol=1e-9)


@pytest.mark.parametrize("unit", ["", "2th_deg", "nm", "q"])
def test_an_axis_without_a_unit_of_q_is_refused(unit: str) -> None:
    with pytest.raises(BadInput, match="unit of q"):
        per_angstrom(Q, unit)


def test_sigma_is_the_spread_of_many_measurements() -> None:
    rng = np.random.default_rng(5)
    chain, clean = PairChain(Q, "1/A", GLASS, R, normalisation="krogh-moe"), np.maximum(intensity(50.0), 1.0)
    drawn = [chain(rng.poisson(clean).astype(float)).G for _ in range(300)]
    said = chain(clean, np.sqrt(clean)).sigma_G
    assert said is not None
    beyond = R > 1
    assert np.median(np.std(drawn, axis=0)[beyond] / said[beyond]) == pytest.approx(1, abs=0.1)


def test_points_that_were_not_measured_are_bridged_and_do_not_spread() -> None:
    chain, I = PairChain(Q, "1/A", GLASS, R), intensity()
    holed = I.copy()
    holed[[200, 201, 500]] = np.nan
    assert np.abs(chain(holed).G - chain(I).G).max() < 0.05


def test_the_polynomial_takes_away_what_varies_slowly() -> None:
    chain = PairChain(Q, "1/A", GLASS, R, normalisation="polynomial", r_poly=0.9)
    of = scattering_of(GLASS.composition, Q, "xray")
    slow = of.mean_squared * (0.3 - 0.02 * Q)
    clean, spoilt = chain(intensity()), chain(intensity() + slow)
    beyond = R > 2
    assert np.corrcoef(clean.G[beyond], spoilt.G[beyond])[0, 1] > 0.995


def test_lorch_ends_at_zero() -> None:
    assert lorch(Q, Q[-1])[-1] == pytest.approx(0, abs=1e-12)
    assert lorch(np.zeros(1), 20.0)[0] == 1


def test_a_density_in_grams_is_noticed() -> None:
    with pytest.raises(BadInput, match="g/cm³"):
        Sample(GLASS.composition, 4.3)


def test_a_file_without_a_unit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.xy"
    path.write_text("# sample 7\n1.0 20.0\n1.1 21.0\n", encoding="utf-8")
    with pytest.raises(BadInput, match="no unit"):
        read_pattern(path)


def test_a_header_of_pyfai_names_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "one.xy"
    path.write_text("#   q_nm^-1    I\n1.0 20.0\n1.1 21.0\n", encoding="utf-8")
    assert read_pattern(path).unit == "1/nm"


# Measured.


def test_forsterite_glass_has_its_published_distances(real_data: Path) -> None:
    pattern = read_pattern(real_data / "rdf" / "glassure_Mg2SiO4_ambient.xy")
    empty = read_pattern(real_data / "rdf" / "glassure_Mg2SiO4_ambient_bkg.xy")
    composition = Composition.parse("Mg2SiO4")
    r = np.arange(0.0, 10.0, 0.01)
    sample = Sample(composition, composition.number_density(2.9))
    chain = PairChain(pattern.q, pattern.unit, sample, r, q_max=20, background=empty.intensity, window="lorch")
    g = chain(pattern.intensity).g
    assert r[(r > 1.4) & (r < 1.8)][np.argmax(g[(r > 1.4) & (r < 1.8)])] == pytest.approx(1.62, abs=0.01)
    assert r[(r > 1.85) & (r < 2.3)][np.argmax(g[(r > 1.85) & (r < 2.3)])] == pytest.approx(2.03, abs=0.03)


def test_the_same_normalisation_as_glassure_gives_the_same_g(real_data: Path) -> None:
    from glassure.calc import calculate_pdf, create_calculate_pdf_configs
    from glassure.configuration import IntNormalization
    from glassure.pattern import Pattern

    pattern = read_pattern(real_data / "rdf" / "glassure_Mg2SiO4_ambient.xy")
    config, calculation = create_calculate_pdf_configs(
        Pattern(pattern.q, pattern.intensity), {"Mg": 2, "Si": 1, "O": 4}, 2.9
    )
    calculation.transform.q_max = 20
    calculation.transform.normalization = IntNormalization()
    composition = Composition.parse("Mg2SiO4")
    r = np.arange(0.0, 10.005, 0.01)
    sample = Sample(composition, composition.number_density(2.9))
    g = PairChain(pattern.q, pattern.unit, sample, r, q_max=20, normalisation="krogh-moe")(pattern.intensity).g
    beyond = r > 1.2
    other = np.asarray(calculate_pdf(config, calculation).gr.y)
    assert np.abs(other - g)[beyond].max() < 0.05 * np.abs(g[beyond]).max()


def test_the_defects_of_the_nickel_pattern_are_named(real_data: Path) -> None:
    pattern = read_pattern(real_data / "rdf" / "pdfstream_Ni.chi")
    chain = PairChain(pattern.q, pattern.unit, Sample(Composition.parse("Ni"), 0.0914), R, q_max=24, bridge=True)
    found = {
        (one.kind, round(one.q_first, 2), round(one.q_last, 2))
        for one in chain.structure_factor(pattern.intensity).artefacts
    }
    assert {("spike", 15.87, 15.87), ("dip", 13.17, 13.24)} <= found
    assert len(found) <= 3
