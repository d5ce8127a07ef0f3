"""Reproduce the figures of the card, with the exported model, on curves never seen in training.

    python -m models.saxs.evaluate [--quick] [--json] [--write] [--real FOLDER]

The figures are those of the exported file, asked as `streamer` asks it. "Alarm" is the rule of the README's beamline
file on a single frame: anomaly − 2·sigma > 0.9. That rule wants five such frames in a row: fewer false alarms yet.
`--real` checks real frames, which took no part in training: a folder with `saxs/raw_gi_series` and so on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Generator

from models import training
from models.saxs.simulate import GRID, NAMES, Curves, Spheroids
from models.saxs.train import BATCH, FOLDER, batches
from streamer.infer import Model, load_model
from streamer.reduce.curves import channels, rebin

TEST_SEED = 2_000_003
ABOVE, SIGMAS = 0.9, 2.0
"""The rule of the README's beamline file: anomaly − SIGMAS·sigma > ABOVE."""
D_BINS = (5.0, 10.0, 30.0, 100.0, 300.0, float("inf"))
REAL_SERIES = ("raw_gi_series", "raw_gi_buffer_series", "udem_lysozyme")

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Answers:
    """(n,) each: what was asked about, and what the model said."""

    label: NDArray[np.int64]
    fault: NDArray[np.int64]
    detectability: Floats
    anomaly: Floats
    sigma: Floats

    @property
    def is_alarm(self) -> NDArray[np.bool_]:
        return self.anomaly - SIGMAS * self.sigma > ABOVE


