"""DECTRIS stream v1, also called the legacy stream: ZeroMQ messages of several parts, JSON and pixels in turn.

The detector binds PUSH on port 9999. Every EIGER speaks it; EIGER2 and newer ones do while `format` is "legacy".

    start   dheader-1.0 {series, header_detail}
            the detector's configuration, where header_detail is basic or all
            dflatfield-1.0, dpixelmask-1.0, dcountrate_table-1.0 {shape, type}, each with its blob, where it is all
            an appendix, if the user set one
    image   dimage-1.0 {series, frame, hash}
            dimage_d-1.0 {shape, type, encoding, size}
            the blob
            dconfig-1.0 {start_time, stop_time, real_time} in nanoseconds
            an appendix, if the user set one
    end     dseries_end-1.0 {series}, without a count

Sources: libertem_dectris/src/base_types.rs of LiberTEM-rs, dranspose/data/eiger_legacy.py, and the eigersim package.

    shape      [width, height], or [width, height, thresholds]: the thresholds one after the other in one blob. Records
               have rows × columns; the channels of the second kind are "threshold_1", "threshold_2", …
    encoding   [bs<BITS>][[-]lz4][<|>]: bitshuffle, LZ4, byte order. bs16-lz4< is framed as in HDF5; lz4< is one plain
               LZ4 block; < is not compressed. Some senders leave the 12 bytes before bitshuffled blocks out, or zero:
               shape and type say how long the image is, never the blob.
    images     ntrigger in the trigger modes exte and inte, else nimages · ntrigger

What senders do differently and is understood: dheader and configuration, or the tables, in messages of their own (what
follows belongs to the last header; the start is complete with the configuration, and is told once more with each table
that comes after it); a start and the first images, or images and their end, as parts of one message (`split`).
No state depends on the number of parts: stray parts of an image are refused, and the next whole one is decoded.

A flatfield or mask that cannot be used does not cost the start: simulators send text in their place, and recordings cut
them off. It is left out, logged as a warning, and named with the reason in `extra["left_out"]`. DECTRIS detectors mark
masked pixels in the image itself, too, with the largest value of its type.

Zero means "not set" for detector distance, energy, wavelength and count cutoff (electron detectors send 0): it is None.
`ntrigger`, `nimages` and `trigger_mode` are in `extra` where there is more than one trigger; appendices are there as
`header_appendix` and `image_appendix`, as a map if they are a JSON object, else as text.

Not checked: `hash`, an MD5 sum that simulators leave empty or fill with something else. Not kept: the count-rate table.
Not sent by `encode`: a series' unique id, channel names, and types that `bit_depth_image` cannot say. Reasons of
BadFrame are the keys of REASONS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import lz4.block
import numpy as np
import structlog
from numpy.typing import NDArray

from streamer import compression, headers, pixels
from streamer.fields import Fields, is_natural, naming, plain
from streamer.pixels import Announced, Scratch
from streamer.records import BadFrame, BadInput, Buffer, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.wire import Format, Kind

__all__ = ["REASONS", "Dectris1"]

log = structlog.get_logger(__name__)

REASONS: Mapping[str, str] = {
    "parts": "a message of too few or too many parts, or parts that belong to no header",
    "json": "a header that is not one well-formed JSON object",
    "type": "a part whose htype is not the one that belongs there",
    "id": "series or frame number absent or not a natural number",
    "field": "another field is absent where it must not be, of the wrong type, or not finite",
    "dtype": "an element type this format does not have",
    "shape": "not two or three positive dimensions, or a payload that does not fill them",
    "size": "larger than the series' own images, or than max_pixels, or more bytes than announced",
    "truncated": "fewer bytes than announced, or than the image needs",
    "compression": "an encoding that does not exist or does not fit the type, or damaged compressed data",
}

MAX_CHANNELS = 16
"""Thresholds in one image. Detectors have up to four; each is a whole image in memory."""

USUAL_CHANNELS = 4
"""Full images in one message. More thresholds must be smaller."""

MAX_APPENDIX = 64 * 1024
"""Bytes of an appendix that are kept. It is text of the user's, some file name or sample as a rule."""

