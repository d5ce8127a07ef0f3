"""bsread (bsr_m-1.1): what cameras and diagnostics of SwissFEL and other machines at PSI send, pulse by pulse.

PUSH or PUB on port 9999. One message is one pulse: a main header, a data header that describes the channels, and for
every channel its value and the time of that value. Sources: psi-bsread 2.0.1, whose Sender and Source it was run
against, and the sources of senders in C++, std_detector_buffer among them.

    {"htype": "bsr_m-1.1", "pulse_id": 7, "hash": "…", "global_timestamp": {"sec", "ns"}, "dh_compression": "none"}
    {"htype": "bsr_d-1.1", "channels": [{"name", "type", "shape", "encoding", "compression"}, …]}
    value, [seconds, nanoseconds] as two 64-bit integers            for each channel; both empty: no value this pulse

    type            "uint16", …, "bool", "string"; "float64" where it is not said
    shape           fastest dimension first: an image is [columns, rows]
    encoding        byte order, "little" where it is not said
    compression     of the value, and dh_compression of the data header: "none", "bitshuffle_lz4" with the header of
                    the HDF5 filter, "lz4" behind four bytes of length, big-endian from some senders, little from others

Frames. Every channel of two dimensions is an image; or `channel` says which are, and may then name one of one dimension
(a line detector), an image of one row. The value of a scalar, a text, or a short vector is kept in
`Frame.extra["values"]`, the time of the image in `extra["timestamp"]`, that of the pulse in
`extra["global_timestamp"]`. These are seconds since 1970 where the times of a Frame count from the beginning of a
series, which this format does not know: they are None. A message in which no image has a value gives no frame.

Series. There are none, no start and no end; `pulse_id` counts the machine's pulses and becomes the frame number, under
`SeriesKey(0)`. A camera at a fraction of the machine's rate skips numbers by the `step` between them.

The data header comes with every message, and is read again only when it changes. Senders may leave it empty where
they have sent it before: the last ones are kept by their hash. Reasons are the keys of REASONS.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

from streamer import compression, headers, pixels
from streamer.fields import Fields, is_natural, naming, plain
from streamer.pixels import Packed, Scratch
from streamer.records import BadConfig, BadFrame, BadInput, Buffer, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.wire import Format, Kind

__all__ = ["REASONS", "Bsread"]

REASONS: Mapping[str, str] = {
    "parts": "not two headers, and a value and a time for each channel",
    "json": "a header that is not one JSON object, too large or nested beyond reason",
    "type": "not of htype bsr_m-1.1 and bsr_d-1.1",
    "id": "pulse id absent or not a natural number",
    "field": "another field is absent where it must not be, or of the wrong type",
    "channel": "the channel asked for is not there, or is no image",
    "dtype": "an element type or byte order this format does not have, or pixels no analysis can take",
    "shape": "a dimension that is not a positive number, or a payload that does not fill its channel",
    "size": "larger than max_pixels, too many channels, or a length that contradicts the channel",
    "truncated": "bytes are missing in compressed data",
    "compression": "an unknown compression, or damaged compressed data",
}

MAX_CHANNELS = 4096
"""Channels in one message. Streams of some hundred are usual."""

MAX_IMAGES = 16
"""Channels in one message that are images; each is a whole image in memory."""

USUAL_IMAGES = 4
"""Full images in one message. More must be smaller."""

MAX_DIMENSIONS = 10
MAX_NAME = 200
"""Characters of a channel's name; EPICS allows 60."""

MAX_HEADER = 1 << 20
"""Bytes of a data header; one of a thousand channels has some 100 kB."""

REMEMBERED_HEADERS = 4
"""Data headers that are kept. One stream has one, and another when a channel is added."""

LONGEST_VALUE = 8192
"""Bytes of a value that is kept beside the images: a vector of 1024 float64. Longer ones are passed over."""

MAX_VALUES = 20_000
"""Elements that are kept beside the images of one message: some 2 MB as Python objects."""

