"""What rate this machine can hold for a detector, and which stage limits it.

First every stage is timed alone, on one thread, in turn with the others. Then the real pipeline runs on the same
messages out of memory, with one worker and with as many as there are cores, as fast as it goes. In the pipeline a stage
takes longer than alone, because it waits for a core, for memory or for the interpreter lock; what it takes there, as a
share of the threads it has, says how near to its limit it is.

What is not in it: the network and the kernel's work for it, and outputs. A detector on the same machine's network
interface leaves less.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from streamer import compression
from streamer.analyses.saxs import Saxs
from streamer.decide import Decider, Rule
from streamer.doctor.rehearsal import Rehearsal, Series, Size, like, simulated
from streamer.infer import Model
from streamer.outputs import Output
from streamer.pipeline import Limits, Pipeline
from streamer.records import Alarm, BadConfig, Frame, Reduced, Result, Status
from streamer.reduce.detector import read_geometry

STAGES = ("decode", "reduce", "infer", "decide")
BATCH = 16
WARM_S = 1.0
"""Left out at the beginning of a run: the geometry is built and buffers are touched for the first time."""
ALONE_S = 4.0
RUN_S = 5.0
RULE = Rule(name="capacity", watch="saxs.anomaly", above=0.9, for_frames=1)
FULL = 0.85
"""Share of the time that cores or threads are busy, from where on it is they that others wait for."""
IDLE = 0.3
"""Cores that threads are ready for and do not get; below it is what scheduling costs on a machine of one's own."""


class Tally(Output):
    """Notes when each result came, and how the stages did. It holds the stream back, so that nothing is lost."""

    name = "tally"
    when_full = "wait"

    def __init__(self) -> None:
        self.times: list[float] = []
        self.alarms: list[Alarm] = []
        self._stages_ms: list[Mapping[str, float]] = []
        self._uses: list[_Use] = []

    def write(self, result: Result) -> None:
        self.times.append(time.monotonic())

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def status(self, status: Status) -> None:
        if status.state == "running" and self.times and time.monotonic() > self.times[0] + WARM_S:
            self._stages_ms.append(status.stages)
            self._uses.append(_Use.now())

    def fps(self) -> float:
        """Results per second, the first WARM_S left out."""
        times = np.array(self.times)
        steady = times[times >= times[0] + WARM_S] if times.size else times
        return float((steady.size - 1) / (steady[-1] - steady[0])) if steady.size > 1 else math.nan

    def stage_ms(self, stage: str) -> float:
        """Mean milliseconds per frame in the pipeline, waiting for cores and locks included."""
        return statistics.median([ms.get(stage, math.nan) for ms in self._stages_ms] or [math.nan])

    def cores(self) -> tuple[float, float]:
        """Cores that this process kept busy, and cores that its threads were ready for and did not get."""
        if len(self._uses) < 2:
            return math.nan, math.nan
        first, last = self._uses[0], self._uses[-1]
        wall_s = last.at - first.at
        queued_s = sum(
            last.queued_s[thread] - first.queued_s[thread] for thread in last.queued_s.keys() & first.queued_s.keys()
        )
        return (last.cpu_s - first.cpu_s) / wall_s, queued_s / wall_s


@dataclass(frozen=True, slots=True)
class _Use:
    """Of the processor, so far. at: monotonic seconds. queued_s: thread → seconds it was ready and had no core."""

    at: float
    cpu_s: float
    queued_s: Mapping[str, float]

    @classmethod
    def now(cls) -> _Use:
        threads = Path("/proc/self/task").glob("*")  # empty where there is no such folder
        return cls(time.monotonic(), time.process_time(), {thread.name: _queued_s(thread) for thread in threads})