_NEAR = 256
"""Where `htype` stands, at the latest: after a hash and three numbers, where entries are sorted by name."""

_CONFIG_BYTES = 64 * 1024
"""Where the names that a configuration has are looked for: 1 to 3 kB, up to 20 kB with a list of modules."""

_HTYPE = re.compile(rb'\s*\{.*?"htype"\s*:\s*"([^"]*)"', re.S)
_ENCODING = re.compile(r"(?:bs(8|16|32))?-?(lz4)?([<>]?)")
_TABLES = {"dflatfield-1.0": "flatfield", "dpixelmask-1.0": "pixel_mask", "dcountrate_table-1.0": "countrate_table"}
_KINDS: Mapping[str, Kind] = {
    "dheader-1.0": "start",
    "dimage-1.0": "image",
    "dseries_end-1.0": "end",
    **dict.fromkeys(_TABLES, "start"),
}
_BEGINNINGS = frozenset({"dheader-1.0", "dimage-1.0", "dseries_end-1.0"})
_ONE_PER_TRIGGER = ("exte", "inte")
_DEPTHS: Mapping[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32)}
_SENT_DTYPES = frozenset(np.dtype(name) for name in ("uint8", "uint16", "uint32", "int32", "float32"))


class Dectris1(Format):
    """DECTRIS stream v1.

    max_pixels: the largest image to expect, in pixels, before a series has announced its own.
    compression, header_detail: how `encode` packs images, and how much it says of a series.
    """

    name = "dectris1"
    title = "DECTRIS stream v1"
    default_port = 9999

    def __init__(
        self,
        max_pixels: int = 64_000_000,
        compression: Literal["bslz4", "lz4", "none"] = "bslz4",
        header_detail: Literal["all", "basic", "none"] = "all",
    ) -> None:
        self.max_pixels = max_pixels
        self.compression = compression
        self.header_detail = header_detail
        self._header: _Header | None = None
        self._announced = Announced(max_pixels)

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        if not parts:
            return None
        htype = _htype(parts[0])
        if not htype and _is_configuration(parts[0]):
            return "start"
        return _KINDS.get(htype)

    def split(self, parts: Sequence[Buffer]) -> list[Sequence[Buffer]]:
        firsts = [0, *(place for place in range(1, len(parts)) if _htype(parts[place]) in _BEGINNINGS)]
        if len(firsts) == 1:
            return [parts]
        return [parts[first:after] for first, after in zip(firsts, [*firsts[1:], len(parts)], strict=True)]

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        fields = _first(parts)
        with naming(fields.identity):
            if fields.get("htype") != "dimage-1.0":
                raise fields.wrong("htype", "dimage-1.0", "type")
            return fields.series(), fields.natural("frame")

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        """See `Format.decode`. A header whose configuration is to follow in another message gives no record yet."""
        fields = _first(parts)
        with naming(fields.identity):
            match fields.get("htype"):
                case "dimage-1.0":
                    return [*self._frames(fields, parts, scratch, received_ns)]
                case "dheader-1.0":
                    self._header = None
                    return self._started(_Header(fields), parts[1:], received_ns)
                case "dseries_end-1.0":
                    if len(parts) != 1:
                        raise BadFrame("parts", f"an end of {len(parts)} parts, expected 1")
                    return [SeriesEnd(fields.series(), received_ns)]
                case None | "dflatfield-1.0" | "dpixelmask-1.0" | "dcountrate_table-1.0" as htype:
                    if self._header is not None:
                        return self._started(self._header, parts, received_ns)
                    if htype == "dcountrate_table-1.0":
                        return []
                    raise BadFrame("parts", "parts of a header that did not come, or is complete")
            raise fields.wrong("htype", " or ".join(sorted(_BEGINNINGS)), "type")

    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> list[Buffer]:
        """The parts of one message.

        A frame alone is sent without its channel; several are the channels threshold_1, threshold_2, … of one exposure.
        Raises BadInput for others, and for what cannot be written as JSON.
        """
        if isinstance(record, SeriesStart):
            return self._encode_start(record)
        if isinstance(record, SeriesEnd):
            return [_json({"htype": "dseries_end-1.0", "series": record.series.number})]
        return self._encode_frames(record)

    def _started(self, header: _Header, parts: Sequence[Buffer], received_ns: int) -> list[WireRecord]:
        """What a header says with the parts that follow it; nothing while its configuration has not come."""
        header = header.with_parts(parts, self.max_pixels)
        start = None if header.is_waiting else header.start(received_ns)
        self._header = header if header.is_open else None
        if start is None:
            return []
        if header.shape is not None:
            self._announced.remember(header.series, math.prod(header.shape))
        if header.left_out:
            log.warning("a start without some of its tables", series=str(header.series), left_out=header.left_out)
        return [start]

    def _frames(
        self, fields: _Fields, parts: Sequence[Buffer], scratch: Scratch | None, received_ns: int
    ) -> Iterator[Frame]:
        series, number = fields.series(), fields.natural("frame")
        if len(parts) not in (4, 5):
            raise BadFrame("parts", f"an image of {len(parts)} parts, expected 4, or 5 with an appendix")
        about, times = _named(parts[1], "dimage_d-1.0"), _named(parts[3], "dconfig-1.0")
        appendix = _appendix("image_appendix", parts[4]) if len(parts) == 5 else {}
        start_s, stop_s, real_s = (times.seconds(f"{name}_time") for name in ("start", "stop", "real"))
        extra = fields.others(_IMAGE_FIELDS) | about.others(_IMAGE_FIELDS) | times.others(_IMAGE_FIELDS)
        image = _image(about, parts[2], self._announced.limit(series), scratch)
        for channel, plane in _planes(image):
            yield Frame(plane, series, number, channel, start_s, stop_s, real_s, received_ns, extra | appendix)

    def _encode_start(self, start: SeriesStart) -> list[Buffer]:
        series, detail = start.series.number, self.header_detail
        parts: list[Buffer] = [_json({"htype": "dheader-1.0", "series": series, "header_detail": detail})]
        if detail != "none":
            parts.append(_json(self._configuration(start)))
        if detail == "all":
            for flatfield in [*start.flatfield.values()][:1]:
                parts += _table("dflatfield-1.0", flatfield.astype("<f4"))
            for mask in [*start.mask.values()][:1]:
                parts += _table("dpixelmask-1.0", mask.astype("<u4"))
        return parts + _encode_appendix(start.extra.get("header_appendix"))

    def _configuration(self, start: SeriesStart) -> dict[str, Any]:
        rows, columns = start.shape or (None, None)
        x, y = start.beam_center or (None, None)
        width, height = start.pixel_size_m or (None, None)
        depths = {dtype: bits for bits, dtype in _DEPTHS.items()}
        known = {
            **_encode_triggers(start),
            "beam_center_x": x,
            "beam_center_y": y,
            "bit_depth_image": None if start.dtype is None else depths.get(np.dtype(start.dtype)),
            "compression": self.compression,
            "count_time": start.count_time_s,
            "countrate_correction_count_cutoff": start.saturation,
            "description": start.detector or None,
            "detector_distance": start.distance_m,
            "frame_time": start.frame_time_s,
            "photon_energy": start.energy_eV,
            "wavelength": start.wavelength_A,
            "x_pixel_size": width,
            "x_pixels_in_detector": columns,
            "y_pixel_size": height,
            "y_pixels_in_detector": rows,
        }
        other = {name: value for name, value in start.extra.items() if name not in _START_FIELDS}
        return other | {name: value for name, value in known.items() if value is not None}

    def _encode_frames(self, frames: Sequence[Frame]) -> list[Buffer]:
        image, first = _stacked(frames), frames[0]
        times = {"start_time": first.start_s, "stop_time": first.stop_s, "real_time": first.real_s}
        sent = {name: _nanoseconds(seconds) for name, seconds in times.items() if seconds is not None}
        other = {name: value for name, value in first.extra.items() if name not in _IMAGE_FIELDS}
        encoding, blob = self._pack(image)
        shape = [*image.shape[::-1][:2], *image.shape[:-2]]
        about = {"shape": shape, "type": image.dtype.name, "encoding": encoding, "size": len(blob)}
        digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
        identity = {"series": first.series.number, "frame": first.number, "hash": digest}
        return [
            _json({"htype": "dimage-1.0", **identity}),
            _json({"htype": "dimage_d-1.0", **about}),
            blob,
            _json({"htype": "dconfig-1.0", **sent, **other}),
            *_encode_appendix(first.extra.get("image_appendix")),
        ]

    def _pack(self, image: NDArray[Any]) -> tuple[str, bytes]:
        """The encoding and the blob."""
        little = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
        if self.compression == "none":
            return "<", little.tobytes()
        if self.compression == "lz4":
            return "lz4<", lz4.block.compress(little.tobytes(), store_size=False)
        return f"bs{8 * little.itemsize}-lz4<", compression.compress("bslz4", little.itemsize, little)


