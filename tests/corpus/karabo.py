"""Trains as no Karabo bridge should send them."""

from __future__ import annotations

import pickle
from typing import Any

import msgpack
import numpy as np

from tests.hostile import Case, Parts

PULSES, MODULES, ROWS, COLUMNS = 3, 2, 6, 8
DETECTOR = "SPB_DET_AGIPD1M-1/CAL/APPEND_CORRECTED"
CAMERA = "SPB_IRU_INLINEMIC_CAM:daqOutput"
XGM = "SA1_XTD2_XGM/XGM/DOOCS"
TRAIN = 10_000_000_001

_PIXELS = (np.arange(PULSES * MODULES * ROWS * COLUMNS) % 251).astype("<f4").reshape(PULSES, MODULES, ROWS, COLUMNS)
_METADATA = {
    "source": DETECTOR,
    "timestamp": 1526464869.4109755,
    "timestamp.tid": TRAIN,
    "timestamp.sec": "1526464869",
    "timestamp.frac": "410975500000000000",
    "ignored_keys": [],
}
_OCTETS = _PIXELS.tobytes()
_NESTED = 100_000


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _main(metadata: Any = _METADATA, source: Any = DETECTOR, payload: bytes = b"\x80", **changes: Any) -> Parts:
    """The pair that a source begins with."""
    return [_packed({"source": source, "content": "msgpack", "metadata": metadata} | changes), payload]


def _array(octets: bytes = _OCTETS, **changes: Any) -> Parts:
    """The pair of an array."""
    header = {"source": DETECTOR, "content": "array", "path": "image.data", "dtype": "float32", "shape": _PIXELS.shape}
    return [_packed(header | changes), octets]


def _train(number: int = TRAIN) -> Parts:
    """A train of a detector in the middle of slower sources."""
    return [
        *_main(
            _METADATA | {"timestamp.tid": number}, payload=_packed({"image.passport": ["a", "b"], "pulses": PULSES})
        ),
        *_array(),
        *_array(np.arange(PULSES, dtype="<u8").tobytes(), path="image.pulseId", dtype="uint64", shape=[PULSES]),
        *_main(_METADATA | {"source": XGM}, XGM, _packed({"pulseEnergy.photonFlux": 1503.25})),
        *_array(np.ones(40, "<f4").tobytes(), source=XGM, path="data.intensityTD", shape=[40]),
    ]


def _nd(data: Any = _OCTETS, **changes: Any) -> dict[bytes, Any]:
    """An array as msgpack-numpy writes it."""
    described = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": _PIXELS.shape, b"data": data}
    return described | {name.encode(): value for name, value in changes.items()}


def _nested(image: Any = None, metadata: Any = _METADATA, source: Any = DETECTOR) -> Parts:
    """A train of version 1.0."""
    return [_packed({source: {"image.data": _nd() if image is None else image, "metadata": metadata}})]


def good() -> list[Parts]:
    """Trains of both versions, with pulses and without, and one that holds no image."""
    camera = {"source": CAMERA, "path": "data.image.pixels", "dtype": "uint16", "shape": [ROWS, COLUMNS]}
    pixels = np.arange(ROWS * COLUMNS, dtype="<u2").tobytes()
    return [
        _train(),
        _train(TRAIN + 1),
        _nested(),
        [*_main(_METADATA | {"source": CAMERA}, CAMERA), *_array(pixels, **camera)],
        _main(_METADATA | {"source": XGM}, XGM, _packed({"pulseEnergy.photonFlux": 1503.25})),
    ]


def damaged() -> list[Case]:
    """Messages with what each is refused for."""
    return [*_miscounted(), *_malformed(), *_misnamed(), *_misdescribed(), *_mispacked(), *_old()]


def _miscounted() -> list[Case]:
    """The parts of a message are not the pairs of a train. (Cut between pairs, it is a shorter train.)"""
    whole = _train()
    return [
        Case("no parts", [], "parts"),
        *[Case(f"cut after part {n}", whole[:n], "parts") for n in range(3, len(whole), 2)],
        Case("the image's bytes missing", [*_main(), _array()[0], *_main(source=XGM)], "parts"),
        Case("the image's header missing", [*_main(), _array()[1], *_main(source=XGM)], "parts"),
        Case("a part too many", [*whole, b""], "parts"),
        Case("a topic before the pairs", [b"karabo", *whole], "parts"),
        Case("a topic instead of a header", [b"karabo", *whole[1:]], "msgpack"),
        Case("five thousand parts", [*_main(), *_array()] * 1250, "parts"),
        Case("header and payload exchanged", [_array()[1], _array()[0]], "msgpack"),
        Case("the pairs out of step", [*whole[1:], whole[0]], "field"),
        Case("empty parts", [b"", b""], "truncated"),
        Case("one empty part", [b""], "truncated"),
        Case("the first header alone", whole[:1], "field"),
        Case("the second header empty", [*_main(), b"", _array()[1]], "truncated"),
        Case("the answer to a bad request", [b"Error: bad request 'nxet'"], "msgpack"),
    ]


