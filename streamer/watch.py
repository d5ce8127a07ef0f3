"""The onlooker's door: subscribe to what a service publishes and show it. Nothing is taken away from anybody.

A detector's PUSH socket is another matter: whoever reads there takes frames away from the analysis, so `watch` refuses
it unless told to steal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import structlog
import zmq

from streamer import compression, config
from streamer.decide import Decider
from streamer.metrics import Metrics
from streamer.outputs import Output
from streamer.pipeline import Pipeline
from streamer.records import Alarm, BadConfig, BadFrame, Result, Status
from streamer.wire import results

log = structlog.get_logger("streamer.watch")

SILENCE_S = 5.0  # a service says how it is doing every second


class Watcher:
    """Subscribes to a service's results and shows them on a view. Use it in a `with` statement, on one thread.

    address: of the service's `[publish.zeromq]`, e.g. "tcp://127.0.0.1:5556". A service that is not there yet is waited
    for. status: the last one heard, None before the first. malformed: messages that were not results.
    Raises BadConfig for an address that is none.
    """

    def __init__(self, address: str, view: Output) -> None:
        self.status: Status | None = None
        self.malformed = 0
        self._view = view
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise BadConfig(
                f"watch: '{address}' is no address ({error}); expected what the service publishes on, tcp://HOST:PORT"
            ) from error

    def __enter__(self) -> Watcher:
        self._view.open(Metrics())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.close()
        self._context.destroy(linger=0)

    def look(self, seconds: float) -> None:
        """Show what comes within so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._socket.poll(round(1e3 * left)):
                self._show(self._socket.recv_multipart())

    def _show(self, parts: list[bytes]) -> None:
        try:
            record = results.decode(parts)
        except BadFrame:
            self.malformed += 1
            return
        match record:
            case Result():
                self._view.write(record)
            case Alarm():
                self._view.alarm(record)
            case Status():
                self.status = record
                self._view.status(record)


def look_at_service(address: str, view: Output, *, seconds: float, stop: Callable[[], bool]) -> None:
    """Show what a service publishes until `stop` says so, or for so many seconds (0: without end)."""
    began = time.monotonic()
    is_told = False
    with Watcher(address, view) as watcher:
        while not stop() and (not seconds or time.monotonic() < began + seconds):
            watcher.look(0.2)
            view.refresh()
            if watcher.status is None and not is_told and time.monotonic() > began + SILENCE_S:
                log.warning("nothing heard yet; is that what the service publishes on?", address=address)
                is_told = True


def look_at_source(url: str, view: Output, *, steal: bool, seconds: float, stop: Callable[[], bool]) -> None:
    """Show the account of a source itself, with no analysis. Raises BadConfig for a PUSH source without `steal`."""
    source = config.open_source(url)
    if source.is_exclusive and not steal:
        source.close()
        raise BadConfig(
            f"watch: {url} gives each frame to one reader only, so looking takes frames away from the analysis; "
            "watch what the service publishes (tcp://HOST:5556), or add --steal"
        )
    compression.warm()
    pipeline = Pipeline(source, [], Decider([]), [view])
    pipeline.start()
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while pipeline.is_running and not stop() and (not seconds or time.monotonic() < deadline):
        pause.wait(0.1)
    pipeline.stop()
    pipeline.join()
