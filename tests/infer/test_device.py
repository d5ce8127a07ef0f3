"""The device: CUDA where it works, and never in silence where it does not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from streamer.infer import choose_device
from streamer.infer.device import _runtime_obstacle
from streamer.records import BadConfig
from tests.infer import networks

LOAD = """
import sys
from streamer.infer import load_model
from streamer.records import StreamerError
try:
    load_model(sys.argv[1] + "/", device=sys.argv[2])
except StreamerError as refusal:
    print(type(refusal).__name__, refusal)
"""


def load_without_gpu(python: str, folder: Path, device: str) -> subprocess.CompletedProcess[str]:
    """Load a model in a process of its own to which no CUDA device is visible."""
    return subprocess.run(
        [python, "-c", LOAD, str(folder), device],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_machine_without_gpu_prints_no_provider_errors_and_says_once_what_it_took(
    tmp_path: Path, python: str, device: str
) -> None:
    ran = load_without_gpu(python, networks.write(tmp_path), device)
    assert ran.stderr == ""
    assert ran.stdout.count("model ready") == len(ran.stdout.splitlines()) == 1
    assert "cpu" in ran.stdout
    assert ("NVIDIA driver" in ran.stdout) == (device == "auto")


def test_cuda_without_a_gpu_is_refused_with_what_is_missing(tmp_path: Path, python: str) -> None:
    ran = load_without_gpu(python, networks.write(tmp_path), "cuda")
    assert ran.stdout.startswith('BadConfig device "cuda": ')
    assert "NVIDIA driver" in ran.stdout
    assert 'choose device = "auto"' in ran.stdout
    assert ran.stderr == ""


def test_the_cpu_is_taken_when_asked_for() -> None:
    assert choose_device("cpu") == ("cpu", "as asked")


def test_an_unknown_device_is_refused() -> None:
    wrong: Any = "gpu"
    with pytest.raises(BadConfig, match='found \'gpu\', expected "auto", "cuda" or "cpu"'):
        choose_device(wrong)


def test_two_runtimes_in_one_environment_are_an_obstacle() -> None:
    found = _runtime_obstacle(["onnxruntime", "onnxruntime-gpu"], ["CUDAExecutionProvider"])
    assert found is not None
    assert "uninstall both" in found


def test_a_runtime_built_without_cuda_is_an_obstacle() -> None:
    found = _runtime_obstacle(["onnxruntime"], ["CPUExecutionProvider"])
    assert found is not None
    assert "built without CUDA; pip install 'streamer[cuda]'" in found


def test_the_runtime_with_cuda_alone_is_none() -> None:
    assert _runtime_obstacle(["onnxruntime-gpu"], ["CUDAExecutionProvider", "CPUExecutionProvider"]) is None
