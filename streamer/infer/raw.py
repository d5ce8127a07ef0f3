"""A network that is asked with raw frames: the reduction before it is part of one graph with it.

On a CPU frames are reduced where they were decoded, and the network gets a few kilobytes. Where a GPU is to reduce
them, each frame has to cross the bus. So it crosses it once, as it came from the detector, and what comes back is
kilobytes: the reduced quantities and the network's answers.

    prepare   when the geometry is known: the graph is drawn, or found on disk, and a session opened and warmed up
    put       a worker hands over a decoded frame, and goes on; it gets a ticket of eight bytes
    run       tickets take the part of inputs: the frames behind them are reduced and judged in batches

`put` copies the frame, because the decoder writes the next one into the same memory: 9 MB cost a worker 1 to 2 ms on a
two-core machine, which is what the memory allows and about what the kernel takes for them. Decoding into the ring
itself would save that. On CUDA the copy is in pinned memory and starts for the device at once, while earlier frames are
computed. Frames wait in a ring that is allocated once; when it is full they wait in memory of their own, so that no
worker ever waits here. A ticket that nobody holds any more gives its place back, asked or not.

What is drawn is kept on disk under the fingerprint of everything it is made of, so that the package `onnx` is needed
once for a geometry. Where all operators run on CUDA, calls are captured as CUDA graphs, one for each size of a batch.
By the size of its tensors, a batch of uint16 takes some 16 bytes of the device's memory per pixel and frame while it is
computed, and a geometry's tables take 12 per pixel once.

Threads: `put` may be called from any, several at once; `run` and `prepare` from one at a time each. ONNX Runtime keeps
what it prepares on CUDA by thread: the first batches that another thread asks may take longer.

TensorRT is left out: it knows no float64, and would answer in float32 what has to be exact.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from streamer.graphs import FRAMES, SLOT, Graph
from streamer.infer.card import NETWORK, Card, listed, read_card
from streamer.infer.device import Device, choose_device
from streamer.infer.model import ORT_ERRORS, batch_sizes, find_model, open_session, read_network
from streamer.infer.ring import Ring
from streamer.records import BadFrame, BadInput, BadModel

__all__ = ["FRAME", "RawModel", "Reduction", "Window", "load_raw_model"]

log = structlog.get_logger(__name__)

FRAME = "frame"
"""The input of `RawModel.run` that holds tickets."""

RING_BYTES = 2**30
"""Of frames waiting on the device: fifty of four million uint16, of which a pipeline seldom has half at a time."""

KEPT_GRAPHS = 12
"""On disk, those last used. One is some 40 MB for four million pixels."""

Tensors = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reduction:
    """What stands before the network.

    fingerprint: the same for reductions that are drawn alike.   shape, dtype: of a frame.
    places: values in a row of the graph's input FRAMES.
    inputs: name → shape of what every frame brings along, float64, without the batch axis; zeros must be good enough
        to warm up with.
    outputs: name → shape of what is given out besides the network's answers, float64, without the batch axis.
    draw: adds the reduction to a graph, with the inputs FRAMES, SLOT and `inputs` (see `reduce.graph`), and returns the
        tensors that feed the network and those of `outputs`, by name.
    """

    fingerprint: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    places: int
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    draw: Callable[[Graph], tuple[Tensors, Tensors]]


def load_raw_model(
    name_or_path: str | Path, *, device: Device = "auto", max_batch: int = 16, threads: int = 1
) -> RawModel:
    """A model to be asked with raw frames; arguments and errors are those of `load_model`."""
    if max_batch < 1 or threads < 1:
        raise BadInput(f"load_raw_model: found max_batch {max_batch}, threads {threads}; expected 1 or more of both")
    folder = find_model(name_or_path)
    card = read_card(folder)
    chosen, why = choose_device(device)
    model = RawModel(card, read_network(folder / NETWORK, card), chosen, min(max_batch, card.max_batch), threads)
    log.info("model read", model=card.name, version=card.version, device=chosen, why=why, max_batch=model.max_batch)
    return model


class RawModel:
    """A network and what stands before it; made by `load_raw_model`.

    card: what the network says of itself. device: "cuda" or "cpu". max_batch: frames in one call.
    """

    def __init__(
        self, card: Card, network: bytes, device: Literal["cuda", "cpu"], max_batch: int, threads: int
    ) -> None:
        self.card = card
        self.device = device
        self.max_batch = max_batch
        self._network = network
        self._threads = threads
        self._tickets = itertools.count()
        self._waiting: dict[int, _Waiting] = {}

    def prepare(self, reduction: Reduction) -> Window:
        """Get ready for frames of one geometry and dtype, so that the first is answered as fast as the last.

        Frames handed in at an earlier window are still answered.
        Raises BadModel: the network does not go with the reduction, or `onnx` is needed and not installed.
        """
        content = _kept_graph(self.card, self._network, reduction)
        return Window(self, content, reduction, self._threads, self._tickets, self._waiting)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What the reduction gives out, and the network's outputs, for a batch of frames: arrays (B, *shape).

        inputs: FRAME, (B,) tickets from `Window.put`, each of which can be asked once, and those of the reductions they
        were handed in for, (B, *shape). The network's outputs are NaN for frames whose reduction left nothing to be
        judged. Raises BadInput for wrong names or tickets, BadModel when ONNX Runtime fails.
        """
        if FRAME not in inputs:
            raise BadInput(f"{self.card.name}: found inputs {listed(inputs)}, expected '{FRAME}' among them")
        tickets = [int(ticket) for ticket in inputs[FRAME]]
        brought = {name: values for name, values in inputs.items() if name != FRAME}
        unknown = [ticket for ticket in tickets if ticket not in self._waiting]
        if unknown or not tickets:
            raise BadInput(f"{self.card.name}: no frame waits under the tickets {unknown}; each can be asked once")
        parts, first = [], 0
        for window, group in groupby(tickets, lambda ticket: self._waiting[ticket].window):
            members = list(group)
            along = {name: values[first : first + len(members)] for name, values in brought.items()}
            parts += window.ask([self._waiting[ticket] for ticket in members], along)
            first += len(members)
            for ticket in members:
                _forget(self._waiting, ticket)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Window:
    """Where frames of one geometry and dtype are handed in; made by `RawModel.prepare`."""

    def __init__(
        self,
        model: RawModel,
        content: bytes,
        reduction: Reduction,
        threads: int,
        tickets: itertools.count[int],
        waiting: dict[int, _Waiting],
    ) -> None:
        self._name, self._device, self._max_batch = model.card.name, model.device, model.max_batch
        self._reduction, self._tickets, self._waiting = reduction, tickets, waiting
        outputs: dict[str, tuple[tuple[int, ...], str]] = {
            name: (shape, "float64") for name, shape in reduction.outputs.items()
        }
        self._outputs = outputs | {name: (tensor.shape, tensor.dtype) for name, tensor in model.card.outputs.items()}
        row_bytes = reduction.places * reduction.dtype.itemsize
        early = int(np.clip(RING_BYTES // row_bytes, 1, 3 * self._max_batch))
        # The first rows are for frames that found no other when they came.
        self._ring = Ring(self._max_batch + early, reduction.places, reduction.dtype, self._device)
        self._free = deque(range(self._max_batch, self._ring.rows))
        self._session, self._captures = _session(content, self._name, self._device, threads)
        self._bound: dict[int, _Bound] = {}
        self._warm_up()

    def put(self, image: NDArray[Any]) -> NDArray[np.int64]:
        """Hand in a frame. Returns its ticket, () int64: while somebody holds this array, the frame waits.

        Raises BadFrame with reason "shape" or "dtype".
        """
        shape, dtype = self._reduction.shape, self._reduction.dtype
        if image.shape != shape:
            raise BadFrame("shape", f"{self._name}: the image has shape {image.shape}, the geometry {shape}")
        if image.dtype != dtype:
            raise BadFrame("dtype", f"{self._name}: the image is {image.dtype}, those before it were {dtype}")
        try:
            row = self._free.pop()
        except IndexError:
            waiting = _Waiting(self, None, image.copy())
        else:
            self._ring.put(row, image)
            waiting = _Waiting(self, row, None)
        number = next(self._tickets)
        self._waiting[number] = waiting
        ticket = np.array(number, dtype=np.int64)
        weakref.finalize(ticket, _forget, self._waiting, number).atexit = False
        return ticket

    def ask(self, frames: list[_Waiting], inputs: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
        """The outputs for some frames, max_batch at a time. inputs: what they brought along. Raises BadInput."""
        if inputs.keys() != self._reduction.inputs.keys():
            found, expected = listed(inputs), listed(self._reduction.inputs)
            raise BadInput(f"{self._name}: found inputs {found} besides '{FRAME}', expected {expected}")
        step = self._max_batch
        return [
            self._ask(frames[at : at + step], {name: values[at : at + step] for name, values in inputs.items()})
            for at in range(0, len(frames), step)
        ]

    def give_back(self, row: int) -> None:
        """A row is free again, and the next to be taken: it may still be in a cache."""
        self._free.append(row)

    def _ask(self, frames: list[_Waiting], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        slots = np.empty(len(frames), dtype=np.int64)
        for i, frame in enumerate(frames):
            if frame.image is not None:
                self._ring.put(i, frame.image)
            slots[i] = i if frame.row is None else frame.row
        self._ring.wait()
        return self._call(
            slots, {name: np.ascontiguousarray(values, dtype=np.float64) for name, values in inputs.items()}
        )

    def _call(self, slots: NDArray[np.int64], inputs: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[Any]]:
        try:
            if self._device == "cpu":
                names = list(self._outputs)
                feeds = {FRAMES: self._ring.frames, SLOT: slots, **inputs}
                return dict(zip(names, self._session.run(names, feeds), strict=True))
            size = next(size for size in batch_sizes(self._max_batch) if size >= len(slots))
            if size not in self._bound:
                self._bound[size] = _Bound(
                    self._session,
                    self._ring.frames,
                    self._reduction.inputs,
                    self._outputs,
                    size,
                    self._device,
                    self._captures,
                )
            return self._bound[size].run({SLOT: slots, **inputs})
        except ORT_ERRORS as error:
            raise BadModel(f"{self._name}: ONNX Runtime failed on {self._device} ({error})") from error

    def _warm_up(self) -> None:
        """Every batch size once: memory is taken, algorithms are chosen and CUDA graphs captured."""
        for size in batch_sizes(self._max_batch):
            nothing = {name: np.zeros((size, *shape)) for name, shape in self._reduction.inputs.items()}
            self._call(np.zeros(size, dtype=np.int64), nothing)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame, in a row of the ring or, where none was free, in memory of its own."""

    window: Window
    row: int | None
    image: NDArray[Any] | None


def _forget(waiting: dict[int, _Waiting], ticket: int) -> None:
    """Give back a frame's place; also called when its ticket is garbage, so from anywhere and without a lock."""
    frame = waiting.pop(ticket, None)
    if frame is not None and frame.row is not None:
        frame.window.give_back(frame.row)


class _Bound:
    """Inputs and outputs on the device for one batch size, bound to the session once and reused by every call."""

    def __init__(
        self,
        session: Any,
        frames: Any,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[tuple[int, ...], str]],
        size: int,
        device: str,
        captures: bool,
    ) -> None:
        def on_device(shape: tuple[int, ...], dtype: str) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type([size, *shape], np.dtype(dtype), device, 0)

        self._session = session
        brought = {SLOT: ((), "int64"), **{name: (shape, "float64") for name, shape in inputs.items()}}
        self._values = {name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in brought.items()}
        self._inputs = {name: on_device(shape, dtype) for name, (shape, dtype) in brought.items()}
        self._outputs = {name: on_device(shape, dtype) for name, (shape, dtype) in outputs.items()}
        self._options = onnxruntime.RunOptions()
        if captures:
            self._options.add_run_config_entry("gpu_graph_id", str(size))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(FRAMES, frames)
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs for as many frames as fit. Behind them any frame is computed, and ignored."""
        count = len(inputs[SLOT])
        for name, values in inputs.items():
            self._values[name][:count] = values
            self._inputs[name].update_inplace(self._values[name])
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return {name: value.numpy()[:count].copy() for name, value in self._outputs.items()}


def _session(content: bytes, name: str, device: str, threads: int) -> tuple[Any, bool]:
    """A session, and whether its calls are captured as CUDA graphs: only where no operator needs the CPU."""
    if device == "cpu":
        return open_session(content, name, device, threads, is_deterministic=False), False
    try:
        return open_session(content, name, device, threads, {"enable_cuda_graph": "1"}, is_deterministic=False), True
    except BadModel as refusal:
        log.info("without CUDA graphs", model=name, reason=str(refusal))
    return open_session(content, name, device, threads, is_deterministic=False), False


def joined(card: Card, network: bytes, reduction: Reduction) -> bytes:
    """One ONNX graph of the reduction and the network. Raises BadModel."""
    graph = Graph(f"{card.name} of raw frames", card.opset)
    fed, given_out = reduction.draw(graph)
    if fed.keys() != card.inputs.keys():
        raise BadModel(f"{card.name}: the reduction feeds {listed(fed)}, the network takes {listed(card.inputs)}")
    known = [_is_known(graph, tensor, card.inputs[name].dtype, card.inputs[name].shape) for name, tensor in fed.items()]
    is_known = known[0]
    for also in known[1:]:
        is_known = graph("And", is_known, also)

    def where_known(tensor: str, otherwise: float, dtype: str, shape: tuple[int, ...]) -> str:
        condition = graph("Unsqueeze", is_known, graph.axes(*range(1, 1 + len(shape)))) if shape else is_known
        return graph("Where", condition, tensor, graph.scalar(otherwise, dtype))

    answers = graph.network(
        network,
        {name: where_known(fed[name], 0.0, tensor.dtype, tensor.shape) for name, tensor in card.inputs.items()},
    )
    for name, shape in reduction.outputs.items():
        graph.output(name, given_out[name], np.float64, ["batch", *shape])
    for name, tensor in card.outputs.items():
        answer = where_known(answers[name], np.nan, tensor.dtype, tensor.shape)
        graph.output(name, answer, tensor.dtype, ["batch", *tensor.shape])
    return graph.to_bytes()


def _is_known(graph: Graph, tensor: str, dtype: str, shape: tuple[int, ...]) -> str:
    """(batch,) bool: whether all numbers of a frame's input are finite."""
    is_finite = graph.is_finite(tensor, dtype)
    if not shape:
        return is_finite
    least = graph("ReduceMin", graph.cast(is_finite, np.float32), graph.axes(*range(1, 1 + len(shape))), keepdims=0)
    return graph("Greater", least, graph.scalar(0.5, np.float32))


def _kept_graph(card: Card, network: bytes, reduction: Reduction) -> bytes:
    """The joined graph, from disk if it is there and whole."""
    key = f"{VERSION} {card.sha256} {reduction.fingerprint} {reduction.dtype} {reduction.places}"
    path = graph_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx"
    digest = path.with_suffix(".sha256")
    try:
        content = path.read_bytes()
        if digest.read_text(encoding="ascii") == hashlib.sha256(content).hexdigest():
            os.utime(path)
            return content
        log.warning("a graph on disk was damaged and is drawn anew", path=str(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("graphs on disk cannot be read", folder=str(path.parent), reason=error.strerror)
    content = joined(card, network, reduction)
    try:
        _keep(path, content)
        _keep(digest, hashlib.sha256(content).hexdigest().encode())
        _clear(path.parent)
    except OSError as error:
        log.warning("the graph is not kept on disk", folder=str(path.parent), reason=error.strerror)
    return content


VERSION = 2
"""Of what `joined` draws; to be raised with every change of it."""


def graph_folder() -> Path:
    """Where graphs are kept: $STREAMER_CACHE, else in the user's cache."""
    chosen = os.environ.get("STREAMER_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "streamer"


def _keep(path: Path, content: bytes) -> None:
    """Write a file that is never there by half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _clear(folder: Path) -> None:
    graphs = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
    for path in graphs[:-KEPT_GRAPHS]:
        path.unlink(missing_ok=True)
        path.with_suffix(".sha256").unlink(missing_ok=True)
