"""Form factors, Compton, neutron lengths and pair weights: against published values and against each other's sums."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.records import BadInput
from streamer.reduce.scattering import Composition, pair_weights, scattering_of

pytest.importorskip("glassure", reason="glassure not installed: pip install 'streamer[rdf]'")

Q = np.array([0.0, 5.0, 15.0, 25.0])


@pytest.mark.parametrize(
    ("formula", "fractions"),
    [
        ("Mg2SiO4", {"Mg": 2 / 7, "Si": 1 / 7, "O": 4 / 7}),
        ("Ge25Se75", {"Ge": 0.25, "Se": 0.75}),
        ("Ag5Ge23.75Se71.25", {"Ag": 0.05, "Ge": 0.2375, "Se": 0.7125}),
        ("Ni", {"Ni": 1.0}),
    ],
)
def test_a_formula_becomes_atomic_fractions(formula: str, fractions: dict[str, float]) -> None:
    assert Composition.parse(formula).fractions == pytest.approx(fractions)


@pytest.mark.parametrize("formula", ["", "GeX3", "2Ge", "Ge-Se", "germanium"])
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(BadInput):
        Composition.parse(formula)


def test_the_density_of_a_mass_density_is_that_of_the_molar_mass() -> None:
    # Silicon, 2.3290 g/cm³ at 28.0855 g/mol: eight atoms in a cube of 5.431 Å.
    assert Composition.parse("Si").number_density(2.3290) == pytest.approx(8 / 5.431**3, rel=1e-3)


@pytest.mark.parametrize(("symbol", "Z"), [("O", 8), ("Si", 14), ("Ge", 32), ("Se", 34), ("Ag", 47)])
def test_an_atom_scatters_forward_with_all_its_electrons(symbol: str, Z: int) -> None:
    of = scattering_of(Composition.parse(symbol), Q, "xray")
    assert of.f[0, 0] == pytest.approx(Z, rel=2e-3)
    assert of.compton[0] == pytest.approx(0, abs=1e-2)


def test_compton_scattering_tends_to_the_number_of_electrons() -> None:
    of = scattering_of(Composition.parse("O"), np.array([25.0]), "xray")
    assert of.compton[0] == pytest.approx(8, rel=0.05)


def test_neutron_lengths_are_those_of_sears() -> None:
    """V. F. Sears, Neutron News 3 (1992) 26: Ge 8.185, Se 7.970, Ag 5.922 fm."""
    of = scattering_of(Composition.parse("Ag5Ge23.75Se71.25"), Q, "neutron")
    np.testing.assert_allclose(of.f[:, 0], [5.922, 8.185, 7.970], rtol=1e-3)
    assert not of.compton.any()


@pytest.mark.parametrize("radiation", ["xray", "neutron"])
def test_the_weights_of_all_pairs_sum_to_one(radiation: str) -> None:
    weights = pair_weights(Composition.parse("Ag25Ge18.75Se56.25"), Q, radiation)  # type: ignore[arg-type]
    assert len(weights) == 6
    np.testing.assert_allclose(sum(weights.values()), 1.0, rtol=1e-12)


def test_laue_scattering_is_what_a_mixture_adds() -> None:
    one, mixed = (scattering_of(Composition.parse(f), Q, "xray") for f in ("Si", "SiO2"))
    np.testing.assert_allclose(one.squared_mean, one.mean_squared)
    assert np.all(mixed.squared_mean > mixed.mean_squared)
