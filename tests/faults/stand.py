"""A test stand: logging senders, links that fail, and real services, with a log of every hop in one folder.

    sender ─► link ─► streamer run ─► subscriber

Every link leads to exactly one consumer and every consumer publishes on an address of its own, so that the logs of one
never get into another's. A link opens when the consumer's first status was heard: from then on no result is missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import zmq

from streamer import config
from streamer.demo import free_ports
from streamer.records import Alarm, BadFrame, Result, SeriesKey, Status
from streamer.wire import results
from tests.faults import checker
from tests.faults.log import Log, read
from tests.faults.proxy import FaultProxy
from tests.faults.sender import ROOT, Sender

T = TypeVar("T")

PATIENCE_S = 30.0

BEAMLINE = """\
source      = "{source}"
{settings}
[analyse.whose]
{analysis}
[publish.zeromq]
address = "tcp://127.0.0.1:{results}"
high_water_mark = 100000
"""

USUAL = {"when_behind": '"wait"', "grace_s": 30.0, "stall_s": 30.0}
"""Nothing is given up and nothing closes by time, unless the test is about that."""


class Consumer:
    """A service, the links that lead to it, and what it was heard to say."""

    def __init__(self, folder: Path, hop: str, source: str, analysis: str = "", **settings: Any) -> None:
        self.hop = hop
        self.statuses: list[Status] = []
        self.alarms: list[Alarm] = []
        self.published = 0
        self.log = Log(folder / "hops", hop)
        self.stderr = folder / f"{hop}.err"
        (results_port,) = free_ports(1)
        lines = "".join(f"{name} = {value}\n" for name, value in {**USUAL, **settings}.items())
        text = BEAMLINE.format(source=source, settings=lines, analysis=analysis, results=results_port)
        file = folder / f"{hop}.toml"
        file.write_text(text, encoding="utf-8")
        self._news = threading.Condition()
        self._closed_heard: Counter[tuple[int, str, str]] = Counter()
        self._leaving = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()
        self._subscriber = self._context.socket(zmq.SUB)
        self._subscriber.setsockopt(zmq.RCVHWM, 0)
        self._subscriber.setsockopt(zmq.LINGER, 0)
        self._subscriber.setsockopt(zmq.RECONNECT_IVL, 20)
        self._subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        self._subscriber.connect(f"tcp://127.0.0.1:{results_port}")
        self._listener = threading.Thread(target=self._listen, name=f"listen to {hop}", daemon=True)
        self._listener.start()
        with self.stderr.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer", "run", file.name, "--json"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder / 'plugin'}"},
            )

    def until(self, condition: Callable[[Status], bool], deadline_s: float = PATIENCE_S) -> Status:
        """Wait until the last status fulfils a condition, and return it."""
        with self._news:
            is_true = self._news.wait_for(lambda: bool(self.statuses) and condition(self.statuses[-1]), deadline_s)
            last = self.statuses[-1:]
        assert is_true, f"{self.hop}: last status {last}\n{self.stderr.read_text()}"
        return last[0]

    def until_published(self, count: int) -> None:
        """Wait until the subscriber has so many results."""
        with self._news:
            is_true = self._news.wait_for(lambda: self.published >= count, PATIENCE_S)
        assert is_true, f"{self.hop}: {self.published} results of {count}\n{self.stderr.read_text()}"

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._hear_out()
        self.log.write("killed")

    def stop(self) -> dict[str, Any]:
        """SIGTERM; what the service reports at its end. It must have ended well."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, self.stderr.read_text()
        self._hear_out()
        report: dict[str, Any] = json.loads(said.splitlines()[-1])
        for account in report["series"]:
            self.log.write("account", **account)
        totals = {name: count for name, count in report.items() if isinstance(count, int)}
        self.log.write("totals", **totals)
        self.log.write("wire", **report["wire"])
        return report

    def close(self) -> None:
        """Whatever became of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._leaving.set()
        self._listener.join()
        self._context.destroy(linger=0)
        self.log.close()

    def _hear_out(self) -> None:
        """The process is gone: read what it published before that."""
        self._leaving.set()
        self._listener.join()

    def _listen(self) -> None:
        while not (self._leaving.is_set() and not self._subscriber.poll(200)):
            if self._subscriber.poll(100):
                self._hear(self._subscriber.recv_multipart())

    def _hear(self, parts: list[bytes]) -> None:
        try:
            record = results.decode(parts)
        except BadFrame as bad:  # the service speaks our own format: a test must not overlook that
            self.log.write("misunderstood", text=str(bad))
            return
        with self._news:
            match record:
                case Result():
                    self.published += 1
                    self.log.write(
                        "analysed",
                        arming=int(record["arming"].value),
                        says_number=int(record["number"].value),
                        series=[record.series.number, record.series.unique],
                        number=record.number,
                    )
                case Status():
                    self._note_closed(record)
                    self.statuses.append(record)
                case Alarm():
                    self.alarms.append(record)
            self._news.notify_all()

    def _note_closed(self, status: Status) -> None:
        closed = Counter((one.series.number, one.series.unique, one.closed_by) for one in status.closed)
        for number, unique, by in (closed - self._closed_heard).elements():
            self.log.write("closed", series=[number, unique], by=by)
        self._closed_heard |= closed


class Relay:
    """`streamer relay`, one pushing destination for each reader. ports: reader → where its destination is bound."""

    def __init__(self, folder: Path, hop: str, source: str, readers: Sequence[str], options: str) -> None:
        self.ports = dict(zip(readers, free_ports(len(readers)), strict=True))
        self.log = Log(folder / "hops", hop)
        self.stderr = folder / f"{hop}.err"
        to = [word for port in self.ports.values() for word in ("--to", f"tcp://127.0.0.1:{port}{options}")]
        with self.stderr.open("x") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer", "relay", source, *to, "--json"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def stop(self) -> dict[str, Any]:
        """SIGTERM, and the account of every destination."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, self.stderr.read_text()
        told: dict[str, Any] = json.loads(said.splitlines()[-1])
        destinations = [{"to": to, **one} for to, one in zip(self.ports, told["destinations"], strict=True)]
        self.log.write("relayed", messages=told["messages"], destinations=destinations)
        return told

    def close(self) -> None:
        """Whatever became of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class Stand:
    """A folder, and everything that runs in it."""

    def __init__(self, folder: Path, format: str = "dectris2") -> None:  # noqa: A002
        self.folder = folder
        self.format = format
        self.hops = folder / "hops"
        self.is_counted: bool = config.find("wire", format).is_counted
        self._things: list[Any] = []
        plugin = folder / "plugin" / "streamer_whose-1.0.dist-info"
        plugin.mkdir(parents=True)
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: streamer-whose\nVersion: 1.0\n")
        (plugin / "entry_points.txt").write_text("[streamer.analyses]\nwhose = tests.faults.whose:Whose\n")

    def sender(self, hop: str, *ports: int, options: str = "", **more: Any) -> Sender:
        """A detector at these ports: one socket for each. options: of every `Outlet`."""
        urls = [f"{self.format}+tcp://127.0.0.1:{port}?compression=none&{options}" for port in ports]
        return self._kept(Sender(self.folder, hop, *urls, **more))

    def link(self, target: int, to: str, *, data_from: Literal["target", "client"] = "target") -> FaultProxy:
        """A link to a consumer, not yet open."""
        log = self._kept(Log(self.hops, f"link {len(self._things)} to {to}"))
        return self._kept(FaultProxy(target, log, to, data_from=data_from, is_open=False))

    def key(self, number: int, unique: str) -> SeriesKey:
        """The key of a series, as far as the format tells it."""
        return SeriesKey(number, unique if self.format == "dectris2" else "")

    def consumer(
        self, hop: str, detector: int, *, options: str = "?socket=pull", **settings: Any
    ) -> tuple[Consumer, FaultProxy]:
        """A service that reads from a detector's port, and the link between the two, open."""
        link = self.link(detector, hop)
        consumer = self.service(hop, f"127.0.0.1:{link.port}{options}", **settings)
        consumer.until(lambda status: status.is_ready)
        link.go()
        return consumer, link

    def service(self, hop: str, address: str, **settings: Any) -> Consumer:
        """A service on its own."""
        return self._kept(Consumer(self.folder, hop, f"{self.format}+tcp://{address}", **settings))

    def relay(self, hop: str, address: str, *readers: str, options: str = "") -> Relay:
        """A relay that reads at an address and has a destination for each reader."""
        return self._kept(Relay(self.folder, hop, f"{self.format}+tcp://{address}", readers, options))

    def prove(self, *readers: str) -> list[checker.Proof]:
        """What the logs prove of every arming (see `checker.prove`). Raises Unproven."""
        return checker.prove(read(self.hops), *readers)

    def close(self) -> None:
        for thing in reversed(self._things):
            thing.close()

    def _kept(self, thing: T) -> T:
        self._things.append(thing)
        return thing


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = PATIENCE_S) -> None:
    """Wait for something nobody tells of."""
    deadline = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        pause.wait(0.02)
