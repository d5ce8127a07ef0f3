"""The README is a tutorial: its blocks run, in order, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """Language, title and text of every fenced block."""
    return [(language, title, text) for language, title, text in BLOCK.findall(README.read_text(encoding="utf-8"))]


def commands(text: str) -> str:
    """What a reader would type: the lines after "$ "."""
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))


@pytest.mark.timeout(600)
def test_the_blocks_of_the_readme_run(tmp_path: Path, python: str) -> None:
    environment = os.environ | {"PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = set()
    for language, title, text in blocks():
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
            continue
        if language == "console":
            words = ["bash", "-euo", "pipefail", "-c", commands(text)]
        elif language == "python":
            words = [python, "-W", "error", "-c", text]
        else:
            continue
        ended = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
        ran.add(language)
    assert ran == {"console", "python"}
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 3


def test_the_first_screen_names_the_two_commands() -> None:
    first_screen = README.read_text(encoding="utf-8").splitlines()[:30]
    assert any("./tools/demo" in line for line in first_screen)
    assert any("./tools/test" in line for line in first_screen)
