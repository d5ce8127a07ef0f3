"""The model: nothing that was tampered with is loaded, and nothing that was not measured is answered."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper
from structlog.testing import capture_logs

from streamer.infer import Model, cuda_obstacle, find_model, list_models, load_model
from streamer.infer.model import _Bound
from streamer.records import BadInput, BadModel
from tests.infer import networks

Arrays = dict[str, NDArray[Any]]


def curves(frames: int, *, seed: int = 1) -> Arrays:
    g = np.random.default_rng(seed)
    return {
        "curve": g.normal(size=(frames, networks.POINTS)).astype(np.float32),
        "offset": g.normal(size=frames).astype(np.float32),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder, device="cpu")


# Finding.


def test_a_model_is_found_by_name_and_an_unknown_name_is_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks.write(tmp_path / "wheel" / "saxs")
    networks.write(tmp_path / "checkout" / "saxs")
    networks.write(tmp_path / "checkout" / "rdf")
    (tmp_path / "checkout" / "untrained").mkdir()
    monkeypatch.setattr("streamer.infer.model.MODEL_FOLDERS", (tmp_path / "wheel", tmp_path / "checkout"))
    assert list_models() == [tmp_path / "checkout" / "rdf", tmp_path / "wheel" / "saxs"]
    assert find_model("saxs") == tmp_path / "wheel" / "saxs"
    with pytest.raises(BadModel, match="no model named 'sax'; did you mean 'saxs'"):
        find_model("sax")
    with pytest.raises(BadModel, match="no model named 'unheard-of'; expected one of: rdf, saxs"):
        find_model("unheard-of")


def test_a_path_is_taken_as_it_is(folder: Path) -> None:
    assert find_model(folder) == folder
    assert find_model(str(folder)) == folder
    with pytest.raises(BadModel, match=r"no model folder .*nowhere"):
        find_model(str(folder / "nowhere"))


# Loading: what is refused.


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found(folder: Path, position: float, bit: int) -> None:
    original = (folder / "model.onnx").read_bytes()
    damaged = bytearray(original)
    damaged[int(position * len(damaged))] ^= 1 << bit
    copy = folder.parent / "flipped"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / "model.onnx").write_bytes(damaged)
    with pytest.raises(BadModel, match=r"model\.onnx: found sha256 .*, expected .*restore both"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"\0", lambda _: b""])
def test_a_file_of_another_length_is_found(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = networks.write(tmp_path) / "model.onnx"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadModel, match="found sha256"):
        load_model(tmp_path, device="cpu")


def test_a_folder_without_a_network_says_what_belongs_there(tmp_path: Path) -> None:
    (networks.write(tmp_path) / "model.onnx").unlink()
    with pytest.raises(BadModel, match=r"model\.onnx: cannot be read.*holds card\.toml and model\.onnx"):
        load_model(tmp_path, device="cpu")


UNKNOWN_OPERATOR = networks.network(
    [helper.make_node("Conjure", ["curve"], ["score"])],
    [("curve", TensorProto.FLOAT, ("batch", 8))],
    [("score", TensorProto.FLOAT, ("batch",))],
    {},
)


@pytest.mark.parametrize(
    "network",
    [b"", b"not a network" * 50, networks.line().SerializeToString()[:-40], UNKNOWN_OPERATOR],
    ids=["empty", "text", "truncated", "unknown operator"],
)
def test_what_is_no_network_is_refused_even_if_the_card_vouches_for_it(
    tmp_path: Path, network: bytes | onnx.ModelProto, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadModel, match=r"tiny: ONNX Runtime .* cannot load model\.onnx"):
        load_model(networks.write(tmp_path, network), device="cpu")
    assert capfd.readouterr().err == ""


def test_weights_in_another_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(networks.line(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(networks.write(tmp_path, path.read_bytes()))  # where ONNX Runtime would look for them
    assert (tmp_path / "weights.bin").exists()
    with pytest.raises(BadModel, match=r"External data.*export it again as one file"):
        load_model(tmp_path, device="cpu")


BATCH, POINTS, FLOAT, DOUBLE = "batch", networks.POINTS, TensorProto.FLOAT, TensorProto.DOUBLE
OFFSET = ("offset", FLOAT, (BATCH,))
INPUTS = [("curve", FLOAT, (BATCH, POINTS)), OFFSET]
OUTPUTS = [("score", FLOAT, (BATCH,)), ("double", FLOAT, (BATCH, POINTS))]


@pytest.mark.parametrize(
    ("network", "card", "words"),
    [
        (
            partial(networks.line, inputs=[("kurve", FLOAT, (BATCH, POINTS)), OFFSET]),
            networks.CARD,
            "inputs 'kurve', 'offset', card.toml says 'curve', 'offset'",
        ),
        (networks.line, networks.changed("[outputs.score]", "[outputs.skore]"), "card.toml says 'skore', 'double'"),
        (
            networks.line,
            networks.changed('float32"\nshape = []', 'float64"\nshape = []'),
            "input 'offset' is float32 in model.onnx, card.toml says float64",
        ),
        (
            networks.line,
            networks.changed('[outputs.score]\ndtype = "float32"', '[outputs.score]\ndtype = "float16"'),
            "output 'score' is float32 in model.onnx, card.toml says float16",
        ),
        (
            networks.line,
            networks.changed('shape = [8]\nunit = "1"\ngrid = "q"', 'shape = [9]\nunit = "1"'),
            "input 'curve' has shape ['batch', 8] in model.onnx, card.toml says ['batch', 9]",
        ),
        (
            networks.line,
            networks.changed("shape = [8]", "shape = [1, 8]"),
            "input 'curve' has shape ['batch', 8] in model.onnx, card.toml says ['batch', 1, 8]",
        ),
        (
            partial(networks.line, inputs=[("curve", FLOAT, (1, POINTS)), ("offset", FLOAT, (1,))]),
            networks.CARD,
            "input 'curve' has a fixed first axis of 1 in model.onnx; export it again",
        ),
    ],
)
def test_a_network_that_is_not_what_the_card_says_is_refused(
    tmp_path: Path, network: Callable[[], onnx.ModelProto], card: str, words: str
) -> None:
    with pytest.raises(BadModel, match=re.escape(words)):
        load_model(networks.write(tmp_path, network(), card), device="cpu")


def test_a_shape_the_network_leaves_open_is_found_out_by_the_warm_up(tmp_path: Path) -> None:
    nodes = [  # as many numbers as the offset has that are not zero
        helper.make_node("NonZero", ["offset"], ["where"]),
        helper.make_node("Cast", ["where"], ["row"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["row", "axis"], ["score"], keepdims=0),
        helper.make_node("Abs", ["curve"], ["double"]),
    ]
    outputs = [("score", FLOAT, ("found",)), OUTPUTS[1]]
    network = networks.network(nodes, INPUTS, outputs, {"axis": np.array([0])})
    with pytest.raises(BadModel, match=r"output 'score' of 1 frames has shape \(0,\), card\.toml says \(1,\)"):
        load_model(networks.write(tmp_path, network), device="cpu")


@pytest.mark.parametrize("numbers", [{"max_batch": 0}, {"threads": 0}])
def test_no_frames_or_no_threads_are_refused(folder: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="expected 1 or more"):
        load_model(folder, device="cpu", **numbers)


def test_the_card_bounds_the_batch(folder: Path) -> None:
    assert load_model(folder, device="cpu", max_batch=64).max_batch == 8
    assert load_model(folder, device="cpu", max_batch=3).max_batch == 3


def test_the_device_and_the_reason_are_said_once(folder: Path) -> None:
    with capture_logs() as said:
        load_model(folder, device="cpu")
    assert [(entry["event"], entry["device"], entry["why"]) for entry in said] == [("model ready", "cpu", "as asked")]


# Asking.


def test_a_batch_is_answered_frame_by_frame(model: Model) -> None:
    frames = curves(5)
    answers = model.run(frames)
    assert {name: (values.shape, values.dtype) for name, values in answers.items()} == {
        "score": ((5,), np.float32),
        "double": ((5, 8), np.float32),
    }
    np.testing.assert_allclose(answers["score"], networks.score(**frames), rtol=1e-5)
    np.testing.assert_array_equal(answers["double"], 2 * frames["curve"])


@given(frames=st.integers(0, 30), seed=st.integers(0, 100))
def test_one_by_one_in_one_batch_or_split_the_answers_are_the_same(model: Model, frames: int, seed: int) -> None:
    batch = curves(frames, seed=seed)
    together = model.run(batch)
    assert together["double"].shape == (frames, 8)
    for i in range(frames):
        alone = model.run({name: values[i : i + 1] for name, values in batch.items()})
        for name in together:
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-5)


@given(
    data=st.data(),
    frames=st.integers(1, 20),
    poison=st.sampled_from([np.nan, np.inf, -np.inf]),
    name=st.sampled_from(["curve", "offset"]),
)
def test_a_frame_that_was_not_measured_gets_no_answer_and_its_neighbours_keep_theirs(
    model: Model, data: st.DataObject, frames: int, poison: float, name: str
) -> None:
    batch = curves(frames)
    is_poisoned = data.draw(hnp.arrays(bool, frames))
    expected = model.run(batch)
    batch[name][is_poisoned, ...] = poison
    untouched = {key: values.copy() for key, values in batch.items()}
    answers = model.run(batch)
    for key, values in answers.items():
        assert np.isnan(values[is_poisoned]).all()
        np.testing.assert_array_equal(values[~is_poisoned], expected[key][~is_poisoned])
    for key, values in untouched.items():
        np.testing.assert_array_equal(batch[key], values)


def test_a_frame_that_was_not_measured_does_not_reach_a_network_that_mixes_its_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["curve"], ["all"], keepdims=1),
        helper.make_node("Add", ["curve", "all"], ["double"]),
        helper.make_node("Abs", ["offset"], ["score"]),
    ]
    mixing = load_model(networks.write(tmp_path, networks.network(nodes, INPUTS, OUTPUTS, {})), device="cpu")
    batch = curves(3)
    batch["curve"][1, 4] = np.nan
    assert np.isfinite(mixing.run(batch)["double"]).all(axis=1).tolist() == [True, False, True]


def test_an_answer_that_is_not_finite_stays_so(tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["curve"], ["double"]), helper.make_node("Log", ["offset"], ["score"])]
    logarithm = load_model(networks.write(tmp_path, networks.network(nodes, INPUTS, OUTPUTS, {})), device="cpu")
    batch = {"curve": np.ones((3, 8), np.float32), "offset": np.array([1, 0, -1], np.float32)}
    np.testing.assert_array_equal(logarithm.run(batch)["score"], [0.0, -np.inf, np.nan])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda batch: batch.pop("offset"), "found inputs 'curve', expected 'curve', 'offset'"),
        (lambda batch: batch.update(extra=batch["offset"]), "'extra'"),
        (lambda batch: batch.update(curve=batch["curve"].astype(float)), "'curve' is float64 .*expected float32"),
        (lambda batch: batch.update(curve=batch["curve"][:, :7]), r"of shape \(4, 7\), expected .*'frames', 8"),
        (lambda batch: batch.update(curve=batch["curve"][0]), r"of shape \(8,\)"),
        (lambda batch: batch.update(offset=np.float32(3).reshape(())), r"'offset' is float32 of shape \(\)"),
        (lambda batch: batch.update(offset=batch["offset"][:3]), r"\[3, 4\] frames, expected the same number"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(model: Model, change: Callable[[Arrays], object], words: str) -> None:
    batch = curves(4)
    change(batch)
    with pytest.raises(BadInput, match=words):
        model.run(batch)


def test_a_failing_operator_is_reported_as_the_models_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [  # reads the element at index offset: past the end for a large one
        helper.make_node("Cast", ["offset"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["weights", "index"], ["score"]),
        helper.make_node("Abs", ["curve"], ["double"]),
    ]
    network = networks.network(nodes, INPUTS, OUTPUTS, {"weights": networks.WEIGHTS})
    gather = load_model(networks.write(tmp_path, network), device="cpu")
    batch = curves(2) | {"offset": np.array([1, 99], np.float32)}
    with pytest.raises(BadModel, match=r"tiny: ONNX Runtime failed on cpu .*Gather"):
        gather.run(batch)
    assert capfd.readouterr().err == ""


def test_on_the_cpu_any_number_of_threads_may_ask(model: Model) -> None:
    batches = [curves(1 + seed % 8, seed=seed) for seed in range(40)]
    expected = [model.run(batch)["score"] for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        for answer, known in zip(threads.map(model.run, batches), expected, strict=True):
            np.testing.assert_array_equal(answer["score"], known)


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_bound_buffers_that_are_used_again_answer_as_a_plain_run_does(model: Model, sizes: list[int]) -> None:
    buffers = _Bound(model._session, model.card, 8, "cpu")
    answered = [(curves(size, seed=i), buffers.run(curves(size, seed=i))) for i, size in enumerate(sizes)]
    for batch, answers in answered:
        for name, expected in model.run(batch).items():
            assert answers[name].shape == expected.shape
            np.testing.assert_allclose(answers[name], expected, rtol=1e-6)


@pytest.mark.gpu
def test_cuda_and_the_cpu_answer_alike(folder: Path, model: Model) -> None:
    if obstacle := cuda_obstacle():
        pytest.skip(f"no CUDA device to test on: {obstacle}")
    on_cuda = load_model(folder, device="cuda")
    assert on_cuda.device == "cuda"
    for frames in (1, 2, 3, 5, 8, 19, 3):
        batch = curves(frames, seed=frames)
        batch["curve"][0, 0] = np.nan
        expected = model.run(batch)
        for name, values in on_cuda.run(batch).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5)
