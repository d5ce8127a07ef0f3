"""The beamline's door: a beamline file is served until somebody says stop, and the exit code tells how it went.

    0  stopped by SIGTERM or SIGINT, or the source came to its end: everything received was accounted for
    1  something broke that streamer could not go on without; the supervisor starts it again
    2  the beamline file, a model or an address is wrong; starting again would not help

SIGTERM stops the intake, lets what was received be analysed for at most `drain_s`, flushes every output and ends with
0. A second one ends the process at once.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from streamer import compression, config
from streamer.decide import Decider
from streamer.ledger import COUNTS, Ledger
from streamer.metrics import Metrics
from streamer.outputs import Output
from streamer.pipeline import Limits, Pipeline
from streamer.records import Alarm, BadConfig, BadFrame, Status
from streamer.wire import results

log = structlog.get_logger("streamer.service")

KEPT_IN_QUARANTINE = 100
MOST_PARTS_KEPT = 8
MOST_BYTES_KEPT = 4 * 2**20  # the head of a larger message tells what is wrong with it
LEAST_PAUSE_S = 0.1  # between two that are kept


class Quarantine:
    """Keeps the last messages that could not be used, for whoever wants to know why. Called from any worker."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises BadConfig if the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfig(f"quarantine = '{folder}': cannot be made ({error.strerror}); choose another") from error
        self._folder = folder
        self._clock = clock
        self._count = 0
        self._next = -math.inf
        self._lock = threading.Lock()

    def __call__(self, bad: BadFrame, parts: Sequence[Any]) -> None:
        """Keep a message. A flood is sampled, not kept: the ledger counts it, and a disk has better things to do.

        Good frames of another geometry are not kept at all: nothing is wrong with them.
        """
        if bad.reason == "geometry":
            return
        with self._lock:
            if self._clock() < self._next:
                return
            self._next = self._clock() + LEAST_PAUSE_S
            place = self._count % KEPT_IN_QUARANTINE
            self._count += 1
            try:
                self._keep(place, bad.reason, parts)
            except OSError as error:
                log.warning("a bad message could not be kept", folder=str(self._folder), reason=error.strerror)

    def _keep(self, place: int, reason: str, parts: Sequence[Any]) -> None:
        for old in self._folder.glob(f"{place:03d}-*"):
            old.unlink(missing_ok=True)
        for index, part in enumerate(parts[:MOST_PARTS_KEPT]):
            if isinstance(part, (bytes, bytearray, memoryview)):
                file = self._folder / f"{place:03d}-{reason}-part{index}.bin"
                file.write_bytes(bytes(memoryview(part)[:MOST_BYTES_KEPT]))


class Alarms(Output):
    """Remembers every alarm of a run for the report at its end."""

    name = "report"

    def __init__(self) -> None:
        self.alarms: dict[str, Alarm] = {}

    def write(self, result: Any) -> None:
        """Results are not kept."""

    def alarm(self, alarm: Alarm) -> None:
        """The latest word on each alarm; of very many only the last thousand."""
        self.alarms.pop(alarm.id, None)
        self.alarms[alarm.id] = alarm
        if len(self.alarms) > 1000:
            del self.alarms[next(iter(self.alarms))]


def run(file: Path | str, *, extra_outputs: Sequence[Output] = ()) -> int:
    """Serve a beamline file until the source ends or a signal says stop. Returns the exit code 0.

    Raises BadConfig, BadModel before anything is attached to, SourceLost, or what broke the pipeline.
    """
    serve(Path(file), extra_outputs=extra_outputs)
    return 0


def serve(file: Path, *, extra_outputs: Sequence[Output] = ()) -> dict[str, Any]:
    """`run`, returning the report of the run (see `report`)."""
    began = time.monotonic()
    beamline = config.read(file)
    settings = beamline.settings
    metrics = Metrics()
    analyses = [make() for make in beamline.analyses.values()]
    for analysis in analyses:
        if analysis.model is not None:
            card = analysis.model.card
            metrics.model(card.name, card.version, analysis.model.device)
    outputs = [make() for make in beamline.outputs.values()]
    compression.warm()
    for output in outputs:
        if output.is_record:  # two services on one journal would each hear half of the truth: better not to start
            output.open(metrics)
    source = config.open_source(settings.source, folder=file.resolve().parent)
    kept = Alarms()
    decider = Decider(beamline.rules)
    left_standing = {alarm.id: alarm for output in outputs for alarm in output.remembered()}
    pipeline = Pipeline(
        source,
        analyses,
        decider,
        [kept, *outputs, *extra_outputs],
        ledger=Ledger(grace_s=settings.grace_s, stall_s=settings.stall_s),
        metrics=metrics,
        limits=Limits(
            workers=settings.workers,
            when_behind=settings.when_behind,
            queue_frames=settings.queue_frames,
            queue_bytes=int(settings.queue_MB * 1e6),
            max_batch=settings.max_batch,
            max_wait_s=1e-3 * settings.max_wait_ms,
            drain_s=settings.drain_s,
        ),
        quarantine=Quarantine(settings.quarantine) if settings.quarantine else None,
    )
    gc.collect()
    gc.freeze()  # what was built until now lives as long as the process: no collection looks at it again
    with stopped_by_signals(pipeline.stop):
        pipeline.start(decider.resume(left_standing.values(), time.time()))
        log.info("ready", source=settings.source, analyses=list(beamline.analyses), outputs=list(beamline.outputs))
        status = pipeline.join()
    log.info("stopped", ran_s=round(time.monotonic() - began, 1))
    return report(status, pipeline, list(kept.alarms.values()))


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`; a second one ends the process at once. Outside the main thread: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked = False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            sys.stderr.write("streamer: second signal, ending at once\n")
            os._exit(128 + number)
        asked = True
        sys.stderr.write("streamer: asked to stop; once more ends at once\n")
        stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(status: Status, pipeline: Pipeline, alarms: Sequence[Alarm] = ()) -> dict[str, Any]:
    """What became of everything, as plain values: the JSON that `streamer run --json` ends with.

    The counts are those of all series of the run; "series" holds the accounts of the last few.
    """
    totals = pipeline.ledger.totals()
    return {
        **{name: totals[name] for name in COUNTS},
        "series": [results.plain_account(account) for account in status.closed],
        "wire": results.plain_account(status.wire),
        "alarms": [results.plain_alarm(alarm) for alarm in alarms],
        "latency_ms": {name: round(value, 3) for name, value in pipeline.timing.overall_ms().items()},
        "devices": dict(status.devices),
    }
