"""DECTRIS stream v1 as no detector should send it."""

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
_BLOB = compression.compress("bslz4", 2, _PIXELS, block=128)
_WHOLE = compression.compress("bslz4", 2, _PIXELS)  # in blocks of the usual size
_LZ4 = lz4.block.compress(_PIXELS.tobytes(), store_size=False)


def _json(values: Any, **changes: Any) -> bytes:
    """A JSON part with some entries changed; those changed to `...` left out."""
    return json.dumps({name: value for name, value in (values | changes).items() if value is not ...}).encode()


_HEADER = {"htype": "dheader-1.0", "series": 7, "header_detail": "all"}
_CONFIG = {
    "beam_center_x": 15.5,
    "beam_center_y": 9.25,
    "bit_depth_image": 16,
    "count_time": 0.004,
    "countrate_correction_count_cutoff": 21517,
    "description": "Dectris EIGER2 Si 500K",
    "detector_distance": 0.3,
    "frame_time": 0.005,
    "nimages": 3,
    "ntrigger": 2,
    "photon_energy": 12400.0,
    "trigger_mode": "exts",
    "wavelength": 1.0,
    "x_pixel_size": 75e-6,
    "x_pixels_in_detector": COLUMNS,
    "y_pixel_size": 75e-6,
    "y_pixels_in_detector": ROWS,
}
_FLATFIELD = {"htype": "dflatfield-1.0", "shape": [COLUMNS, ROWS], "type": "float32"}
_MASK = {"htype": "dpixelmask-1.0", "shape": [COLUMNS, ROWS], "type": "uint32"}
_COUNTRATE = {"htype": "dcountrate_table-1.0", "shape": [2, 1000], "type": "float32"}
_IMAGE = {"htype": "dimage-1.0", "series": 7, "frame": 3, "hash": "55a1a362806a08bee87633abdcdbcc5d"}
_ABOUT = {
    "htype": "dimage_d-1.0",
    "shape": [COLUMNS, ROWS],
    "type": "uint16",
    "encoding": "bs16-lz4<",
    "size": len(_BLOB),
}
_TIMES = {"htype": "dconfig-1.0", "start_time": 5_000_000, "stop_time": 9_000_000, "real_time": 4_000_000}
_END = {"htype": "dseries_end-1.0", "series": 7}


def _start(*, config: dict[str, Any] | None = None, **changes: Any) -> Parts:
    return [
        _json(_HEADER, **changes),
        _json(_CONFIG | (config or {})),
        _json(_FLATFIELD),
        np.ones((ROWS, COLUMNS), "<f4").tobytes(),
        _json(_MASK),
        np.zeros((ROWS, COLUMNS), "<u4").tobytes(),
        _json(_COUNTRATE),
        np.zeros((2, 1000), "<f4").tobytes(),
    ]


def _image(blob: bytes = _BLOB, *, image: Any = {}, times: Any = {}, **about: Any) -> Parts:  # noqa: B006
    """One image; `about` are changes to its second part. Its size is that of the blob, unless it is changed, too."""
    described = _json(_ABOUT, **{"size": len(blob), **about})
    return [_json(_IMAGE, **image), described, blob, _json(_TIMES, **times)]


def good() -> list[Parts]:
    plain = _PIXELS.tobytes()
    two = compression.compress("bslz4", 2, np.stack([_PIXELS, _PIXELS + 1]))
    return [
        _start(),
        _image(),
        [*_image(image={"frame": 4}), b"{}"],
        _image(bytes(12) + _WHOLE[12:], image={"frame": 5}),
        _image(_WHOLE[12:], image={"frame": 6}),
        _image(_LZ4, encoding="lz4<"),
        _image(plain, encoding="<"),
        _image(_PIXELS.astype(">u2").tobytes(), encoding=">"),
        _image(two, shape=[COLUMNS, ROWS, 2]),
        [_json(_HEADER, header_detail="none")],
        [_json(_HEADER, header_detail="basic"), _json(_CONFIG)],
        [_json(_END)],
    ]


