"""The pair-distribution model: its identity, its posterior, the exported network, and the card against the boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from streamer.infer import load_model, read_card

torch = pytest.importorskip("torch", reason="torch not installed: pip install 'streamer[train]'")
pytest.importorskip("onnx", reason="onnx not installed: pip install 'streamer[train]'")
pytest.importorskip("glassure", reason="glassure not installed: pip install 'streamer[rdf]'")

from models.rdf import check, evaluate, strange, structure  # noqa: E402
from models.rdf.baselines import sine  # noqa: E402
from models.rdf.lattice import Fcc, fit_fcc  # noqa: E402
from models.rdf.network import BOUNDS, OUTPUTS, Bank, WtRdf, selective_loss  # noqa: E402
from models.rdf.operators import Q_MAXIMA, R_OUT, basis, estimate, fit_gaussian, on_output, to_range  # noqa: E402
from models.rdf.shell import first_shells  # noqa: E402
from models.rdf.simulate import COMPOSITIONS, Family, Q, box_of, broad, truths, with_errors  # noqa: E402
from models.rdf.structure import R, partials  # noqa: E402
from models.rdf.train import FOLDER  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def box() -> structure.Box:
    return box_of(10)


@pytest.fixture(scope="module")
def parts(box: structure.Box) -> structure.Partials:
    return partials(box)


@pytest.fixture(scope="module")
def family(parts: structure.Partials) -> Any:
    rng = np.random.default_rng(1)
    return Family([[parts]], rng).draw(600, rng)


# Structures.


@pytest.mark.parametrize("x", COMPOSITIONS)
def test_a_box_has_the_composition_and_density_it_is_named_after(x: int) -> None:
    one = box_of(x)
    assert len(one.symbols) == 120
    assert (one.symbols == "Ag").mean() == pytest.approx(x / 100, abs=0.005)
    assert one.density == pytest.approx(0.0335 + 0.0065 * x / 25, rel=1e-3)


def test_partials_tend_to_one_and_vanish_inside_the_atoms(parts: structure.Partials) -> None:
    for pair, g in parts.g.items():
        assert np.abs(g[R > 18] - 1).max() < 0.05, pair
        assert g[R < 1.8].max() < 0.05, pair


def test_the_transform_back_from_f_is_the_truth(parts: structure.Partials) -> None:
    q = np.arange(0.005, 60, 0.01)
    F = parts.scattered("neutron", q)
    G = 2 / np.pi * 0.01 * np.sin(np.outer(R, q)) @ F
    inner = (R > 1) & (R < 15)
    np.testing.assert_allclose(G[inner], parts.total("neutron")[inner], atol=0.02)


def test_the_first_shell_of_a_known_curve() -> None:
    rdf = 4.0 / (0.08 * np.sqrt(2 * np.pi)) * np.exp(-(((R_OUT - 2.4) / 0.08) ** 2) / 2)
    rdf = rdf + 4 * np.pi * 0.03 * R_OUT**2 / (1 + np.exp(-(R_OUT - 4) / 0.1))
    G = rdf / R_OUT - 4 * np.pi * 0.03 * R_OUT
    found = first_shells(R_OUT, G[None], np.array([0.03]))
    assert found.position[0] == pytest.approx(2.4, abs=0.01)
    assert found.N[0] == pytest.approx(4.0, rel=0.01)
    assert 2.7 < found.limit[0] < 3.6


def test_simulated_curves_are_finite_and_nearly_all_obey_the_density_line() -> None:
    """Wide second shells of a few reach below 0.8 Å, where no glass has anything."""
    curves, r1 = broad(200, np.random.default_rng(2))
    assert np.isfinite(curves.F).all()
    below = R < 0.8
    away = np.abs(curves.G[:, below] + 4 * np.pi * curves.density[:, None] * R[below]).max(axis=1)
    assert np.quantile(away, 0.8) < 0.05
    assert r1.min() >= 1.45


def test_errors_of_normalisation_are_as_large_as_they_say() -> None:
    F = with_errors(np.zeros((4000, Q.size)), np.random.default_rng(0), slow=0.0)
    assert np.std(F[:, 0] / Q[0]) == pytest.approx(0.01, rel=0.05)


# WT-RDF+.


def test_in_its_limit_the_wavelet_transform_is_the_sine_transform() -> None:
    F = np.random.default_rng(0).normal(size=(3, Q.size)) * Q
    kernel = WtRdf.sine(torch.from_numpy(Q), torch.from_numpy(R_OUT)).numpy()
    np.testing.assert_allclose(F @ kernel.T, sine(F, Q[-1]), atol=1e-6)


def test_parameters_stay_within_their_bounds_whatever_is_learned() -> None:
    network = WtRdf(16.0)
    for free in network.free.values():
        free.data.fill_(1e3)
    for name, value in network.parameters_now.items():
        low, high = BOUNDS[name]
        assert low <= float(value.detach()) <= high * (1 + 1e-12)


def test_the_start_is_what_was_asked_for() -> None:
    now = WtRdf(16.0, {"a": 30.0, "b": 7.0, "Kf": 1.001, "C": 0.02, "Lambda": 0.6}).parameters_now
    assert {name: float(value.detach()) for name, value in now.items()} == pytest.approx(
        {"a": 30.0, "b": 7.0, "Kf": 1.001, "C": 0.02, "Lambda": 0.6}
    )


def test_the_selective_loss_looks_at_the_peaks() -> None:
    truth = torch.zeros(1, 100)
    truth[0, 50] = 3.0
    on_peak, beside = truth.clone(), truth.clone()
    on_peak[0, 50] -= 0.5
    beside[0, 10] -= 0.5
    assert float(selective_loss(on_peak, truth)) == pytest.approx(5 * float(selective_loss(beside, truth)))


# Operators.


@pytest.mark.parametrize("q_max", Q_MAXIMA)
def test_coordinates_of_a_range_are_orthonormal(q_max: float) -> None:
    B = basis() * np.append(q_max + 1e-9 >= Q, True)[:, None] @ to_range(q_max)
    np.testing.assert_allclose(B.T @ B, np.eye(B.shape[1]), atol=1e-8)


def test_less_noise_never_widens_the_posterior(family: Any) -> None:
    one = fit_gaussian(family, 16.0)
    test = family[slice(0, 4)]
    sigma = [estimate([one, one], test.F, test.density, s, 16.0).sigma for s in (0.003, 0.01, 0.03)]
    assert np.all(sigma[0] <= sigma[1] + 1e-9)
    assert np.all(sigma[1] <= sigma[2] + 1e-9)


def test_the_posterior_covers_curves_of_its_own_family(family: Any, parts: structure.Partials) -> None:
    rng = np.random.default_rng(9)
    fresh = Family([[parts]], rng).draw(200, rng)
    one = fit_gaussian(family, 16.0)
    said = estimate([one, one], fresh.F + 0.01 * Q * rng.normal(size=fresh.F.shape), fresh.density, 0.01, 16.0)
    inside = np.abs(said.G - on_output(fresh.G)) < said.sigma
    assert 0.6 < inside[:, (R_OUT > 1.5) & (R_OUT < 7)].mean() < 0.8


def test_the_output_grid_is_the_truth_between_its_points() -> None:
    np.testing.assert_allclose(on_output(np.sin(2 * R)[None])[0], np.sin(2 * R_OUT), atol=2e-4)


# The network's own arithmetic.


@pytest.fixture(scope="module")
def bank(family: Any) -> Bank:
    gaussians = {q_max: [fit_gaussian(family, q_max)] * 2 for q_max in Q_MAXIMA}
    return Bank(gaussians, {q_max: WtRdf(q_max) for q_max in Q_MAXIMA})


@pytest.mark.parametrize("at", [2.3, 2.55, 2.7, 3.05])
def test_peak_and_end_of_the_shell_move_as_their_derivatives_say(bank: Bank, family: Any, at: float) -> None:
    """What σ of position, limit and N rests on, against the same curves with a small bump added to G."""
    G, density = (torch.from_numpy(one[:5]).float() for one in (on_output(family.G), family.density))
    bump = 0.05 * torch.exp(-(((bank.r - at) / 0.1) ** 2))

    def found(G: Any) -> tuple[Any, ...]:
        rdf = bank.r * G + 4 * math.pi * density[:, None] * bank.r.square()
        position, rise = bank._top(G)
        limit, shift = bank._limit(rdf, position)
        return position, rise, limit, shift

    position, rise, limit, shift = found(G)
    moved, _, ended, _ = found(G + bump)
    np.testing.assert_allclose(moved - position, (rise * bump).sum(1), rtol=0.15, atol=3e-4)
    np.testing.assert_allclose(ended - limit, (shift * bump).sum(1), rtol=0.15, atol=3e-4)
    assert np.abs(np.asarray([moved - position, ended - limit])).max() > 1e-3


# The exported network.


def inputs(F: Any, density: Any, q_max: float, sigma: float = 0.01) -> dict[str, Any]:
    n = len(F)
    return {
        "F": F.astype(np.float32),
        "noise": np.full(n, sigma, np.float32),
        "density": np.asarray(density, np.float32),
        "q_max": np.full(n, q_max, np.float32),
    }


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(FOLDER, device="cpu")


def test_a_batch_of_mixed_ranges_is_answered_as_each_alone(model: Any, parts: structure.Partials) -> None:
    test = truths([parts] * 3)
    both = inputs(test.F[:4], test.density[:4], 25.0)
    both["q_max"] = np.array(Q_MAXIMA, np.float32)
    together = model.run(both)
    for k, q_max in enumerate(Q_MAXIMA):
        alone = model.run(inputs(test.F[k : k + 1], test.density[k : k + 1], q_max))
        for name in OUTPUTS:
            np.testing.assert_allclose(together[name][k], alone[name][0], rtol=2e-3, atol=2e-4)


def test_its_derived_curves_follow_from_g_of_r(model: Any, parts: structure.Partials) -> None:
    test = truths([parts] * 3)
    said = model.run(inputs(test.F, test.density, 16.0))
    rho = test.density[:, None]
    np.testing.assert_allclose(said["g"], 1 + said["G"] / (4 * math.pi * rho * R_OUT), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(said["rdf"], R_OUT * said["G"] + 4 * math.pi * rho * R_OUT**2, rtol=1e-4, atol=1e-3)
    shells = first_shells(R_OUT, said["G"].astype(float), test.density)
    np.testing.assert_allclose(said["position"], shells.position, atol=2e-4)
    np.testing.assert_allclose(said["coordination"], shells.N, rtol=2e-4)


def test_a_thousandfold_better_measurement_is_not_less_certain(model: Any, parts: structure.Partials) -> None:
    test = truths([parts] * 3)
    sigma = [model.run(inputs(test.F, test.density, 16.0, s))["coordination_sigma"] for s in (0.03, 0.01, 0.003)]
    assert np.all(sigma[0] >= sigma[1])
    assert np.all(sigma[1] >= sigma[2])


@pytest.mark.parametrize("kind", ["crystal", "bragg_5_percent", "scale_10_percent", "noise_times_2", "spikes"])
def test_what_it_was_not_made_for_is_flagged(model: Any, parts: structure.Partials, kind: str) -> None:
    rng = np.random.default_rng(4)
    test = truths([parts] * 3)
    F, density = strange.KINDS[kind](test.F, test.density, rng)
    said = model.run(inputs(F + 0.01 * Q * rng.normal(size=F.shape), density, 16.0))
    assert np.all((said["novelty"] > 1) | (said["family"] < 0.5))


def test_the_card_says_the_grids_the_code_has() -> None:
    card = read_card(FOLDER)
    np.testing.assert_allclose(card.grid("q"), Q, atol=1e-9)
    np.testing.assert_allclose(card.grid("r"), R_OUT, atol=1e-9)
    assert tuple(card.outputs) == OUTPUTS
    assert (FOLDER / "model.onnx").stat().st_size < 5e6


# The check on a crystal.


def test_the_fit_finds_the_lattice_of_its_own_curve() -> None:
    r = np.arange(1.5, 20, 0.02)
    G = Fcc(r, 24.0)(np.array([3.527, 1.2, 0.006, 0.03, 0.005, 1.0]))
    found = fit_fcc(r, G, q_max=24.0, a=3.51, high=20.0)
    assert found.a_A == pytest.approx(3.527, abs=2e-4)
    assert found.residual < 0.02


# The card's figures.

AGAIN = (5, 25)
"""Compositions whose figures are made again: one between others, and the last one, which is the hardest."""


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return evaluate.evaluate(FOLDER, quick=True, compositions=AGAIN)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("x", AGAIN)
def test_the_card_repeats_what_evaluate_finds(figures: dict[str, Any], x: int) -> None:
    """Fewer draws of noise than the card's: medians over six structures agree to a fifth."""
    card, again = (one["by_composition"][str(x)] for one in (read_card(FOLDER).metrics, figures))
    for name in ("rw_q12", "rw_q16", "rw_q25", "height_pct_q16"):
        assert again[name] == pytest.approx(card[name], rel=0.2), name


