"""SAXS with the reduction where the model runs: the same results as with the compiled kernel.

Here the device is the CPU. What CUDA makes of it is one test more, where there is a CUDA device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from streamer.analyses import saxs as room
from streamer.analyses.saxs import HandedIn, Saxs
from streamer.decide import Decider, Rule
from streamer.doctor.rehearsal import Rehearsal, Series, simulated
from streamer.infer import Model, RawModel, choose_device, cuda_obstacle
from streamer.outputs import Output
from streamer.pipeline import Limits, Pipeline
from streamer.records import Alarm, BadFrame, BadModel, Frame, Result, SeriesKey
from streamer.reduce.detector import geometry_of
from streamer.sources import Message
from streamer.sources.simulated import CHANNEL, Simulated


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder of graphs for the whole file: most tests use one geometry."""
    folder = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMER_CACHE", str(folder))
        yield folder


def source(**changes: Any) -> Simulated:
    return Simulated(**({"detector": "128k", "frames": 300, "rate": "max", "mean": 3.0, "seed": 11} | changes))


def frames(simulation: Simulated, *numbers: int) -> list[Frame]:
    messages = [Message(parts=("image", number), kind="image", nbytes=0, received_ns=7) for number in numbers]
    return [record for one in messages for record in simulation.decode(one) if isinstance(record, Frame)]


def analysed(saxs: Saxs, images: Sequence[Frame]) -> list[Result]:
    reduced = [saxs.reduce(image) for image in images]
    said = saxs.model.run({name: np.stack([one.inputs[name] for one in reduced]) for name in reduced[0].inputs})
    return [saxs.interpret(one, {name: rows[i] for name, rows in said.items()}) for i, one in enumerate(reduced)]


def assert_same(ours: Sequence[Result], theirs: Sequence[Result]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.quantities.keys() == other.quantities.keys()
        assert (one.series, one.number, one.channel, one.start_s) == (
            other.series,
            other.number,
            other.channel,
            other.start_s,
        )
        for name in ("profile", "total", "invalid", "saturated"):
            np.testing.assert_allclose(one[name].value, other[name].value, rtol=1e-6, atol=1e-12, err_msg=name)
            if other[name].sigma is not None:
                np.testing.assert_allclose(one[name].sigma, other[name].sigma, rtol=1e-5, atol=1e-12, err_msg=name)
        np.testing.assert_array_equal(one["profile"].axes["q"][0], other["profile"].axes["q"][0])
        for name in ("anomaly", "entropy"):
            np.testing.assert_allclose(one[name].value, other[name].value, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(one["anomaly"].sigma, other["anomaly"].sigma, atol=1e-4)


@pytest.fixture(scope="module")
def on_device() -> Saxs:
    return Saxs(device="cpu", reduce_on="device")


@pytest.fixture(scope="module")
def on_cpu() -> Saxs:
    return Saxs(device="cpu")


@pytest.mark.parametrize("changes", [{}, {"fault": "beamstop_shift@0", "mean": 10.0}, {"fault": "beam_loss@0"}])
def test_the_results_are_those_of_the_kernel(on_device: Saxs, on_cpu: Saxs, changes: dict[str, Any]) -> None:
    simulation = source(**changes)
    for saxs in (on_device, on_cpu):
        saxs.begin(simulation.start)
    images = frames(simulation, *range(5))
    assert_same(analysed(on_device, images), analysed(on_cpu, images))


def test_gaps_and_saturated_pixels_are_left_out_and_counted(on_device: Saxs, on_cpu: Saxs) -> None:
    simulation = source()
    for saxs in (on_device, on_cpu):
        saxs.begin(simulation.start)
    (frame,) = frames(simulation, 0)
    image = frame.image.copy()
    used = np.flatnonzero(~simulation.start.mask[CHANNEL])
    image.ravel()[used[:100]] = 65535
    image.ravel()[used[100:150]] = 60000
    image.ravel()[used[2000:20_000]] = 65535
    damaged = [replace(frame, image=image)]
    results = analysed(on_device, damaged)
    assert_same(results, analysed(on_cpu, damaged))
    assert results[0]["saturated"].value == pytest.approx(50 / used.size)


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": "azimuthal", "bins": 300},
        {"polarization": 0.95, "solid_angle": False, "unit": "1/A"},
        {"q_range": (0.1, 1.5), "bins": 100},
    ],
)
def test_every_option_of_the_analysis_is_in_the_graph(options: dict[str, Any]) -> None:
    simulation = source()
    analyses = [Saxs(device="cpu", reduce_on=where, **options) for where in ("device", "cpu")]
    for saxs in analyses:
        saxs.begin(simulation.start)
    images = frames(simulation, 0, 1)
    assert_same(*(analysed(saxs, images) for saxs in analyses))


