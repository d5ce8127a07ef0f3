"""NTNDArrays by hand, good and damaged in every field, and a server that has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray
from p4p.nt import NTNDArray, NTScalar
from p4p.server import Server
from p4p.server.thread import SharedPV
from p4p.wrapper import Type, Value

from streamer import compression

IDENTITY = "epics:nt/NTNDArray:1.0"
CHANNEL = "TEST:Pva1:Image"
TYPE = NTNDArray.buildType()
FIELDS = dict(TYPE.aspy()[2])
IMAGE = np.arange(6, dtype=np.uint16).reshape(2, 3)
MAX_PIXELS = 1_000_000

UNION = {"u1": "ubyte", "u2": "ushort", "u4": "uint", "u8": "ulong", "f4": "float", "f8": "double"} | {
    "i1": "byte",
    "i2": "short",
    "i4": "int",
    "i8": "long",
    "b1": "boolean",
}
SCALAR_TYPE = {"i1": 1, "i2": 2, "i4": 3, "i8": 4, "u1": 5, "u2": 6, "u4": 7, "u8": 8, "f4": 9, "f8": 10}
ND_DATA_TYPE = {"i1": 0, "u1": 1, "i2": 2, "u2": 3, "i4": 4, "u4": 5, "i8": 6, "u8": 7, "f4": 8, "f8": 9}


def structure(values: Mapping[str, Any], identity: str = IDENTITY, types: Mapping[str, Any] | None = None) -> Value:
    """A structure with the fields of an NTNDArray, of other types where that is asked for (None: without the field)."""
    if identity == IDENTITY and not types:
        return Value(TYPE, dict(values))  # a channel takes values of the very type it was opened with
    fields = {**FIELDS, **(types or {})}
    return Value(Type([(name, spec) for name, spec in fields.items() if spec is not None], id=identity), dict(values))


def contents(image: NDArray[Any] = IMAGE, number: int = 1, **changed: Any) -> dict[str, Any]:
    """What is in the NTNDArray of an image without compression."""
    return {
        "value": (f"{UNION[image.dtype.str[1:]]}Value", image.ravel()),
        "codec.name": "",
        "compressedSize": image.nbytes,
        "uncompressedSize": image.nbytes,
        "uniqueId": number,
        "dimension": [{"size": size, "fullSize": size, "binning": 1} for size in reversed(image.shape)],
        "timeStamp": {"secondsPastEpoch": 1_700_000_000, "nanoseconds": 250_000_000},
        "dataTimeStamp": {"secondsPastEpoch": 1_700_000_000, "nanoseconds": 0},
        "attribute": [{"name": "ColorMode", "value": 0}],
        **changed,
    }


def array(image: NDArray[Any] = IMAGE, number: int = 1, **changed: Any) -> Value:
    """An NTNDArray as areaDetector sends it."""
    return structure(contents(image, number, **changed))


def packed(image: NDArray[Any], codec: str, *, has_header: bool = False) -> bytes:
    """Compressed as ADCore does it, or with the header of the HDF5 filters."""
    if codec == "lz4" and not has_header:
        return bytes(lz4.block.compress(image.tobytes(), store_size=False))
    octets = compression.compress(codec, image.itemsize, image)
    return octets if has_header else octets[12:]


def compressed(image: NDArray[Any], codec: str, octets: bytes | None = None, **changed: Any) -> dict[str, Any]:
    """What is in the NTNDArray of an image behind NDPluginCodec."""
    octets = packed(image, codec) if octets is None else octets
    return contents(image) | {
        "value": ("ubyteValue", np.frombuffer(octets, np.uint8)),
        "codec.name": codec,
        "codec.parameters": SCALAR_TYPE[image.dtype.str[1:]],
        "compressedSize": len(octets),
        **changed,
    }


@dataclass(frozen=True)
class Case:
    """A structure that must be refused, and why."""

    name: str
    reason: str
    value: Value


def damaged() -> list[Case]:
    """NTNDArrays that must not pass, each with the reason it is refused for."""
    return [
        *_not_an_array(),
        *_without_identity(),
        *_with_odd_fields(),
        *_of_odd_elements(),
        *_of_odd_dimensions(),
        *_of_odd_sizes(),
        *_of_odd_compression(),
    ]


def _with(name: str, reason: str, types: Mapping[str, Any] | None = None, **changed: Any) -> Case:
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    values = {key: value for key, value in contents().items() if key.partition(".")[0] not in (types or {})}
    return Case(name, reason, structure(values | changed, types=types))


def _not_an_array() -> list[Case]:
    identities = ("epics:nt/NTScalar:1.0", "epics:nt/NTNDArray:2.0", "epics:nt/ntndarray:1.0", "NTNDArray", "x" * 9999)
    cases = [Case(f"a structure called {one[:30]}", "type", structure(contents(), one)) for one in identities]
    scalar = NTScalar("d").wrap(1.0)
    return [
        *cases,
        Case("a structure without a name", "type", structure(contents(), "")),
        Case("a scalar", "type", scalar),
        Case("an empty structure", "type", Value(Type([]), {})),
    ]


def _without_identity() -> list[Case]:
    others = {"text": ("s", "1"), "a float": ("d", 1.0), "a boolean": ("?", True), "a list": ("ai", [1])}
    return [
        _with("no uniqueId", "id", {"uniqueId": None}),
        _with("uniqueId -1", "id", uniqueId=-1),
        _with("the lowest uniqueId", "id", uniqueId=-(2**31)),
        _with("uniqueId beyond 63 bits", "id", {"uniqueId": "L"}, uniqueId=2**63),
        _with("uniqueId is a structure", "id", {"uniqueId": ("S", None, [("value", "i")])}),
        _with("uniqueId is nothing", "id", {"uniqueId": "v"}),
        *(_with(f"uniqueId is {name}", "id", {"uniqueId": spec}, uniqueId=v) for name, (spec, v) in others.items()),
    ]


def _with_odd_fields() -> list[Case]:
    attribute = ("aS", None, [("name", "s"), ("value", "v")])
    codec = ("S", "codec_t", [("name", "i"), ("parameters", "v")])
    return [
        _with("no dimension", "field", {"dimension": None}),
        _with("dimension is a number", "field", {"dimension": "i"}, dimension=6),
        _with("dimension is text", "field", {"dimension": "s"}, dimension="3 × 2"),
        _with("dimension is an array of numbers", "field", {"dimension": "ai"}, dimension=[3, 2]),
        _with("dimension is a structure", "field", {"dimension": ("S", None, [("size", "i")])}),
        _with("attribute is a number", "field", {"attribute": "i"}, attribute=6),
        _with("attribute is text", "field", {"attribute": "s"}, attribute="ColorMode"),
        _with("attribute is a structure", "field", {"attribute": ("S", None, [("name", "s")])}),
        _with("codec.name is a number", "field", {"codec": codec}, codec__name=1),
        _with("codec.name is not UTF-8", "field", codec__name=b"\xff\xfe"),
        _with("an attribute's name is not UTF-8", "field", {"attribute": attribute}, attribute=[{"name": b"\xc3\x28"}]),
        _with("an attribute's text is not UTF-8", "field", attribute=[{"name": "a", "value": b"\xff"}]),
        _with("uncompressedSize is text", "size", {"uncompressedSize": "s"}, uncompressedSize="12"),
    ]


def _of_odd_elements() -> list[Case]:
    union = ("U", None, [("texts", "as"), ("text", "s"), ("one", ("S", None, [("x", "i")])), ("number", "d")])
    chosen = {"texts": ["0"] * 6, "text": "012345", "one": {"x": 6}, "number": 6.0}
    return [
        _with("no value", "dtype", {"value": None}),
        _with("value is a number", "dtype", {"value": "d"}, value=6.0),
        _with("value is a structure", "dtype", {"value": ("S", None, [("ushortValue", "aH")])}),
        _with("value is a list of structures", "dtype", {"value": ("aS", None, [("x", "i")])}, value=[{"x": 1}] * 6),
        *(_with(f"value is {name}", "dtype", {"value": union}, value=(name, v)) for name, v in chosen.items()),
        _with("value is text that is not UTF-8", "field", {"value": union}, value=("text", b"\xff\xfe")),
        Case("a pixel beyond 32 bits", "dtype", array(np.array([[0, 1, 2], [3, 4, 2**32]], np.uint64))),
        Case("a pixel below 32 bits", "dtype", array(np.array([[0, 1, 2], [3, 4, -(2**31) - 1]], np.int64))),
    ]


def _of_odd_dimensions() -> list[Case]:
    def sizes(*of: Any) -> list[Any]:
        return [{"size": size} for size in of]

    def colours(mode: Any, *of: int) -> Value:
        image = np.zeros(of, np.uint8)
        return array(image, attribute=[] if mode is None else [{"name": "ColorMode", "value": mode}])

    odd = {
        "no dimensions": [],
        "one dimension": sizes(6),
        "four dimensions": sizes(3, 2, 1, 1),
        "no columns": sizes(0, 2),
        "no rows": sizes(3, 0),
        "negative columns": sizes(-3, 2),
        "two negative dimensions": sizes(-3, -2),
        "one row too few": sizes(3, 1),
        "one column too many": sizes(4, 2),
        "a dimension that is null": [None, {"size": 2}],
    }
    return [
        *(_with(name, "shape", dimension=dimension) for name, dimension in odd.items()),
        _with("a dimension without size", "shape", {"dimension": ("aS", None, [("x", "i")])}, dimension=[{}, {}]),
        _with("sizes as text", "shape", {"dimension": ("aS", None, [("size", "s")])}, dimension=sizes("3", "2")),
        _with("sizes as floats", "shape", {"dimension": ("aS", None, [("size", "d")])}, dimension=sizes(3.0, 2.0)),
        _with("no pixels", "dtype", value=("ushortValue", IMAGE[:0].ravel())),
        _with("one pixel too many", "shape", value=("ushortValue", np.zeros(7, np.uint16))),
        Case("three dimensions without ColorMode", "shape", colours(None, 2, 4, 3)),
        Case("three dimensions in mono", "shape", colours(0, 2, 4, 3)),
        Case("ColorMode unknown", "shape", colours(8, 2, 4, 3)),
        Case("ColorMode as text", "shape", colours("RGB1" * 99, 2, 4, 3)),
        Case("RGB1 with four colours", "shape", colours(2, 2, 3, 4)),
        Case("RGB2 with colours elsewhere", "shape", colours(3, 2, 4, 3)),
        Case("RGB3 with one colour", "shape", colours(4, 1, 4, 3)),
    ]


def _of_odd_sizes() -> list[Case]:
    largest = [{"size": 2**31 - 1}] * 2
    return [
        _with("the largest dimensions there are", "size", dimension=largest),
        _with("one pixel more than allowed", "size", dimension=[{"size": 1}, {"size": MAX_PIXELS + 1}]),
        _with("uncompressedSize too small", "size", uncompressedSize=11),
        _with("uncompressedSize too large", "size", uncompressedSize=2**40),
        _with("uncompressedSize negative", "size", uncompressedSize=-12),
    ]


def _of_odd_compression() -> list[Case]:
    image = np.arange(64 * 100, dtype=np.uint16).reshape(64, 100)
    largest = [{"size": 2**31 - 1}] * 2

    def case(name: str, reason: str, codec: str = "bslz4", octets: bytes | None = None, **changed: Any) -> Case:
        changed = {key.replace("__", "."): value for key, value in changed.items()}
        return Case(name, reason, structure(compressed(image, codec, octets) | changed))

    bslz4, block = packed(image, "bslz4"), packed(image, "lz4")
    header = packed(image, "bslz4", has_header=True)
    names = ("blosc", "jpeg", "zlib", "zstd", "LZ4", "lz4 ", "bitshuffle", "z" * 100_000)
    return [
        *(case(f"codec {name[:20]}", "compression", codec__name=name) for name in names),
        case("an element type that does not exist", "size", codec__parameters=11),
        case("an element type of another size", "size", codec__parameters=7),
        case("a negative element type", "size", codec__parameters=-1),
        case("an element type as text", "size", codec__parameters="uint16"),
        case("an element type that is a boolean", "size", codec__parameters=True),
        case("no element type", "size", codec__parameters=None),
        case("compressed without uncompressedSize", "size", uncompressedSize=0),
        case("compressed with an uncompressedSize of one byte more", "size", uncompressedSize=image.nbytes + 1),
        case("2^62 bytes to come", "size", uncompressedSize=2**62),
        case("a bomb of the largest dimensions", "size", dimension=largest, uncompressedSize=2 * (2**31 - 1) ** 2),
        case("compressedSize negative", "size", compressedSize=-1),
        case("compressedSize beyond the data", "truncated", compressedSize=len(bslz4) + 1),
        case("bslz4 without a byte", "dtype", octets=b""),
        case("lz4 without a byte", "dtype", "lz4", b""),
        case("bslz4 cut in a length", "truncated", octets=bslz4[:2]),
        case("bslz4 cut in its first block", "truncated", octets=bslz4[:99]),
        case("bslz4 without its last byte", "truncated", octets=bslz4[:-1]),
        case("bslz4 with a header cut in its last block", "truncated", octets=header[:-1]),
        case("bslz4 with a byte left over", "size", octets=bslz4 + b"\0"),
        case("bslz4 of 0xff", "truncated", octets=b"\xff" * len(bslz4)),
        case("bslz4 with a damaged block", "compression", octets=bslz4[:4] + b"\xff" * 40 + bslz4[44:]),
        case("lz4 cut", "compression", "lz4", block[:-1]),
        case("lz4 with a byte left over", "compression", "lz4", block + b"\0"),
        case("lz4 of noise", "compression", "lz4", b"\xff\x00\x7f" * 200),
        case("lz4 of a shorter image", "compression", "lz4", packed(image[:-1], "lz4")),
        case("few bytes for a large image", "truncated", "lz4", b"\x1f" * 20),
    ]


class Camera:
    """A pvAccess server with one image channel on a port of its own, in this process."""

    def __init__(self) -> None:
        self.pv = SharedPV(initial=structure({}))
        self._port = "0"
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        conf = {
            "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
            "EPICS_PVAS_SERVER_PORT": self._port,
            "EPICS_PVAS_BROADCAST_PORT": "0",
            "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_PVAS_BEACON_ADDR_LIST": "",
        }
        self._server = Server(providers=[{CHANNEL: self.pv}], conf=conf, useenv=False)
        self._port = self._server.conf()["EPICS_PVAS_SERVER_PORT"]

    def stop(self) -> None:
        self._server.stop()

    def send(self, number: int, image: NDArray[Any] = IMAGE) -> None:
        self.pv.post(array(image, number))
