"""The checker believes true logs, and no log with a line too many, too few, or changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.checker import NAMES, Unproven, prove, told
from tests.faults.log import Line

FATES = ("analysed", *NAMES)


class Story:
    """A run that never was: one sender, one link, one consumer, and a fate for every number of every arming."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._totals: Counter[str] = Counter()
        self._wire: Counter[str] = Counter()
        self._say("link", "connected", link=1, to="consumer")

    def arming(self, arming: int, fates: list[str]) -> None:
        """before_join belongs to the beginning, and then the start was not heard."""
        joined_late = "before_join" in fates
        series = [arming, "unique"]
        late = [number for number, fate in enumerate(fates) if fate == "late"]
        shared = {"arming": arming, "series": series}
        self._send(f"{arming} start", kind="start", images=len(fates), passes=not joined_late, **shared)
        for number, fate in enumerate(fates):
            if fate != "late":
                self._frame(number, fate, shared)
        self._send(f"{arming} end", kind="end", passes=True, **shared)
        self._say("consumer", "closed", series=series, by="end")
        for number in late:
            self._frame(number, "late", shared)
        counts = {**dict.fromkeys(FATES, 0), **Counter(fates), "announced": len(fates), "pending": 0}
        self._account = {"series": series, "joined_late": joined_late, **counts}
        self.accounts = [*getattr(self, "accounts", []), self._account]
        self._totals.update(counts)
        self._wire["control"] += 2 - joined_late

    def told(self) -> list[Line]:
        for account in self.accounts:
            self._say("consumer", "account", **account)
        self._say("consumer", "totals", **self._totals, unaccounted=0)
        accepted = self._totals["analysed"] + self._totals["dropped"]
        wire: dict[str, Any] = {"duplicate": 0, "unannounced": 0, "stale": 0, "accepted": accepted}
        wire |= {"control": self._wire["control"], "late": self._totals["late"]}
        self._say("consumer", "wire", malformed={"size": self._totals["malformed"]}, **wire)
        self._say("sender", "stopped")
        return self.lines

    def _frame(self, number: int, fate: str, shared: dict[str, Any]) -> None:
        passes = fate not in ("before_join", "missing")
        name = f"{shared['arming']} image {number}"
        self._send(name, kind="image", number=number, is_damaged=fate == "malformed", passes=passes, **shared)
        if fate == "analysed":
            self._say("consumer", "analysed", number=number, says_number=number, **shared)

    def _send(self, message: str, *, passes: bool, **what: Any) -> None:
        self._say("sender", "sending", message=message, **what)
        self._say("sender", "sent", message=message, **what)
        if passes:
            self._say("link", "passed", link=1, to="consumer", message=message)

    def _say(self, hop: str, did: str, **what: Any) -> None:
        self.lines.append({"at": float(len(self.lines)), "hop": hop, "did": did, **what})


@st.composite
def fates(draw: st.DrawFn) -> list[str]:
    """What becomes of the frames of a series; its first and last ones are heard of, so that its length is known."""
    before = draw(st.integers(0, 3))
    middle = draw(st.lists(st.sampled_from(["analysed", "missing", "malformed", "dropped", "late"]), max_size=12))
    return ["before_join"] * before + ["analysed"] + middle + ["analysed"]


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[list[str]], list[Line]]:
    story = Story()
    armings = draw(st.lists(fates(), min_size=1, max_size=2))
    for arming, becomes in enumerate(armings, 1):
        story.arming(arming, becomes)
    return armings, story.told()


@given(stories())
def test_true_logs_are_proven_and_every_loss_has_its_name(story: tuple[list[list[str]], list[Line]]) -> None:
    armings, lines = story
    for (_, analysed, lost), becomes in zip(told(prove(lines)), armings, strict=True):
        counts = Counter(becomes)
        assert analysed == counts.pop("analysed")
        assert lost == counts


@given(stories(), st.data())
@settings(max_examples=200)
def test_no_line_can_be_left_out(story: tuple[list[list[str]], list[Line]], data: st.DataObject) -> None:
    """When a series was closed only tells what was late, and ends in doubt are what the end of a killed sender is."""
    _, lines = story
    place = data.draw(st.integers(0, len(lines) - 1).filter(lambda i: lines[i]["did"] not in ("closed", "stopped")))
    with pytest.raises(Unproven):
        prove(lines[:place] + lines[place + 1 :])


@given(stories(), st.data())
@settings(max_examples=200)
def test_no_line_can_be_told_twice(story: tuple[list[list[str]], list[Line]], data: st.DataObject) -> None:
    _, lines = story
    place = data.draw(st.integers(0, len(lines) - 1).filter(lambda i: lines[i]["did"] != "closed"))
    with pytest.raises(Unproven):
        prove(lines[: place + 1] + lines[place:])


def usual() -> list[Line]:
    story = Story()
    story.arming(1, ["before_join", "before_join", *FATES[:1], *FATES[2:], "analysed"])
    story.arming(2, ["analysed", "missing", "analysed"])
    return story.told()


COUNTED = [
    (place, name)
    for place, line in enumerate(usual())
    for name in (*FATES, "announced", "pending", "unaccounted", "duplicate", "stale", "control", "accepted")
    if line["did"] in ("account", "totals", "wire") and isinstance(line.get(name), int)
]


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(("place", "name"), COUNTED)
def test_no_count_can_be_one_too_high_or_too_low(place: int, name: str, change: int) -> None:
    lines = usual()
    lines[place][name] += change
    with pytest.raises(Unproven):
        prove(lines)


