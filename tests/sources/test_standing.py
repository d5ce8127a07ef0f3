"""The start that a late reader is told."""

from __future__ import annotations

import pytest

from streamer.sources.standing import MOST_HEADERS, Standing


@pytest.mark.parametrize(
    ("kinds", "one_part", "several_parts"),
    [
        ("", "", ""),
        ("i", "", ""),
        ("s", "0", "0"),
        ("si?i", "0", "0"),
        ("ss", "1", "01"),  # either the same start in two messages, or a series that was given up at once
        ("ssiss", "4", "34"),
        ("sie", "", ""),
        ("sies", "3", "3"),
        ("ess", "2", "12"),
    ],
)
def test_what_stands_is_the_last_start_until_an_end(kinds, one_part, several_parts):
    names = {"s": "start", "i": "image", "e": "end", "?": None}
    for is_one_part, expected in ((True, one_part), (False, several_parts)):
        standing: Standing[str] = Standing(is_one_part)
        for place, kind in enumerate(kinds):
            standing.note(names[kind], str(place))
        assert "".join(standing.messages) == expected


def test_starts_without_end_take_no_memory():
    standing: Standing[int] = Standing(is_one_part=False)
    for number in range(1000):
        standing.note("start", number)
    assert standing.messages == list(range(1000 - MOST_HEADERS, 1000))
