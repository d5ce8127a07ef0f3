"""The terminal view, rendered to text: what is in it, that it fits, and when it is drawn."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from streamer.metrics import Metrics
from streamer.outputs.terminal import Terminal
from streamer.records import (
    Account,
    Alarm,
    BadConfig,
    Quantity,
    Result,
    SeriesKey,
    Severity,
    Status,
    WireAccount,
)

Q = np.linspace(0.05, 5, 300)
PROFILE = Quantity(1e3 * np.exp(-(Q**2)) + 1, None, "1/cm", {"q": (Q, "1/nm")})
ACCOUNT = Account(
    SeriesKey(7),
    announced=2000,
    is_announced=True,
    analysed=1042,
    missing=31,
    malformed=32,
    dropped=33,
    late=34,
    before_join=35,
    pending=793,
)
DAMAGE = Alarm(
    id="damage#1@5",
    name="radiation_damage",
    severity=Severity.MAJOR,
    text="move to a fresh spot",
    watch="saxs.anomaly",
    began=1.8e9,
    evidence={"limit": 0.9},
)
RUNNING = Status(
    state="running",
    is_ready=True,
    source="dectris2+tcp://127.0.0.1:31001",
    wire=WireAccount(messages=1105, control=2, accepted=1100, malformed={"truncated": 3}),
    series=ACCOUNT,
    frames_per_second=98.7,
    latency_ms={"p50": 4.12, "p99": 12.3},
    queues={"work": {"depth": 64, "size": 64}, "decisions": {"depth": 1, "size": 256}},
    stages={"decode": 2.1, "reduce": 1.43},
    outputs={"zeromq": "up", "journal": "disk full"},
    devices={"saxs": "cpu"},
    wall_time=1.8e9 + 65,
)


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Drawn(Terminal):
    """A view that counts how often it was drawn."""

    drawings = 0

    def render(self, width: int, height: int) -> Any:
        self.drawings += 1
        return super().render(width, height)


def terminal(*, is_terminal: bool = False, **settings: Any) -> Drawn:
    view = Drawn(**settings)
    view.console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, height=24, _environ={})
    view._clock = Clock()
    view.open(Metrics())
    return view


def fed(*alarms: Alarm, values: int = 50, status: Status = RUNNING) -> Drawn:
    view = terminal()
    for number in range(values):
        quantities = {"anomaly": Quantity(number / values, 0.042), "profile": PROFILE, "novelty": Quantity(0.1)}
        view.write(Result("saxs", SeriesKey(7), 1000 + number, quantities))
    for alarm in alarms:
        view.alarm(alarm)
    latest = {alarm.id: alarm for alarm in alarms}
    view.status(replace(status, alarms=tuple(alarm for alarm in latest.values() if alarm.is_active)))
    return view


def said(view: Terminal) -> str:
    """What came out so far."""
    assert view.console is not None
    assert isinstance(view.console.file, io.StringIO)
    return view.console.file.getvalue()


def text_of(view: Terminal, width: int = 80, height: int = 24) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, _environ={})
    with console.capture() as capture:
        console.print(view.render(width, height))
    return capture.get()


def test_eighty_by_twenty_four_hold_every_line_of_the_ledger() -> None:
    lines = [line.split("││")[0].strip("│ !✓").split() for line in text_of(fed()).splitlines()]
    ledger = {" ".join(line[:-1]): line[-1] for line in lines if len(line) > 1}
    expected = {"announced": 2000, "analysed": 1042, "missing": 31, "malformed": 32, "dropped": 33, "late": 34}
    expected |= {"before join": 35, "pending": 793, "unaccounted": 0}
    assert {name: int(ledger[name].replace(",", "")) for name in expected} == expected


def test_eighty_by_twenty_four_show_source_state_rate_latency_curve_and_quantities() -> None:
    text = text_of(fed(DAMAGE))
    for words in (
        "dectris2+tcp://127.0.0.1:31001",
        "● RUNNING",
        "series 7",
        "98.7 frames/s",
        "p50 4.1",
        "p99 12.3",
        "I(q) / cm⁻¹",
        "q / nm⁻¹",
        "frame 1,049",
        "saxs.anomaly",
        "0.980 ± 0.042",
        "limit 0.9",
        "decode 2.1",
        "52 %",
    ):
        assert words in text
    assert any(0x2800 < ord(character) <= 0x28FF for character in text)


@pytest.mark.parametrize(
    ("severity", "symbol"), [(Severity.MINOR, "△"), (Severity.MAJOR, "▲"), (Severity.INVALID, "✖")]
)
def test_severity_is_told_by_symbol_and_word_without_any_colour(severity: Severity, symbol: str) -> None:
    assert f"{symbol} {severity.name} radiation_damage" in text_of(fed(replace(DAMAGE, severity=severity)))


def test_no_alarm_is_said_as_well() -> None:
    assert "✓ no alarm" in text_of(fed())


def test_the_banner_names_the_worst_alarm_and_how_many_there_are() -> None:
    minor = replace(DAMAGE, id="2", name="beam_low", severity=Severity.MINOR)
    banner = text_of(fed(minor, DAMAGE, replace(minor, id="3"))).splitlines()[2]
    assert "▲ MAJOR  radiation_damage" in banner
    assert "and 2 more" in banner


def test_an_alarm_that_ended_stays_listed_as_ended() -> None:
    text = text_of(fed(DAMAGE, replace(DAMAGE, ended=1.8e9 + 61)), width=120)
    assert "○ ended radiation_damage" in text
    assert "for 1 min" in text
    assert "✓ no alarm" in text


def test_an_alarm_the_status_does_not_name_has_ended_unseen() -> None:
    view = fed(DAMAGE)
    view.status(RUNNING)
    assert "✓ no alarm" in text_of(view)


def test_a_view_nobody_feeds_turns_invalid() -> None:
    view = fed()
    assert isinstance(view._clock, Clock)
    view._clock.now += 7
    text = text_of(view)
    assert "✖ INVALID  no status for 7 s" in text
    assert "no alarm" not in text.splitlines()[2]


def test_a_frame_without_a_name_in_the_ledger_is_shown_as_a_defect() -> None:
    view = fed(status=replace(RUNNING, series=replace(ACCOUNT, pending=0)))
    assert "793 ✖" in text_of(view)


def test_a_full_queue_and_an_output_that_is_down_are_marked() -> None:
    text = text_of(fed(), 130, 42)
    assert "work 64/64 full!" in text
    assert "journal ✖ down" in text


def test_a_larger_window_shows_the_wire_side_too() -> None:
    assert "malformed trun" in text_of(fed(), 130, 42)


def test_limits_are_shown_before_any_alarm_has_named_them() -> None:
    view = terminal()
    view.show_limits({"saxs.novelty": 3.5})
    view.write(Result("saxs", SeriesKey(7), 1, {"novelty": Quantity(0.1)}, channel="threshold_1"))
    assert "limit 3.5" in text_of(view)


def test_quantities_beyond_the_room_are_counted() -> None:
    view = terminal()
    view.write(Result("saxs", SeriesKey(7), 1, {f"value_{i}": Quantity(float(i)) for i in range(9)}))
    assert "… and 7 more" in text_of(view)


def test_the_number_of_quantities_is_bounded() -> None:
    view = terminal()
    for number in range(500):
        view.write(Result("saxs", SeriesKey(7), number, {f"value_{number}": Quantity(1.0)}))
    assert len(view._picture.quantities) <= 64


sizes = st.tuples(st.integers(1, 220), st.integers(1, 70))


@given(sizes, st.sampled_from(["nothing", "status", "everything"]))
@settings(max_examples=80, deadline=None)
def test_the_view_fits_whatever_room_there_is(size: tuple[int, int], what: str) -> None:
    width, height = size
    view = {"nothing": terminal, "status": lambda: fed(values=0), "everything": lambda: fed(DAMAGE)}[what]()
    lines = text_of(view, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines), default=0) <= width


HOSTILE = "\x1b[2J\x1b]0;gotcha\x07\r\n[red]x[/red][/]\udc80\u202e"


def test_text_from_elsewhere_cannot_command_the_terminal() -> None:
    alarm = replace(DAMAGE, name=HOSTILE, text=HOSTILE, watch=HOSTILE)
    odd = Quantity(np.ones(9), None, HOSTILE, {HOSTILE: (np.arange(9.0), HOSTILE)})
    status = replace(
        RUNNING,
        source=HOSTILE,
        state=HOSTILE,
        outputs={HOSTILE: HOSTILE},
        devices={HOSTILE: HOSTILE},
        stages={HOSTILE: math.nan},
        queues={HOSTILE: {}},
        latency_ms={HOSTILE: math.inf},
        wire=WireAccount(malformed={HOSTILE: 1}),
        series=replace(ACCOUNT, series=SeriesKey(7, HOSTILE), closed_by=HOSTILE),
        alarms=(alarm, replace(alarm, id="2", began=math.nan)),
        wall_time=math.inf,
    )
    for is_terminal in (True, False):
        view = terminal(line_s=0)
        view.write(Result(HOSTILE, SeriesKey(7), 1, {HOSTILE: Quantity(math.inf, math.nan, HOSTILE), "profile": odd}))
        view.alarm(alarm)
        view.alarm(replace(alarm, ended=-1.0))
        view.status(status)
        text = (text_of(view, 150, 50) if is_terminal else said(view)).replace("\n", "")
        assert text
        assert text.isprintable()


def test_without_a_terminal_alarms_are_said_at_once_and_the_status_now_and_then() -> None:
    view = terminal(line_s=10)
    assert isinstance(view._clock, Clock)
    for _ in range(25):
        view.status(RUNNING)
        view._clock.now += 1
    view.alarm(DAMAGE)
    lines = said(view).splitlines()
    assert [line for line in lines if "1042/2000 frames, 130 lost" in line and "98.7 frames/s" in line] == lines[:3]
    assert lines[3].endswith("ALARM radiation_damage · MAJOR · move to a fresh spot")
    assert len(lines) == 4


def test_on_a_terminal_it_is_drawn_at_most_so_often() -> None:
    view = terminal(is_terminal=True, refresh_s=0.25)
    assert isinstance(view._clock, Clock)
    before = view.drawings
    for number in range(1000):
        view._clock.now += 0.001
        view.write(Result("saxs", SeriesKey(7), number, {"anomaly": Quantity(0.5)}))
    drawn = view.drawings - before
    view.close()
    assert 3 <= drawn <= 5


def test_the_last_picture_stays_when_the_view_is_closed() -> None:
    view = terminal(is_terminal=True)
    view.status(RUNNING)
    view.close()
    view.close()
    after_leaving = said(view).rpartition("\x1b[?1049l")[2]
    assert "analysed" in after_leaving
    assert len(after_leaving.splitlines()) <= 25


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(BadConfig) as caught:
        Terminal(refresh_s=0, history=0, line_s=-1)
    assert len(caught.value.problems) == 3
