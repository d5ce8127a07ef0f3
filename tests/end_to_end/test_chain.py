"""Two streamers, one behind the other: the first analyses, the second decides and writes down."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

import streamer
from streamer import config
from streamer.demo import free_ports
from streamer.records import BadConfig

DEADLINE_S = 60.0
FRAMES = 60

FIRST = """
source = "sim:saxs?detector=128k&mean=3&frames={frames}&rate=40&fault=radiation_damage@20"

[analyse.saxs]
bins = 200
reference_frames = 10

[publish.zeromq]
address = "tcp://127.0.0.1:{port}"
"""

SECOND = """
source = "results+tcp://127.0.0.1:{port}"
grace_s = 0.5

[alarm.damage]
watch = "saxs.anomaly"
above = 0.9
for_frames = 3
clear_below = 0.7

[publish.journal]
path = "journal.jsonl"
"""


def streamer_run(python: str, file: Path) -> subprocess.Popen[str]:
    with file.with_suffix(".log").open("w") as log:
        command = [python, "-m", "streamer", "run", file.name, "--json"]
        return subprocess.Popen(command, cwd=file.parent, stdout=subprocess.PIPE, stderr=log, text=True)


def wait_until_said(file: Path, word: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while word not in file.read_text(encoding="utf-8"):
        assert process.poll() is None, file.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, file.read_text(encoding="utf-8")
        time.sleep(0.05)


def test_the_second_streamer_decides_on_what_the_first_one_measured(tmp_path: Path, python: str) -> None:
    (port,) = free_ports(1)
    for name, text in (("first", FIRST), ("second", SECOND)):
        (tmp_path / f"{name}.toml").write_text(text.format(port=port, frames=FRAMES), encoding="utf-8")
        assert config.check(tmp_path / f"{name}.toml") == []
    second = streamer_run(python, tmp_path / "second.toml")
    wait_until_said(tmp_path / "second.log", "nobody answers", second)
    first = streamer_run(python, tmp_path / "first.toml")
    try:
        measured = json.loads(first.communicate(timeout=DEADLINE_S)[0])
        wait_until_said(tmp_path / "second.log", "series closed", second)
        second.send_signal(signal.SIGTERM)
        decided = json.loads(second.communicate(timeout=DEADLINE_S)[0])
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    (account,) = decided["series"]
    assert measured["series"][0]["analysed"] == FRAMES
    assert account["announced"] == FRAMES
    assert account["analysed"] + account["before_join"] + account["missing"] == FRAMES
    assert account["analysed"] > FRAMES / 2
    assert account["closed_by"] == "end"
    assert account["series"] == measured["series"][0]["series"]
    (alarm,) = [one for one in decided["alarms"] if one["name"] == "damage"]
    assert 20 <= alarm["number"] < FRAMES
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(entry.get("alarm", {}).get("name") == "damage" for entry in journal)


def test_results_are_no_frames_to_be_analysed(free_port: int) -> None:
    with (
        streamer.open(f"results+tcp://127.0.0.1:{free_port}") as stream,
        pytest.raises(BadConfig, match=r"carries results of another streamer.*results\(\)"),
    ):
        next(stream.analyse("saxs"))
