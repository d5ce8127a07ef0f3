"""The notebook's door: a loop over results, and how it ends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

import streamer
from streamer.records import BadFrame
from streamer.sources.simulated import Simulated
from streamer.stream import Stream
from tests.lists import ListSource, series


@pytest.fixture
def endless() -> ListSource:
    """A camera whose frames come without a geometry, and that does not end."""
    source = ListSource(series(range(5))[:-1])
    source.may_end.clear()
    return source


def test_a_loop_over_frames_that_no_geometry_fits_ends_with_what_to_do(endless: ListSource) -> None:
    stream = Stream(endless)
    with pytest.raises(BadFrame, match=r"no frame of list can be analysed: .* lacks .*give a \.poni") as refused:
        list(stream.analyse("saxs", device="cpu"))
    assert refused.value.reason == "geometry"
    assert sum(account.malformed for account in stream.accounts) == 5
    assert all(account.unaccounted == 0 for account in stream.accounts)


def test_a_geometry_of_another_detector_ends_the_loop_too(endless: ListSource, tmp_path: Path) -> None:
    Simulated("saxs", detector="128k").geometry.write(tmp_path / "other.poni")
    with pytest.raises(BadFrame, match="give the geometry of this detector"):
        list(Stream(endless).analyse("saxs", poni=str(tmp_path / "other.poni"), device="cpu"))


def test_stored_frames_without_a_geometry_are_an_error_when_they_are_over() -> None:
    with pytest.raises(BadFrame, match="can be analysed"):
        list(Stream(ListSource(series(range(5)))).analyse("saxs", device="cpu"))


def test_a_series_that_was_joined_late_is_waited_for_until_the_next_one_begins() -> None:
    simulated = Simulated("saxs", detector="128k", frames=1, rate="max")
    source = ListSource(series(range(20))[1:-1])
    with suppress(EOFError):
        while (message := simulated.receive(1.0)) is not None:
            source.items.append(simulated.decode(message))
    (result,) = Stream(source).analyse("saxs", device="cpu")
    assert result.series == simulated.start.series


def test_a_stopped_loop_ends_with_the_results_of_what_came_and_every_account() -> None:
    with streamer.open("sim:saxs?detector=128k&frames=100000&rate=50") as stream:
        numbers = []
        for result in stream.analyse("saxs", device="cpu"):
            numbers.append(result.number)
            if result.number == 5:
                stream.stop()
    assert numbers == list(range(len(numbers)))
    (account,) = stream.accounts
    assert account.closed_by == "stop"
    assert account.analysed == len(numbers)


def test_a_loop_that_was_stopped_before_it_began_gives_nothing() -> None:
    with streamer.open("sim:saxs?detector=128k&frames=100000&rate=50") as stream:
        stream.stop()
        assert list(stream.analyse("saxs", device="cpu")) == []
