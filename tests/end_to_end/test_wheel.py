"""What is installed without a checkout: the wheel carries its models and runs from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """The wheel, built from the sources as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [python, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it but what the wheel holds."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def streamer(python: str, installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [python, "-m", "streamer", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_wheel_carries_cards_and_networks_and_no_training_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert max(archive.getinfo(name).file_size for name in names) < 5e6
    assert {"streamer/models/saxs/card.toml", "streamer/models/saxs/model.onnx", "streamer/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("models/", "tests/", "tools/"))]


def test_its_models_come_from_the_wheel(python: str, installed: Path, tmp_path: Path) -> None:
    ended = streamer(python, installed, tmp_path, "models", "--json")
    assert ended.returncode == 0, ended.stderr
    cards = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [card["name"] for card in cards] == ["rdf", "saxs", "saxs_faithful"]
    assert Path(cards[0]["folder"]).is_relative_to(installed)


@pytest.mark.timeout(300)
def test_the_demonstration_runs_from_an_empty_folder(python: str, installed: Path, tmp_path: Path) -> None:
    ended = streamer(python, installed, tmp_path, "demo", "--seconds", "6", "--rate", "50", "--json")
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    account = json.loads(line)
    assert account["sent"] == 300
    assert account["analysed"] >= 100
    assert account["unaccounted"] == 0
    assert account["alarms"]
    assert set(account["latency_ms"]) >= {"p50", "p99"}
    assert list(tmp_path.iterdir()) == []
