"""`chain`: encoded messages → I(q) ± σ → model → alarm decision, through the real pipeline; frames per second.

`memory` hands the messages over inside the process; `socket` receives them from a sender in a process of its own, on
the same cores, over loopback. The peer is `loop`. Both are measured in turn; of every run the first second is left out.
A run counts only if nothing was lost: every frame that was sent is analysed, and the ledger has a name for each.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from streamer import compression
from streamer.analyses.saxs import Saxs
from streamer.decide import Decider
from streamer.demo import free_ports
from streamer.doctor.capacity import RULE, STAGES, WARM_S, Tally
from streamer.doctor.rehearsal import Rehearsal
from streamer.pipeline import Limits, Pipeline
from streamer.records import Result, Status
from streamer.sources.live import Live
from streamer.wire.dectris2 import Dectris2
from tools.benches import sender
from tools.benches.frames import describe, saxs, series
from tools.benches.loop import Answer, Loop
from tools.benches.measure import Report, rel_diff, spread

ROUTES = ("memory", "socket")
COMPARED = 8
DEADLINE_S = 60.0
AGREEMENT = 0.01
"""Of the anomaly, a probability: both give the network the same curve, in float32 or float64."""


@dataclass
class Run:
    """One run. cpu_ms: of the processor per frame, which other work on the machine does not lengthen.

    answers: of the first COMPARED frames. figures: what else is worth a word.
    """

    fps: float
    cpu_ms: float
    answers: list[Answer]
    figures: dict[str, Any] = field(default_factory=dict)


class Keeping(Tally):
    """Keeps what was said of the first frames."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = []

    def write(self, result: Result) -> None:
        super().write(result)
        if len(self.answers) < COMPARED:
            profile, anomaly = result.quantities["profile"], float(result.quantities["anomaly"].value)
            self.answers.append(
                Answer(np.asarray(profile.value), np.asarray(profile.sigma), anomaly, anomaly > (RULE.above or 0))
            )


def bench(report: Report, detectors: list[str], rounds: int, seconds: float, workers: int, device: str) -> None:
    """Both routes on every detector, ours and the loop in turn."""
    compression.warm()
    with tempfile.TemporaryDirectory(prefix="streamer-bench-") as folder:
        for detector in detectors:
            describe(report, detector)
            messages = sender.write(series(detector), Path(folder) / detector)
            analysis, loop = saxs(detector, device), Loop(detector)
            loop(series(detector).templates[0])  # pyFAI prepares its matrix with the first frame
            for route in ROUTES:
                runs = [
                    (
                        ours(route, detector, analysis, messages, seconds, workers),
                        peer(route, detector, loop, messages, seconds),
                    )
                    for _ in range(rounds)
                ]
                _report(report, f"{detector} {route}, {workers} workers, {analysis.model.device}", loop.name, runs)


def _report(report: Report, case: str, name: str, runs: Sequence[tuple[Run, Run]]) -> None:
    mine, theirs = zip(*runs, strict=True)
    report.line(
        "chain",
        case,
        fps=float(np.median([run.fps for run in mine])),
        fps_max=max(run.fps for run in mine),
        peer=name,
        peer_fps=float(np.median([run.fps for run in theirs])),
        **spread([a.fps / b.fps for a, b in runs]),
        cpu_ms=float(np.median([run.cpu_ms for run in mine])),
        peer_cpu_ms=float(np.median([run.cpu_ms for run in theirs])),
        **_difference(mine[0].answers, theirs[0].answers),
        **mine[-1].figures,
    )


