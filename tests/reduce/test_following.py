"""An analysis follows its stream: whose geometry holds, and which frames are refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from streamer.records import BadFrame, BadInput, BadModel, Frame, SeriesKey, SeriesStart
from streamer.reduce.azimuthal import Integrator
from streamer.reduce.detector import Geometry
from streamer.reduce.following import Follower

GEOMETRY = Geometry(
    shape=(20, 30), pixel_size_m=(1e-4, 1e-4), distance_m=1.0, wavelength_A=1.0, poni_m=(1e-3, 1e-3), mask=None
)
START = SeriesStart(
    SeriesKey(1),
    shape=(20, 30),
    channels=("low", "high"),
    wavelength_A=1.0,
    beam_center=(10.0, 10.0),
    pixel_size_m=(1e-4, 1e-4),
    distance_m=1.0,
)


@dataclass(frozen=True)
class Prepared:
    """What it was built of."""

    integrator: Integrator
    series: SeriesStart | None
    previous: Prepared | None


def build(geometry: Geometry, series: SeriesStart | None, previous: Prepared | None) -> Prepared:
    return Prepared(Integrator(geometry, bins=4), series, previous)


def follower(given: Geometry | None = GEOMETRY, channel: str | None = None) -> Follower[Prepared]:
    return Follower("saxs", given, channel, build)


def frame(rows: int = 20, columns: int = 30, channel: str = "low") -> Frame:
    return Frame(np.zeros((rows, columns), np.uint16), SeriesKey(1), 0, channel)


def test_a_geometry_of_known_shape_is_prepared_before_any_frame_and_serves_without_a_start() -> None:
    found = follower().prepared_for(frame())
    assert (found.integrator.shape, found.series, found.previous) == ((20, 30), None, None)


def test_the_first_frame_tells_a_shape_that_nobody_told() -> None:
    stream = follower(replace(GEOMETRY, shape=None))
    assert stream.prepared_for(frame(16, 18)).integrator.shape == (16, 18)
    assert stream.prepared_for(frame(16, 18)) is stream.prepared_for(frame(16, 18))


def test_a_series_is_prepared_for_with_what_was_there_before() -> None:
    stream = follower()
    before = stream.prepared_for(frame())
    stream.begin(START)
    found = stream.prepared_for(frame())
    assert (found.series, found.previous) == (START, before)


def test_without_a_geometry_frames_are_refused_until_a_header_tells_one() -> None:
    stream = follower(None)
    with pytest.raises(BadFrame, match="saxs: no geometry for these frames: no start message"):
        stream.prepared_for(frame())
    stream.begin(START)
    assert stream.prepared_for(frame()).integrator.shape == (20, 30)


def test_a_header_that_tells_too_little_is_said_and_the_frames_after_it_are_refused() -> None:
    stream = follower(None)
    stream.begin(START)
    with pytest.raises(BadInput, match="the header lacks beam_center"):
        stream.begin(replace(START, beam_center=None))
    with pytest.raises(BadFrame) as refused:
        stream.prepared_for(frame())
    assert refused.value.reason == "geometry"


def test_frames_of_another_detector_are_refused_by_name() -> None:
    with pytest.raises(BadFrame, match=r"have shape \(8, 8\), the geometry \(20, 30\)") as refused:
        follower().prepared_for(frame(8, 8))
    assert refused.value.reason == "geometry"


def test_why_an_analysis_cannot_be_prepared_is_said_of_every_frame() -> None:
    def too_little(*_: object) -> Prepared:
        raise BadModel("the geometry reaches a tenth of the model's q")

    stream = Follower("saxs", replace(GEOMETRY, shape=None), None, too_little)
    for _ in range(2):
        with pytest.raises(BadFrame, match="saxs: no geometry for these frames: the geometry reaches a tenth"):
            stream.prepared_for(frame())


def test_the_first_channel_is_followed_unless_another_one_is_asked_for() -> None:
    first, asked = follower(), follower(channel="high")
    for stream in (first, asked):
        stream.begin(START)
    assert [first.accepts(frame(channel=name)) for name in ("low", "high")] == [True, False]
    assert [asked.accepts(frame(channel=name)) for name in ("low", "high")] == [False, True]
    unannounced = follower()
    assert [unannounced.accepts(frame(channel=name)) for name in ("b", "a", "b")] == [True, False, True]
