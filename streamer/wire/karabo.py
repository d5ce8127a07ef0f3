"""Karabo bridge: the trains of the European XFEL, as the control system there hands them to programs outside it.

A message is a train: what all sources (detectors, cameras, slow values) gave for one train id. The bridge answers
requests (REP, the usual way: each `next` gets one train), publishes or pushes. Two versions are spoken. Source:
European-XFEL/karabo-bridge-py, docs/protocol.rst and serializer.py.

    2.2   pairs of parts. Header, a msgpack map: source, content, and by content
              "msgpack"               metadata; the other part is a msgpack map with what is no array
              "array", "ImageData"    path, dtype, shape; the other part is the bytes of the array in C order
    1.0   one part, a msgpack map: source → {path → value, "metadata" → metadata}, in which an array is the map
              {nd: true, type: "<f4", kind: "", shape: […], data: bytes} of the package msgpack-numpy

`metadata` has `timestamp.tid`, the train id, and the time since 1970 as `timestamp` (s), `timestamp.sec` and
`timestamp.frac` (attoseconds). The train id is the number of the frames; the rest goes to `extra` as it was sent.

Images. The detector is the only source in the train with an array at one of PATHS, unless `detector` and `path` name
it. Its modules become rows, module 0 first, and every pulse (memory cell) is an image of its own: the frames of one
train share its number, and their channels are "pulse_0", "pulse_1", … by position in the train. Where there is no axis
of pulses, a train is one frame of channel "". A train without any array of two dimensions holds no image and decodes
to nothing; one with arrays, but none where the detector's should be, is refused.

Axes. Nothing in a message names them, so `axes` does: "pulse,module,y,x" (x along a row) in the order of the array.
Without it, arrays of two dimensions are y,x, of three module,y,x, and of four pulse,module,y,x (calibrated data, as in
files) or module,x,y,pulse (as it leaves the detector), whichever makes the modules those of a detector in MODULES; the
former if both or neither does.

Memory. Arrays of 2.2 and 1.0 are read where they were received; only the pulses asked for are copied, once. They can
be no larger than the message, and a train gives at most MAX_PULSES images and LARGEST_TRAIN pixels.

Nothing is executed and nothing is believed. Trains pickled by an old bridge are refused, because unpickling runs what
the sender wrote. What a source says beside its images and metadata is not looked at in 2.2, and not used in 1.0.
Reasons of BadFrame are the keys of REASONS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from streamer import messagepack
from streamer.fields import Fields, excerpt, is_natural, naming, plain
from streamer.pixels import Scratch, dtype_named, usable
from streamer.records import BadConfig, BadFrame, BadInput, Buffer, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.wire import Format, Kind

__all__ = ["LARGEST_TRAIN", "MAX_PULSES", "MODULES", "PATHS", "REASONS", "Karabo"]

REASONS: Mapping[str, str] = {
    "parts": "no parts, an odd number of parts, or more than a train has",
    "truncated": "bytes are missing",
    "msgpack": "not one well-formed msgpack map: extension types, a key twice, bytes left over, beyond reason, pickled",
    "type": "a content that is not msgpack, array or ImageData",
    "id": "the train id is absent or not a natural number",
    "field": "another field is absent where it must not be, of the wrong type, or comes twice",
    "source": "the detector is not in the train, has no image, or cannot be told from others",
    "dtype": "elements that are no numbers an image can be made of",
    "shape": "not the axes of this detector, or a payload that does not fill them",
    "size": "an image larger than max_pixels, or more pulses than one train may have",
}

PATHS = ("image.data", "data.adc", "data.image.data", "data.image.pixels", "data.image")
"""Where images are, in the order they are looked for: AGIPD, LPD and DSSC; JUNGFRAU; ImageData of cameras; ePix."""

MODULES = {(512, 128): "AGIPD", (256, 256): "LPD", (128, 512): "DSSC", (512, 1024): "JUNGFRAU"}
"""(y, x) of one module of the detectors there, in pixels."""

MAX_PULSES = 1024
"""Images of one train. A DSSC keeps 800 pulses, an LPD 512, an AGIPD 352."""

LARGEST_TRAIN = 1 << 28
"""Pixels taken from one train: 256 pulses of a megapixel detector, 1 GiB of float32."""

MAX_PARTS = 4096
"""Sixteen modules with their ten arrays each are 352 parts; the rest is room for slow sources."""

MAX_NAME = 200
"""Characters of a source's name, which is kept and printed; the longest at the facility have some 60."""

