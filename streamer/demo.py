"""One evening in a minute: a simulated detector, the service that analyses it, and the view of both.

Three processes, as at a beamline: `streamer simulate` pushes DECTRIS stream v2 messages on a loopback socket, `streamer
run` analyses them with a beamline file, and this process watches the results the service publishes. The service is
supervised: kill it (SIGKILL) in the middle of the series and it is started again, joins late, and says so in the
ledger.

Everything the demonstration writes lies in one folder: the beamline file, the geometry, the mask and the logs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamer import config
from streamer.outputs import Output
from streamer.records import SourceLost
from streamer.watch import Watcher

READY_S = 180.0  # the first start on a machine compiles the kernels
PATIENCE_S = 30.0  # for the simulator to end and the service to flush

BEAMLINE = """\
# A beamline file: where frames come from, what is asked of them, when to raise an alarm, where results go.
source      = "dectris2+tcp://127.0.0.1:{detector_port}"
when_behind = "skip"                    # or "wait": push back on the detector
quarantine  = "quarantine"

[analyse.saxs]
poni = "detector.poni"                  # pyFAI geometry
mask = "mask.npy"
bins = 1000
reference_frames = 20                   # the first frames show the sample in order

[alarm.radiation_damage]
watch       = "saxs.novelty"            # -log10 p: one in 10^novelty frames in order is as strange ...
above       = 3
for_frames  = 5                         # ... five in a row are none of them
clear_below = 1
severity    = "MAJOR"
text        = "The sample is no longer what it was: move to a fresh spot."

[publish.zeromq]
address = "tcp://127.0.0.1:{results_port}"

[publish.prometheus]
port = {metrics_port}

[publish.journal]
path = "journal.jsonl"
"""


@dataclass
class Demo:
    """What the demonstration is made of.

    seconds: how long the detector sends. rate: frames per second. detector: a size that `sim:saxs` knows.
    folder: where its files are written. on_note: told, in a sentence, what happens outside the stream.
    """

    folder: Path
    seconds: float = 60.0
    rate: float = 20.0
    detector: str = "1M"
    on_note: Callable[[str], None] = lambda _: None
    _children: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, view: Output) -> dict[str, Any]:
        """Start everything, show it on `view` until the detector has sent all, and return the account of it.

        Raises SourceLost when the service does not come up.
        """
        ports = dict(zip(("detector_port", "results_port", "metrics_port"), free_ports(3), strict=True))
        url = self._write_files(ports)
        try:
            service = self._start("run", "beamline.toml", "--json", log="service.log")
            self.on_note(f"the service is process {service.pid}: kill -9 it and see")
            watcher = Watcher(f"tcp://127.0.0.1:{ports['results_port']}", view)
            with watcher:
                self._wait_until_ready(watcher, service)
                simulator = self._start("simulate", url, "--to", self._detector(ports), "--json", log="simulator.log")
                service = self._supervise(watcher, view, service, simulator)
                sent = json.loads(_last_line(simulator))
                self._let_it_finish(watcher, int(sent["frames"]))
            service.send_signal(signal.SIGTERM)
            told = json.loads(_last_line(service))
        finally:
            self._end_children()
        return summary(sent, told, self.seconds)

    def _detector(self, ports: Mapping[str, int]) -> str:
        return f"dectris2+tcp://127.0.0.1:{ports['detector_port']}"

    def _write_files(self, ports: Mapping[str, int]) -> str:
        frames = max(1, round(self.seconds * self.rate))
        fault = max(10, frames // 2)
        url = f"sim:saxs?detector={self.detector}&frames={frames}&rate={self.rate:g}&fault=radiation_damage@{fault}"
        source = config.open_source(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        source.geometry.write(self.folder / "detector.poni")  # type: ignore[attr-defined]
        np.save(self.folder / "mask.npy", source.geometry.mask)  # type: ignore[attr-defined]
        source.close()
        (self.folder / "beamline.toml").write_text(BEAMLINE.format(**ports), encoding="utf-8")
        return url

    def _start(self, *words: str, log: str) -> subprocess.Popen[str]:
        with (self.folder / log).open("a", encoding="utf-8") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "streamer", *words],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def _wait_until_ready(self, watcher: Watcher, service: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + READY_S
        while not (watcher.status and watcher.status.is_ready):
            watcher.look(0.2)
            if service.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "service.log").read_text(encoding="utf-8")[-2000:]
                raise SourceLost(f"demo: the service did not come up; {self.folder / 'service.log'} ends with:\n{said}")

    def _supervise(
        self, watcher: Watcher, view: Output, service: subprocess.Popen[str], simulator: subprocess.Popen[str]
    ) -> subprocess.Popen[str]:
        deadline = time.monotonic() + self.seconds + PATIENCE_S
        while simulator.poll() is None and time.monotonic() < deadline:
            watcher.look(0.2)
            view.refresh()
            if service.poll() is not None:
                self.on_note(f"the service ended with {service.returncode}; starting it again, as a supervisor would")
                service = self._start("run", "beamline.toml", "--json", log="service.log")
                self.on_note(f"the service is process {service.pid} now")
        return service

    def _let_it_finish(self, watcher: Watcher, frames: int) -> None:
        """Wait until the service has closed the series, or has plainly nothing more to do."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            watcher.look(0.2)
            status = watcher.status
            if status and any(account.announced >= frames and not account.pending for account in status.closed):
                return

    def _end_children(self) -> None:
        for child in self._children:
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout:
                child.stdout.close()


def _last_line(child: subprocess.Popen[str]) -> str:
    """The last line a child printed before it ended; waits for the end."""
    printed, _ = child.communicate(timeout=PATIENCE_S)
    lines = printed.strip().splitlines()
    if not lines:
        raise SourceLost(f"demo: a process ended with {child.returncode} and no report; look at the logs in its folder")
    return lines[-1]


def summary(sent: Mapping[str, Any], told: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The demonstration in one object. unaccounted: frames sent that the last service cannot name."""
    named = ("analysed", "before_join", "missing", "malformed", "dropped", "late")
    return {
        "sent": sent["frames"],
        "received": told["received"],
        **{name: told[name] for name in named},
        "unaccounted": sent["frames"] - sum(told[name] for name in named),
        "alarms": told["alarms"],
        "latency_ms": told["latency_ms"],
        "fps": round(told["analysed"] / seconds, 2),
        "series": told["series"],
    }


def free_ports(count: int) -> list[int]:
    """TCP ports nobody listens on at the moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
