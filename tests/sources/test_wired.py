"""Series out of running numbers, results that belong together, and messages of another format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import config
from streamer.pixels import Scratch
from streamer.records import BadFrame, Buffer, Frame, Quantity, Result, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.sources import Message
from streamer.sources.wired import MOST_SENDERS, REORDERED, Runs, Wired
from streamer.wire import Format, Kind
from streamer.wire.dectris2 import Dectris2
from streamer.wire.results import Results, encode


class Counting(Format):
    """A format of two characters: the sender's name and a number below 256."""

    name = title = "counting"
    is_counted = True
    step = 2

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        return "image"

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        if len(parts[0]) != 2:
            raise BadFrame("size", "expected two bytes", series=SeriesKey(0))
        return SeriesKey(0, chr(parts[0][0])), int(parts[0][1])

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        series, number = self.identify(parts)
        if number == 255:
            raise BadFrame("type", "no image", series=series, number=number)
        return [Frame(np.zeros((2, 2), np.uint16), series, number)]

    def encode(self, record: Any) -> list[Buffer]:
        return []


class Listed(Wired):
    """Messages from a list."""

    url = "listed"

    def __init__(self, speaks: Format, messages: Sequence[Sequence[Buffer]]) -> None:
        super().__init__()
        self.format = speaks
        self._messages = [Message(parts, speaks.kind(parts), 2, 1000 + n) for n, parts in enumerate(messages)]

    def _arrivals(self, timeout_s: float) -> Sequence[Message]:
        if not self._messages:
            raise EOFError
        return [self._messages.pop(0)]


def heard(source: Listed) -> list[Message]:
    messages = []
    try:
        while True:
            message = source.receive(0.0)
            assert message is not None
            messages.append(message)
    except EOFError:
        return messages


def counted(*numbers: int, sender: str = "a") -> list[list[Buffer]]:
    return [[bytes([ord(sender), number])] for number in numbers]


def told(source: Listed) -> list[tuple[str, int, int | None]]:
    """What comes out, in short: (word, series number, number)."""
    records = [record for message in heard(source) for record in source.decode(message)]
    return [
        ("start", record.series.number, record.first)
        if isinstance(record, SeriesStart)
        else ("frame", record.series.number, record.number)
        for record in records
        if isinstance(record, SeriesStart | Frame)
    ]


def test_a_run_of_numbers_begins_with_a_start_that_says_where() -> None:
    source = Listed(Counting(), counted(5, 7, 9))
    messages = heard(source)
    assert [message.kind for message in messages] == ["start", "image", "image", "image"]
    assert source.decode(messages[0]) == [SeriesStart(SeriesKey(1, "a"), first=5, step=2, received_ns=1000)]
    assert source.identify(messages[3]) == (SeriesKey(1, "a"), 9)


def test_a_number_that_falls_back_begins_a_new_series() -> None:
    assert told(Listed(Counting(), counted(0, 1, 2, 0, 1))) == [
        *[("start", 1, 0), ("frame", 1, 0), ("frame", 1, 1), ("frame", 1, 2)],
        *[("start", 2, 0), ("frame", 2, 0), ("frame", 2, 1)],
    ]


def test_a_number_below_the_first_one_begins_a_new_series() -> None:
    assert told(Listed(Counting(), counted(5, 6, 3, 4)))[3:] == [("start", 2, 3), ("frame", 2, 3), ("frame", 2, 4)]


def test_an_overtaken_frame_stays_in_its_series() -> None:
    assert told(Listed(Counting(), counted(3, 5, 4, 6)))[1:] == [("frame", 1, number) for number in (3, 5, 4, 6)]


def test_the_same_number_again_is_a_duplicate_and_no_restart() -> None:
    assert told(Listed(Counting(), counted(3, 4, 4)))[1:] == [("frame", 1, number) for number in (3, 4, 4)]


def test_senders_on_one_socket_have_series_of_their_own() -> None:
    source = Listed(Counting(), [*counted(100), *counted(5, sender="b"), *counted(101), *counted(6, sender="b")])
    assert [line for line in told(source) if line[0] == "frame"] == [
        *[("frame", 1, 100), ("frame", 2, 5), ("frame", 1, 101), ("frame", 2, 6)]
    ]


def test_a_message_that_cannot_be_identified_is_left_to_whoever_decodes_it() -> None:
    source = Listed(Counting(), [[b"abc"]])
    (message,) = heard(source)
    with pytest.raises(BadFrame, match="two bytes"):
        source.decode(message)


def test_a_refused_message_is_counted_in_the_series_it_was_placed_in() -> None:
    source = Listed(Counting(), counted(254, 255))
    with pytest.raises(BadFrame) as caught:
        source.decode(heard(source)[-1])
    assert (caught.value.series, caught.value.number) == (SeriesKey(1, "a"), 255)


@given(st.lists(st.integers(0, 3 * REORDERED), min_size=1, max_size=200))
def test_within_a_series_numbers_never_fall_back_further_than_frames_are_reordered(numbers: list[int]) -> None:
    runs, highest = Runs(), {}
    for number in numbers:
        series, is_new = runs.place("", number)
        assert is_new == (series not in highest)
        highest[series] = max(highest.get(series, 0), number)
        assert number >= highest[series] - REORDERED


@given(st.integers(0, 10**12), st.lists(st.integers(1, 10**6), max_size=50))
def test_numbers_that_go_up_are_one_series(first: int, steps: list[int]) -> None:
    runs = Runs()
    number = first
    assert runs.place("", number) == (SeriesKey(1), True)
    for step in steps:
        number += step
        assert runs.place("", number) == (SeriesKey(1), False)


def test_any_number_of_senders_takes_bounded_memory() -> None:
    runs = Runs()
    for sender in range(10 * MOST_SENDERS):
        runs.place(str(sender), 1)
    assert len(runs._runs) == MOST_SENDERS


def result(analysis: str, number: int) -> list[bytes]:
    return encode(Result(analysis, SeriesKey(7), number, {"x": Quantity(0.5)}, received_ns=5))


def test_results_of_one_frame_are_counted_once() -> None:
    source = Listed(Results(), [result("saxs", 1), result("rdf", 1), result("saxs", 2), result("rdf", 2)])
    messages = heard(source)
    assert [message.kind for message in messages] == ["image", None, "image", None]
    assert [record.analysis for message in messages for record in source.decode(message)] == ["saxs", "rdf"] * 2


def test_a_message_of_another_format_is_refused_with_its_name_and_what_to_do() -> None:
    source = Listed(Dectris2(), [result("saxs", 1)])
    source.url = "dectris2+tcp://dcu:31001"
    source.recognise = config.recognise
    with pytest.raises(
        BadFrame, match=r"looks like streamer results, not DECTRIS stream v2: open results\+tcp://dcu:31001"
    ) as caught:
        source.decode(heard(source)[0])
    assert caught.value.reason == "format"


def test_a_damaged_message_of_the_right_format_keeps_its_reason() -> None:
    (end,) = Dectris2().encode(SeriesEnd(SeriesKey(1)))
    source = Listed(Dectris2(), [[bytes(end)[:-3]], [b"noise"]])
    source.recognise = config.recognise
    for message in heard(source):
        with pytest.raises(BadFrame) as caught:
            source.decode(message)
        assert caught.value.reason != "format"
