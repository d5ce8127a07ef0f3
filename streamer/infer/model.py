"""A network is checked against its card, loaded, warmed up and asked in batches.

`model.onnx` is loaded only if its sha256 is the card's: ONNX Runtime loads a file with one flipped weight bit without a
word and then answers differently. The bytes that were hashed are the bytes that are loaded, and a network that keeps
weights in other files is refused, because nothing vouches for those.

Not measured is not an answer: a frame with a non-finite input gets NaN from every output, whatever the network makes of
it, and the frames beside it in the batch are answered as if it were not there.

Threads. None starts here but those of ONNX Runtime's operators (`threads`, asleep while idle). On CUDA the buffers on
the device are reused from call to call, so a Model belongs to one thread; on the CPU `run` may be called from any.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from streamer.infer.card import CARD, NETWORK, Card, ModelInput, ModelOutput, listed, read_card
from streamer.infer.device import ORT_FATAL, Device, choose_device, runtime, silence
from streamer.records import BadInput, BadModel, did_you_mean

__all__ = ["Model", "find_model", "list_models", "load_model"]

log = structlog.get_logger(__name__)

Arrays = Mapping[str, NDArray[Any]]

PACKAGE = Path(__file__).resolve().parent.parent
MODEL_FOLDERS = (PACKAGE / "models", PACKAGE.parent / "models")  # in an installed wheel, and in a checkout

ONNX_TYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
} | {f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "bool")}

# What ONNX Runtime raises: classes that share no base but Exception, and RuntimeError from its Python bindings.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort.EPFail,
    ort.EngineError,
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NoSuchFile,
    ort.NotImplemented,
    ort.RuntimeException,
    RuntimeError,
)

# HEURISTIC: the default times the algorithms on the spot and may choose another one, with other rounding, next time.
# use_tf32 = 0: TF32 keeps 10 bits of the mantissa, and the answer would no longer be that of the CPU.
CUDA_OPTIONS = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model.

    name_or_path: a Path, or anything with a "/", is taken as it is; a name means one of the models that come with
    streamer. Raises BadModel when there is none.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or os.sep in name_or_path:
        if path.is_dir():
            return path
        raise BadModel(f"no model folder '{path}'; expected a folder with {CARD} and {NETWORK}")
    known = {folder.name: folder for folder in list_models()}
    if name_or_path in known:
        return known[name_or_path]
    meant = did_you_mean(name_or_path, known)
    hint = f"; the folder of that name is './{name_or_path}'" if path.is_dir() else ""
    raise BadModel(f"no model named '{name_or_path}'{meant}{hint}")


def list_models() -> list[Path]:
    """The folders of the models that come with streamer, by name."""
    found: dict[str, Path] = {}
    for folder in MODEL_FOLDERS:
        for card in folder.glob(f"*/{CARD}"):
            found.setdefault(card.parent.name, card.parent)
    return [found[name] for name in sorted(found)]


def load_model(name_or_path: str | Path, *, device: Device = "auto", max_batch: int = 16, threads: int = 1) -> Model:
    """A model, checked against its card and warmed up.

    max_batch: frames in one call of the network; the card's own max_batch if that is smaller.
    threads: of ONNX Runtime's operators on the CPU.
    Raises BadModel (damaged, untrusted, not what the card says), BadConfig (the device), BadInput (the numbers).
    """
    if max_batch < 1 or threads < 1:
        raise BadInput(f"load_model: found max_batch {max_batch}, threads {threads}; expected 1 or more of both")
    folder = find_model(name_or_path)
    card = read_card(folder)
    network = read_network(folder / NETWORK, card)
    frames = min(max_batch, card.max_batch)
    chosen, why = choose_device(device)
    try:
        model = Model(card, _open_session(network, card, chosen, threads, is_quiet=device == "auto"), chosen, frames)
    except BadModel as error:
        if device != "auto" or chosen == "cpu":
            raise
        why = str(error)
        model = Model(card, _open_session(network, card, "cpu", threads), "cpu", frames)
    log.info("model ready", model=card.name, version=card.version, device=model.device, why=why, max_batch=frames)
    return model


class Model:
    """A network that is ready to be asked: made by `load_model`.

    card: what it says of itself. device: "cuda" or "cpu". max_batch: frames in one call of the network.
    """

    def __init__(self, card: Card, session: Any, device: Literal["cuda", "cpu"], max_batch: int) -> None:
        self.card = card
        self.device = device
        self.max_batch = max_batch
        self._session = session
        self._bound: dict[int, _Bound] = {}
        self._warm_up()

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """The network's outputs for a batch of frames.

        inputs: for every input of the card an array (B, *shape) of its dtype, the same B ≥ 0 for all; more than
            max_batch are asked in several calls.
        Returns for every output of the card an array (B, *shape). A frame with a NaN or ±∞ in any input gets NaN.
        Raises BadInput for wrong names, dtypes or shapes, BadModel when ONNX Runtime fails.
        """
        frames = self._count_frames(inputs)
        parts = [
            self._answer({name: values[first : first + self.max_batch] for name, values in inputs.items()})
            for first in range(0, frames, self.max_batch)
        ]
        if len(parts) == 1:
            return parts[0]
        return {
            name: np.concatenate([np.empty((0, *output.shape), output.dtype), *(part[name] for part in parts)])
            for name, output in self.card.outputs.items()
        }

    def _count_frames(self, inputs: Arrays) -> int:
        if inputs.keys() != self.card.inputs.keys():
            raise BadInput(f"{self.card.name}: found inputs {listed(inputs)}, expected {listed(self.card.inputs)}")
        counts = set()
        for name, expected in self.card.inputs.items():
            values = inputs[name]
            if values.dtype != expected.dtype or values.ndim == 0 or values.shape[1:] != expected.shape:
                raise BadInput(
                    f"{self.card.name}: input '{name}' is {values.dtype} of shape {values.shape}, expected "
                    f"{expected.dtype} of shape {('frames', *expected.shape)}"
                )
            counts.add(len(values))
        if len(counts) > 1:
            raise BadInput(f"{self.card.name}: inputs hold {sorted(counts)} frames, expected the same number in all")
        return counts.pop()

    def _answer(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """One call of the network for at most max_batch frames, with NaN for those that were not measured."""
        is_measured = np.logical_and.reduce([_is_finite(values) for values in inputs.values()])
        if is_measured.all():
            return self._call(inputs)
        blanked = {name: values.copy() for name, values in inputs.items()}
        for values in blanked.values():
            values[~is_measured] = 0
        outputs = self._call(blanked)
        for values in outputs.values():
            values[~is_measured] = np.nan
        return outputs

    def _call(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            if self.device == "cpu":
                names = list(self.card.outputs)
                return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
            return self._buffers_for(len(next(iter(inputs.values())))).run(inputs)
        except ORT_ERRORS as error:
            raise BadModel(f"{self.card.name}: ONNX Runtime failed on {self.device} ({error})") from error

    def _buffers_for(self, frames: int) -> _Bound:
        size = next(size for size in batch_sizes(self.max_batch) if size >= frames)
        if size not in self._bound:
            self._bound[size] = _Bound(self._session, self.card, size, self.device)
        return self._bound[size]

    def _warm_up(self) -> None:
        """Answer once for every batch size, so that no frame waits for memory or for the choice of an algorithm."""
        for size in batch_sizes(self.max_batch):
            outputs = self._call({name: _blank(size, tensor) for name, tensor in self.card.inputs.items()})
            for name, expected in self.card.outputs.items():
                if outputs[name].shape != (size, *expected.shape):
                    raise BadModel(
                        f"{self.card.name}: output '{name}' of {size} frames has shape {outputs[name].shape}, "
                        f"{CARD} says {(size, *expected.shape)}; the card and the network do not belong together"
                    )


class _Bound:
    """Buffers on the device for one batch size, bound to the session once and reused by every call."""

    def __init__(self, session: Any, card: Card, size: int, device: str) -> None:
        def on_device(tensor: ModelInput | ModelOutput) -> Any:
            shape = [size, *tensor.shape]
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(tensor.dtype), device, 0)

        self._session = session
        self._staged = {name: _blank(size, tensor) for name, tensor in card.inputs.items()}
        self._inputs = {name: on_device(tensor) for name, tensor in card.inputs.items()}
        self._outputs = {name: on_device(tensor) for name, tensor in card.outputs.items()}
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs for as many frames as fit. What is left of an earlier call in the rows behind them is ignored."""
        frames = 0
        for name, values in inputs.items():
            frames = len(values)
            self._staged[name][:frames] = values
            self._inputs[name].update_inplace(self._staged[name])
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return {name: value.numpy()[:frames].copy() for name, value in self._outputs.items()}


