"""The raw wire on disk: written, cut, damaged, and played again."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from streamer.records import BadConfig, Frame, OutputDown, SeriesEnd, SeriesKey, SeriesStart, SourceLost
from streamer.sources import Message
from streamer.sources.playback import Pace
from streamer.sources.recording import MAGIC, Recorder, Recording
from streamer.wire import Format
from streamer.wire.array import Array
from streamer.wire.bsread import Bsread
from streamer.wire.dectris1 import Dectris1
from streamer.wire.dectris2 import Dectris2
from streamer.wire.karabo import Karabo
from streamer.wire.results import Results
from tests import hostile
from tests.sources.playing import messages
from tests.sources.test_playback import Clock

SERIES = SeriesKey(3)
WIRE = Dectris2()
MESSAGES = [
    WIRE.encode(SeriesStart(SERIES, images=2, shape=(2, 3))),
    *(WIRE.encode([Frame(np.full((2, 3), number, np.uint16), SERIES, number, "threshold_1")]) for number in range(2)),
    WIRE.encode(SeriesEnd(SERIES)),
]
SECOND_NS = 1_000_000_000


FORMATS: dict[str, type[Format]] = {
    speaks.name: speaks for speaks in (Array, Bsread, Dectris1, Dectris2, Karabo, Results)
}


def find_format(name: str) -> Format:
    return FORMATS[name]()


def record(path: Path, sent: Sequence[Sequence[bytes]], *, period_ns: int = SECOND_NS, name: str = "dectris2") -> Path:
    with Recorder(path, name) as recorder:
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


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_file_cut_at_any_byte_plays_up_to_the_last_whole_message(tmp_path, name):
    sent = hostile.good(name)[:4]
    with Recorder(tmp_path / "whole.wire", name) as recorder:
        ends = [recorder.nbytes]
        for parts in sent:
            recorder.write(parts, 0)
            ends.append(recorder.nbytes)
    path = tmp_path / "cut.wire"
    shutil.copy(recorder.path, path)
    for size in reversed(range(ends[-1])):
        os.truncate(path, size)
        if size < ends[0]:
            with pytest.raises(SourceLost, match=r"header of .*cut\.wire is cut or damaged"):
                Recording(path, find_format)
            continue
        whole_messages = sum(end <= size for end in ends) - 1
        with capture_logs() as logs:
            recording = Recording(path, find_format)
            assert contents(from_tape(recording)) == [list(map(bytes, parts)) for parts in sent[:whole_messages]]
        assert recording.lost_bytes == size - ends[whole_messages]
        told = [entry["lost_bytes"] for entry in logs if entry["event"] == "the recording is cut"]
        assert told == ([recording.lost_bytes] if recording.lost_bytes else [])


def from_tape(recording: Recording) -> list[Message]:
    """Every message that was recorded, without what the source itself adds for formats that only count."""
    return [message for message in messages(recording) if message.parts]


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
    assert (recording.damaged, recording.skipped_bytes, recording.lost_bytes) == (1, 0, 0)


HEAD = 12 + 20 + 8
"""Bytes of a record with one part before that part."""


@pytest.mark.parametrize("wrong", [bytes(1), b"\x01", b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_behind_a_damaged_head_the_next_record_is_found(tmp_path, wrong):
    sent = [[bytes([number]) * 300] for number in range(5)]
    whole = record(tmp_path / "run.wire", sent).read_bytes()
    place = whole.index(sent[2][0]) - HEAD
    path = tmp_path / "damaged.wire"
    for offset in range(HEAD):
        damaged = bytearray(whole)
        damaged[place + offset : place + min(offset + len(wrong), HEAD)] = wrong[: HEAD - offset]
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        recording = Recording(path, find_format)
        played = contents(messages(recording))
        assert [sent[0], sent[1], sent[3], sent[4]] == [one for one in played if one != sent[2]]
        assert played.count(sent[2]) + recording.damaged == 1
        assert recording.skipped_bytes in (0, HEAD + 300)
        assert recording.lost_bytes == 0


SIX = [[b"%d" % number * 20, bytes(10 * number)] for number in range(6)]
BODY = sum(12 + 20 + 2 * 8 + sum(map(len, parts)) for parts in SIX)


@given(st.integers(0, BODY), st.integers(0, 300), st.binary(max_size=100))
def test_whatever_is_cut_out_or_put_in_only_whole_messages_are_played_in_order(tmp_path_factory, begin, gap, inserted):
    path = record(tmp_path_factory.mktemp("wire") / "run.wire", SIX)
    whole = path.read_bytes()
    begin += len(whole) - BODY
    path.write_bytes(whole[:begin] + inserted + whole[begin + gap :])
    places = [SIX.index(parts) for parts in contents(messages(Recording(path, find_format)))]
    assert places == sorted(set(places))
    ends = [whole.index(parts[0]) + 20 + len(parts[1]) for parts in SIX]
    begins = [whole.index(parts[0]) - 12 - 20 - 2 * 8 for parts in SIX]
    untouched = {place for place in range(6) if ends[place] <= begin or begins[place] >= begin + gap}
    assert untouched <= set(places)


def test_looking_for_the_next_record_ends(tmp_path, monkeypatch):
    """Counts near zero look like small lengths; a hostile file could make every byte look like a record."""
    monkeypatch.setattr("streamer.sources.recording.MOST_CANDIDATES", 50)
    path = record(tmp_path / "run.wire", [[b"first"], [b"second"], [b"third"]])
    whole = path.read_bytes()
    place = whole.index(b"second") - HEAD
    decoy = struct.pack("<QIqqIQ", 20, 0, 0, 0, 0, 0)  # a message of no parts, with a wrong checksum
    path.write_bytes(whole[:place] + b"\xff" * 8 + decoy * 100 + whole[place:])
    with capture_logs() as logs:
        recording = Recording(path, find_format)
    assert contents(messages(recording)) == [[b"first"]]
    assert recording.lost_bytes == len(whole) - place + 8 + 100 * len(decoy)
    assert logs[0]["event"] == "too many places look like a record"


def test_with_its_format_named_a_recording_without_header_is_played(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES)
    damaged = bytearray(path.read_bytes())
    damaged[len(MAGIC) + 3] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(SourceLost, match=r"name its format \(\?format=dectris2\)"):
        Recording(path, find_format)
    recording = Recording(path, find_format, format="dectris2")
    assert contents(messages(recording)) == [list(map(bytes, parts)) for parts in MESSAGES]
    assert recording.damaged == 1


def test_a_header_without_a_format_is_refused(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES, name="dectris2")
    content = path.read_bytes()
    for header in (b"[1]", b"{}", b"nonsense", b'{"format": "array", "step": "far"}'):
        payload = struct.pack("<Q", len(header)) + header
        path.write_bytes(MAGIC + struct.pack("<QI", len(header), zlib.crc32(payload)) + header + content[200:])
        with pytest.raises(SourceLost, match="names no format"):
            Recording(path, find_format)


def test_a_format_that_only_counts_keeps_the_step_of_its_numbers(tmp_path):
    with Recorder(tmp_path / "run.wire", "bsread", step=4) as recorder:
        for number, parts in enumerate(hostile.good("bsread")):
            recorder.write(parts, number)
    recording = Recording(recorder.path, find_format)
    assert recording.format.step == 4
    assert len(from_tape(recording)) == len(hostile.good("bsread"))


def test_a_part_is_played_with_the_start_that_stood_before_it(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES)
    recording = Recording(path, find_format, begin_s=2.0, end_s=3.0)
    assert recording.announced_frames == 1
    assert contents(messages(recording)) == [list(map(bytes, MESSAGES[index])) for index in (0, 2)]
    with pytest.raises(BadConfig, match=r"lasts 3.0 s, and nothing is in it from 100 s on"):
        Recording(path, find_format, begin_s=100.0)
    with pytest.raises(BadConfig, match="expected 0 ≤ begin_s < end_s"):
        Recording(path, find_format, begin_s=2.0, end_s=2.0)


def test_a_loop_begins_again_until_it_is_closed(tmp_path):
    path = record(tmp_path / "run.wire", MESSAGES)
    recording = Recording(path, find_format, loop=3)
    assert recording.announced_frames == 6
    assert contents(messages(recording)) == [list(map(bytes, parts)) for parts in MESSAGES] * 3
    endless = Recording(path, find_format, loop=0)
    assert endless.announced_frames is None
    for _ in range(50):
        assert endless.receive(0.0) is not None
    endless.close()
    empty = Recording(record(tmp_path / "empty.wire", []), find_format, loop=0)
    assert list(messages(empty)) == []


@given(st.lists(st.integers(0, 5 * SECOND_NS), min_size=2, max_size=12), st.sampled_from([1, 2]))
def test_the_recorded_intervals_are_kept_to_a_millisecond(tmp_path_factory, pauses_ns, loop):
    path = tmp_path_factory.mktemp("wire") / "run.wire"
    times_ns = [10**15 + sum(pauses_ns[: index + 1]) for index in range(len(pauses_ns))]
    with Recorder(path, "dectris2") as recorder:
        for time_ns in times_ns:
            recorder.write(MESSAGES[1], time_ns)
    recording = Recording(path, find_format, loop=loop)
    recording.play_at("real")
    clock = Clock()
    recording.pace = Pace(clock, clock.sleep)
    played_s = []
    while True:
        try:
            if recording.receive(0.1) is not None:
                played_s.append(clock.now - 1000.0)
        except EOFError:
            break
    span_s = (times_ns[-1] - times_ns[0]) / 1e9
    lap_s = span_s + span_s / (len(times_ns) - 1)  # the next lap begins a mean interval later
    expected = [lap * lap_s + (time_ns - times_ns[0]) / 1e9 for lap in range(loop) for time_ns in times_ns]
    assert played_s == pytest.approx(expected, abs=1e-3)
    recording.close()


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
