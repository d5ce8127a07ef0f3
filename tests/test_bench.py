"""The bench: it compares answers before it compares times, names its machine, and loses no frame."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog.testing

from streamer.infer import choose_device
from streamer.records import BadConfig, BadModel
from tools import bench as tool
from tools.benches import graph, measure
from tools.benches.measure import Report

BENCH = Path(__file__).resolve().parent.parent / "tools" / "bench.py"

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a bench with these words and gives its lines."""

    def run(*words: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        tool.run(tool.arguments([*map(str, words)]), Report(as_json=True))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    return run


def test_every_run_names_its_machine_and_its_input(bench: Run) -> None:
    machine, *lines = bench("decode", "--detector", "128k", "--rounds", 1)
    (about,) = [line for line in lines if line["bench"] == "input"]
    assert machine["bench"] == "machine"
    assert {"cores", "used_cores", "python", "versions"} <= set(machine)
    assert about["mean_counts"] == pytest.approx(3, rel=0.05)
    assert about["compressed_MB"] > 0
    assert about["frames"] == 8


def test_reduce_agrees_with_pyfai_where_pixels_are_not_split(bench: Run) -> None:
    peers = ("--peer", "cython", "--peer", "scipy", "--peer", "numpy", "--peer", "onnxruntime")
    found = bench("reduce", "--detector", "128k", "--rounds", 1, *peers)
    lines = {line["peer"]: line for line in found if "peer" in line}
    assert {"pyFAI csc no cython", "pyFAI csr bbox cython", "scipy csr product", "numpy bincount"} <= set(lines)
    for algorithm in ("csc", "csr", "lut", "histogram"):
        line = lines[f"pyFAI {algorithm} no cython"]
        assert line["rel_diff_I"] < 1e-6
        assert line["rel_diff_sigma"] < 1e-5
        assert line["ratio_min"] <= line["ratio"] <= line["ratio_max"]
    assert lines["pyFAI csc bbox cython"]["rel_diff_I"] > 1e-3
    assert lines["onnxruntime graph"]["rel_diff_I"] < 1e-6
    assert lines["onnxruntime graph"]["rel_diff_sigma"] < 1e-5
    assert "rel_diff_I" not in lines["numpy img.sum"]


def test_decode_finds_the_pixels_that_others_find(bench: Run) -> None:
    lines = [line for line in bench("decode", "--detector", "128k", "--rounds", 1) if "peer" in line]
    assert any(line["peer"] == "hdf5plugin" for line in lines)
    assert any("envelope" in line["case"] for line in lines)
    assert all(line["equal"] for line in lines)


def test_the_chain_loses_nothing_and_says_what_the_plain_loop_says(bench: Run) -> None:
    lines = [line for line in bench("chain", "--detector", "128k", "--rounds", 1, "--seconds", 1.5) if "peer" in line]
    assert [line["case"].split(",")[0] for line in lines] == ["128k memory", "128k socket"]
    for line in lines:
        assert line["fps"] > 0
        assert line["peer_fps"] > 0
        assert line["rel_diff_I"] < 1e-6
        assert line["rel_diff_sigma"] < 1e-5
        assert line["diff_anomaly"] < 1e-3


def test_latency_is_given_in_percentiles(bench: Run) -> None:
    (line,) = [line for line in bench("latency", "--detector", "128k", "--seconds", 2) if line["bench"] == "latency"]
    assert 0 < line["p50_ms"] <= line["p99_ms"] <= line["max_ms"]
    assert "socket" in line["case"]


def test_the_resident_set_is_read_at_a_tenth_and_at_the_end(bench: Run) -> None:
    (line,) = [line for line in bench("memory", "--frames", 500) if line["bench"] == "memory"]
    assert line["early_frames"] == 50
    assert {"50", "500"} <= set(line["resident_MB"])
    assert line["growth_MB"] == pytest.approx(line["late_MB"] - line["early_MB"], abs=0.2)


def test_models_are_measured_by_batch(bench: Run) -> None:
    lines = [line for line in bench("models", "--rounds", 1) if "peer" in line]
    assert {line["case"].split()[2].rstrip(",") for line in lines} == {"1", "2", "4", "8", "16", "32", "64"}


def test_without_a_cuda_device_one_line_says_so(bench: Run, python: str) -> None:
    try:
        choose_device("cuda")
    except (BadConfig, BadModel):
        command = [python, BENCH, "models", "--device", "cuda", "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        machine, note = map(json.loads, ended.stdout.splitlines())
        assert machine["bench"] == "machine"
        assert "no CUDA device" in note["note"]
    else:
        assert any("cuda" in line["case"] for line in bench("models", "--device", "cuda", "--rounds", 1))


def test_the_bench_of_raw_frames_is_right_wherever_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("STREAMER_CACHE", str(tmp_path))
    on_device, saxs = graph.OnDevice, graph.Saxs
    monkeypatch.setattr(graph, "OnDevice", lambda detector, _, batch: on_device(detector, "cpu", batch))
    monkeypatch.setattr(graph, "Saxs", lambda **options: saxs(**(options | {"device": "cpu"})))
    monkeypatch.setattr(graph, "BATCHES", (1, 4))
    with structlog.testing.capture_logs():
        graph.bench(Report(as_json=True), ["128k"], rounds=1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reduced = [line for line in lines if line["bench"] == "reduce"]
    assert [line["case"].split("cuda ")[-1] for line in reduced] == [
        "alone, batch 1",
        "copied and judged, batch 1",
        "alone, batch 4",
        "copied and judged, batch 4",
    ]
    assert all(line["rel_diff_I"] < 1e-6 and line["fps"] > 0 for line in reduced)


def test_both_contestants_get_every_image_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    duel = measure.duel(lambda i: calls.append(("ours", i)), lambda i: calls.append(("peer", i)), images=3, rounds=2)
    warm_up, timed = calls[:2], calls[2:]
    assert warm_up == [("ours", 0), ("peer", 0)]
    assert timed == 2 * [(who, i) for i in range(3) for who in ("ours", "peer")]
    assert duel.ours_ms.shape == duel.peer_ms.shape == (2,)


def test_a_ratio_says_how_many_times_faster_ours_is() -> None:
    ours, peer = np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 80.0])
    figures = measure.Duel(ours, peer, ours, peer / 2).figures
    assert figures.items() >= {"ours_ms": 2.0, "peer_ms": 20.0, "ratio": 10.0, "ratio_min": 10.0}.items()
    assert figures["ratio_max"] == 20
    assert figures["cpu_ratio"] == 5


def test_bins_without_a_value_are_not_compared() -> None:
    ours, theirs = np.array([1.0, np.nan, 0.0, 2.0]), np.array([1.0, 5.0, 3.0, 2.002])
    assert measure.rel_diff(ours, theirs) == pytest.approx(0.002 / 2.002)
