"""The commands as users type them: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer import config
from streamer.__main__ import app

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(python: str, tmp_path: Path) -> Run:
    """Runs `streamer` with these words in an empty folder."""

    def streamer(*words: object) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "streamer", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    return streamer


def test_json_is_all_there_is_on_standard_output(run: Run) -> None:
    ended = run("analyse", "sim:saxs?detector=128k&frames=4&rate=max", "--json")
    assert ended.returncode == 0, ended.stderr
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [result["number"] for result in results] == [0, 1, 2, 3]
    assert {"value", "sigma", "unit", "axes"} <= set(results[0]["quantities"]["profile"])


def test_a_reader_that_closes_early_is_no_error(python: str, tmp_path: Path) -> None:
    words = f"{python} -m streamer analyse 'sim:saxs?detector=128k&frames=200&rate=max' --json | head -n 1"
    ended = subprocess.run(
        ["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert json.loads(ended.stdout)["number"] == 0
    assert "Traceback" not in ended.stderr


@pytest.fixture
def endless(python: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `streamer` with words that do not end by themselves; what still runs after the test is killed."""
    started = []

    def streamer(*words: object) -> subprocess.Popen[str]:
        command = [python, "-m", "streamer", *map(str, words)]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, text=True, **both))
        return started[-1]

    yield streamer
    for process in started:
        process.kill()
        process.communicate()


def test_an_analysis_that_is_told_to_end_says_what_became_of_every_frame(
    endless: Callable[..., subprocess.Popen[str]],
) -> None:
    analyses = endless("analyse", "sim:saxs?detector=128k&frames=100000&rate=50")
    assert analyses.stdout is not None
    first = [analyses.stdout.readline() for _ in range(12)]
    assert all(line.startswith("saxs ") for line in first)
    analyses.send_signal(signal.SIGTERM)
    rest, said = analyses.communicate(timeout=60)
    assert analyses.returncode == 0, said
    assert "one result in 1 s is shown" in said
    *_, series, account = rest.splitlines()
    assert series.endswith("closed by stop")
    assert account.endswith(" 0 malformed + 0 dropped + 0 late + 0 pending")


def test_a_stream_without_a_geometry_ends_with_what_to_do_and_does_not_wait_for_its_limit(
    run: Run, endless: Callable[..., subprocess.Popen[str]], free_port: int
) -> None:
    endless("simulate", "sim:saxs?detector=128k&frames=100000&rate=50", "--to", f"array+tcp://127.0.0.1:{free_port}")
    ended = run("analyse", f"array+tcp://127.0.0.1:{free_port}", "--limit", 5)
    assert ended.returncode == 1, ended.stderr
    assert "can be analysed" in ended.stderr
    assert "the header lacks beam_center" in ended.stderr
    assert "give a .poni (--poni)" in ended.stderr
    assert "malformed" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["analyse", "relay", "record", "simulate"])
def test_the_help_names_every_format(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).output
    told = " ".join(shown.replace("│", " ").split())
    assert f"formats: {', '.join(config.names('wire'))};" in told


def test_watching_a_detectors_push_socket_is_refused_without_steal(run: Run) -> None:
    ended = run("watch", "dectris2+tcp://127.0.0.1:31001")
    assert ended.returncode == 2
    assert "--steal" in ended.stderr
    assert "takes frames away" in ended.stderr


def test_a_source_can_be_watched_with_steal(run: Run, free_port: int) -> None:
    ended = run("watch", f"dectris2+tcp://127.0.0.1:{free_port}", "--steal", "--seconds", 1, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["status"]["state"] == "stopped"


def test_an_image_without_a_geometry_says_so(run: Run, real_data: Path) -> None:
    ended = run("analyse", real_data / "saxs" / "raw_misc" / "GI2_A9_19_001_0000.tiff")
    assert ended.returncode == 1
    assert "no geometry" in ended.stderr
    assert "give a .poni" in ended.stderr


def test_messages_captured_from_an_eiger_go_through_to_a_result(run: Run, tickit_data: Path) -> None:
    ended = run("analyse", tickit_data / "stream2", "--with", "saxs", "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["quantities"]["invalid"]["value"] == pytest.approx(0.0693, abs=5e-5)
    assert result["quantities"]["total"]["value"] == pytest.approx(0.0008, abs=5e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("analyse", "dectris2+tcp://127.0.0.1:port"), "port"),
        (("analyse", "sim:sax"), "'sax'"),
        (("analyse", "sim:saxs?frames=1", "--with", "sacks"), "did you mean 'saxs'?"),
        (("analyse", "sim:saxs?frames=1", "--set", "bins"), "KEY=VALUE"),
        (("analyse", "sim:saxs?frames=1", "--set", "binz=5"), "did you mean 'bins'?"),
        (("analyse", "sim:saxs?frames=1", "--alarm", "saxs.anomaly"), "ANALYSIS.QUANTITY > LIMIT"),
        (("simulate", "sim:saxs", "--to", "tcp://127.0.0.1:1"), "expected FORMAT"),
        (("record", "sim:saxs", "x.wire"), "no messages of a wire"),
        (("run", "nothing.toml"), "cannot be read"),
        (("watch", "tcp:/x"), "no address"),
    ],
)
def test_what_is_asked_wrongly_ends_with_2_and_a_sentence(run: Run, words: tuple[str, ...], expected: str) -> None:
    ended = run(*words)
    assert ended.returncode == 2, ended.stderr
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_doctor_finds_this_machine_fit(run: Run) -> None:
    ended = run("doctor", "--json")
    findings = {finding["what"]: finding for finding in map(json.loads, ended.stdout.splitlines())}
    assert ended.returncode == 0
    assert {"kernels", "device", "model saxs", "ONNX Runtime"} <= set(findings)


def test_a_file_that_is_not_there_is_named(run: Run) -> None:
    ended = run("analyse", "nowhere.h5")
    assert ended.returncode == 1
    assert "there is no file nowhere.h5" in ended.stderr
