"""A detector that keeps a log: a process that sends what it is told and writes down every message, before and after.

    python -m tests.faults.sender LOG_FOLDER HOP FORMAT+tcp://HOST:PORT…   (options after "?": see `Outlet`)

Commands are JSON lines on standard input; each is answered with one line when it is done. Pixel [0, 0] of an image is
the number of its arming, [0, 1] its frame number, the rest is noise: so that a reader can tell what it was sent,
whatever the wire made of series ids, and compression makes nothing smaller. `Sender` is the handle for tests.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import zmq

from streamer import config
from streamer.records import Frame, SeriesEnd, SeriesKey, SeriesStart
from tests.faults.log import Log, digest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
DONE = b"done\n"


class Sender:
    """The process, and what it is to do. Every call waits until it is done."""

    def __init__(self, folder: Path, hop: str, *destinations: str, shape: tuple[int, int] = (64, 64)) -> None:
        self.hop = hop
        self._shape = shape
        self._stderr = folder / f"{hop}.err"
        self._errors = self._stderr.open("x")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sender", str(folder / "hops"), hop, *destinations],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder,
        )

    def start(self, arming: int, series: SeriesKey, images: int | None, **options: Any) -> None:
        """Announce a series. socket=1 sends over the second destination."""
        self._tell(do="start", arming=arming, series=[series.number, series.unique], images=images, **options)

    def images(self, arming: int, series: SeriesKey, numbers: Iterable[int], **options: Any) -> None:
        """Send frames. is_damaged=True makes them larger than announced, so that they cannot be used."""
        key = [series.number, series.unique]
        self._tell(do="images", arming=arming, series=key, numbers=list(numbers), **options)

    def end(self, arming: int, series: SeriesKey, **options: Any) -> None:
        """Say that a series is over."""
        self._tell(do="end", arming=arming, series=[series.number, series.unique], **options)

    def wait_for_readers(self, count: int = 1, socket: int = 0) -> None:
        """Until so many readers connected (pushing socket), or somebody subscribed (publishing one)."""
        self._tell(do="wait_for_readers", count=count, socket=socket)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it send what it still holds, and end."""
        self._tell(do="stop")
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Whatever became of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            assert pipe is not None
            pipe.close()

    def _tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        command.setdefault("shape", self._shape)
        os.write(self.process.stdin.fileno(), json.dumps(command).encode() + b"\n")
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert ready, f"{self.hop} did not do in time what it was told\n{self._stderr.read_text()}"
        answer = os.read(self.process.stdout.fileno(), 64)
        assert answer == DONE, f"{self.hop} is gone\n{self._stderr.read_text()}"


class Outlet:
    """A socket for FORMAT+tcp://HOST:PORT. Options: socket=push|pub, bind=yes|no, hwm, sndbuf; others: the format."""

    def __init__(self, context: zmq.Context[Any], url: str) -> None:
        base, _, query = url.partition("?")
        options = dict(parse_qsl(query))
        kind = {"push": zmq.PUSH, "pub": zmq.XPUB}[options.pop("socket", "push")]
        binds = options.pop("bind", "yes") == "yes"
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.SNDHWM, int(options.pop("hwm", "1000")))
        self.socket.setsockopt(zmq.LINGER, 5000)
        if "sndbuf" in options:
            self.socket.setsockopt(zmq.SNDBUF, int(options.pop("sndbuf")))
        rest = "&".join(f"{name}={value}" for name, value in options.items())
        self.format, address = config.destination(f"{base}?{rest}" if rest else base)
        self._monitor = self.socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
        self._readers = 0
        (self.socket.bind if binds else self.socket.connect)(address)

    def wait_for_readers(self, count: int) -> None:
        if self.socket.socket_type == zmq.XPUB:
            self.socket.recv()
            return
        while self._readers < count:
            self._monitor.recv_multipart()
            self._readers += 1

    def close(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()


class Detector:
    """What runs in the process."""

    def __init__(self, log: Log, outlets: Sequence[Outlet]) -> None:
        self._log = log
        self._outlets = outlets

    def obey(self, command: dict[str, Any]) -> None:
        outlet = self._outlets[command.get("socket", 0)]
        if command["do"] == "wait_for_readers":
            outlet.wait_for_readers(command["count"])
        if command["do"] not in ("start", "images", "end"):
            return
        key, arming = SeriesKey(*command["series"]), command["arming"]
        rows, columns = command["shape"]
        shared = {"arming": arming, "series": command["series"]}
        match command["do"]:
            case "start":
                start = SeriesStart(
                    key,
                    images=command["images"],
                    shape=(rows, columns),
                    dtype=np.dtype(np.uint32),
                    channels=("threshold_1",),
                )
                self._send(outlet, start, {"kind": "start", "images": command["images"], **shared})
            case "end":
                self._send(outlet, SeriesEnd(key), {"kind": "end", **shared})
            case "images":
                is_damaged = command.get("is_damaged", False)
                for number in command["numbers"]:
                    image = picture(arming, number, (2 * rows if is_damaged else rows, columns))
                    frame = Frame(image, key, number, "threshold_1")
                    named = {"kind": "image", "number": number, "is_damaged": is_damaged, **shared}
                    named["is_counted"] = outlet.format.is_counted
                    self._send(outlet, [frame], named)

    def _send(self, outlet: Outlet, record: Any, named: dict[str, Any]) -> None:
        parts = outlet.format.encode(record)
        if not parts:  # a format that knows no starts and ends
            return
        named["message"] = digest(parts)
        self._log.write("sending", **named)
        outlet.socket.send_multipart(parts)
        self._log.write("sent", **named)


def picture(arming: int, number: int, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Noise that says of which arming and number it is."""
    image = np.random.default_rng([arming, number]).integers(0, 2**31, shape, dtype=np.uint32)
    image[0, :2] = arming, number
    return image


def main(folder: str, hop: str, *destinations: str) -> None:
    log = Log(Path(folder), hop)
    context: zmq.Context[Any] = zmq.Context()
    outlets = [Outlet(context, destination) for destination in destinations]
    detector = Detector(log, outlets)
    for text in sys.stdin:
        command = json.loads(text)
        if command["do"] == "stop":
            break
        detector.obey(command)
        sys.stdout.write(DONE.decode())
        sys.stdout.flush()
    for outlet in outlets:
        outlet.close()
    context.term()
    log.write("stopped")
    sys.stdout.write(DONE.decode())
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
