"""array-1.0: a JSON header and an array, as areaDetector's ZeroMQ plug-in (ADZMQ) and PSI's std-daq send them.

PUB or PUSH, two parts per message. Sources: paulscherrerinstitute/htypes, array-1.0.md; the sources of ADZMQ and of
std_detector_buffer.

    {"htype": "array-1.0", "shape": [rows, columns], "type": "uint16", "frame": 7}      all that std-daq sends
    + "endianness" (or "endianess"), default "little"; "source"; "encoding", a compression, default none
    + "timeStamp", "ndattr"                                                             areaDetector

Series. The format knows none: `frame` counts on from one acquisition to the next (areaDetector's uniqueId), and begins
again when the camera's server restarts or somebody resets ArrayCounter. Frames are numbered as sent, under
`SeriesKey(0, source)`. There is no start and no end.

Shape. Slowest dimension first; but ADZMQ before 1.4.0 writes the fastest first, and is told by its `htype`, which is a
list. A dimension of 1 beyond two is dropped, and one dimension alone is an image of one row. Of three dimensions
exactly one must be 3: those are the colours, and the frame becomes three, in the channels "red", "green" and "blue".

Compression. areaDetector's codecs "lz4" (one block) and "bslz4" (blocks of 8192 bytes), neither with a header, and
"lz4hdf5"; data that do have the header of the HDF5 filters are read, too. ADZMQ sends the whole buffer that compressed
data lie in: what follows the last block of bslz4 is then cut off. "blosc", "jpeg" and "zlib" are refused.

Attributes. ADZMQ escapes nothing in `ndattr`, writes 8-bit numbers as characters and floats as "nan": the header may
not be JSON. As `ndattr` is its last entry, all others are read without it, and `Frame.extra["ndattr"]` is None.

`Frame.extra` holds whatever else the header says: `timeStamp` is in seconds since 1990 (the epoch of EPICS), so the
times of the frame are None. Not understood: chunk-1.0, the predecessor. Reasons are the keys of REASONS.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lz4.block
import numpy as np
from numpy.typing import NDArray

from streamer import compression, headers, pixels
from streamer.fields import Fields, is_natural, naming, plain
from streamer.pixels import Packed, Scratch
from streamer.records import BadConfig, BadFrame, BadInput, Buffer, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.wire import Format, Kind

__all__ = ["REASONS", "Array"]

REASONS: Mapping[str, str] = {
    "parts": "not a header and an array",
    "json": "a header that is not one JSON object, too large or nested beyond reason",
    "type": "not of htype array-1.0",
    "id": "frame number absent or not a natural number, or a source that is no short text",
    "field": "another field is of the wrong type",
    "dtype": "an element type or byte order this format does not have, or pixels no analysis can take",
    "shape": "dimensions that are no image, or a payload that does not fill them",
    "size": "larger than max_pixels, or a compressed length that contradicts the image",
    "truncated": "bytes are missing in compressed data",
    "compression": "an unknown encoding, or damaged compressed data",
}

MAX_DIMENSIONS = 10
"""ND_ARRAY_MAX_DIMS of areaDetector."""

MAX_UNIQUE = 200
"""Characters of a source, which is kept and printed."""

COLOURS = ("red", "green", "blue")

_HEADER_BYTES = 12
"""What the HDF5 filters put before the blocks of bslz4, and areaDetector leaves away."""

_FIELDS = frozenset({"htype", "shape", "type", "frame", "endianness", "endianess", "source", "encoding"})
_ORDERS: Mapping[str, Literal["<", ">"]] = {"": "<", "little": "<", "big": ">"}
_PLAIN = ("", "none")
_ALGORITHMS = {"lz4": "lz4", "lz4hdf5": "lz4", "bslz4": "bslz4"}


class Array(Format):
    """array-1.0.

    max_pixels: the largest image to expect, in pixels. compression: how `encode` packs arrays. step: how far apart
    two consecutive frame numbers are.
    """

    name = "array"
    title = "array-1.0"
    usual_socket = "sub"
    is_counted = True

    def __init__(
        self, max_pixels: int = 64_000_000, compression: Literal["bslz4", "lz4", "none"] = "none", step: int = 1
    ) -> None:
        self.max_pixels = max_pixels
        self.compression = compression
        if step < 1 or max_pixels < 1:
            raise BadConfig(f"array: found step {step}, max_pixels {max_pixels}; both are 1 or more")
        self.step = step

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        return "image" if parts and headers.looks_like(parts[0], b"array-1.", b"chunk-1.") else None

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        header = _Header(parts)
        with naming(header.identity):
            header.check_type()
            return header.series(), header.natural("frame")

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        header = _Header(parts)
        with naming(header.identity):
            header.check_type()
            series, number = header.series(), header.natural("frame")
            shape, dtype = header.shape(), header.dtype()
            limit = self.max_pixels * (len(COLOURS) if len(shape) == 3 else 1)
            octets = header.payload(parts[1], math.prod(shape), dtype)
            image = pixels.usable(pixels.unpack(octets, shape, dtype, max_pixels=limit, scratch=scratch))
            extra = header.extra()
        return [
            Frame(plane, series, number, channel, received_ns=received_ns, extra=extra)
            for channel, plane in _planes(image)
        ]

    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> list[Buffer]:
        """The two parts of a message; none for a start or an end, which this format cannot tell.

        record: one frame, whose channel is not sent, or the three colours of one. Raises BadInput for others.
        """
        if isinstance(record, SeriesStart | SeriesEnd):
            return []
        image, frame = _image(record), record[0]
        header = {
            "htype": "array-1.0",
            "shape": list(image.shape),
            "type": image.dtype.name,
            "frame": int(frame.number),
            "endianness": "little",
        }
        if frame.series.unique:
            header["source"] = frame.series.unique
        if self.compression != "none":
            header["encoding"] = self.compression
        other = {name: value for name, value in frame.extra.items() if name not in _FIELDS}
        try:
            text = json.dumps(header | other, allow_nan=False, default=_number)
        except ValueError as error:
            raise BadInput(f"array: what is attached to frame {frame.number} cannot be sent ({error})") from error
        return [text.encode(), self._pack(image)]

    def _pack(self, image: NDArray[Any]) -> bytes:
        """The array as areaDetector's codecs leave it: compressed data have no header."""
        little = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
        if self.compression == "bslz4":
            return compression.compress("bslz4", image.dtype.itemsize, little)[_HEADER_BYTES:]
        octets = little.tobytes()
        if self.compression == "lz4":
            packed: bytes = lz4.block.compress(octets, store_size=False)
            return packed
        return octets


