"""Tiny networks and their cards, written into a folder as training would."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

POINTS = 8
WEIGHTS = np.linspace(-1.0, 1.0, POINTS).astype(np.float32)

CARD = """
name = "tiny"
version = "1.2.3"
question = "Is the right half of the curve above the left one?"
licence = "BSD-3-Clause"
sha256 = "SHA256"
opset = 18
max_batch = 8
limits = ["Knows straight lines only."]

[inputs.curve]
dtype = "float32"
shape = [8]
unit = "1"
grid = "q"

[inputs.offset]
dtype = "float32"
shape = []
unit = "1"

[outputs.score]
dtype = "float32"
shape = []
unit = "1"
meaning = "probability that it is"

[outputs.double]
dtype = "float32"
shape = [8]
unit = "1"
meaning = "twice the curve"
grid = "q"

[grids.q]
unit = "1/nm"
start = 0.05
stop = 5.0
points = 8
spacing = "log"

[calibration]
method = "temperature"
temperature = 1.3

[metrics]
auroc = 0.99
"""


def score(curve: NDArray[np.float32], offset: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the network `line` answers. curve: (B, 8), offset: (B,) → (B,)."""
    return 1 / (1 + np.exp(-(curve.astype(float) @ WEIGHTS + offset)))


def line(
    *,
    inputs: Sequence[tuple[str, int, Sequence[str | int]]] = (
        ("curve", TensorProto.FLOAT, ("batch", POINTS)),
        ("offset", TensorProto.FLOAT, ("batch",)),
    ),
    score_shape: Sequence[str | int] = ("batch",),
) -> onnx.ModelProto:
    """score = sigmoid(curve · WEIGHTS + offset), double = 2 · curve."""
    curve, offset = (name for name, _, _ in inputs)
    nodes = [
        helper.make_node("MatMul", [curve, "weights"], ["dot"]),
        helper.make_node("Add", ["dot", offset], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
        helper.make_node("Add", [curve, curve], ["double"]),
    ]
    outputs = [("score", TensorProto.FLOAT, score_shape), ("double", TensorProto.FLOAT, ("batch", POINTS))]
    return network(nodes, inputs, outputs, {"weights": WEIGHTS})


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[str | int]]],
    outputs: Sequence[tuple[str, int, Sequence[str | int]]],
    constants: dict[str, NDArray[Any]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write(folder: Path, model: onnx.ModelProto | bytes | None = None, card: str = CARD) -> Path:
    """A model's folder: the network and its card, whose sha256 is right. Returns the folder."""
    content = model if isinstance(model, bytes) else (model or line()).SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "card.toml").write_text(card.replace("SHA256", hashlib.sha256(content).hexdigest()), encoding="utf-8")
    return folder


def changed(old: str, new: str) -> str:
    """The card with one passage replaced by another."""
    if old not in CARD:
        raise ValueError(f"the card holds no {old!r}")
    return CARD.replace(old, new, 1)
