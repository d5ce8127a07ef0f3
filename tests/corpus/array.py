"""array-1.0 as no camera should send it."""

from __future__ import annotations

import json
import struct
from typing import Any

import lz4.block
import numpy as np

from streamer import compression
from tests.hostile import Case, Parts

ROWS, COLUMNS = 20, 30
_PIXELS = (np.arange(ROWS * COLUMNS, dtype="<u2") * 7919 % 11).reshape(ROWS, COLUMNS)
_OCTETS = _PIXELS.tobytes()
_BLOCKS = compression.compress("bslz4", 2, _PIXELS)[12:]
_LZ4 = lz4.block.compress(_OCTETS, store_size=False)
_HDF5 = compression.compress("lz4", 0, _PIXELS, block=128)


def _header(**changes: Any) -> bytes:
    header = {"htype": "array-1.0", "shape": [ROWS, COLUMNS], "type": "uint16", "frame": 7}
    return json.dumps({name: value for name, value in (header | changes).items() if value is not ...}).encode()


def _message(octets: bytes = _OCTETS, **changes: Any) -> Parts:
    return [_header(**changes), octets]


def good() -> list[Parts]:
    """Frames of every sender known. There is no start and no end."""
    area_detector = (
        b'{"htype":["array-1.0"], "type":"uint16", "shape":[30,20], "frame":8, "timeStamp":1037719800.25, '
        b'"encoding":"", "ndattr":{"ColorMode":0,"DriverFileName":"/data/a.tif","Gain":1.5}}'
    )
    not_json = area_detector.replace(b"/data/a.tif", b'C:\\data\\"a\xb5".tif').replace(b'"frame":8', b'"frame":9')
    return [
        _message(),
        [area_detector, _OCTETS],
        [not_json, _OCTETS],
        _message(_PIXELS.astype(">u2").tobytes(), frame=10, endianness="big", source="pco"),
        _message(frame=11, endianess="little", tags=[], source=""),
        _message(_LZ4, frame=12, encoding="lz4"),
        _message(_BLOCKS, frame=13, encoding="bslz4"),
        _message(_BLOCKS + bytes(len(_OCTETS) - len(_BLOCKS)), frame=14, encoding="bslz4"),
        _message(_HDF5, frame=15, encoding="lz4hdf5"),
        _message(_OCTETS * 3, frame=16, shape=[ROWS, COLUMNS, 3]),
        _message(frame=17, shape=[1, ROWS, COLUMNS]),
        _message(frame=18, shape=[ROWS * COLUMNS]),
        _message(_PIXELS.astype("<f8").tobytes(), frame=19, type="float64"),
    ]


def damaged() -> list[Case]:
    """Messages that are refused, each for its reason."""
    return [*_misbuilt(), *_misnamed(), *_misshapen(), *_mispacked()]


