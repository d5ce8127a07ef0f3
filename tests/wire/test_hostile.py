"""Every format against its corpus, against mutated messages, and against the messages of the other formats."""

from __future__ import annotations

import importlib
import itertools
import os
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from streamer import config
from streamer.compression import Scratch
from streamer.records import BadFrame
from streamer.wire import Format
from tests import hostile

FORMATS = config.names("wire")
CASES = [(name, case) for name in FORMATS for case in hostile.corpus(name)]

FEWEST_CASES = 60
MUTATIONS = 100_000
BATCH = 2_000
MOST_GROWTH = 16_000_000
"""Bytes the process may have grown by after 98,000 more messages, 160 for each: caches of fixed size fill up, the
allocator keeps what it was given, and nothing adds up."""
MOST_AT_ONCE = 20_000_000
"""Bytes a hostile message may cost while it is read; the largest of them has a megabyte itself."""


def reasons(name: str) -> Mapping[str, str]:
    table: Mapping[str, str] = importlib.import_module(f"streamer.wire.{name}").REASONS
    return table


def opened(name: str, **options: Any) -> Format:
    speaks: Format = config.find("wire", name)(**options)
    return speaks


def small(name: str) -> Format:
    """A format that expects images as small as those of the corpus, so that a grown shape is refused."""
    return opened(name) if name == "results" else opened(name, max_pixels=10_000)


@pytest.mark.parametrize("name", FORMATS)
def test_the_corpus_of_a_format_is_large_and_its_names_are_distinct(name: str) -> None:
    names = [case.name for case in hostile.corpus(name)]
    assert len(names) >= FEWEST_CASES
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case.name}" for name, case in CASES])
def test_a_hostile_message_is_refused_for_its_reason_and_costs_little(name: str, case: hostile.Case) -> None:
    speaks = opened(name)
    speaks.kind(case.parts)
    speaks.claims(case.parts)
    tracemalloc.start()
    with pytest.raises(BadFrame) as caught:
        speaks.decode(case.parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason == case.reason
    assert caught.value.reason in reasons(name)
    assert len(str(caught.value)) < 400
    assert peak < MOST_AT_ONCE


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_messages_are_counted_and_the_good_ones_between_them_all_arrive(name: str) -> None:
    speaks, scratch = small(name), Scratch(limit=10_000_000)
    good = hostile.good(name)
    whole = Counter[str]()
    for parts in good:
        whole.update(type(record).__name__ for record in small(name).decode(parts))
    verdicts: Counter[str] = Counter()
    mutations = hostile.mutations(2026, MUTATIONS, good)
    settled = 0
    for batch in range(MUTATIONS // BATCH):
        for parts in itertools.islice(mutations, BATCH):
            scratch.reset()
            verdicts[verdict(speaks, parts, scratch)] += 1
        arrived = Counter[str]()
        for parts in good:
            scratch.reset()
            arrived.update(type(record).__name__ for record in speaks.decode(parts, scratch=scratch))
        assert name == "results" or arrived == whole, f"after {(batch + 1) * BATCH} mutations"
        assert arrived["Frame"] == whole["Frame"]
        assert arrived["Result"] == whole["Result"]
        settled = settled or resident()
    grown = resident() - settled
    assert verdicts.total() == MUTATIONS
    assert verdicts.keys() <= {*reasons(name), "read"}
    assert grown < MOST_GROWTH
    assert sum(verdicts.values()) - verdicts["read"] > MUTATIONS / 10


def resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def verdict(speaks: Format, parts: hostile.Parts, scratch: Scratch) -> str:
    """The reason a message is refused for, or "read"; anything but a BadFrame fails the test."""
    kind = speaks.kind(parts)
    try:
        if kind == "image":
            speaks.identify(parts)
        speaks.decode(parts, scratch=scratch)
    except BadFrame as bad:
        return bad.reason
    return "read"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_knows_its_own_messages_and_leaves_alone_those_of_others(name: str) -> None:
    claimed = {other: sum(opened(name).claims(parts) for parts in hostile.good(other)) for other in FORMATS}
    assert claimed.pop(name) > 0
    assert not any(claimed.values()), claimed


@pytest.mark.parametrize("name", FORMATS)
def test_the_messages_of_another_format_are_refused(name: str) -> None:
    for other in FORMATS:
        for parts in hostile.good(other) if other != name else []:
            assert verdict(opened(name), parts, Scratch()) in reasons(name), other
