"""`decode`: one message to one image on one core: the compressed pixels, the envelope around them, and both."""

from __future__ import annotations

from typing import Any

import cbor2
import numpy as np
from numpy.typing import NDArray

from streamer import compression
from streamer.wire.dectris2 import Dectris2
from tools.benches.frames import describe, series
from tools.benches.loop import Decompress, decompressors
from tools.benches.measure import Report, duel

WANTED = ("dectris-compression", "bitshuffle", "hdf5plugin")


def bench(report: Report, detectors: list[str], rounds: int) -> None:
    """Every decompressor and cbor2 against ours, on every detector."""
    peers = decompressors()
    for missing in set(WANTED) - set(peers):
        report.note("decode", f"{missing} is not installed; pip install {missing} to have it measured")
    for detector in detectors:
        describe(report, detector)
        for name, peer in peers.items():
            _pixels(report, detector, name, peer, rounds)
        _envelope(report, detector, rounds)
        for name, peer in peers.items():
            _message(report, detector, name, peer, rounds)


def _pixels(report: Report, detector: str, name: str, peer: Decompress, rounds: int) -> None:
    """bslz4 alone. Ours writes into a buffer that is there; peers that cannot allocate theirs."""
    images = series(detector).images
    packed = [compression.compress("bslz4", 2, image) for image in images]
    out = np.empty(images[0].nbytes, np.uint8)
    compression.warm()
    contest = duel(
        lambda i: compression.decompress("bslz4", 2, packed[i], out), lambda i: peer(packed[i], 2), len(images), rounds
    )
    for image, octets in zip(images, packed, strict=True):
        compression.decompress("bslz4", 2, octets, out)
        _require_same(name, out, peer(octets, 2))
        _require_same("streamer", out.view(np.uint16).reshape(image.shape), image)
    report.line("decode", f"{detector} uint16 bslz4", peer=name, **contest.figures, equal=True)


def _envelope(report: Report, detector: str, rounds: int) -> None:
    """The CBOR around the pixels, which stay compressed."""
    messages, speaks = series(detector).templates, Dectris2()
    contest = duel(lambda i: speaks.identify([messages[i]]), lambda i: cbor2.loads(messages[i]), len(messages), rounds)
    number = speaks.identify([messages[0]])[1]
    _require_same("cbor2", np.array(number), np.array(cbor2.loads(messages[0])["image_id"]))
    report.line("decode", f"{detector} envelope", peer="cbor2 loads", **contest.figures, equal=True)


def _message(report: Report, detector: str, name: str, peer: Decompress, rounds: int) -> None:
    """The whole message."""
    messages, speaks, scratch = series(detector).templates, Dectris2(), compression.Scratch()
    shape = series(detector).images[0].shape

    def ours(i: int) -> NDArray[Any]:
        scratch.reset()
        (frame,) = speaks.decode([messages[i]], scratch=scratch)
        return frame.image  # type: ignore[union-attr]

    def theirs(i: int) -> NDArray[Any]:
        array = next(iter(cbor2.loads(messages[i])["data"].values()))
        _, size, packed = array.value[1].value.value
        return peer(packed, size).view(np.uint16).reshape(array.value[0])

    contest = duel(ours, theirs, len(messages), rounds)
    _require_same(name, ours(0), theirs(0))
    report.line(
        "decode", f"{detector} {shape[0]}×{shape[1]} message", peer=f"{name} after cbor2", **contest.figures, equal=True
    )


def _require_same(name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    if not np.array_equal(ours, theirs):
        raise SystemExit(f"decode: {name} and the others do not find the same pixels; nothing can be compared")
