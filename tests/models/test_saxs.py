"""The SAXS model: formulas against closed forms, labels against their definition, the card against the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.infer import load_model, read_card
from streamer.sources.instrument import spheres

torch = pytest.importorskip("torch", reason="torch not installed: pip install 'streamer[train]'")
onnx = pytest.importorskip("onnx", reason="onnx not installed: pip install 'streamer[train]'")

from models import training  # noqa: E402
from models.saxs import evaluate, forms, simulate, train  # noqa: E402
from models.saxs.network import Exported, Network  # noqa: E402

pytestmark = pytest.mark.train

FOLDER = Path(train.__file__).parent
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


def tensor(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def catalogue() -> simulate.Spheroids:
    return simulate.Spheroids(torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def scene(catalogue: simulate.Spheroids) -> simulate.Scene:
    return simulate.Scene.draw(32, catalogue, torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return evaluate.evaluate(FOLDER, quick=True)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return read_card(FOLDER).metrics


# Formulas.


def test_a_spheroid_as_long_as_wide_is_a_sphere() -> None:
    x = torch.logspace(-2, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(forms.spheroid(x, tensor(1.0))[0], forms.sphere(x) ** 2)


@pytest.mark.parametrize("spread", [0.05, 0.15, 0.3])
def test_the_size_average_is_that_of_the_quadrature_over_lognormal_spheres(spread: float) -> None:
    x = simulate.Spheroids.X
    average = forms.size_average(x, forms.sphere(x)[None] ** 2, tensor(spread))[0]
    q = np.geomspace(0.01, 1.5, 60)  # beyond, forty nodes no longer resolve the oscillations
    expected = spheres(q, 4.0, spread, 0.01, 300.0) / spheres(np.zeros(1), 4.0, spread, 0.01, 300.0)
    found = np.interp(np.log(4 * q), x.log().numpy(), average.numpy())
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("form", [forms.guinier_porod, forms.unified])
def test_guinier_at_low_q_and_porod_at_high_q(form: Any) -> None:
    q = tensor(0.01, 0.02, 10.0, 20.0)
    I = form(q, tensor(3.0), tensor(3.7))[0]
    assert float((I[0] / I[1]).log()) == pytest.approx(3.0**2 / 3 * (0.02**2 - 0.01**2), rel=2e-2)
    assert float((I[2] / I[3]).log()) == pytest.approx(3.7 * math.log(2), rel=2e-2)


def test_guinier_porod_is_continuous_where_its_parts_meet() -> None:
    q_1 = math.sqrt(1.5 * 3.5) / 2.0
    I = forms.guinier_porod(tensor(q_1 * (1 - 1e-9), q_1 * (1 + 1e-9)), tensor(2.0), tensor(3.5))[0]
    assert float(I[0]) == pytest.approx(float(I[1]), rel=1e-7)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.4])
def test_the_compressibility_of_hard_spheres_is_percus_yevick(fraction: float) -> None:
    S = forms.hard_spheres(tensor(1e-3, 500.0), tensor(5.0), tensor(fraction))[0]
    assert float(S[0]) == pytest.approx((1 - fraction) ** 4 / (1 + 2 * fraction) ** 2, rel=2e-2)
    assert float(S[1]) == pytest.approx(1.0, abs=1e-4)


def test_teubner_strey_peaks_where_its_two_lengths_say() -> None:
    q = torch.linspace(0.05, 2, 20000, dtype=torch.float64)
    peak = float(q[forms.teubner_strey(q, tensor(10.0), tensor(8.0))[0].argmax()])
    assert peak == pytest.approx(math.sqrt((2 * math.pi / 10) ** 2 - 1 / 8**2), abs=2e-4)


def test_a_precipitate_that_took_its_solute_from_around_it_scatters_nothing_forward() -> None:
    q = torch.logspace(-4, 1, 500, dtype=torch.float64)
    I = forms.depleted_precipitate(q, tensor(5.0), tensor(2.0))[0]
    assert float(I[0]) < 1e-9
    assert float(I.amax()) == 1.0


# Detectability.


def test_no_change_within_the_normal_family_can_be_detected(scene: simulate.Scene) -> None:
    weights = torch.randn(32, 7, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = scene.truth.amax(-1)[:, None, None] / scene.directions.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    change = 1e-3 * (weights * scale * scene.directions).sum(1)
    variance = scene.variance(scene.truth)
    whole = (change.square() / variance).sum(-1).sqrt()
    assert float((simulate.detectability(change, scene.directions, variance) / whole).amax()) < 1e-3


def test_detectability_never_exceeds_the_distance_to_the_sample_itself(scene: simulate.Scene) -> None:
    delta, variance = simulate.aggregation(scene), scene.variance(scene.truth)
    whole = (delta.square() / variance).sum(-1).sqrt()
    assert bool((simulate.detectability(delta, scene.directions, variance) <= whole * (1 + 1e-6)).all())


def test_ten_times_the_fault_is_ten_times_as_detectable(scene: simulate.Scene) -> None:
    delta, variance = simulate.phase_separation(scene), scene.variance(scene.truth)
    once, tenfold = (simulate.detectability(factor * delta, scene.directions, variance) for factor in (1, 10))
    torch.testing.assert_close(tenfold, 10 * once)


def test_labels_follow_from_detectability(catalogue: simulate.Spheroids) -> None:
    curves = simulate.simulate(400, catalogue, torch.Generator().manual_seed(2))
    has_photons = ~(curves.inputs[:, 2] == 0).all(-1)
    D, label = curves.detectability[has_photons], curves.label[has_photons]
    assert bool(((label == 1) == (D >= simulate.ANOMALOUS_FROM)).all())
    assert bool(((label == 0) == (D < simulate.NORMAL_BELOW)).all())
    assert {0, 1} <= set(label.tolist())


def test_every_kind_of_fault_is_drawn_and_normal_curves_have_none(catalogue: simulate.Spheroids) -> None:
    curves = simulate.simulate(400, catalogue, torch.Generator().manual_seed(2))
    assert set(curves.fault.tolist()) == set(range(len(simulate.NAMES)))
    assert not curves.detectability[curves.fault == 0].any()


def test_the_same_seed_makes_the_same_curves(catalogue: simulate.Spheroids) -> None:
    once, again = (simulate.simulate(64, catalogue, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(once.inputs, again.inputs)
    assert bool(torch.isfinite(once.inputs).all())


# Training and export.


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, _ = train.train(8, seed=4, checkpoint=tmp_path / "whole.pt")
    train.train(8, seed=4, checkpoint=tmp_path / "half.pt", stop_after=4)
    resumed, _ = train.train(8, seed=4, checkpoint=tmp_path / "half.pt")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_the_exported_file_says_what_torch_says(tmp_path: Path, catalogue: simulate.Spheroids) -> None:
    torch.manual_seed(0)
    network = Exported(Network().eval(), draws=4, seed=1)
    x = simulate.simulate(32, catalogue, torch.Generator().manual_seed(9)).inputs
    path = tmp_path / "model.onnx"
    training.export(network, x[:2], path, inputs=["curve"], outputs=["anomaly", "sigma", "entropy"])
    assert training.largest_difference(network, path, x) < 1e-4


def test_a_card_survives_being_written_and_read(tmp_path: Path) -> None:
    card = training.read_card(FOLDER / "card.toml")
    training.write_card(tmp_path / "card.toml", card)
    assert training.read_card(tmp_path / "card.toml") == card


# The model that is shipped.


def test_the_file_is_one_small_graph_without_random_operators() -> None:
    path = FOLDER / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    assert path.stat().st_size < 5e6
    assert graph.opset_import[0].version == read_card(FOLDER).opset >= 18
    assert not RANDOM & {node.op_type for node in graph.graph.node}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def test_the_grid_of_the_card_is_the_one_it_was_trained_on() -> None:
    np.testing.assert_allclose(read_card(FOLDER).grid("q"), simulate.GRID)


def test_an_answer_does_not_depend_on_the_batch_it_came_in(catalogue: simulate.Spheroids) -> None:
    model = load_model(FOLDER, device="cpu")
    x = simulate.simulate(16, catalogue, torch.Generator().manual_seed(8)).inputs.numpy()
    together = model.run({"curve": x})["anomaly"]
    alone = [model.run({"curve": x[i : i + 1]})["anomaly"][0] for i in range(16)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_reference_rows_change_nothing_yet(catalogue: simulate.Spheroids) -> None:
    model = load_model(FOLDER, device="cpu")
    x = simulate.simulate(16, catalogue, torch.Generator().manual_seed(8)).inputs.numpy()
    other = x.copy()
    other[:, 3:] = 1.0
    np.testing.assert_array_equal(model.run({"curve": x})["anomaly"], model.run({"curve": other})["anomaly"])


@pytest.mark.parametrize("name", ["auroc", "accuracy"])
def test_the_card_tells_what_is_measured(name: str, figures: dict[str, Any], metrics: dict[str, Any]) -> None:
    # Five standard errors of a proportion over the curves of the quick run; instruments are shared by 128 curves.
    tolerance = 5 * math.sqrt(metrics[name] * (1 - metrics[name]) / (figures["n_mixed"] / 8))
    assert figures[name] == pytest.approx(metrics[name], abs=tolerance)


def test_the_probabilities_are_as_calibrated_as_the_card_says(figures: dict[str, Any], metrics: dict[str, Any]) -> None:
    assert figures["ece"] < metrics["ece"] + 0.03


def test_false_alarms_are_as_rare_as_the_card_says(figures: dict[str, Any], metrics: dict[str, Any]) -> None:
    expected = metrics["false_alarms_single_frame"] * figures["n_normal"] / metrics["n_normal"]
    assert abs(figures["false_alarms_single_frame"] - expected) <= 5 * math.sqrt(8 * expected + 1)


def test_clear_faults_are_found_as_often_as_the_card_says(figures: dict[str, Any], metrics: dict[str, Any]) -> None:
    for bin_of_D, recall in metrics["recall_by_D"].items():
        error = math.sqrt(max(recall * (1 - recall), 0.01) / (figures["n_by_D"][bin_of_D] / 8))
        assert figures["recall_by_D"][bin_of_D] == pytest.approx(recall, abs=5 * error)


def test_stable_real_series_raise_no_alarm(real_data: Path) -> None:
    found = evaluate.on_real(load_model(FOLDER, device="cpu"), real_data)
    for series in ("GI2_A9_19_001", "GIbuf2_A9_18_001"):
        assert found[series]["alarms"] == 0


def test_the_card_quotes_the_real_series_as_measured(real_data: Path, metrics: dict[str, Any]) -> None:
    found = evaluate.on_real(load_model(FOLDER, device="cpu"), real_data)
    for series, said in metrics["real"].items():
        assert found[series]["anomaly"] == pytest.approx(said["anomaly"], abs=2e-3)