class _Fields(Fields):
    """The entries of one JSON part."""

    def series(self) -> SeriesKey:
        return SeriesKey(self.natural("series"))

    def identity(self) -> tuple[SeriesKey | None, int | None]:
        """Series and number, as far as they can be read."""
        series, number = self.get("series"), self.get("frame")
        if not is_natural(series):
            return None, None
        return SeriesKey(series), number if is_natural(number) else None

    def seconds(self, name: str) -> Fraction | None:
        nanoseconds = self.natural_or_none(name)
        return None if nanoseconds is None else Fraction(nanoseconds, 10**9)

    def others(self, known: frozenset[str]) -> dict[str, Any]:
        """Everything else it says, as far as JSON can say it."""
        return {name: plain(value) for name, value in self._values.items() if name not in known}


class _Header:
    """A series' header, as far as it has come. Its parts may be spread over several messages."""

    def __init__(self, first: _Fields) -> None:
        self.series = first.series()
        self.detail = first.text("header_detail")
        if self.detail not in ("all", "basic", "none"):
            raise first.wrong("header_detail", "all, basic or none")
        self.is_waiting = self.detail != "none"
        self.config = _Fields()
        self.shape: tuple[int, int] | None = None
        self.tables: dict[str, NDArray[Any]] = {}
        self.left_out: dict[str, str] = {}
        self.appendix: dict[str, Any] = {}

    @property
    def is_open(self) -> bool:
        """Whether more of it may come: the tables of a header that has come whole are not kept."""
        told = self.tables.keys() | self.left_out.keys()
        return self.is_waiting or (self.detail == "all" and not told >= {"flatfield", "pixel_mask"})

    def with_parts(self, parts: Sequence[Buffer], max_pixels: int) -> _Header:
        """This header and what more is told of it. An error leaves this one as it was."""
        new = object.__new__(_Header)
        new.__dict__.update(self.__dict__, tables=dict(self.tables), left_out=dict(self.left_out))
        rest = [*parts]
        if new.is_waiting and rest:
            new._configure(_Fields(headers.read(rest.pop(0), "configuration")), max_pixels)
        while rest:
            htype = _htype(rest[0])
            if htype in _BEGINNINGS:
                raise BadFrame("parts", f"{htype} among the parts of a header")
            if htype and len(rest) > 1:
                new._take(_Fields(headers.read(rest[0], "table")), rest[1])
                rest = rest[2:]
            elif htype or len(rest) > 1 or _is_configuration(rest[0]):
                raise BadFrame("parts", "a table without its blob, or a part that belongs to no header")
            else:
                new.appendix = _appendix("header_appendix", rest.pop())
        return new

    def _configure(self, config: _Fields, max_pixels: int) -> None:
        if "htype" in config:
            raise BadFrame("parts", "a header without the configuration that header_detail announces")
        columns, rows = (config.natural_or_none(f"{axis}_pixels_in_detector") for axis in "xy")
        if rows is not None and columns is not None:
            if not rows * columns:
                raise BadFrame("shape", f"images of {rows} × {columns} pixels announced, expected at least one pixel")
            if rows * columns > max_pixels:
                raise BadFrame(
                    "size",
                    f"images of {rows} × {columns} pixels; if that is the detector, raise max_pixels={max_pixels}",
                )
            self.shape = rows, columns
        self.config, self.is_waiting = config, False

    def _take(self, about: _Fields, blob: Buffer) -> None:
        """A table with its blob; what cannot be used is named and left out."""
        htype = about.text("htype")
        name = _TABLES.get(htype, htype[:40])
        if name in self.tables or name in self.left_out:
            raise BadFrame("parts", f"a header with {name} twice")
        if name == "countrate_table":
            return
        try:
            self.tables[name] = self._table(about, blob)
        except BadFrame as unusable:
            self.left_out[name] = str(unusable)

    def _table(self, about: _Fields, blob: Buffer) -> NDArray[Any]:
        if about.get("htype") not in _TABLES:
            raise about.wrong("htype", " or ".join(_TABLES), "type")
        rows, columns = self.shape or (0, 0)
        if about.get("shape") != [columns, rows]:
            raise BadFrame("shape", f"a table of {_shown(about.get('shape'))}, the images are {columns} × {rows}")
        return pixels.unpack(blob, (rows, columns), pixels.dtype_named(about.get("type")), max_pixels=rows * columns)

    def start(self, received_ns: int) -> SeriesStart:
        config, tables = self.config, self.tables
        flatfield, mask = tables.get("flatfield"), tables.get("pixel_mask")
        depth = config.natural_or_none("bit_depth_image")
        left_out = {"left_out": dict(self.left_out)} if self.left_out else {}
        return SeriesStart(
            series=self.series,
            images=_images(config),
            shape=self.shape,
            dtype=_DEPTHS.get(depth or 0),
            saturation=config.natural_or_none("countrate_correction_count_cutoff") or None,
            frame_time_s=config.number("frame_time"),
            count_time_s=config.number("count_time"),
            energy_eV=config.number("photon_energy") or config.number("incident_energy") or None,
            wavelength_A=config.number("wavelength") or None,
            beam_center=config.pair("beam_center_x", "beam_center_y"),
            pixel_size_m=config.pair("x_pixel_size", "y_pixel_size"),
            distance_m=config.number("detector_distance") or None,
            mask={} if mask is None else {"": mask != 0},
            flatfield={} if flatfield is None else {"": flatfield.astype(np.float32, copy=False)},
            detector=config.text("description"),
            extra=config.others(_START_FIELDS) | _triggers(config) | self.appendix | left_out,
            received_ns=received_ns,
        )


