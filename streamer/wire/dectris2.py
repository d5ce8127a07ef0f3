"""DECTRIS stream v2: one CBOR map per message, as EIGER2, PILATUS4, ARINA and their kin send it (release 2022.1 on).

The detector binds PUSH on port 31001. A series is one *start* message, one *image* message per exposure with a 2-D
image for each channel (energy threshold), and one *end* message, which carries no count: whether a series is complete
follows from `number_of_images` and the image ids. Source: dectris/documentation, stream_v2/README.md.

    multi-dimensional array   tag 40 (row-major) or 1040 (column-major): [[rows, columns], typed array]
    typed array               tag 64–87 by element type and byte order (RFC 8746): byte string
    compressed byte string    tag 56500: [algorithm, element size in bytes, byte string], wherever a byte string may be
    date and time             tag 0: text; plain text is taken too
    exact time                [numerator, denominator] in seconds after series_date

What senders do differently and is understood: a wrapper of tag 55799; image_dtype, flatfield, pixel_mask and user_data
absent, null, or byte strings of their own where an array belongs; `channels` that are not the names in the image (the
names in the image count); compressed or plain payload; either byte order.

Nothing a message says is believed before it is checked: a tag or element type outside the table above, a payload that
does not fill its image, or an image larger than its series announced is a BadFrame. Reasons are the keys of REASONS.

`SeriesStart.distance_m` is |z| of detector_translation (a real EIGER2 sends z < 0); the vector is in `extra` where x or
y is not 0. A pixel is masked where pixel_mask is not 0. In `extra`, numbers that are not finite are None.

Not kept: the count-rate table, and flatfields and masks that are not 2-D arrays. The value for "no measurement" is the
maximum of the unsigned element type, a convention of these detectors that no field announces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import cbor2
import numpy as np
from numpy.typing import NDArray

from streamer import cbor, compression
from streamer.fields import Fields, excerpt, is_finite, is_natural, naming, plain
from streamer.pixels import Announced, Packed, Scratch, unpack, usable
from streamer.records import BadFrame, BadInput, Buffer, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.wire import Format, Kind

__all__ = ["REASONS", "Dectris2"]

REASONS: Mapping[str, str] = {
    "truncated": "bytes are missing, in the envelope or in compressed data",
    "cbor": "not well-formed CBOR, bytes left over, a key twice, or nested or long beyond reason",
    "type": "not one map whose type is start, image or end",
    "id": "series or image number absent or not a natural number",
    "field": "another field is absent where it must not be, of the wrong type, not finite, or divides by zero",
    "tag": "a tag this format does not have, or where it does not belong",
    "dtype": "an element type this format does not have, or pixels no analysis can take",
    "shape": "not two positive dimensions, or a payload that does not fill them",
    "size": "larger than the series' own images, or than max_pixels, or a compressed length that contradicts the image",
    "compression": "an unknown algorithm, a wrong element size, or damaged compressed data",
}

MAX_CHANNELS = 16
"""Channels in one image. Detectors have up to four thresholds and their differences; each channel is a whole image in
memory, so a message may not ask for any number of them."""

USUAL_CHANNELS = 4
"""Full images in one message: a detector's thresholds and their difference. More channels must be smaller."""

MAX_NAME = 200
"""Characters of a series_unique_id or a channel, which are kept and printed; DECTRIS sends up to 26."""

_DTYPES = {
    **dict(enumerate(["u1", ">u2", ">u4", ">u8", "u1", "<u2", "<u4", "<u8", "i1", ">i2", ">i4", ">i8"], 64)),
    **dict(enumerate(["<i2", "<i4", "<i8", ">f2", ">f4", ">f8"], 77)),
    **dict(enumerate(["<f2", "<f4", "<f8"], 84)),
}
"""Typed-array tags of RFC 8746. 76 is reserved; 83 and 87, floats of 16 bytes, mean no NumPy type."""

_TAG_OF = {np.dtype(text).newbyteorder("="): tag for tag, text in _DTYPES.items() if tag != 68 and text[0] != ">"}
_IMAGE_DTYPES = {name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "int32", "float32")}
_ROW_MAJOR, _COLUMN_MAJOR, _DATETIME, _COMPRESSED = 40, 1040, 0, 56500

