"""Recording, replaying and relaying as users start them: processes, signals, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamer.demo import free_ports
from streamer.sources.recording import Recording
from streamer.wire.dectris2 import Dectris2
from tests.sources.playing import messages

DEADLINE_S = 60.0
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(python: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `streamer` with these words; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def streamer(*words: object) -> subprocess.Popen[str]:
        command = [python, "-m", "streamer", *map(str, words)]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield streamer
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int = 0) -> list[dict[str, Any]]:
    """The JSON lines that a process wrote, which ended with this code."""
    output, log = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, log
    assert "Traceback" not in log
    return [json.loads(line) for line in output.splitlines()]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_relay_feeds_an_analysis_and_a_viewer_and_accounts_for_every_message(start: Start) -> None:
    source, analysis, viewer = free_ports(3)
    to = ("--to", f"tcp://127.0.0.1:{analysis}?when_full=wait", "--to", f"tcp://127.0.0.1:{viewer}?socket=pub")
    with zmq.Context() as context, context.socket(zmq.SUB) as views:
        views.linger = 0
        views.subscribe(b"")
        views.connect(f"tcp://127.0.0.1:{viewer}")
        relay = start("relay", f"dectris2+tcp://127.0.0.1:{source}", *to, "--json")
        for line in relay.stdout:
            status = json.loads(line)["status"]
            if status["destinations"][1]["readers"]:
                break
        simulate = start(
            *("simulate", "sim:saxs?detector=128k&frames=40&rate=100"),
            *("--to", f"dectris2+tcp://127.0.0.1:{source}", "--json"),
        )
        analyse = start("analyse", f"dectris2+tcp://127.0.0.1:{analysis}", "--json", "--limit", 40)
        numbers = [line["number"] for line in ended(analyse)]
        [sent] = ended(simulate)
        seen = []
        while len(seen) < 42 and views.poll(5000):
            seen.append(views.recv())
    relay.send_signal(signal.SIGTERM)
    report = ended(relay)[-1]
    assert numbers == list(range(40))
    assert sent["messages"] == report["messages"] == 42
    assert [Dectris2().kind([part]) for part in seen] == ["start", *["image"] * 40, "end"]
    assert report["unaccounted"] == 0
    for lane in report["destinations"]:
        assert (lane["received"], lane["sent"], lane["dropped"], lane["waiting"]) == (42, 42, 0, 0)


def test_a_killed_recorder_leaves_a_file_that_plays(start: Start, tmp_path: Path) -> None:
    """SIGKILL at any moment: what is in the file is whole up to at most one cut message."""
    [port] = free_ports(1)
    path = tmp_path / "run.wire"
    start(
        *("simulate", "sim:saxs?detector=128k&frames=100000&rate=max"),
        *("--to", f"dectris2+tcp://127.0.0.1:{port}"),
    )
    record = start("record", f"dectris2+tcp://127.0.0.1:{port}", path)
    wait_for(lambda: path.exists() and path.stat().st_size > 500_000, record)
    record.send_signal(signal.SIGKILL)
    record.wait(DEADLINE_S)
    recording = Recording(path, lambda _: Dectris2())
    played = list(messages(recording))
    assert played[0].kind == "start"
    assert [recording.identify(message)[1] for message in played[1:]] == list(range(len(played) - 1))
    assert len(played) > 10
    assert recording.damaged == 0
    whole = sum(message.nbytes + 12 + 20 + 8 * len(message.parts) for message in played)
    assert 0 <= path.stat().st_size - whole - recording.lost_bytes < 300  # the header of the file


def test_a_recording_is_replayed_to_a_recorder_byte_for_byte(start: Start, tmp_path: Path) -> None:
    first, second = free_ports(2)
    start(
        *("simulate", "sim:saxs?detector=128k&frames=5&rate=max"),
        *("--to", f"dectris2+tcp://127.0.0.1:{first}"),
    )
    [kept] = ended(start("record", f"dectris2+tcp://127.0.0.1:{first}", "one.wire", "--messages", 7, "--json"))
    replay = start("replay", "one.wire", "--rate", 200, "--to", f"tcp://127.0.0.1:{second}", "--json")
    ended(start("record", f"dectris2+tcp://127.0.0.1:{second}", "two.wire", "--messages", 7, "--json"))
    report = ended(replay)[-1]
    assert (report["messages"], report["unaccounted"], kept["messages"]) == (7, 0, 7)
    one, two = (
        [list(map(bytes, message.parts)) for message in messages(Recording(tmp_path / name, lambda _: Dectris2()))]
        for name in ("one.wire", "two.wire")
    )
    assert one == two


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("relay", "sim:saxs", "--to", "tcp://127.0.0.1:1"), "no live stream of messages"),
        (("relay", "dectris2+tcp://127.0.0.1:1", "--to", "tcp://x?sockt=pub"), "did you mean 'socket'?"),
        (("relay", "dectris2+tcp://127.0.0.1:1", "--to", "tcp://nowhere"), "write tcp://host:port"),
        (("replay", "one.wire", "--rate", "fast", "--to", "tcp://127.0.0.1:1"), "expected real, max, or messages"),
    ],
)
def test_what_is_asked_wrongly_ends_with_2_and_a_sentence(start: Start, words: tuple[str, ...], expected: str) -> None:
    process = start(*words)
    _, log = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2, log
    assert expected in log
    assert "Traceback" not in log