class _Header(Fields):
    """The header of one message."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        if len(parts) != 2:
            raise BadFrame("parts", f"a message of {len(parts)} parts, expected a header and an array")
        super().__init__(_read(parts[0]))

    def identity(self) -> tuple[SeriesKey | None, int | None]:
        """Series and number, as far as they can be read."""
        series = number = None
        with contextlib.suppress(BadFrame):
            series = self.series()
            number = self.natural("frame")
        return series, number

    def check_type(self) -> None:
        htype = self._htype()
        if htype.startswith("chunk-1."):
            raise BadFrame("type", "chunk-1.0, the predecessor of array-1.0; have the sender write array-1.0")
        if not htype.startswith("array-1."):
            raise self.wrong("htype", "array-1.0", "type")

    def series(self) -> SeriesKey:
        source = self.text("source", "id")
        if len(source) > MAX_UNIQUE or not source.isprintable():
            raise self.wrong("source", f"up to {MAX_UNIQUE} printable characters", "id")
        return SeriesKey(0, source)

    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or three dimensions of which one is the colour; slowest first."""
        sent = self.get("shape")
        if not isinstance(sent, list) or not 1 <= len(sent) <= MAX_DIMENSIONS:
            raise self.wrong("shape", f"a list of 1 to {MAX_DIMENSIONS} dimensions", "shape")
        if not all(is_natural(extent) and extent for extent in sent):
            raise BadFrame("shape", "a dimension that is not a positive number")
        found = sent[::-1] if isinstance(self.get("htype"), list) else sent[:]
        while len(found) > 2 and 1 in found:
            found.remove(1)
        if len(found) > 3 or (len(found) == 3 and found.count(len(COLOURS)) != 1):
            raise BadFrame(
                "shape", f"{len(found)} dimensions {found}, expected rows and columns, or those and a colour"
            )
        return tuple(found) if len(found) > 1 else (1, *found)

    def dtype(self) -> np.dtype[Any]:
        name = "endianness" if "endianness" in self else "endianess"
        order = _ORDERS.get(self.text(name, "dtype"))
        if order is None:
            raise self.wrong(name, "little or big", "dtype")
        return pixels.dtype_named(self.get("type"), order)

    def payload(self, octets: Buffer, count: int, dtype: np.dtype[Any]) -> Buffer | Packed:
        """The array's bytes, with what was done to them."""
        encoding = self.text("encoding", "compression")
        if encoding in _PLAIN:
            return octets
        if encoding not in _ALGORITHMS:
            raise self.wrong("encoding", f"none, {' or '.join(_ALGORITHMS)}", "compression")
        algorithm = _ALGORITHMS[encoding]
        if algorithm == "bslz4":
            if count < 8 and len(octets) == count * dtype.itemsize:
                return octets  # bitshuffle works on eight elements at a time and leaves the rest as it is
            octets = _without_tail(octets, count, dtype.itemsize)
        return Packed(algorithm, dtype.itemsize, octets, header_is_optional=True)

    def extra(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in self._values.items() if name not in _FIELDS}

    def _htype(self) -> str:
        htype = self.get("htype")
        if isinstance(htype, list) and len(htype) == 1:
            htype = htype[0]
        return htype if isinstance(htype, str) else ""


