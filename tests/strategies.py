"""What physics and detectors can produce, for property tests: series, starts, frames, images, times."""

from __future__ import annotations

from datetime import UTC
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from streamer.records import Frame, SeriesEnd, SeriesKey, SeriesStart

IMAGE_DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "uint32", "int32", "float32"))
"""What a Frame's image may be made of (see `records.Frame`)."""

CHANNELS = ("threshold_1", "threshold_2", "difference")

names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=12)
numbers = st.integers(0, 2**63 - 1)
lengths = st.floats(1e-9, 1e9)

printable = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), max_size=26)
series_keys = st.builds(SeriesKey, numbers, printable)
series_ends = st.builds(SeriesEnd, series_keys)

exact_times = st.builds(Fraction, st.integers(0, 10**15), st.sampled_from([1, 1000, 10**8, 50_000_000]))
"""Seconds after the beginning of a series, counted by a clock of some frequency."""

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
"""What users attach to a series or a frame."""

dates = st.datetimes(timezones=st.timezones()).map(lambda moment: moment.astimezone(UTC).isoformat())

extras = st.fixed_dictionaries(
    {}, optional={"user_data": plain, "series_date": dates | st.text(), "sensor_material": st.text()}
)


def shapes(largest: int = 40) -> st.SearchStrategy[tuple[int, int]]:
    """(rows, columns), neither a multiple of anything."""
    return st.tuples(st.integers(1, largest), st.integers(1, largest))


@st.composite
def images(draw: st.DrawFn, shape: tuple[int, int] | None = None, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Anything from a dark frame over photon counts to noise, with gaps of the dtype's maximum."""
    rows, columns = draw(shapes()) if shape is None else shape
    dtype = draw(st.sampled_from(IMAGE_DTYPES)) if dtype is None else dtype
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        image = rng.poisson(draw(st.sampled_from([0.0, 0.01, 3.0, 100.0])), (rows, columns)).astype(dtype)
    else:
        image = np.frombuffer(rng.bytes(rows * columns * dtype.itemsize), dtype).reshape(rows, columns).copy()
    if dtype.kind == "u":
        image[:, columns // 2 : columns // 2 + draw(st.integers(0, 3))] = np.iinfo(dtype).max
    return image


@st.composite
def exposures(draw: st.DrawFn) -> list[Frame]:
    """All channels of one exposure."""
    series, number, extra = draw(series_keys), draw(numbers), draw(extras)
    start_s, stop_s, real_s = (draw(st.none() | exact_times) for _ in range(3))
    channels = draw(st.lists(st.sampled_from(CHANNELS), min_size=1, unique=True))
    shape, dtype = draw(shapes()), draw(st.sampled_from(IMAGE_DTYPES))
    return [
        Frame(draw(images(shape, dtype)), series, number, channel, start_s, stop_s, real_s, extra=extra)
        for channel in channels
    ]


@st.composite
def series_starts(draw: st.DrawFn) -> SeriesStart:
    """A start message with anything absent that may be absent."""
    shape = draw(shapes())
    channels = draw(st.lists(st.sampled_from(CHANNELS), unique=True))
    return SeriesStart(
        series=draw(series_keys),
        images=draw(st.none() | numbers),
        shape=shape,
        dtype=draw(st.none() | st.sampled_from(IMAGE_DTYPES)),
        channels=tuple(channels),
        saturation=draw(st.none() | st.integers(0, 2**32)),
        frame_time_s=draw(st.none() | lengths),
        count_time_s=draw(st.none() | lengths),
        energy_eV=draw(st.none() | lengths),
        wavelength_A=draw(st.none() | lengths),
        beam_center=draw(st.none() | st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))),
        pixel_size_m=draw(st.none() | st.tuples(lengths, lengths)),
        distance_m=draw(st.none() | lengths),
        mask={name: draw(hnp.arrays(np.bool_, shape)) for name in channels if draw(st.booleans())},
        flatfield={name: draw(images(shape, np.dtype(np.float32))) for name in channels if draw(st.booleans())},
        detector=draw(st.text()),
        extra=draw(extras),
    )
