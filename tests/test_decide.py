"""Rules and alarms: the delays, the hysteresis and the honesty about what was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamer.decide import EVIDENCE_FRAMES, MOST_WATCHES, Decider, Rule, Verdict
from streamer.records import Alarm, BadConfig, BadInput, Quantity, Result, SeriesKey, Severity

SERIES = SeriesKey(7, "gold")
MISSING = None  # the analysis gave no such quantity
UNKNOWN = Quantity(math.nan)
HIGH, BETWEEN, LOW = Quantity(0.95), Quantity(0.8), Quantity(0.2)


def damage(**keys: Any) -> Rule:
    """The rule of the tests: above 0.9, cleared at 0.7."""
    return Rule(**{"name": "damage", "watch": "saxs.anomaly", "above": 0.9, "clear_below": 0.7} | keys)


def result(number: int, quantity: Quantity | None, *, channel: str = "", analysis: str = "saxs") -> Result:
    quantities = {} if quantity is None else {"anomaly": quantity}
    return Result(analysis, SERIES, number, quantities, channel=channel)


def follow(decider: Decider, quantities: Sequence[Quantity | None], *, first: int = 0) -> list[tuple[int, Alarm]]:
    """(frame, alarm) for everything said while the quantities pass by, one frame a second."""
    return [
        (number, alarm)
        for number, quantity in enumerate(quantities, first)
        for alarm in decider.decide(result(number, quantity), wall_time=1000.0 + number)
    ]


def course(said: Sequence[tuple[int, Alarm]]) -> list[tuple[int, str]]:
    """(frame, what the alarm is now) in short."""
    return [(number, alarm.severity.name if alarm.is_active else "end") for number, alarm in said]


# The rule: what it says of one frame.


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.91, Verdict.EXCEEDS), (0.9, Verdict.BETWEEN), (0.71, Verdict.BETWEEN), (0.7, Verdict.CLEARS)],
)
def test_the_limit_itself_does_not_exceed_and_the_clear_limit_itself_clears(value: float, verdict: Verdict) -> None:
    assert damage().judge(Quantity(value)) is verdict


def test_a_value_exceeds_only_beyond_its_uncertainty() -> None:
    rule = damage(sigma=2)
    assert rule.judge(Quantity(0.93, sigma=0.04)) is Verdict.BETWEEN
    assert rule.judge(Quantity(0.99, sigma=0.04)) is Verdict.EXCEEDS


def test_a_growing_uncertainty_does_not_clear_a_high_value() -> None:
    assert damage(sigma=2).judge(Quantity(0.95, sigma=10.0)) is Verdict.BETWEEN


@pytest.mark.parametrize("sigma", [None, math.nan, math.inf])
def test_a_value_without_uncertainty_is_unknown_to_a_rule_that_asks_for_it(sigma: float | None) -> None:
    assert damage(sigma=2).judge(Quantity(0.99, sigma=sigma)) is Verdict.UNKNOWN
    assert damage(sigma=0).judge(Quantity(0.99, sigma=sigma)) is Verdict.EXCEEDS


@pytest.mark.parametrize("quantity", [MISSING, UNKNOWN, Quantity(math.inf), Quantity(-math.inf)])
def test_what_is_missing_or_not_finite_is_unknown(quantity: Quantity | None) -> None:
    assert damage().judge(quantity) is Verdict.UNKNOWN


@given(
    value=st.floats(-10, 10),
    uncertainty=st.floats(0, 2),
    sigma=st.floats(0, 3),
    limit=st.floats(-5, 5),
    width=st.floats(0, 3),
)
def test_a_rule_below_is_the_mirror_image_of_a_rule_above(
    value: float, uncertainty: float, sigma: float, limit: float, width: float
) -> None:
    above = Rule(name="a", watch="s.q", above=limit, clear_below=limit - width, sigma=sigma)
    below = Rule(name="b", watch="s.q", below=-limit, clear_above=width - limit, sigma=sigma)
    assert above.judge(Quantity(value, uncertainty)) is below.judge(Quantity(-value, uncertainty))


# The rule: what is refused.


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"above": None, "clear_below": None}, ["neither", "'above'", "'below'"]),
        ({"below": 0.1}, ["both", "'above'", "'below'"]),
        ({"clear_below": 0.95}, ["'clear_below'", "0.95", "at most 0.9"]),
        ({"clear_below": None, "clear_above": 0.5}, ["'clear_above'", "'clear_below'"]),
        ({"above": None, "clear_below": None, "below": 0.2, "clear_above": 0.1}, ["'clear_above'", "at least 0.2"]),
        ({"above": math.nan}, ["'above'", "nan", "finite"]),
        ({"sigma": -1}, ["'sigma'", "-1"]),
        ({"for_frames": 0}, ["'for_frames'", "0", "1 or more"]),
        ({"clear_frames": 0}, ["'clear_frames'", "0", "1 or more"]),
        ({"severity": "INVALID"}, ["'severity'", "INVALID", "MAJOR"]),
        ({"watch": "anomaly"}, ["'watch'", "anomaly", "saxs.anomaly"]),
        ({"watch": "saxs."}, ["'watch'"]),
    ],
)
def test_a_wrong_rule_names_the_key_what_was_found_and_what_was_expected(
    keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(BadConfig) as refusal:
        damage(**keys)
    for word in ["[alarm.damage]", *words]:
        assert word in str(refusal.value)


def test_every_mistake_of_a_rule_is_reported_at_once() -> None:
    with pytest.raises(BadConfig) as refusal:
        damage(for_frames=0, sigma=-1, severity="LOUD", clear_below=2.0)
    assert len(refusal.value.problems) == 4


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(BadConfig, match=r"\[alarm\.damage\] found 2 rules"):
        Decider([damage(), damage(above=3.0)])


def test_an_array_is_not_known_rather_than_fine() -> None:
    rule = damage()
    assert rule.judge(Quantity(np.ones(3))) is Verdict.UNKNOWN
    assert "an array of 3 values: watch a scalar quantity" in rule.why_unknown(Quantity(np.ones(3)))


def test_channels_beyond_reason_are_not_watched_and_that_is_an_alarm() -> None:
    decider = Decider([damage()])
    for channel in range(MOST_WATCHES + 10):
        decider.decide(replace(result(0, Quantity(0.0, 0.1)), channel=f"c{channel}"), 0.0)
    (alarm,) = decider.active()
    assert alarm.name == "channels_unwatched"
    assert f"channel 'c{MOST_WATCHES}'" in alarm.text


# The alarm: when it begins, changes and ends.


def test_an_alarm_begins_after_its_delay_and_ends_after_its_own() -> None:
    said = follow(Decider([damage(for_frames=3, clear_frames=2)]), [LOW, HIGH, HIGH, HIGH, BETWEEN, LOW, LOW, LOW])
    assert course(said) == [(3, "MAJOR"), (6, "end")]


def test_one_frame_below_the_limit_starts_the_count_over() -> None:
    said = follow(Decider([damage(for_frames=3)]), [HIGH, HIGH, BETWEEN, HIGH, HIGH, LOW, HIGH, HIGH])
    assert said == []


def test_without_a_clear_limit_an_alarm_ends_at_its_limit() -> None:
    said = follow(Decider([damage(clear_below=None)]), [HIGH, HIGH, Quantity(0.9)])
    assert course(said) == [(0, "MAJOR"), (2, "end")]


def test_what_is_never_measured_becomes_invalid_and_not_fine() -> None:
    said = follow(Decider([damage(for_frames=3)]), [UNKNOWN, MISSING, UNKNOWN, UNKNOWN])
    assert course(said) == [(2, "INVALID")]
    assert "not measured" in said[0][1].text


def test_an_invalid_alarm_ends_once_the_quantity_is_measured_and_fine_again() -> None:
    said = follow(Decider([damage(for_frames=2)]), [UNKNOWN, UNKNOWN, LOW, UNKNOWN, LOW, BETWEEN])
    assert course(said) == [(1, "INVALID"), (5, "end")]


def test_an_alarm_that_turns_invalid_goes_back_to_what_it_was_and_stays_the_same_occurrence() -> None:
    said = follow(Decider([damage(for_frames=2)]), [HIGH, HIGH, UNKNOWN, UNKNOWN, BETWEEN, BETWEEN, BETWEEN, LOW, LOW])
    assert course(said) == [(1, "MAJOR"), (3, "INVALID"), (5, "MAJOR"), (8, "end")]
    assert len({alarm.id for _, alarm in said}) == 1
    assert {alarm.began for _, alarm in said} == {1001.0}


def test_an_alarm_that_was_invalid_has_its_whole_delay_before_its_end() -> None:
    said = follow(Decider([damage(clear_frames=3)]), [HIGH, UNKNOWN, BETWEEN, LOW, LOW, LOW, LOW, LOW])
    assert course(said) == [(0, "MAJOR"), (1, "INVALID"), (4, "MAJOR"), (7, "end")]


def test_an_invalid_alarm_does_not_end_while_the_limit_is_exceeded() -> None:
    said = follow(
        Decider([damage(for_frames=4, clear_frames=1)]), [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, HIGH, HIGH, HIGH, HIGH]
    )
    assert course(said) == [(3, "INVALID"), (7, "MAJOR")]


def test_frames_without_a_value_do_not_hide_an_excess() -> None:
    said = follow(Decider([damage(for_frames=3)]), [HIGH, UNKNOWN, HIGH, UNKNOWN, HIGH])
    assert course(said) == [(4, "MAJOR")]


def test_an_excess_before_a_long_blindness_no_longer_counts() -> None:
    said = follow(Decider([damage(for_frames=2)]), [HIGH, UNKNOWN, UNKNOWN, HIGH, HIGH])
    assert course(said) == [(2, "INVALID"), (4, "MAJOR")]


def test_a_new_series_neither_ends_an_alarm_nor_the_counting() -> None:
    decider = Decider([damage(for_frames=2)])
    decider.decide(Result("saxs", SeriesKey(1), 99, {"anomaly": HIGH}), 1.0)
    (began,) = decider.decide(Result("saxs", SeriesKey(2), 0, {"anomaly": HIGH}), 2.0)
    assert (began.series, began.number) == (SeriesKey(2), 0)
    assert decider.decide(Result("saxs", SeriesKey(3), 0, {"anomaly": BETWEEN}), 3.0) == []
    assert decider.active() == (began,)


def test_another_analysis_with_a_quantity_of_the_same_name_is_not_listened_to() -> None:
    decider = Decider([damage()])
    assert decider.decide(result(0, HIGH, analysis="rdf"), 0.0) == []


def test_channels_are_counted_apart_and_named_in_the_evidence() -> None:
    decider = Decider([damage(for_frames=2)])
    said = [
        decider.decide(result(number, HIGH, channel=channel), 1.0) for number in (0, 1) for channel in ("low", "high")
    ]
    assert said[:2] == [[], []]
    (low,), (high,) = said[2:]
    assert (low.evidence["channel"], high.evidence["channel"]) == ("low", "high")
    assert low.id != high.id
    assert len(decider.active()) == 2


# The alarm: what it carries.


def test_an_alarm_carries_the_frames_that_made_it_and_the_guidance() -> None:
    rule = damage(for_frames=2, sigma=1, severity="MINOR", text="Move to a fresh spot.")
    values = [Quantity(0.95, 0.01), Quantity(0.96, 0.02)]
    ((_, alarm),) = follow(Decider([rule]), values, first=41)
    assert alarm == Alarm(
        id="damage#1@1042000",
        name="damage",
        severity=Severity.MINOR,
        text="Move to a fresh spot.",
        watch="saxs.anomaly",
        began=1042.0,
        series=SERIES,
        number=42,
        evidence={"limit": 0.9, "value": 0.96, "unit": "1", "sigma": 0.02, "frames": [41, 42], "values": [0.95, 0.96]},
    )


def test_an_end_names_its_frame_and_time_and_keeps_what_the_beginning_said() -> None:
    (_, began), (_, ended) = follow(Decider([damage()]), [HIGH, LOW])
    assert (ended.id, ended.began, ended.number, ended.evidence) == (
        began.id,
        began.began,
        began.number,
        began.evidence,
    )
    assert (ended.ended, ended.ended_number, ended.is_active) == (1001.0, 1, False)


def test_occurrences_are_counted_so_that_no_id_comes_twice() -> None:
    decider = Decider([damage()])
    said = [alarm for _ in range(3) for quantity in (HIGH, LOW) for alarm in decider.decide(result(0, quantity), 5.0)]
    assert [alarm.id for alarm in said if alarm.is_active] == [f"damage#{n}@5000" for n in (1, 2, 3)]


def test_the_evidence_of_a_long_delay_is_bounded() -> None:
    length = 10 * EVIDENCE_FRAMES
    ((_, alarm),) = follow(Decider([damage(for_frames=length)]), [HIGH] * length)
    assert alarm.evidence["frames"] == list(range(length - EVIDENCE_FRAMES, length))


@pytest.mark.parametrize(
    ("quantity", "sigma", "reason"),
    [
        (UNKNOWN, 0.0, "saxs.anomaly is not a finite number"),
        (MISSING, 0.0, "saxs gave no anomaly"),
        (Quantity(0.99), 2.0, "uncertainty of saxs.anomaly is not known"),
    ],
)
def test_an_invalid_alarm_says_why_and_carries_no_number_that_was_not_measured(
    quantity: Quantity | None, sigma: float, reason: str
) -> None:
    ((_, alarm),) = follow(Decider([damage(sigma=sigma)]), [quantity])
    assert reason in str(alarm.evidence["reason"])
    assert alarm.evidence["frames"] == [0]
    assert "value" not in alarm.evidence


# Acknowledging, and the conditions of streamer itself.


def test_an_acknowledgement_lasts_until_the_severity_changes() -> None:
    decider = Decider([damage()])
    ((_, alarm),) = follow(decider, [HIGH])
    (acknowledged,) = decider.acknowledge(alarm.id, Severity.MAJOR)
    assert acknowledged.acknowledged
    assert decider.acknowledge(alarm.id) == []
    assert decider.active() == (acknowledged,)
    ((_, changed),) = follow(decider, [UNKNOWN], first=1)
    assert not changed.acknowledged
    assert changed.id == alarm.id


def test_an_acknowledgement_of_another_severity_or_occurrence_is_refused() -> None:
    decider = Decider([damage()])
    ((_, alarm),) = follow(decider, [HIGH])
    with pytest.raises(BadInput, match="is MAJOR now, the acknowledgement is for MINOR"):
        decider.acknowledge(alarm.id, Severity.MINOR)
    with pytest.raises(BadInput, match="no active alarm 'damage#9@0'"):
        decider.acknowledge("damage#9@0")
    assert not decider.active()[0].acknowledged


def test_a_condition_is_said_once_when_it_begins_and_once_when_it_ends() -> None:
    decider = Decider()
    stalled = ("stream_stalled", Severity.INVALID, "no message for 5 s", "stream")
    (began,) = decider.raise_condition(*stalled, 10.0, {"silence_s": 5.0})
    assert decider.raise_condition(*stalled, 11.0, {"silence_s": 6.0}) == []
    assert decider.active() == (began,)
    (ended,) = decider.clear_condition("stream_stalled", 12.0)
    assert (ended.id, ended.ended, began.evidence) == (began.id, 12.0, {"silence_s": 5.0})
    assert decider.clear_condition("stream_stalled", 13.0) == []
    assert decider.active() == ()


def test_a_condition_that_grows_worse_is_said_again_and_wants_a_new_acknowledgement() -> None:
    decider = Decider()
    (began,) = decider.raise_condition("disk", Severity.MINOR, "10 % left", "output.nexus", 1.0, {})
    decider.acknowledge(began.id)
    (worse,) = decider.raise_condition("disk", Severity.MAJOR, "full", "output.nexus", 2.0, {})
    assert (worse.id, worse.severity, worse.text, worse.acknowledged) == (began.id, Severity.MAJOR, "full", False)


def test_a_condition_without_severity_is_refused() -> None:
    with pytest.raises(BadInput, match="clear_condition"):
        Decider().raise_condition("disk", Severity.NO_ALARM, "", "output.nexus", 1.0, {})


def test_active_alarms_are_listed_oldest_first() -> None:
    decider = Decider([damage()])
    decider.raise_condition("disk", Severity.MINOR, "", "output.nexus", 2.0, {})
    decider.decide(result(0, HIGH), 1.0)
    assert [alarm.name for alarm in decider.active()] == ["damage", "disk"]


# Properties.

delays = st.integers(1, 4)
measured = st.sampled_from([0.1, 0.7, 0.75, 0.9, 0.92, 1.5])
unusable = st.sampled_from([MISSING, UNKNOWN, Quantity(math.inf), Quantity(0.99, None)])
quantities = st.one_of(st.builds(Quantity, measured, st.sampled_from([0.0, 0.01, 0.3])), unusable)


@st.composite
def histories(draw: st.DrawFn) -> list[Quantity | None]:
    """Frames in runs, as a sample would give them: a run of one kind is long enough to pass any delay of the tests."""
    runs = draw(st.lists(st.tuples(quantities, st.integers(1, 6)), max_size=15))
    return [quantity for quantity, length in runs for _ in range(length)]


rules = st.builds(lambda begin, end: damage(sigma=1, for_frames=begin, clear_frames=end), delays, delays)


class SlowRule:
    """The same rule without counters: at every frame the whole history since the last change is read again."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.has_fired = self.is_blind = False
        self.history: list[Verdict] = []

    @property
    def severity(self) -> str:
        return "INVALID" if self.is_blind else self.rule.severity if self.has_fired else "end"

    def last(self, length: int, *verdicts: Verdict) -> bool:
        return len(self.history) >= length and all(verdict in verdicts for verdict in self.history[-length:])

    def is_confirmed(self) -> bool:
        """The last `for_frames` measured frames exceeded, and nowhere among them was it blind."""
        exceeding = blind = 0
        for verdict in reversed(self.history):
            blind = blind + 1 if verdict is Verdict.UNKNOWN else 0
            if blind == self.rule.for_frames or verdict in (Verdict.CLEARS, Verdict.BETWEEN):
                return False
            exceeding += verdict is Verdict.EXCEEDS
            if exceeding == self.rule.for_frames:
                return True
        return False

    def see(self, quantity: Quantity | None) -> str | None:
        before, end = self.severity, self.rule.frames_to_end
        self.history.append(self.rule.judge(quantity))
        if self.is_confirmed():
            self.has_fired, self.is_blind = True, False
        elif self.last(self.rule.for_frames, Verdict.UNKNOWN):
            self.is_blind = True
        elif self.last(end, Verdict.CLEARS):
            self.has_fired = self.is_blind = False
        elif self.is_blind and self.has_fired:
            self.is_blind = not self.last(end, Verdict.CLEARS, Verdict.BETWEEN, Verdict.EXCEEDS)
        elif self.is_blind:
            self.is_blind = not self.last(end, Verdict.CLEARS, Verdict.BETWEEN)
        if self.severity == before:
            return None
        self.history = []
        return self.severity


