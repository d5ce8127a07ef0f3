"""The journal: what was decided survives crashes, full disks and its own growth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.metrics import Metrics
from streamer.outputs.journal import Journal, open_alarms
from streamer.records import Account, Alarm, BadConfig, OutputDown, SeriesKey, Severity, Status, WireAccount

DAMAGE = Alarm(
    id="damage#1@5",
    name="damage",
    severity=Severity.MAJOR,
    text="σ grew\nfast",
    watch="saxs.anomaly",
    began=5.0,
    series=SeriesKey(7, "ab"),
    number=1042,
    evidence={"value": 0.93, "limit": 0.9, "frames": [1038, 1042], "unit": "1/cm"},
)
STALL = Alarm("stalled#1@6", "stalled", Severity.INVALID, "no message", "stream", 6.0)
ACCOUNT = Account(SeriesKey(7), announced=10, analysed=9, missing=1, closed_by="end")
RUNNING = Status("running", True, "sim:saxs", WireAccount())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "streamer.jsonl"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = opened_at(path)
    yield opened
    opened.close()


def opened_at(path: Path, **settings: Any) -> Journal:
    journal = Journal(path, **settings)
    journal.open(Metrics())
    return journal


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_one_object_with_its_wall_time(journal: Journal, path: Path) -> None:
    journal.alarm(DAMAGE)
    journal.status(replace(RUNNING, closed=(ACCOUNT,)))
    header, alarm, series = entries(path)
    assert header["journal"] == "streamer.journal/1"
    assert (alarm["kind"], alarm["alarm"]["severity"], alarm["alarm"]["text"]) == ("alarm", "MAJOR", "σ grew\nfast")
    assert (series["kind"], series["series"]["missing"]) == ("series", 1)
    for entry in (header, alarm, series):
        assert datetime.fromisoformat(entry["time"]).utcoffset() == timedelta(0)


def test_alarms_still_open_are_read_back_as_they_were(journal: Journal, path: Path) -> None:
    acknowledged = replace(STALL, acknowledged=True)
    for alarm in (STALL, DAMAGE, acknowledged, replace(DAMAGE, id="damage#0@1", ended=8.0)):
        journal.alarm(alarm)
    assert open_alarms(path) == [DAMAGE, acknowledged]


def test_an_alarm_that_ended_is_not_open(journal: Journal, path: Path) -> None:
    journal.alarm(DAMAGE)
    journal.alarm(replace(DAMAGE, ended=9.0))
    assert open_alarms(path) == []


def test_where_there_is_no_journal_nothing_is_open(path: Path) -> None:
    assert open_alarms(path) == []


def test_a_restarted_journal_goes_on_where_it_was(journal: Journal, path: Path) -> None:
    journal.alarm(DAMAGE)
    journal.close()
    second = opened_at(path)
    second.alarm(STALL)
    second.close()
    assert [entry.get("kind") for entry in entries(path)] == [None, "alarm", "alarm"]
    assert open_alarms(path) == [DAMAGE, STALL]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(cut=st.integers(1, 400))
def test_a_crash_in_the_middle_of_a_line_loses_that_line_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "torn.jsonl"
    path.unlink(missing_ok=True)
    journal = opened_at(path)
    journal.alarm(DAMAGE)
    before = path.stat().st_size
    journal.alarm(STALL)
    journal.close()
    os.truncate(path, max(before, path.stat().st_size - cut))
    assert open_alarms(path)[:1] == [DAMAGE]
    second = opened_at(path)
    second.alarm(replace(STALL, id="stalled#2@7", began=7.0))
    second.close()
    found = {alarm.id for alarm in open_alarms(path)}
    assert {DAMAGE.id, "stalled#2@7"} <= found <= {DAMAGE.id, STALL.id, "stalled#2@7"}


@pytest.mark.parametrize("length", [0, 1, 12, 31, 40])
def test_a_journal_torn_in_its_first_line_is_still_a_journal(path: Path, journal: Journal, length: int) -> None:
    journal.close()
    os.truncate(path, length)
    second = opened_at(path)
    second.alarm(DAMAGE)
    second.close()
    assert open_alarms(path) == [DAMAGE]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b'{"kind":"alarm"}',
        b'{"kind":"alarm","alarm":[]}',
        b'{"kind":"alarm","alarm":{"id":1}}',
        b"",
    ],
)
def test_a_damaged_line_is_skipped(journal: Journal, path: Path, line: bytes) -> None:
    journal.alarm(DAMAGE)
    with path.open("ab") as file:
        file.write(line + b"\n")
    journal.alarm(STALL)
    assert open_alarms(path) == [DAMAGE, STALL]


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b'{"journal":"streamer.journal/2"}\n', b"\x00" * 64, b"{}\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(BadConfig, match=r"precious begins with .*set another path"):
        Journal(path)
    with pytest.raises(BadConfig):
        open_alarms(path)
    assert path.read_bytes() == content


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        Journal(tmp_path, max_bytes=10, keep=0)
    assert len(caught.value.problems) == 3


def test_a_second_process_is_refused(journal: Journal, path: Path) -> None:
    with pytest.raises(OutputDown, match="another process writes"):
        opened_at(path)


def test_a_folder_that_cannot_be_made_is_reported_as_the_output_being_down(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "later" / "journal.jsonl")
    (tmp_path / "later").write_text("a file where a folder should be")
    with pytest.raises(OutputDown, match=r"cannot write .*later.*set another path"):
        journal.open(Metrics())


def test_a_write_that_fails_half_way_is_made_good_by_the_next_one(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full_disk(number: int, line: bytes) -> int:
        if len(line) < 20:
            raise OSError(28, "No space left on device")
        return write(number, line[:-10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        with pytest.raises(OutputDown, match="No space left"):
            journal.alarm(DAMAGE)
    journal.alarm(DAMAGE)
    assert open_alarms(path) == [DAMAGE]


@given(value=st.floats(allow_nan=True, allow_infinity=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_every_line_is_strict_json_whatever_was_measured(tmp_path: Path, value: float) -> None:
    path = tmp_path / "numbers.jsonl"
    path.unlink(missing_ok=True)
    journal = opened_at(path)
    journal.alarm(replace(DAMAGE, text="\udc80", evidence={"value": value, "all": [value]}))
    journal.close()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads(path.read_text().splitlines()[1], parse_constant=refuse)
    assert float(line["alarm"]["evidence"]["value"]) == value or value != value


def test_an_account_is_written_once_and_again_when_it_changes(journal: Journal, path: Path) -> None:
    later = replace(ACCOUNT, missing=0, late=1)
    for account in (ACCOUNT, ACCOUNT, later, later):
        journal.status(replace(RUNNING, closed=(account,)))
    assert [entry["series"]["late"] for entry in entries(path)[1:]] == [0, 1]


def test_files_are_bounded_in_size_and_number_and_open_alarms_move_along(path: Path) -> None:
    journal = opened_at(path, max_bytes=4096, keep=3)
    journal.alarm(DAMAGE)
    for occurrence in range(200):
        alarm = replace(STALL, id=f"stalled#{occurrence}", began=6.0 + occurrence)
        journal.alarm(alarm)
        journal.alarm(replace(alarm, ended=7.0 + occurrence))
    journal.close()
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == [path.name, *(f"{path.name}.{age}" for age in (1, 2, 3))]
    assert all(file.stat().st_size <= 4096 for file in path.parent.iterdir())
    assert all(entries(file) for file in path.parent.iterdir())
    assert open_alarms(path) == [DAMAGE]


def test_nothing_open_is_forgotten_if_a_crash_comes_between_moving_two_files(journal: Journal, path: Path) -> None:
    journal.alarm(DAMAGE)
    journal.close()
    path.rename(path.with_name(f"{path.name}.1"))
    assert open_alarms(path) == [DAMAGE]
    opened_at(path).close()
    assert path.exists()
    assert open_alarms(path) == [DAMAGE]


def test_more_open_alarms_than_fit_a_file_do_not_begin_a_new_one_each_time(path: Path) -> None:
    journal = opened_at(path, max_bytes=4096, keep=2)
    standing = [replace(STALL, id=f"stalled#{i:03}", began=float(i)) for i in range(100)]
    for alarm in standing:
        journal.alarm(alarm)
    journal.close()
    assert open_alarms(path) == standing
    assert len(entries(path.with_name(f"{path.name}.1"))) > 20


def test_closing_twice_is_harmless_and_writing_afterwards_is_refused(journal: Journal) -> None:
    journal.close()
    journal.close()
    with pytest.raises(OutputDown, match="closed"):
        journal.alarm(DAMAGE)
