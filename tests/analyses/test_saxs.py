"""The SAXS analysis on simulated frames: geometry, masks, late joins, and the demonstration it was made for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from streamer.analyses.saxs import CLASSES, Saxs
from streamer.commission import commission
from streamer.infer import find_model, read_card, require_tensors
from streamer.records import BadFrame, BadInput, BadModel, Frame, Result, SeriesKey, SeriesStart
from streamer.reduce.commissioned import write_commissioned
from streamer.reduce.detector import geometry_of
from streamer.sources import Message
from streamer.sources.simulated import CHANNEL, Simulated


def simulated(fault: str = "", mean: float = 3.0) -> Simulated:
    return Simulated(detector="128k", frames=300, rate="max", fault=fault, mean=mean, seed=11)


def frames(source: Simulated, *numbers: int) -> Iterator[Frame]:
    for number in numbers:
        message = Message(parts=("image", number), kind="image", nbytes=0, received_ns=7)
        yield from (record for record in source.decode(message) if isinstance(record, Frame))


def one_frame(source: Simulated, number: int = 0) -> Frame:
    return next(frames(source, number))


def analysed(saxs: Saxs, *images: Frame) -> list[Result]:
    reduced = [saxs.reduce(image) for image in images]
    assert saxs.model is not None
    said = saxs.model.run({"curve": np.stack([one.inputs["curve"] for one in reduced])})
    return [saxs.interpret(one, {name: rows[i] for name, rows in said.items()}) for i, one in enumerate(reduced)]


@pytest.fixture(scope="module")
def saxs() -> Saxs:
    return Saxs(device="cpu")


@pytest.fixture(scope="module")
def poni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geometry") / "instrument.poni"
    geometry_of(simulated().start, CHANNEL).write(path)
    return path


def test_a_normal_sample_is_not_taken_for_an_anomalous_one(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    results = analysed(saxs, *frames(source, *range(12)))
    assert np.median([float(result["anomaly"].value) for result in results]) < 0.55


def test_a_frame_without_photons_is_not_judged(saxs: Saxs) -> None:
    source = simulated("beam_loss@0")
    saxs.begin(source.start)
    [result] = analysed(saxs, one_frame(source))
    assert np.isnan(result["anomaly"].value)
    assert result["total"].value == 0


def test_every_quantity_that_is_promised_is_in_the_result(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    [result] = analysed(saxs, one_frame(source))
    assert set(result.quantities) == {*saxs.quantities, *saxs.curves}


def test_the_profile_carries_sigma_axis_and_unit(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    profile = saxs.reduce(one_frame(source)).quantities["profile"]
    q, unit = profile.axes["q"]
    assert (unit, q.shape, np.shape(profile.value), np.shape(profile.sigma)) == ("1/nm", (1000,), (1000,), (1000,))
    assert np.all(np.diff(q) > 0)


def test_the_mean_count_is_that_of_the_pixels_that_are_used(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    frame = one_frame(source)
    total = saxs.reduce(frame).quantities["total"]
    used = frame.image[~source.start.mask[CHANNEL]]
    assert total.value == pytest.approx(used.mean())
    assert total.sigma == pytest.approx(np.sqrt(used.sum()) / used.size)


def test_pixels_without_data_and_saturated_ones_are_counted_and_not_used(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    frame = one_frame(source)
    image = frame.image.copy()
    used = np.flatnonzero(~source.start.mask[CHANNEL])
    image.ravel()[used[:100]] = 65535
    image.ravel()[used[100:150]] = 60000
    reduced = saxs.reduce(replace(frame, image=image)).quantities
    assert reduced["invalid"].value == pytest.approx(100 / used.size)
    assert reduced["saturated"].value == pytest.approx(50 / used.size)
    assert reduced["total"].value < 100


def test_times_and_names_of_the_frame_travel_to_the_result(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    frame = replace(one_frame(source, 5), start_s=Fraction(1, 4))
    [result] = analysed(saxs, frame)
    assert (result.analysis, result.series, result.number) == ("saxs", frame.series, 5)
    assert (result.channel, result.start_s, result.received_ns) == (CHANNEL, 0.25, 7)


def test_the_unit_of_q_changes_the_axis_and_not_the_answer(saxs: Saxs) -> None:
    source, other = simulated(), Saxs(unit="1/A", device="cpu")
    for analysis in (saxs, other):
        analysis.begin(source.start)
    frame = one_frame(source)
    np.testing.assert_allclose(saxs.reduce(frame).inputs["curve"], other.reduce(frame).inputs["curve"], atol=1e-4)


# Geometry.


def test_without_a_start_message_and_a_poni_a_frame_is_refused() -> None:
    with pytest.raises(BadFrame, match=r"no geometry .* give a \.poni") as refused:
        Saxs(device="cpu").reduce(one_frame(simulated()))
    assert refused.value.reason == "geometry"


def test_with_a_poni_a_running_series_can_be_joined(poni: Path) -> None:
    saxs, source = Saxs(poni=poni, device="cpu"), simulated()
    joined = saxs.reduce(one_frame(source))
    saxs.begin(SeriesStart(SeriesKey(1)))
    np.testing.assert_array_equal(saxs.reduce(one_frame(source)).inputs["curve"], joined.inputs["curve"])


def test_a_poni_that_does_not_know_its_shape_takes_that_of_the_first_frame(tmp_path: Path) -> None:
    geometry_of(replace(simulated().start, shape=None, mask={})).write(tmp_path / "open.poni")
    saxs, source = Saxs(poni=tmp_path / "open.poni", device="cpu"), simulated()
    with ThreadPoolExecutor(4) as workers:
        reduced = list(workers.map(saxs.reduce, frames(source, *range(4))))
    assert [one.number for one in reduced] == [0, 1, 2, 3]


def test_a_header_that_tells_no_geometry_says_what_it_lacks(saxs: Saxs) -> None:
    with pytest.raises(BadInput, match=r"lacks distance_m; give a \.poni"):
        saxs.begin(replace(simulated().start, distance_m=None))
    with pytest.raises(BadFrame, match="no geometry"):
        saxs.reduce(one_frame(simulated()))


def test_a_series_of_another_shape_does_not_fit_the_poni(poni: Path) -> None:
    with pytest.raises(BadInput, match="give the geometry of this detector"):
        Saxs(poni=poni, device="cpu").begin(replace(simulated().start, shape=(100, 100), mask={}))


def test_a_detector_too_far_away_for_the_model_is_refused_with_both_ranges(saxs: Saxs) -> None:
    with pytest.raises(BadModel, match=r"model expects 128 q-bins 0\.05–5 nm⁻¹"):
        saxs.begin(replace(simulated().start, distance_m=30.0))


def test_a_late_join_that_does_not_fit_the_model_is_refused_frame_by_frame(tmp_path: Path) -> None:
    start = replace(simulated().start, shape=None, mask={}, distance_m=30.0)
    geometry_of(start).write(tmp_path / "far.poni")
    saxs = Saxs(poni=tmp_path / "far.poni", device="cpu")
    for frame in frames(simulated(), 0, 1):
        with pytest.raises(BadFrame, match="model expects 128 q-bins"):
            saxs.reduce(frame)


def test_the_same_geometry_is_prepared_once(saxs: Saxs) -> None:
    start = simulated().start
    with capture_logs() as logs:
        saxs.begin(replace(start, distance_m=1.9))
        saxs.begin(replace(start, distance_m=1.9, series=SeriesKey(2)))
        saxs.begin(replace(start, distance_m=1.8, series=SeriesKey(3)))
    assert [entry["event"] for entry in logs] == ["saxs geometry", "saxs geometry"]


def test_the_mask_of_the_series_joins_that_of_the_poni(poni: Path) -> None:
    saxs, source = Saxs(poni=poni, device="cpu"), simulated()
    frame = one_frame(source)
    image = frame.image.copy()
    image[source.start.mask[CHANNEL]] = 30_000
    saxs.begin(replace(source.start, saturation=None))
    with_nonsense_under_the_mask = saxs.reduce(replace(frame, image=image))
    np.testing.assert_array_equal(with_nonsense_under_the_mask.inputs["curve"], saxs.reduce(frame).inputs["curve"])


def test_another_wavelength_in_the_header_is_a_warning_and_the_poni_stands(poni: Path) -> None:
    saxs, source = Saxs(poni=poni, device="cpu"), simulated()
    with capture_logs() as logs:
        saxs.begin(replace(source.start, wavelength_A=1.54))
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["header_A"], entry["poni_A"]) for entry in warnings] == [(1.54, 0.99987)]


def test_a_mask_without_a_geometry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"give its \.poni too"):
        Saxs(mask=tmp_path / "mask.npy", device="cpu")


# Channels.


def test_the_first_channel_of_the_series_is_analysed_and_no_other() -> None:
    saxs, source = Saxs(device="cpu"), simulated()
    saxs.begin(replace(source.start, channels=(CHANNEL, "threshold_2")))
    frame = one_frame(source)
    assert saxs.accepts(frame)
    assert not saxs.accepts(replace(frame, channel="threshold_2"))


def test_joining_late_the_first_channel_seen_is_kept(poni: Path) -> None:
    saxs, frame = Saxs(poni=poni, device="cpu"), one_frame(simulated())
    assert saxs.accepts(frame)
    assert not saxs.accepts(replace(frame, channel="difference"))
    assert saxs.accepts(frame)


def test_a_configured_channel_is_the_only_one_accepted() -> None:
    saxs, frame = Saxs(channel="threshold_2", device="cpu"), one_frame(simulated())
    assert not saxs.accepts(frame)
    assert saxs.accepts(replace(frame, channel="threshold_2"))


def test_a_model_that_takes_another_unit_is_refused() -> None:
    card = read_card(find_model("saxs"))
    heavy = msgspec.structs.replace(card.inputs["curve"], unit="kg")
    with pytest.raises(BadModel, match="input 'curve' is in 'kg', expected '1'"):
        require_tensors(msgspec.structs.replace(card, inputs={"curve": heavy}), {"curve": "1"}, {"anomaly": "1"})


def test_a_model_that_gives_other_answers_is_refused_with_all_that_is_missing() -> None:
    card = read_card(find_model("saxs"))
    other = msgspec.structs.replace(card, outputs={"anomalie": card.outputs["anomaly"]})
    with pytest.raises(BadModel, match=r"'anomaly' is missing; did you mean 'anomalie'\?; output 'sigma' is missing"):
        require_tensors(other, {"curve": "1"}, {"anomaly": "1", "sigma": "1"})


# Beside a reference.


@pytest.fixture(scope="module")
def beside() -> Saxs:
    saxs = Saxs(device="cpu", reference_frames=12)
    source = simulated(mean=10.0)
    saxs.begin(source.start)
    analysed(saxs, *frames(source, *range(12)))
    return saxs


def test_the_first_frames_become_the_reference_and_are_judged_without_one() -> None:
    saxs, source = Saxs(device="cpu", reference_frames=3), simulated()
    saxs.begin(source.start)
    results = analysed(saxs, *frames(source, *range(5)))
    assert [result["has_reference"].value for result in results] == [0, 0, 0, 1, 1]
    assert np.isnan(results[0]["scale"].value)
    assert results[4]["scale"].value == pytest.approx(1, abs=0.05)
    saxs.begin(source.start)
    assert analysed(saxs, one_frame(source, 6))[0]["has_reference"].value == 0


def test_frames_like_their_reference_are_not_strange(beside: Saxs) -> None:
    results = analysed(beside, *frames(simulated(mean=10.0), *range(20, 60)))
    assert max(float(result["novelty"].value) for result in results) < 4.3
    assert np.mean([float(result["chi2"].value) for result in results]) == pytest.approx(1, abs=0.25)
    for band in ("low_q", "mid_q", "high_q", "top_q"):
        assert abs(np.mean([float(result[band].value) for result in results])) < 1.2


@pytest.mark.parametrize("fault", ["void", "beamstop_shift", "dead_module", "radiation_damage"])
def test_what_is_new_beside_the_reference_is_strange(beside: Saxs, fault: str) -> None:
    results = analysed(beside, *frames(simulated(f"{fault}@0", mean=10.0), *range(200, 206)))
    assert min(float(result["novelty"].value) for result in results) > 3


def test_what_needs_a_reference_is_not_known_without_one(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    [result] = analysed(saxs, one_frame(source))
    for name in ("scale", "chi2", "flux", "low_q", "detectability", "exposure", "unknown"):
        assert np.isnan(result[name].value), name


def test_probabilities_of_the_classes_add_up_and_the_likeliest_is_named(saxs: Saxs) -> None:
    source = simulated()
    saxs.begin(source.start)
    [result] = analysed(saxs, one_frame(source))
    classes = [float(result[name].value) for name in CLASSES]
    assert sum(classes) == pytest.approx(1, abs=1e-3)
    assert result["class"].value == int(np.argmax(classes))
    assert result["probability"].value == max(classes)


def test_rg_is_that_of_the_simulated_spheres(saxs: Saxs) -> None:
    source = simulated(mean=30.0)
    saxs.begin(source.start)
    [result] = analysed(saxs, one_frame(source))
    # Silica spheres of 4 nm, lognormal by 15 %: Rg² = 3/5 ⟨R⁸⟩/⟨R⁶⟩; parasitic scattering lies beneath.
    assert result["rg"].value == pytest.approx(np.sqrt(0.6) * 4 * np.exp(7 * 0.15**2), rel=0.1)
    assert result["rg"].unit == "nm"


def test_a_sliding_reference_follows_what_is_in_order() -> None:
    saxs, source = Saxs(device="cpu", reference_frames=4, sliding_frames=6), simulated()
    saxs.begin(source.start)
    for number in range(14):
        analysed(saxs, one_frame(source, number))
    assert saxs._keeper.known is not None
    assert saxs._keeper.known.frames == 6


def test_a_commissioned_file_gives_reference_and_calibration(tmp_path: Path) -> None:
    learned = commission("sim:saxs?detector=128k&frames=220&rate=max&mean=3&seed=3", frames=220, alpha=1e-4)
    write_commissioned(tmp_path / "here.json", learned.what)
    saxs, source = Saxs(device="cpu", commissioned=tmp_path / "here.json"), simulated()
    saxs.begin(source.start)
    results = analysed(saxs, *frames(source, *range(12)))
    assert all(result["has_reference"].value == 1 for result in results)
    assert max(float(result["novelty"].value) for result in results) < 4.0


def test_two_references_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected one of them"):
        Saxs(device="cpu", commissioned=tmp_path / "here.json", reference_frames=5)