@given(rule=rules, history=histories())
def test_an_alarm_agrees_with_a_slow_reading_of_the_whole_history(rule: Rule, history: list[Quantity | None]) -> None:
    slow = SlowRule(rule)
    expected = [(number, now) for number, quantity in enumerate(history) if (now := slow.see(quantity)) is not None]
    assert course(follow(Decider([rule]), history)) == expected


@given(rule=rules, history=histories())
def test_an_alarm_never_flaps_faster_than_its_delay(rule: Rule, history: list[Quantity | None]) -> None:
    changes = [number for number, _ in follow(Decider([rule]), history)]
    assume(len(changes) > 1)
    assert min(np.diff(changes)) >= min(rule.for_frames, rule.frames_to_end)


@given(rule=rules, history=histories())
def test_beginnings_and_ends_alternate_and_the_active_list_agrees(rule: Rule, history: list[Quantity | None]) -> None:
    decider = Decider([rule])
    said = follow(decider, history)
    occurrences: dict[str, list[Alarm]] = {}
    for _, alarm in said:
        occurrences.setdefault(alarm.id, []).append(alarm)
    for occurrence in occurrences.values():
        assert all(alarm.is_active for alarm in occurrence[:-1])
    *closed, last = [occurrence[-1] for occurrence in occurrences.values()] or [None]
    assert not any(alarm.is_active for alarm in closed)
    assert decider.active() == ((last,) if last is not None and last.is_active else ())


