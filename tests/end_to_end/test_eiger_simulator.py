"""Live runs against ALBA's eiger-simulator, a detector not written here, in stream version 1.

It sends images of a file again and again; each pixel is checked. What it does differently from a detector: bitshuffled
images come without the 12 bytes in front, the hash is empty, times count from 1970, and with header_detail all there is
text where flatfield, mask and count-rate table belong. While nobody reads, it throws away what waits, twice a second.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.records import Frame, SeriesKey
from tests.end_to_end.test_dectris_sim import DEADLINE_S, Run

pytestmark = pytest.mark.peers

ROWS, COLUMNS, IMAGES = 3269, 3110, 3


def expected(number: int) -> NDArray[np.uint16]:
    """Image `number` of the file: photons here and there, gaps, and no row or column like another."""
    y, x = np.ogrid[:ROWS, :COLUMNS]
    image = ((x * 31 + y * 17 + (number % IMAGES) * 5) % 1021 < 40).astype(np.uint16) * np.uint16(number % IMAGES + 1)
    image[:, 1030:1040] = 65535
    image[number % IMAGES, :] = np.arange(COLUMNS)
    return image


class Detector:
    """The SIMPLON interface of a running simulator."""

    def __init__(self, control: int, stream: int, log: Path) -> None:
        self.log = log
        self.url = f"http://127.0.0.1:{control}"
        self.stream = f"tcp://127.0.0.1:{stream}"

    def put(self, path: str, value: Any = None) -> None:
        module, _, rest = path.partition("/")
        body = None if value is None else json.dumps({"value": value}).encode()
        headers = {"Content-Type": "application/json"}
        url = f"{self.url}/{module}/api/1.6.0/{rest}"
        request = urllib.request.Request(url, data=body, method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=DEADLINE_S):
            """The answer holds nothing the test needs."""

    def is_there(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/detector/api/version/", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def takes(self, images: int) -> None:
        self.put("detector/config/nimages", images)
        self.put("detector/command/arm")
        self.put("detector/command/trigger")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("eiger") / "images.h5"
    with h5py.File(file, "w") as h5:
        h5["/entry/data/data_000001"] = np.stack([expected(number) for number in range(IMAGES)])
    return file


@pytest.fixture(scope="module")
def detector(peers_python: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    folder = tmp_path_factory.mktemp("simulator")
    control, stream = (free_port() for _ in range(2))
    command = [str(peers_python.parent / "eiger-simulator"), "--host", "127.0.0.1", "--port", str(control)]
    command += ["--zmq", f"tcp://127.0.0.1:{stream}", "--dataset", str(dataset)]
    with (folder / "simulator.log").open("wb") as log:
        simulator = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            found = Detector(control, stream, folder / "simulator.log")
            deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
            while not found.is_there():
                assert simulator.poll() is None, (folder / "simulator.log").read_text()
                assert time.monotonic() < deadline, "the simulator does not answer"
                pause.wait(0.05)
            found.put("detector/config/count_time", 0.05)
            yield found
        finally:
            simulator.kill()
            simulator.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_as_in_the_file(frame: Frame) -> bool:
    assert frame.start_s is not None
    return np.array_equal(frame.image, expected(frame.number)) and frame.start_s > 10**9


@pytest.mark.parametrize(("packing", "detail"), [("bslz4", "basic"), ("lz4", "all"), ("bslz4", "none")])
def test_every_pixel_of_every_frame_is_what_was_sent(detector: Detector, packing: str, detail: str) -> None:
    detector.put("detector/config/compression", packing)
    detector.put("stream/config/header_detail", detail)
    detector.put("detector/command/initialize")
    run = Run(detector.stream, is_as_in_the_file)
    run.waits_for_connection()
    for images, in_all in ((7, 7), (4, 11)):
        detector.takes(images)
        run.waits_for_frames(in_all)
    status = run.ends()

    first, second = status.closed
    assert second.series.number == first.series.number + 1
    assert (first.announced, first.analysed, first.closed_by) == (7, 7, "end")
    assert (second.announced, second.analysed, second.closed_by) == (4, 4, "end")
    assert first.is_announced == (detail != "none")
    assert run.pixels.came(first.series.number) == [*range(7)]
    assert (status.wire.control, status.wire.accepted) == (4, 11)

    start = run.pixels.starts[0]
    assert (start.mask, start.flatfield) == ({}, {})
    if detail == "none":
        assert (start.images, start.shape) == (None, None)
    else:
        assert (start.images, start.shape, start.distance_m) == (7, (ROWS, COLUMNS), 0.12696)
        assert (start.energy_eV, start.detector) == (12649.9, "Dectris Eiger 9M")
    left_out = {"flatfield", "pixel_mask"} if detail == "all" else set()
    assert start.extra.get("left_out", {}).keys() == left_out


def test_frames_sent_before_anybody_read_are_named(detector: Detector) -> None:
    """The simulator throws away what it cannot send; the reader comes when the series is under way."""
    detector.put("detector/config/compression", "bslz4")
    detector.put("stream/config/header_detail", "basic")
    detector.put("detector/command/initialize")
    detector.put("detector/config/count_time", 0.4)
    taking = threading.Thread(target=detector.takes, args=(9,))
    taking.start()
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while "Flushed" not in detector.log.read_text():
        assert time.monotonic() < deadline, "the simulator threw nothing away"
        pause.wait(0.05)
    run = Run(detector.stream, is_as_in_the_file)
    taking.join(DEADLINE_S)
    detector.put("detector/config/count_time", 0.05)
    run.waits_for(lambda: bool(run.pixels.right))
    last = max(run.pixels.right)[0]
    detector.takes(2)
    run.waits_for(lambda: (last + 1, 1) in run.pixels.right)
    status = run.ends()
    late, whole = sorted(status.closed, key=lambda account: account.series.number)
    came = run.pixels.came(last)
    assert late.series == SeriesKey(last)
    assert late.joined_late
    assert (late.analysed, late.before_join) == (len(came), came[0])
    assert late.before_join > 0
    assert late.announced == late.before_join + late.analysed + late.missing == came[-1] + 1
    assert (whole.announced, whole.analysed) == (2, 2)
