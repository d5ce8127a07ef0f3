"""The demonstration survives what users are invited to do to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


def test_the_demonstration_starts_its_service_again_after_a_kill(python: str, tmp_path: Path) -> None:
    words = [python, "-m", "streamer", "demo", "--seconds", "12", "--detector", "128k", "--dir", "files", "--json"]
    with (tmp_path / "notes").open("w") as notes:
        demo = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=notes, text=True)
    killed = int(_when(tmp_path / "notes", r"the service is process (\d+):"))
    port = int(_when(tmp_path / "files" / "beamline.toml", r"\nport = (\d+)"))
    _until(lambda: _analysed(port) > 30, "30 frames are analysed")
    os.kill(killed, signal.SIGKILL)
    again = int(_when(tmp_path / "notes", r"the service is process (\d+) now"))
    said, _ = demo.communicate(timeout=90)
    account = json.loads(said)
    assert demo.returncode == 0
    assert again != killed
    assert account["sent"] == 240
    assert account["before_join"] > 0
    assert account["analysed"] > 0
    assert account["unaccounted"] == 0
    assert account["series"][0]["joined_late"]


def _analysed(port: int) -> float:
    """How many frames the service has analysed, by its own metrics."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            found = re.search(r"streamer_frames_analysed_total\{.*\} (\S+)", page.read().decode())
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0


def _when(file: Path, pattern: str) -> str:
    """What a pattern finds in a file, as soon as it does."""
    found: list[str] = []

    def is_there() -> bool:
        found.extend(re.findall(pattern, file.read_text(encoding="utf-8")) if file.exists() else [])
        return bool(found)

    _until(is_there, f"{pattern} is in {file}")
    return found[0]


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 100
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        pause.wait(0.05)