def _misbuilt() -> list[Case]:
    """Messages that are not a JSON object and an array."""
    header = _header()
    cases = [
        Case("no part", [], "parts"),
        Case("one part", [header], "parts"),
        Case("three parts", [header, _OCTETS, b""], "parts"),
        Case("a thousand parts", [header] * 1000, "parts"),
        Case("two empty parts", [b"", b""], "json"),
        Case("an empty header", [b"", _OCTETS], "json"),
        Case("the parts the other way round", [_OCTETS, header], "json"),
        Case("a list at the top", [b'["array-1.0"]', _OCTETS], "json"),
        Case("text at the top", [b'"array-1.0"', _OCTETS], "json"),
        Case("a number at the top", [b"1", _OCTETS], "json"),
        Case("null at the top", [b"null", _OCTETS], "json"),
        Case("two objects", [header + header, _OCTETS], "json"),
        Case("bytes left over", [header + b"\x00", _OCTETS], "json"),
        Case("text that is not UTF-8", [header.replace(b"uint16", b"\xff\xfe"), _OCTETS], "json"),
        Case("UTF-16", [header.decode().encode("utf-16"), _OCTETS], "json"),
        Case("100,000 lists deep", [b'{"htype":"array-1.0","a":' + b"[" * 100_000, _OCTETS], "json"),
        Case("100,000 closed lists deep", _nested(b"[", b"]"), "json"),
        Case("100,000 objects deep", _nested(b'{"a":', b"}", b"1"), "json"),
        Case("a key twice", [header.replace(b'{"', b'{"frame":1,"'), _OCTETS], "json"),
        Case("not a number", [header.replace(b"7", b"NaN"), _OCTETS], "json"),
        Case("infinity", [header.replace(b"7", b"-Infinity"), _OCTETS], "json"),
        Case("an integer of a million digits", [header.replace(b"7", b"7" * 10**6), _OCTETS], "json"),
        Case("a header of eight megabytes", [_header(comment="x" * 2**23), _OCTETS], "json"),
        Case("three megabytes of empty objects", [_header(comment=[{}] * 10**6), _OCTETS], "json"),
        Case("broken attributes before the rest", [b'{"ndattr":{"a":"b"c"},' + header[1:], _OCTETS], "type"),
        Case("a broken header with attributes", [b'{"htype":array-1.0,"ndattr":{}}', _OCTETS], "json"),
        Case("nothing but attributes", [b'"ndattr":', _OCTETS], "json"),
        Case("CBOR", [b"\xa2\x64type\x65image", _OCTETS], "json"),
    ]
    for percent in (1, 20, 50, 80, 99):
        cut = max(1, len(header) * percent // 100)
        cases.append(Case(f"header cut after {percent} %", [header[:cut], _OCTETS], "json"))
    return cases


def _nested(opening: bytes, closing: bytes, inside: bytes = b"") -> Parts:
    deep = opening * 100_000 + inside + closing * 100_000
    return [b'{"htype":"array-1.0","a":' + deep + b"}", _OCTETS]


def _misnamed() -> list[Case]:
    """Headers whose fields are not what the schema says."""
    return [
        Case("no htype", _message(htype=...), "type"),
        Case("another htype", _message(htype="dimage-1.0"), "type"),
        Case("the predecessor", _message(htype="chunk-1.0"), "type"),
        Case("the predecessor in a list", _message(htype=["chunk-1.0"]), "type"),
        Case("the next version", _message(htype="array-2.0"), "type"),
        Case("an htype that is a number", _message(htype=1), "type"),
        Case("an htype in two lists", _message(htype=[["array-1.0"]]), "type"),
        Case("two htypes", _message(htype=["array-1.0", "array-1.0"]), "type"),
        Case("no frame number", _message(frame=...), "id"),
        Case("a negative frame number", _message(frame=-1), "id"),
        Case("a frame number that is text", _message(frame="7"), "id"),
        Case("a frame number that is a float", _message(frame=7.0), "id"),
        Case("a frame number that is true", _message(frame=True), "id"),
        Case("a frame number that is null", _message(frame=None), "id"),
        Case("frame number 2^63", _message(frame=2**63), "id"),
        Case("a source that is a number", _message(source=5), "id"),
        Case("a source with a line break", _message(source="pco\n"), "id"),
        Case("a source with half a character", _message(source="pco\ud800"), "json"),
        Case("a source of a megabyte", _message(source="x" * 10**6), "id"),
        Case("no type", _message(type=...), "dtype"),
        Case("a type nobody knows", _message(type="uint24"), "dtype"),
        Case("complex pixels", _message(type="complex64"), "dtype"),
        Case("pixels that are objects", _message(type="object"), "dtype"),
        Case("pixels of a gigabyte", _message(type="V1000000000"), "dtype"),
        Case("a type that is a number", _message(type=16), "dtype"),
        Case("a type that is a list", _message(type=["uint16"]), "dtype"),
        Case("a third byte order", _message(endianness="middle"), "dtype"),
        Case("a byte order that is true", _message(endianess=True), "dtype"),
        Case("64-bit pixels that no analysis takes", _message(b"\xff" * 8, type="uint64", shape=[1, 1]), "dtype"),
    ]


def _misshapen() -> list[Case]:
    """Images that are not what their dimensions say."""
    return [
        Case("no shape", _message(shape=...), "shape"),
        Case("no dimensions", _message(shape=[]), "shape"),
        Case("a shape that is a number", _message(shape=600), "shape"),
        Case("a shape that is text", _message(shape="20x30"), "shape"),
        Case("a shape that is an object", _message(shape={"x": 30, "y": 20}), "shape"),
        Case("no rows", _message(shape=[0, COLUMNS]), "shape"),
        Case("no columns", _message(shape=[ROWS, 0]), "shape"),
        Case("negative rows and columns", _message(shape=[-ROWS, -COLUMNS]), "shape"),
        Case("rows that are a float", _message(shape=[20.0, COLUMNS]), "shape"),
        Case("rows that are true", _message(shape=[True, COLUMNS]), "shape"),
        Case("rows that are text", _message(shape=["20", COLUMNS]), "shape"),
        Case("ragged dimensions", _message(shape=[ROWS, [COLUMNS]]), "shape"),
        Case("a stack of images", _message(shape=[2, 10, COLUMNS]), "shape"),
        Case("four dimensions", _message(shape=[2, 2, 5, COLUMNS]), "shape"),
        Case("colours nobody can find", _message(bytes(18), shape=[3, 3, 2], type="uint8"), "shape"),
        Case("fifty thousand dimensions", _message(shape=[1] * 50_000), "shape"),
        Case("2^40 pixels", _message(shape=[2**20, 2**20]), "size"),
        Case("2^126 pixels", _message(shape=[2**63 - 1, 2**63 - 1]), "size"),
        Case("2^64 columns", _message(shape=[1, 2**64]), "shape"),
        Case("2^40 pixels in colour", _message(shape=[3, 2**20, 2**20]), "size"),
        Case("one row too many", _message(shape=[ROWS + 1, COLUMNS]), "shape"),
        Case("one row too few", _message(shape=[ROWS - 1, COLUMNS]), "shape"),
        Case("sixty million pixels in a kilobyte", _message(shape=[6000, 10000]), "shape"),
        Case("one byte too few", _message(_OCTETS[:-1]), "shape"),
        Case("one byte too many", _message(_OCTETS + b"\x00"), "shape"),
        Case("no bytes", _message(b""), "shape"),
        Case("the bytes of a wider type", _message(type="uint32"), "shape"),
        Case("the bytes of a narrower type", _message(type="uint8"), "shape"),
        Case("one colour of three", _message(shape=[3, ROWS, COLUMNS]), "shape"),
    ]


def _mispacked() -> list[Case]:
    """Images that are not compressed as they say."""

    def packed(octets: bytes, encoding: Any = "bslz4", **changes: Any) -> Parts:
        return _message(octets, encoding=encoding, **changes)

    def hdf5(declared: int, block: int = 128) -> bytes:
        return struct.pack(">QI", declared, block) + _HDF5[12:]

    return [
        Case("blosc", packed(_OCTETS, "blosc"), "compression"),
        Case("jpeg", packed(_OCTETS, "jpeg"), "compression"),
        Case("a codec nobody knows", packed(_OCTETS, "zip"), "compression"),
        Case("a codec that is a number", packed(_OCTETS, 4), "compression"),
        Case("a codec that is a list", packed(_OCTETS, ["lz4"]), "compression"),
        Case("compressed nothing", packed(b""), "truncated"),
        Case("lz4 of nothing", packed(b"", "lz4"), "truncated"),
        Case("blocks cut short", packed(_BLOCKS[:-1]), "truncated"),
        Case("a block of 2^32 - 1 bytes", packed(b"\xff" * 4 + _BLOCKS[4:]), "truncated"),
        Case("a block of no bytes", packed(bytes(4) + _BLOCKS[4:]), "compression"),
        Case("blocks of noise", packed(_BLOCKS[:4] + b"\xff" * (len(_BLOCKS) - 4)), "compression"),
        Case("twelve zeros", packed(bytes(12)), "truncated"),
        Case("a compressed byte too many", packed(_BLOCKS + b"\x00"), "size"),
        Case("a whole buffer of zeros", packed(bytes(len(_OCTETS))), "truncated"),
        Case("a whole buffer of ones", packed(b"\xff" * len(_OCTETS)), "truncated"),
        Case("blocks of wider elements", packed(_BLOCKS, type="uint32"), "compression"),
        Case("one compressed row too many", packed(_BLOCKS, shape=[ROWS + 1, COLUMNS]), "compression"),
        Case("a bomb of sixty million pixels", packed(_BLOCKS, shape=[6000, 10000]), "truncated"),
        Case("an lz4 bomb of sixty million pixels", packed(_LZ4, "lz4", shape=[6000, 10000]), "truncated"),
        Case("lz4 cut short", packed(_LZ4[:-5], "lz4"), "compression"),
        Case("lz4 of noise", packed(b"\xf7" * len(_LZ4), "lz4"), "compression"),
        Case("lz4 of one row less", packed(_LZ4, "lz4", shape=[ROWS + 1, COLUMNS]), "compression"),
        Case("lz4 of one row more", packed(_LZ4, "lz4", shape=[ROWS - 1, COLUMNS]), "compression"),
        Case("an lz4 header of 2^40 bytes", packed(hdf5(2**40), "lz4hdf5"), "compression"),
        Case("an lz4 header of 2^64 - 1 bytes", packed(hdf5(2**64 - 1), "lz4hdf5"), "compression"),
        Case("lz4 blocks of 2^32 - 1 bytes", packed(hdf5(len(_OCTETS), 2**32 - 1), "lz4hdf5"), "size"),
        Case("lz4 blocks cut short", packed(_HDF5[:-1], "lz4hdf5"), "truncated"),
        Case("lz4 blocks and a byte", packed(_HDF5 + b"\x00", "lz4hdf5"), "size"),
    ]
