"""Which geometry the frames of a stream have, and what an analysis prepared for it: the same for every analysis of
diffraction images.

A user's `.poni` holds for every series and lets a running one be joined; without one each series brings its own in the
header of its detector, and its frames are refused until that has come. Where nobody tells the shape of the images, the
first one does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from streamer.records import BadFrame, BadInput, BadModel, Frame, SeriesStart
from streamer.reduce.azimuthal import Integrator
from streamer.reduce.detector import Geometry, geometry_for

__all__ = ["Follower", "Prepared"]


class Prepared(Protocol):
    """What an analysis needs for the frames of one series."""

    @property
    def integrator(self) -> Integrator: ...


T = TypeVar("T", bound=Prepared)


class Follower(Generic[T]):
    """Follows the series of one stream for one analysis.

    analysis: its name, for what is said of frames that cannot be used. given: the user's geometry, None to take the
    header's. channel: the one that is analysed, None for the first one.
    build: prepares the analysis for a geometry of known shape; given the series, None where there was no start, and
    what was prepared before, which serves again if the geometry is the same. Raises BadInput or BadModel.
    """

    def __init__(
        self,
        analysis: str,
        given: Geometry | None,
        channel: str | None,
        build: Callable[[Geometry, SeriesStart | None, T | None], T],
    ) -> None:
        self.channel = channel
        self._analysis, self._given, self._asked, self._build = analysis, given, channel, build
        self._geometry = given
        self._series: SeriesStart | None = None
        self._misfit = "no start message that tells one has come; wait for the next series, or give a .poni (--poni)"
        self._building = threading.Lock()
        self._prepared: T | None = None
        if given is not None and given.shape is not None:
            self._prepared = build(given, None, None)

    def begin(self, series: SeriesStart) -> None:
        """Take a series' shape, mask and, without a `.poni`, its geometry. Raises BadInput, BadModel."""
        previous, self._prepared, self._geometry = self._prepared, None, None
        self._series = series
        self.channel = self._asked or next(iter(series.channels), None)
        geometry = geometry_for(self._given, series, self.channel or "", self._analysis)
        if geometry.shape is not None:
            self._prepared = self._build(geometry, series, previous)
        self._geometry = geometry

    def accepts(self, frame: Frame) -> bool:
        """Whether it is of the channel that is analysed; the first frame names it where nobody else did."""
        if self.channel is None:
            self.channel = frame.channel
        return frame.channel == self.channel

    def prepared_for(self, frame: Frame) -> T:
        """What was prepared for the series of this frame. Raises BadFrame with reason "geometry"."""
        prepared = self._prepared or self._with_shape_of(frame)
        is_announced = self._series is not None and self._series.shape is not None
        if not is_announced and frame.image.shape != prepared.integrator.shape:
            raise BadFrame(
                "geometry",
                f"{self._analysis}: the images have shape {frame.image.shape}, the geometry "
                f"{prepared.integrator.shape}; give the geometry of this detector",
            )
        return prepared

    def _with_shape_of(self, frame: Frame) -> T:
        rows, columns = frame.image.shape
        with self._building:
            if self._prepared is None and self._geometry is not None:
                try:
                    geometry = self._geometry.with_shape((rows, columns))
                    self._prepared = self._build(geometry, self._series, None)
                except (BadInput, BadModel) as misfit:
                    self._geometry, self._misfit = None, str(misfit)
            if self._prepared is None:
                raise BadFrame("geometry", f"{self._analysis}: no geometry for these frames: {self._misfit}")
            return self._prepared