def _malformed() -> list[Case]:
    """Headers that are not one msgpack map."""

    def header(octets: bytes) -> Parts:
        return [*_main(), octets, _array()[1]]

    plain = _array()[0]
    entry = plain[1:]  # without the head of the map, which has five entries
    long = b"\xdf\x00\x00\x00\x05" + entry
    cuts = [
        Case(f"a header cut at byte {at}", header(plain[:at]), "truncated") for at in (1, 5, 20, 40, len(plain) - 1)
    ]
    return [
        *cuts,
        Case("a byte left over", header(plain + b"\xc0"), "msgpack"),
        Case("a header twice in one part", header(plain * 2), "msgpack"),
        Case("a header that is a list", header(_packed(["array", "image.data"])), "msgpack"),
        Case("a header that is text", header(_packed("array")), "msgpack"),
        Case("a header that is a number", header(b"\x05"), "msgpack"),
        Case("a header that is nil", header(b"\xc0"), "msgpack"),
        Case("a header that is bytes", header(_packed(plain)), "msgpack"),
        Case("a header in JSON", header(b'{"source": "a", "content": "array"}'), "msgpack"),
        Case("a header in CBOR", header(b"\xa2\x66source\x61a\x67content\x65array"), "msgpack"),
        Case("the byte that means nothing", header(b"\xc1"), "msgpack"),
        Case("2^32 - 1 entries", header(b"\xdf\xff\xff\xff\xff" + entry), "truncated"),
        Case("an entry more than there are", header(b"\x86" + entry), "truncated"),
        Case("an entry less than there are", header(long[:4] + b"\x04" + entry), "msgpack"),
        Case("a list of 2^32 - 1", header(b"\x81\xa1a\xdd\xff\xff\xff\xff"), "truncated"),
        Case("text of 2^32 - 1 bytes", header(b"\x81\xa1a\xdb\xff\xff\xff\xff"), "truncated"),
        Case("bytes of 2^32 - 1", header(b"\x81\xa1a\xc6\xff\xff\xff\xff"), "truncated"),
        Case("lists nested 100,000 deep", header(b"\x81\xa1a" + b"\x91" * _NESTED + b"\xc0"), "msgpack"),
        Case("maps nested 100,000 deep", header(b"\x81\xa1a" * _NESTED + b"\xc0"), "msgpack"),
        Case("maps as keys, 100,000 deep", header(b"\x81" * _NESTED), "msgpack"),
        Case(
            "huge lists in one another", header(b"\x81\xa1a" + b"\xdd\x00\x00\xff\xff" * 900 + bytes(70_000)), "msgpack"
        ),
        Case("300,000 items", header(b"\x81\xa1a\xdd\x00\x04\x93\xe0" + bytes(300_000)), "msgpack"),
        Case("a key twice", header(b"\x82" + _packed("shape") + b"\x90" + _packed("shape") + b"\x90"), "msgpack"),
        Case(
            "a key as text and as bytes",
            header(b"\x82" + _packed("shape") + b"\x90" + _packed(b"shape") + b"\x90"),
            "msgpack",
        ),
        Case("a number as a key", header(_packed({5: 1})), "msgpack"),
        Case("a list as a key", header(b"\x81\x91\xc0\xc0"), "msgpack"),
        Case("nil as a key", header(b"\x81\xc0\xc0"), "msgpack"),
        Case("text that is not UTF-8", header(b"\x81\xa1\xff\xc0"), "msgpack"),
        Case("half a surrogate", header(b"\x81\xa3\xed\xa0\x80\xc0"), "msgpack"),
        Case("an extension type", _main(_METADATA | {"timestamp": msgpack.ExtType(42, b"x" * 20)}), "msgpack"),
        Case("an extension of 2^32 - 1 bytes", header(b"\x81\xa1a\xc9\xff\xff\xff\xff\x05"), "msgpack"),
        Case("a timestamp of msgpack's own", _main(_METADATA | {"timestamp": msgpack.Timestamp(1, 5)}), "msgpack"),
    ]


