"""Graphs drawn node by node: what they compute, what they refuse, and networks taken into them."""

from __future__ import annotations

import importlib.util
import subprocess
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from streamer import graphs
from streamer.graphs import SPELLED_OUT, Graph
from streamer.records import BadModel
from tests.infer import networks


def computed(graph: Graph, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(graph.to_bytes(), providers=["CPUExecutionProvider"])
    answers: list[NDArray[Any]] = session.run(None, inputs)
    return answers


def of_one(operation: str) -> onnxruntime.InferenceSession:
    """A session that does one of the graph's own operations with (n,) float64."""
    graph = Graph("test")
    graph.output("y", getattr(graph, operation)(graph.input("x", np.float64, ["n"])), np.float64, ["n"])
    return onnxruntime.InferenceSession(graph.to_bytes(), providers=["CPUExecutionProvider"])


SESSIONS = {name: of_one(name) for name in ("asinh", "sinh")}


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=20))
def test_what_cuda_lacks_is_computed_from_what_it_has(values: list[float]) -> None:
    x = np.array(values)
    np.testing.assert_allclose(SESSIONS["asinh"].run(None, {"x": x})[0], np.arcsinh(x), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(SESSIONS["sinh"].run(None, {"x": x})[0], np.sinh(x), rtol=1e-13, atol=1e-15)


def test_numbers_are_told_from_what_is_none() -> None:
    graph = Graph("test")
    graph.output("y", graph.is_finite(graph.input("x", np.float32, ["n"]), np.float32), np.bool_, ["n"])
    (is_finite,) = computed(graph, x=np.array([1, 0, np.nan, np.inf, -np.inf, 3e38], np.float32))
    assert is_finite.tolist() == [True, True, False, False, False, True]


def test_the_smallest_come_in_order() -> None:
    graph = Graph("test")
    graph.output("y", graph.smallest(graph.input("x", np.float64, ["n", 4]), 3), np.float64, ["n", 3])
    (smallest,) = computed(graph, x=np.array([[3, 1, np.inf, 2.0]]))
    assert smallest.tolist() == [[1, 2, 3]]


def test_a_network_in_a_graph_answers_as_it_does_alone() -> None:
    content = networks.line().SerializeToString()
    curve = np.random.default_rng(0).normal(size=(5, networks.POINTS)).astype(np.float32)
    offset = np.linspace(-1, 1, 5).astype(np.float32)
    graph = Graph("test")
    x, b = graph.input("x", np.float32, ["batch", networks.POINTS]), graph.input("b", np.float32, ["batch"])
    answers = graph.network(content, {"curve": x, "offset": b})
    graph.output("said", answers["score"], np.float32, ["batch"])
    (said,) = computed(graph, x=curve, b=offset)
    np.testing.assert_allclose(said, networks.score(curve, offset), rtol=1e-6)


@pytest.mark.parametrize("operator", sorted(SPELLED_OUT))
def test_operators_that_cuda_lacks_are_replaced_in_a_network(operator: str) -> None:
    alone = networks.network(
        [helper.make_node(operator, ["x"], ["middle"]), helper.make_node("Neg", ["middle"], ["y"])],
        [("x", TensorProto.FLOAT, ("batch",))],
        [("y", TensorProto.FLOAT, ("batch",))],
        {},
    )
    values = np.array([-3, -1e-3, 0, 2, 10], np.float32)
    graph = Graph("test")
    answers = graph.network(alone.SerializeToString(), {"x": graph.input("x", np.float32, ["batch"])})
    graph.output("y", answers["y"], np.float32, ["batch"])
    assert f'op_type: "{operator}"' not in str(graph._nodes)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(computed(graph, x=values)[0], session.run(None, {"x": values})[0], rtol=1e-6)


def test_two_tensors_of_one_name_are_refused() -> None:
    graph = Graph("two outputs")
    x = graph.input("x", np.float32, ["n"])
    graph.output("y", x, np.float32, ["n"])
    with pytest.raises(BadModel, match="two outputs: two tensors are called 'y'; rename the network's"):
        graph.output("y", x, np.float32, ["n"])


def test_a_network_of_another_opset_is_refused() -> None:
    network = networks.line()
    network.opset_import[0].version = 17
    with pytest.raises(BadModel, match=r"the network uses \{'ai.onnx': 17\}, expected standard operators of opset 18"):
        Graph("test").network(network.SerializeToString(), {})
    with pytest.raises(BadModel, match="opset 17, expected 18 or later; export it again"):
        Graph("test", opset=17)


def test_a_graph_that_is_none_is_not_written() -> None:
    graph = Graph("test")
    graph.output("y", graph("NoSuchOperator", graph.input("x", np.float32, ["n"])), np.float32, ["n"])
    with pytest.raises(BadModel, match="not valid ONNX"):
        graph.to_bytes()


def test_without_onnx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not graphs.can_draw()
    with pytest.raises(BadModel, match=r"'onnx'.* not installed; pip install 'streamer\[cuda\]', or choose reduce_on"):
        Graph("saxs")


def test_the_package_is_loaded_only_to_draw(python: str) -> None:
    code = "import sys, streamer.analyses.saxs; print(any(name.split('.')[0] == 'onnx' for name in sys.modules))"
    loaded = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert loaded.stdout.strip() == "False"
