"""Live runs against pvAccess servers not written here: pvapy's areaDetector simulator, and arrays it compresses.

Both serve with EPICS' older C++ library (pvAccessCPP), as areaDetector's own plug-in does; the source reads with the
newer one (PVXS). What the older one does differently: it does not answer searches over TCP, so the channel is looked
for over UDP; and a bare TCP connection to its port leaves it deaf to others, so the port is never probed.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.decide import Decider
from streamer.demo import free_ports
from streamer.pipeline import Limits, Pipeline
from streamer.records import Frame, Reduced, Result, Status, WireRecord
from streamer.sources.pva import Pva

pytestmark = pytest.mark.peers
pytest.importorskip("p4p", reason="p4p is not installed: pip install 'streamer[epics]'")

CHANNEL = "TEST:image"
DEADLINE_S = 60.0


class Comparison(Analysis):
    """Compares the pixels of every frame with those that were sent under its number.

    numbers: of the frames that came, in the order they were reduced. wrong: of those that differ.
    """

    name = "comparison"
    model = None

    def __init__(self, sent: NDArray[Any]) -> None:
        self._sent = sent
        self.numbers: list[int] = []
        self.wrong: list[int] = []

    def accepts(self, frame: Frame) -> bool:
        return True

    def reduce(self, frame: Frame) -> Reduced:
        self.numbers.append(frame.number)
        if not np.array_equal(frame.image, self._sent[(frame.number - 1) % len(self._sent)]):
            self.wrong.append(frame.number)
        return Reduced(frame.series, frame.number, {})

    def interpret(self, reduced: Reduced, outputs: Mapping[str, Any] | None) -> Result:
        return Result(self.name, reduced.series, reduced.number, {})


class Server:
    """A pvAccess server in a process of its own, on loopback only."""

    def __init__(self, command: list[Path | str]) -> None:
        tcp, udp = free_ports(2)
        self.address = f"127.0.0.1:{udp}"
        environment = {
            "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
            "EPICS_PVAS_SERVER_PORT": str(tcp),
            "EPICS_PVA_SERVER_PORT": str(tcp),
            "EPICS_PVAS_BROADCAST_PORT": str(udp),
            "EPICS_PVA_BROADCAST_PORT": str(udp),
            "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read_until(self, words: str) -> str:
        """What it prints, up to a line with these words."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if words in line:
                return "".join(lines)
        raise AssertionError(f"no {words!r} in:\n{''.join(lines)}")


@contextmanager
def running(command: list[Path | str]) -> Iterator[Server]:
    server = Server(command)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.fixture
def frames(tmp_path: Path) -> tuple[Path, NDArray[Any]]:
    """Fifty frames of noise, each another, and the file they are in."""
    noise = np.random.default_rng(7).poisson(300.0, (50, 48, 64)).astype(np.uint16)
    np.save(tmp_path / "frames.npy", noise)
    return tmp_path / "frames.npy", noise


def simulator(python: Path, file: Path, *, fps: int, seconds: float) -> list[Path | str]:
    words = ["-cn", CHANNEL, "-if", str(file), "-fps", str(fps), "-rt", str(seconds), "-std", "2", "-shd", "3", "-dc"]
    return [python.parent / "pvapy-ad-sim-server", *words, "-rp", "0"]


def watched(server: Server, comparison: Comparison, **limits: Any) -> tuple[Status, int]:
    """The status of a stream that reads the simulator to its end, and how many arrays that says it sent."""
    source = Pva(CHANNEL, address_list=server.address)
    pipeline = Pipeline(source, [comparison], Decider([]), [], limits=Limits(**limits))
    pipeline.start()
    sent = int(re.findall(r"Published frames: +(\d+)", server.read_until("Published frames"))[0])
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not any(one.announced == sent and not one.pending for one in pipeline.ledger.accounts()):
        assert time.monotonic() < deadline, (sent, pipeline.ledger.accounts())
        pause.wait(0.05)
    pipeline.stop()
    return pipeline.join(), sent


def test_every_array_of_the_simulator_is_analysed(peers_python: Path, frames: tuple[Path, NDArray[Any]]) -> None:
    file, noise = frames
    comparison = Comparison(noise)
    with running(simulator(peers_python, file, fps=100, seconds=3)) as server:
        server.read_until("producer is done")
        status, sent = watched(server, comparison, when_behind="wait")
    [account] = status.closed
    assert sent > 250
    assert account.analysed + account.missing == account.announced == sent
    assert account.analysed > 0.9 * sent
    assert account.unaccounted == account.dropped == account.malformed == account.duplicate == 0
    assert status.wire.malformed == {}
    assert len(comparison.numbers) == account.analysed
    assert comparison.wrong == []


def test_what_the_simulator_sends_too_fast_is_missing_by_name(
    peers_python: Path, frames: tuple[Path, NDArray[Any]]
) -> None:
    file, noise = frames
    comparison = Comparison(noise)
    with running(simulator(peers_python, file, fps=0, seconds=1)) as server:
        server.read_until("producer is done")
        status, sent = watched(server, comparison)
    [account] = status.closed
    assert sent > 500
    assert account.analysed + account.missing + account.dropped == account.announced == sent
    assert account.unaccounted == account.malformed == account.duplicate == 0
    assert comparison.wrong == []


def test_what_other_libraries_compressed_is_the_image_that_was_sent(
    peers_python: Path, frames: tuple[Path, NDArray[Any]]
) -> None:
    file, noise = frames
    script = Path(__file__).parent.parent / "peers" / "pva_codecs.py"
    with running([peers_python, script, CHANNEL, str(file)]) as server:
        server.read_until("ready")
        source = Pva(CHANNEL, address_list=server.address)
        received(source, 1)  # nothing was acquired yet
        for number, frame in enumerate(noise[:12], 1):
            server.say("next")
            *_, found = received(source, 2 if number == 1 else 1)
            assert isinstance(found, Frame)
            assert found.number == number
            np.testing.assert_array_equal(found.image, frame)
        source.close()


def received(source: Pva, messages: int) -> list[WireRecord]:
    records: list[WireRecord] = []
    deadline = time.monotonic() + DEADLINE_S
    while messages:
        assert time.monotonic() < deadline, records
        if (message := source.receive(0.1)) is not None:
            records += source.decode(message)
            messages -= 1
    return records
