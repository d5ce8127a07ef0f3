"""The words of the house: every room speaks these and no room adds its own.

Series     one arming of the detector: a `SeriesStart`, its Frames, a `SeriesEnd`.
Frame      one exposure of one channel: image, series, number, detector times, time received.
           Channels (energy thresholds) are separate Frames with the same number.
Reduced    what physics makes of a Frame without a model: I(q) ± σ, S(q), a normalised image.
Quantity   a value or array with axes, unit and standard uncertainty (NXdata in small).
Result     what one analysis says of one frame: named Quantities.
Rule       watches one Quantity and raises an Alarm.
Alarm      has a beginning, a severity, an acknowledgement and an end.
Format     how frames look on a wire.       Source   where frames come from.
Output     where results go.                Card     what a model says of itself.
Ledger     the account of a series: every frame is analysed or lost under a name.

Clocks. Detector time (`Frame.start_s`, `Frame.stop_s`) places a frame inside its series. `received_ns` is
`time.monotonic_ns()` at the socket and measures latency. Wall time (seconds since 1970, UTC) labels alarms and files.
The three are never mixed.

Errors. Everything the package raises on purpose derives from `StreamerError`:

    StreamerError
     ├─ BadFrame     one message or frame cannot be used; it is counted under `reason` and the stream goes on
     ├─ BadInput     an argument of a function is not what its docstring asks for
     ├─ BadConfig    the beamline file or a command-line argument is wrong
     ├─ BadModel     a model folder cannot be trusted or does not fit the geometry
     ├─ SourceLost   the place frames come from is gone for good
     └─ OutputDown   a place results go to cannot be reached; the stream goes on
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HC_EV_A",
    "UNITS",
    "Account",
    "Alarm",
    "BadConfig",
    "BadFrame",
    "BadInput",
    "BadModel",
    "Buffer",
    "Frame",
    "OutputDown",
    "Quantity",
    "Reduced",
    "Result",
    "SeriesEnd",
    "SeriesKey",
    "SeriesStart",
    "Severity",
    "SourceLost",
    "Status",
    "StreamerError",
    "WireAccount",
    "WireRecord",
    "did_you_mean",
]

Buffer = bytes | bytearray | memoryview
"""Bytes as they came: a part of a message."""

HC_EV_A = 12398.419843320026
"""h·c in eV·Å, exact in the SI of 2019: turns a photon energy into a wavelength."""

UNITS = {
    "1/nm": ("inverse length", 1.0),
    "1/A": ("inverse length", 10.0),
    "1/Å": ("inverse length", 10.0),
    "nm": ("length", 1.0),
    "A": ("length", 0.1),
    "Å": ("length", 0.1),
    "pm": ("length", 0.001),
}
"""What a unit is of, and how many of the first one listed it makes."""


class StreamerError(Exception):
    """Root of every error this package raises on purpose."""


class BadFrame(StreamerError):
    """A message or frame that cannot be used: counted under `reason`, quarantined, and the stream goes on.

    reason: one short word from the table of the room that raises it ("truncated", "dtype", "size", …); it becomes a
        metric label, so it never contains anything read from the wire.
    series, number: the frame's identity where it could be read, else None.
    """

    def __init__(self, reason: str, text: str, *, series: SeriesKey | None = None, number: int | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.series = series
        self.number = number


class BadInput(StreamerError, ValueError):
    """An argument is not what the docstring asks for: what was found, what was expected, what to do."""


class BadConfig(StreamerError):
    """The beamline file or a command-line argument is wrong. `problems` holds every finding, one line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BadModel(StreamerError):
    """A model folder is damaged, untrusted, or does not fit the geometry it is asked about."""


class SourceLost(StreamerError):
    """The place frames come from is gone for good: file unreadable, address refused, peer of another kind."""