_BLOCK = 16
"""Rows copied at a time out of an array whose fastest axis is the pulse: what they need of it (16 × 128 × 64 float32
are 512 kB) stays in the second-level cache while every pulse takes its part. Five times as fast as pulse by pulse."""

_AXES = ("pulse", "module", "y", "x")
_CALIBRATED, _AS_READ = ("pulse", "module", "y", "x"), ("module", "x", "y", "pulse")
_USUAL_AXES = {2: ("y", "x"), 3: ("module", "y", "x"), 4: _CALIBRATED}

_HEADER = re.compile(
    rb"(?:[\x82-\x8f]|\xde..)(?:\xa6source|\xa7content|\xa8metadata|\xa4path|\xa5dtype|\xa5shape)", re.S
)
"""The first bytes of a header of version 2.x: a map, and whichever of its keys comes first."""

_NAMED_MAP = re.compile(rb"(?:[\x81-\x8f]|\xde..)(?:([\xa1-\xbf])|\xd9(.)|\xda(..))", re.S)
_NESTED = re.compile(rb"(?:[\x81-\x8f]|\xde..)[\xa0-\xbf\xd9-\xdb]", re.S)
"""The first bytes of version 1.0, a map and a name, and of what that names: a map again."""

_IDENTITY = frozenset({"source", "timestamp.tid"})
"""The metadata that say whose train it is and which."""

_CODES = {
    np.dtype(name).str[1:]: name
    for name in (
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "bool"),
    )
}
"""The types images come in, by NumPy's code without the byte order."""


class _Array(NamedTuple):
    """An array as the message describes it, unchecked."""

    dtype: Any
    shape: Any
    octets: Any

    @property
    def dimensions(self) -> int:
        return len(self.shape) if isinstance(self.shape, list) else 0


class _Source:
    """What one source gave for a train."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] | None = None
        self.arrays: dict[str, _Array] = {}

    def path(self, wanted: str) -> str | None:
        """Where its image is."""
        return next((path for path in ((wanted,) if wanted else PATHS) if path in self.arrays), None)


class _Image(NamedTuple):
    """The detector's image, and who it belongs to."""

    series: SeriesKey
    number: int
    metadata: Mapping[str, Any]
    array: _Array

    def identity(self) -> tuple[SeriesKey, int]:
        """Series and number."""
        return self.series, self.number


