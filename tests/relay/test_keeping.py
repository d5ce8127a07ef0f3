"""From a wire to a file."""

from __future__ import annotations

import pytest

from streamer import relay
from streamer.records import BadConfig
from streamer.sources.live import Live
from streamer.sources.recording import Recording
from streamer.wire.array import Array
from streamer.wire.dectris2 import Dectris2
from tests.relay.sending import Sending, record_series, simulated
from tests.sources import playing


def test_recording_ends_after_its_time_and_when_told_and_at_the_end_of_a_file(tmp_path, free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    assert relay.record(Live(address, Dectris2()), tmp_path / "time.wire", seconds=0.05).messages == 0
    assert relay.record(Live(address, Dectris2()), tmp_path / "told.wire", stop=lambda: True).messages == 0
    path = record_series(simulated(frames=2), tmp_path / "run.wire")
    assert relay.record(Recording(path, lambda _: Dectris2()), tmp_path / "copy.wire").frames == 2


def test_only_messages_of_a_wire_can_be_recorded(tmp_path):
    with pytest.raises(BadConfig, match="has no messages of a wire"):
        relay.record(simulated(), tmp_path / "run.wire")
    assert not (tmp_path / "run.wire").exists()


def test_a_recording_of_a_format_that_only_counts_holds_what_came_and_the_step(tmp_path, free_port):
    address = f"tcp://127.0.0.1:{free_port}"
    live = Live(address, Array(step=3), socket="pull")
    with Sending(simulated(frames=4), Array(), address, socket="push"):
        kept = relay.record(live, tmp_path / "run.wire", messages=4)
    assert (kept.messages, kept.frames) == (4, 4)
    recording = Recording(tmp_path / "run.wire", lambda name: {"array": Array}[name]())
    assert recording.format.step == 3
    start, *frames = playing.records(recording)
    assert (start.first, start.step) == (0, 3)
    assert [frame.number for frame in frames] == [0, 1, 2, 3]
