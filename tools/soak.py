"""How much memory the service takes on a long stream, and how soon it gives its first result.

    python tools/soak.py --detector 4M --seconds 120 --rate 1000

Starts `streamer run` on a beamline file of its own and `streamer simulate` on a loopback socket, samples the service's
resident set once a second from /proc, and prints one JSON object: the rate held, the largest resident set, its slope
over the second half of the run, the seconds from starting the process to the first result, and the account of every
frame.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from streamer import config
from streamer.demo import free_ports
from streamer.display import Blind
from streamer.records import Result
from streamer.watch import Watcher

BEAMLINE = """\
source = "dectris2+tcp://127.0.0.1:{detector}"
[analyse.saxs]
poni = "detector.poni"
mask = "mask.npy"
[publish.zeromq]
address = "tcp://127.0.0.1:{results}"
"""


class FirstResult(Blind):
    """Notes when the first result comes."""

    def __init__(self) -> None:
        self.at: float | None = None

    def write(self, result: Result) -> None:
        self.at = self.at or time.monotonic()


def soak(folder: Path, detector: str, seconds: float, rate: float) -> dict[str, Any]:
    """Run both processes and measure the service."""
    ports = dict(zip(("detector", "results"), free_ports(2), strict=True))
    frames = int(seconds * rate)
    source = config.open_source(f"sim:saxs?detector={detector}&frames={frames}&rate={rate:g}")
    source.geometry.write(folder / "detector.poni")
    np.save(folder / "mask.npy", source.geometry.mask)
    (folder / "beamline.toml").write_text(BEAMLINE.format(**ports), encoding="utf-8")
    streamer = [sys.executable, "-m", "streamer"]
    simulator = subprocess.Popen(
        [*streamer, "simulate", source.url, "--to", f"dectris2+tcp://127.0.0.1:{ports['detector']}", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    began = time.monotonic()
    with (folder / "service.log").open("w") as log:
        service = subprocess.Popen(
            [*streamer, "run", "beamline.toml", "--json"], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
    view = FirstResult()
    samples: list[tuple[float, float]] = []
    with Watcher(f"tcp://127.0.0.1:{ports['results']}", view) as watcher:
        while simulator.poll() is None and service.poll() is None and time.monotonic() - began < seconds + 120:
            watcher.look(1.0)
            if view.at is not None:
                samples.append((time.monotonic() - began, resident_MB(service.pid)))
        watcher.look(3.0)
    service.send_signal(signal.SIGTERM)
    report = json.loads(service.communicate(timeout=60)[0].splitlines()[-1])
    simulator.kill()
    sent = simulator.communicate()[0].splitlines()
    if not samples:
        raise SystemExit(f"no result came within {seconds + 120:.0f} s; service and simulator ran in {folder}")
    half = np.array(samples[len(samples) // 2 :])
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0] * 60) if len(half) > 2 else float("nan")
    return {
        "detector": detector,
        "sent": json.loads(sent[-1])["frames"] if sent else None,
        "analysed": report["analysed"],
        "unaccounted": report["unaccounted"],
        "fps": round(report["analysed"] / max(1e-9, samples[-1][0] - (view.at or began) + began), 1),
        "resident_MB_max": round(max(resident for _, resident in samples), 1),
        "resident_MB_first": round(samples[0][1], 1),
        "resident_MB_last": round(samples[-1][1], 1),
        "slope_MB_per_minute": round(slope, 2),
        "first_result_s": round((view.at or float("nan")) - began, 2),
        "latency_ms": report["latency_ms"],
    }


def resident_MB(pid: int) -> float:
    """The resident set of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", default="4M")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the detector sends at the rate asked for")
    parser.add_argument("--rate", type=float, default=1000.0, help="frames per second asked of the simulator")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamer-soak-") as folder:
        print(json.dumps(soak(Path(folder), given.detector, given.seconds, given.rate)))


if __name__ == "__main__":
    main()
