"""A detector in a process of its own: encoded messages on a PUSH socket, from memory, at a rate or as fast as they go.

    python tools/benches/sender.py FOLDER PORT SECONDS RATE

FOLDER holds what `write` put there. The clock starts with the first image that found its way; RATE 0 is "as fast as
they go". The number of images sent is printed once the last one is in ZeroMQ's hands. It knows nothing of streamer: it
shares the cores with what is measured, so it does as little as a sender can.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.doctor.rehearsal import Series

HIGH_WATER_MARK = 8
COPIES = 64
"""Buffers whose numbers are written over in turn; ZeroMQ holds at most HIGH_WATER_MARK and one that is on its way."""


def send(folder: Path, port: int, seconds: float, rate: float) -> int:
    """Send the series and return the number of its images."""
    places: list[int] = json.loads((folder / "places.json").read_text())
    templates = [(folder / f"image-{i}").read_bytes() for i in range(len(places))]
    copies = [bytearray(templates[i % len(templates)]) for i in range(COPIES // len(templates) * len(templates))]
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.set_hwm(HIGH_WATER_MARK)
        socket.bind(f"tcp://127.0.0.1:{port}")
        socket.send((folder / "start").read_bytes())
        began = None
        for number in itertools.count():
            place, copy = places[number % len(places)], copies[number % len(copies)]
            copy[place : place + 4] = number.to_bytes(4, "big")
            if began is not None:
                if time.monotonic() > began + seconds:
                    break
                _sleep_until(began + number / rate if rate else 0.0)
            socket.send(copy, copy=False)
            began = began or time.monotonic()
        socket.send((folder / "end").read_bytes())
    return number


def _sleep_until(moment: float) -> None:
    left = moment - time.monotonic()
    if left > 0:
        time.sleep(left)


def write(series: Series, folder: Path) -> Path:
    """Put the messages of a series where the sender finds them; they stay as they are if they are there."""
    if not (folder / "places.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "start").write_bytes(series.opening)
        (folder / "end").write_bytes(series.closing)
        for i, template in enumerate(series.templates):
            (folder / f"image-{i}").write_bytes(template)
        (folder / "places.json").write_text(json.dumps(series.places))
    return folder


@contextmanager
def running(folder: Path, port: int, seconds: float, rate: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """The sender as a process. Its standard output says, at its end, how many images it sent."""
    command: list[Any] = [sys.executable, __file__, folder, port, seconds, rate]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    print(send(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])), flush=True)
