"""A simulated beamline: `sim:saxs?rate=20&frames=500&detector=1M&fault=radiation_damage@150`, or `sim:glass?mean=30`.

`instrument` and `glass` say what is simulated: a suspension of silica spheres, or total scattering of a GeSe3 glass, on
a real detector layout, counted photon by photon. The start message says all that a detector would: energy, distance,
beam centre, and a mask with the gaps, bad pixels and the beamstop.

Faults begin at a frame and last to the end or to a second frame: `void@150`, `bubble@150,beam_loss@400-450`.

    radiation_damage  saxs: particles aggregate, an upturn at low q grows with the dose
    void              saxs: a second population of larger spheres is there
    crystallisation   glass: half of it crystallises within GROWTH_FRAMES
    compression       glass: within GROWTH_FRAMES it has more neighbours, further away
    bubble            gas drifts through the beam, the sample fades and comes back within BUBBLE_FRAMES
    beam_loss         no photons
    saturation        the attenuator is out: the brightest pixels exceed the largest valid count
    beamstop_shift    the beamstop moves out of the masked region by SHIFT_M
    dead_module       the last module counts nothing
    dropped_frame, duplicate_frame, wrong_order   on the wire: a number is missing, comes twice, comes after the next

Frames are made in `decode`, on the workers; frame n depends on the seed and n alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from streamer.pixels import Scratch
from streamer.records import BadConfig, Frame, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.reduce.detector import Geometry, geometry_of
from streamer.sources import Message
from streamer.sources.glass import Glass
from streamer.sources.instrument import (
    DETECTORS,
    NODATA,
    SATURATION,
    SHIFT_M,
    Instrument,
    State,
)
from streamer.sources.playback import Cue, Playback, Rate

CLOCK_HZ = 50_000_000
"""Denominator of a DECTRIS detector's times."""
CHANNEL = "threshold_1"
MOST_FRAMES = 10_000_000
"""Eleven days at 10 Hz; the order of the faults is worked out beforehand."""
FRAME_TIME_S = 0.05
"""Announced where frames come as fast as they are made."""
DOSE_FRAMES = 40
"""Radiation damage reaches 63 % of its end after so many frames."""
DOSE_STEP = 4
"""Frames between two steps of the damage; a step changes no pixel by more than a tenth of the end value."""
BUBBLE_FRAMES = 12
GROWTH_FRAMES = 10
INSTRUMENTS = {"saxs": Instrument, "glass": Glass}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong from frame `first` to frame `last`, both included."""

    name: str
    first: int
    last: int

    def is_on(self, number: int) -> bool:
        return self.first <= number <= self.last


def _damaged(state: State, age: int) -> State:
    dose = age // DOSE_STEP * DOSE_STEP
    return replace(state, damage=1 - float(np.exp(-dose / DOSE_FRAMES)))


def _bubble(state: State, age: int) -> State:
    phase = min(age + 1, BUBBLE_FRAMES) / BUBBLE_FRAMES
    return replace(state, sample=1 - 0.8 * float(np.sin(np.pi * phase)) ** 2)


def _crystallised(state: State, age: int) -> State:
    return replace(state, crystallised=0.5 * min(1.0, (age + 1) / GROWTH_FRAMES))


def _compressed(state: State, age: int) -> State:
    return replace(state, compressed=min(1.0, (age + 1) / GROWTH_FRAMES))


IN_THE_BEAM: dict[str, Callable[[State, int], State]] = {
    "radiation_damage": _damaged,
    "void": lambda state, _: replace(state, has_voids=True),
    "crystallisation": _crystallised,
    "compression": _compressed,
    "bubble": _bubble,
    "beam_loss": lambda state, _: replace(state, flux=0.0),
    "saturation": lambda state, _: replace(state, is_overexposed=True),
    "beamstop_shift": lambda state, _: replace(state, stop_shift_m=SHIFT_M),
    "dead_module": lambda state, _: replace(state, is_module_dead=True),
}
"""Fault → what it makes of a state, `age` frames after it began."""

OF_ONE_SAMPLE = {"radiation_damage": "saxs", "void": "saxs", "crystallisation": "glass", "compression": "glass"}
"""Fault → the only kind that can have it."""

ON_THE_WIRE: dict[str, Callable[[list[int]], list[int]]] = {
    "dropped_frame": lambda numbers: [],
    "duplicate_frame": lambda numbers: [number for number in numbers for _ in range(2)],
    "wrong_order": lambda numbers: numbers[1:2] + numbers[:1] + numbers[2:],
}
"""Fault → what it makes of the numbers it is given: those of its frames and the next one."""

_FAULT = re.compile(r"(\w+)@(\d+)(?:-(\d+))?")


def parse_faults(text: str, frames: int, kind: str = "saxs") -> tuple[Fault, ...]:
    """ "void@150,bubble@300-320" as Faults; without a second number to the end, on the wire for one frame.

    Raises BadConfig naming every part that is none.
    """
    faults, problems = [], []
    known = {name for name in IN_THE_BEAM | ON_THE_WIRE if OF_ONE_SAMPLE.get(name, kind) == kind}
    for part in filter(None, text.split(",")):
        match = _FAULT.fullmatch(part.strip())
        name = match[1] if match else ""
        if not match or name not in known:
            problems.append(
                f"simulated: fault {part!r}; expected name@frame or name@first-last, with one of: "
                + ", ".join(sorted(known))
            )
            continue
        first = int(match[2])
        last = int(match[3]) if match[3] else first if name in ON_THE_WIRE else frames - 1
        faults.append(Fault(name, first, last))
    if problems:
        raise BadConfig(*problems)
    return tuple(faults)


def state_of(number: int, faults: tuple[Fault, ...]) -> State:
    """What the beam and the sample do in frame `number`."""
    state = State()
    for fault in faults:
        if fault.name in IN_THE_BEAM and fault.is_on(number):
            state = IN_THE_BEAM[fault.name](state, number - fault.first)
    return state


def wire_order(frames: int, faults: tuple[Fault, ...]) -> Iterator[int]:
    """The frame numbers in the order in which they are sent."""
    number = 0
    while number < frames:
        fault = next((fault for fault in faults if fault.name in ON_THE_WIRE and fault.is_on(number)), None)
        group = [number] if fault is None or fault.name != "wrong_order" else [number, number + 1]
        group = [one for one in group if one < frames]
        yield from group if fault is None else ON_THE_WIRE[fault.name](group)
        number += len(group)


def announcement(instrument: Instrument, frames: int, frame_time_s: float) -> SeriesStart:
    """What the detector says when it is armed. Each arming has a unique id of its own."""
    pixel_m = instrument.detector.pixel_m
    return SeriesStart(
        SeriesKey(1, f"sim-{time.time_ns():x}"),
        images=frames,
        shape=instrument.shape,
        dtype=np.dtype(np.uint16),
        channels=(CHANNEL,),
        nodata=NODATA,
        saturation=SATURATION,
        frame_time_s=frame_time_s,
        count_time_s=frame_time_s,
        energy_eV=instrument.energy_eV,
        wavelength_A=instrument.wavelength_A,
        beam_center=instrument.detector.beam_center,
        pixel_size_m=(pixel_m, pixel_m),
        distance_m=instrument.distance_m,
        mask={CHANNEL: instrument.mask},
        detector="simulated EIGER",
    )


class Simulated(Playback):
    """A beamline in a line of text.

    kind: "saxs" or "glass". rate: frames per second, or "max". frames: in the series.
    detector: "128k", "500k", "1M" or "4M".
    fault: what goes wrong and when (see the module's description). seed: of the photons and the bad pixels.
    mean: expected counts per good pixel and frame.

    instrument: what is simulated. start: the start message, with geometry and mask.
    Raises BadConfig for options that make no sense.
    """

    def __init__(
        self,
        kind: str = "saxs",
        *,
        rate: Rate = 20.0,
        frames: int = 500,
        detector: Literal["128k", "500k", "1M", "4M"] = "1M",
        fault: str = "",
        seed: int = 0,
        mean: float = 0.3,
    ) -> None:
        if kind not in INSTRUMENTS:
            raise BadConfig(f"simulated: there is no instrument {kind!r}; expected one of: {', '.join(INSTRUMENTS)}")
        if detector not in DETECTORS:
            raise BadConfig(f"simulated: there is no detector {detector!r}; expected one of: {', '.join(DETECTORS)}")
        if not 1 <= frames <= MOST_FRAMES or seed < 0 or not 0 < mean < 1000:
            raise BadConfig(
                f"simulated: frames = {frames}, seed = {seed}, mean = {mean}; "
                f"expected 1 to {MOST_FRAMES} frames, a seed from 0, and 0 < mean < 1000 counts per pixel"
            )
        super().__init__(f"sim:{kind}", rate)
        self.seed = seed
        self.faults = parse_faults(fault, frames, kind)
        self.announced_frames = sum(1 for _ in wire_order(frames, self.faults))
        self.instrument = INSTRUMENTS[kind](DETECTORS[detector], mean, seed)
        self.start = announcement(self.instrument, frames, self._period_s or FRAME_TIME_S)
        self._play(self._script(frames))

    @property
    def geometry(self) -> Geometry:
        """The instrument as the analysis wants it, with its mask."""
        return geometry_of(self.start, CHANNEL)

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        kind, number = message.parts
        if kind == "start":
            return [replace(self.start, received_ns=message.received_ns)]
        if kind == "end":
            return [SeriesEnd(self.start.series, message.received_ns)]
        image = (scratch.empty if scratch else np.empty)(self.instrument.shape, np.uint16)
        self.instrument.expose(state_of(number, self.faults), self._photons(number), image)
        began = number * Fraction(round((self.start.frame_time_s or 0) * CLOCK_HZ), CLOCK_HZ)
        lasted = Fraction(round((self.start.count_time_s or 0) * CLOCK_HZ), CLOCK_HZ)
        return [
            Frame(
                image=image,
                series=self.start.series,
                number=number,
                channel=CHANNEL,
                start_s=began,
                stop_s=began + lasted,
                real_s=lasted,
                received_ns=message.received_ns,
            )
        ]

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        return self.start.series, message.parts[1]

    def _photons(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, number]))

    def _script(self, frames: int) -> Iterator[Cue]:
        place = 0
        yield Cue(place, ("start", 0), "start")
        for place, number in enumerate(wire_order(frames, self.faults)):
            yield Cue(place, ("image", number), "image")
        yield Cue(place + 1, ("end", frames), "end")