@given(delay=st.integers(2, 6), runs=st.lists(st.integers(1, 5), min_size=1, max_size=10), pause=quantities)
def test_one_frame_fewer_than_the_delay_never_fires(delay: int, runs: list[int], pause: Quantity | None) -> None:
    rule = damage(for_frames=delay, sigma=1)
    assume(rule.judge(pause) in (Verdict.CLEARS, Verdict.BETWEEN))
    high = Quantity(1.5, 0.0)
    history = [quantity for run in runs for quantity in [*[high] * min(run, delay - 1), pause]]
    assert follow(Decider([rule]), history) == []


@given(values=st.lists(st.floats(0.7, 2.0, exclude_min=True), max_size=40), clear_frames=delays)
def test_an_alarm_holds_as_long_as_no_value_is_at_the_clear_limit(values: list[float], clear_frames: int) -> None:
    decider = Decider([damage(clear_frames=clear_frames)])
    follow(decider, [HIGH])
    assert follow(decider, [Quantity(value) for value in values], first=1) == []
    assert len(decider.active()) == 1


@given(rule=rules, one=histories(), other=histories())
def test_two_channels_side_by_side_are_each_as_if_alone(
    rule: Rule, one: list[Quantity | None], other: list[Quantity | None]
) -> None:
    decider = Decider([rule])
    said: dict[str, list[tuple[int, Alarm]]] = {"one": [], "other": []}
    for number in range(max(len(one), len(other))):
        for channel, history in (("one", one), ("other", other)):
            for quantity in history[number : number + 1]:
                changed = decider.decide(result(number, quantity, channel=channel), 0.0)
                said[channel] += [(number, alarm) for alarm in changed]
    assert course(said["one"]) == course(follow(Decider([rule]), one))
    assert course(said["other"]) == course(follow(Decider([rule]), other))