def _read(part: Buffer) -> dict[str, Any]:
    """The header; without its last entry, `ndattr`, where that alone keeps it from being JSON. Raises BadFrame."""
    try:
        return headers.read(part)
    except BadFrame:
        before, found, _ = bytes(part).partition(b'"ndattr":') if len(part) <= headers.MAX_BYTES else (b"", b"", b"")
        if not found:
            raise
        return {**headers.read(before.rstrip(b", \t\r\n") + b"}"), "ndattr": None}


def _without_tail(octets: Buffer, count: int, elem_size: int) -> Buffer:
    """The blocks of bslz4 without what is left of the buffer they lie in, where all of it was sent."""
    length = count * elem_size
    if len(octets) != length:
        return octets
    blocks, rest = divmod(length, compression.DEFAULT_BLOCK)
    left = rest % (8 * elem_size)
    end = 0
    for _ in range(blocks + (rest > left)):
        end += 4 + int.from_bytes(octets[end : end + 4], "big")
        if end > length:
            return octets
    return octets[: end + left]


def _planes(image: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    """The image, or its three colours."""
    if image.ndim == 2:
        return [("", image)]
    axis = image.shape.index(len(COLOURS))
    return [(colour, np.take(image, n, axis)) for n, colour in enumerate(COLOURS)]


def _image(frames: Sequence[Frame]) -> NDArray[Any]:
    """The array to be sent: (rows, columns), or (3, rows, columns) in colour. Raises BadInput."""
    shapes = {(frame.image.shape, frame.image.dtype, frame.series, frame.number) for frame in frames}
    channels = tuple(frame.channel for frame in frames)
    if len(shapes) != 1 or (len(frames) != 1 and channels != COLOURS):
        raise BadInput(f"array: {len(frames)} frames of channels {channels[:5]}; give one, or red, green and blue")
    if len(frames) > 1 and {1, len(COLOURS)} & {*frames[0].image.shape}:
        raise BadInput(
            f"array: colours of {frames[0].image.shape} pixels; give more than one row and column, not three"
        )
    image = frames[0].image if len(frames) == 1 else np.stack([frame.image for frame in frames])
    if frames[0].image.ndim != 2 or not image.size or image.dtype.kind not in "uif" or image.dtype.itemsize > 8:
        raise BadInput(f"array: an image of {image.dtype}, shape {image.shape}; give 2-D integers or floats")
    return image


def _number(value: Any) -> Any:
    """NumPy's numbers are sent as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise BadInput(f"array: {type(value).__name__} cannot be sent; give text, numbers, lists and maps")
