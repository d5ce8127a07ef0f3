"""ONNX graphs, written down node by node: the only room with the `onnx` package.

A graph is drawn where somebody knows what is to be computed (`reduce.graph`), joined with a model's network and run
where ONNX Runtime is (`infer.raw`). Drawing needs `onnx`; running what was drawn does not.

The network's operators are taken over as they are, except for a few that ONNX Runtime has for the CPU alone: one of
them would bring its values to the host and back in every call. Those are spelled out with others, in float64.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamer.records import BadModel

if TYPE_CHECKING:
    import onnx

__all__ = ["BESIDE", "FRAMES", "LIMITS", "REFERENCE", "SLOT", "Graph", "can_draw"]

FRAMES, SLOT, LIMITS = "frames", "slot", "limits"
"""The inputs of a graph that takes raw frames: those that wait, which of them are meant, and what is a measurement."""

REFERENCE, BESIDE = "reference", "beside"
"""Further inputs: the curve each frame is judged beside, and numbers that belong to it."""

OPSET = 18
"""From here on the axes of every reduction are an input, as they are written here."""

IR_VERSION = 10
"""The file format's version that goes with OPSET in every ONNX Runtime since 1.18."""


def can_draw() -> bool:
    """Whether the package `onnx` is installed."""
    return importlib.util.find_spec("onnx") is not None


class Graph:
    """A graph in the making. A tensor is known by its name; calling the graph adds a node.

    graph("Add", a, b) adds a node with one output and returns its name; attributes are keywords.
    Raises BadModel where `onnx` is not installed.
    """

    def __init__(self, name: str, opset: int = OPSET) -> None:
        if not can_draw():
            raise BadModel(
                f"{name}: the package 'onnx', which joins the reduction and the network in one graph, is not "
                "installed; pip install 'streamer[cuda]', or choose reduce_on = \"cpu\""
            )
        if opset < OPSET:
            raise BadModel(f"{name}: the network has opset {opset}, expected {OPSET} or later; export it again")
        self.name = name
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._taken: set[str] = set()

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = self._new(operator.lower())
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> str:
        """An input of this shape; a dimension that is a word may have any length."""
        self._inputs.append(self._described(name, dtype, shape))
        self._taken.add(name)
        return name

    def output(self, name: str, tensor: str, dtype: DTypeLike, shape: Sequence[int | str]) -> None:
        """Give a tensor to the outside under this name. Raises BadModel if the name is taken."""
        from onnx import helper

        if name in self._taken:
            raise BadModel(f"{self.name}: two tensors are called '{name}'; rename the network's")
        self._taken.add(name)
        self._nodes.append(helper.make_node("Identity", [tensor], [name]))
        self._outputs.append(self._described(name, dtype, shape))

    def constant(self, values: NDArray[Any]) -> str:
        """Values that are part of the graph."""
        from onnx import numpy_helper

        name = self._new("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def axes(self, *axes: int) -> str:
        """Axes, as operators want them."""
        return self.constant(np.array(axes, dtype=np.int64))

    def cast(self, tensor: str, dtype: DTypeLike) -> str:
        """The tensor's values in another dtype."""
        return self("Cast", tensor, to=_element_type(dtype))

    def total(self, tensor: str, *axes: int) -> str:
        """Sums over some axes, which go away."""
        return self("ReduceSum", tensor, self.axes(*axes), keepdims=0)

    def scalar(self, value: float, dtype: DTypeLike = np.float64) -> str:
        """One number, which goes with a tensor of any shape."""
        return self.constant(np.array(value, dtype=dtype))

    def is_finite(self, tensor: str, dtype: DTypeLike = np.float64) -> str:
        """bool: whether a number of this dtype is neither NaN nor ±∞: only for those x − x is 0."""
        return self("Equal", self("Sub", tensor, tensor), self.scalar(0, dtype))

    def smallest(self, tensor: str, number: int) -> str:
        """The smallest values along the last axis, ascending."""
        from onnx import helper

        values, places = self._new("smallest"), self._new("places")
        how_many = self.constant(np.array([number], dtype=np.int64))
        node = helper.make_node("TopK", [tensor, how_many], [values, places], axis=-1, largest=0, sorted=1)
        self._nodes.append(node)
        return values

    def asinh(self, x: str) -> str:
        """Of a float64; rounded to 10⁻¹⁶ absolutely, not relatively."""
        size = self("Abs", x)
        root = self("Sqrt", self("Add", self("Mul", x, x), self.scalar(1)))
        return self("Mul", self("Sign", x), self("Log", self("Add", size, root)))

    def sinh(self, x: str) -> str:
        """Of a float64; rounded to 10⁻¹⁶ absolutely, not relatively."""
        return self("Mul", self("Sub", self("Exp", x), self("Exp", self("Neg", x))), self.scalar(0.5))

    def network(self, content: bytes, inputs: Mapping[str, str]) -> dict[str, str]:
        """Take in a whole network, its inputs fed by tensors of this graph. Returns its outputs' tensors by name."""
        import onnx
        from onnx import compose, helper

        model = onnx.load_model_from_string(content)
        found = {one.domain or "ai.onnx": one.version for one in model.opset_import}
        if found != {"ai.onnx": self.opset} or model.functions:
            raise BadModel(f"{self.name}: the network uses {found}, expected standard operators of opset {self.opset}")
        prefix = f"{self._new('network')}/"
        graph = compose.add_prefix(model, prefix).graph
        self._constants += graph.initializer
        self._nodes += [helper.make_node("Identity", [fed], [prefix + name]) for name, fed in inputs.items()]
        element_types = {one.name: one.type.tensor_type.elem_type for one in _inferred(model, prefix)}
        for node in graph.node:
            if node.op_type in SPELLED_OUT:
                self._spell_out(node, element_types[node.output[0]])
            else:
                self._nodes.append(node)
        return {one.name.removeprefix(prefix): one.name for one in graph.output}

    def to_bytes(self) -> bytes:
        """The graph as the content of an .onnx file, checked."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="streamer")
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise BadModel(
                f"{self.name}: the joined graph is not valid ONNX ({error}); export the model again"
            ) from error
        content: bytes = model.SerializeToString()
        return content

    def _new(self, stem: str) -> str:
        name = f"{stem}_{len(self._taken)}"
        self._taken.add(name)
        return name

    def _spell_out(self, node: onnx.NodeProto, element_type: int) -> None:
        from onnx import helper

        value = SPELLED_OUT[node.op_type](self, self.cast(node.input[0], np.float64))
        self._nodes.append(helper.make_node("Cast", [value], list(node.output), to=element_type))

    @staticmethod
    def _described(name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        from onnx import helper

        return helper.make_tensor_value_info(name, _element_type(dtype), list(shape))


SPELLED_OUT: dict[str, Callable[[Graph, str], str]] = {"Asinh": Graph.asinh, "Sinh": Graph.sinh}
"""Operators that ONNX Runtime 1.31 has no CUDA kernel for, as far as our networks use them."""


def _inferred(model: onnx.ModelProto, prefix: str) -> Iterator[onnx.ValueInfoProto]:
    """Every tensor between a network's nodes with its type, under its name behind the prefix."""
    from onnx import compose, shape_inference

    graph = compose.add_prefix(shape_inference.infer_shapes(model), prefix).graph
    yield from graph.value_info
    yield from graph.output


def _element_type(dtype: DTypeLike) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
