"""DECTRIS stream v2 as no detector should send it."""

from __future__ import annotations

import struct
from typing import Any

import cbor2
import numpy as np
from cbor2 import CBORTag

from streamer import compression
from tests.hostile import Case, Parts

ROWS, COLUMNS = 20, 30
_PIXELS = (np.arange(ROWS * COLUMNS, dtype="<u2") * 7919 % 11).reshape(ROWS, COLUMNS)
_SERIES = {"series_id": 7, "series_unique_id": "01HBV3JPF9T4ZDPADX6EMK6XMZ"}


def _packed(pixels: np.ndarray[Any, Any] = _PIXELS, algorithm: str = "bslz4", elem_size: int = 2) -> CBORTag:
    return CBORTag(56500, [algorithm, elem_size, compression.compress(algorithm, elem_size, pixels, block=128)])


def _array(octets: Any = None, *, tag: int = 69, dims: Any = (ROWS, COLUMNS), multi: int = 40) -> CBORTag:
    return CBORTag(multi, [list(dims), CBORTag(tag, _packed() if octets is None else octets)])


def _start(**changes: Any) -> Parts:
    message = {
        "type": "start",
        **_SERIES,
        "arm_date": CBORTag(0, "2023-10-03T17:47:48.329+02:00"),
        "beam_center_x": 15.5,
        "beam_center_y": 9.25,
        "channels": ["threshold_1"],
        "count_time": 0.004,
        "detector_translation": [0.1, 0.2, -0.3],
        "flatfield": {"threshold_1": _array(np.ones((ROWS, COLUMNS), "<f4").tobytes(), tag=85)},
        "frame_time": 0.005,
        "image_dtype": "uint16",
        "image_size_x": COLUMNS,
        "image_size_y": ROWS,
        "number_of_images": 3,
        "pixel_mask": {"threshold_1": _array(np.zeros((ROWS, COLUMNS), "<u4").tobytes(), tag=70)},
        "saturation_value": 21517,
        "threshold_energy": {"threshold_1": 6750.0},
        "user_data": {"sample": "lysozyme"},
    }
    return [cbor2.dumps(message | changes)]


def _image(**changes: Any) -> Parts:
    message = {
        "type": "image",
        **_SERIES,
        "image_id": 3,
        "real_time": [215873, 50000000],
        "series_date": CBORTag(0, "2023-10-03T17:47:49.434+02:00"),
        "start_time": [0, 50000000],
        "stop_time": [215873, 50000000],
        "user_data": {"motor": [1, 2.5]},
        "data": {"threshold_1": _array()},
    }
    return [cbor2.dumps({name: value for name, value in (message | changes).items() if value is not ...})]


def _end(**changes: Any) -> Parts:
    return [cbor2.dumps({"type": "end", **_SERIES} | changes)]


def good() -> list[Parts]:
    two = {"threshold_1": _array(), "threshold_2": _array(_packed(algorithm="lz4", elem_size=0))}
    wrapped = b"\xd9\xd9\xf7" + _image()[0]
    return [
        _start(),
        _image(),
        _image(image_id=4, data=two),
        [wrapped],
        _image(data={"a": _array(_PIXELS.tobytes())}),
        _end(),
    ]