def _difference(ours: Sequence[Answer], theirs: Sequence[Answer]) -> dict[str, float]:
    """Of the same frames, in the bins that hold counts."""
    found = {"rel_diff_I": 0.0, "rel_diff_sigma": 0.0, "diff_anomaly": 0.0}
    for mine, other in zip(ours, theirs, strict=False):  # a slow run has fewer
        counted = mine.intensity > 0
        found["rel_diff_I"] = max(found["rel_diff_I"], rel_diff(mine.intensity[counted], other.intensity[counted]))
        found["rel_diff_sigma"] = max(found["rel_diff_sigma"], rel_diff(mine.sigma[counted], other.sigma[counted]))
        found["diff_anomaly"] = max(found["diff_anomaly"], abs(mine.anomaly - other.anomaly))
    if not found["diff_anomaly"] <= AGREEMENT:
        raise SystemExit(f"chain: the model says something else of the loop's curves (by {found['diff_anomaly']:.2g})")
    return found


def ours(route: str, detector: str, analysis: Saxs, messages: Path, seconds: float, workers: int) -> Run:
    """The pipeline, holding back the sender when it is behind."""
    tally = Keeping()
    limits = Limits(workers=workers, when_behind="wait")
    if route == "memory":
        source = Rehearsal(series(detector), seconds=seconds)
        status = _through(Pipeline(source, [analysis], Decider([RULE]), [tally], limits=limits))
        sent = source.sent
    else:
        (port,) = free_ports(1)
        with sender.running(messages, port, seconds) as process:
            live = Live(f"tcp://127.0.0.1:{port}", Dectris2())
            pipeline = Pipeline(live, [analysis], Decider([RULE]), [tally], limits=limits)
            pipeline.start()
            sent = int(process.communicate(timeout=seconds + DEADLINE_S)[0])
            _wait_for(lambda: len(tally.times) >= sent)
            pipeline.stop()
            status = pipeline.join()
    _require_all(status, sent)
    cores, queued = tally.cores()
    stages = {f"{stage}_ms": tally.stage_ms(stage) for stage in STAGES}
    return Run(
        tally.fps(),
        1e3 * cores / tally.fps(),
        tally.answers,
        {"sent": sent, "cores": cores, "cores_waited_for": queued, **stages},
    )


def _through(pipeline: Pipeline) -> Status:
    pipeline.start()
    return pipeline.join()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _require_all(status: Status, sent: int) -> None:
    (account,) = status.closed
    if account.unaccounted or account.analysed != sent:
        raise SystemExit(
            f"chain: of {sent} frames sent {account.analysed} were analysed, {account.unaccounted} are unaccounted for"
        )


def peer(route: str, detector: str, loop: Loop, messages: Path, seconds: float) -> Run:
    """The loop on the same messages."""
    times: list[float] = []
    answers: list[Answer] = []
    cpu_s = time.process_time()
    for octets in _from_memory(detector, seconds) if route == "memory" else _from_socket(messages, seconds):
        answer = loop(octets)
        if answer is not None:
            times.append(time.monotonic())
            answers += [answer][: COMPARED - len(answers)]
    cpu_s = time.process_time() - cpu_s
    steady = [moment for moment in times if moment >= times[0] + WARM_S]
    fps = (len(steady) - 1) / (steady[-1] - steady[0]) if len(steady) > 1 else float("nan")
    return Run(fps, 1e3 * cpu_s / len(times), answers)


def _from_memory(detector: str, seconds: float) -> Iterator[bytes]:
    began = time.monotonic()
    for number in itertools.count():
        if time.monotonic() > began + seconds:
            return
        yield bytes(series(detector).image(number))


def _from_socket(messages: Path, seconds: float) -> Iterator[bytes]:
    (port,) = free_ports(1)
    with (
        sender.running(messages, port, seconds) as process,
        zmq.Context() as context,
        context.socket(zmq.PULL) as socket,
    ):
        socket.connect(f"tcp://127.0.0.1:{port}")
        received = 0
        while process.poll() is None or socket.poll(200):
            if socket.poll(200):
                received += 1
                yield socket.recv()
        sent = int(process.communicate()[0])
    if received != sent + 2:  # the start and the end
        raise SystemExit(f"chain: of {sent} frames sent {received - 2} came to the loop")
