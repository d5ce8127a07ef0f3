"""What the tests of the relay share: a sender on a thread, a recording of a simulated series, readers."""

from __future__ import annotations

import threading
from pathlib import Path

from streamer import relay
from streamer.records import BadConfig, Frame, OutputDown
from streamer.sources.recording import Recorder
from streamer.sources.simulated import Simulated
from streamer.wire.dectris2 import Dectris2
from tests.sources import playing

DEADLINE_S = 20.0


def simulated(**options) -> Simulated:
    return Simulated(**{"detector": "128k", "rate": "max", "frames": 12, **options})


class Sending:
    """relay.simulate on a thread of its own."""

    def __init__(self, *arguments, **options) -> None:
        self.sent: relay.Sent | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=arguments, kwargs=options)

    def _run(self, *arguments, **options) -> None:
        try:
            self.sent = relay.simulate(*arguments, **options)
        except (BadConfig, OutputDown) as error:
            self.error = error

    def __enter__(self) -> Sending:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def record_series(source: Simulated, path: Path) -> Path:
    wire = Dectris2()
    with Recorder(path, wire.name) as recorder:
        for time_ns, made in enumerate(playing.records(source)):
            recorder.write(wire.encode([made] if isinstance(made, Frame) else made), time_ns)
    return path
