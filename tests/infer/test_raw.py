"""A network asked with raw frames: tickets, the ring they wait in, the graph on disk, and answers that belong together.

The reduction here is as small as can be: the first eight pixels are the curve, the ninth is the offset.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from streamer.graphs import LIMITS, SLOT, Graph
from streamer.infer import FRAME, RawModel, Reduction, Window, cuda_obstacle, load_model, load_raw_model, raw
from streamer.infer.raw import _Bound
from streamer.records import BadConfig, BadFrame, BadInput, BadModel
from tests.infer import networks

SHAPE = (3, 5)
PLACES = 32
MAX_BATCH = 4


def reduction(
    fingerprint: str = "eight pixels",
    dtype: str = "uint16",
    shape: tuple[int, int] = SHAPE,
    fed: tuple[str, str] = ("curve", "offset"),
    scale: float = 1.0,
) -> Reduction:
    def draw(graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
        frames = graph.input("frames", dtype, ["slots", PLACES])
        slot, limits = graph.input("slot", np.int64, ["batch"]), graph.input("limits", np.float64, ["batch", 4])
        pixels = graph.cast(graph("Gather", frames, slot, axis=0), np.float32)
        curve = graph("Gather", pixels, graph.constant(np.arange(networks.POINTS)), axis=1)
        offset = graph("Gather", pixels, graph.scalar(networks.POINTS, np.int64), axis=1)
        scaled = graph("Mul", curve, graph.scalar(scale, np.float32))
        sums = graph.total(graph.cast(pixels, np.float64), -1)
        smallest = graph("Gather", limits, graph.scalar(0, np.int64), axis=1)
        return dict(zip(fed, (scaled, offset), strict=True)), {"bins.sum": sums, "bins.smallest": smallest}

    outputs = {"bins.sum": (), "bins.smallest": ()}
    return Reduction(fingerprint, shape, np.dtype(dtype), PLACES, {LIMITS: (4,)}, outputs, draw)


def frame(seed: int, dtype: str = "uint16") -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 9, SHAPE).astype(dtype)


def expected(image: NDArray[Any], scale: float = 1.0) -> float:
    pixels = image.ravel().astype(np.float32)
    curve = scale * pixels[: networks.POINTS]
    return float(networks.score(curve[None], pixels[networks.POINTS : networks.POINTS + 1])[0])


def ask(model: RawModel, *tickets: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    limits = np.arange(4.0 * len(tickets)).reshape(-1, 4)
    return model.run({FRAME: np.stack(tickets), LIMITS: limits})


def taken(window: Window) -> int:
    """Places in the ring that are not free."""
    return window._ring.rows - MAX_BATCH - len(window._free)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMER_CACHE", str(tmp_path / "graphs"))
    return tmp_path / "graphs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return networks.write(tmp_path / "tiny")


@pytest.fixture
def model(folder: Path) -> RawModel:
    return load_raw_model(folder, device="cpu", max_batch=MAX_BATCH)


@pytest.fixture
def window(model: RawModel) -> Window:
    return model.prepare(reduction())


# Answers.


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 11])
def test_every_ticket_gets_the_answer_of_its_frame(model: RawModel, window: Window, frames: int) -> None:
    images = [frame(i) for i in range(frames)]
    said = ask(model, *(window.put(image) for image in images))
    np.testing.assert_allclose(said["score"], [expected(image) for image in images], atol=1e-6)
    assert said["bins.sum"].tolist() == [image.sum() for image in images]
    assert said["bins.smallest"].tolist() == [4.0 * i for i in range(frames)]
    assert said["double"].shape == (frames, networks.POINTS)


def test_frames_may_be_asked_in_any_order(model: RawModel, window: Window) -> None:
    images = [frame(i) for i in range(4)]
    tickets = [window.put(image) for image in images]
    said = ask(model, *(tickets[i] for i in (2, 0, 3, 1)))
    np.testing.assert_allclose(said["score"], [expected(images[i]) for i in (2, 0, 3, 1)], atol=1e-6)


def test_the_image_may_be_overwritten_once_it_is_handed_in(model: RawModel, window: Window) -> None:
    image = frame(1)
    known = expected(image)
    ticket = window.put(image)
    image[:] = 0
    assert ask(model, ticket)["score"] == pytest.approx(known, abs=1e-6)


def test_a_frame_that_leaves_nothing_to_be_judged_gets_nan_and_the_others_their_answers(model: RawModel) -> None:
    window = model.prepare(reduction("floats", "float32"))
    images = [frame(i, "float32") for i in range(3)]
    images[1][0, 3] = np.nan
    said = ask(model, *(window.put(image) for image in images))
    assert np.isnan(said["score"][1])
    assert np.isnan(said["double"][1]).all()
    np.testing.assert_allclose(said["score"][[0, 2]], [expected(images[0]), expected(images[2])], atol=1e-6)


def test_it_answers_as_the_network_alone(folder: Path, model: RawModel, window: Window) -> None:
    images = [frame(i) for i in range(4)]
    pixels = np.stack([image.ravel() for image in images]).astype(np.float32)
    alone = load_model(folder, device="cpu").run({"curve": pixels[:, :8], "offset": pixels[:, 8]})
    said = ask(model, *(window.put(image) for image in images))
    for name, values in alone.items():
        np.testing.assert_allclose(said[name], values, atol=1e-6)


def test_frames_of_an_earlier_geometry_are_answered_by_it(model: RawModel, window: Window) -> None:
    other = model.prepare(reduction("half as much", scale=0.5))
    images = [frame(i) for i in range(4)]
    tickets = [door.put(image) for door, image in zip((window, other, other, window), images, strict=True)]
    said = ask(model, *tickets)
    scales = (1.0, 0.5, 0.5, 1.0)
    known = [expected(image, scale) for image, scale in zip(images, scales, strict=True)]
    np.testing.assert_allclose(said["score"], known, atol=1e-6)
    assert said["bins.smallest"].tolist() == [0, 4, 8, 12]


def test_bound_buffers_that_are_used_again_answer_as_a_plain_run_does(model: RawModel, window: Window) -> None:
    images = [frame(i) for i in range(9)]
    frames = np.zeros((9, PLACES), np.uint16)
    frames[:, : frame(0).size] = [image.ravel() for image in images]
    on_device = onnxruntime.OrtValue.ortvalue_from_numpy(frames, "cpu", 0)
    bound = _Bound(window._session, on_device, {LIMITS: (4,)}, window._outputs, MAX_BATCH, "cpu", captures=False)
    for slots in ([0, 1, 2, 3], [4], [5, 6, 7], [8, 0]):
        said = bound.run({SLOT: np.array(slots), LIMITS: np.zeros((len(slots), 4))})
        np.testing.assert_allclose(said["score"], [expected(images[slot]) for slot in slots], atol=1e-6)


def test_frames_may_be_handed_in_by_several_threads(model: RawModel, window: Window) -> None:
    images = [frame(i) for i in range(200)]
    with ThreadPoolExecutor(4) as threads:
        said = ask(model, *threads.map(window.put, images))
    np.testing.assert_allclose(said["score"], [expected(image) for image in images], atol=1e-6)
    assert taken(window) == 0


# Places.


def test_a_place_is_free_again_once_its_frame_is_answered(model: RawModel, window: Window) -> None:
    tickets = [window.put(frame(i)) for i in range(3)]
    assert taken(window) == 3
    ask(model, *tickets)
    assert taken(window) == 0


def test_a_ticket_that_is_dropped_gives_its_place_back(window: Window) -> None:
    ticket = window.put(frame(0))
    assert taken(window) == 1
    del ticket
    gc.collect()
    assert taken(window) == 0


def test_where_the_ring_is_full_frames_wait_elsewhere_and_nobody_is_held_up(model: RawModel, window: Window) -> None:
    images = [frame(i) for i in range(4 * window._ring.rows)]
    tickets = [window.put(image) for image in images]
    assert not window._free
    said = ask(model, *tickets)
    np.testing.assert_allclose(said["score"], [expected(image) for image in images], atol=1e-6)
    assert taken(window) == 0


def test_a_ticket_is_asked_once(model: RawModel, window: Window) -> None:
    ticket = window.put(frame(0))
    ask(model, ticket)
    with pytest.raises(BadInput, match=rf"no frame waits under the tickets \[{int(ticket)}\]; each can be asked once"):
        ask(model, ticket)


# What is refused.


@pytest.mark.parametrize(
    ("image", "reason"),
    [(np.zeros((5, 3), np.uint16), "shape"), (np.zeros(SHAPE, np.uint8), "dtype"), (np.zeros(SHAPE, ">u2"), "dtype")],
)
def test_an_image_of_another_kind_is_a_bad_frame(window: Window, image: NDArray[Any], reason: str) -> None:
    with pytest.raises(BadFrame) as refused:
        window.put(image)
    assert refused.value.reason == reason
    assert taken(window) == 0


@pytest.mark.parametrize("inputs", [{}, {"curve": np.zeros((1, 8))}])
def test_inputs_without_a_frame_are_refused_by_name(model: RawModel, inputs: Mapping[str, NDArray[Any]]) -> None:
    with pytest.raises(BadInput, match="expected 'frame' among them"):
        model.run(inputs)


def test_what_a_frame_must_bring_along_is_asked_for_by_name(model: RawModel, window: Window) -> None:
    ticket = window.put(frame(0))
    with pytest.raises(BadInput, match="found inputs 'limit' besides 'frame', expected 'limits'"):
        model.run({FRAME: np.stack([ticket]), "limit": np.zeros((1, 4))})
    assert ask(model, ticket)["bins.sum"].tolist() == [frame(0).sum()]


def test_a_reduction_that_does_not_feed_the_network_is_refused(model: RawModel) -> None:
    with pytest.raises(BadModel, match="the reduction feeds 'curve', 'ofset', the network takes 'curve', 'offset'"):
        model.prepare(reduction("misspelt", fed=("curve", "ofset")))


def test_numbers_that_make_no_sense_are_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="found max_batch 0, threads 1"):
        load_raw_model(folder, device="cpu", max_batch=0)


def test_cuda_that_is_not_there_is_refused(folder: Path) -> None:
    if cuda_obstacle() is None:
        pytest.skip("there is a CUDA device")
    with pytest.raises(BadConfig, match='device "cuda"'):
        load_raw_model(folder, device="cuda")


# The graph on disk.


def test_a_graph_is_drawn_once(folder: Path, model: RawModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.prepare(reduction())
    (kept,) = cache.glob("*.onnx")
    assert kept.with_suffix(".sha256").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    window = load_raw_model(folder, device="cpu").prepare(reduction())
    assert window.put(frame(0)) == 0
    with pytest.raises(BadModel, match=r"pip install 'streamer\[cuda\]'"):
        model.prepare(reduction("another geometry"))


@pytest.mark.parametrize("changes", [{"fingerprint": "other"}, {"dtype": "uint8"}])
def test_another_reduction_is_another_graph(model: RawModel, cache: Path, changes: dict[str, str]) -> None:
    model.prepare(reduction())
    model.prepare(reduction(**changes))  # type: ignore[arg-type]
    assert len(list(cache.glob("*.onnx"))) == 2


def test_another_network_is_another_graph(tmp_path: Path, model: RawModel, cache: Path) -> None:
    model.prepare(reduction())
    inputs = [("curve", 1, ("frames", networks.POINTS)), ("offset", 1, ("frames",))]
    other = networks.write(tmp_path / "other", networks.line(inputs=inputs))
    load_raw_model(other, device="cpu").prepare(reduction())
    assert len(list(cache.glob("*.onnx"))) == 2


def test_a_damaged_graph_is_drawn_anew(model: RawModel, cache: Path) -> None:
    model.prepare(reduction())
    (kept,) = cache.glob("*.onnx")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-3] + b"\0\0\0")
    with capture_logs() as logs:
        window = model.prepare(reduction())
    assert [entry["event"] for entry in logs] == ["a graph on disk was damaged and is drawn anew"]
    assert kept.read_bytes() == whole
    assert ask(model, window.put(frame(0)))["score"] == pytest.approx(expected(frame(0)), abs=1e-6)


def test_a_folder_that_cannot_be_written_is_a_warning(
    model: RawModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("STREAMER_CACHE", str(tmp_path / "a file"))
    with capture_logs() as logs:
        model.prepare(reduction())
    assert "the graph is not kept on disk" in [entry["event"] for entry in logs]


def test_only_the_graphs_used_last_are_kept(model: RawModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "KEPT_GRAPHS", 2)
    for fingerprint in "abc":
        model.prepare(reduction(fingerprint))
    assert len(list(cache.glob("*.onnx"))) == len(list(cache.glob("*.sha256"))) == 2


@pytest.mark.gpu
def test_cuda_and_the_cpu_answer_alike(folder: Path, model: RawModel, window: Window) -> None:
    if obstacle := cuda_obstacle():
        pytest.skip(f"no CUDA device to test on: {obstacle}")
    on_cuda = load_raw_model(folder, device="cuda", max_batch=MAX_BATCH)
    there = on_cuda.prepare(reduction())
    with ThreadPoolExecutor(4) as threads:
        for frames in (1, 2, 3, 4, 11, 3, 100):
            images = [frame(seed) for seed in range(frames)]
            known = ask(model, *map(window.put, images))
            for name, values in ask(on_cuda, *threads.map(there.put, images)).items():
                np.testing.assert_allclose(values, known[name], rtol=1e-5)
