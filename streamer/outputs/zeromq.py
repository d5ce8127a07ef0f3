"""Results, alarms and the status for whoever subscribes, over ZeroMQ PUB/SUB. The schema stands in `wire/results.py`.

Subscribe with a SUB socket to "result.saxs", "alarm.", "status", or "" for everything.

Who comes late: on subscribing, a client gets the alarms that are active now and the last status, at the latest with
the next status (one second). All of them are sent again every `repeat_s`. An alarm can therefore come more than once
(its `id` tells), and every status lists all active alarms: one that is not in it has ended.

What is not promised: PUB/SUB delivers at most once. A subscriber that does not keep up misses messages beyond
`high_water_mark`; ZeroMQ tells neither it nor streamer. It finds gaps by comparing the frames it got with
`Status.series.analysed`; the alarm state heals by itself with the next repetition. Whoever needs every result reads a
file output. There is neither encryption nor authentication: keep the socket on loopback or on a network you trust.

All methods are called from one thread, which thereby owns the socket; ZeroMQ's own thread does the sending.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import structlog
import zmq

from streamer.metrics import Metrics
from streamer.outputs import Output
from streamer.records import Alarm, BadConfig, OutputDown, Result, Status
from streamer.wire import results

log = structlog.get_logger("streamer.output")

LINGER_MS = 500  # how long closing waits for what is still on its way; beyond it a dead subscriber would hold the exit
REPLAY_PAUSE_S = 0.1  # subscribing costs a few bytes, so answers are at least this far apart
MAX_TOPIC = 128  # bytes; whoever subscribes to more is disconnected
TRANSPORTS = ("tcp://", "ipc://", "inproc://")


LOOPBACK = ("tcp://127.", "tcp://[::1]", "tcp://[::ffff:127.")
"""How ZeroMQ writes an endpoint that only this machine reaches; the last is 127.0.0.1 where a socket speaks IPv6."""


class Zeromq(Output):
    """An XPUB socket bound to `address`.

    address: "tcp://127.0.0.1:5556"; port 0 or * takes a free one, which `endpoint` names once open.
    arrays: False sends scalars only (a profile of 1000 bins is 24 kB, a scalar 50 bytes).
    high_water_mark: messages held for one slow subscriber before it loses some.
    repeat_s: seconds between repetitions of the alarm state.
    """

    name = "zeromq"

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:5556",
        arrays: bool = True,
        high_water_mark: int = 1000,
        repeat_s: float = 5.0,
    ) -> None:
        problems = []
        if not address.startswith(TRANSPORTS):
            problems.append(f"zeromq: address is {address!r}, expected one like 'tcp://127.0.0.1:5556'")
        if high_water_mark < 1:  # 0 means "no limit" to ZeroMQ: memory without bound
            problems.append(f"zeromq: high_water_mark is {high_water_mark}, expected at least 1")
        if not repeat_s >= 0:
            problems.append(f"zeromq: repeat_s is {repeat_s}, expected seconds, 0 or more")
        if problems:
            raise BadConfig(*problems)
        self.address = address
        self.arrays = arrays
        self.high_water_mark = high_water_mark
        self.repeat_s = repeat_s
        self.endpoint = ""
        self._clock: Callable[[], float] = time.monotonic
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._active: dict[str, Alarm] = {}
        self._last_status: Status | None = None
        self._new_subscriptions: set[bytes] = set()
        self._replayed = self._repeated = -np.inf

    def open(self, metrics: Metrics) -> None:
        """Bind. Raises OutputDown where that is not possible now (address in use, no such interface)."""
        self.close()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # a second subscriber to the same topic is news as well
        self._socket.setsockopt(zmq.SNDHWM, self.high_water_mark)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_TOPIC)
        try:
            self._socket.bind(_with_free_port(self.address))
        except zmq.ZMQError as error:
            self.close()
            raise OutputDown(_why_not_bound(self.address, error)) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if self.endpoint.startswith("tcp://") and not self.endpoint.startswith(LOOPBACK):
            log.warning("zeromq: anybody who reaches this address can read the results", endpoint=self.endpoint)

    def write(self, result: Result) -> None:
        """Send one result."""
        self._answer_subscriptions()
        self._send(result if self.arrays else _scalars_of(result))

    def alarm(self, alarm: Alarm) -> None:
        """Send one alarm and remember it for as long as it is active."""
        self._answer_subscriptions()
        self._active.pop(alarm.id, None)
        if alarm.is_active:
            self._active[alarm.id] = alarm
        self._send(alarm)

    def status(self, status: Status) -> None:
        """Send the status, and the alarm state with it when it is time."""
        self._last_status = status
        self._answer_subscriptions()
        now = self._clock()
        if now - self._repeated >= self.repeat_s:
            self._repeated = now
            for alarm in self._active.values():
                self._send(alarm)
        self._send(status)

    def close(self) -> None:
        """Give what is still on its way half a second, then release the address."""
        if self._socket is not None:
            self._socket.close()
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None

    def _send(self, record: results.Record) -> None:
        if self._socket is None:
            raise OutputDown("zeromq: the output is closed; open it first")
        try:
            self._socket.send_multipart(results.encode(record), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise OutputDown(f"zeromq: cannot send on {self.endpoint}: {error}") from error

    def _answer_subscriptions(self) -> None:
        """Tell new subscribers the alarm state and the last status, if that is what they asked for."""
        self._read_subscriptions()
        now = self._clock()
        if not self._new_subscriptions or now - self._replayed < REPLAY_PAUSE_S:
            return
        self._replayed = now
        wanted = tuple(self._new_subscriptions)
        self._new_subscriptions.clear()
        current: list[results.Record] = [*self._active.values()]
        if self._last_status is not None:
            current.append(self._last_status)
        for record in current:
            if results.topic(record).encode("utf-8", "replace").startswith(wanted):
                self._send(record)

    def _read_subscriptions(self) -> None:
        """Take what subscribers said since the last call: b"\\x01" + topic subscribes, b"\\x00" + topic leaves."""
        if self._socket is None:
            return
        for _ in range(self.high_water_mark):
            if not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            said = self._socket.recv()
            if said[:1] == b"\x01":
                # A thousand different topics are answered as one wish for everything.
                topic = said[1:] if len(self._new_subscriptions) < self.high_water_mark else b""
                self._new_subscriptions.add(topic)


def _scalars_of(result: Result) -> Result:
    """The result without its arrays."""
    return replace(result, quantities={name: one for name, one in result.quantities.items() if not np.ndim(one.value)})


def _with_free_port(address: str) -> str:
    """ZeroMQ's way to write "any free port"."""
    return f"{address[:-1]}*" if address.startswith("tcp://") and address.endswith(":0") else address


def _why_not_bound(address: str, error: zmq.ZMQError) -> str:
    advice: dict[int, str] = {
        zmq.EADDRINUSE: f"stop whoever holds it (ss -ltnp 'sport = :{address.rpartition(':')[2]}' names it)"
        " or set another address in [publish.zeromq]",
        zmq.EADDRNOTAVAIL: "this machine has no such address; `ip address` lists those it has",
        errno.ENODEV: "this machine has no such interface; `ip address` lists those it has",
        zmq.EINVAL: "write it like tcp://127.0.0.1:5556",
    }
    code = error.errno or 0
    what_to_do = advice.get(code, "set another address in [publish.zeromq]")
    return f"zeromq: cannot bind {address}: {zmq.strerror(code)}; {what_to_do}"