class Karabo(Format):
    """Karabo bridge, versions 1.0 and 2.2.

    detector: the source images are taken from; by default the only one that has any. path: where it has them, the
        first of PATHS by default. axes: the axes of that array, slowest first ("pulse,module,y,x").
    pulses: which of a train's pulses, in Python's slice notation: "0:16" the first sixteen, "::2" every second.
    step: distance of the ids of consecutive trains. max_pixels: the largest image to expect, all modules together.
    version: what `encode` speaks; both are understood.
    Raises BadConfig for axes, pulses or versions that do not exist.
    """

    name = "karabo"
    title = "Karabo bridge"
    usual_socket = "req"
    is_counted = True

    def __init__(
        self,
        detector: str = "",
        path: str = "",
        axes: str = "",
        pulses: str = ":",
        step: int = 1,
        max_pixels: int = 64_000_000,
        version: Literal["2.2", "1.0"] = "2.2",
    ) -> None:
        if version not in ("1.0", "2.2"):
            raise BadConfig(f"karabo: found version {version!r}, expected '1.0' or '2.2'")
        if step < 1 or max_pixels < 1:
            raise BadConfig(f"karabo: found step {step}, max_pixels {max_pixels}; both are 1 or more")
        self.detector = detector
        self.path = path
        self.axes = _axes(axes)
        self.pulses = _slice(pulses)
        self.step = step
        self.max_pixels = max_pixels
        self.version = version

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        """Every train is an "image", also one that turns out to hold none."""
        if len(parts) == 1:
            return "image" if _is_map_of_maps(parts[0]) else None
        return "image" if parts and len(parts) % 2 == 0 and _HEADER.match(parts[0]) else None

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        """The detector and the train id. A train without images is refused for its source."""
        image = self._find(_read(parts))
        if image is None:
            raise BadFrame("source", "karabo: a train without images")
        return image.series, image.number

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        image = self._find(_read(parts))
        if image is None:
            return []
        with naming(image.identity):
            extra = {name: plain(value) for name, value in image.metadata.items() if name not in _IDENTITY}
            return [
                Frame(usable(pixels), image.series, image.number, channel, received_ns=received_ns, extra=extra)
                for channel, pixels in self._images(image.array, scratch)
            ]

    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> list[Buffer]:
        """The parts of a train: all of its pulses in order, or its one image, whatever its channel. No start, no end.

        Raises BadInput for frames that are not the pulses 0, 1, … of one train, alike in shape and element type.
        """
        if isinstance(record, SeriesStart | SeriesEnd):
            return []
        array = self._stacked(record)
        first = record[0]
        source = first.series.unique or self.detector or "detector"
        extra = {name: value for name, value in first.extra.items() if name not in _IDENTITY}
        metadata = {**extra, "source": source, "timestamp.tid": int(first.number)}
        path = self.path or PATHS[0]
        pack = msgpack.Packer(default=_plain_scalar, use_bin_type=True).pack
        try:
            if self.version == "1.0":
                return [pack({source: {path: _numpy_map(array), "metadata": metadata}})]
            described = {"path": path, "dtype": array.dtype.name, "shape": array.shape}
            return [
                pack({"source": source, "content": "msgpack", "metadata": metadata}),
                pack({}),
                pack({"source": source, "content": "array", **described}),
                array.tobytes(),
            ]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"karabo: extra cannot be sent ({error}); give text, numbers, lists and maps") from error

    def _find(self, sources: Mapping[str, _Source]) -> _Image | None:
        """The image of a train; None where none of its sources has any."""
        name = self._chosen(sources)
        if name is None:
            return None
        source = sources[name]
        series, metadata = SeriesKey(0, name), source.metadata or {}
        with naming(lambda: (series, None)):
            number = Fields(metadata).natural("timestamp.tid")
        path = source.path(self.path)
        if path is None:
            text = f"karabo: {name[:60]!r} has no image at {self._where()} but arrays at {_listed(source.arrays)}"
            raise BadFrame("source", text, series=series, number=number)
        return _Image(series, number, metadata, source.arrays[path])

    def _chosen(self, sources: Mapping[str, _Source]) -> str | None:
        """The name of the detector; None where no source has images."""
        if self.detector:
            if self.detector in sources:
                return self.detector
            raise BadFrame("source", f"karabo: no {self.detector[:60]!r} in the train, it has {_listed(sources)}")
        found = [name for name, source in sources.items() if source.path(self.path)]
        if len(found) > 1:
            raise BadFrame("source", f"karabo: images of {_listed(found)} in one train; name the detector")
        if found:
            return found[0]
        arrays = [path for source in sources.values() for path, array in source.arrays.items() if array.dimensions > 1]
        if arrays:
            raise BadFrame("source", f"karabo: no image at {self._where()} but arrays at {_listed(arrays)}; set path")
        return None

    def _where(self) -> str:
        return repr(self.path[:60]) if self.path else f"{PATHS[0]} or the like"

    def _images(self, array: _Array, scratch: Scratch | None) -> list[tuple[str, NDArray[Any]]]:
        """(channel, image) of every pulse asked for, in memory of their own and native byte order."""
        received = _ndarray(array)
        axes = self.axes or _usual_axes(received.shape)
        if len(axes) != received.ndim:
            raise BadFrame("shape", f"an array of shape {received.shape}, expected the axes {','.join(axes)}")
        lacking = [axis for axis in _AXES if axis not in axes]
        order = [(*lacking, *axes).index(axis) for axis in _AXES]
        pulses = received.reshape((1,) * len(lacking) + received.shape).transpose(order)
        chosen = range(len(pulses))[self.pulses] if "pulse" in axes else range(1)
        self._check_size(len(chosen), pulses.shape[1:])
        if not chosen:
            raise BadFrame("shape", f"a train of {len(pulses)} pulses has none of those asked for; change pulses")
        empty: Callable[..., NDArray[Any]] = np.empty if scratch is None else scratch.empty
        out = empty((len(chosen), *pulses.shape[1:]), received.dtype.newbyteorder("="))
        _copy(out, pulses[chosen.start : chosen.stop : chosen.step])
        stacked = out.reshape(len(chosen), -1, out.shape[-1])
        channels = [f"pulse_{n}" for n in chosen] if "pulse" in axes else [""]
        return list(zip(channels, stacked, strict=True))

    def _check_size(self, pulses: int, shape: tuple[int, ...]) -> None:
        pixels = math.prod(shape)
        if pixels > self.max_pixels:
            raise BadFrame(
                "size", f"an image of {' × '.join(map(str, shape))} pixels, at most {self.max_pixels} wanted"
            )
        if pulses > MAX_PULSES or pulses * pixels > LARGEST_TRAIN:
            raise BadFrame(
                "size",
                f"{pulses} pulses of {pixels} pixels, expected at most {MAX_PULSES} and {LARGEST_TRAIN} pixels in all;"
                " choose some with pulses",
            )

    def _stacked(self, frames: Sequence[Frame]) -> NDArray[Any]:
        """The frames of one train as one array with the axes a reader with the same options expects."""
        exposures = {(frame.series, frame.number) for frame in frames}
        kinds = {(frame.image.shape, frame.image.dtype.newbyteorder("=").name) for frame in frames}
        channels = [frame.channel for frame in frames]
        if len(channels) == 1 and not channels[0].startswith("pulse_"):
            channels = [""]  # another detector's only channel: a train has no word for it
        if len(exposures) != 1 or len(kinds) != 1 or channels not in ([""], [f"pulse_{n}" for n in range(len(frames))]):
            raise BadInput(
                f"karabo: {len(frames)} frames of {len(exposures)} trains and {len(kinds)} kinds, channels"
                f" {channels[:4]}; give one of channel '' or all of pulse_0, pulse_1, … alike in shape and type"
            )
        images = np.stack([frame.image.astype(frame.image.dtype.newbyteorder("<"), copy=False) for frame in frames])
        axes = self.axes or (("y", "x") if channels == [""] else _CALIBRATED)
        if images.ndim != 3 or images.dtype.str[1:] not in _CODES or (channels != [""]) != ("pulse" in axes):
            raise BadInput(
                f"karabo: images of {images.dtype}, shape {images.shape[1:]}, channels {channels[:4]};"
                f" give 2-D integers or floats that have the axes {','.join(axes)}"
            )
        whole = images[:, np.newaxis]  # one module
        lacking = [axis for axis in _AXES if axis not in axes]
        turned = whole.transpose([_AXES.index(axis) for axis in (*lacking, *axes)])
        return np.ascontiguousarray(turned.reshape(turned.shape[len(lacking) :]))


