"""The EIGER2 simulator of tickit-devices in its legacy mode, which is stream version 1, and frames that it loses.

Its images are one that a real EIGER2 16M sent. What it does differently from a detector: all times are zero, the hash
is Python's, a second end comes with `disarm`, commands in quick succession put the start and the first image into one
message, and the flatfield (all zero) is of type `flatfield-1.0`. Its PUSH socket is connected to itself, so that now
and then every second message is gone. A second reader takes every second one, too, and that can be asked for.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import zmq

from streamer.records import Account, Frame, SeriesKey
from tests.end_to_end.test_dectris_sim import Run
from tests.end_to_end.test_tickit import Detector, detector

pytestmark = pytest.mark.peers

__all__ = ["detector"]  # the fixture, under its name


def is_the_real_image(frame: Frame) -> bool:
    is_gap = frame.image == 65535
    return frame.image.shape == (4362, 4148) and abs(float(is_gap.mean()) - 0.0693) < 5e-5 and frame.start_s == 0


@pytest.fixture
def legacy(detector: Detector, tmp_path: Path) -> Detector:
    """The simulator, which now sends version 1 with a configuration."""
    found = re.search(r"stream_legacy_port: ([0-9]+)", (tmp_path / "eiger.yaml").read_text(encoding="utf-8"))
    assert found is not None
    detector.stream = f"tcp://127.0.0.1:{found[1]}"
    detector.put("stream/config/format", "legacy")
    detector.put("stream/config/header_detail", "basic")
    return detector


def takes(detector: Detector, images: int) -> None:
    detector.configure(images)
    for command in ("arm", "trigger", "disarm"):
        detector.put(f"detector/command/{command}")


def assert_names_what_is_missing(account: Account, came: list[int], images: int) -> None:
    """What did not come is before_join, missing, or beyond the last frame of a series whose start did not come."""
    lost = sorted({*range(images)} - {*came})
    told = images if account.is_announced else came[-1] + 1
    assert account.announced == told
    assert account.analysed == len(came)
    assert account.before_join == (came[0] if account.joined_late else 0)
    assert account.analysed + account.before_join + account.missing == told
    assert account.before_join + account.missing == sum(number < told for number in lost)


def test_every_frame_of_the_simulator_is_analysed_or_named(legacy: Detector) -> None:
    run = Run(legacy.stream, is_the_real_image)
    run.waits_for_connection()
    for images, detail in ((5, "basic"), (4, "all"), (6, "none")):
        legacy.put("stream/config/header_detail", detail)
        takes(legacy, images)
    run.waits_for_silence()
    status = run.ends()
    assert [account.series for account in status.closed] == [SeriesKey(1), SeriesKey(2), SeriesKey(3)]
    for account, images in zip(status.closed, (5, 4, 6), strict=True):
        assert_names_what_is_missing(account, run.pixels.came(account.series.number), images)
    starts = {start.series.number: start for start in run.pixels.starts}
    if 1 in starts:
        assert (starts[1].images, starts[1].shape, starts[1].detector) == (
            5,
            (4362, 4148),
            "Simulated Eiger X 16M Detector",
        )
    if 2 in starts:
        assert (starts[2].flatfield, starts[2].mask[""].any()) == ({}, False)
        assert starts[2].extra["left_out"].keys() == {"flatfield-1.0"}


def test_what_a_second_reader_takes_is_missing_by_number(legacy: Detector) -> None:
    run = Run(legacy.stream, is_the_real_image)
    run.waits_for_connection()
    with zmq.Context() as context, context.socket(zmq.PULL) as thief:
        thief.linger = 0
        thief.connect(legacy.stream)
        while not thief.poll(100):  # until the simulator knows of both
            takes(legacy, 2)
        for images in (9, 8, 8):
            takes(legacy, images)
        run.waits_for_silence()
        stolen: dict[int, set[int]] = defaultdict(set)
        while thief.poll(0):
            for part in thief.recv_multipart():
                header = json.loads(part) if len(part) < 200 and b"dimage-1.0" in part else {}
                if header:
                    stolen[header["series"]].add(header["frame"])
    status = run.ends()
    accounts = {account.series.number: account for account in status.closed}
    last = max(accounts)
    for series, images in zip((last - 2, last - 1, last), (9, 8, 8), strict=True):
        came = run.pixels.came(series)
        assert came
        assert stolen[series]
        assert stolen[series] <= {*range(images)} - {*came}
        assert_names_what_is_missing(accounts[series], came, images)
