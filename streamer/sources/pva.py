"""An EPICS pvAccess channel that carries images: the NTNDArray of areaDetector's Pva plug-in and its like.

    pva://13SIM1:Pva1:Image?queue_frames=64

Loss. A pvAccess monitor conflates: for a reader that is slow the server, or the client library, keeps the newest array
and lets older ones go, without a word. It is a way to see every array only while everybody keeps up. What was let go is
seen as uniqueIds that never came: the ledger counts each as missing, and `counts` how often it happened. A detector
that must not lose frames needs a transport that pushes back (DECTRIS stream, ZeroMQ plug-in). Arrays that are sent
every n-th uniqueId on purpose are told so by `step`.

Series. An NTNDArray belongs to none: its uniqueId counts, and starts over when the camera does. All arrays come over
one connection, in order, so a number that falls back begins a new series, and the same number once more is a duplicate:
a server repeats its last array to everyone who connects, so the first array may be as old as the last acquisition.

Array. Source: EPICS normative types, and ADCore (ntndArrayConverter, NDPluginCodec).

    value            union of one array per element type; none, without dimensions, before the first acquisition
    dimension        sizes, fastest first: columns, rows. Colour has a third: its place follows from the attribute
                     ColorMode (2: first, 3: second, 4: third), and the image becomes three Frames, one per colour.
                     Offset, binning and reverse describe the region on the sensor and do not change the array.
    codec            "" or the compression of the bytes in `value`: "lz4" is one LZ4 block, "bslz4" is bitshuffle in
                     blocks of 8192 bytes, both without a header; data with the header of the HDF5 filters, as files
                     have it, are understood too. Others (blosc, jpeg, zlib) are refused.
    codec.parameters the element type of compressed data. ADCore's two plug-ins number the types differently (ScalarType
                     of pvData, NDDataType); uncompressedSize tells which is meant, but for 1, where both have one
                     byte: it is taken as uint8, not int8.
    timeStamp, dataTimeStamp    seconds since 1970 in `Frame.extra`, as sent: it is the clock of another computer
    attribute        in `Frame.extra["attributes"]`: numbers and text, of the first MAX_ATTRIBUTES

Threads. p4p's own thread only wakes `receive`, which takes from p4p's bounded queue; there is no other.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.fields import Fields, excerpt, plain
from streamer.pixels import Packed, Scratch, unpack, usable
from streamer.records import BadConfig, BadFrame, Frame, SeriesKey, SeriesStart, SourceLost, WireRecord
from streamer.sources import Message, Source

log = structlog.get_logger(__name__)

REASONS: Mapping[str, str] = {
    "type": "not a structure of type epics:nt/NTNDArray:1.x",
    "id": "uniqueId absent or negative",
    "field": "another field is absent where it must not be, of the wrong type, or text that is not UTF-8",
    "dtype": "elements that are not numbers, or 64-bit integers that do not fit into 32 bits",
    "shape": "not two positive dimensions (three with colour), or a payload that does not fill them",
    "size": "larger than max_pixels, or sizes that contradict each other",
    "truncated": "compressed data end early",
    "compression": "a codec that is not understood, a wrong element type, or damaged compressed data",
}

IDENTITY = "epics:nt/NTNDArray:1."
"""What a structure calls itself; the minor version may change and stays compatible."""

MAX_ATTRIBUTES = 256
"""Attributes that are kept of one array; beamlines have some tens."""

MAX_TEXT = 1000
"""Characters that are kept of an attribute; areaDetector cuts its own at 256."""

REPEAT_S = 1.0
"""Repeated warnings are summed to one in this time."""

ALONE_S = 1.0
"""How long a server may take to answer before it is said that there is none; on loopback it takes milliseconds."""

COLOURS = ("red", "green", "blue")
_COLOUR_PLACE = {2: 0, 3: 1, 4: 2}
"""ColorMode (RGB1, RGB2, RGB3; NDArray.h) → which dimension holds the colours, fastest first."""

_ND_DATA_TYPE = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")))
_SCALAR_TYPE = dict(enumerate(("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"), 1))

_CONFLATION = (
    "arrays were skipped: pvAccess lets go of older arrays where a reader is slow; they count as missing. "
    "If the camera numbers them so, set step"
)


class Pva(Source):
    """Images from a pvAccess channel.

    channel: the name of the PV, such as "13SIM1:Pva1:Image". queue_frames: arrays that may wait in the client library.
    step: the distance between the uniqueIds of two consecutive arrays. max_pixels: the largest image to expect.
    name_server: "host:port" of servers that are asked over TCP which of them has the channel; address_list: hosts, or
    "host:port", that are asked over UDP (older servers answer nothing else). Several are separated by commas. Without
    either the environment (EPICS_PVA_ADDR_LIST and its like) says where to look.

    connection: "waiting" (no array yet), "connected" or "disconnected". counts: "connected", "disconnected", and
    "skipped": how often arrays were missing between two that came.
    Raises BadConfig without p4p, and for values that make no sense.
    """

    def __init__(
        self,
        channel: str,
        *,
        queue_frames: int = 32,
        step: int = 1,
        max_pixels: int = 64_000_000,
        name_server: str = "",
        address_list: str = "",
    ) -> None:
        if not channel or not 2 <= queue_frames <= 4096 or step < 1 or max_pixels < 1:
            raise BadConfig(
                f"pva: found channel {channel!r}, queue_frames {queue_frames}, step {step}, max_pixels {max_pixels};"
                " expected pva://CHANNEL, 2 to 4096 arrays, a step and pixels of at least 1"
            )
        self.channel = channel
        self.url = f"pva://{channel}"
        self.step = step
        self.max_pixels = max_pixels
        self._counts = dict.fromkeys(("connected", "disconnected", "skipped"), 0)
        self.counts: Mapping[str, int] = self._counts
        self._is_connected = False
        self._ready: deque[Message] = deque()
        self._runs = 0
        self._last: int | None = None
        self._skipped = 0
        self._quiet_until = 0.0
        self._opened_at = time.monotonic()
        self._alone_until = time.monotonic() + ALONE_S
        self._wake = threading.Event()
        self._p4p = _import_p4p()
        self._context = _context(self._p4p, name_server, address_list)
        request = f"record[queueSize={queue_frames}]field()"
        self._monitor = self._context.monitor(channel, self._wake.set, request=request)

    @property
    def connection(self) -> str:
        if self._is_connected:
            return "connected"
        return "disconnected" if self.counts["connected"] else "waiting"

    def receive(self, timeout_s: float) -> Message | None:
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            self._wake.clear()
            update = self._monitor.pop()
            if isinstance(update, Exception):
                self._note(update)
            elif update is not None:
                self._take(update)
            elif not self._wake.wait(max(0.0, deadline - time.monotonic())):
                self._tell_if_alone()
                return None
        return self._ready.popleft()

    def _tell_if_alone(self) -> None:
        """Nobody has the channel: say so after a second, then more and more rarely."""
        now = time.monotonic()
        if not any(self._counts.values()) and now >= self._alone_until:
            self._alone_until = now + 4 * (now - self._opened_at)
            log.warning(
                "no server has this channel: check its name, EPICS_PVA_ADDR_LIST or ?name_server=", source=self.url
            )

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        start: SeriesStart | None = message.extra.get("start")
        if start is not None:
            return [start]
        if message.kind is None:
            return []
        [structure] = message.parts
        series, number = message.extra.get("series"), None
        try:
            number = _unique_id(structure)
            series = series or SeriesKey(0, self.channel)
            return [*self._frames(structure, series, number, message.received_ns, scratch)]
        except BadFrame as bad:
            bad.series, bad.number = series, number
            raise

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        [structure] = message.parts
        return message.extra.get("series") or SeriesKey(0, self.channel), _unique_id(structure)

    def close(self) -> None:
        self._monitor.close()
        self._context.close()

    def _note(self, event: Exception) -> None:
        """Something happened to the connection."""
        match event:
            case self._p4p.Finished():
                raise EOFError
            case self._p4p.Disconnected():
                self._is_connected = False
                self._counts["disconnected"] += 1
                log.warning("the server is gone, waiting for it to come back", source=self.url, **self.counts)
            case _:
                raise SourceLost(
                    f"pva: the server of {self.channel} refuses to be monitored ({event}); is it an image channel,"
                    " and may this computer read it?"
                ) from event

    def _take(self, structure: Any) -> None:
        received_ns = time.monotonic_ns()
        if not self._is_connected:
            self._is_connected = True
            self._counts["connected"] += 1
            log.info("connected", source=self.url)
        try:
            number = _unique_id(structure)
            value, dimension = _get(structure, "value"), _get(structure, "dimension")
        except BadFrame:
            self._ready.append(Message([structure], "image", 0, received_ns))  # whoever decodes it will count it
            return
        if value is None and dimension == []:
            self._ready.append(Message([structure], None, 0, received_ns))  # nothing was acquired yet
            return
        series = self._place(number, received_ns)
        nbytes = value.nbytes if isinstance(value, np.ndarray) else 0
        self._ready.append(Message([structure], "image", nbytes, received_ns, {"series": series}))

    def _place(self, number: int, received_ns: int) -> SeriesKey:
        """The series of an array; if it begins one, its start is put before it."""
        is_new = self._last is None or number < self._last
        if is_new:
            if self._last is not None:
                log.info("uniqueId fell back: a new series", source=self.url, last=self._last, now=number)
            self._runs += 1
        elif self._last is not None:
            self._note_gap((number - self._last) // self.step - 1)
        self._last = number
        series = SeriesKey(self._runs, self.channel)
        if is_new:
            start = SeriesStart(series, first=number, step=self.step, received_ns=received_ns)
            self._ready.append(Message((), "start", 0, received_ns, {"start": start}))
        return series

    def _note_gap(self, skipped: int) -> None:
        """Count a gap; one warning a second at most, with all that was skipped since the last one."""
        if skipped < 1:
            return
        self._counts["skipped"] += 1
        self._skipped += skipped
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + REPEAT_S
            log.warning(_CONFLATION, source=self.url, arrays=self._skipped)
            self._skipped = 0

    def _frames(
        self, structure: Any, series: SeriesKey, number: int, received_ns: int, scratch: Scratch | None
    ) -> list[Frame]:
        fields = Fields({name: _get(structure, name) for name in _NAMES})
        attributes = _attributes(fields)
        extra: dict[str, Any] = {"attributes": attributes}
        for name in ("timeStamp", "dataTimeStamp"):
            if (seconds := _seconds(fields.get(name))) is not None:
                extra[name] = seconds
        shape = _shape(fields)
        planes = _planes(shape, attributes.get("ColorMode"))
        image = self._image(fields, shape, scratch)
        if planes is None:
            return [Frame(image, series, number, received_ns=received_ns, extra=extra)]
        return [
            Frame(np.ascontiguousarray(plane), series, number, colour, received_ns=received_ns, extra=extra)
            for colour, plane in zip(COLOURS, np.moveaxis(image, planes, 0), strict=True)
        ]

    def _image(self, fields: Fields, shape: tuple[int, ...], scratch: Scratch | None) -> NDArray[Any]:
        """The array in its dimensions, slowest first: a view of what p4p received where it needs no conversion."""
        pixels = math.prod(shape)
        most = self.max_pixels * (len(COLOURS) if len(shape) == 3 else 1)
        if pixels > most:
            raise BadFrame(
                "size", f"an array of {_by(shape)}; if that is the camera, raise max_pixels={self.max_pixels}"
            )
        value = fields.get("value")
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "biuf":
            raise fields.wrong("value", "an array of numbers", "dtype")
        codec = _get(fields.get("codec"), "name")
        if codec is not None and not isinstance(codec, str):
            raise BadFrame("field", f"codec.name is a {type(codec).__name__}, expected text")
        declared = fields.natural_or_none("uncompressedSize", "size") or 0
        if codec:
            algorithm = _algorithm(codec)
            dtype = _element_type(_get(fields.get("codec"), "parameters"), declared, pixels)
            packed = Packed(algorithm, dtype.itemsize, _octets(value, fields), header_is_optional=True)
            return usable(unpack(packed, shape, dtype, max_pixels=most, scratch=scratch))
        if value.size != pixels:
            raise BadFrame("shape", f"{value.size} elements in dimensions of {_by(shape)}")
        if declared not in (0, value.nbytes):
            raise BadFrame("size", f"uncompressedSize is {declared}, the array has {value.nbytes} bytes")
        return usable(value.reshape(shape))


_NAMES = (
    *("value", "codec", "compressedSize", "uncompressedSize", "dimension"),
    *("attribute", "timeStamp", "dataTimeStamp"),
)


def _import_p4p() -> SimpleNamespace:
    """What is used of p4p. Raises BadConfig where it is not installed."""
    try:
        from p4p.client.raw import Context, Disconnected, Finished
    except ImportError as missing:
        raise BadConfig(f"pva needs p4p ({missing}); pip install 'streamer[epics]'") from missing
    return SimpleNamespace(Context=Context, Disconnected=Disconnected, Finished=Finished)


def _context(p4p: SimpleNamespace, name_server: str, address_list: str) -> Any:
    """Where channels are looked for. Raises BadConfig for an address that cannot be resolved."""
    if not name_server and not address_list:
        return p4p.Context("pva", nt=False, useenv=True)
    asked = {"EPICS_PVA_NAME_SERVERS": name_server, "EPICS_PVA_ADDR_LIST": address_list}
    given = {name: addresses.replace(",", " ") for name, addresses in asked.items()}
    context = p4p.Context("pva", nt=False, useenv=False, conf={**given, "EPICS_PVA_AUTO_ADDR_LIST": "NO"})
    understood = context.conf()
    for name, addresses in given.items():
        if len(understood.get(name, "").split()) < len(addresses.split()):
            context.close()
            raise BadConfig(f"pva: '{addresses}' holds an address that cannot be resolved; expected host:port")
    return context


def _get(structure: Any, name: str) -> Any:
    """A field of a structure, None where there is no such field or no structure. Raises BadFrame."""
    try:
        return structure.get(name) if hasattr(structure, "getID") else None
    except UnicodeDecodeError as error:
        raise BadFrame("field", f"{name} is not UTF-8 text ({error.reason})") from error


def _unique_id(structure: Any) -> int:
    identity = structure.getID()
    if not identity.startswith(IDENTITY):
        raise BadFrame("type", f"a structure of type {identity[:40]!r}, expected an NTNDArray (…:Pva1:Image)")
    return Fields({"uniqueId": _get(structure, "uniqueId")}).natural("uniqueId")


def _shape(fields: Fields) -> tuple[int, ...]:
    """The dimensions of the array, slowest first."""
    dimensions = fields.get("dimension")
    if not isinstance(dimensions, list):
        raise fields.wrong("dimension", "a list of dimensions")
    if len(dimensions) not in (2, 3):
        raise BadFrame("shape", f"{len(dimensions)} dimensions, expected columns and rows (and colours)")
    sizes = [_get(dimension, "size") for dimension in reversed(dimensions)]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise BadFrame("shape", f"dimensions of {_by(sizes)}, expected positive sizes")
    return tuple(sizes)


def _planes(shape: tuple[int, ...], color_mode: Any) -> int | None:
    """The axis of the colours, None without them."""
    if len(shape) == 2:
        return None
    place = _COLOUR_PLACE.get(color_mode) if isinstance(color_mode, int) else None
    if place is None:
        raise BadFrame("shape", f"three dimensions, ColorMode {excerpt(color_mode)}; set the camera to Mono or RGB1")
    axis = 2 - place
    if shape[axis] != len(COLOURS):
        raise BadFrame("shape", f"dimensions of {_by(shape)} with {shape[axis]} colours, expected {len(COLOURS)}")
    return axis


def _by(sizes: tuple[int, ...] | list[Any]) -> str:
    return " × ".join(str(size)[:20] for size in sizes)


def _algorithm(codec: str) -> str:
    if codec not in ("lz4", "bslz4"):
        raise BadFrame(
            "compression",
            f"codec {codec[:20]!r} is not understood; set the Compressor of NDPluginCodec to BSLZ4",
        )
    return codec


def _element_type(parameters: Any, declared: int, pixels: int) -> np.dtype[Any]:
    """The element type of compressed data from its number in either numbering, whichever has the right size."""
    for numbering in (_ND_DATA_TYPE, _SCALAR_TYPE):
        name = numbering.get(parameters) if type(parameters) is int else None
        if name is not None and np.dtype(name).itemsize * pixels == declared:
            return np.dtype(name)
    shown = parameters if isinstance(parameters, int) else type(parameters).__name__
    raise BadFrame(
        "size",
        f"uncompressedSize is {declared}, not that of {pixels} elements of codec.parameters {shown}",
    )


def _octets(value: NDArray[Any], fields: Fields) -> memoryview:
    """The compressed bytes; some senders give the whole buffer that holds them."""
    octets = value.view(np.uint8)
    compressed = fields.natural_or_none("compressedSize", "size") or octets.size
    if compressed > octets.size:
        raise BadFrame("truncated", f"compressedSize is {compressed}, there are {octets.size} bytes")
    return octets[:compressed].data


def _attributes(fields: Fields) -> dict[str, Any]:
    """Numbers and text among the attributes; of two of the same name the last."""
    entries = fields.get("attribute")
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise fields.wrong("attribute", "a list of attributes")
    found = {}
    for entry in entries[:MAX_ATTRIBUTES]:
        name, value = _get(entry, "name"), _get(entry, "value")
        if isinstance(name, str) and isinstance(value, str | int | float):
            found[name[:MAX_TEXT]] = value[:MAX_TEXT] if isinstance(value, str) else plain(value)
    return found


def _seconds(stamp: Any) -> float | None:
    """Seconds since 1970; None where the sender did not set the time."""
    seconds, nanoseconds = _get(stamp, "secondsPastEpoch"), _get(stamp, "nanoseconds")
    if type(seconds) is not int or type(nanoseconds) is not int or not seconds:
        return None
    return seconds + nanoseconds * 1e-9
