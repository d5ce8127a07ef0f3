"""A live run against a detector not written here: the EIGER2 simulator of tickit-devices, over HTTP and ZeroMQ.

It sends messages captured from a real EIGER2 16M. What it does differently from a detector: every frame is the same,
with the same times; `series_unique_id` is the same in every series; masks and flat fields are base64 text where arrays
belong (24 MB of it); the end is sent a second time when the detector is disarmed; and what comes of two commands in
quick succession are parts of one ZeroMQ message, which the live source takes apart.
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
from string import Template

import numpy as np
import pytest

from streamer.ledger import Ledger
from streamer.records import Frame, SeriesEnd, SeriesStart, WireRecord
from streamer.sources.live import Live
from streamer.wire.dectris2 import Dectris2

pytestmark = pytest.mark.peers

CONFIG = Template((Path(__file__).parent.parent / "peers" / "eiger.yaml").read_text(encoding="utf-8"))
DEADLINE_S = 60.0


class Detector:
    """The SIMPLON interface of a running simulator, and where it streams to."""

    def __init__(self, control: int, stream: int) -> None:
        self.url = f"http://127.0.0.1:{control}"
        self.stream = f"tcp://127.0.0.1:{stream}"

    def put(self, path: str, value: object = None) -> None:
        module, _, rest = path.partition("/")
        body = b"" if value is None else json.dumps({"value": value}).encode()
        request = urllib.request.Request(
            f"{self.url}/{module}/api/1.8.0/{rest}",
            data=body,
            method="PUT",
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S):
            """The answer holds nothing the test needs."""

    def is_there(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/detector/api/1.8.0/status/state", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def configure(self, images: int) -> None:
        for name, value in (("nimages", images), ("ntrigger", 1), ("frame_time", 0.02), ("trigger_mode", "ints")):
            self.put(f"detector/config/{name}", value)


@pytest.fixture
def detector(peers_python: Path, tmp_path: Path) -> Iterator[Detector]:
    """The simulator, started and initialised, streaming in version 2 with every detail in the start."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    control, legacy, stream = (probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    config = tmp_path / "eiger.yaml"
    config.write_text(CONFIG.substitute(control=control, legacy=legacy, stream=stream), encoding="utf-8")
    with (tmp_path / "tickit.log").open("wb") as log:
        command = [peers_python.parent / "tickit", "--log-level", "ERROR", "all", config]
        simulator = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        try:
            detector = Detector(control, stream)
            deadline = time.monotonic() + DEADLINE_S
            while not detector.is_there():
                assert simulator.poll() is None, (tmp_path / "tickit.log").read_text()
                assert time.monotonic() < deadline, "the simulator does not answer"
            detector.put("detector/command/initialize")
            for name, value in (("mode", "enabled"), ("format", "cbor"), ("header_detail", "all")):
                detector.put(f"stream/config/{name}", value)
            yield detector
        finally:
            simulator.terminate()
            try:
                simulator.wait(10)
            except subprocess.TimeoutExpired:
                simulator.kill()
                simulator.wait()


def wait_for_connection(live: Live) -> None:
    """The simulator throws away what it sends while nobody is there."""
    deadline = time.monotonic() + DEADLINE_S
    while live.connection != "connected":
        assert time.monotonic() < deadline, "no connection to the simulator"
        assert live.receive(0.1) is None


def read_until(live: Live, last: type[WireRecord]) -> list[WireRecord]:
    """Records up to the first of that type."""
    found: list[WireRecord] = []
    deadline = time.monotonic() + DEADLINE_S
    while not (found and isinstance(found[-1], last)):
        assert time.monotonic() < deadline, [type(record).__name__ for record in found]
        message = live.receive(0.1)
        if message is not None:
            found += live.decode(message)
    return found


def enter(ledger: Ledger, record: WireRecord) -> None:
    now = time.monotonic()
    if isinstance(record, SeriesStart):
        ledger.start(record, now)
    elif isinstance(record, SeriesEnd):
        ledger.end(record.series, now)
    else:
        assert ledger.frame(record.series, record.number, now) == "accepted"
        ledger.analysed(record.series, record.number, now)


def test_every_frame_of_two_series_is_accounted_for(detector):
    live, ledger = Live(detector.stream, Dectris2()), Ledger()
    wait_for_connection(live)
    keys = []
    for images in (4, 2):
        detector.configure(images)
        detector.put("detector/command/arm")
        detector.put("detector/command/trigger")
        start, *frames, end = read_until(live, SeriesEnd)
        detector.put("detector/command/disarm")
        [end_again] = read_until(live, SeriesEnd)

        assert isinstance(start, SeriesStart)
        assert start.images == images
        assert start.mask == {}  # text is no mask
        assert [frame.number for frame in frames if isinstance(frame, Frame)] == list(range(images))
        for frame in frames:
            assert isinstance(frame, Frame)
            assert frame.image.shape == (4362, 4148)
            assert np.mean(frame.image == 65535) == pytest.approx(0.0693, abs=5e-5)
        records = [start, *frames, end, end_again]
        assert {record.series for record in records} == {start.series}
        for record in records:
            enter(ledger, record)
        keys.append(start.series)
    live.close()

    assert keys[0].unique == keys[1].unique
    assert keys[0].number != keys[1].number
    closed = [account for account in ledger.accounts() if account.closed_by]
    assert [(account.announced, account.analysed, account.closed_by) for account in closed] == [
        (4, 4, "end"),
        (2, 2, "end"),
    ]
    assert all(account.is_announced and account.unaccounted == account.pending == 0 for account in closed)
    counted = ledger.wire()
    assert (counted.messages, counted.control, counted.accepted) == (12, 6, 6)
    assert live.counts["connected"] == 1


def test_the_service_accounts_for_every_frame_of_a_live_run(detector, python, tmp_path):
    file = tmp_path / "beamline.toml"
    file.write_text(f'source = "dectris2+{detector.stream}"\n[analyse.saxs]\n', encoding="utf-8")
    with (tmp_path / "service.log").open("w") as log:
        words = [python, "-m", "streamer", "run", str(file), "--json"]
        service = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        wait_for_line(tmp_path / "service.log", '"connected"')
        for images in (3, 2):
            detector.configure(images)
            detector.put("detector/command/arm")
            detector.put("detector/command/trigger")
            detector.put("detector/command/disarm")
        wait_for_line(tmp_path / "service.log", "series closed", times=2)
        service.terminate()
        report = json.loads(service.communicate(timeout=60)[0].splitlines()[-1])
    finally:
        service.kill()
        service.wait()
    assert service.returncode == 0
    assert (report["announced"], report["analysed"], report["unaccounted"]) == (5, 5, 0)
    assert [account["closed_by"] for account in report["series"]] == ["end", "end"]
    assert report["wire"]["malformed"] == {}
    assert report["wire"]["control"] == 6  # two starts, two ends, and each end once more


def wait_for_line(log: Path, words: str, times: int = 1) -> None:
    """Wait until a log holds these words so many times."""
    deadline = time.monotonic() + 90
    pause = threading.Event()
    while log.read_text(encoding="utf-8").count(words) < times:
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        pause.wait(0.1)
