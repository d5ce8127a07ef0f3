"""The service as operators meet it: real processes, real sockets, signals, and bytes that mean harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamer import config
from streamer.demo import free_ports
from streamer.display import Blind
from streamer.records import Alarm, Frame, SeriesEnd, SeriesStart, Severity, Status
from streamer.sources import Source
from streamer.watch import Watcher
from tests import hostile

BEAMLINE = """\
source      = "dectris2+tcp://127.0.0.1:{detector}"
when_behind = "wait"
grace_s     = 0.5
quarantine  = "quarantine"

[analyse.saxs]
poni = "detector.poni"
mask = "mask.npy"
bins = 200
reference_frames = 4

[alarm.radiation_damage]
watch = "saxs.anomaly"
above = 0.9
sigma = 2
for_frames = 3
clear_below = 0.7

[publish.zeromq]
address = "tcp://127.0.0.1:{results}"

[publish.prometheus]
port = {metrics}

[publish.journal]
path = "journal.jsonl"
"""


BLOCKED = """
import pathlib, threading
from streamer.outputs import Output

class Blocked(Output):
    name = "blocked"

    def write(self, result):
        pathlib.Path("blocked").touch()
        threading.Event().wait()

    def alarm(self, alarm):
        pass
"""


class Bench:
    """A folder with a beamline file, a detector socket, and a service that reads from it."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.python = python
        self.ports = dict(zip(("detector", "results", "metrics"), free_ports(3), strict=True))
        geometry = config.open_source("sim:saxs?detector=128k").geometry  # type: ignore[attr-defined]
        geometry.write(folder / "detector.poni")
        np.save(folder / "mask.npy", geometry.mask)
        (folder / "beamline.toml").write_text(BEAMLINE.format(**self.ports), encoding="utf-8")
        self.context: zmq.Context[Any] = zmq.Context()
        self.detector = self.context.socket(zmq.PUSH)
        self.detector.setsockopt(zmq.LINGER, 0)
        self.detector.setsockopt(zmq.SNDTIMEO, 20_000)
        self.detector.bind(f"tcp://127.0.0.1:{self.ports['detector']}")
        self.services: list[subprocess.Popen[str]] = []
        self.environment = dict(os.environ)

    def start(self) -> subprocess.Popen[str]:
        with (self.folder / "service.log").open("a") as log:
            service = subprocess.Popen(
                [self.python, "-m", "streamer", "run", "beamline.toml", "--json"],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
            )
        self.services.append(service)
        return service

    def messages(self, frames: int, fault: str = "") -> list[bytes]:
        """A start, so many frames, and an end, as a simulated detector sends them."""
        source = config.open_source(f"sim:saxs?detector=128k&mean=3&frames={frames}{fault and '&fault=' + fault}")
        speaks = config.find("wire", "dectris2")()
        return [b"".join(map(bytes, speaks.encode(record))) for record in records(source)]

    def report(self, service: subprocess.Popen[str]) -> dict[str, Any]:
        """What the service says when it is told to stop; it must have ended well."""
        service.send_signal(signal.SIGTERM)
        said, _ = service.communicate(timeout=30)
        assert service.returncode == 0, (self.folder / "service.log").read_text()
        return json.loads(said.splitlines()[-1])

    def close(self) -> None:
        for service in self.services:
            if service.poll() is None:
                service.kill()
            service.wait()
            if service.stdout:
                service.stdout.close()
        self.context.destroy(linger=0)


def records(source: Source) -> Iterator[SeriesStart | list[Frame] | SeriesEnd]:
    """What a source gives, grouped as formats encode it."""
    while True:
        try:
            message = source.receive(1.0)
        except EOFError:
            return
        if message is not None:
            decoded = source.decode(message)
            frames = [record for record in decoded if isinstance(record, Frame)]
            if frames:
                yield frames
            for record in decoded:
                if not isinstance(record, Frame):
                    yield record