def _axes(text: str) -> tuple[str, ...]:
    axes = tuple(axis.strip() for axis in text.split(",")) if text else ()
    if text and not (set(axes) <= set(_AXES) and len(set(axes)) == len(axes) and {"y", "x"} <= set(axes)):
        raise BadConfig(f"karabo: found axes {text!r}, expected y, x and if there are any pulse and module, in order")
    return axes


def _slice(text: str) -> slice:
    numbers = text.split(":")
    try:
        found = slice(*(int(number) if number.strip() else None for number in numbers))
        chosen = range(MAX_PULSES)[found]
    except (TypeError, ValueError) as error:
        raise BadConfig(f"karabo: found pulses {text!r}, expected a slice such as '0:16' or '::2'") from error
    if len(numbers) < 2 or chosen.step < 0:
        raise BadConfig(f"karabo: found pulses {text!r}, expected a slice forward such as '0:16' or '::2'")
    return found


def _usual_axes(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The axes of an array that nobody named."""
    is_calibrated = shape[-2:] in MODULES
    is_as_read = len(shape) == 4 and (shape[2], shape[1]) in MODULES
    return _AS_READ if is_as_read and not is_calibrated else _USUAL_AXES[len(shape)]


def _ndarray(array: _Array) -> NDArray[Any]:
    """The array where it lies in the message. Raises BadFrame where its description does not fit its bytes."""
    dtype = _dtype(array.dtype)
    shape = array.shape
    if not isinstance(shape, list) or not 2 <= len(shape) <= len(_AXES) or not all(is_natural(n) and n for n in shape):
        raise BadFrame("shape", "an array whose shape is not two to four positive numbers")
    if not isinstance(array.octets, bytes | bytearray | memoryview):
        raise BadFrame("field", f"the data of an array are {excerpt(array.octets)}, expected bytes")
    found, needed = memoryview(array.octets).nbytes, math.prod(shape) * dtype.itemsize
    if found != needed:
        raise BadFrame("shape", f"{found} bytes of pixels, the array's shape and type need {needed}")
    received: NDArray[Any] = np.frombuffer(array.octets, dtype).reshape(shape)
    return received


def _dtype(text: Any) -> np.dtype[Any]:
    """From NumPy's name ("float32", which is little-endian here) or its code ("<f4", ">u2", "|u1")."""
    if isinstance(text, str) and text[:1] in ("<", ">", "|", "="):
        return dtype_named(_CODES.get(text[1:], text), ">" if text[0] == ">" else "<")
    return dtype_named(text)


def _copy(out: NDArray[Any], pulses: NDArray[Any]) -> None:
    """Copy (pulses, modules, y, x) without reading anything twice from memory, whatever lies next to what."""
    if pulses.strides[-1] == pulses.itemsize:
        out[...] = pulses
        return
    for module in range(out.shape[1]):
        for y in range(0, out.shape[2], _BLOCK):
            out[:, module, y : y + _BLOCK] = pulses[:, module, y : y + _BLOCK]


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Some names for a log line."""
    shown = ", ".join(repr(name[:40]) for name in list(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "none"


def _plain_scalar(value: object) -> Any:
    """NumPy's numbers are sent as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no place for {type(value).__name__}")


def _numpy_map(array: NDArray[Any]) -> dict[bytes, Any]:
    """An array as msgpack-numpy writes it."""
    described = {b"type": array.dtype.str, b"kind": b"", b"shape": array.shape}
    return {b"nd": True, **described, b"data": array.tobytes()}


# Parts to sources.


def _read(parts: Sequence[Buffer]) -> dict[str, _Source]:
    """The sources of a train by name. Raises BadFrame."""
    if len(parts) == 1:
        return _read_nested(parts[0])
    if not parts or len(parts) % 2 or len(parts) > MAX_PARTS:
        raise BadFrame("parts", f"karabo: a message of {len(parts)} parts, expected 1 or pairs up to {MAX_PARTS}")
    sources: dict[str, _Source] = {}
    reader = messagepack.Reader()
    for header, octets in zip(parts[::2], parts[1::2], strict=True):
        fields = Fields(reader.map(header))
        source = sources.setdefault(_source_name(fields.get("source")), _Source())
        match fields.get("content"):
            case "msgpack":
                if source.metadata is not None:
                    raise BadFrame("field", "karabo: a source twice in one train")
                source.metadata = _metadata(fields.get("metadata"))
            case "array" | "ImageData":
                path = fields.get("path")
                if not isinstance(path, str) or path in source.arrays:
                    raise fields.wrong("path", "the name of an array that comes once")
                source.arrays[path] = _Array(fields.get("dtype"), fields.get("shape"), octets)
            case _:
                raise fields.wrong("content", "msgpack, array or ImageData", "type")
    return sources


def _read_nested(part: Buffer) -> dict[str, _Source]:
    """The same from the one part of version 1.0."""
    view = memoryview(part).cast("B")
    if len(view) > 1 and view[0] == 0x80 and 2 <= view[1] <= 5:
        raise BadFrame("msgpack", "karabo: a pickled train, which is never unpickled; set the bridge to msgpack")
    sources: dict[str, _Source] = {}
    for name, values in messagepack.Reader().map(view).items():
        if not isinstance(values, dict):
            raise BadFrame("field", f"karabo: a source is {excerpt(values)}, expected a map")
        source = sources[_source_name(name)] = _Source()
        source.metadata = _metadata(values.get("metadata"))
        source.arrays = {
            path: _Array(value.get("type"), value.get("shape"), value.get("data"))
            for path, value in values.items()
            if isinstance(value, dict) and value.get("nd") is True
        }
    return sources


def _source_name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise BadFrame("field", f"karabo: source is {excerpt(name)}, expected 1 to {MAX_NAME} printable characters")
    return name


def _metadata(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise BadFrame("field", f"karabo: metadata are {excerpt(value)}, expected a map")
    return value or {}


def _is_map_of_maps(part: Buffer) -> bool:
    """Whether the bytes begin as a train of version 1.0 does: a map, a name, and in it a map that is not empty."""
    name = _NAMED_MAP.match(part)
    if name is None:
        return False
    at = name.end() + (name[1][0] & 31 if name[1] else int.from_bytes(name[2] or name[3] or b"", "big"))
    return _NESTED.match(part, at) is not None