def batch_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, … and max_batch: on CUDA a batch is filled up to the next of these."""
    return [1 << power for power in range((max_batch - 1).bit_length())] + [max_batch]


def _blank(frames: int, tensor: ModelInput) -> NDArray[Any]:
    return np.zeros((frames, *tensor.shape), tensor.dtype)


def _is_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(B, …) → (B,): whether all numbers of a frame are finite."""
    is_finite: NDArray[np.bool_] = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return is_finite


def read_network(path: Path, card: Card) -> bytes:
    """The file's content, which is the one the card vouches for. Raises BadModel."""
    try:
        network = path.read_bytes()
    except OSError as error:
        raise BadModel(
            f"{path}: cannot be read ({error.strerror}); a model's folder holds {CARD} and {NETWORK}"
        ) from error
    found = hashlib.sha256(network).hexdigest()
    if found != card.sha256:
        raise BadModel(
            f"{path}: found sha256 {found[:16]}…, expected {card.sha256[:16]}… ({CARD}); the file was damaged, "
            f"or changed after its card was written: restore both, or export the model again"
        )
    return network


def _open_session(network: bytes, card: Card, device: str, threads: int, *, is_quiet: bool = False) -> Any:
    """An ONNX Runtime session on the device, which is what the card says. is_quiet: print nothing about the device."""
    session = open_session(network, card.name, device, threads, is_quiet=is_quiet)
    _check_signature(card, session)
    return session