def test_mask_flat_and_dark_are_in_the_graph(tmp_path: Path) -> None:
    simulation = source()
    geometry_of(simulation.start, CHANNEL).write(tmp_path / "instrument.poni")
    random = np.random.default_rng(0)
    shape = simulation.start.shape
    assert shape is not None
    np.save(tmp_path / "mask.npy", random.random(shape) < 0.1)
    np.save(tmp_path / "flat.npy", random.uniform(0.8, 1.2, shape))
    np.save(tmp_path / "dark.npy", random.uniform(0, 0.2, shape))
    files = {name: tmp_path / f"{name}.npy" for name in ("mask", "flat", "dark")}
    analyses = [
        Saxs(poni=tmp_path / "instrument.poni", **files, device="cpu", reduce_on=where)  # type: ignore[arg-type]
        for where in ("device", "cpu")
    ]
    images = frames(simulation, 0, 1)
    assert_same(*(analysed(saxs, images) for saxs in analyses))


def test_frames_of_another_dtype_get_a_graph_of_their_own(on_device: Saxs, on_cpu: Saxs) -> None:
    simulation = source()
    for saxs in (on_device, on_cpu):
        saxs.begin(simulation.start)
    images = frames(simulation, 0, 1, 2)
    images[1] = replace(
        images[1], image=np.where(images[1].image == 65535, 2**32 - 1, images[1].image).astype(np.uint32)
    )
    assert_same(analysed(on_device, images), analysed(on_cpu, images))


@pytest.mark.parametrize(
    ("image", "reason"), [(np.zeros((5, 5), np.uint16), "shape"), (np.zeros((356, 344), np.float64), "dtype")]
)
def test_images_that_do_not_fit_are_bad_frames(on_device: Saxs, image: Any, reason: str) -> None:
    on_device.begin(source().start)
    with pytest.raises(BadFrame) as refused:
        on_device.reduce(Frame(image, SeriesKey(1), 0, CHANNEL))
    assert refused.value.reason == reason


def test_frames_of_a_series_that_is_over_are_interpreted_with_its_geometry(on_device: Saxs, on_cpu: Saxs) -> None:
    near, far = source(), replace(source().start, series=SeriesKey(2), distance_m=1.9)
    on_device.begin(near.start)
    images = frames(near, 0, 1)
    reduced = [on_device.reduce(image) for image in images]
    on_device.begin(far)
    said = on_device.model.run({name: np.stack([one.inputs[name] for one in reduced]) for name in reduced[0].inputs})
    results = [
        on_device.interpret(one, {name: rows[i] for name, rows in said.items()}) for i, one in enumerate(reduced)
    ]
    on_cpu.begin(near.start)
    assert_same(results, analysed(on_cpu, images))


def test_the_same_geometry_and_dtype_are_prepared_once(on_device: Saxs, monkeypatch: pytest.MonkeyPatch) -> None:
    start = source().start
    on_device.begin(start)
    assert isinstance(on_device.model, RawModel)
    monkeypatch.setattr(on_device.model, "prepare", None)
    on_device.begin(replace(start, series=SeriesKey(2), saturation=900))
    assert isinstance(on_device.reduce(frames(source(), 0)[0]), HandedIn)


# Where it is reduced.