_TYPE = re.compile(rb"(?:\xd9\xd9\xf7)?(?:[\xa1-\xb7]|\xb8.|\xb9..|\xbf)\x64type(?:\x65(start|image)|\x63(end))", re.S)
"""The first bytes of a message, where `type` is the first key, as the schema has it."""

_KINDS: Mapping[bytes, Kind] = {b"start": "start", b"image": "image", b"end": "end"}


class _Typed(NamedTuple):
    """A byte string, compressed or not, with the type of its elements."""

    dtype: np.dtype[Any]
    octets: Buffer | Packed


class _Array(NamedTuple):
    """A typed array with its dimensions, as they were sent."""

    shape: tuple[int, int]
    order: Literal["C", "F"]
    typed: _Typed


class Dectris2(Format):
    """DECTRIS stream v2.

    max_pixels: the largest image to expect, in pixels, before a series has announced its own.
    compression: how `encode` packs arrays.
    """

    name = "dectris2"
    title = "DECTRIS stream v2"
    default_port = 31001
    is_one_part = True

    def __init__(self, max_pixels: int = 64_000_000, compression: Literal["bslz4", "lz4", "none"] = "bslz4") -> None:
        self.max_pixels = max_pixels
        self.compression = compression
        self._announced = Announced(max_pixels)

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        found = _TYPE.match(parts[0]) if len(parts) == 1 else None
        return _KINDS[found[1] or found[2]] if found else None

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        fields = _Fields()
        with naming(fields.identity):
            fields.read(parts)
            return fields.series(), fields.natural("image_id")

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        fields = _Fields()
        with naming(fields.identity):
            fields.read(parts)
            match fields.get("type"):
                case "image":
                    return [*self._frames(fields, scratch, received_ns)]
                case "start":
                    return [self._start(fields, received_ns)]
                case "end":
                    return [SeriesEnd(fields.series(), received_ns)]
            raise fields.wrong("type", "start, image or end", "type")

    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> list[Buffer]:
        """The one part of one message. Raises BadInput for frames that are not the channels of one exposure.

        A frame without a channel becomes "threshold_1", the name such detectors give the only one they have.
        """
        if isinstance(record, SeriesStart):
            message = self._encode_start(record)
        elif isinstance(record, SeriesEnd):
            message = {"type": "end", **_encode_key(record.series)}
        else:
            message = self._encode_frames(record)
        return [cbor2.dumps(message, default=_encode_numpy)]

    def _start(self, fields: _Fields, received_ns: int) -> SeriesStart:
        series = fields.series()
        shape = fields.shape()
        if shape is not None and math.prod(shape) > self.max_pixels:
            raise BadFrame(
                "size", f"images of {shape} pixels; if that is the detector, raise max_pixels={self.max_pixels}"
            )
        limit = math.prod(shape) if shape else self.max_pixels
        translation = fields.translation()
        is_moved = translation is not None and any(translation[:2])
        start = SeriesStart(
            series=series,
            images=fields.natural_or_none("number_of_images"),
            shape=shape,
            dtype=fields.image_dtype(),
            channels=fields.names("channels"),
            saturation=fields.natural_or_none("saturation_value"),
            frame_time_s=fields.number("frame_time"),
            count_time_s=fields.number("count_time"),
            energy_eV=fields.number("incident_energy"),
            wavelength_A=fields.number("incident_wavelength"),
            beam_center=fields.pair("beam_center_x", "beam_center_y"),
            pixel_size_m=fields.pair("pixel_size_x", "pixel_size_y"),
            distance_m=None if translation is None else abs(translation[2]),
            mask={name: _unpack(array, limit) != 0 for name, array in fields.arrays("pixel_mask", shape)},
            flatfield={
                name: _unpack(array, limit).astype(np.float32, copy=False)
                for name, array in fields.arrays("flatfield", shape)
            },
            detector=fields.text("detector_description"),
            extra=fields.extra(_START_FIELDS) | ({"detector_translation": translation} if is_moved else {}),
            received_ns=received_ns,
        )
        if shape is not None:
            self._announced.remember(series, math.prod(shape))
        return start

    def _frames(self, fields: _Fields, scratch: Scratch | None, received_ns: int) -> list[Frame]:
        series = fields.series()
        number = fields.natural("image_id")
        start_s, stop_s, real_s = (fields.rational(f"{name}_time") for name in ("start", "stop", "real"))
        limit = self._announced.limit(series)
        extra = fields.extra(_IMAGE_FIELDS)
        channels = fields.channels()
        if sum(math.prod(array.shape) for _, array in channels) > USUAL_CHANNELS * limit:
            raise BadFrame("size", f"{len(channels)} channels that together exceed {USUAL_CHANNELS} × {limit} pixels")
        images = [(channel, usable(_unpack(array, limit, scratch))) for channel, array in channels]
        return [
            Frame(image, series, number, channel, start_s, stop_s, real_s, received_ns, extra)
            for channel, image in images
        ]

    def _encode_start(self, start: SeriesStart) -> dict[str, Any]:
        rows, columns = start.shape or (None, None)
        x, y = start.beam_center or (None, None)
        width, height = start.pixel_size_m or (None, None)
        translation = None if start.distance_m is None else [0.0, 0.0, -float(start.distance_m)]
        known = {
            "channels": list(start.channels) or None,
            "number_of_images": start.images,
            "image_size_x": columns,
            "image_size_y": rows,
            "image_dtype": None if start.dtype is None else np.dtype(start.dtype).name,
            "saturation_value": start.saturation,
            "frame_time": start.frame_time_s,
            "count_time": start.count_time_s,
            "incident_energy": start.energy_eV,
            "incident_wavelength": start.wavelength_A,
            "beam_center_x": x,
            "beam_center_y": y,
            "pixel_size_x": width,
            "pixel_size_y": height,
            "detector_translation": start.extra.get("detector_translation", translation),
            "detector_description": start.detector or None,
            "pixel_mask": {name: self._pack(mask.astype(np.uint32)) for name, mask in start.mask.items()} or None,
            "flatfield": {name: self._pack(flat) for name, flat in start.flatfield.items()} or None,
        }
        sent = {name: value for name, value in known.items() if value is not None}
        return {"type": "start", **_encode_key(start.series), **_encode_extra(start.extra, _START_FIELDS), **sent}

    def _encode_frames(self, frames: Sequence[Frame]) -> dict[str, Any]:
        exposures = {(frame.series, frame.number, frame.start_s, frame.stop_s, frame.real_s) for frame in frames}
        channels = {frame.channel or "threshold_1": frame.image for frame in frames}
        if len(exposures) != 1 or len(channels) != len(frames):
            raise BadInput(
                f"dectris2: {len(frames)} frames of {len(exposures)} exposures in {len(channels)} channels; "
                "give each channel of one exposure once"
            )
        first = frames[0]
        times = {"real_time": first.real_s, "start_time": first.start_s, "stop_time": first.stop_s}
        sent = {name: [time.numerator, time.denominator] for name, time in times.items() if time is not None}
        data = {channel: self._pack(image) for channel, image in channels.items()}
        identity = {**_encode_key(first.series), "image_id": int(first.number)}
        return {"type": "image", **identity, **_encode_extra(first.extra, _IMAGE_FIELDS), **sent, "data": data}

    def _pack(self, array: NDArray[Any]) -> cbor2.CBORTag:
        """A 2-D array under tag 40."""
        native = array.dtype.newbyteorder("=")
        if array.ndim != 2 or native not in _TAG_OF:
            raise BadInput(f"dectris2: an array of {array.dtype}, shape {array.shape}; give 2-D integers or floats")
        little = np.ascontiguousarray(array, native.newbyteorder("<"))
        octets: Any = little.tobytes() if self.compression == "none" else None
        if octets is None:
            elem_size = native.itemsize if self.compression == "bslz4" else 0
            packed = compression.compress(self.compression, elem_size, little)
            octets = cbor2.CBORTag(_COMPRESSED, [self.compression, elem_size, packed])
        return cbor2.CBORTag(_ROW_MAJOR, [list(array.shape), cbor2.CBORTag(_TAG_OF[native], octets)])


