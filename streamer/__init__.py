"""Real-time analysis of detector streams: frames in, decisions out, nothing lost without a number changing.

    import streamer

    for result in streamer.open("sim:saxs?frames=20").analyse("saxs"):
        print(result.number, result["anomaly"].value)

`open` attaches to a source (see `streamer.stream`), `run` serves a beamline file until told to stop (see
`streamer.service`); the words Frame, Result, Alarm, … are explained in `streamer.records`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamer.records import Alarm, Frame, Quantity, Result, StreamerError

if TYPE_CHECKING:
    from streamer.service import run
    from streamer.stream import open  # noqa: A004 - streamer.open reads like the built-in it resembles

__all__ = ["Alarm", "Frame", "Quantity", "Result", "StreamerError", "open", "run"]

_DOORS = {"open": "streamer.stream", "run": "streamer.service"}


def __getattr__(name: str) -> Any:
    """The doors are opened when they are asked for: importing one room does not load the whole house."""
    if name in _DOORS:
        return getattr(import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'streamer' has no attribute {name!r}")