def test_alarms_left_standing_by_a_former_process_go_on_or_end() -> None:
    rule = Rule(name="hot", watch="saxs.anomaly", above=0.9, for_frames=2)
    kept = Alarm("hot#1@5", "hot", Severity.MAJOR, "", "saxs.anomaly", began=0.005, number=3)
    orphan = Alarm("gone#1@5", "gone", Severity.MAJOR, "", "saxs.total", began=0.005)
    decider = Decider([rule])
    assert decider.resume([kept, orphan], 10.0) == [kept, replace(orphan, ended=10.0)]
    assert decider.active() == (kept,)
    frames = [
        Result("saxs", SeriesKey(1), number, {"anomaly": Quantity(value)})
        for number, value in enumerate((0.95, 0.95, 0.1, 0.1))
    ]
    changes = [alarm for frame in frames for alarm in decider.decide(frame, 11.0)]
    assert [(alarm.id, alarm.ended) for alarm in changes] == [("hot#1@5", 11.0)]


# Rules that remember.


def test_a_step_too_small_for_any_single_limit_raises_an_alarm_that_ends_with_it() -> None:
    g = np.random.default_rng(8)
    rule = Rule(name="changed", watch="saxs.anomaly", test="step", false_alarm_every=1e5)
    scores = np.concatenate((g.standard_normal(300), g.normal(1.5, 1, 60), g.standard_normal(200)))
    said = course(follow(Decider([rule]), [Quantity(float(x)) for x in scores]))
    assert [what for _, what in said] == ["MAJOR", "end"]
    (begun, _), (ended, _) = said
    assert 300 < begun < 340
    assert 360 < ended < 540


