"""Live runs against psi-bsread, which was not written here: `Sender` in every compression and byte order, and `Source`.

Its pulses hold two cameras of different size and type, scalars, a text and a vector; every pixel is a function of its
pulse, row and column. What the sender does: the data header comes with every pulse, a channel without a value is two
empty parts, the length before lz4 is little-endian whatever the image is in, and it waits where PUSH has no reader.
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
import zmq
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.config import open_source
from streamer.decide import Decider
from streamer.pipeline import Limits, Pipeline
from streamer.records import Account, BadFrame, Frame, Reduced, Result, SeriesKey
from streamer.wire.bsread import Bsread

pytestmark = pytest.mark.peers

SENDER = Path(__file__).parent.parent / "peers" / "bsread_sender.py"
READER = Path(__file__).parent.parent / "peers" / "bsread_reader.py"
FIRST = 20_000_000_000
LARGE, SMALL = "SAR-CAM1:FPICTURE", "SAR-CAM2:FPICTURE"
CAMERAS: dict[str, tuple[type[np.generic], tuple[int, int]]] = {
    LARGE: (np.uint16, (48, 64)),
    SMALL: (np.float32, (7, 5)),
}
DEADLINE_S = 60.0


class Sender:
    """A sender in a process of its own, told pulse by pulse."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.address = f"tcp://127.0.0.1:{port}"
        assert self._line() == "ready"

    def send(self, pulses: int) -> list[int]:
        """Their ids, once all of them are on their way."""
        self._say(str(pulses))
        sent: list[int] = json.loads(self._line())
        return sent

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
        assert line, "the sender is gone"
        return line


Start = Callable[..., Sender]