_TRIGGER_FIELDS = ("nimages", "ntrigger", "trigger_mode")
_IMAGE_FIELDS = frozenset(
    {
        *("htype", "series", "frame", "hash", "shape", "type", "encoding", "size"),
        *("start_time", "stop_time", "real_time", "image_appendix"),
    }
)
_START_FIELDS = frozenset(
    {
        *_TRIGGER_FIELDS,
        *("beam_center_x", "beam_center_y", "bit_depth_image", "compression", "count_time"),
        *("countrate_correction_count_cutoff", "description", "detector_distance", "flatfield", "frame_time", "htype"),
        *("photon_energy", "pixel_mask", "wavelength", "x_pixel_size", "x_pixels_in_detector", "y_pixel_size"),
        *("y_pixels_in_detector", "header_appendix", "left_out"),
    }
)


def _htype(part: Buffer) -> str:
    """What a part says it is, from its first bytes; "" for a blob, an appendix or a configuration. Never raises."""
    found = _HTYPE.match(bytes(memoryview(part)[:_NEAR]))
    return found[1].decode("latin-1") if found else ""


def _is_configuration(part: Buffer) -> bool:
    """Whether a part without htype has the names that every detector's configuration has."""
    head = bytes(memoryview(part)[:_CONFIG_BYTES])
    return head[:1] == b"{" and b'"nimages"' in head and b'"x_pixels_in_detector"' in head