def answers(model: Model, spheroids: Spheroids, n: int, g: Generator, *, normal: float, what: str) -> Answers:
    """Ask the model about n simulated curves, a share `normal` of which has no fault."""
    rows: list[tuple[Floats, ...]] = []
    with training.progress(what, n) as advance:
        for batch in batches(spheroids, g, n // BATCH, normal=normal):
            rows.append(_asked(model, batch))
            advance(BATCH)
    return Answers(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _asked(model: Model, batch: Curves) -> tuple[Floats, ...]:
    said = model.run({"curve": batch.inputs.numpy()})
    known = (batch.label.numpy(), batch.fault.numpy(), batch.detectability.numpy())
    return (*known, said["anomaly"], said["sigma"])


def auroc(score: Floats, is_anomalous: NDArray[np.bool_]) -> float:
    """Probability that an anomalous curve scores higher than a normal one."""
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    n = int(is_anomalous.sum())
    return float((rank[is_anomalous].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def calibration_error(p: Floats, is_anomalous: NDArray[np.bool_], bins: int = 15) -> float:
    """ECE: mean |probability − frequency| over equal bins of the probability, weighted with their curves."""
    index = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=p - is_anomalous, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def upper_limit(found: int, n: int) -> float:
    """95 % upper limit of a rate, given `found` of n independent ones (Clopper and Pearson, one-sided)."""
    return float(beta.ppf(0.95, found + 1, n - found))


def on_mixed(said: Answers) -> dict[str, Any]:
    """Figures on curves half of which were drawn with a fault."""
    has_label, is_anomalous = said.label >= 0, said.label == 1
    p, y = said.anomaly[has_label], is_anomalous[has_label]
    D = said.detectability
    bins = {f"{a:g}-{b:g}": (a <= D) & (b > D) for a, b in itertools.pairwise(D_BINS)}
    return {
        "n_mixed": len(p),
        "auroc": auroc(p, y),
        "accuracy": float(((p > 0.5) == y).mean()),
        "ece": calibration_error(p, y),
        "recall_by_D": {name: float((said.anomaly[rows] > 0.5).mean()) for name, rows in bins.items()},
        "alarm_by_D": {name: float(said.is_alarm[rows].mean()) for name, rows in bins.items()},
        "n_by_D": {name: int(rows.sum()) for name, rows in bins.items()},
        "alarm_by_fault_above_D_30": {
            name: float(said.is_alarm[(said.fault == k) & (D >= 30)].mean()) for k, name in enumerate(NAMES) if k
        },
    }


def on_normal(said: Answers) -> dict[str, Any]:
    """Figures on curves without any fault."""
    n, alarms = len(said.anomaly), int(said.is_alarm.sum())
    return {
        "n_normal": n,
        "false_alarms_single_frame": alarms,
        "false_alarm_rate_upper_limit_95": upper_limit(alarms, n),
        "normal_anomaly_median": float(np.median(said.anomaly)),
        "normal_anomaly_99_percent": float(np.quantile(said.anomaly, 0.99)),
    }


def latency_ms(model: Model, curves: NDArray[np.float32], repeats: int = 200) -> dict[str, float]:
    """Median time of one call on one CPU thread, for one frame and for a full batch."""
    result = {}
    for size in (1, model.max_batch):
        batch = {"curve": np.ascontiguousarray(curves[:size])}
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            model.run(batch)
            times.append(time.perf_counter() - began)
        result[f"batch_{size}"] = round(1e3 * float(np.median(times)), 3)
    return result


def read_curve(path: Path) -> tuple[Floats, Floats, Floats]:
    """q in nm⁻¹, I, σ of a text file in Å⁻¹: the lines that hold three numbers and nothing else."""
    rows = np.array(list(_triples(path)))
    return 10 * rows[:, 0], rows[:, 1], rows[:, 2]


def _triples(path: Path) -> Iterator[list[float]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            continue
        if len(numbers) == 3:
            yield numbers


def on_real(model: Model, folder: Path) -> dict[str, dict[str, Any]]:
    """What the model says of every frame of the real series."""
    found: dict[str, dict[str, Any]] = {}
    for series in REAL_SERIES:
        files = sorted((folder / "saxs" / series).glob("*.dat"))
        for stem in sorted({path.stem.rpartition("_")[0] for path in files}):
            frames = [path for path in files if path.stem.rpartition("_")[0] == stem]
            inputs = np.stack([channels(*rebin(*read_curve(path), GRID)) for path in frames])
            said = model.run({"curve": inputs})
            found[stem] = {
                "file": f"{series}/{frames[0].name} and {len(frames) - 1} more",
                "anomaly": [round(float(p), 4) for p in said["anomaly"]],
                "sigma": [round(float(s), 4) for s in said["sigma"]],
                "alarms": int((said["anomaly"] - SIGMAS * said["sigma"] > ABOVE).sum()),
            }
    return found


def evaluate(folder: Path, *, quick: bool, real: Path | None = None) -> dict[str, Any]:
    """All figures. quick: fewer curves of the same seeds, for tests."""
    torch.set_num_threads(1)
    model = load_model(folder, device="cpu")
    g = Generator().manual_seed(TEST_SEED)
    spheroids = Spheroids(g)
    example = next(batches(spheroids, g, 1)).inputs.numpy()
    mixed = answers(model, spheroids, 8_192 if quick else 65_536, g, normal=0.5, what="half with a fault")
    normal = answers(model, spheroids, 16_384 if quick else 100_352, g, normal=1.0, what="normal")
    figures: dict[str, Any] = {"seed": TEST_SEED, "rule": f"anomaly - {SIGMAS:g} sigma > {ABOVE:g}"}
    figures |= on_mixed(mixed) | on_normal(normal)
    figures["latency_ms_one_thread"] = latency_ms(model, example)
    if real is not None:
        figures["real"] = on_real(model, real)
    return rounded(figures)


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Four significant digits: more are noise."""
    return {
        key: rounded(value) if isinstance(value, Mapping) else float(f"{value:.4g}") if type(value) is float else value
        for key, value in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer curves")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", action="store_true", help="write the figures into the card")
    parser.add_argument("--real", type=Path, help="folder of real data")
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of card.toml and model.onnx")
    arguments = parser.parse_args()
    figures = evaluate(arguments.model, quick=arguments.quick, real=arguments.real)
    if arguments.write:
        card = training.read_card(arguments.model / "card.toml")
        training.write_card(arguments.model / "card.toml", card | {"metrics": figures})
    print(json.dumps(figures) if arguments.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