@pytest.fixture
def sender(peers_python: Path, tmp_path: Path, free_port: int) -> Iterator[Start]:
    """Starts a sender: mode, compression, byte order, and how many pulses the small camera takes for an image."""
    processes: list[subprocess.Popen[str]] = []
    with (tmp_path / "bsread.log").open("w") as log:

        def start(mode: str, packing: str = "none", order: str = "little", every: int = 1) -> Sender:
            command = [str(peers_python), str(SENDER), str(free_port), mode, packing, order, str(every)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            processes.append(process)
            return Sender(process, free_port)

        yield start
        for process in processes:
            process.kill()
            process.communicate()


def expected(pulse: int, channel: str) -> NDArray[Any]:
    """What the sender sends: see its script."""
    dtype, shape = CAMERAS[channel]
    y, x = np.indices(shape)
    return ((pulse * 7 + y * 3 + x) % 65521).astype(dtype)


def values(pulse: int) -> dict[str, Any]:
    """What it sends beside the cameras."""
    return {
        "SAR-PULSE": pulse,
        "SAR-ENERGY": pulse * 0.5,
        "SAR-SHUTTER": pulse % 2 == 0,
        "SAR-COMMENT": f"pulse {pulse}",
        "SAR-WAVE": list(range(pulse, pulse + 30)),
    }


class Pixels(Analysis):
    """Compares every pixel and value with what was sent, and keeps whose images agree."""

    name = "pixels"

    def __init__(self) -> None:
        self.equal: Counter[str] = Counter()  # by channel
        self.pulses: set[int] = set()
        self.different: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    def accepts(self, frame: Frame) -> bool:
        return True

    def reduce(self, frame: Frame) -> Reduced:
        judge = expected(frame.number, frame.channel)
        is_equal = frame.image.dtype == judge.dtype and np.array_equal(frame.image, judge)
        seconds, nanoseconds = frame.extra["timestamp"]
        with self._lock:
            if not is_equal or frame.extra["values"] != values(frame.number):
                self.different.append((frame.number, frame.channel))
                raise BadFrame("pixels", "not what was sent")
            assert frame.extra["global_timestamp"] == {"sec": seconds, "ns": nanoseconds}
            self.equal[frame.channel] += 1
            self.pulses.add(frame.number)
        return Reduced(frame.series, frame.number, {}, channel=frame.channel)

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        return Result(self.name, reduced.series, reduced.number, {}, channel=reduced.channel)


class Run:
    """A pipeline that reads a sender; its accounts when it is over."""

    def __init__(self, sender: Sender, options: str = "") -> None:
        self.pixels = Pixels()
        url = f"bsread+{sender.address}{options}"
        self.pipeline = Pipeline(open_source(url), [self.pixels], Decider([]), [], limits=Limits(when_behind="wait"))
        self.pipeline.start()

    @property
    def analysed(self) -> int:
        return sum(account.analysed for account in self.pipeline.ledger.accounts())

    def waits_for(self, pulses: int, within_s: float = DEADLINE_S) -> bool:
        """Whether so many pulses were analysed in time."""
        deadline, pause = time.monotonic() + within_s, threading.Event()
        while self.analysed < pulses and time.monotonic() < deadline:
            pause.wait(0.005)
        return self.analysed >= pulses

    def accounts(self) -> list[Account]:
        """Of all series, after the stream was stopped."""
        self.pipeline.stop()
        status = self.pipeline.join()
        assert status.wire.malformed == {}
        assert self.pixels.different == []
        assert all(account.unaccounted == account.pending == 0 for account in status.closed)
        return list(status.closed)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("packing", ["none", "lz4", "bitshuffle_lz4"])
def test_every_pulse_is_analysed_with_every_pixel_of_every_camera(sender: Start, packing: str, order: str) -> None:
    """Two runs, the second one with the pulse ids of the first."""
    machine = sender("push", packing, order)
    run = Run(machine)
    sent = [machine.send(60)]
    assert run.waits_for(60)
    machine.begin_again()
    sent.append(machine.send(15))
    assert run.waits_for(75)
    first, second = run.accounts()
    assert sent == [list(range(FIRST, FIRST + 60)), list(range(FIRST, FIRST + 15))]
    assert (first.analysed, first.missing, first.announced) == (60, 0, 60)
    assert (second.analysed, second.missing, second.announced) == (15, 0, 15)
    assert run.pixels.equal == {LARGE: 75, SMALL: 75}


@pytest.mark.parametrize("packing", ["none", "bitshuffle_lz4"])
def test_pulses_that_a_publishing_sender_threw_away_are_missing_by_number(sender: Start, packing: str) -> None:
    machine = sender("pub", packing)
    run = Run(machine, "?socket=sub&high_water_mark=1")
    sent: list[int] = []
    while not run.analysed:  # until the sender knows of its reader, what it publishes goes nowhere
        sent += machine.send(1)
        run.waits_for(1, within_s=0.2)
    sent += machine.send(3000)
    while sent[-1] not in run.pixels.pulses:  # a gap shows when a number behind it comes
        sent += machine.send(1)
        run.waits_for(run.analysed + 1, within_s=0.2)
    (account,) = run.accounts()
    came = run.pixels.pulses
    assert sent == list(range(FIRST, sent[-1] + 1))
    assert (account.analysed, account.missing) == (len(came), len(set(range(min(came), max(came))) - came))
    assert len(sent) == (min(came) - FIRST) + account.analysed + account.missing
    assert run.pixels.equal == {LARGE: account.analysed, SMALL: account.analysed}


def test_a_camera_at_a_quarter_of_the_machines_rate_misses_nothing(sender: Start) -> None:
    """100 Hz of pulses, 25 Hz of images: three pulses of four have no value in the camera's channel."""
    machine = sender("push", "bitshuffle_lz4", every=4)
    run = Run(machine, f"?channel={SMALL}&step=4")
    sent = machine.send(101)
    assert run.waits_for(26)
    (account,) = run.accounts()
    assert (account.analysed, account.missing, account.announced) == (26, 0, 26)
    assert run.pixels.pulses == set(sent[::4])
    assert run.pixels.equal == {SMALL: 26}


def test_a_camera_without_an_image_in_most_pulses_misses_them_where_no_step_was_given(sender: Start) -> None:
    machine = sender("push", every=4)
    run = Run(machine, f"?channel={SMALL}")
    machine.send(41)
    assert run.waits_for(11)
    (account,) = run.accounts()
    assert (account.analysed, account.missing, account.announced) == (11, 30, 41)


@pytest.mark.parametrize("packing", ["none", "lz4", "bitshuffle_lz4"])
def test_what_streamer_sends_is_read_by_others(peers_python: Path, packing: Any) -> None:
    wire = Bsread(compression=packing)
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger, socket.sndtimeo = 0, int(1000 * DEADLINE_S)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        command = [str(peers_python), str(READER), str(port), "5"]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            for pulse in range(FIRST, FIRST + 5):
                extra = {
                    "global_timestamp": {"sec": 5, "ns": pulse - FIRST},
                    "timestamp": [5, pulse - FIRST],
                    "values": {"COUNT": pulse, "WAVE": [0.5, None], "TEXT": "µm", "OPEN": True},
                }
                channels = [Frame(expected(pulse, name), SeriesKey(0), pulse, name, extra=extra) for name in CAMERAS]
                socket.send_multipart(wire.encode(channels))
            output, _ = reader.communicate(timeout=DEADLINE_S)
        finally:
            reader.kill()
            reader.wait()
    read = [json.loads(line) for line in output.splitlines()]
    assert [message["pulse_id"] for message in read] == list(range(FIRST, FIRST + 5))
    for message in read:
        pulse, found = message["pulse_id"], message["values"]
        assert message["global_timestamp"] == found[LARGE]["timestamp"] == [5, pulse - FIRST]
        for name, (dtype, _) in CAMERAS.items():
            assert found[name]["value"] == expected(pulse, name).tolist()
            assert found[name]["dtype"] == np.dtype(dtype).name
        assert [found[name]["value"] for name in ("COUNT", "TEXT", "OPEN")] == [pulse, "µm", True]
        assert str(found["WAVE"]["value"]) == "[0.5, nan]"