def _datetime(content: Any) -> str:
    if not isinstance(content, str):
        raise BadFrame("tag", "tag 0: a date and time that is not text")
    return content


def _compressed(content: Any) -> Packed:
    if isinstance(content, list) and len(content) == 3:
        algorithm, elem_size, octets = content
        if isinstance(algorithm, str) and is_natural(elem_size) and isinstance(octets, bytes | memoryview):
            return Packed(algorithm, elem_size, octets)
    raise BadFrame("compression", "tag 56500: not an algorithm, an element size and a byte string")


def _typed(dtype: np.dtype[Any]) -> Callable[[Any], _Typed]:
    def meaning(content: Any) -> _Typed:
        if not isinstance(content, bytes | memoryview | Packed):
            raise BadFrame("dtype", f"a typed array of {dtype} that is not a byte string")
        return _Typed(dtype, content)

    return meaning


def _array(order: Literal["C", "F"]) -> Callable[[Any], _Array]:
    def meaning(content: Any) -> _Array:
        shape, typed = content if isinstance(content, list) and len(content) == 2 else (None, None)
        if not isinstance(shape, list) or len(shape) != 2 or not all(is_natural(n) and n for n in shape):
            raise BadFrame("shape", "a multi-dimensional array whose dimensions are not two positive numbers")
        if not isinstance(typed, _Typed):
            raise BadFrame("dtype", "a multi-dimensional array that does not hold a typed array")
        return _Array((shape[0], shape[1]), order, typed)

    return meaning


