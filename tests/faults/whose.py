"""An analysis plug-in that says whose frame it was given, as the pixels tell (see `sender`).

It waits for a file before it lets a frame go on, so that a test can hold the whole consumer and let it go again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.records import Frame, Quantity, Reduced, Result

LOOK_S = 0.01


class Whose(Analysis):
    """Publishes `arming` and `number` as they stand in the first two pixels.

    after: a file that must be there before any frame is worked off.
    """

    name = "whose"
    quantities = ("arming", "number")

    def __init__(self, after: Path | None = None) -> None:
        self._after = after
        self._never = threading.Event()

    def accepts(self, frame: Frame) -> bool:
        return True

    def reduce(self, frame: Frame) -> Reduced:
        while self._after is not None and not self._after.exists():
            self._never.wait(LOOK_S)
        arming, number = (Quantity(float(value)) for value in frame.image[0, :2])
        said = {"arming": arming, "number": number}
        return Reduced(frame.series, frame.number, said, channel=frame.channel, received_ns=frame.received_ns)

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        return Result(self.name, reduced.series, reduced.number, reduced.quantities, reduced.channel)