def _first(parts: Sequence[Buffer]) -> _Fields:
    if not parts:
        raise BadFrame("parts", "a message without parts")
    return _Fields(headers.read(parts[0], "first part"))


def _named(part: Buffer, htype: str) -> _Fields:
    """The header of that type. Raises BadFrame where another part stands in its place."""
    fields = _Fields(headers.read(part, htype))
    if fields.get("htype") != htype:
        raise fields.wrong("htype", htype, "type")
    return fields


def _images(config: _Fields) -> int | None:
    """How many images the series will have."""
    per_trigger, triggers = config.natural_or_none("nimages"), config.natural_or_none("ntrigger")
    if config.text("trigger_mode") in _ONE_PER_TRIGGER:
        return triggers
    if per_trigger is None:
        return None
    images = per_trigger * (1 if triggers is None else triggers)
    if not is_natural(images):
        raise config.wrong("ntrigger", "a number of images that 63 bits can hold")
    return images


def _triggers(config: _Fields) -> dict[str, Any]:
    """How the images are spread over triggers, where there are several: a raster scan has one trigger a line."""
    if (config.natural_or_none("ntrigger") or 1) == 1:
        return {}
    return {name: config.get(name) for name in _TRIGGER_FIELDS if name in config}


def _encode_triggers(start: SeriesStart) -> dict[str, Any]:
    told = {name: start.extra[name] for name in _TRIGGER_FIELDS if name in start.extra}
    with contextlib.suppress(BadFrame):
        if told and _images(_Fields(told)) == start.images:
            return told
    return {} if start.images is None else {"nimages": start.images, "ntrigger": 1, "trigger_mode": "ints"}


