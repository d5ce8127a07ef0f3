"""What the stream notices of itself: numbers that others take, and messages that nobody can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from streamer.decide import Decider
from streamer.ledger import Ledger
from streamer.metrics import Metrics
from streamer.pipeline.supervision import REPEATING_LOOKS, UNREADABLE_LOOKS, Supervision
from streamer.pipeline.timing import Timing
from streamer.queues import Queue
from streamer.records import Alarm, BadFrame, SeriesKey, SeriesStart

KEY = SeriesKey(7)


@dataclass
class Quiet:
    """A source that only has its properties."""

    url: str = "dectris2+tcp://dcu:31001"
    is_exclusive: bool = True
    readers: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)

    def receive(self, timeout_s: float) -> Any:
        return None

    decode = identify = close = receive


class Watched:
    """A stream without threads, looked at once a second by its own clock."""

    def __init__(self, source: Quiet) -> None:
        self.ledger = Ledger()
        self.decider = Decider([])
        self.supervision = Supervision(
            source, [], self.decider, [], self.ledger, Metrics(), Timing(), wall_time=lambda: 0.0
        )
        self.supervision.queues(order=Queue(1))
        self._now = 0.0

    def frames(self, numbers: range | list[int], key: SeriesKey = KEY) -> None:
        for number in numbers:
            if self.ledger.frame(key, number, self._now) == "accepted":
                self.ledger.analysed(key, number, self._now)

    def look(self) -> dict[str, Alarm]:
        self._now += 1.0
        self.supervision.message_received(self._now)
        self.supervision.look(self._now)
        return {alarm.name: alarm for alarm in self.decider.active()}


def test_another_client_on_the_socket_is_told_with_what_to_do() -> None:
    stream = Watched(Quiet())
    stream.ledger.start(SeriesStart(KEY, images=1000), 0.0)
    stream.frames(range(0, 100, 2))
    alarm = stream.look()["frames_taken"]
    assert alarm.severity.name == "MAJOR"
    assert alarm.text.startswith("1 of every 2 frames is missing: another client is attached to this socket")
    assert "streamer relay" in alarm.text
    assert alarm.evidence == {"period": 2, "missing": 1}


def test_a_publisher_that_leaves_numbers_out_is_told_otherwise() -> None:
    stream = Watched(Quiet(is_exclusive=False))
    stream.ledger.start(SeriesStart(KEY, first=0), 0.0)
    stream.frames(range(0, 200, 4))
    text = stream.look()["frames_taken"].text
    assert text.startswith("3 of every 4 frames are missing: the sender leaves them out")
    assert "step=4" in text


@pytest.mark.parametrize(("share", "is_told"), [(2, False), (3, True)])
def test_readers_that_share_a_socket_on_purpose_are_no_strangers(share: int, is_told: bool) -> None:
    stream = Watched(Quiet(readers=2))
    stream.frames(range(0, 50 * share, share))
    assert ("frames_taken" in stream.look()) == is_told


def test_the_alarm_stays_until_a_series_shows_that_nothing_is_taken() -> None:
    stream = Watched(Quiet())
    stream.ledger.start(SeriesStart(KEY, images=100), 0.0)
    stream.frames(range(0, 100, 2))
    assert "frames_taken" in stream.look()
    stream.ledger.start(SeriesStart(SeriesKey(8), images=100), 1.0)
    stream.frames(range(10), SeriesKey(8))
    assert "frames_taken" in stream.look()
    stream.frames(range(10, 60), SeriesKey(8))
    assert "frames_taken" not in stream.look()


def test_a_stream_of_nothing_but_bad_messages_is_an_alarm_that_quotes_one() -> None:
    stream = Watched(Quiet())
    stream.supervision.example = "this looks like DECTRIS stream v1"
    for look in range(1, UNREADABLE_LOOKS + 1):
        stream.ledger.malformed("format", None, None, 0.0)
        assert ("stream_unreadable" in stream.look()) == (look == UNREADABLE_LOOKS)
    alarm = {one.name: one for one in stream.decider.active()}["stream_unreadable"]
    assert alarm.text == "no message can be used: this looks like DECTRIS stream v1"
    assert "stream_unreadable" in stream.look(), "silence is no cure"
    stream.frames([1])
    assert "stream_unreadable" not in stream.look()


def test_a_few_bad_messages_among_good_ones_are_no_alarm() -> None:
    stream = Watched(Quiet())
    for number in range(2 * UNREADABLE_LOOKS):
        stream.ledger.malformed("truncated", None, None, 0.0)
        stream.frames([number])
        assert "stream_unreadable" not in stream.look()


def test_a_series_that_an_analysis_cannot_use_is_told_with_its_reason_and_is_not_unreadable() -> None:
    stream = Watched(Quiet())
    stream.supervision.note_fit("saxs", "no geometry: give a .poni")
    for number in range(2 * UNREADABLE_LOOKS):
        stream.ledger.malformed("geometry", KEY, number, 0.0)
        alarms = stream.look()
        assert alarms["series_unfit"].text == "saxs cannot use this series: no geometry: give a .poni"
        assert "stream_unreadable" not in alarms
    stream.supervision.note_fit("saxs")
    assert "series_unfit" not in stream.look()


def test_a_series_that_one_of_two_analyses_cannot_use_is_told_too() -> None:
    stream = Watched(Quiet())
    stream.supervision.note_fit("saxs")
    stream.supervision.note_fit("rdf", "another detector")
    stream.frames([1])
    assert stream.look()["series_unfit"].evidence == {"analyses": ["rdf"]}


def test_a_sender_whose_number_stands_still_is_told_what_to_look_at() -> None:
    stream = Watched(Quiet())
    stream.frames([1])
    for look in range(1, REPEATING_LOOKS + 1):
        stream.frames([1] * 10)
        assert ("numbers_repeat" in stream.look()) == (look == REPEATING_LOOKS)
    alarm = {one.name: one for one in stream.decider.active()}["numbers_repeat"]
    assert alarm.text.startswith("10 of 10 frames in a second have a number that came already")
    assert "where it takes its frame number from" in alarm.text
    stream.look()
    assert "numbers_repeat" in stream.look(), "silence is no cure"
    stream.frames([2, 3])
    assert "numbers_repeat" not in stream.look()


@pytest.mark.parametrize("again", [5, 10])
def test_a_detector_that_sends_a_few_frames_again_is_no_alarm(again: int) -> None:
    stream = Watched(Quiet())
    for look in range(4 * REPEATING_LOOKS):
        numbers = range(10 * look, 10 * look + 10)
        stream.frames([*numbers, *numbers[:again]])
        assert "numbers_repeat" not in stream.look()


def test_frames_that_a_reconnected_sender_repeats_in_one_go_are_no_alarm() -> None:
    stream = Watched(Quiet())
    stream.frames(range(50))
    stream.look()
    stream.frames([*range(50), 50])
    assert "numbers_repeat" not in stream.look()
    for number in range(51, 60):
        stream.frames([number])
        assert "numbers_repeat" not in stream.look()


def test_a_peer_that_hangs_up_is_told_until_a_message_comes() -> None:
    source = Quiet(counts={"refused": 0})
    stream = Watched(source)
    assert "stream_unreadable" not in stream.look()
    source.counts = {"refused": 1}
    assert "its socket is of another type" in stream.look()["stream_unreadable"].text
    stream.frames([1])
    assert "stream_unreadable" not in stream.look()
    assert "stream_unreadable" not in stream.look()


def test_what_is_missing_among_unreadable_messages_accuses_nobody() -> None:
    stream = Watched(Quiet())
    stream.ledger.start(SeriesStart(KEY, images=1000), 0.0)
    for number in range(0, 100, 2):
        stream.frames([number])
        stream.ledger.malformed("json", None, None, 0.0)
    assert "frames_taken" not in stream.look()


def test_an_error_that_names_the_right_format_is_not_replaced_by_another() -> None:
    stream = Watched(Quiet())
    for bad in (BadFrame("format", "this looks like bsread"), BadFrame("parts", "four parts")):
        stream.ledger.malformed(bad.reason, None, None, 0.0)
        stream.supervision.note_bad(bad)
    assert stream.supervision.example == "this looks like bsread"