_ORDERS: Mapping[str, Literal["<", ">"]] = {"": "<", "little": "<", "big": ">"}
_ALGORITHMS = {"": "", "none": "", "lz4": "lz4", "bitshuffle_lz4": "bslz4"}
_MAIN_FIELDS = frozenset({"htype", "pulse_id", "hash", "dh_compression"})
_OWN_EXTRA = frozenset({"values", "timestamp"})
_OCTET = np.dtype(np.uint8)
_TIME_BYTES = 16


class _Channel(NamedTuple):
    """One channel as the data header describes it. shape: slowest dimension first, without those of 1 beyond two."""

    name: str
    type: str
    order: Literal["<", ">"]
    shape: tuple[int, ...]
    compression: str

    @property
    def is_text(self) -> bool:
        return self.type == "string"

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 2 and not self.is_text


class _Sent(NamedTuple):
    """What one message holds of a channel."""

    channel: _Channel
    value: Buffer
    time: Buffer


class Bsread(Format):
    """bsread.

    channel: the image to read, or several with commas between them; "" for all there are. step: how far apart two
    consecutive pulse ids are: 4 for a camera of 25 Hz at a machine of 100 Hz. max_pixels: the largest image to expect.
    compression: how `encode` packs images.
    """

    name = "bsread"
    title = "bsread (bsr_m-1.1)"
    default_port = 9999
    is_counted = True

    def __init__(
        self,
        channel: str = "",
        step: int = 1,
        max_pixels: int = 64_000_000,
        compression: Literal["bitshuffle_lz4", "lz4", "none"] = "bitshuffle_lz4",
    ) -> None:
        self.chosen = frozenset(name.strip() for name in channel.split(",") if name.strip())
        if step < 1 or max_pixels < 1:
            raise BadConfig(f"bsread: found step {step}, max_pixels {max_pixels}; both are 1 or more")
        self.step = step
        self.max_pixels = max_pixels
        self.compression = compression
        self._headers: OrderedDict[str, tuple[bytes, tuple[_Channel, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        return "image" if parts and headers.looks_like(parts[0], b"bsr_m-1.") else None

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        return SeriesKey(0), _MainHeader(parts).pulse_id

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        header = _MainHeader(parts)
        with naming(header.identity):
            channels = self._channels(header, parts)
            if len(parts) != 2 + 2 * len(channels):
                raise BadFrame("parts", f"{len(parts)} parts, {len(channels)} channels make {2 + 2 * len(channels)}")
            sent = [*map(_Sent, channels, parts[2::2], parts[3::2])]
            images = [one for one in self._images(sent) if len(one.value)]
            self._check_size([one.channel for one in images])
            pulse = header.extra() | _values(sent, self.chosen) if images else {}
            return [
                Frame(
                    pixels.usable(_unpack(channel, value, self.max_pixels, scratch)),
                    SeriesKey(0),
                    header.pulse_id,
                    channel.name,
                    received_ns=received_ns,
                    extra=pulse | _timestamp(channel, time),
                )
                for channel, value, time in images
            ]

    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> list[Buffer]:
        """The parts of one message; none for a start or an end, which this format cannot tell.

        record: all channels of one pulse. A frame without a channel is sent as "image". What the first one's `extra`
        holds under "values" is sent as channels of their own. Raises BadInput.
        """
        if isinstance(record, SeriesStart | SeriesEnd):
            return []
        names = [frame.channel or "image" for frame in record]
        numbers = {frame.number for frame in record}
        if len(numbers) != 1 or len(set(names)) != len(names):
            raise BadInput(
                f"bsread: {len(names)} frames of {len(numbers)} pulses in {len(set(names))} channels; "
                "give each channel of one pulse once"
            )
        extra = record[0].extra
        values = extra.get("values", {})
        if not values.keys().isdisjoint(names):
            raise BadInput(f"bsread: values named like the images {names}; give each channel a name of its own")
        encoded = [self._encode_image(name, frame) for name, frame in zip(names, record, strict=True)]
        encoded += [_encode_value(name, value) for name, value in values.items()]
        data_header = json.dumps({"htype": "bsr_d-1.1", "channels": [channel for channel, _, _ in encoded]}).encode()
        main_header = {
            "htype": "bsr_m-1.1",
            "pulse_id": int(record[0].number),
            "hash": hashlib.md5(data_header, usedforsecurity=False).hexdigest(),
            **{name: value for name, value in extra.items() if name not in _MAIN_FIELDS | _OWN_EXTRA},
        }
        try:
            text = json.dumps(main_header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInput(f"bsread: what is attached to pulse {record[0].number} cannot be sent ({error})") from error
        return [text.encode(), data_header, *(part for _, value, time in encoded for part in (value, time))]

    def _channels(self, header: _MainHeader, parts: Sequence[Buffer]) -> tuple[_Channel, ...]:
        """What the data header says, or the last one of the same hash where it is empty. Raises BadFrame."""
        if len(parts) < 2:
            raise BadFrame("parts", f"{len(parts)} parts, expected a main header and a data header")
        name, part = header.hash(), parts[1]
        with self._lock:
            known, channels = self._headers.get(name, (b"", ()))
        if known and (not len(part) or part == known):
            return channels
        if not len(part):
            raise BadFrame("field", "an empty data header, and none of its hash came before")
        channels = tuple(_read_channels(part, header.text("dh_compression", "compression")))
        with self._lock:
            self._headers[name] = (bytes(part), channels)
            self._headers.move_to_end(name)
            while len(self._headers) > REMEMBERED_HEADERS:
                self._headers.popitem(last=False)
        return channels

    def _images(self, sent: Sequence[_Sent]) -> list[_Sent]:
        """The channels to be read as images. Raises BadFrame where one that was asked for is not there."""
        if not self.chosen:
            return [one for one in sent if one.channel.is_image]
        found = [one._replace(channel=_as_image(one.channel)) for one in sent if one.channel.name in self.chosen]
        missing = self.chosen.difference(one.channel.name for one in found)
        if missing:
            there = ", ".join(one.channel.name for one in sent if one.channel.is_image)[:100]
            raise BadFrame("channel", f"no channel {min(missing)[:40]!r} here; the images are: {there or 'none'}")
        return found

    def _check_size(self, images: Sequence[_Channel]) -> None:
        if len(images) > MAX_IMAGES:
            raise BadFrame("size", f"{len(images)} images in one message, expected at most {MAX_IMAGES}")
        if sum(math.prod(channel.shape) for channel in images) > USUAL_IMAGES * self.max_pixels:
            raise BadFrame("size", f"{len(images)} images together exceed {USUAL_IMAGES} × {self.max_pixels} pixels")

    def _encode_image(self, name: str, frame: Frame) -> tuple[dict[str, Any], bytes, bytes]:
        image = frame.image
        if image.ndim != 2 or not image.size or image.dtype.kind not in "uif":
            raise BadInput(f"bsread: an image of {image.dtype}, shape {image.shape}; give 2-D integers or floats")
        little = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
        channel = {"name": name, "type": image.dtype.name, "shape": [*image.shape[::-1]], "encoding": "little"}
        if self.compression == "bitshuffle_lz4":
            value = compression.compress("bslz4", image.dtype.itemsize, little)
        elif self.compression == "lz4":
            value = struct.pack("<I", little.nbytes) + lz4.block.compress(little.tobytes(), store_size=False)
        else:
            value = little.tobytes()
        return channel | {"compression": self.compression}, value, _encode_timestamp(frame)


class _MainHeader(Fields):
    """The first part of one message."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        if not parts:
            raise BadFrame("parts", "a message without parts")
        super().__init__(headers.read(parts[0], "main header"))
        if not self.text("htype", "type").startswith("bsr_m-1."):
            raise self.wrong("htype", "bsr_m-1.1", "type")
        self.pulse_id = self.natural("pulse_id")

    def identity(self) -> tuple[SeriesKey, int]:
        """Series and number."""
        return SeriesKey(0), self.pulse_id

    def hash(self) -> str:
        found = self.text("hash")
        if len(found) > MAX_NAME:
            raise self.wrong("hash", f"text of up to {MAX_NAME} characters")
        return found

    def extra(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in self._values.items() if name not in _MAIN_FIELDS | _OWN_EXTRA}


def _read_channels(part: Buffer, packing: str) -> Iterator[_Channel]:
    """The channels of a data header. Raises BadFrame."""
    if _algorithm(packing):
        length = _announced(part, packing)
        if length > MAX_HEADER:
            raise BadFrame("size", f"a data header of {length} bytes, expected at most {MAX_HEADER}")
        part = _octets(part, packing, _OCTET, length).tobytes()
    if len(part) > MAX_HEADER:
        raise BadFrame("size", f"a data header of {len(part)} bytes, expected at most {MAX_HEADER}")
    fields = Fields(headers.read(part, "data header"))
    if not fields.text("htype", "type").startswith("bsr_d-1."):
        raise fields.wrong("htype", "bsr_d-1.1", "type")
    channels = fields.get("channels")
    if not isinstance(channels, list):
        raise fields.wrong("channels", "a list of channels")
    if len(channels) > MAX_CHANNELS:
        raise BadFrame("size", f"{len(channels)} channels, expected at most {MAX_CHANNELS}")
    names = set()
    for channel in channels:
        if not isinstance(channel, dict):
            raise BadFrame("field", "a channel that is not described by an object")
        found = _read_channel(Fields(channel))
        names.add(found.name)
        yield found
    if len(names) != len(channels):
        raise BadFrame("field", "two channels of the same name")


def _read_channel(fields: Fields) -> _Channel:
    name = fields.text("name")
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise fields.wrong("name", f"1 to {MAX_NAME} printable characters")
    order = _ORDERS.get(fields.text("encoding", "dtype"))
    if order is None:
        raise fields.wrong("encoding", "little or big", "dtype")
    shape = fields.get("shape") or []
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(is_natural(n) and n for n in shape):
        raise fields.wrong("shape", f"a list of up to {MAX_DIMENSIONS} positive numbers", "shape")
    extents = shape[::-1]
    while len(extents) > 2 and 1 in extents:
        extents.remove(1)
    kind = fields.text("type", "dtype").lower() or "float64"
    return _Channel(name, kind, order, tuple(extents), fields.text("compression", "compression"))


def _as_image(channel: _Channel) -> _Channel:
    """A channel that was asked for: one of one dimension is one row. Raises BadFrame where it is no image."""
    if len(channel.shape) == 1 and not channel.is_text:
        channel = channel._replace(shape=(1, *channel.shape))
    if not channel.is_image:
        raise BadFrame("channel", f"channel {channel.name[:40]!r} is {channel.type[:20]} of shape {channel.shape}")
    return channel


def _algorithm(packing: str) -> str:
    if packing not in _ALGORITHMS:
        raise BadFrame("compression", f"compression {packing[:40]!r}, expected one of {', '.join(_ALGORITHMS)[2:]}")
    return _ALGORITHMS[packing]


def _announced(octets: Buffer, packing: str) -> int:
    """How many bytes compressed ones become, as they say. Raises BadFrame."""
    start = 4 if packing == "lz4" else 8
    if len(octets) < start:
        raise BadFrame("truncated", f"{packing} of {len(octets)} bytes, the length alone has {start}")
    head = bytes(octets[:start])
    big = int.from_bytes(head, "big")
    return min(big, int.from_bytes(head, "little")) if packing == "lz4" else big


def _packed(octets: Buffer, packing: str, dtype: np.dtype[Any], length: int) -> Buffer | Packed:
    """The octets of `length` bytes, with what was done to them. Raises BadFrame."""
    algorithm = _algorithm(packing)
    if not algorithm:
        return octets
    if algorithm == "bslz4":
        return Packed("bslz4", dtype.itemsize, octets)
    head = bytes(octets[:4])
    if len(head) < 4:
        raise BadFrame("truncated", f"lz4 of {len(head)} bytes, the length alone has 4")
    if length not in (int.from_bytes(head, "big"), int.from_bytes(head, "little")):
        raise BadFrame("size", f"lz4 that announces {int.from_bytes(head, 'little')} bytes, expected {length}")
    return Packed("lz4", 0, octets[4:], header_is_optional=True)  # one block, which no header precedes


def _octets(octets: Buffer, packing: str, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """`length` bytes as elements of a type. Raises BadFrame."""
    count = length // dtype.itemsize
    return pixels.unpack(_packed(octets, packing, dtype, length), (count,), dtype, max_pixels=count)


def _unpack(channel: _Channel, value: Buffer, max_pixels: int, scratch: Scratch | None) -> NDArray[Any]:
    """One image in rows and columns. Raises BadFrame."""
    dtype = pixels.dtype_named(channel.type, channel.order)
    octets = _packed(value, channel.compression, dtype, math.prod(channel.shape) * dtype.itemsize)
    return pixels.unpack(octets, channel.shape, dtype, max_pixels=max_pixels, scratch=scratch)


def _values(sent: Sequence[_Sent], chosen: frozenset[str]) -> dict[str, Any]:
    """Scalars, texts and short vectors by name, under "values"; what is longer or of unknown type is passed over."""
    found: dict[str, Any] = {}
    left = MAX_VALUES
    for channel, value, _ in sent:
        if len(channel.shape) > 1 or channel.name in chosen or not len(value):
            continue
        elements = _elements(channel, value)
        if elements is None or elements.size > left:
            continue
        left -= elements.size
        if channel.is_text:
            found[channel.name] = elements.tobytes().decode(errors="replace")
        else:
            is_scalar = elements.size == 1 and channel.shape in ((), (1,))
            found[channel.name] = plain(elements.tolist()[0] if is_scalar else elements.tolist())
    return {"values": found} if found else {}


def _elements(channel: _Channel, value: Buffer) -> NDArray[Any] | None:
    """The elements of a short value, None of a long one. Their number is what is there, where no shape tells it."""
    try:
        dtype = _OCTET if channel.is_text else pixels.dtype_named(channel.type, channel.order)
        is_packed = bool(_algorithm(channel.compression))
    except BadFrame:
        return None  # of a type or compression that came after this was written
    length = _announced(value, channel.compression) if is_packed else len(value)
    if length > LONGEST_VALUE:
        return None
    if length % dtype.itemsize or (
        channel.shape and not channel.is_text and length != channel.shape[0] * dtype.itemsize
    ):
        raise BadFrame("shape", f"{length} bytes in channel {channel.name[:40]!r} of {channel.type}, {channel.shape}")
    return _octets(value, channel.compression, dtype, length) if length else np.empty(0, dtype)


def _timestamp(channel: _Channel, time: Buffer) -> dict[str, Any]:
    """When the value was taken, [seconds since 1970, nanoseconds], under "timestamp"; nothing where it is not said."""
    if not len(time):
        return {}
    if len(time) != _TIME_BYTES:
        raise BadFrame("field", f"a time of {len(time)} bytes, expected {_TIME_BYTES}")
    return {"timestamp": [*struct.unpack(f"{channel.order}qq", time)]}


def _encode_timestamp(frame: Frame) -> bytes:
    time = frame.extra.get("timestamp")
    if time is None:
        return b""
    if not isinstance(time, list) or len(time) != 2 or not all(is_natural(n) for n in time):
        raise BadInput(f"bsread: the timestamp of {frame.channel!r} is {time!r}; give [seconds, nanoseconds]")
    return struct.pack("<qq", *time)


def _encode_value(name: str, value: Any) -> tuple[dict[str, Any], bytes, bytes]:
    """A scalar, a text or a vector as a channel; None among numbers is "not a number". Raises BadInput."""
    channel = {"name": name, "encoding": "little"}
    if isinstance(value, str):
        return channel | {"type": "string", "shape": [1]}, value.encode(), b""
    numbers = [math.nan if number is None else number for number in (value if isinstance(value, list) else [value])]
    if not all(isinstance(number, int | float | np.number) for number in numbers):
        raise BadInput(f"bsread: the value of {name!r} cannot be sent; give numbers, texts or lists of numbers")
    array = np.array(numbers)
    if not array.size or array.dtype.kind not in "biuf":
        raise BadInput(f"bsread: the value of {name!r} cannot be sent; give numbers of up to 64 bits, at least one")
    little = array.astype(array.dtype.newbyteorder("<"))
    return channel | {"type": array.dtype.name, "shape": [array.size]}, little.tobytes(), b""
