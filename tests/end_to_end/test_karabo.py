"""Live runs against a bridge not written here: `ServerInThread` of karabo-bridge, in every version and on every socket.

Its trains hold a detector and a slow source, and every pixel is a function of its train, pulse, module, row and column.
What the bridge does: it answers a request (REP) with the next train that was fed; PUSH and PUB have a high-water mark
of one message, at which PUSH waits and PUB throws away.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.config import open_source
from streamer.decide import Decider
from streamer.pipeline import Limits, Pipeline
from streamer.records import Account, BadFrame, Frame, Reduced, Result

pytestmark = pytest.mark.peers

SERVER = Path(__file__).parent.parent / "peers" / "karabo_bridge_server.py"
FIRST = 10_000_000_000
DETECTORS = {
    "calibrated": "SPB_DET_AGIPD1M-1/CAL/APPEND_CORRECTED",
    "raw": "SPB_DET_AGIPD1M-1/CAL/APPEND_RAW",
    "camera": "SPB_IRU_INLINEMIC_CAM:daqOutput",
}
SHAPES = {"calibrated": (32, 8), "raw": (32, 8), "camera": (16, 8)}
DTYPES = {"calibrated": np.float32, "raw": np.uint16, "camera": np.uint16}
PULSES = [f"pulse_{n}" for n in range(4)]
CHANNELS = {"calibrated": PULSES, "raw": PULSES, "camera": [""]}
OPTIONS = {"calibrated": "", "raw": "&axes=module,x,y,pulse", "camera": ""}
DEADLINE_S = 60.0


class Bridge:
    """A bridge in a process of its own, fed train by train."""

    def __init__(self, process: subprocess.Popen[str], layout: str) -> None:
        self.process = process
        self.layout = layout
        self.address = self._line()

    def feed(self, trains: int) -> list[int]:
        """Their ids, once all of them are on their way."""
        self._say(str(trains))
        fed: list[int] = json.loads(self._line())
        return fed

    def begin_again(self) -> None:
        """The ids begin with the first one again."""
        self._say("new")

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the bridge is gone"
        return line


Start = Callable[..., Bridge]


@pytest.fixture
def bridge(peers_python: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts bridges: socket, version, layout, and the address to bind where it matters."""
    processes: list[subprocess.Popen[str]] = []
    with (tmp_path / "bridge.log").open("w") as log:

        def start(socket: str, version: str, layout: str, address: str = "tcp://127.0.0.1:*") -> Bridge:
            command = [str(peers_python), str(SERVER), socket, version, layout, address]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            processes.append(process)
            return Bridge(process, layout)

        yield start
        for process in processes:
            process.kill()
            process.communicate()


def expected(layout: str, train: int, pulse: int) -> NDArray[Any]:
    """What the bridge sends: see the head of its script. Modules have 16 rows."""
    row, x = np.indices(SHAPES[layout])
    module, y = row // 16, row % 16
    values = (((train * 7 + pulse) * 5 + module * 3 + y) * 2 + x) % 65536
    return values.astype(DTYPES[layout])


class Pixels(Analysis):
    """Compares every pixel with what was sent, and keeps whose images agree."""

    name = "pixels"

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.equal: Counter[str] = Counter()  # by channel
        self.trains: set[int] = set()
        self.different: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    def accepts(self, frame: Frame) -> bool:
        return True

    def reduce(self, frame: Frame) -> Reduced:
        judge = expected(self.layout, frame.number, int(frame.channel.removeprefix("pulse_") or 0))
        is_equal = frame.image.dtype == judge.dtype and np.array_equal(frame.image, judge)
        with self._lock:
            if not is_equal:
                self.different.append((frame.number, frame.channel))
                raise BadFrame("pixels", "not what was sent")
            self.equal[frame.channel] += 1
            self.trains.add(frame.number)
        return Reduced(frame.series, frame.number, {}, channel=frame.channel)

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        return Result(self.name, reduced.series, reduced.number, {}, channel=reduced.channel)