def _misnamed() -> list[Case]:
    """Entries that are absent, of another type, or say what cannot be."""

    def numbered(number: Any) -> Parts:
        return [*_main(_METADATA | {"timestamp.tid": number}), *_array()]

    second = [*_main(source=CAMERA), *_array(source=CAMERA)]
    return [
        Case("a source that is a number", _main(source=5), "field"),
        Case("a source without a name", _main(source=""), "field"),
        Case("a source of a thousand characters", _main(source="a" * 1000), "field"),
        Case("a source that clears the screen", _main(source="\x1b[2J"), "field"),
        Case("a source that is bytes", _main(source=b"a"), "field"),
        Case("no source", [_packed({"content": "msgpack", "metadata": _METADATA}), b"\x80"], "field"),
        Case("an unknown content", _main(content="pickle"), "type"),
        Case("content that is a list", _main(content=["array"]), "type"),
        Case("no content", [_packed({"source": DETECTOR, "metadata": _METADATA}), b"\x80"], "type"),
        Case("metadata that are a list", _main([1, 2]), "field"),
        Case("metadata that are a number", _main(5.0), "field"),
        Case("a source twice", [*_main(), *_main(), *_array()], "field"),
        Case("an image twice", [*_main(), *_array(), *_array()], "field"),
        Case("an image without a path", [*_main(), *_array(path=None)], "field"),
        Case("a path that is a list", [*_main(), *_array(path=["image", "data"])], "field"),
        Case("an image without its source's metadata", _array(), "id"),
        Case("no metadata", [*_main(None), *_array()], "id"),
        Case("metadata without a train", [*_main({}), *_array()], "id"),
        Case("a train that is text", numbered("10000000001"), "id"),
        Case("a train that is a float", numbered(1e10), "id"),
        Case("a train that is true", numbered(True), "id"),
        Case("a train that is not a number", numbered(float("nan")), "id"),
        Case("a negative train", numbered(-1), "id"),
        Case("train 2^63", numbered(2**63), "id"),
        Case("train 2^64 - 1", numbered(2**64 - 1), "id"),
        Case("a train that is a map", numbered({"tid": 5}), "id"),
        Case("two detectors", [*_main(), *_array(), *second], "source"),
        Case("an image at another path", [*_main(), *_array(path="image.gain")], "source"),
        Case("a path of a thousand characters", [*_main(), *_array(path="a" * 1000)], "source"),
    ]


def _misdescribed() -> list[Case]:
    """Images whose types and shapes are none."""

    def image(**changes: Any) -> Parts:
        return [*_main(), *_array(**changes)]

    rest = (MODULES, ROWS, COLUMNS)
    types: list[tuple[str, Any]] = [
        *(("of objects", "object"), ("of pointers", "|O8"), ("of gigabytes", "V1000000000"), ("of text", "<U4")),
        *(("of byte strings", "|S4"), ("of dates", "datetime64[ns]"), ("of complex numbers", "complex64")),
        *(("of records", "[('a', '<f4')]"), ("of nothing", ""), ("of 16 bytes", "float128"), ("of a code", "f4")),
        *(("of a type that is a number", 5), ("of a type that is a list", [["a", "<f4"]]), ("of no type", None)),
        *(("of structures", "i4,f4"), ("of a thousand letters", "a" * 1000), ("of half an order", "<")),
    ]
    return [
        *[Case(f"elements {name}", image(dtype=dtype), "dtype") for name, dtype in types],
        Case("no shape", image(shape=None), "shape"),
        Case("no dimensions", image(shape=[]), "shape"),
        Case("one dimension", [*_main(), *_array(path="data.adc", shape=[_PIXELS.size])], "shape"),
        Case("five dimensions", image(shape=[1, *_PIXELS.shape]), "shape"),
        Case("a thousand dimensions", image(shape=[1] * 996 + list(_PIXELS.shape)), "shape"),
        Case("a shape that is a number", image(shape=5), "shape"),
        Case("a shape that is text", image(shape="3268"), "shape"),
        Case("a shape that is bytes", image(shape=b"\x03\x02\x06\x08"), "shape"),
        Case("no pulses", image(shape=[0, *rest], octets=b""), "shape"),
        Case("no rows", image(shape=[PULSES, MODULES, 0, COLUMNS], octets=b""), "shape"),
        Case("negative pulses and modules", image(shape=[-PULSES, -MODULES, ROWS, COLUMNS]), "shape"),
        Case("pulses that are a float", image(shape=[float(PULSES), *rest]), "shape"),
        Case("pulses that are true", image(shape=[True, *rest]), "shape"),
        Case("pulses that are text", image(shape=["3", *rest]), "shape"),
        Case("pulses that are a list", image(shape=[[PULSES], *rest]), "shape"),
        Case("pulses that are not a number", image(shape=[float("nan"), *rest]), "shape"),
        Case("2^40 pixels", image(shape=[2**20, 2**20]), "shape"),
        Case("2^252 pixels", image(shape=[2**63 - 1] * 4), "shape"),
        Case("dimensions of 2^64 - 1", image(shape=[2**64 - 1] * 2), "shape"),
    ]


