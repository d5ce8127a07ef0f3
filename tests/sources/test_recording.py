"""The raw wire on disk: written, cut, damaged, and played again."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from streamer.records import BadConfig, Frame, OutputDown, SeriesEnd, SeriesKey, SeriesStart, SourceLost
from streamer.sources import Message
from streamer.sources.recording import MAGIC, Recorder, Recording
from streamer.wire import Format
from streamer.wire.dectris2 import Dectris2
from tests.sources.playing import messages

SERIES = SeriesKey(3)
WIRE = Dectris2()
MESSAGES = [
    WIRE.encode(SeriesStart(SERIES, images=2, shape=(2, 3))),
    *(WIRE.encode([Frame(np.full((2, 3), number, np.uint16), SERIES, number, "threshold_1")]) for number in range(2)),
    WIRE.encode(SeriesEnd(SERIES)),
]
SECOND_NS = 1_000_000_000


def find_format(name: str) -> Format:
    assert name == "dectris2"
    return Dectris2()


def record(path: Path, sent: list[list[bytes]], *, period_ns: int = SECOND_NS) -> Path:
    with Recorder(path, "dectris2") as recorder:
        for index, parts in enumerate(sent):
            recorder.write(parts, 10**15 + index * period_ns, wall_ns=index)
    return path


def contents(played: Iterable[Message]) -> list[list[bytes]]:
    return [[bytes(part) for part in message.parts] for message in played]


@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=8))
def test_what_was_recorded_is_played_byte_for_byte(tmp_path_factory, sent):
    path = record(tmp_path_factory.mktemp("wire") / "run.wire", sent)
    assert contents(messages(Recording(path, find_format))) == sent


def test_a_recording_knows_its_format_its_images_and_when_they_came(tmp_path):
    recording = Recording(record(tmp_path / "run.wire", MESSAGES), find_format)
    assert recording.announced_frames == 2
    assert not recording.is_exclusive
    played = list(messages(recording))
    assert [message.kind for message in played] == ["start", "image", "image", "end"]
    assert [message.extra["wall_ns"] for message in played] == [0, 1, 2, 3]
    assert recording.identify(played[2]) == (SERIES, 1)
    [frame] = recording.decode(played[2])
    assert frame.image.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert frame.received_ns == played[2].received_ns


def test_a_file_cut_at_any_byte_plays_up_to_the_last_whole_message(tmp_path):
    with Recorder(tmp_path / "whole.wire", "dectris2") as recorder:
        ends = [recorder.nbytes]
        for parts in MESSAGES:
            recorder.write(parts, 0)
            ends.append(recorder.nbytes)
    whole = recorder.path.read_bytes()
    path = tmp_path / "cut.wire"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < ends[0]:
            with pytest.raises(SourceLost, match=r"header of .*cut\.wire is cut or damaged"):
                Recording(path, find_format)
            continue
        whole_messages = sum(end <= size for end in ends) - 1
        with capture_logs() as logs:
            recording = Recording(path, find_format)
            assert contents(messages(recording)) == [list(map(bytes, parts)) for parts in MESSAGES[:whole_messages]]
        assert recording.lost_bytes == size - ends[whole_messages]
        assert [entry["lost_bytes"] for entry in logs] == ([recording.lost_bytes] if recording.lost_bytes else [])


def test_a_flipped_bit_costs_messages_and_never_changes_one(tmp_path):
    with Recorder(tmp_path / "whole.wire", "dectris2") as recorder:
        header_end = recorder.nbytes
        for parts in MESSAGES:
            recorder.write(parts, 0)
    whole = recorder.path.read_bytes()
    path = tmp_path / "flipped.wire"
    originals = [list(map(bytes, parts)) for parts in MESSAGES]
    for offset in range(header_end, len(whole), 3):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        with capture_logs() as logs:
            recording = Recording(path, find_format)
            played = contents(messages(recording))
        assert len(played) < len(originals)
        assert all(message in originals for message in played)
        assert recording.damaged or recording.lost_bytes
        assert logs


def test_a_damaged_record_is_skipped_and_the_next_ones_are_played(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES)
    content = path.read_bytes()
    damaged = content.replace(bytes(MESSAGES[1][0]), bytes(len(MESSAGES[1][0])))
    path.write_bytes(damaged)
    recording = Recording(path, find_format)
    assert contents(messages(recording)) == [list(map(bytes, MESSAGES[index])) for index in (0, 2, 3)]
    assert recording.damaged == 1


def test_what_a_killed_process_recorded_is_in_the_file(tmp_path):
    recorder = Recorder(tmp_path / "run.wire", "dectris2")
    recorder.write(MESSAGES[0], 0)
    recorder.write(MESSAGES[1], 1)
    assert len(list(messages(Recording(recorder.path, find_format)))) == 2  # before it is closed
    assert recorder.path.stat().st_size == recorder.nbytes
    recorder.close()


def test_a_recording_is_never_overwritten(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES)
    before = path.read_bytes()
    with pytest.raises(BadConfig, match="exists and is never overwritten"):
        Recorder(path, "dectris2")
    assert path.read_bytes() == before
    with pytest.raises(BadConfig, match="cannot create"):
        Recorder(tmp_path / "nowhere" / "run.wire", "dectris2")


def test_a_full_disk_leaves_whole_messages(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "run.wire", "dectris2")
    recorder.write(MESSAGES[0], 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (recorder.nbytes + 50, hard))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(OutputDown, match="takes no more after 1 messages"):
            recorder.write([bytes(1000)], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.close()
    recording = Recording(recorder.path, find_format)
    assert contents(messages(recording)) == [list(map(bytes, MESSAGES[0]))]
    assert recording.lost_bytes == 0


def test_real_time_keeps_the_recorded_intervals(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES, period_ns=3600 * SECOND_NS)
    recording = Recording(path, find_format, rate="real")
    assert recording.receive(0.0) is not None
    assert recording.receive(0.0) is None  # the next one is an hour away
    recording.close()


def test_a_rate_replaces_the_recorded_intervals(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES, period_ns=3600 * SECOND_NS)
    recording = Recording(path, find_format, rate=1000.0)
    assert len(list(messages(recording))) == 4
    recording = Recording(path, find_format, rate="real")
    recording.play_at("max")
    assert len(list(messages(recording))) == 4
    with pytest.raises(BadConfig, match="rate is -1"):
        Recording(path, find_format, rate=-1)


def test_messages_captured_one_per_file_are_played_start_first_and_end_last(tmp_path):
    names = ("zero.cbor", "image_2.cbor", "image_10.cbor", "a_last.cbor")
    for name, parts in zip(names, MESSAGES, strict=True):
        (tmp_path / name).write_bytes(b"".join(parts))
    (tmp_path / "notes.txt").write_text("not a message")
    recording = Recording(tmp_path, find_format, rate="real")
    assert recording.announced_frames == 2
    assert contents(messages(recording)) == [list(map(bytes, parts)) for parts in MESSAGES]
    chosen = Recording(f"{tmp_path / names[2]},{tmp_path / names[0]}", find_format)
    assert [message.kind for message in messages(chosen)] == ["start", "image"]


def test_what_is_no_recording_is_named(tmp_path):
    with pytest.raises(SourceLost, match=r"there is no file .*missing\.wire"):
        Recording(tmp_path / "missing.wire", find_format)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(SourceLost, match=r"holds picture\.png; expected messages as \.cbor"):
        Recording(tmp_path, find_format)
    with pytest.raises(BadConfig, match="nothing tells the format"):
        Recording(tmp_path / "picture.png", find_format)
    (tmp_path / "foreign.wire").write_bytes(b"something else entirely, and long enough for a header")
    with pytest.raises(SourceLost, match=r"header of .* is cut or damaged"):
        Recording(tmp_path / "foreign.wire", find_format)
    (tmp_path / "only_magic.wire").write_bytes(MAGIC)
    with pytest.raises(SourceLost, match=r"header of .* is cut or damaged"):
        Recording(tmp_path / "only_magic.wire", find_format)


def test_messages_captured_from_a_real_detector_are_played(tickit_data):
    recording = Recording(tickit_data / "stream2", find_format)
    start, frame, end = (record for message in messages(recording) for record in recording.decode(message))
    assert start.images == 1
    assert frame.image.shape == (4362, 4148)
    assert frame.image.dtype == np.uint16
    assert np.mean(frame.image == 65535) == pytest.approx(0.0693, abs=5e-5)
    assert isinstance(end, SeriesEnd)
    assert start.series == frame.series == end.series
