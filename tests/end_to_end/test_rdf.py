"""A glass in front of a detector, and what its pair distributions raise: three processes and real sockets."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamer
from streamer import config
from streamer.demo import free_ports

pytest.importorskip("glassure", reason="glassure not installed: pip install 'streamer[rdf]'")

DEADLINE_S = 90.0
FRAMES, COMPRESSED, RELEASED, CRYSTALLISES = 60, 10, 29, 40

BEAMLINE = """
source = "dectris2+tcp://127.0.0.1:{detector}"
when_behind = "wait"
grace_s = 0.5

[analyse.rdf]
composition = "Ge25Se75"
density = 0.0335
bins = 1200
device = "cpu"

[alarm.moved]
watch = "rdf.first_position"
above = 2.395
for_frames = 3

[alarm.neighbours]
watch = "rdf.first_coordination"
above = 2.7
sigma = 1
for_frames = 3

[alarm.new_peaks]
watch = "rdf.peaks"
above = 3.5
for_frames = 3

[alarm.order]
watch = "rdf.order"
above = 2.0
for_frames = 3

[publish.zeromq]
address = "tcp://127.0.0.1:{results}"

[publish.journal]
path = "journal.jsonl"
"""


def wait_until_said(file: Path, word: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while word not in file.read_text(encoding="utf-8"):
        assert process.poll() is None, file.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, file.read_text(encoding="utf-8")
        time.sleep(0.05)


def simulated(python: str, port: int) -> subprocess.Popen[str]:
    faults = f"compression@{COMPRESSED}-{RELEASED},crystallisation@{CRYSTALLISES}"
    url = f"sim:glass?detector=128k&mean=60&frames={FRAMES}&rate=20&fault={faults}"
    command = [python, "-m", "streamer", "simulate", url, "--to", f"dectris2+tcp://127.0.0.1:{port}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)


def followed(folder: Path, python: str) -> tuple[list[Any], dict[str, Any]]:
    """What the service publishes of one series, and its report."""
    detector, results = free_ports(2)
    file = folder / "glass.toml"
    file.write_text(BEAMLINE.format(detector=detector, results=results), encoding="utf-8")
    assert config.check(file) == []
    with (folder / "service.log").open("w") as log:
        command = [python, "-m", "streamer", "run", file.name, "--json"]
        service = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
    processes = [service]
    try:
        wait_until_said(folder / "service.log", "model ready", service)
        with streamer.open(f"results+tcp://127.0.0.1:{results}") as stream:
            processes.append(simulated(python, detector))
            published = []
            for result in stream.results():
                published.append(result)
                if result.number == FRAMES - 1:
                    break
        wait_until_said(folder / "service.log", "series closed", service)
        service.send_signal(signal.SIGTERM)
        report: dict[str, Any] = json.loads(service.communicate(timeout=DEADLINE_S)[0].splitlines()[-1])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return published, report


@pytest.mark.timeout(300)
def test_a_glass_that_is_compressed_and_crystallises_raises_an_alarm_for_each_change(
    tmp_path: Path, python: str
) -> None:
    published, report = followed(tmp_path, python)
    (account,) = report["series"]
    assert (account["announced"], account["analysed"], report["unaccounted"]) == (FRAMES, FRAMES, 0)
    by_number = {result.number: result for result in published}
    normal, compressed, crystal = (by_number[n] for n in (CRYSTALLISES - 5, RELEASED, FRAMES - 1))
    assert normal["first_position"].value == pytest.approx(2.37, abs=0.015)
    assert compressed["first_position"].value == pytest.approx(2.43, abs=0.02)
    assert compressed["first_coordination"].value > normal["first_coordination"].value + 0.4
    assert crystal["order"].value > 3 > 1.8 > normal["order"].value
    G, r = normal["G"], normal["G"].axes["r"][0]
    assert np.asarray(G.value).shape == np.asarray(G.sigma).shape == np.shape(r)
    raised = {}
    for line in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines():
        alarm = json.loads(line).get("alarm", {})
        raised.setdefault(alarm.get("name"), alarm.get("number"))
    assert COMPRESSED <= raised["moved"] <= RELEASED
    assert COMPRESSED <= raised["neighbours"] <= RELEASED
    assert CRYSTALLISES <= raised["new_peaks"] < FRAMES
    assert CRYSTALLISES <= raised["order"] < FRAMES
