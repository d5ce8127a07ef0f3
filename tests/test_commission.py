"""Commissioning on a simulated beamline: what is learned, and what is said of frames that will not do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from streamer.commission import Commissioning, commission
from streamer.records import BadInput


@pytest.fixture(scope="module")
def learned() -> Commissioning:
    return commission("sim:saxs?detector=128k&frames=240&rate=max&seed=5", frames=240)


def test_reference_noise_and_limit_are_learned_from_frames_in_order(learned: Commissioning) -> None:
    assert learned.frames == 240
    assert learned.what.reference.frames == 240
    assert learned.what.reference.noise == pytest.approx(1, abs=0.05)
    assert learned.what.stability < 2e-3
    assert learned.changed < 1


def test_a_rarer_false_alarm_than_the_frames_can_tell_is_called_extrapolated(learned: Commissioning) -> None:
    assert learned.limit.is_extrapolated
    assert learned.limit.frames_needed == 19_999


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(BadInput, match="gave 5 usable frames, expected 20 or more"):
        commission("sim:saxs?detector=128k&frames=5&rate=max")


def test_the_command_writes_a_file_that_the_analysis_reads(python: str, tmp_path: Path) -> None:
    words = [
        "commission",
        "saxs",
        "sim:saxs?detector=128k&frames=220&rate=max",
        "--frames",
        "220",
        "--out",
        "here.json",
    ]
    ended = subprocess.run(
        [python, "-m", "streamer", *words, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["frames"] == 220
    words = ["analyse", "sim:saxs?detector=128k&frames=2&rate=max", "--set", "commissioned=here.json", "--json"]
    ended = subprocess.run(
        [python, "-m", "streamer", *words], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[0])["quantities"]["has_reference"]["value"] == 1