@pytest.mark.timeout(600)
def test_no_baseline_comes_near(figures: dict[str, Any]) -> None:
    for name in evaluate.BASELINES:
        assert figures["rw_q16"] < figures[name]["rw_q16"], name


@pytest.mark.timeout(600)
def test_uncertainties_hold_on_compositions_left_out(figures: dict[str, Any]) -> None:
    for name, (least, most) in {"68": (0.5, 0.9), "95": (0.85, 1.0)}.items():
        for what in ("", "_n1", "_peak1"):
            assert least <= figures[f"coverage_{name}{what}"] <= most, (name, what)


@pytest.mark.timeout(600)
def test_strange_inputs_are_flagged_and_others_are_not(figures: dict[str, Any]) -> None:
    assert figures["ood_flagged"] > 0.9
    assert figures["false_flags"] < 0.15


def test_the_keys_that_are_promised_are_there(figures: dict[str, Any]) -> None:
    promised = """identity_max_diff peak1_mA_median peak1_mA_worst n1_pct_median n1_pct_worst height_pct_q16
        height_pct_q25 rw_q12 rw_q16 rw_q25 folds_won coverage_68 coverage_95 ood_flagged p99_ms n_test seed"""
    assert set(promised.split()) <= set(figures)


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("real_ni_da_A", -0.002, 0.002),
        ("real_mg2sio4_SiO_A", 1.61, 1.63),
        ("real_mg2sio4_MgO_A", 2.00, 2.06),
        ("real_argon_rw", 0.0, 0.02),
        ("real_ni_control_excess", -0.01, 0.03),
    ],
)
def test_measured_patterns_give_what_is_known_of_them(
    measured: dict[str, Any], key: str, least: float, most: float
) -> None:
    assert least <= measured[key] <= most


def test_the_artefacts_of_the_nickel_pattern_are_named(measured: dict[str, Any]) -> None:
    named = " ".join(measured["real_ni_artefacts"])
    assert "13.17–13.24" in named
    assert "15.87" in named


@pytest.fixture(scope="module")
def measured(model: Any, real_data: Any) -> dict[str, Any]:
    found: dict[str, Any] = evaluate.on_real(model, real_data)
    return found


# The boxes.


def test_the_boxes_are_as_far_from_published_values_as_the_card_says() -> None:
    card = read_card(FOLDER).metrics["boxes"]
    for name, figures_of_one in check.figures().items():
        assert figures_of_one == pytest.approx(card[name], rel=1e-3), name