def wait_for(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        pause.wait(0.05)


@pytest.fixture
def bench(tmp_path: Path, python: str) -> Iterator[Bench]:
    made = Bench(tmp_path, python)
    yield made
    made.close()


class Seen(Blind):
    """Remembers alarms."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)


@contextmanager
def watching(bench: Bench, view: Blind) -> Iterator[Callable[[Callable[[Status], bool]], Status]]:
    """A function that waits until the service's status fulfils a condition."""
    with Watcher(f"tcp://127.0.0.1:{bench.ports['results']}", view) as watcher:

        def until(condition: Callable[[Status], bool]) -> Status:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                watcher.look(0.1)
                if watcher.status is not None and condition(watcher.status):
                    return watcher.status
            raise AssertionError(f"not seen in time; last status {watcher.status}")

        yield until


def test_every_frame_is_analysed_and_sigterm_ends_with_a_report(bench: Bench) -> None:
    service = bench.start()
    with watching(bench, Seen()) as until:
        for message in bench.messages(40):
            bench.detector.send(message)
        until(lambda status: bool(status.closed))
    report = bench.report(service)
    assert (report["received"], report["analysed"], report["unaccounted"]) == (40, 40, 0)
    (account,) = report["series"]
    assert (account["closed_by"], account["is_announced"], account["missing"]) == ("end", True, 0)


def test_a_killed_service_joins_late_says_so_and_goes_on(bench: Bench) -> None:
    messages = bench.messages(60)
    first = bench.start()
    with watching(bench, Seen()) as until:
        for message in messages[:31]:
            bench.detector.send(message)
        until(lambda status: status.series is not None and status.series.analysed >= 30)
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = bench.start()
        for message in messages[31:]:
            bench.detector.send(message)
        until(lambda status: bool(status.closed) and status.closed[0].joined_late)
    report = bench.report(second)
    (account,) = report["series"]
    assert account["joined_late"]
    assert account["before_join"] >= 30
    assert account["before_join"] + account["analysed"] == account["announced"] == 60
    assert report["unaccounted"] == 0


def test_ten_thousand_mutated_messages_are_all_counted_and_the_good_ones_arrive(bench: Bench) -> None:
    """First mutations of a whole other series; then, between the frames of a good one, of another one's frames alone:
    a mutation that is still a valid start rightly ends whatever series is open.
    """
    good, other = bench.messages(50), bench.messages(3)
    before = hostile.mutations(seed=1, n=3_000, messages=[[message] for message in other])
    between = iter(hostile.mutations(seed=2, n=7_000, messages=[[message] for message in other[1:-1]]))
    sent = 0

    def send(parts: Sequence[Any]) -> None:
        nonlocal sent
        bench.detector.send_multipart([bytes(part) for part in parts])
        sent += len(parts)  # in this format every part is a message

    service = bench.start()
    with watching(bench, Seen()) as until:
        for parts in before:
            send(parts)
        until(lambda status: status.wire.messages == sent)
        for place, message in enumerate(good):
            send([message])
            for parts in islice(between, 0 if place == len(good) - 1 else 7_000 // (len(good) - 1) + 1):
                send(parts)
        status = until(lambda status: status.wire.messages == sent)
        named = status.wire.control + status.wire.accepted + status.wire.duplicate + status.wire.late
        named += status.wire.stale + status.wire.unannounced + sum(status.wire.malformed.values())
        assert named == sent >= 10_000 + len(good)
    report = bench.report(service)
    assert report["unaccounted"] == 0
    key, _ = config.find("wire", "dectris2")().identify([good[1]])
    (series,) = [account for account in report["series"] if account["series"] == [key.number, key.unique]]
    assert (series["announced"], series["analysed"], series["closed_by"]) == (50, 50, "end")
    assert len(list((bench.folder / "quarantine").iterdir())) <= 300


def test_a_second_sigterm_ends_at_once(bench: Bench) -> None:
    """The first one waits for the drain, which a rule for an output that waits forever keeps from ending."""
    file = bench.folder / "beamline.toml"
    file.write_text(file.read_text().replace("grace_s     = 0.5", "grace_s     = 0.5\ndrain_s = 3600"))
    blocked = bench.folder / "plugin" / "streamer_blocked.py"
    blocked.parent.mkdir()
    blocked.write_text(BLOCKED)
    metadata = blocked.parent / "streamer_blocked-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: streamer-blocked\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[streamer.outputs]\nblocked = streamer_blocked:Blocked\n")
    file.write_text(file.read_text() + "\n[publish.blocked]\n")
    bench.environment["PYTHONPATH"] = str(blocked.parent)
    service = bench.start()
    with watching(bench, Seen()) as until:
        until(lambda status: status.is_ready)
        for message in bench.messages(5):
            bench.detector.send(message)
        wait_for(lambda: (bench.folder / "blocked").exists())
        service.send_signal(signal.SIGTERM)
        wait_for(lambda: "asked to stop" in (bench.folder / "service.log").read_text())
        assert service.poll() is None
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=10) == 128 + signal.SIGTERM


def test_the_journal_and_the_late_joiner_know_the_alarm(bench: Bench) -> None:
    service = bench.start()
    early, late = Seen(), Seen()
    with watching(bench, early) as until:
        for message in bench.messages(40, "radiation_damage@5"):
            bench.detector.send(message)
        until(lambda status: bool(status.closed))
    with watching(bench, late) as until:
        until(lambda status: bool(late.alarms))
    report = bench.report(service)
    assert "radiation_damage" in {alarm["name"] for alarm in report["alarms"]}
    assert {alarm.name for alarm in late.alarms if alarm.severity is Severity.MAJOR} >= {"radiation_damage"}
    journal = (bench.folder / "journal.jsonl").read_text().splitlines()
    assert any("radiation_damage" in line for line in journal)