def first(did: str, lines: list[Line]) -> Line:
    return next(line for line in lines if line["did"] == did)


def says_another_number(lines: list[Line]) -> None:
    first("analysed", lines)["says_number"] += 1


def publishes_under_another_series(lines: list[Line]) -> None:
    first("analysed", lines)["series"] = [7, "unique"]


def publishes_what_nobody_sent(lines: list[Line]) -> None:
    lines.append({**first("analysed", lines), "number": 99, "says_number": 99})


def publishes_of_an_arming_that_was_never(lines: list[Line]) -> None:
    lines.append({**first("analysed", lines), "arming": 99})


def passes_a_message_of_its_own(lines: list[Line]) -> None:
    lines.append({**first("passed", lines), "message": "forged"})


def swaps_two_losses(lines: list[Line]) -> None:
    """One more is dropped and one less is missing: the sum is right, and the names are not."""
    for line in lines:
        if line["did"] in ("account", "totals") and line["missing"] and line["dropped"]:
            line["missing"] -= 1
            line["dropped"] += 1


def hides_that_it_joined_late(lines: list[Line]) -> None:
    first("account", lines)["joined_late"] = False


def publishes_what_is_no_result(lines: list[Line]) -> None:
    lines.append({"at": 1e9, "hop": "consumer", "did": "misunderstood", "text": "nonsense"})


def reports_after_its_death(lines: list[Line]) -> None:
    lines.append({"at": 1e9, "hop": "consumer", "did": "killed"})


@pytest.mark.parametrize(
    "lie",
    [
        says_another_number,
        publishes_under_another_series,
        publishes_what_nobody_sent,
        publishes_of_an_arming_that_was_never,
        passes_a_message_of_its_own,
        swaps_two_losses,
        hides_that_it_joined_late,
        publishes_what_is_no_result,
        reports_after_its_death,
    ],
)
def test_a_lie_is_found(lie: Callable[[list[Line]], None]) -> None:
    lines = usual()
    prove(lines)
    lie(lines)
    with pytest.raises(Unproven):
        prove(lines)


def test_a_frame_analysed_by_two_consumers_is_found() -> None:
    lines = usual()
    other = [{**line, "hop": "other"} for line in lines if line["hop"] == "consumer"]
    links = [{**line, "hop": "link to other", "to": "other"} for line in lines if line["hop"] == "link"]
    with pytest.raises(Unproven, match="was analysed 2 times"):
        prove(lines + links + other)


def test_what_only_a_killed_consumer_could_know_must_be_named_by_another() -> None:
    lines = [line for line in usual() if line["did"] not in ("account", "totals", "wire")]
    killed: Line = {"at": 1e9, "hop": "consumer", "did": "killed"}
    with pytest.raises(Unproven, match="was lost as nothing"):
        prove([*lines, killed])


def test_the_last_message_of_a_killed_sender_is_in_doubt_and_only_that_one() -> None:
    lines = usual()
    last = max(i for i, line in enumerate(lines) if line["did"] == "sent")
    killed = [line for i, line in enumerate(lines) if i != last and line["did"] != "stopped"]
    assert told(prove(killed)) == told(prove(lines))
    earlier = [i for i, line in enumerate(killed) if line["did"] == "sent"][-1]
    with pytest.raises(Unproven, match="where that cannot be"):
        prove(killed[:earlier] + killed[earlier + 1 :])


def relayed() -> list[Line]:
    """The usual run with a relay in the middle, which gave up what did not reach the consumer."""
    lines = usual()
    to_relay = [{**line, "hop": "link to relay", "to": "relay"} for line in lines if line["did"] == "connected"]
    to_relay += [
        {
            "at": line["at"],
            "hop": "link to relay",
            "link": 1,
            "to": "relay",
            "did": "passed",
            "message": line["message"],
        }
        for line in lines
        if line["did"] == "sent"
    ]
    came, left = len(to_relay) - 1, sum(line["did"] == "passed" for line in lines)
    account = {"to": "consumer", "received": came, "sent": left, "dropped": came - left}
    account |= {"unheard": 0, "waiting": 0, "repeated": 0}
    end: Line = {"at": 1e9, "hop": "relay", "did": "relayed", "messages": came, "destinations": [account]}
    return [*lines, *to_relay, end]


def test_a_relay_is_believed_when_both_its_links_agree_with_it() -> None:
    assert told(prove(relayed())) == told(prove(usual()))


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("name", ["received", "sent", "dropped", "unheard", "waiting", "repeated"])
def test_a_relay_that_counts_wrongly_is_found(name: str, change: int) -> None:
    lines = relayed()
    lines[-1]["destinations"][0][name] += change
    with pytest.raises(Unproven, match="relay"):
        prove(lines)


def test_a_relay_that_passes_on_what_it_never_received_is_found() -> None:
    lines = relayed()
    lost = next(line for line in lines if line["did"] == "passed" and line["to"] == "consumer")
    with pytest.raises(Unproven, match="never received"):
        prove([line for line in lines if line.get("to") != "relay" or line.get("message") != lost["message"]])