def test_auto_means_the_cpu_where_the_model_runs_there() -> None:
    assert isinstance(Saxs(device="cpu").model, Model)
    assert isinstance(Saxs(device="cpu", reduce_on="cpu").model, Model)


class OnCuda(Model):
    """Says that it runs on CUDA."""

    def __init__(self, model: Model) -> None:
        self.card, self.device, self.max_batch = model.card, "cuda", model.max_batch


def test_auto_means_the_device_where_that_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain, raw = room.load_model, room.load_raw_model

    def to_cpu(name: str, *, device: str, max_batch: int) -> RawModel:
        asked.append(device)
        return raw(name, device="cpu", max_batch=max_batch)

    monkeypatch.setattr(room, "load_model", lambda name, **_: OnCuda(plain(name, device="cpu")))
    monkeypatch.setattr(room, "load_raw_model", to_cpu)
    assert isinstance(Saxs().model, RawModel)
    assert isinstance(Saxs(reduce_on="cpu").model, OnCuda)
    assert asked == ["cuda"]
    monkeypatch.setattr(room, "can_draw", lambda: False)
    with capture_logs() as logs:
        assert isinstance(Saxs().model, OnCuda)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "frames are reduced on the CPU: the package 'onnx' is missing; pip install 'streamer[cuda]'"
    ]


def test_without_onnx_a_new_geometry_is_refused_with_the_extra_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    saxs = Saxs(device="cpu", reduce_on="device")
    monkeypatch.setattr("streamer.graphs.can_draw", lambda: False)
    with pytest.raises(BadModel, match=r"pip install 'streamer\[cuda\]', or choose reduce_on = \"cpu\""):
        saxs.begin(replace(source().start, distance_m=1.77))


def test_without_onnx_frames_of_an_unexpected_dtype_are_refused_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    saxs, simulation = Saxs(device="cpu", reduce_on="device"), source()
    saxs.begin(simulation.start)
    monkeypatch.setattr("streamer.graphs.can_draw", lambda: False)
    (frame,) = frames(simulation, 0)
    with pytest.raises(BadFrame, match=r"frames of int32 cannot be handed in: .*pip install 'streamer\[cuda\]'"):
        saxs.reduce(replace(frame, image=frame.image.astype(np.int32)))
    assert isinstance(saxs.reduce(frame), HandedIn)


# The whole way.


class Basket(Output):
    """Keeps what it is given."""

    name = "basket"
    when_full = "wait"

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.alarms: list[Alarm] = []

    def write(self, result: Result) -> None:
        self.results.append(result)

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)


def run(saxs: Saxs, series: Series, count: int = 40) -> Basket:
    basket = Basket()
    rule = Rule(name="anything", watch="saxs.anomaly", above=0.05, clear_below=0.03)
    limits = Limits(workers=2, when_behind="wait")
    pipeline = Pipeline(Rehearsal(series, frames=count), [saxs], Decider([rule]), [basket], limits=limits)
    pipeline.start()
    status = pipeline.join()
    (account,) = status.closed
    assert (account.analysed, account.unaccounted) == (count, 0)
    return basket


def test_from_messages_to_alarms_the_pipeline_says_the_same(on_device: Saxs, on_cpu: Saxs) -> None:
    series = simulated("128k")
    ours, theirs = run(on_device, series), run(on_cpu, series)
    assert_same(ours.results, theirs.results)
    assert [one.name for one in ours.alarms] == [one.name for one in theirs.alarms] != []


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"detector": "1M"}, {"fault": "beam_loss@0"}])
def test_on_cuda_the_results_are_those_of_the_kernel(on_cpu: Saxs, changes: dict[str, Any]) -> None:
    if obstacle := cuda_obstacle():
        pytest.skip(f"no CUDA device to test on: {obstacle}")
    assert choose_device("auto")[0] == "cuda"
    simulation = source(**changes)
    on_cuda = Saxs(device="cuda")
    assert isinstance(on_cuda.model, RawModel)
    for saxs in (on_cuda, on_cpu):
        saxs.begin(simulation.start)
    images = frames(simulation, *range(20))
    assert_same(analysed(on_cuda, images), analysed(on_cpu, images))
