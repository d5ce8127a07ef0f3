"""From a wire to a file, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamer.records import BadConfig
from streamer.sources import Source
from streamer.sources.live import Live
from streamer.sources.recording import Recorder, Recording

LOOK_S = 0.1
"""How often `stop` is asked while nothing happens."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was recorded. frames: image messages. nbytes: the size of the file."""

    messages: int = 0
    frames: int = 0
    nbytes: int = 0
    seconds: float = 0.0


def record(
    source: Source,
    path: Path | str,
    *,
    seconds: float | None = None,
    messages: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] | None = None,
) -> Kept:
    """Keep the raw messages of a source in a new file until its end, a limit or stop(); the source is closed.

    source: one that receives wire messages (live, or a recording). seconds, messages: where to stop.
    Raises BadConfig when the file exists or the source has no wire messages, OutputDown when the disk is full.
    """
    began = time.monotonic()
    frames = 0
    try:
        if not isinstance(source, Live | Recording):
            raise BadConfig(f"record: {source.url} has no messages of a wire to keep; simulate it to a socket first")
        with Recorder(path, source.format.name, step=source.format.step) as recorder:
            while not stop() and (messages is None or recorder.messages < messages):
                if seconds is not None and time.monotonic() - began >= seconds:
                    break
                try:
                    message = source.receive(LOOK_S)
                except EOFError:
                    break
                if message is None or not message.parts:
                    continue  # a start that streamer wrote itself was never on the wire
                recorder.write(message.parts, message.received_ns, message.extra.get("wall_ns"))
                if message.kind == "image":
                    frames += 1
                    if progress is not None:
                        progress(frames)
    finally:
        source.close()
    return Kept(recorder.messages, frames, recorder.nbytes, time.monotonic() - began)