def _queued_s(thread: Path) -> float:
    """The second number in a thread's schedstat, which Linux alone has."""
    try:
        return 1e-9 * int((thread / "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """The pipeline with so many workers. fps: frames per second. stages_ms: stage → per frame, waiting included.

    cores: that it kept busy. queued: cores that its threads were ready for while others had them.
    """

    workers: int
    fps: float
    stages_ms: Mapping[str, float]
    cores: float
    queued: float

    def busy(self, stage: str) -> float:
        """Share of the time of the threads that work at a stage."""
        threads = self.workers if stage in ("decode", "reduce") else 1
        return 1e-3 * self.stages_ms[stage] * self.fps / threads


@dataclass(frozen=True, slots=True)
class Capacity:
    """What this machine can do with one detector.

    shape: (rows, columns). message_MB: of one compressed image. alone_ms: stage → per frame, on one thread, by itself.
    runs: with one worker, and with more. fps: the best of them. limit: which stage limits it, in a sentence.
    """

    detector: str
    shape: tuple[int, int]
    message_MB: float
    cores: int
    alone_ms: Mapping[str, float]
    runs: tuple[Run, ...]
    limit: str

    @property
    def fps(self) -> float:
        return max(run.fps for run in self.runs)

    @property
    def fps_per_core(self) -> float:
        """What one core could decode and reduce if it did nothing else."""
        return 1e3 / (self.alone_ms["decode"] + self.alone_ms["reduce"])

    def plain(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return {
            "detector": self.detector,
            "shape": list(self.shape),
            "message_MB": round(self.message_MB, 3),
            "cores": self.cores,
            "fps": round(self.fps, 1),
            "fps_per_core": round(self.fps_per_core, 1),
            "limit": self.limit,
            "alone_ms": _rounded(self.alone_ms),
            "runs": [
                {"workers": run.workers, "fps": round(run.fps, 1), "stages_ms": _rounded(run.stages_ms)}
                | {"busy": {stage: round(run.busy(stage), 3) for stage in STAGES}}
                | {"cores": round(run.cores, 2), "cores_waited_for": round(run.queued, 2)}
                for run in self.runs
            ],
        }

    def sentences(self) -> list[str]:
        """As a person reads it."""
        rows, columns = self.shape
        lines = [
            f"{self.detector}: {rows} × {columns} pixels, {self.message_MB:.2f} MB a message, {self.cores} cores",
            "",
            f"{'':<22}" + "".join(f"{stage:>10}" for stage in STAGES),
            f"{'alone, ms per frame':<22}" + "".join(f"{self.alone_ms[stage]:>10.3f}" for stage in STAGES),
        ]
        for run in self.runs:
            who = f"{run.workers} worker{'s' if run.workers > 1 else ''}"
            times = "".join(f"{run.stages_ms[stage]:>10.3f}" for stage in STAGES)
            busy = "".join(f"{run.busy(stage):>10.0%}" for stage in STAGES)
            lines += [f"{f'{who}, ms per frame':<22}{times}   {run.fps:.0f} frames/s", f"{'  busy':<22}{busy}"]
        return [
            *lines,
            "",
            f"This machine holds {self.fps:.0f} frames/s. What limits it: {self.limit}.",
            f"One core that did nothing but decode and reduce would take {self.fps_per_core:.0f} frames/s.",
        ]


def measure(
    detector: Size,
    *,
    poni: Path | None = None,
    mask: Path | None = None,
    shape: str = "",
    device: Literal["auto", "cuda", "cpu"] = "auto",
) -> Capacity:
    """For a simulated detector ("128k" to "4M"), or for a geometry of one's own.

    shape: "ROWSxCOLUMNS", where neither the `.poni` nor its mask says. Raises BadConfig, BadInput, BadModel.
    """
    if poni is None:
        if mask or shape:
            raise BadConfig("doctor: found a mask or a shape without a .poni; they belong to a geometry, give it too")
        return capacity(f"simulated {detector}", simulated(detector), Saxs(device=device))
    geometry = read_geometry(poni, mask)
    if shape:
        geometry = geometry.with_shape(_shape(shape))
    return capacity(poni.name, like(geometry), Saxs(poni=poni, mask=mask, device=device))


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text)
    if found is None:
        raise BadConfig(f"doctor: found shape {text!r}, expected ROWSxCOLUMNS, e.g. 2167x2070")
    return int(found[1]), int(found[2])


def capacity(detector: str, series: Series, saxs: Saxs) -> Capacity:
    """Measure; takes some twenty seconds. Raises BadInput, BadModel where the series and the analysis do not fit."""
    compression.warm()
    saxs.begin(series.start)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone_ms = alone(series, saxs, ALONE_S)
    runs = tuple(rehearse(series, saxs, workers, RUN_S) for workers in sorted({1, max(2, cores)}))
    rows, columns = series.images[0].shape
    return Capacity(
        detector=detector,
        shape=(rows, columns),
        message_MB=series.nbytes / 1e6,
        cores=cores,
        alone_ms=alone_ms,
        runs=runs,
        limit=limit(max(runs, key=lambda run: run.fps), cores),
    )


def alone(series: Series, saxs: Saxs, seconds: float) -> dict[str, float]:
    """Stage → milliseconds per frame on one thread, the median. The model is asked in batches of BATCH."""
    source, decider, scratch = Rehearsal(series, seconds=seconds), Decider([RULE]), compression.Scratch()
    took: dict[str, list[float]] = {stage: [] for stage in STAGES}
    batch: list[Reduced] = []
    while True:
        try:
            message = source.receive(0.0)
        except EOFError:
            break
        if message is None or message.kind == "end":
            continue
        began = time.perf_counter()
        scratch.reset()
        (record,) = source.decode(message, scratch=scratch)
        decoded = time.perf_counter()
        if not isinstance(record, Frame):
            continue
        batch.append(saxs.reduce(record))
        took["decode"].append(decoded - began)
        took["reduce"].append(time.perf_counter() - decoded)
        if len(batch) == BATCH:
            infer_s, decide_s = _judge(saxs, decider, batch)
            took["infer"].append(infer_s / BATCH)
            took["decide"].append(decide_s / BATCH)
            batch.clear()
    return {stage: 1e3 * statistics.median(times) if times else float("nan") for stage, times in took.items()}


def rehearse(series: Series, saxs: Saxs, workers: int, seconds: float) -> Run:
    """The pipeline on messages out of memory, as fast as it goes. Raises what makes it close."""
    source, tally = Rehearsal(series, seconds=seconds), Tally()
    pipeline = Pipeline(source, [saxs], Decider([RULE]), [tally], limits=Limits(workers=workers, when_behind="wait"))
    pipeline.start()
    pipeline.join()
    cores, queued = tally.cores()
    return Run(workers, tally.fps(), {stage: tally.stage_ms(stage) for stage in STAGES}, cores, queued)


def limit(run: Run, cores: int) -> str:
    """What the frames wait for, in a sentence."""
    crews = {"decode and reduce": run.busy("decode") + run.busy("reduce")}
    crews |= {stage: run.busy(stage) for stage in ("infer", "decide")}
    crew, busy = max(crews.items(), key=lambda item: item[1])
    dearest = max(run.stages_ms, key=lambda stage: run.stages_ms[stage])
    share = run.stages_ms[dearest] / sum(run.stages_ms.values())
    if run.cores >= FULL * cores:
        return f"all {cores} cores are busy, {dearest} with {share:.0%} of a frame's work"
    if run.queued > IDLE:
        return (
            f"the cores: other work has {cores - run.cores:.1f} of {cores}, for which streamer's threads wait; "
            f"{dearest} is {share:.0%} of a frame's work"
        )
    if run.workers < cores and busy >= FULL:
        return f"the {run.workers} workers are busy {busy:.0%} of the time: more of them would help"
    return f"the interpreter lock: {crew} is busy {busy:.0%} of the time and {cores - run.cores:.1f} cores are idle"


def _rounded(times: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(ms, 4) for stage, ms in times.items()}


def _judge(saxs: Saxs, decider: Decider, batch: list[Reduced]) -> tuple[float, float]:
    """Seconds that the model, and the decision on what it said, took for a batch."""
    model = cast(Model, saxs.model)
    began = time.perf_counter()
    outputs = model.run({"curve": np.stack([reduced.inputs["curve"] for reduced in batch])})
    answered = time.perf_counter()
    for i, reduced in enumerate(batch):
        result = saxs.interpret(reduced, {name: values[i] for name, values in outputs.items()})
        decider.decide(result, 0.0)
    return answered - began, time.perf_counter() - answered
