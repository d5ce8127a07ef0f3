"""The chain as a beamline would write it today: one loop of well-known libraries, nothing threaded, nothing pooled.

pyzmq receives, cbor2 reads the message (tags as in DECTRIS's own example client), the fastest decompressor that is
installed unpacks it, pyFAI's fastest method on few cores (csc, without splitting) gives I(q) ± σ, onnxruntime answers
with its default options, and an `if` decides. The curve is put on the network's grid by the functions that the network
was trained with, because its input is what they make.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from streamer.infer import find_model, read_card
from streamer.reduce.curves import rebin
from streamer.reduce.reference import channels
from tools.benches.frames import BINS, mask, q_range
from tools.benches.reducing import azimuthal_integrator

Decompress = Callable[[bytes, int], NDArray[np.uint8]]
"""The compressed bytes, header included, and the element size; the plain bytes."""

HEADER = 12
ABOVE = 0.9
DTYPES = {64: np.uint8, 69: np.uint16, 70: np.uint32, 77: np.int16, 78: np.int32, 85: np.float32}
"""Tags of typed arrays, as far as a detector sends them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the loop says of one frame."""

    intensity: NDArray[Any]
    sigma: NDArray[Any]
    anomaly: float
    is_alarm: bool


class Loop:
    """The body of the loop: a message in, an answer out. None for messages that are no images."""

    def __init__(self, detector: str) -> None:
        self.ai = azimuthal_integrator(detector)
        self.mask, self.q_range = mask(detector), q_range(detector)
        self.decompressor, self._decompress = next(iter(decompressors().items()))
        folder = find_model("saxs")
        self._grid = read_card(folder).grid("q")
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def name(self) -> str:
        return f"pyFAI csc loop (pyzmq, cbor2, {self.decompressor}, onnxruntime)"

    def __call__(self, octets: Any) -> Answer | None:
        message = cbor2.loads(octets, tag_hook=self._tag)
        if message["type"] != "image":
            return None
        image = next(iter(message["data"].values()))
        found = self.ai.integrate1d(
            image,
            BINS,
            variance=image,
            radial_range=self.q_range,
            unit="q_nm^-1",
            mask=self.mask,
            method=("no", "csc", "cython"),
            safe=False,
        )
        weight = found.count.astype(np.float64)
        empty = weight == 0
        intensity = np.where(empty, np.nan, found.intensity)
        sigma = np.where(empty, np.nan, np.maximum(found.sigma, 1 / np.maximum(weight, 1)))
        curve = channels(*rebin(found.radial, intensity, sigma, self._grid, weight=weight))
        answer = dict(zip(self._outputs, self._session.run(None, {"curve": curve[None]}), strict=True))
        anomaly = float(answer["anomaly"][0])
        return Answer(intensity, sigma, anomaly, anomaly > ABOVE)

    def _tag(self, tag: cbor2.CBORTag, _: bool) -> Any:
        if tag.tag == 40:
            shape, elements = tag.value
            return elements.reshape(shape)
        if tag.tag in DTYPES:
            return np.frombuffer(tag.value, DTYPES[tag.tag])
        if tag.tag == 56500:
            _, elem_size, packed = tag.value
            return self._decompress(packed, elem_size)
        return tag


def decompressors() -> dict[str, Decompress]:
    """Everybody else's bitshuffle-LZ4 that is installed, the fastest first."""
    found: dict[str, Decompress] = {}
    try:
        from dectris.compression import decompress
    except ImportError:
        pass
    else:
        found["dectris-compression"] = lambda packed, size: np.frombuffer(
            decompress(packed, "bslz4", elem_size=size), np.uint8
        )
    try:
        import bitshuffle
    except ImportError:
        pass
    else:
        found["bitshuffle"] = lambda packed, size: _by_bitshuffle(bitshuffle, packed, size)
    found["hdf5plugin"] = _by_hdf5plugin()
    return found


def _sizes(packed: bytes, size: int) -> tuple[int, int]:
    """Elements in all, and elements per block, as the header says."""
    return int.from_bytes(packed[:8], "big") // size, int.from_bytes(packed[8:HEADER], "big") // size


def _by_bitshuffle(bitshuffle: Any, packed: bytes, size: int) -> NDArray[np.uint8]:
    elements, block = _sizes(packed, size)
    octets = np.frombuffer(packed, np.uint8, offset=HEADER)
    plain: NDArray[Any] = bitshuffle.decompress_lz4(octets, (elements,), np.dtype(f"u{size}"), block)
    return plain.view(np.uint8)


def _by_hdf5plugin() -> Decompress:
    """The C function in the filter that h5py would load, called directly."""
    import hdf5plugin

    function = ctypes.CDLL(str(next(Path(hdf5plugin.PLUGIN_PATH).glob("*bshuf*")))).bshuf_decompress_lz4
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]

    def decompress(packed: bytes, size: int) -> NDArray[np.uint8]:
        elements, block = _sizes(packed, size)
        octets, plain = np.frombuffer(packed, np.uint8), np.empty(elements * size, np.uint8)
        if function(octets.ctypes.data + HEADER, plain.ctypes.data, elements, size, block) < 0:
            raise SystemExit("hdf5plugin: bshuf_decompress_lz4 refused the bench's own message")
        return plain

    return decompress
