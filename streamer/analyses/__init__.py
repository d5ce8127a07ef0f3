"""Analyses: one file, one question asked of a frame. Batching and calling the model are the pipeline's business.

An analysis is built once from its table of the beamline file. `begin` runs alone; `reduce` runs on any worker, several
at once; `interpret` runs in the order of the frames. An analysis that was given its geometry works without `begin`, so
that joining a running series loses nothing.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from streamer.infer import Model, RawModel
from streamer.records import Frame, Reduced, Result, SeriesStart


class Analysis(abc.ABC):
    """One question asked of every frame. `model` is None where physics alone answers it.

    quantities: the names of the numbers in its Results, so that a rule can be checked before a frame is there.
    curves: the names of the arrays in them, which no rule can watch.
    """

    name: str
    quantities: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    model: Model | RawModel | None = None

    def begin(self, series: SeriesStart) -> None:
        """A series starts: adapt to its shape, mask and wavelength. Never beside another call.

        Raises BadInput when the series does not fit the configured geometry.
        """

    @abc.abstractmethod
    def accepts(self, frame: Frame) -> bool:
        """Whether this channel of a frame is the one the question is asked of."""

    @abc.abstractmethod
    def reduce(self, frame: Frame) -> Reduced:
        """Physics: what is made of the image. The image may not be kept. Raises BadFrame."""

    @abc.abstractmethod
    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        """What the analysis says. outputs: the model's for this frame, without batch axis; None without a model."""