class OutputDown(StreamerError):
    """A place results go to cannot be reached. The output's thread retries; the stream goes on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a word nobody knows: the nearest one known, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; expected one of: {', '.join(known) or 'none'}"


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """What tells one arming of the detector from another.

    number: the detector's own series id (starts over when the detector restarts).
    unique: the detector's unique series id where it sends one, else "".
    """

    number: int
    unique: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.unique}" if self.unique else str(self.number)


@dataclass(frozen=True, slots=True)
class SeriesStart:
    """The detector was armed.

    images: how many images were announced, None when the detector does not say.
    first: the number it begins with, where frames carry a running number and do not count from 0; else None.
    step: the distance between two consecutive numbers.
    was_running: it was learnt of while it ran, so that frames may have come and gone before.
    shape: (rows, columns) of one image, None when unknown.
    nodata: the pixel value that means "no measurement", None for the dtype's maximum.
    saturation: the largest valid pixel value, None when unknown.
    beam_center: (column, row) of the direct beam in pixels.
    pixel_size_m: (along columns x, along rows y).
    mask: channel → (rows, columns) bool, True = not to be used. flatfield: channel → (rows, columns) float32.
    extra: whatever else the header said, for archives; never used by the analysis.
    """

    series: SeriesKey
    images: int | None = None
    first: int | None = None
    step: int = 1
    was_running: bool = False
    shape: tuple[int, int] | None = None
    dtype: np.dtype[Any] | None = None
    channels: tuple[str, ...] = ()
    nodata: int | None = None
    saturation: int | None = None
    frame_time_s: float | None = None
    count_time_s: float | None = None
    energy_eV: float | None = None
    wavelength_A: float | None = None
    beam_center: tuple[float, float] | None = None
    pixel_size_m: tuple[float, float] | None = None
    distance_m: float | None = None
    mask: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    flatfield: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    detector: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    received_ns: int = 0

    @property
    def photon_wavelength_A(self) -> float | None:
        """The wavelength as the header gives it, or from the photon energy; None where it gives neither."""
        return self.wavelength_A or (HC_EV_A / self.energy_eV if self.energy_eV else None)


@dataclass(frozen=True, slots=True)
class Frame:
    """One exposure of one channel.

    image: (rows, columns), uint8/16/32, int32 or float32. On the live path it lies in a reused buffer and is valid
        only until the worker that decoded it takes the next message: what must last is copied.
    number: counts from 0 within the series.
    channel: "threshold_1", …; "" where the format has no channels.
    start_s, stop_s, real_s: exposure begin, end and live duration, exact, in seconds after the series date; None if
        unknown.
    """

    image: NDArray[Any]
    series: SeriesKey
    number: int
    channel: str = ""
    start_s: Fraction | None = None
    stop_s: Fraction | None = None
    real_s: Fraction | None = None
    received_ns: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeriesEnd:
    """The detector says the series is over. Its last frames may still be on the way.

    images: how many there were, None when the detector does not say.
    """

    series: SeriesKey
    received_ns: int = 0
    images: int | None = None


class Quantity(msgspec.Struct, frozen=True):
    """A value with its unit, standard uncertainty and axes.

    value: float, or an array whose dimensions are `axes` in order.
    sigma: standard uncertainty, same shape as value, None when it is not known (never 0 for "not known").
    unit: "1" for a pure number.
    axes: name → (values, unit), e.g. {"q": (q, "1/nm")}; empty for a scalar.
    """

    value: float | NDArray[Any]
    sigma: float | NDArray[Any] | None = None
    unit: str = "1"
    axes: Mapping[str, tuple[NDArray[Any], str]] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        """In one line, as a notebook shows it: the number, or how many there are."""
        unit = "" if self.unit == "1" else f" {self.unit}"
        if np.ndim(self.value):
            axes = "".join(f", {name} {v[0]:.4g}–{v[-1]:.4g} {u}" for name, (v, u) in self.axes.items() if len(v))
            return f"Quantity({' × '.join(map(str, np.shape(self.value)))} values{unit}{axes})"
        sigma = "" if self.sigma is None else f" ± {float(self.sigma):.2g}"
        return f"Quantity({float(self.value):.6g}{sigma}{unit})"

    def __post_init__(self) -> None:
        if isinstance(self.value, float) and (self.sigma is None or isinstance(self.sigma, float)) and not self.axes:
            return  # most of the fifty that a frame brings; what follows is twenty times as slow
        shape = np.shape(self.value)
        if self.sigma is not None and np.shape(self.sigma) != shape:
            raise BadInput(f"Quantity: sigma has shape {np.shape(self.sigma)}, value has {shape}; give one σ per value")
        lengths = tuple(len(values) for values, _ in self.axes.values())
        if self.axes and lengths != shape:
            raise BadInput(f"Quantity: axes {dict.fromkeys(self.axes)} have lengths {lengths}, value has shape {shape}")


@dataclass(frozen=True, slots=True)
class Reduced:
    """What physics makes of one frame without a model.

    quantities: what is published as it is (profile, transmission, fraction of invalid pixels, …).
    inputs: the model's inputs for this frame by name, without a batch axis; empty where the analysis has no model.
    """

    series: SeriesKey
    number: int
    quantities: Mapping[str, Quantity]
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    channel: str = ""
    start_s: Fraction | None = None
    received_ns: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What one analysis says of one frame: its Quantities by name.

    start_s: detector time of the exposure, seconds after the series date. received_ns: monotonic clock at the socket.
    wall_time: UTC seconds since 1970 when the result was made.
    """

    analysis: str
    series: SeriesKey
    number: int
    quantities: Mapping[str, Quantity]
    channel: str = ""
    start_s: float | None = None
    received_ns: int = 0
    wall_time: float = 0.0

    def __repr__(self) -> str:
        """In one line, as a notebook shows it."""
        quantities = ", ".join(f"{name}={one!r}" for name, one in self.quantities.items())
        return f"Result({self.analysis} of series {self.series} frame {self.number}: {quantities})"

    def __getitem__(self, name: str) -> Quantity:
        return self.quantities[name]