_TAGS: cbor.Tags = {
    _DATETIME: _datetime,
    _ROW_MAJOR: _array("C"),
    _COLUMN_MAJOR: _array("F"),
    _COMPRESSED: _compressed,
    **{tag: _typed(np.dtype(text)) for tag, text in _DTYPES.items()},
}


def _unpack(array: _Array, max_pixels: int, scratch: Scratch | None = None) -> NDArray[Any]:
    """The array in rows and columns, native byte order, in memory of its own. Raises BadFrame."""
    typed = array.typed
    return unpack(typed.octets, array.shape, typed.dtype, max_pixels=max_pixels, scratch=scratch, order=array.order)


def _is_name(value: Any) -> bool:
    """Whether it is text that can be printed in a line."""
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


class _Fields(Fields):
    """The entries of one message."""

    def read(self, parts: Sequence[Buffer]) -> None:
        """Take in what a message has. On an error the entries before the damage stay readable."""
        if len(parts) != 1:
            raise BadFrame("type", f"a message of {len(parts)} parts, expected one map in one part")
        for key, value in cbor.entries(parts[0], _TAGS):
            self._values[key] = value

    def series(self) -> SeriesKey:
        unique = self.get("series_unique_id")
        if unique is not None and not _is_name(unique):
            raise self.wrong("series_unique_id", f"up to {MAX_NAME} printable characters", "id")
        return SeriesKey(self.natural("series_id"), unique or "")

    def identity(self) -> tuple[SeriesKey | None, int | None]:
        """Series and number as far as they can be told, for a message that cannot be used."""
        number = self.get("image_id")
        try:
            series = self.series()
        except BadFrame:
            return None, None
        return series, number if is_natural(number) else None

    def rational(self, name: str) -> Fraction | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or [type(n) for n in value] != [int, int] or value[1] <= 0:
            raise self.wrong(name, "[numerator, positive denominator]")
        return Fraction(*value)

    def translation(self) -> list[float] | None:
        """Position of the detector against the sample, in metres; z is along the beam."""
        value = self.get("detector_translation")
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 3 or not all(is_finite(n) for n in value):
            raise self.wrong("detector_translation", "three finite numbers")
        return [float(n) for n in value]

    def shape(self) -> tuple[int, int] | None:
        columns, rows = self.natural_or_none("image_size_x"), self.natural_or_none("image_size_y")
        if rows is None or columns is None:
            return None
        if not rows * columns:
            raise BadFrame("shape", f"images of {rows} × {columns} pixels announced, expected at least one pixel")
        return rows, columns

    def image_dtype(self) -> np.dtype[Any] | None:
        name = self.text("image_dtype")
        if name and name not in _IMAGE_DTYPES:
            raise self.wrong("image_dtype", f"one of {list(_IMAGE_DTYPES)}", "dtype")
        return _IMAGE_DTYPES[name] if name else None

    def channels(self) -> list[tuple[str, _Array]]:
        """What `data` holds: at least one channel, and nothing but images."""
        value = self.get("data")
        if not isinstance(value, dict) or not value:
            raise self.wrong("data", "a map from channels to images")
        if not all(_is_name(name) and isinstance(array, _Array) for name, array in value.items()):
            raise BadFrame("field", "data holds something that is not an image under the name of its channel")
        return self._bounded(list(value.items()), "data")

    def arrays(self, name: str, shape: tuple[int, int] | None) -> list[tuple[str, _Array]]:
        """The arrays per channel of a start message; whatever else senders put there is passed over."""
        value = self.get(name)
        items = value.items() if isinstance(value, dict) else ()
        found = [(channel, array) for channel, array in items if isinstance(channel, str) and isinstance(array, _Array)]
        if shape is None:
            return []  # nothing tells how large they may be
        for channel, array in found:
            if array.shape != shape:
                raise BadFrame("shape", f"{name} of {excerpt(channel)} is {array.shape} pixels, the images are {shape}")
        if len(found) > USUAL_CHANNELS:
            raise BadFrame("size", f"{name} has {len(found)} channels, expected at most {USUAL_CHANNELS}")
        return found

    def _bounded(self, arrays: list[tuple[str, _Array]], name: str) -> list[tuple[str, _Array]]:
        if len(arrays) > MAX_CHANNELS:
            raise BadFrame("size", f"{name} has {len(arrays)} channels, expected at most {MAX_CHANNELS}")
        return arrays

    def extra(self, known: frozenset[str]) -> dict[str, Any]:
        """Everything else the message says, as far as it is plain text, numbers, lists and maps."""
        return {
            name: plain(value)
            for name, value in self._values.items()
            if isinstance(name, str) and name not in known and not isinstance(value, _OPAQUE)
        }