def _mispacked() -> list[Case]:
    """Images that are not filled by their bytes, or fill more than they may."""

    def image(octets: bytes, **changes: Any) -> Parts:
        return [*_main(), *_array(octets, **changes)]

    return [
        Case("no bytes", image(b""), "shape"),
        Case("a byte too few", image(_OCTETS[:-1]), "shape"),
        Case("a byte too many", image(_OCTETS + b"\x00"), "shape"),
        Case("a pulse too few", image(_OCTETS[: -len(_OCTETS) // PULSES]), "shape"),
        Case("a pulse too many", image(_OCTETS, shape=[PULSES + 1, MODULES, ROWS, COLUMNS]), "shape"),
        Case("the bytes of a narrower type", image(_OCTETS[: len(_OCTETS) // 2]), "shape"),
        Case("a wider type than its bytes", image(_OCTETS, dtype="float64"), "shape"),
        Case("integers no analysis takes", image(b"\xff" * 48, dtype="uint64", shape=[2, 3]), "dtype"),
        Case("two thousand pulses", image(bytes(2000), dtype="uint8", shape=[2000, 1, 1, 1]), "size"),
        Case("a million pulses", image(bytes(10**6), dtype="uint8", shape=[10**6, 1, 1, 1]), "size"),
    ]


def _old() -> list[Case]:
    """The same of version 1.0."""
    whole = _nested()[0]
    objects = np.array([None, "a"], dtype=object)
    two = _packed({name: {"image.data": _nd(), "metadata": _METADATA} for name in (DETECTOR, CAMERA)})
    cuts = [Case(f"1.0: cut at byte {at}", [whole[:at]], "truncated") for at in (1, 30, 60, 200, len(whole) - 1)]
    return [
        *cuts,
        Case("1.0: a byte left over", [whole + b"\xc0"], "msgpack"),
        Case("1.0: pickled", [pickle.dumps({DETECTOR: {"image.data": _PIXELS}}, protocol=2)], "msgpack"),
        Case("1.0: pickled by a newer bridge", [pickle.dumps({DETECTOR: {"image.data": _PIXELS}})], "msgpack"),
        Case("1.0: pickled objects in an array", _nested(_nd(objects.dumps(), type="|O", kind=b"O")), "dtype"),
        Case("1.0: a list", [_packed([1, 2])], "msgpack"),
        Case("1.0: a source that is a list", [_packed({DETECTOR: [1]})], "field"),
        Case("1.0: a source that is nil", [_packed({DETECTOR: None})], "field"),
        Case("1.0: a source without a name", _nested(source=""), "field"),
        Case("1.0: a source twice", [b"\x82" + _nested()[0][1:] * 2], "msgpack"),
        Case("1.0: two detectors", [two], "source"),
        Case("1.0: metadata that are text", _nested(metadata="none"), "field"),
        Case("1.0: no metadata", [_packed({DETECTOR: {"image.data": _nd()}})], "id"),
        Case("1.0: a train that is not a number", _nested(metadata={"timestamp.tid": float("nan")}), "id"),
        Case("1.0: an array of records", _nested(_nd(type=[["a", "<f4"]], kind=b"V")), "dtype"),
        Case("1.0: an array of a type in bytes", _nested(_nd(type=b"<f4")), "dtype"),
        Case("1.0: an array of void", _nested(_nd(type="|V4")), "dtype"),
        Case("1.0: an array of text", _nested(_nd("pixels")), "field"),
        Case("1.0: an array of numbers", _nested(_nd([1, 2, 3])), "field"),
        Case("1.0: an array without data", _nested(_nd(None)), "field"),
        Case("1.0: an array of 2^40 pixels", _nested(_nd(shape=[2**20, 2**20])), "shape"),
        Case("1.0: an array without a shape", _nested(_nd(shape=None)), "shape"),
        Case("1.0: a pulse too few", _nested(_nd(_PIXELS[1:].tobytes())), "shape"),
        Case("1.0: nested 100,000 deep", [b"\x81\xa1a" * _NESTED], "msgpack"),
        Case("1.0: an extension type", [_packed({DETECTOR: {"image.data": msgpack.ExtType(78, b"x")}})], "msgpack"),
    ]
