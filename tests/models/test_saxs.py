"""The SAXS models: formulas against closed forms, distances against their definition, the card against the file."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.infer import load_model, read_card
from streamer.sources.instrument import spheres as lognormal_spheres

torch = pytest.importorskip("torch", reason="torch not installed: pip install 'streamer[train]'")
onnx = pytest.importorskip("onnx", reason="onnx not installed: pip install 'streamer[train]'")

from models import training  # noqa: E402
from models.saxs import (  # noqa: E402
    bank,
    calibrate,
    defects,
    distance,
    evaluate,
    faults,
    forms,
    frames,
    pool,
    real,
    strangers,
    train,
)
from models.saxs.instruments import GRID, Instrument  # noqa: E402
from models.saxs.network import Exported, Network, Tables  # noqa: E402
from models.saxs.samples import Q, Spheroids  # noqa: E402
from models.saxs.simulate import STRANGE, Mix, Scene, detectability, simulate  # noqa: E402

pytestmark = pytest.mark.train

FOLDER = Path(train.__file__).parent
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
PER_CM = 1e7
"""Per nm in per cm."""


def tensor(*values: float) -> Any:
    return torch.tensor(values)


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def spheroids() -> Spheroids:
    return Spheroids(generator(5))


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument.draw(generator(6))


@pytest.fixture(scope="module")
def scene(spheroids: Spheroids, instrument: Instrument) -> Scene:
    return Scene.draw(64, spheroids, instrument, generator(7))


# Formulas.


def test_a_spheroid_as_long_as_wide_is_a_sphere() -> None:
    x = torch.logspace(-2, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(forms.spheroid(x, tensor(1.0).double())[0], forms.sphere(x) ** 2)


@pytest.mark.parametrize("spread", [0.06, 0.15, 0.33])
def test_voids_are_lognormal_spheres_on_an_absolute_scale(spread: float) -> None:
    q = np.geomspace(0.05, 1.5, 60)  # beyond, forty nodes no longer resolve the oscillations
    expected = lognormal_spheres(q, 4.0, spread, 1.0, defects.ELECTRONS_PER_NM3)
    found = defects.spheres(torch.from_numpy(q).float(), tensor(4.0), tensor(spread))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-4 * expected.max())


def test_edge_dislocations_fall_with_the_third_power_between_their_cutoffs() -> None:
    q = tensor(0.1, 0.2)
    I = defects.edge(q, tensor(5e4), tensor(1e-3))[0]
    assert float((I[0] / I[1]).log2()) == pytest.approx(3, abs=1e-3)
    assert float(I[0]) == pytest.approx(11.5, rel=0.01)  # copper, 10¹⁵ m⁻², 0.1 nm⁻¹


def test_the_powder_average_of_an_edges_strain_is_the_closed_form() -> None:
    """|A|² of a straight line of length L with the amplitude of its dilatation, averaged over directions by numbers.

    A(q) = ρ_e b k' sin φ / q_⊥ times the line's own sinc; its square averages to (π/2) L q⁻³ (ρ_e b k')² for qL ≫ 1.
    """
    L, q = 400.0, 1.0
    n = 400_000
    cosine = -1 + (np.arange(n) + 0.5) * 2 / n
    across = q * np.sqrt(1 - cosine**2)
    line = np.sinc(q * L * cosine / 2 / np.pi) * L
    # ⟨sin²φ⟩ = 1/2 around the line; the average over directions is half the integral over the cosine.
    average = 0.5 * (line**2 * 0.5 / across**2).sum() * 2 / n
    assert average / (math.pi / 2 * L / q**3) == pytest.approx(1, abs=0.02)


def test_monotonic_laue_scattering_of_vacancies_in_copper() -> None:
    I = defects.laue(tensor(1.0), tensor(0.0), tensor(0.3))
    assert 1e-3 * float(I[0, 0]) == pytest.approx(5.7e-3, rel=0.02)


def test_a_precipitate_that_took_its_solute_from_around_it_scatters_nothing_forward() -> None:
    I = defects.precipitates(torch.tensor([1e-3, 0.3]), tensor(5.0), tensor(0.1), tensor(2.0))[0]
    assert float(I[0] / I[1]) < 1e-6


def test_a_precipitate_with_a_wide_zone_is_a_sphere_at_high_q() -> None:
    q = torch.linspace(0.5, 1.0, 20)
    ratio = defects.precipitates(q, tensor(6.0), tensor(0.2), tensor(2.9)) / defects.spheres(
        q, tensor(6.0), tensor(0.2)
    )
    assert float(ratio.mean()) == pytest.approx(1.1, abs=0.1)


def test_the_invariant_of_teubner_and_strey_is_that_of_its_fluctuations() -> None:
    q = torch.linspace(1e-3, 400, 800_000, dtype=torch.float64)
    I = forms.teubner_strey(q, tensor(10.0).double(), tensor(4.0).double())[0]
    assert float(torch.trapezoid(q**2 * I, q)) == pytest.approx(2 * math.pi**2, rel=5e-3)


def test_late_phase_separation_peaks_at_its_maximum() -> None:
    q = torch.linspace(0.1, 3, 5000)
    I = forms.furukawa(q, tensor(0.8), tensor(6.0))[0]
    assert float(q[I.argmax()]) == pytest.approx(0.8, abs=1e-3)
    assert float(I.amax()) == pytest.approx(1.0)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.4])
def test_the_compressibility_of_hard_spheres_is_percus_yevick(fraction: float) -> None:
    S = forms.hard_spheres(tensor(1e-3, 500.0).double(), tensor(5.0).double(), tensor(fraction).double())[0]
    assert float(S[0]) == pytest.approx((1 - fraction) ** 4 / (1 + 2 * fraction) ** 2, rel=2e-2)
    assert float(S[1]) == pytest.approx(1.0, abs=1e-4)


def test_guinier_porod_is_continuous_where_its_parts_meet() -> None:
    q_1 = math.sqrt(1.5 * 3.5) / 2.0
    q = tensor(q_1 * (1 - 1e-6), q_1 * (1 + 1e-6)).double()
    I = forms.guinier_porod(q, tensor(2.0).double(), tensor(3.5).double())[0]
    assert float(I[0]) == pytest.approx(float(I[1]), rel=1e-5)


# Against sasmodels, which was not written here. It compiles its models with the system's C compiler.


def theirs(name: str, q: np.ndarray, **parameters: Any) -> np.ndarray:
    core = pytest.importorskip("sasmodels.core", reason="sasmodels not installed: pip install 'streamer[test]'")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("sasmodels needs a C compiler: install gcc")
    from sasmodels.direct_model import call_kernel

    model = core.load_model(name, dtype="double", platform="dll")
    return np.asarray(call_kernel(model.make_kernel([q]), {"background": 0.0, "scale": 1.0} | parameters))


ANGSTROM = np.geomspace(0.005, 0.3, 80)


def proportional(ours: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    scale = np.exp(np.log(ours / expected).mean())
    np.testing.assert_allclose(ours / scale, expected, rtol=rtol)


def test_spheres_on_an_absolute_scale_are_those_of_sasmodels() -> None:
    sld = defects.ELECTRON_RADIUS_NM * defects.ELECTRONS_PER_NM3 * 1e4  # in 10⁻⁶ Å⁻²
    spread = {"radius_pd": 0.2, "radius_pd_n": 120, "radius_pd_nsigma": 6.0, "radius_pd_type": "lognormal"}
    expected = theirs("sphere", ANGSTROM, radius=40.0, sld=sld, sld_solvent=0.0, **spread)
    ours = defects.spheres(torch.from_numpy(10 * ANGSTROM).float(), tensor(4.0), tensor(0.2))[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=0.03, atol=1e-4 * expected.max())


def test_teubner_strey_is_that_of_sasmodels() -> None:
    expected = theirs("teubner_strey", ANGSTROM, volfraction_a=0.5, sld_a=1.0, sld_b=0.0, d=100.0, xi=50.0)
    ours = forms.teubner_strey(torch.from_numpy(10 * ANGSTROM), tensor(10.0).double(), tensor(5.0).double())[0].numpy()
    proportional(ours, expected, rtol=1e-4)


def test_guinier_porod_is_that_of_sasmodels() -> None:
    expected = theirs("guinier_porod", ANGSTROM, rg=30.0, s=0.0, porod_exp=3.6)
    ours = forms.guinier_porod(torch.from_numpy(10 * ANGSTROM), tensor(3.0).double(), tensor(3.6).double())[0].numpy()
    proportional(ours, expected, rtol=1e-4)


def test_hard_spheres_are_those_of_sasmodels() -> None:
    expected = theirs("hardsphere", ANGSTROM, radius_effective=50.0, volfraction=0.2)
    ours = forms.hard_spheres(torch.from_numpy(10 * ANGSTROM), tensor(5.0).double(), tensor(0.2).double())[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


# What is simulated.


@pytest.mark.parametrize("kind", defects.KINDS, ids=lambda kind: kind.name)
def test_every_defect_scatters_something_and_nothing_negative(kind: defects.Kind) -> None:
    I = kind(Q, torch.rand((64, defects.MOST_PARAMETERS), generator=generator(1)))
    assert bool(torch.isfinite(I).all())
    assert bool((I >= 0).all())
    assert bool((I.amax(-1) > 0).all())


def test_detectability_ignores_what_a_change_of_flux_explains(scene: Scene) -> None:
    variance = scene.variance(scene.truth)
    D = detectability(scene.truth, scene.truth, variance)
    information = (scene.truth.double() ** 2 / variance).sum(-1)
    torch.testing.assert_close(D.double(), (1 / (0.005**2 + 1 / information)).sqrt(), rtol=1e-3, atol=1e-3)


def test_ten_times_the_defect_is_ten_times_as_detectable(scene: Scene) -> None:
    delta, variance = scene.truth**0.5, scene.variance(scene.truth)
    once, tenfold = (detectability(factor * delta, scene.truth, variance) for factor in (1, 10))
    torch.testing.assert_close(tenfold, 10 * once, rtol=1e-3, atol=1e-4)


def test_a_defect_is_as_detectable_as_was_asked_for(scene: Scene, instrument: Instrument) -> None:
    kind, u = defects.draw(torch.full((64,), 1), generator(3))
    unit = instrument.at_grid(defects.intensity(Q, kind, u))
    _, D = scene.scaled_to(unit, torch.full((64,), 20.0))
    assert float(((D - 20).abs() < 0.2).float().mean()) > 0.8
    assert bool((D < 20.5).all())


def test_z_scores_of_frames_in_order_have_unit_variance(spheroids: Spheroids) -> None:
    honest = replace(Instrument.draw(generator(2)), sigma_scale=1.0, systematic=0.003, read_noise=0.0)
    curves = simulate(1500, spheroids, generator(4), Mix.normal(), instrument=honest)
    z, known = torch.sinh(curves.inputs[:, 3]), curves.inputs[:, 4]
    assert float((z**2).sum() / known.sum()) == pytest.approx(1, abs=0.08)


def test_frames_made_pixel_by_pixel_are_like_those_of_the_shortcut(spheroids: Spheroids) -> None:
    camera = frames.Camera.at(0.8)
    long_way = frames.photograph(60, spheroids, generator(1), camera, Mix.normal())
    shortcut = simulate(1500, spheroids, generator(1), Mix.normal(), instrument=camera.instrument)
    spread = [(torch.sinh(c.inputs[:, 3]) ** 2).sum(-1) / c.inputs[:, 4].sum(-1) for c in (long_way, shortcut)]
    assert float(spread[0].mean()) == pytest.approx(float(spread[1].mean()), abs=0.15)
    assert torch.equal(long_way.inputs[0, 2] > 0, camera.instrument.measured)


def test_every_fault_is_drawn_and_labelled_when_it_can_be_seen(spheroids: Spheroids) -> None:
    curves = simulate(1500, spheroids, generator(9), Mix((1.0,) + (0.0,) * 6, faulty=1.0, with_reference=1.0))
    assert bool((curves.faults.sum(0) > 0).all())
    assert torch.equal(curves.faults.sum(-1) > 0, curves.D_fault >= faults.PRESENT_FROM)


def test_the_same_seed_makes_the_same_curves(spheroids: Spheroids) -> None:
    once, again = (simulate(64, spheroids, generator(3)) for _ in range(2))
    assert torch.equal(once.inputs, again.inputs)
    assert bool(torch.isfinite(once.inputs).all())


def test_strangers_are_positive_and_come_in_every_shape() -> None:
    I = strangers.draw(400, generator(1))
    assert bool((I > 0).all())
    assert bool(torch.isfinite(I).all())
    assert float(I.amax()) <= 1.0001
    slope = (I[:, -1] / I[:, 0]).log() / (Q[-1] / Q[0]).log()
    assert float(slope.amin()) < -2
    assert float(slope.amax()) > 0


def test_strangers_bear_a_label_of_their_own_and_are_as_detectable_as_defects(spheroids: Spheroids) -> None:
    curves = simulate(800, spheroids, generator(2), Mix(faulty=0.0, strange=0.5))
    is_strange = curves.label == STRANGE
    assert float(is_strange.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert bool((curves.D[is_strange] > 0.4).all())
    assert bool((curves.kind[is_strange] == -1).all())


# The bank, and distances.


def test_elimination_solves_what_a_solver_solves() -> None:
    A = torch.rand((7, 5, 5), generator=generator(1))
    G, right = A @ A.mT + torch.eye(5), torch.rand((7, 1, 5), generator=generator(2))
    torch.testing.assert_close(bank.solve(G, right), torch.linalg.solve(G, right, left=False))


def test_the_bank_finds_what_the_formulas_of_one_class_after_the_other_say(spheroids: Spheroids) -> None:
    x = simulate(24, spheroids, generator(8), Mix(with_reference=1.0)).inputs.double()
    weight = 10 ** -x[:, 5:6] * x[:, 4:5]
    flux, kappa = bank.stability_factor(weight * 10 ** x[:, 6:7])
    z = torch.sinh(x[:, 3:4]) * x[:, 4:5]
    templates = bank.Templates.make(bank.typical()).without(4)
    found = bank.Bank(templates).double()(z, weight, flux, kappa)

    def projected(a: Any) -> Any:
        return a - (1 - kappa) * (a * flux).sum(-1, keepdim=True) * flux

    for c in (1, 2, 3, 5, 6):
        rows = templates.label == c
        a = projected(weight * templates.curves[rows].double())
        t = (a * z).sum(-1) / a.norm(dim=-1)
        best, top = t.max(-1)
        torch.testing.assert_close(found.t[:, 0, c], best, rtol=1e-4, atol=1e-4)
        tangents = templates.tangents[rows].half().double()
        A = projected(weight * torch.cat((templates.curves[rows][top][:, None], tangents[top]), 1))
        length = A.norm(dim=-1, keepdim=True).clamp(min=1e-10)
        trust = bank.TRUST * best.clamp(min=1)[:, None] * (length[:, 1:] / length[:, :1])[..., 0]
        ridge = 1e-4 + torch.nn.functional.pad(1 / trust.clamp(min=1e-3) ** 2, (1, 0))
        G = A / length @ (A / length).mT + torch.diag_embed(ridge)
        step = torch.linalg.solve(G, A / length @ z.mT) * (best > 0)[:, None, None]
        left = z - step.mT @ (A / length)
        torch.testing.assert_close(found.residual[:, c], left[:, 0], rtol=1e-3, atol=1e-3)
        gain = (z.square().sum((1, 2)) - left.square().sum((1, 2))).clamp(min=0)
        evidence = torch.logsumexp(bank.log_marginal(t) + templates.log_prior[rows], -1)
        evidence = (evidence + (gain - best.clamp(min=0) ** 2).clamp(min=0) / 2).clamp(min=-20)
        torch.testing.assert_close(found.evidence[:, 0, c], evidence, rtol=1e-3, atol=1e-3)
    assert bool((found.evidence[..., 4] == -20).all())
    torch.testing.assert_close(found.evidence[..., 0], torch.zeros_like(found.evidence[..., 0]))
    torch.testing.assert_close(found.residual[:, 0], z[:, 0])


@pytest.mark.parametrize("t", [-4.0, -1.0, 0.0, 1.0, 3.0, 8.0])
def test_the_marginal_likelihood_of_one_template_is_its_integral(t: float) -> None:
    D = np.geomspace(0.5, 300, 40_001)
    expected = np.log(np.trapezoid(np.exp(D * t - D**2 / 2), np.log(D)) / np.log(600))
    assert float(bank.log_marginal(tensor(t))) == pytest.approx(expected, abs=0.14)


def test_a_defect_is_nowhere_near_other_classes_and_close_to_its_own(scene: Scene, instrument: Instrument) -> None:
    kind, u = defects.draw(torch.arange(64) % 6 + 1, generator(3))
    unit = instrument.at_grid(defects.intensity(Q, kind, u)) / 0.5
    strength, D = scene.scaled_to(unit, torch.full((64,), 30.0))
    delta = strength[:, None] * unit
    asked = bank.Bank(bank.Templates.make(instrument, 2.0)).eval()
    found = distance.distances(delta, scene.truth, scene.variance(scene.truth + delta), asked)
    own = found[torch.arange(64), torch.arange(64) % 6 + 1]
    torch.testing.assert_close(found[:, 0], D, rtol=0.05, atol=0.1)
    assert float(own.median()) < 1.0
    assert bool((found <= D[:, None] + 0.5).all())


def test_the_smallest_distance_passes_over_the_own_class() -> None:
    found = distance.smallest(tensor(9.0, 1.0, 4.0, 6.0, 7.0, 8.0, 5.0)[None], torch.tensor([1]))
    assert found.tolist() == [4.0]


def test_a_bank_without_a_class_never_names_it(spheroids: Spheroids) -> None:
    asked = pool.evidence(without=3)
    features, _, _ = asked(simulate(32, spheroids, generator(1), Mix.material(3)).inputs)
    assert bool((features[:, 3] <= features[:, :7].amax(-1) - 1).all())


# Calibration.


def test_a_conformal_table_ends_at_its_floor_and_is_right_in_between() -> None:
    scores = torch.randn(20_000, generator=generator(1))
    x, y = calibrate.table(scores)
    assert float(y[-1]) == pytest.approx(math.log10(20_001), abs=1e-3)
    at = float(x[12])
    assert 10 ** -float(y[12]) == pytest.approx(float((scores >= at).float().mean()), rel=0.1)
    assert bool((x.diff() >= 0).all())
    assert bool((y.diff() >= 0).all())


# Training and export.


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, asked = tmp_path_factory.mktemp("pool"), pool.evidence()
    for seed in (1, 2):
        shard = pool.Shard.of(pool.make(seed, instruments=2, per_instrument=128), asked)
        training.write_checkpoint(folder / f"shard_{seed:05d}.pt", **vars(shard))
    return folder


def trained(shards: Path, checkpoint: Path, steps: int, *, until: int | None = None) -> Network:
    g = training.seeded(4)
    network = Network()
    train.train(network, pool.batches(shards, 64, g), g, steps, checkpoint, stop_after=until)
    return network


def test_a_training_that_was_stopped_keeps_what_it_learned(shards: Path, tmp_path: Path) -> None:
    trained(shards, tmp_path / "run.pt", 6, until=3)
    before = training.read_checkpoint(tmp_path / "run.pt")
    resumed = trained(shards, tmp_path / "run.pt", 6)
    after = training.read_checkpoint(tmp_path / "run.pt")
    assert (before["step"], after["step"]) == (3, 6)
    assert not torch.equal(before["network"]["embed.mean"], resumed.embed.mean)


@pytest.mark.parametrize("is_faithful", [False, True])
def test_every_learned_layer_of_the_faithful_network_has_a_posterior(is_faithful: bool) -> None:
    layers = [*Network(is_faithful=is_faithful).convolutions, Network(is_faithful=is_faithful).embed]
    assert all(layer.is_bayesian == is_faithful for layer in layers)
    assert Network(is_faithful=is_faithful).divergence().item() > 0


def test_the_draws_of_the_faithful_network_are_whole_networks(spheroids: Spheroids) -> None:
    network = Network(is_faithful=True).eval()
    whole = Exported(network, bank.Templates.make(bank.typical()), draws=3, seed=1).eval()
    x = simulate(8, spheroids, generator(9)).inputs
    with torch.no_grad():
        features, left, _ = whole.evidence(x)
        seen = torch.cat((x, left), 1)
        together = whole.embeddings(seen, features)
        for k in range(3):
            one = seen
            for layer, pooled, name in zip(network.convolutions, (4, 4, 2), range(3), strict=True):
                weight = getattr(whole, f"trunk_{name}").unflatten(0, (3, -1))[k]
                one = torch.nn.functional.max_pool1d(torch.relu(layer.apply(one, weight, layer.bias)), pooled)
            one = torch.relu(
                network.embed.apply(torch.cat((one.flatten(1), features), -1), whole.trunk_3[k], network.embed.bias)
            )
            torch.testing.assert_close(together[k], one, rtol=1e-4, atol=1e-4)


def test_the_graph_of_the_fast_network_embeds_as_the_network_does(spheroids: Spheroids) -> None:
    network = Network().eval()
    whole = Exported(network, bank.Templates.make(bank.typical()), draws=3, seed=1).eval()
    x = simulate(8, spheroids, generator(9)).inputs
    with torch.no_grad():
        features, left, _ = whole.evidence(x)
        seen = torch.cat((x, left), 1)
        torch.testing.assert_close(whole.embeddings(seen, features), network.embedding(seen, features))


def test_tables_look_up_what_is_asked_and_add_what_belongs_together() -> None:
    x = torch.linspace(0, 1, 24)
    each = torch.stack((torch.stack((x, 3 * x)), torch.stack((x, 5 * x))))
    tables = Tables(each, asked=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), sums=torch.tensor([[2.0, 1.0]]))
    found = tables(torch.tensor([[0.4, 0.2], [-1.0, 7.0]]))
    torch.testing.assert_close(found, torch.tensor([[2 * 0.6 + 2.0], [2 * 3.0 + 0.0]]))


def test_a_card_survives_being_written_and_read(tmp_path: Path) -> None:
    card = training.read_card(FOLDER / "card.toml")
    training.write_card(tmp_path / "card.toml", card)
    assert training.read_card(tmp_path / "card.toml") == card


# The models that are shipped.


SHIPPED = [FOLDER, FOLDER.parent / "saxs_faithful"]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_file_is_one_small_graph_without_random_operators(folder: Path) -> None:
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    assert path.stat().st_size < 5e6
    assert graph.opset_import[0].version == read_card(folder).opset >= 18
    assert not RANDOM & {node.op_type for node in graph.graph.node}
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_grid_of_the_card_is_the_one_it_was_trained_on(folder: Path) -> None:
    np.testing.assert_allclose(read_card(folder).grid("q"), GRID)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_an_answer_is_the_same_again_and_in_any_batch(folder: Path, spheroids: Spheroids) -> None:
    model = load_model(folder, device="cpu")
    x = simulate(16, spheroids, generator(8)).inputs.numpy()
    together, again = (model.run({"curve": x})["classes"] for _ in range(2))
    np.testing.assert_array_equal(together, again)
    alone = [model.run({"curve": x[i : i + 1]})["classes"][0] for i in range(16)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_probabilities_add_up_and_uncertainties_are_parts_of_a_whole(folder: Path, spheroids: Spheroids) -> None:
    said = load_model(folder, device="cpu").run({"curve": simulate(128, spheroids, generator(8)).inputs.numpy()})
    np.testing.assert_allclose(said["classes"].sum(-1), 1, atol=1e-4)
    np.testing.assert_allclose(said["aleatoric"] + said["epistemic"], said["total"], atol=1e-3)
    assert (said["epistemic"] >= 0).all()
    assert ((said["faults"] >= 0) & (said["faults"] <= 1)).all()


def test_the_card_tells_what_is_measured() -> None:
    found = evaluate.on_classes(evaluate.classification(evaluate.TEST_SEED, 4))
    said = read_card(FOLDER).metrics
    n = found["n_accuracy_7_D5"]
    assert found["accuracy_7_D5"] == pytest.approx(said["accuracy_7_D5"], abs=5 * math.sqrt(0.05 / n))
    assert found["novelty_auroc_mean"] == pytest.approx(said["novelty_auroc_mean"], abs=0.04)


def test_probabilities_are_as_calibrated_as_the_card_says() -> None:
    found = evaluate.on_mixture(evaluate.mixture(evaluate.TEST_SEED + 1000, 8), "ece")
    assert found["ece"] < read_card(FOLDER).metrics["ece"] + 0.03


def test_stable_real_series_raise_no_alarm_and_the_one_that_changes_does(real_data: Path) -> None:
    found = real.figures(real_data)
    assert found["glucose isomerase"]["alarms"] == []
    assert found["its buffer"]["alarms"] == []
    assert found["lysozyme 8 mg/ml"]["alarms"]


def test_a_drifting_buffer_is_reported(real_data: Path) -> None:
    assert real.figures(real_data)["lysozyme buffer"]["alarms"]


def test_every_real_curve_loads_or_is_refused_with_the_reason(real_data: Path) -> None:
    said = real.every_curve(real_data)
    assert sum(not reason for reason in said.values()) >= 45
    assert "same multiple of I" in said["APS_DND-CAT.TXT"]
    assert all(len(reason) > 15 for reason in said.values() if reason)