def _image(about: _Fields, blob: Buffer, limit: int, scratch: Scratch | None) -> NDArray[Any]:
    """(rows, columns), or (thresholds, rows, columns)."""
    shape = about.get("shape")
    if not isinstance(shape, list) or len(shape) not in (2, 3) or not all(is_natural(n) and n for n in shape):
        raise BadFrame("shape", f"an image of {_shown(shape)}, expected [width, height] in pixels")
    columns, rows, *planes = shape
    if rows * columns > limit:
        raise BadFrame("size", f"an image of {rows} × {columns} pixels, expected at most {limit}")
    if planes and planes[0] > MAX_CHANNELS:
        raise BadFrame("size", f"an image of {planes[0]} thresholds, expected at most {MAX_CHANNELS}")
    size, found = about.natural_or_none("size"), memoryview(blob).nbytes
    if size is not None and size != found:
        raise BadFrame("truncated" if found < size else "size", f"a blob of {found} bytes, {size} were announced")
    octets, dtype = _unwrapped(about, blob)
    image = pixels.unpack(octets, (*planes, rows, columns), dtype, max_pixels=USUAL_CHANNELS * limit, scratch=scratch)
    return pixels.usable(image)


def _unwrapped(about: _Fields, blob: Buffer) -> tuple[Buffer | pixels.Packed, np.dtype[Any]]:
    """The blob as its encoding has it, and the type of its elements."""
    encoding = about.get("encoding")
    found = _ENCODING.fullmatch(encoding) if isinstance(encoding, str) else None
    if found is None:
        raise about.wrong("encoding", "[bs8|bs16|bs32][-lz4][<|>]", "compression")
    bits, packing, order = found.groups()
    dtype = pixels.dtype_named(about.get("type"), ">" if order == ">" else "<")
    if bits and (not packing or int(bits) != 8 * dtype.itemsize):
        raise about.wrong("encoding", f"bs{8 * dtype.itemsize}-lz4 for elements of {dtype}", "compression")
    if not packing:
        return blob, dtype
    return pixels.Packed("bslz4" if bits else "lz4", dtype.itemsize, blob, header_is_optional=True), dtype