def open_session(
    content: bytes,
    name: str,
    device: str,
    threads: int,
    cuda_options: Mapping[str, str] | None = None,
    *,
    is_deterministic: bool = True,
    is_quiet: bool = False,
) -> Any:
    """An ONNX Runtime session on the device. Raises BadModel.

    name: whose network it is. cuda_options: of the CUDA provider, besides ours. is_quiet: print nothing about the
    device. is_deterministic: whether the order of sums has to be the same every time, whatever that costs.
    """
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", CUDA_OPTIONS | dict(cuda_options or {})))
    options = _options(threads)
    options.use_deterministic_compute = is_deterministic
    with silence() if is_quiet else contextlib.nullcontext():
        try:
            session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
        except ORT_ERRORS as error:
            raise BadModel(
                f"{name}: {runtime()} cannot load {NETWORK} ({error}); export it again as one file, with standard "
                f"operators only"
            ) from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise BadModel(
            f'{name}: {runtime()} could not start its CUDA provider; with device = "cuda" it says why on stderr'
        )
    return session


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ORT_FATAL  # what goes wrong is raised, and so it is said once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in other files would be looked for in the working directory; nothing can lie in a folder of this name.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def _check_signature(card: Card, session: Any) -> None:
    """Names, dtypes and shapes of the network against the card. What the network leaves open the warm-up finds out."""
    sides: tuple[tuple[str, Mapping[str, ModelInput | ModelOutput], Any], ...] = (
        ("input", card.inputs, session.get_inputs()),
        ("output", card.outputs, session.get_outputs()),
    )
    for side, declared, nodes in sides:
        found = {node.name: node for node in nodes}
        if found.keys() != declared.keys():
            raise BadModel(f"{card.name}: {NETWORK} has {side}s {listed(found)}, {CARD} says {listed(declared)}")
        for name, tensor in declared.items():
            _check_tensor(f"{card.name}: {side} '{name}'", tensor, found[name])


def _check_tensor(who: str, tensor: ModelInput | ModelOutput, node: Any) -> None:
    dtype = ONNX_TYPES.get(node.type, node.type)
    if dtype != tensor.dtype:
        raise BadModel(f"{who} is {dtype} in {NETWORK}, {CARD} says {tensor.dtype}")
    batch, *shape = node.shape or [0]
    if node.shape and isinstance(batch, int):
        raise BadModel(
            f"{who} has a fixed first axis of {batch} in {NETWORK}; export it again with a dynamic batch axis"
        )
    fits = len(shape) == len(tensor.shape) and all(
        dim == expected for dim, expected in zip(shape, tensor.shape, strict=True) if isinstance(dim, int)
    )
    if not node.shape or not fits:
        raise BadModel(f"{who} has shape {node.shape} in {NETWORK}, {CARD} says {['batch', *tensor.shape]}")
