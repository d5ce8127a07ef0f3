"""The only list of metric names. Every number `streamer` shows to Prometheus is declared in this file.

Names follow one grammar, `streamer_<noun>_<verb>_<unit>`; the unit is `total` for whatever only counts up, else
`seconds`, `bytes`, `ratio`, `frames`, `alarms`, `items`, `bool` (0 or 1) or `info`. The standard `process_…` metrics
of prometheus_client are the one exception: dashboards everywhere know them by those names.

Labels come from bounded sets, never from a wire: stages, queues, outputs, analyses, reasons, rules. Should a set grow
all the same, its first 64 combinations are told apart and the rest is counted under "other"; no count is lost.

A `Metrics` owns its registry, so that two streams in one process do not meet. All methods may be called from any
thread and cost one to two microseconds: label children are looked up once and kept.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from streamer.records import Alarm

__all__ = ["MAX_LABELS", "Metrics", "Outcome"]

Outcome = Literal["accepted", "duplicate", "late", "stale", "unannounced", "missing", "before_join"]

MAX_LABELS = 64  # combinations of label values per metric; one series in Prometheus costs it about 3 kB of memory
MAX_LABEL_LENGTH = 64

# Logarithmic, 1–2.5–5: from a numba kernel on a small image to the slowest thing that is still "live".
SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Kind = TypeVar("Kind", bound=MetricWrapperBase)


class _Labelled(Generic[Kind]):
    """One metric and its children by label values, at most `MAX_LABELS` of them and then "other"."""

    def __init__(self, metric: Kind, labels: int = 1) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Kind] = {}
        self._other = ("other",) * labels
        self._lock = threading.Lock()

    def __call__(self, *values: str) -> Kind:
        child = self._children.get(values)
        return self._add(values) if child is None else child

    def _add(self, values: tuple[str, ...]) -> Kind:
        with self._lock:
            if len(self._children) >= MAX_LABELS:
                values = self._other
            if values not in self._children:
                self._children[values] = self._metric.labels(*map(_printable, values))
            return self._children[values]


def _printable(label: str) -> str:
    """A label value that every exposition format can carry."""
    return label[:MAX_LABEL_LENGTH].encode("utf-8", "replace").decode()


class Metrics:
    """The numbers of one stream. Everything is told by whoever knows it; only ages are read when Prometheus asks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic seconds."""
        self.registry = CollectorRegistry()
        self._clock = clock
        self._last_result = clock()
        self._standing: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._declare_intake()
        self._declare_work()
        self._declare_alarms()
        self._declare_surroundings()

    def _declare_intake(self) -> None:
        counter = self._counter
        self._received = Counter(
            "streamer_messages_received_total", "Messages taken from the source.", registry=self.registry
        )
        self._malformed = counter("messages_malformed", "Messages that could not be used, by reason.", "reason")
        self._frames = counter("frames_counted", "Frames under the name the ledger gave them.", "outcome")
        self._dropped = counter("frames_dropped", "Frames thrown away by a full queue.", "queue")
        self._analysed = counter("frames_analysed", "Frames an analysis has answered.", "analysis")
        self._opened = Counter("streamer_series_opened_total", "Series begun.", registry=self.registry)
        self._closed = counter("series_closed", "Series closed, by what closed them.", "by")
        self._source = counter("source_changed", "What happened to the connection of the source.", "event")

    def _declare_work(self) -> None:
        self._stage = _Labelled(
            Histogram(
                "streamer_stage_spent_seconds",
                "Time one frame spends being worked on in a stage, waiting excluded.",
                ["stage"],
                buckets=SECONDS,
                registry=self.registry,
            )
        )
        self._stage_waited = self._gauge(
            "stage_waited_ratio",
            "Share of that time, over the last second, in which its thread had no core or no interpreter lock.",
            "stage",
        )
        self._buffers = Gauge(
            "streamer_buffers_held_bytes", "Memory that workers keep for decoded images.", registry=self.registry
        )
        self._latency = Histogram(
            "streamer_decision_waited_seconds",
            "Time from receiving a frame to the decision on it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "streamer_batch_inferred_frames", "Frames in one call of a model.", buckets=BATCHES, registry=self.registry
        )
        self._depth = self._gauge("queue_filled_items", "What waits in a queue now.", "queue")
        self._size = self._gauge("queue_bounded_items", "What a queue holds at most.", "queue")

    def _declare_alarms(self) -> None:
        self._raised = self._counter("alarms_raised", "Alarms that began or changed severity.", "alarm", "severity")
        self._active = self._gauge("alarms_standing_alarms", "Alarms active now.", "alarm", "severity")

    def _declare_surroundings(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._output_up = gauge("output_reached_bool", "Whether the output took what it was given last.", "output")
        self._output_errors = counter("output_failed", "Calls of an output that failed.", "output")
        self._output_retries = counter("output_retried", "Calls of an output that were tried again.", "output")
        self._output_dropped = counter("output_dropped", "Results an output's full queue threw away.", "output")
        self._ready = Gauge(
            "streamer_stream_readied_bool",
            "Whether models are warm and the source is open.",
            registry=self.registry,
        )
        age = Gauge(
            "streamer_result_aged_seconds",
            "Time since the last result, or since the start where there is none yet.",
            registry=self.registry,
        )
        age.set_function(lambda: self._clock() - self._last_result)
        self._model = _Labelled(
            Info("streamer_model_loaded", "The models that answer.", ["model"], registry=self.registry)
        )
        Info("streamer_package_installed", "This build of streamer.", registry=self.registry).info(
            {"version": _version(), "python": platform.python_version()}
        )
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> _Labelled[Counter]:
        return _Labelled(Counter(f"streamer_{name}_total", text, labels, registry=self.registry), len(labels))

    def _gauge(self, name: str, text: str, *labels: str) -> _Labelled[Gauge]:
        return _Labelled(Gauge(f"streamer_{name}", text, labels, registry=self.registry), len(labels))

    # What comes in.

    def received(self) -> None:
        """One message was taken from the source."""
        self._received.inc()

    def malformed(self, reason: str) -> None:
        """One message could not be used (`BadFrame.reason`)."""
        self._malformed(reason).inc()

    def frames(self, outcome: Outcome, count: int = 1) -> None:
        """The ledger gave frames a name. "missing" is counted when it is final: when the series closes."""
        self._frames(outcome).inc(count)

    def dropped(self, queue: str, count: int = 1) -> None:
        """A full queue threw frames away."""
        self._dropped(queue).inc(count)

    def analysed(self, analysis: str) -> None:
        """An analysis answered a frame. Also the moment `streamer_result_aged_seconds` counts from."""
        self._analysed(analysis).inc()
        self._last_result = self._clock()

    def series_opened(self) -> None:
        """A series began."""
        self._opened.inc()

    def series_closed(self, by: str) -> None:
        """A series was closed (`Account.closed_by`)."""
        self._closed(by).inc()

    def source(self, event: str) -> None:
        """Something happened to the source's connection: "connected", "disconnected", "retried", …"""
        self._source(event).inc()

    # What is done with it.

    def stage(self, name: str, seconds: float) -> None:
        """One frame was worked on in a stage ("decode", "reduce", "infer", "decide")."""
        self._stage(name).observe(seconds)

    def stage_waited(self, name: str, share: float) -> None:
        """How much of its time a stage waited, 0 … 1. Called now and then, not for every frame."""
        self._stage_waited(name).set(share)

    def buffers(self, nbytes: int) -> None:
        """What the buffers for decoded images hold."""
        self._buffers.set(nbytes)

    def latency(self, seconds: float) -> None:
        """A decision was made this long after its frame had been received."""
        self._latency.observe(seconds)

    def batch(self, frames: int) -> None:
        """A model was called once for so many frames."""
        self._batch.observe(frames)

    def queue(self, name: str, depth: int, size: int) -> None:
        """How full a queue is. Called now and then, not for every frame."""
        self._depth(name).set(depth)
        self._size(name).set(size)

    # What goes out.

    def alarm(self, alarm: Alarm) -> None:
        """An alarm began, changed or ended. Saying the same twice changes nothing."""
        now = (alarm.name, alarm.severity.name)
        with self._lock:
            before = self._standing.pop(alarm.id, None)
            if alarm.is_active:
                self._standing[alarm.id] = now
            if before is not None:
                self._active(*before).dec()
            if alarm.is_active:
                self._active(*now).inc()
            if before != now and (alarm.is_active or before is None):
                self._raised(*now).inc()

    def output_up(self, output: str, is_up: bool) -> None:
        """Whether an output can be reached."""
        self._output_up(output).set(is_up)

    def output_failed(self, output: str) -> None:
        """A call of an output raised OutputDown."""
        self._output_errors(output).inc()

    def output_retried(self, output: str) -> None:
        """A call of an output is tried again."""
        self._output_retries(output).inc()

    def output_dropped(self, output: str, count: int = 1) -> None:
        """Results were thrown away because an output could not keep up."""
        self._output_dropped(output).inc(count)

    # What surrounds it.

    def ready(self, is_ready: bool) -> None:
        """Whether models are loaded and warm and the source is open."""
        self._ready.set(is_ready)

    def model(self, name: str, model_version: str, device: str) -> None:
        """A model was loaded on a device."""
        self._model(name).info({"version": _printable(model_version), "device": _printable(device)})

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Every metric as text, and its content type. accept: the Accept header of whoever asks."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def names(self) -> Sequence[str]:
        """The names of all metrics, without the suffixes Prometheus adds to histograms."""
        return sorted(
            metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
            for metric in self.registry.collect()
        )


def _version() -> str:
    try:
        return version("streamer")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