_OPAQUE = (bytes, memoryview, Packed, _Typed, _Array)
_IDENTITY_FIELDS = frozenset({"type", "series_id", "series_unique_id"})
_IMAGE_FIELDS = _IDENTITY_FIELDS | {"image_id", "data", "start_time", "stop_time", "real_time"}
_START_FIELDS = _IDENTITY_FIELDS | {
    *("beam_center_x", "beam_center_y", "channels", "count_time", "detector_description", "detector_translation"),
    *("flatfield", "frame_time", "image_dtype", "image_size_x", "image_size_y", "incident_energy"),
    *("incident_wavelength", "number_of_images", "pixel_mask", "pixel_size_x", "pixel_size_y", "saturation_value"),
}
_DATES = ("arm_date", "series_date")
_RFC_3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")


def _encode_key(series: SeriesKey) -> dict[str, Any]:
    unique = {"series_unique_id": series.unique} if series.unique else {}
    return {"series_id": int(series.number), **unique}


def _encode_extra(extra: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """What is no field of its own; dates under their tag if they are dates, or other readers refuse the message."""
    other = {name: value for name, value in extra.items() if name not in known}
    for name in _DATES:
        if isinstance(other.get(name), str) and _RFC_3339.fullmatch(other[name]):
            other[name] = cbor2.CBORTag(_DATETIME, other[name])
    return other


def _encode_numpy(encoder: cbor2.CBOREncoder, value: Any) -> None:
    """NumPy's numbers are sent as Python's."""
    if not isinstance(value, np.generic):
        raise BadInput(f"dectris2: {type(value).__name__} cannot be sent; give text, numbers, lists and maps")
    encoder.encode(value.item())