class Run:
    """A pipeline that reads a bridge; its accounts when it is over."""

    def __init__(self, bridge: Bridge, socket: str) -> None:
        self.pixels = Pixels(bridge.layout)
        url = f"karabo+{bridge.address}?socket={socket}{OPTIONS[bridge.layout]}"
        limits = Limits(when_behind="wait")
        self.pipeline = Pipeline(open_source(url), [self.pixels], Decider([]), [], limits=limits)
        self.pipeline.start()

    @property
    def analysed(self) -> int:
        return sum(account.analysed for account in self.pipeline.ledger.accounts())

    def waits_for(self, trains: int, within_s: float = DEADLINE_S) -> bool:
        """Whether so many trains were analysed in time."""
        deadline, pause = time.monotonic() + within_s, threading.Event()
        while self.analysed < trains and time.monotonic() < deadline:
            pause.wait(0.005)
        return self.analysed >= trains

    def accounts(self) -> list[Account]:
        """Of all series, after the stream was stopped."""
        self.pipeline.stop()
        status = self.pipeline.join()
        assert status.wire.malformed == {}
        assert self.pixels.different == []
        assert all(account.unaccounted == account.pending == 0 for account in status.closed)
        return list(status.closed)


@pytest.mark.parametrize("layout", ["calibrated", "raw", "camera"])
@pytest.mark.parametrize("version", ["2.2", "1.0"])
@pytest.mark.parametrize("sockets", [("REP", "req"), ("PUSH", "pull")], ids=["REP", "PUSH"])
def test_every_train_is_analysed_with_every_pixel(
    bridge: Start, sockets: tuple[str, str], version: str, layout: str
) -> None:
    """Two runs, the second one with the train ids of the first."""
    server = bridge(sockets[0], version, layout)
    run = Run(server, sockets[1])
    sent = [server.feed(40)]
    assert run.waits_for(40)
    server.begin_again()
    sent.append(server.feed(15))
    assert run.waits_for(55)
    first, second = run.accounts()
    assert sent == [list(range(FIRST, FIRST + 40)), list(range(FIRST, FIRST + 15))]
    assert (first.analysed, first.missing, first.announced) == (40, 0, 40)
    assert (second.analysed, second.missing, second.announced) == (15, 0, 15)
    assert first.series.unique == second.series.unique == DETECTORS[layout]
    assert run.pixels.equal == dict.fromkeys(CHANNELS[layout], 55)


@pytest.mark.parametrize("version", ["2.2", "1.0"])
def test_trains_that_a_publishing_bridge_threw_away_are_missing_by_number(bridge: Start, version: str) -> None:
    server = bridge("PUB", version, "calibrated")
    run = Run(server, "sub")
    fed: list[int] = []
    while not run.analysed:  # until the bridge knows of its reader, what it publishes goes nowhere
        fed += server.feed(1)
        run.waits_for(1, within_s=0.2)
    fed += server.feed(300)  # faster than they leave a queue of one
    while fed[-1] not in run.pixels.trains:  # a gap shows when a number behind it comes
        fed += server.feed(1)
        run.waits_for(run.analysed + 1, within_s=0.2)
    (account,) = run.accounts()
    came = run.pixels.trains
    assert fed == list(range(FIRST, fed[-1] + 1))
    assert (account.analysed, account.missing) == (len(came), len(set(range(min(came), max(came))) - came))
    assert len(fed) == (min(came) - FIRST) + account.analysed + account.missing
    assert run.pixels.equal == dict.fromkeys(PULSES, account.analysed)


def test_a_bridge_that_was_restarted_is_asked_again(bridge: Start) -> None:
    """It dies with a request that it did not answer."""
    server = bridge("REP", "2.2", "camera")
    run = Run(server, "req")
    server.feed(5)
    assert run.waits_for(5)
    server.process.kill()
    server.process.wait()
    server = bridge("REP", "2.2", "camera", server.address)
    server.feed(7)
    assert run.waits_for(12)
    first, second = run.accounts()
    assert (first.analysed, first.missing, second.analysed, second.missing) == (5, 0, 7, 0)
    assert run.pipeline.source.counts["connected"] == 2