def _parts() -> list[Case]:
    """Messages of the wrong parts."""
    image, start, end = _image(), _start(), _json(_END)
    header, config = start[:2]
    return [
        Case("no part", [], "parts"),
        Case("an image of its first part", image[:1], "parts"),
        Case("an image of two parts", image[:2], "parts"),
        Case("an image of three parts", image[:3], "parts"),
        Case("an image of six parts", [*image, b"{}", b"{}"], "parts"),
        Case("two images in one", [*image, *image], "parts"),
        Case("an image and the end", [*image, end], "parts"),
        Case("an image and the next one's first part", [*image, image[0]], "parts"),
        Case("an image and a table's header", [*image, _json(_MASK)], "parts"),
        Case("an image without its first part", image[1:], "type"),
        Case("a blob and its times", image[2:], "json"),
        Case("times alone", image[3:], "type"),
        Case("an image without its description", [image[0], *image[2:], b"{}"], "json"),
        Case("an image without its blob", [*image[:2], image[3], b"{}"], "type"),
        Case("an image's parts backwards", image[::-1], "type"),
        Case("description and first part swapped", [image[1], image[0], *image[2:]], "type"),
        Case("blob and times swapped", [*image[:2], image[3], image[2]], "json"),
        Case("description and times swapped", [image[0], image[3], image[2], image[1]], "type"),
        Case("the description twice", [*image[:3], image[1]], "type"),
        Case("the first part twice", [image[0], *image[:3]], "type"),
        Case("an end in place of the times", [*image[:3], end], "type"),
        Case("an end of two parts", [end, b"{}"], "parts"),
        Case("two ends", [end, end], "parts"),
        Case("a configuration without a header", [config], "parts"),
        Case("a table without a header", start[2:4], "parts"),
        Case("a mask without a header", start[4:6], "parts"),
        Case("a header without the configuration", [header, *start[2:]], "parts"),
        Case("a flatfield without its blob", start[:3], "parts"),
        Case("a mask without its blob", start[:5], "parts"),
        Case("a count-rate table without its blob", start[:7], "parts"),
        Case("a flatfield twice", [*start, *start[2:4]], "parts"),
        Case("a mask twice", [*start, *start[4:6]], "parts"),
        Case("a blob without its table", [*start[:2], *start[3:]], "parts"),
        Case("two appendices", [*start, b"one", b"two"], "parts"),
        Case("two configurations", [header, config, config], "parts"),
        Case("an image among the tables", [*start, *image], "parts"),
        Case("an end behind the tables", [*start, end], "parts"),
        Case("two headers in one", [*start, *start], "parts"),
    ]