def _planes(image: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    """The 2-D images in one message, with the names of their channels."""
    if image.ndim == 2:
        return [("", image)]
    if len(image) == 1:
        return [("", image[0])]
    return [(f"threshold_{number}", plane) for number, plane in enumerate(image, 1)]


def _shown(shape: Any) -> str:
    if isinstance(shape, list) and len(shape) <= 4 and all(is_natural(n) for n in shape):
        return f"shape {shape}"
    return "a shape that is not a short list of natural numbers"


def _appendix(name: str, part: Buffer) -> dict[str, Any]:
    """What the user attached: a map if it is a JSON object, else text. What is neither, or too long, is not kept."""
    if _htype(part) in _KINDS:
        raise BadFrame("parts", f"{_htype(part)} where only an appendix may be")
    if memoryview(part).nbytes > MAX_APPENDIX:
        return {}
    try:
        return {name: plain(headers.read(part, name))}
    except BadFrame:
        with contextlib.suppress(UnicodeDecodeError):
            return {name: str(part, "utf-8")}
    return {}


def _encode_appendix(appendix: Any) -> list[Buffer]:
    if appendix is None:
        return []
    return [appendix.encode() if isinstance(appendix, str) else _json(appendix)]


def _stacked(frames: Sequence[Frame]) -> NDArray[Any]:
    """The image of one frame, or the images of all thresholds of one exposure."""
    exposures = {(frame.series, frame.number, frame.start_s, frame.stop_s, frame.real_s) for frame in frames}
    kinds = {(frame.image.shape, frame.image.dtype) for frame in frames}
    channels = [frame.channel for frame in frames]
    names = [f"threshold_{number}" for number in range(1, len(frames) + 1)]
    if len(exposures) != 1 or len(kinds) != 1 or (len(frames) > 1 and channels != names):
        raise BadInput(
            f"dectris1: {len(frames)} frames of {len(exposures)} exposures in channels {channels}; give one frame, or "
            f"all thresholds of one exposure, of one shape and type, as {names[:2]} and so on"
        )
    image = frames[0].image if len(frames) == 1 else np.stack([frame.image for frame in frames])
    if frames[0].image.ndim != 2 or not image.size or image.dtype.newbyteorder("=") not in _SENT_DTYPES:
        raise BadInput(f"dectris1: images of {image.dtype}, shape {image.shape}; give 2-D integers or floats")
    return image


def _nanoseconds(seconds: Fraction) -> int:
    nanoseconds = round(seconds * 10**9)
    if not is_natural(nanoseconds):
        raise BadInput(f"dectris1: a time of {float(seconds)} s; give one from 0 to 292 years after the series' begin")
    return nanoseconds


def _table(htype: str, table: NDArray[Any]) -> list[Buffer]:
    return [_json({"htype": htype, "shape": [*table.shape[::-1]], "type": table.dtype.name}), table.tobytes()]


def _json(values: Any) -> bytes:
    try:
        return json.dumps(values, allow_nan=False, default=_number, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"dectris1: {error}; give text, finite numbers, lists and maps") from error


def _number(value: Any) -> Any:
    """NumPy's numbers are sent as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")
