"""bsread as no camera should send it."""

from __future__ import annotations

import hashlib
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
_BLOCKS = compression.compress("bslz4", 2, _PIXELS, block=128)
_LZ4 = struct.pack("<I", len(_OCTETS)) + lz4.block.compress(_OCTETS, store_size=False)
_TIME = struct.pack("<qq", 1_700_000_000, 250_000_000)
_CAMERA = {"name": "CAM:FPICTURE", "type": "uint16", "shape": [COLUMNS, ROWS], "encoding": "little"}
_SCALAR = {"name": "CAM:X", "encoding": "little", "shape": [1]}


def _main(**changes: Any) -> bytes:
    header = {"htype": "bsr_m-1.1", "pulse_id": 7, "hash": "0", "global_timestamp": {"sec": 1_700_000_000, "ns": 5}}
    return json.dumps({name: value for name, value in (header | changes).items() if value is not ...}).encode()


def _data(*channels: Any, **changes: Any) -> bytes:
    return json.dumps({"htype": "bsr_d-1.1", "channels": [*channels]} | changes).encode()


def _pulse(channels: list[Any], values: list[bytes], time: bytes = _TIME, **changes: Any) -> Parts:
    """A message as psi-bsread builds it: every value followed by its time, none of them where there is no value."""
    data_header = _data(*channels)
    main_header = _main(**{"hash": hashlib.md5(data_header).hexdigest()} | changes)
    return [main_header, data_header, *(part for value in values for part in (value, time if value else b""))]


def _message(value: bytes = _OCTETS, time: bytes = _TIME, **changes: Any) -> Parts:
    """A pulse of one camera whose description has changed."""
    camera = {name: entry for name, entry in (_CAMERA | changes).items() if entry is not ...}
    return _pulse([camera], [value], time)


def good() -> list[Parts]:
    """Pulses of every sender known. There is no start and no end."""
    network_order = struct.pack(">I", len(_OCTETS)) + _LZ4[4:]
    scalars = [
        {"name": "TEXT", "type": "string", "shape": [1], "encoding": "little"},
        {"name": "WAVE", "shape": [30], "encoding": "big"},
        {"name": "COUNT", "type": "int32", "encoding": "little"},
    ]
    values = [b"hello", np.linspace(0, 1, 30).astype(">f8").tobytes(), struct.pack("<i", -5)]
    compressed = _data(_CAMERA)
    bitshuffled = compression.compress("bslz4", 1, np.frombuffer(compressed, np.uint8))
    packed = struct.pack("<I", len(compressed)) + lz4.block.compress(compressed, store_size=False)
    second = _CAMERA | {"name": "CAM2:FPICTURE", "type": "float64"}
    return [
        _message(),
        _message(_BLOCKS, compression="bitshuffle_lz4"),
        _message(_LZ4, compression="lz4"),
        _message(network_order, compression="lz4", encoding=...),
        _message(_PIXELS.astype(">u2").tobytes(), struct.pack(">qq", 5, 6), encoding="big", compression="none"),
        _pulse([*scalars, _CAMERA], [*values, _OCTETS]),
        _pulse([_CAMERA, second], [_OCTETS, _PIXELS.astype("<f8").tobytes()]),
        _pulse([_CAMERA, second], [b"", _PIXELS.astype("<f8").tobytes()]),
        [_main(dh_compression="bitshuffle_lz4", hash="a"), bitshuffled, _OCTETS, _TIME],
        [_main(dh_compression="lz4", hash="b", global_timestamp=...), packed, _OCTETS, b""],
    ]


def damaged() -> list[Case]:
    """Messages that are refused, each for its reason."""
    return [*_misbuilt(), *_misnamed(), *_misdescribed(), *_mispacked()]