WireRecord = SeriesStart | Frame | SeriesEnd | Result
"""What a message may hold: a detector's records, or a result of another streamer."""


class Severity(enum.IntEnum):
    """EPICS alarm severities. INVALID means "not known", and ranks above every known state."""

    NO_ALARM = 0
    MINOR = 1
    MAJOR = 2
    INVALID = 3


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something an operator should respond to, with a beginning and an end.

    id: unique per occurrence: "<name>#<occurrence>@<wall time of the beginning in ms>".
    watch: the Quantity watched ("saxs.anomaly"), or the part of streamer that speaks ("stream", "output.epics").
    began, ended: UTC seconds since 1970; ended is None while the alarm is active.
    series, number: the frame at which it began; ended_number where it ended.
    evidence: name → value: the measured value, its σ, the limit, the frames that made it fire.
    """

    id: str
    name: str
    severity: Severity
    text: str
    watch: str
    began: float
    series: SeriesKey | None = None
    number: int | None = None
    ended: float | None = None
    ended_number: int | None = None
    acknowledged: bool = False
    evidence: Mapping[str, float | int | str | list[float] | list[int]] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        return self.ended is None


@dataclass(frozen=True, slots=True)
class WireAccount:
    """Every message since the stream began. At every moment:

    messages = control + accepted + duplicate + late + stale + unannounced + sum of malformed.

    control: starts, ends (also those that streamer concluded itself) and anything that carries no image. accepted:
    frames that opened a line in a series account. duplicate: a number already counted. late: after its series was
    closed by its end. stale: of a series that another one replaced. unannounced: a number at or beyond the announced
    total. malformed: by reason.
    out_of_order counts accepted frames that came after a higher number; it is no term of the sum.
    """

    messages: int = 0
    control: int = 0
    accepted: int = 0
    duplicate: int = 0
    late: int = 0
    stale: int = 0
    unannounced: int = 0
    malformed: Mapping[str, int] = field(default_factory=dict)
    out_of_order: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """One series, frame by frame. At every moment:

    announced = analysed + before_join + missing + malformed + dropped + late + pending, and pending = 0 once closed.

    announced: the detector's total, or highest number + 1 where it gave none (`is_announced` False).
    received: distinct frames whose number was read; decoded: those whose pixels were decoded and accepted.
    before_join: numbers below the first one seen, where streamer attached to a running series (`joined_late`).
    missing: numbers skipped so far, and at the close all that never came. malformed: unusable, number known.
    dropped: by a full queue. late: came after the close. pending: not yet come, or come and not yet analysed.
    duplicate, out_of_order: for information. closed_by: "", "end", "new start", "stall" or "stop".
    is_counted, first, step: whether its numbers do not count from 0, the one it begins with, and the distance between
        two of them (`SeriesStart`).
    gap_period, gap_length: of the latest numbers, gap_length in every gap_period are missing, as regularly as when
        several readers share a PUSH socket; 0 where there is no such pattern.
    """

    series: SeriesKey
    announced: int = 0
    is_announced: bool = False
    received: int = 0
    decoded: int = 0
    analysed: int = 0
    before_join: int = 0
    missing: int = 0
    malformed: int = 0
    dropped: int = 0
    late: int = 0
    pending: int = 0
    duplicate: int = 0
    out_of_order: int = 0
    joined_late: bool = False
    closed_by: str = ""
    is_counted: bool = False
    first: int = 0
    step: int = 1
    gap_period: int = 0
    gap_length: int = 0

    @property
    def unaccounted(self) -> int:
        """Frames under no name: 0, or there is a defect in streamer."""
        named = self.analysed + self.before_join + self.missing + self.malformed + self.dropped + self.late
        return self.announced - named - self.pending


@dataclass(frozen=True, slots=True)
class Status:
    """How the stream is doing: published once a second and at the end.

    state: "starting", "waiting" (for a first message), "running", "stalled" or "stopped".
    is_ready: models are loaded and warm and the source is open.
    latency_ms: percentile name ("p50", "p99", "max") → milliseconds from socket to decision over the last frames.
    queues: queue name → {"depth", "size"}. devices: analysis → where its model runs.
    stages: stage name → mean milliseconds per frame lately.
    outputs: output name → "up" or what is wrong. wall_time: UTC seconds since 1970.
    """

    state: str
    is_ready: bool
    source: str
    wire: WireAccount
    series: Account | None = None
    closed: tuple[Account, ...] = ()
    frames_per_second: float = 0.0
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    queues: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    wall_time: float = 0.0