def _malformed() -> list[Case]:
    """Messages that are not what CBOR, or a message, is."""
    image, start, end = _image()[0], _start()[0], _end()[0]
    deep = b"\xa2\x64type\x65image\x64data" + b"\x81" * 100_000
    cases = [
        Case("nothing at all", [b""], "truncated"),
        Case("no part", [], "type"),
        Case("two parts", [image, image], "type"),
        Case("a wrapper around nothing", [b"\xd9\xd9\xf7"], "truncated"),
        Case("a wrapper in a wrapper", [b"\xd9\xd9\xf7\xd9\xd9\xf7" + image], "type"),
        Case("bytes left over", [image + b"\x00"], "cbor"),
        Case("two messages in one", [end + end], "cbor"),
        Case("an array at the top", [cbor2.dumps([1, 2])], "type"),
        Case("text at the top", [cbor2.dumps("start")], "type"),
        Case("a number at the top", [b"\x00"], "type"),
        Case("a byte string at the top", [cbor2.dumps(image)], "type"),
        Case("another tag at the top", [b"\xc6" + image], "type"),
        Case("JSON", [b'{"htype":"dheader-1.0","series":1}'], "type"),
        Case("100,000 arrays deep", [deep], "cbor"),
        Case("100,000 maps deep", [b"\xa1\x61a" * 100_000], "cbor"),
        Case("100,000 tags deep", [b"\xa1\x61a" + b"\xd8\x28" * 100_000], "cbor"),
        Case("100,000 endless arrays deep", [b"\xa1\x61a" + b"\x9f" * 100_000], "cbor"),
        Case("a million zeros", [b"\xa1\x61a\x9a\x00\x0f\x42\x40" + bytes(1_000_000)], "cbor"),
        Case("an array of 2^64 - 1", [b"\xa1\x61a\x9b" + b"\xff" * 8], "truncated"),
        Case("a map of 2^64 - 1", [b"\xbb" + b"\xff" * 8], "truncated"),
        Case("a byte string of 2^40", [b"\xa1\x61a\x5b" + struct.pack(">Q", 2**40) + bytes(100)], "truncated"),
        Case("text of 2^63", [b"\xa1\x61a\x7b" + struct.pack(">Q", 2**63) + bytes(100)], "truncated"),
        Case("a key twice", [b"\xa2\x64type\x63end\x64type\x63end"], "cbor"),
        Case("a key that is a list", [b"\xa1\x80\x00"], "cbor"),
        Case("a key that is true", [b"\xa1\xf5\x00"], "cbor"),
        Case("text that is not UTF-8", [b"\xa1\x64type\x63\xff\xfe\xfd"], "cbor"),
        Case("an item of reserved length", [b"\xa1\x61a\x1c"], "cbor"),
        Case("a break out of place", [b"\xa1\x61a\xff"], "cbor"),
        Case("an endless number", [b"\xa1\x61a\x1f"], "cbor"),
        Case("an endless string of another type", [b"\xa1\x61a\x7f\x41a\xff"], "cbor"),
        Case("a simple value without meaning", [b"\xa1\x61a\xf8\x20"], "cbor"),
        Case("an unterminated map", [b"\xbf\x64type\x63end"], "truncated"),
        Case("a big number", [cbor2.dumps({"type": "end", "series_id": 2**70})], "tag"),
        Case("a big number of a megabyte", _end(user_data=CBORTag(2, bytes(10**6))), "tag"),
        Case("a regular expression", _end(user_data=CBORTag(35, "(a+)+$")), "tag"),
        Case("a shared cycle", [b"\xa2\x64type\x63end\x61a\xd8\x1c\x81\xd8\x1d\x00"], "tag"),
        Case("a MIME message", _image(user_data=CBORTag(36, "x")), "tag"),
        Case("a date that is a number", _image(series_date=CBORTag(0, 5)), "tag"),
        Case("a wrapper inside", _image(user_data=CBORTag(55799, 1)), "tag"),
    ]
    for what, message in (("start", start), ("image", image), ("end", end)):
        for percent in (1, 20, 50, 80, 99):
            cut = max(1, len(message) * percent // 100)
            cases.append(Case(f"{what} cut after {percent} %", [message[:cut]], "truncated"))
    return cases


def _misnamed() -> list[Case]:
    """Messages whose fields are not what the schema says."""
    return [
        Case("no type", [cbor2.dumps(_SERIES)], "type"),
        Case("a type nobody knows", [cbor2.dumps({"type": "pause", **_SERIES})], "type"),
        Case("a type that is a number", [cbor2.dumps({"type": 1, **_SERIES})], "type"),
        Case("no series", [cbor2.dumps({"type": "end"})], "id"),
        Case("a negative series", _end(series_id=-1), "id"),
        Case("a series that is text", _end(series_id="7"), "id"),
        Case("a series that is true", _end(series_id=True), "id"),
        Case("a series of 2^64 - 1", _end(series_id=2**64 - 1), "id"),
        Case("a unique id that is a number", _end(series_unique_id=5), "id"),
        Case("a unique id of a megabyte", _end(series_unique_id="x" * 10**6), "id"),
        Case("a unique id that clears the screen", _end(series_unique_id="01HB\x1b[2J"), "id"),
        Case("a channel of two lines", _image(data={"threshold\n1": _array()}), "field"),
        Case("a channel of ten thousand characters", _image(data={"t" * 10_000: _array()}), "field"),
        Case("no image id", _image(image_id=...), "id"),
        Case("a negative image id", _image(image_id=-1), "id"),
        Case("an image id that is text", _image(image_id="3"), "id"),
        Case("an image id that is a float", _image(image_id=3.0), "id"),
        Case("an image id that is null", _image(image_id=None), "id"),
        Case("a time over zero", _image(start_time=[1, 0]), "field"),
        Case("a time over a negative number", _image(stop_time=[1, -5]), "field"),
        Case("a time of three numbers", _image(real_time=[1, 2, 3]), "field"),
        Case("a time of floats", _image(real_time=[0.5, 1]), "field"),
        Case("a time that is bytes", _image(real_time=b"\x01\x02"), "field"),
        Case("no data", _image(data=...), "field"),
        Case("data without channels", _image(data={}), "field"),
        Case("data that are a list", _image(data=[_array()]), "field"),
        Case("a channel that is a number", _image(data={1: _array()}), "field"),
        Case("a channel that is text", _image(data={"threshold_1": "pixels"}), "field"),
        Case("a channel that is bytes", _image(data={"threshold_1": _PIXELS.tobytes()}), "field"),
        Case("a channel without dimensions", _image(data={"threshold_1": CBORTag(69, _packed())}), "field"),
        Case("a thousand channels", _image(data={f"c{n}": _array() for n in range(1000)}), "size"),
        Case("a beam centre that is not a number", _start(beam_center_x=float("nan")), "field"),
        Case("an infinite energy", _start(incident_energy=float("inf")), "field"),
        Case("a frame time that is text", _start(frame_time="5 ms"), "field"),
        Case("a negative number of images", _start(number_of_images=-1), "field"),
        Case("a saturation that is a float", _start(saturation_value=1.5), "field"),
        Case("channels that are a number", _start(channels=5), "field"),
        Case("a translation in two dimensions", _start(detector_translation=[0.1, 0.2]), "field"),
        Case("a description that is a list", _start(detector_description=[1]), "field"),
        Case("images without rows", _start(image_size_y=0), "shape"),
        Case("images of 2^62 pixels", _start(image_size_x=2**31, image_size_y=2**31), "size"),
        Case("images of objects", _start(image_dtype="object"), "dtype"),
        Case("images of a gigabyte per pixel", _start(image_dtype="V1000000000"), "dtype"),
        Case(
            "a mask of another shape",
            _start(pixel_mask={"threshold_1": _array(bytes(24), tag=70, dims=(2, 3))}),
            "shape",
        ),
        Case("a flatfield cut short", _start(flatfield={"threshold_1": _array(bytes(100), tag=85)}), "shape"),
    ]


def _mispacked() -> list[Case]:
    """Images that are not what their dimensions and types say."""
    blob = compression.compress("bslz4", 2, _PIXELS, block=128)
    nbytes = _PIXELS.nbytes

    def image(octets: Any = None, **how: Any) -> Parts:
        return _image(data={"threshold_1": _array(octets, **how)})

    def packed(octets: bytes, algorithm: Any = "bslz4", elem_size: Any = 2) -> Parts:
        return image(CBORTag(56500, [algorithm, elem_size, octets]))

    def header(declared: int, block: int) -> bytes:
        return struct.pack(">QI", declared, block) + blob[12:]

    return [
        Case("floats of 16 bytes", image(_PIXELS.tobytes(), tag=83), "tag"),
        Case("the reserved element type", image(_PIXELS.tobytes(), tag=76), "tag"),
        Case("an element type beyond the table", image(_PIXELS.tobytes(), tag=88), "tag"),
        Case("counts beyond 32 bits", image(bytes(7) + b"\x01" * (8 * ROWS * COLUMNS - 7), tag=71), "dtype"),
        Case("signed counts beyond 32 bits", image(b"\x80" + bytes(8 * ROWS * COLUMNS - 1), tag=75), "dtype"),
        Case("a typed array of numbers", image([1, 2, 3]), "dtype"),
        Case("a typed array of text", image("pixels"), "dtype"),
        Case("an array of numbers", _image(data={"a": CBORTag(40, [[1, 2], [5, 6]])}), "dtype"),
        Case("an array of plain bytes", _image(data={"a": CBORTag(40, [[1, 2], b"ab"])}), "dtype"),
        Case("no dimensions", image(dims=()), "shape"),
        Case("one dimension", image(dims=(ROWS * COLUMNS,)), "shape"),
        Case("three dimensions", image(dims=(2, 10, COLUMNS)), "shape"),
        Case("ragged dimensions", image(dims=(ROWS, [COLUMNS])), "shape"),
        Case("no rows", image(dims=(0, COLUMNS)), "shape"),
        Case("no columns", image(dims=(ROWS, 0)), "shape"),
        Case("negative rows", image(dims=(-ROWS, -COLUMNS)), "shape"),
        Case("true rows", image(dims=(True, COLUMNS)), "shape"),
        Case("rows that are a float", image(dims=(float(ROWS), COLUMNS)), "shape"),
        Case(
            "dimensions that are bytes", _image(data={"a": CBORTag(40, [b"\x01\x02", CBORTag(69, b"abcd")])}), "shape"
        ),
        Case("an array without contents", _image(data={"a": CBORTag(40, [[1, 2]])}), "shape"),
        Case("an array that is not one", _image(data={"a": CBORTag(40, 5)}), "shape"),
        Case("2^40 pixels", image(dims=(2**20, 2**20)), "size"),
        Case("2^126 pixels", image(dims=(2**63 - 1, 2**63 - 1)), "size"),
        Case("one row too many", image(_PIXELS.tobytes(), dims=(ROWS + 1, COLUMNS)), "shape"),
        Case("one byte too few", image(_PIXELS.tobytes()[:-1]), "shape"),
        Case("one byte too many", image(_PIXELS.tobytes() + b"\x00"), "shape"),
        Case("no bytes", image(b""), "shape"),
        Case("the bytes of another type", image(_PIXELS.tobytes(), tag=70), "shape"),
        Case("sixty million pixels in a hundred bytes", image(dims=(6000, 10000)), "truncated"),
        Case("one compressed row too many", image(dims=(ROWS + 1, COLUMNS)), "size"),
        Case("one compressed row too few", image(dims=(ROWS - 1, COLUMNS)), "size"),
        Case("elements of another size", image(_packed(_PIXELS.view("<u4"), "bslz4", 4)), "compression"),
        Case("elements of three bytes", packed(blob, elem_size=3), "compression"),
        Case("elements of no bytes", packed(blob, elem_size=0), "compression"),
        Case("elements of 2^40 bytes", packed(blob, elem_size=2**40), "compression"),
        Case("elements of negative size", packed(blob, elem_size=-2), "compression"),
        Case("an unknown algorithm", packed(blob, "zstd"), "compression"),
        Case("an algorithm that is a number", packed(blob, 5), "compression"),
        Case("compressed text", _image(data={"a": _array(CBORTag(56500, ["bslz4", 2, "x"]))}), "compression"),
        Case("compressed twice", image(CBORTag(56500, ["bslz4", 2, _packed()])), "compression"),
        Case("compressed nothing", packed(b""), "truncated"),
        Case("half a header", packed(blob[:7]), "truncated"),
        Case("a header alone", packed(blob[:12]), "truncated"),
        Case("twelve zeros", packed(bytes(12)), "size"),
        Case("2^40 bytes declared", packed(header(2**40, 128)), "size"),
        Case("2^64 - 1 bytes declared", packed(header(2**64 - 1, 128)), "size"),
        Case("blocks of no bytes", packed(header(nbytes, 0)), "size"),
        Case("blocks of odd length", packed(header(nbytes, 129)), "size"),
        Case("blocks of 2^32 - 16 bytes", packed(header(nbytes, 2**32 - 16)), "size"),
        Case("blocks of another length", packed(header(nbytes, 256)), "compression"),
        Case("a block of 2^32 - 1 bytes", packed(blob[:12] + b"\xff" * 4 + blob[16:]), "truncated"),
        Case("a block of no bytes", packed(blob[:12] + bytes(4) + blob[16:]), "compression"),
        Case("blocks of noise", packed(blob[:16] + b"\xff" * (len(blob) - 16)), "compression"),
        Case("the last block missing", packed(blob[:-40]), "truncated"),
        Case("a compressed byte too few", packed(blob[:-1]), "truncated"),
        Case("a compressed byte too many", packed(blob + b"\x00"), "size"),
    ]


def damaged() -> list[Case]:
    """Every message that must be refused, with the reason."""
    return [*_malformed(), *_misnamed(), *_mispacked()]