def _json_parts() -> list[Case]:
    """JSON that is none, or none to be read."""
    image, start = _image(), _start()
    deep = b'{"htype":"dimage-1.0","series":' + b"[" * 100_000
    cases = [
        Case("nothing at all", [b""], "json"),
        Case("four empty parts", [b""] * 4, "json"),
        Case("CBOR", [b"\xa2\x64type\x63end\x69series_id\x07"], "json"),
        Case("NUL in front", [b"\0" + image[0], *image[1:]], "json"),
        Case("two objects in one part", [image[0] * 2, *image[1:]], "json"),
        Case("a comma too many", [image[0][:-1] + b",}", *image[1:]], "json"),
        Case("quotes of another kind", [image[0].replace(b'"', b"'"), *image[1:]], "json"),
        Case("100,000 lists deep", [deep, *image[1:]], "json"),
        Case("100,000 lists deep and closed", [deep + b"]" * 100_000 + b"}", *image[1:]], "json"),
        Case("100,000 objects deep", [b'{"a":' * 100_000, *image[1:]], "json"),
        Case("100,000 deep in the description", [image[0], b'{"shape":' + b"[" * 100_000, *image[2:]], "json"),
        Case("100,000 deep in the configuration", [start[0], b"[" * 100_000], "json"),
        Case("a list at the top", [b"[" + image[0] + b"]", *image[1:]], "json"),
        Case("text at the top", [b'"dimage-1.0"', *image[1:]], "json"),
        Case("a number at the top", [b"1", *image[1:]], "json"),
        Case("null at the top", [b"null", *image[1:]], "json"),
        Case("null for a description", [image[0], b"null", *image[2:]], "json"),
        Case("a list for times", [*image[:3], b"[]"], "json"),
        Case("null for a configuration", [start[0], b"null"], "json"),
        Case("a name twice", [image[0][:-1] + b',"frame":4}', *image[1:]], "json"),
        Case("a name twice in the description", [image[0], image[1][:-1] + b',"type":"uint32"}', *image[2:]], "json"),
        Case("a name twice in the configuration", [start[0], start[1][:-1] + b',"nimages":1}'], "json"),
        Case("NaN for the frame", [image[0].replace(b": 3", b": NaN"), *image[1:]], "json"),
        Case("NaN for the size", [image[0], _json(_ABOUT, size=float("nan")), *image[2:]], "json"),
        Case("Infinity for a time", [*image[:3], _json(_TIMES, stop_time=float("inf"))], "json"),
        Case("NaN in the configuration", [start[0], _json(_CONFIG, wavelength=float("nan"))], "json"),
        Case("text that is not UTF-8", [image[0].replace(b"55a1", b"\xff\xfe\xfd\xfc"), *image[1:]], "json"),
        Case("UTF-16", [image[0].decode().encode("utf-16"), *image[1:]], "json"),
        Case("a byte order mark", [b"\xef\xbb\xbf" + image[0], *image[1:]], "json"),
        Case("five million blanks", [image[0][:-1] + b" " * 5_000_000 + b"}", *image[1:]], "json"),
        Case("a number of 100,000 digits", [image[0].replace(b": 7", b": " + b"7" * 100_000), *image[1:]], "json"),
        Case("a table that is no JSON", [*start[:2], start[2][:-1], *start[3:]], "json"),
    ]
    for name, parts, places in (("image", image, (0, 1, 3)), ("start", start, (0, 1))):
        for place in places:
            cut = parts[place][: len(parts[place]) // 2]
            cases.append(Case(f"part {place} of the {name} cut", [*parts[:place], cut, *parts[place + 1 :]], "json"))
    return cases


def _types() -> list[Case]:
    """Headers that are none of this stream's."""
    image, start = _image(), _start()
    return [
        Case("no type", [_json(_END, htype=...)], "parts"),
        Case("a type that is null", [_json(_END, htype=None)], "parts"),
        Case("a type that is a number", [_json(_END, htype=1)], "type"),
        Case("a type that is a list", [_json(_END, htype=["dseries_end-1.0"])], "type"),
        Case("a type that is a map", [_json(_END, htype={})], "type"),
        Case("another version", [_json(_IMAGE, htype="dimage-2.0"), *image[1:]], "type"),
        Case("another version of the end", [_json(_END, htype="dseries_end-1.1")], "type"),
        Case("array-1.0", [_json(_ABOUT, htype="array-1.0"), image[2]], "type"),
        Case("bsread", [b'{"htype":"bsr_m-1.1","pulse_id":0}', b"{}", b"", b""], "type"),
        Case("upper case", [_json(_IMAGE, htype="DIMAGE-1.0"), *image[1:]], "type"),
        Case("a description of another version", [image[0], _json(_ABOUT, htype="dimage_d-2.0"), *image[2:]], "type"),
        Case("a description without type", [image[0], _json(_ABOUT, htype=...), *image[2:]], "type"),
        Case("times without type", [*image[:3], _json(_TIMES, htype=...)], "type"),
        Case("a header that says nothing of its detail", [_json(_HEADER, header_detail=...), *start[1:]], "field"),
        Case("an unknown detail", [_json(_HEADER, header_detail="some"), *start[1:]], "field"),
        Case("a detail that is a number", [_json(_HEADER, header_detail=1), *start[1:]], "field"),
        Case("a detail that is a list", [_json(_HEADER, header_detail=["all"]), *start[1:]], "field"),
    ]


def _identities() -> list[Case]:
    """Numbers that are none."""
    wrong = {
        "absent": ...,
        "null": None,
        "negative": -1,
        "text": "7",
        "a float": 7.0,
        "true": True,
        "a list": [7],
        "2^63": 2**63,
        "of 300 digits": 10**300,
        "1e308": 1e308,
    }
    cases = []
    for text, value in wrong.items():
        cases += [
            Case(f"an image's series {text}", _image(image={"series": value}), "id"),
            Case(f"a frame {text}", _image(image={"frame": value}), "id"),
            Case(f"a header's series {text}", _start(series=value), "id"),
            Case(f"an end's series {text}", [_json(_END, series=value)], "id"),
        ]
    return cases


def _descriptions() -> list[Case]:
    """Descriptions no image can have."""
    plain = _PIXELS.tobytes()
    shapes: dict[str, tuple[Any, str]] = {
        "absent": (..., "shape"),
        "null": (None, "shape"),
        "a number": (600, "shape"),
        "text": ("[30,20]", "shape"),
        "empty": ([], "shape"),
        "of one dimension": ([600], "shape"),
        "of four dimensions": ([30, 20, 1, 1], "shape"),
        "with a zero": ([30, 0], "shape"),
        "with zero thresholds": ([30, 20, 0], "shape"),
        "negative": ([-30, -20], "shape"),
        "of floats": ([30.0, 20.0], "shape"),
        "of texts": (["30", "20"], "shape"),
        "of true": ([True, True], "shape"),
        "of lists": ([[30], [20]], "shape"),
        "of huge integers": ([10**300, 1], "shape"),
        "of 2^40": ([2**40, 2**40], "size"),
        "of 2^40 in one row": ([2**40, 1], "size"),
        "of 2^40 thresholds": ([30, 20, 2**40], "size"),
        "of 17 thresholds": ([30, 20, 17], "size"),
        "of 50,000 x 50,000": ([50_000, 50_000], "size"),
        "larger than the blob can fill": ([5000, 5000], "truncated"),
    }
    types: dict[str, Any] = {
        "absent": ...,
        "null": None,
        "a number": 16,
        "a list": ["uint16"],
        "empty": "",
        "complex": "complex64",
        "in NumPy's short form": "<u2",
        "of Python objects": "object",
        "text": "str",
        "a date": "datetime64",
        "uint128": "uint128",
        "a record": "u2,u2",
    }
    encodings: dict[str, Any] = {
        "absent": ...,
        "null": None,
        "a number": 16,
        "a list": ["bs16-lz4<"],
        "unknown": "zstd<",
        "JPEG": "jpeg",
        "of 24 bits": "bs24-lz4<",
        "of 8 bits": "bs8-lz4<",
        "of 32 bits": "bs32-lz4<",
        "without LZ4": "bs16<",
        "with both orders": "bs16-lz4<>",
        "with the order first": "<bs16-lz4",
        "with a blank": "bs16-lz4< ",
        "with a newline": "bs16-lz4<\n",
        "twice": "bs16-lz4<bs16-lz4<",
        "of a megabyte": "lz4" * 350_000,
        "in upper case": "BS16-LZ4<",
    }
    sizes: dict[str, tuple[Any, str]] = {
        "too large by one": (len(_BLOB) + 1, "truncated"),
        "too small by one": (len(_BLOB) - 1, "size"),
        "zero": (0, "size"),
        "2^40": (2**40, "truncated"),
        "2^62": (2**62, "truncated"),
        "2^64": (2**64, "field"),
        "negative": (-1, "field"),
        "text": (str(len(_BLOB)), "field"),
        "a float": (float(len(_BLOB)), "field"),
        "true": (True, "field"),
        "a list": ([len(_BLOB)], "field"),
    }
    cases = [Case(f"a shape {text}", _image(shape=value), reason) for text, (value, reason) in shapes.items()]
    cases += [Case(f"a type {text}", _image(type=value), "dtype") for text, value in types.items()]
    cases += [Case(f"an encoding {text}", _image(encoding=value), "compression") for text, value in encodings.items()]
    cases += [Case(f"a size {text}", _image(size=value), reason) for text, (value, reason) in sizes.items()]
    return [
        *cases,
        Case("a type of another size", _image(type="uint32"), "compression"),
        Case("plain pixels of another type", _image(plain, encoding="<", type="uint32"), "shape"),
        Case("plain pixels of another shape", _image(plain, encoding="<", shape=[30, 21]), "shape"),
        Case("plain pixels with one byte less", _image(plain[:-1], encoding="<"), "shape"),
        Case("plain pixels with one byte more", _image(plain + b"\0", encoding="<"), "shape"),
        Case("plain pixels of one threshold for two", _image(plain, encoding="<", shape=[30, 20, 2]), "shape"),
        Case("no plain pixels", _image(b"", encoding="<"), "shape"),
    ]


def _blobs() -> list[Case]:
    """Blobs that are not what their description says."""
    lost = struct.pack(">QI", 2 * ROWS * COLUMNS, 0) + _BLOB[12:]
    larger = np.zeros((ROWS + 1, COLUMNS), "<u2")
    return [
        Case("a blob cut, as announced", _image(_BLOB[:200], size=len(_BLOB)), "truncated"),
        Case("a blob cut", _image(_BLOB[:-1]), "truncated"),
        Case("a blob of its 12 bytes", _image(_BLOB[:12]), "truncated"),
        Case("a blob of 11 bytes", _image(_BLOB[:11]), "compression"),
        Case("an empty blob", _image(b""), "truncated"),
        Case("a blob of zeros", _image(bytes(200)), "compression"),
        Case("a blob of ones", _image(b"\xff" * 200), "truncated"),
        Case("a blob with bytes left over", _image(_BLOB + b"\0"), "size"),
        Case("a blob that is JSON", _image(_json(_TIMES)), "truncated"),
        Case("a blob that announces 2^40 bytes", _image(struct.pack(">Q", 2**40) + _BLOB[8:]), "compression"),
        Case("a blob that announces 2^64 - 1 bytes", _image(b"\xff" * 8 + _BLOB[8:]), "truncated"),
        Case("a blob that announces one byte less", _image(struct.pack(">Q", 1199) + _BLOB[8:]), "compression"),
        Case("a blob with blocks of 2^32 - 1 bytes", _image(_BLOB[:8] + b"\xff" * 4 + _BLOB[12:]), "size"),
        Case("a blob with blocks of nothing", _image(lost), "size"),
        Case("a blob with blocks of 15 bytes", _image(_BLOB[:8] + struct.pack(">I", 15) + _BLOB[12:]), "size"),
        Case("a blob with a block of 2^32 - 1 bytes", _image(_BLOB[:12] + b"\xff" * 4 + _BLOB[16:]), "truncated"),
        Case("a blob whose first block is damaged", _image(_BLOB[:16] + b"\xff" * 20 + _BLOB[36:]), "compression"),
        Case("a blob of a larger image", _image(compression.compress("bslz4", 2, larger)), "compression"),
        Case("LZ4 cut", _image(_LZ4[:-1], encoding="lz4<"), "compression"),
        Case(
            "LZ4 of a larger image",
            _image(lz4.block.compress(larger, store_size=False), encoding="lz4<"),
            "compression",
        ),
        Case("LZ4 of nothing", _image(b"", encoding="lz4<"), "truncated"),
        Case("LZ4 of zeros", _image(bytes(100), encoding="lz4<"), "compression"),
        Case("LZ4 where bitshuffle is announced", _image(_LZ4), "truncated"),
        Case("plain pixels where LZ4 is announced", _image(_PIXELS.tobytes(), encoding="lz4<"), "compression"),
    ]


def _fields() -> list[Case]:
    """Other entries that are not what they must be."""
    wrong: dict[str, dict[str, Any]] = {
        "text for the number of images": {"nimages": "3"},
        "a float for the number of images": {"nimages": 3.0},
        "a negative number of images": {"nimages": -1},
        "2^64 images": {"nimages": 2**64},
        "2^62 images in 4 triggers": {"nimages": 2**62, "ntrigger": 4},
        "a list of triggers": {"ntrigger": [2]},
        "a number for the trigger mode": {"trigger_mode": 1},
        "text for the width": {"x_pixels_in_detector": "30"},
        "a negative height": {"y_pixels_in_detector": -20},
        "a float for the height": {"y_pixels_in_detector": 20.0},
        "text for the bit depth": {"bit_depth_image": "16"},
        "text for the energy": {"photon_energy": "12.4 keV"},
        "an endless energy": {"photon_energy": 10**300},
        "a list for the wavelength": {"wavelength": [1.0]},
        "true for the distance": {"detector_distance": True},
        "text for the beam centre": {"beam_center_x": "middle"},
        "a map for the pixel size": {"x_pixel_size": {}},
        "text for the count cutoff": {"countrate_correction_count_cutoff": "many"},
        "a number for the description": {"description": 16},
        "text for the frame time": {"frame_time": "5 ms"},
    }
    times: dict[str, Any] = {
        "text": "0",
        "a float": 0.5,
        "negative": -1,
        "true": True,
        "2^64": 2**64,
        "a list": [0, 1],
    }
    endless = [_json(_HEADER), _json(_CONFIG).replace(b"12400.0", b"1e999")]
    return [
        *(Case(text, _start(config=changes), "field") for text, changes in wrong.items()),
        *(Case(f"a start time {text}", _image(times={"start_time": value}), "field") for text, value in times.items()),
        *(Case(f"a live time {text}", _image(times={"real_time": value}), "field") for text, value in times.items()),
        Case("an energy of 1e999", endless, "field"),
        Case("images without width", _start(config={"x_pixels_in_detector": 0}), "shape"),
        Case("images of 2^40 pixels a side", _start(config=dict.fromkeys(_SIDES, 2**40)), "size"),
        Case("images of 50,000 pixels a side", _start(config=dict.fromkeys(_SIDES, 50_000)), "size"),
    ]


_SIDES = ("x_pixels_in_detector", "y_pixels_in_detector")


def damaged() -> list[Case]:
    return [*_parts(), *_json_parts(), *_types(), *_identities(), *_descriptions(), *_blobs(), *_fields()]