def test_a_drift_is_seen_to_either_side_and_a_step_only_upwards() -> None:
    falling = [Quantity(-1.5)] * 60
    step, drift = (Rule(name=test, watch="saxs.anomaly", test=test) for test in ("step", "drift"))
    assert not follow(Decider([step]), falling)
    assert len(follow(Decider([drift]), falling)) == 1


def test_a_value_that_no_longer_changes_is_a_stall() -> None:
    rule = Rule(name="stuck", watch="saxs.anomaly", test="stall", for_frames=3)
    values = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.4, 0.5, 0.6, 0.7]
    said = course(follow(Decider([rule]), [Quantity(value) for value in values]))
    assert said == [(5, "MAJOR"), (8, "end")]


def test_a_score_that_is_not_measured_is_unknown_to_a_rule_that_remembers() -> None:
    rule = Rule(name="changed", watch="saxs.anomaly", test="step", for_frames=2)
    assert course(follow(Decider([rule]), [UNKNOWN, UNKNOWN])) == [(1, "INVALID")]


def test_channels_do_not_share_what_is_remembered() -> None:
    decider = Decider([Rule(name="changed", watch="saxs.anomaly", test="step", false_alarm_every=1e4)])
    for number in range(40):
        for channel, value in (("a", 2.0), ("b", -1.0)):
            decider.decide(result(number, Quantity(value), channel=channel), float(number))
    assert [alarm.evidence["channel"] for alarm in decider.active()] == ["a"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"sigma": 2.0}, "key 'sigma': found 2.0 beside test"), ({"false_alarm_every": 10.0}, "expected 100 or more")],
)
def test_a_rule_that_remembers_says_what_it_cannot_do(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        Rule(**{"name": "changed", "watch": "saxs.score", "test": "step"} | keys)