def _misbuilt() -> list[Case]:
    """Messages that are not two JSON objects, values and times."""
    main, data = _main(), _data(_CAMERA)
    whole = [main, data, _OCTETS, _TIME]

    def headed(header: bytes) -> Parts:
        return [header, *whole[1:]]

    def described(header: bytes) -> Parts:
        return [main, header, *whole[2:]]

    cases = [
        Case("no part", [], "parts"),
        Case("the main header alone", whole[:1], "parts"),
        Case("the headers alone", whole[:2], "parts"),
        Case("no time", whole[:3], "parts"),
        Case("a part too many", [*whole, b""], "parts"),
        Case("another channel's value", [*whole, _OCTETS, _TIME], "parts"),
        Case("a thousand parts", [*whole, *[b""] * 1000], "parts"),
        Case("values without channels", [main, _data(), _OCTETS, _TIME], "parts"),
        Case("empty parts", [b""] * 4, "json"),
        Case("the headers the other way round", [data, main, *whole[2:]], "type"),
        Case("no data header", [main, *whole[2:]], "json"),
        Case("an empty data header nobody sent before", [_main(hash="never"), b"", *whole[2:]], "field"),
        Case("a list at the top", headed(b'["bsr_m-1.1"]'), "json"),
        Case("null at the top", headed(b"null"), "json"),
        Case("a list for a data header", described(b'["bsr_d-1.1"]'), "json"),
        Case("a number for a data header", described(b"5"), "json"),
        Case("bytes left over", headed(main + b"}"), "json"),
        Case("text that is not UTF-8", headed(main.replace(b"bsr_m", b"bs\xff_m")), "json"),
        Case("a name that is not UTF-8", described(data.replace(b"CAM", b"C\xfeM")), "json"),
        Case("100,000 lists deep", headed(b'{"htype":"bsr_m-1.1","a":' + b"[" * 100_000), "json"),
        Case("100,000 closed lists deep", headed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "json"),
        Case("channels 100,000 objects deep", described(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "json"),
        Case("a key twice", headed(main.replace(b'{"htype"', b'{"pulse_id": 1, "htype"')), "json"),
        Case("a channel with two names", described(data.replace(b'"type"', b'"name": "A", "type"')), "json"),
        Case("not a number", headed(main.replace(b"7", b"NaN")), "json"),
        Case("a shape that is not a number", described(data.replace(b"30", b"NaN")), "json"),
        Case("an integer of a million digits", headed(main.replace(b"7", b"7" * 10**6)), "json"),
        Case("a main header of eight megabytes", headed(_main(comment="x" * 2**23)), "json"),
        Case("a data header of two megabytes", described(_data(_CAMERA, comment="x" * 2**21)), "size"),
        Case("CBOR", headed(b"\xa2\x64type\x65image"), "json"),
    ]
    for what, at, header in (("main header", 0, main), ("data header", 1, data)):
        for percent in (1, 20, 50, 80, 99):
            cut = header[: max(1, len(header) * percent // 100)]
            cases.append(Case(f"{what} cut after {percent} %", [*whole[:at], cut, *whole[at + 1 :]], "json"))
    return cases


def _misnamed() -> list[Case]:
    """Headers whose fields are not what the schema says."""

    def main(**changes: Any) -> Parts:
        return [_main(**changes), _data(_CAMERA), _OCTETS, _TIME]

    def data(**changes: Any) -> Parts:
        return [_main(), _data(_CAMERA, **changes), _OCTETS, _TIME]

    return [
        Case("no htype", main(htype=...), "type"),
        Case("another htype", main(htype="array-1.0"), "type"),
        Case("the next version", main(htype="bsr_m-2.0"), "type"),
        Case("an htype that is a list", main(htype=["bsr_m-1.1"]), "type"),
        Case("a data header of no htype", data(htype=None), "type"),
        Case("a data header of another htype", data(htype="bsr_m-1.1"), "type"),
        Case("a data header whose htype is a number", data(htype=1.1), "type"),
        Case("no pulse id", main(pulse_id=...), "id"),
        Case("a negative pulse id", main(pulse_id=-1), "id"),
        Case("a pulse id that is text", main(pulse_id="7"), "id"),
        Case("a pulse id that is a float", main(pulse_id=7.0), "id"),
        Case("a pulse id that is true", main(pulse_id=True), "id"),
        Case("pulse id 2^63", main(pulse_id=2**63), "id"),
        Case("a hash that is a number", main(hash=5), "field"),
        Case("a hash of a megabyte", main(hash="x" * 10**6), "field"),
        Case("a header compression nobody knows", main(dh_compression="zip"), "compression"),
        Case("a header compression that is a number", main(dh_compression=4), "compression"),
        Case("no channels", data(channels=None), "field"),
        Case("channels that are an object", data(channels={"CAM": _CAMERA}), "field"),
        Case("channels that are names", data(channels=["CAM:FPICTURE"]), "field"),
        Case("ten thousand channels", data(channels=[_SCALAR | {"name": f"C{n}"} for n in range(10_000)]), "size"),
        Case("a channel twice", _pulse([_CAMERA, _CAMERA], [_OCTETS, _OCTETS]), "field"),
    ]


def _misdescribed() -> list[Case]:
    """Channels that are not what their description says."""
    cameras = [_CAMERA | {"name": f"C{n}"} for n in range(17)]
    huge = [_CAMERA | {"name": f"C{n}", "shape": [8000, 8000]} for n in range(5)]

    def beside(value: bytes, **changes: Any) -> Parts:
        return _pulse([_SCALAR | changes, _CAMERA], [value, _OCTETS])

    return [
        Case("a channel without a name", _message(name=...), "field"),
        Case("a channel with an empty name", _message(name=""), "field"),
        Case("a name that is a number", _message(name=5), "field"),
        Case("a name with a line break", _message(name="CAM\n"), "field"),
        Case("a name with half a character", _message(name="CAM\ud800"), "json"),
        Case("a name of a megabyte", _message(name="x" * 10**6), "field"),
        Case("a type nobody knows", _message(type="uint24"), "dtype"),
        Case("complex pixels", _message(type="complex64"), "dtype"),
        Case("pixels that are objects", _message(type="object"), "dtype"),
        Case("a type that is a list", _message(type=["uint16"]), "dtype"),
        Case("a third byte order", _message(encoding="middle"), "dtype"),
        Case("a byte order that is a number", _message(encoding=1), "dtype"),
        Case("64-bit pixels that no analysis takes", _message(b"\xff" * 8, type="uint64", shape=[1, 1]), "dtype"),
        Case("a shape that is a number", _message(shape=600), "shape"),
        Case("a shape that is text", _message(shape="30x20"), "shape"),
        Case("no rows", _message(shape=[COLUMNS, 0]), "shape"),
        Case("negative rows and columns", _message(shape=[-COLUMNS, -ROWS]), "shape"),
        Case("columns that are a float", _message(shape=[30.0, ROWS]), "shape"),
        Case("columns that are true", _message(shape=[True, ROWS]), "shape"),
        Case("ragged dimensions", _message(shape=[COLUMNS, [ROWS]]), "shape"),
        Case("2^64 columns", _message(shape=[2**64, 1]), "shape"),
        Case("fifty thousand dimensions", _message(shape=[1] * 50_000), "shape"),
        Case("2^40 pixels", _message(shape=[2**20, 2**20]), "size"),
        Case("2^126 pixels", _message(shape=[2**63 - 1, 2**63 - 1]), "size"),
        Case("one row too many", _message(shape=[COLUMNS, ROWS + 1]), "shape"),
        Case("one row too few", _message(shape=[COLUMNS, ROWS - 1]), "shape"),
        Case("sixty million pixels in a kilobyte", _message(shape=[6000, 10000]), "shape"),
        Case("one byte too few", _message(_OCTETS[:-1]), "shape"),
        Case("one byte too many", _message(_OCTETS + b"\x00"), "shape"),
        Case("the bytes of a wider type", _message(type="uint32"), "shape"),
        Case("the bytes of the type that is not said", _message(type=...), "shape"),
        Case("seventeen images", _pulse(cameras, [_OCTETS] * 17), "size"),
        Case("five images of sixty million pixels", _pulse(huge, [_OCTETS] * 5), "size"),
        Case("the second image cut short", _pulse(cameras[:2], [_OCTETS, _OCTETS[:-1]]), "shape"),
        Case("a time of one number", _message(time=_TIME[:8]), "field"),
        Case("a time of a megabyte", _message(time=bytes(2**20)), "field"),
        Case("half a scalar", beside(bytes(4)), "shape"),
        Case("two scalars for one", beside(bytes(16)), "shape"),
        Case("a vector cut short", beside(bytes(80), shape=[30]), "shape"),
        Case("a scalar of a scalar and a half", beside(bytes(12), shape=[]), "shape"),
    ]


def _mispacked() -> list[Case]:
    """Values and headers that are not compressed as they say."""

    def shuffled(octets: bytes, **changes: Any) -> Parts:
        return _message(octets, **{"compression": "bitshuffle_lz4"} | changes)

    def packed(octets: bytes, **changes: Any) -> Parts:
        return _message(octets, **{"compression": "lz4"} | changes)

    def described(octets: bytes, how: str) -> Parts:
        return [_main(dh_compression=how), octets, _OCTETS, _TIME]

    def beside(value: bytes, how: str) -> Parts:
        return _pulse([_SCALAR | {"compression": how}, _CAMERA], [value, _OCTETS])

    def header(declared: int, block: int) -> bytes:
        return struct.pack(">QI", declared, block) + _BLOCKS[12:]

    bomb = bytes(2**20) + b"{}"
    scalar = compression.compress("bslz4", 8, np.zeros(1))
    return [
        Case("a compression nobody knows", _message(compression="zip"), "compression"),
        Case("a compression that is a number", _message(compression=4), "compression"),
        Case("a compression that is a list", _message(compression=["lz4"]), "compression"),
        Case("half a header", shuffled(_BLOCKS[:7]), "truncated"),
        Case("a header alone", shuffled(_BLOCKS[:12]), "truncated"),
        Case("twelve zeros", shuffled(bytes(12)), "size"),
        Case("2^40 bytes declared", shuffled(header(2**40, 128)), "size"),
        Case("2^64 - 1 bytes declared", shuffled(header(2**64 - 1, 128)), "size"),
        Case("blocks of no bytes", shuffled(header(len(_OCTETS), 0)), "size"),
        Case("blocks of odd length", shuffled(header(len(_OCTETS), 129)), "size"),
        Case("blocks of 2^32 - 16 bytes", shuffled(header(len(_OCTETS), 2**32 - 16)), "size"),
        Case("a block of 2^32 - 1 bytes", shuffled(_BLOCKS[:12] + b"\xff" * 4 + _BLOCKS[16:]), "truncated"),
        Case("a block of no bytes", shuffled(_BLOCKS[:12] + bytes(4) + _BLOCKS[16:]), "compression"),
        Case("blocks of noise", shuffled(_BLOCKS[:16] + b"\xff" * (len(_BLOCKS) - 16)), "compression"),
        Case("a compressed byte too few", shuffled(_BLOCKS[:-1]), "truncated"),
        Case("a compressed byte too many", shuffled(_BLOCKS + b"\x00"), "size"),
        Case("one compressed row too many", shuffled(_BLOCKS, shape=[COLUMNS, ROWS + 1]), "size"),
        Case("a bomb of sixty million pixels", shuffled(_BLOCKS, shape=[6000, 10000]), "truncated"),
        Case("three bytes of lz4", packed(_LZ4[:3]), "truncated"),
        Case("a length and no lz4", packed(_LZ4[:4]), "truncated"),
        Case("lz4 that announces 2^32 - 1 bytes", packed(b"\xff" * 4 + _LZ4[4:]), "size"),
        Case("lz4 that announces nothing", packed(bytes(4) + _LZ4[4:]), "size"),
        Case("lz4 of one row less", packed(_LZ4, shape=[COLUMNS, ROWS + 1]), "size"),
        Case("lz4 cut short", packed(_LZ4[:-5]), "compression"),
        Case("lz4 of noise", packed(_LZ4[:4] + b"\xf7" * len(_LZ4)), "compression"),
        Case("an lz4 bomb of sixty million pixels", packed(_bomb(120_000_000), shape=[6000, 10000]), "truncated"),
        Case("a data header of half a length", described(b"\x00" * 5, "bitshuffle_lz4"), "truncated"),
        Case("a data header of 2^40 bytes", described(struct.pack(">QI", 2**40, 8192), "bitshuffle_lz4"), "size"),
        Case("a data header that grows to a megabyte", described(_lz4(bomb), "lz4"), "size"),
        Case("a data header of a megabyte in ten bytes", described(_bomb(2**20), "lz4"), "truncated"),
        Case("a data header of no bytes", described(bytes(12), "bitshuffle_lz4"), "shape"),
        Case("a data header that is lz4 of no JSON", described(_lz4(b"bsr_d-1.1"), "lz4"), "json"),
        Case("a data header that is not compressed", described(_data(_CAMERA), "bitshuffle_lz4"), "size"),
        Case("a scalar in three bytes of lz4", beside(b"\x08\x00\x00", "lz4"), "truncated"),
        Case("a scalar in half a header", beside(scalar[:7], "bitshuffle_lz4"), "truncated"),
        Case("a scalar that is cut short", beside(scalar[:-1], "bitshuffle_lz4"), "truncated"),
        Case("a scalar of lz4 noise", beside(struct.pack("<I", 8) + b"\xf7" * 20, "lz4"), "compression"),
    ]


def _lz4(octets: bytes) -> bytes:
    block: bytes = lz4.block.compress(octets, store_size=False)
    return struct.pack("<I", len(octets)) + block


def _bomb(length: int) -> bytes:
    """A few bytes that announce many."""
    return struct.pack("<I", length) + b"\x1f\x00\x01\x00\xff\xff"
