"""Reproduce the figures of the card, with the exported models, on curves never seen in training.

    python -m models.saxs.evaluate [--quick] [--json] [--write] [--plots FOLDER] [--real FOLDER]

Seeds of test curves lie above two million, see `pool`. A figure that only the full run measures is null in the quick
one. Curves of one instrument share its bins and errors: intervals count them as independent and are a little narrow.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from models import training
from models.saxs import baseline, distance, export, faults, oracle, pool, real, sequence, train
from models.saxs.defects import CLASSES
from models.saxs.instruments import Instrument
from models.saxs.network import CLASS_COUNT, KNOWN, Exported, add, surprise
from models.saxs.samples import Spheroids
from models.saxs.simulate import Curves, Mix, join, simulate
from streamer.infer import Model, load_model

TEST_SEED = 2_000_003
D_BINS = ((5.0, 10.0), (10.0, 30.0), (30.0, 100.0))
ALL = tuple(range(CLASS_COUNT))

Floats = NDArray[np.floating[Any]]
Figures = dict[str, Any]


def auroc(score: Floats, is_positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores higher than a negative; ties count half."""
    values, inverse = np.unique(score, return_inverse=True)
    positive, negative = (np.bincount(inverse[mask], minlength=len(values)) for mask in (is_positive, ~is_positive))
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / max(positive.sum() * negative.sum(), 1))


def calibration_error(p: Floats, label: NDArray[np.int64], bins: int = 15) -> float:
    """ECE: |confidence − accuracy| of the likeliest class over equal bins of the confidence, weighted with curves."""
    confidence, correct = p.max(-1), p.argmax(-1) == label
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(index, weights=confidence - correct, minlength=bins)).sum() / len(p))


def f1(predicted: NDArray[np.int64], label: NDArray[np.int64], classes: tuple[int, ...]) -> float:
    """Macro F1."""
    scores = []
    for c in classes:
        hit = int(((predicted == c) & (label == c)).sum())
        scores.append(2 * hit / max(int((predicted == c).sum() + (label == c).sum()), 1))
    return float(np.mean(scores))


def interval(hits: int, n: int) -> list[float]:
    """95 % interval of a share (Wilson)."""
    z, p = 1.96, hits / max(n, 1)
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n),
    )
    return [round(max(centre - half, 0.0), 5), round(min(centre + half, 1.0), 5)]


def poisson_interval(found: int, per: float) -> list[float]:
    """95 % interval of a rate of rare events (Garwood), times `per`."""
    from scipy.stats import chi2

    low = chi2.ppf(0.025, 2 * found) / 2 if found else 0.0
    return [round(float(low) * per, 4), round(float(chi2.ppf(0.975, 2 * found + 2)) / 2 * per, 4)]


def asked(model: Model, inputs: Tensor) -> dict[str, Floats]:
    return model.run({"curve": inputs.numpy()})


def fast_model() -> Model:
    return load_model(export.FOLDERS["fast"], device="cpu")


# What is measured, each part by itself, so that two processes can share the work.


def decisive_curves(seed: int, instruments: int, classes: tuple[int, ...] = ALL) -> tuple[Curves, Tensor]:
    """Curves with D_min log-uniform in 5–100, and normal ones."""
    g = Generator().manual_seed(seed)
    spheroids = Spheroids(g)
    parts = [
        distance.decisive(192, spheroids, g, Instrument.draw(g), (5.0, 100.0), classes) for _ in range(instruments)
    ]
    return join([curves for curves, _ in parts]), torch.cat([D for _, D in parts])


def classification(seed: int, instruments: int) -> Figures:
    """Seven classes where they can be told apart, novelty of classes left out, and the baseline on the same curves."""
    curves, D_min = decisive_curves(seed, instruments)
    said = asked(fast_model(), curves.inputs)
    novelty = {name: left_out_scores(int(name[-1]), curves.inputs) for name in left_out()}
    return {
        "label": curves.label.numpy(),
        "D_min": D_min.numpy(),
        "p": said["classes"],
        "unknown": said["surprise_known"],
        **novelty,
    }


def left_out() -> list[str]:
    return [f"without_{k}" for k in range(1, CLASS_COUNT) if (export.HEADS / f"without_{k}.pt").exists()]


@torch.no_grad()
def left_out_scores(label: int, inputs: Tensor) -> Floats:
    """How unknown curves are to the network that never saw a class: −log10 p, with what lies beyond the table."""
    head = export.read_head(f"without_{label}")
    rows = []
    for part in inputs.split(256):
        scores = head.parts(part)[2]
        rows.append(add(beyond(scores[:, KNOWN], head.known[:3])))
    return torch.cat(rows).numpy()


def beyond(score: Tensor, table: Tensor) -> Tensor:
    """`surprise`, going on with the slope of its last third where the table ends, so that ranks are kept."""
    x, y = table[:, 0], table[:, 1]
    k = x.shape[1] * 2 // 3
    slope = (y[:, -2] - y[:, k]) / (x[:, -2] - x[:, k]).clamp(min=1e-6)
    return surprise(score, table) + (score - x[:, -1]).clamp(min=0) * slope


def mixture(seed: int, instruments: int, *, unseen: bool = False) -> Figures:
    """The mix that is trained on, without faults: calibration."""
    g = Generator().manual_seed(seed)
    spheroids, mix = Spheroids(g), Mix(faulty=0.0)
    draw = Instrument.unseen if unseen else Instrument.draw
    curves = join([simulate(256, spheroids, g, mix, instrument=draw(g)) for _ in range(instruments)])
    said = asked(fast_model(), curves.inputs)
    return {
        "label": curves.label.numpy(),
        "p": said["classes"],
        "has": curves.has_reference.numpy(),
        "D": curves.D.numpy(),
    }


def normal_frames(seed: int, instruments: int) -> Figures:
    """Frames in order, with their reference."""
    g = Generator().manual_seed(seed)
    spheroids, model = Spheroids(g), fast_model()
    rows = [asked(model, simulate(256, spheroids, g, Mix.normal()).inputs) for _ in range(instruments)]
    return {name: np.concatenate([row[name] for row in rows]) for name in ("surprise", "bands", "anomaly")}


def faulty_frames(seed: int, instruments: int) -> Figures:
    """Frames with one fault each and D in 5–100, and frames in order, on the same instruments."""
    g = Generator().manual_seed(seed)
    spheroids, model = Spheroids(g), fast_model()
    only_faults = Mix((1.0,) + (0.0,) * 6, faulty=1.0, with_reference=1.0, D=(5.0, 100.0))
    parts = []
    for _ in range(instruments):
        instrument = Instrument.draw(g)
        parts.append(simulate(192, spheroids, g, only_faults, instrument=instrument))
        parts.append(simulate(64, spheroids, g, Mix.normal(), instrument=instrument))
    curves = join(parts)
    said = asked(model, curves.inputs)
    any_fault = 1 - np.prod(1 - said["faults"], axis=-1)
    fault = np.where(curves.faults.sum(-1) > 0, curves.faults.argmax(-1), -1)
    return {
        "fault": fault,
        "D": curves.D_fault.numpy(),
        "any": any_fault,
        "own": said["faults"],
        "surprise": said["surprise"],
    }


def mission(seed: int, instruments: int) -> Figures:
    """The three classes of the mission, the faithful network that was trained on them alone: on curves drawn like those
    it was trained on, and on such that are 5 or more away from any other class."""
    curves = pool.make(seed, train.MISSION_MIX, instruments=instruments)
    decisive, _ = decisive_curves(seed, max(instruments // 2, 1), train.MISSION)
    head = export.read_head("mission")
    return {
        "label": curves.label.numpy(),
        "p": _classes(head, curves.inputs),
        "D": curves.D.numpy(),
        "decisive_label": decisive.label.numpy(),
        "decisive_p": _classes(head, decisive.inputs),
    }


@torch.no_grad()
def _classes(head: Exported, inputs: Tensor) -> Floats:
    logits = [head.parts(x)[0][..., :CLASS_COUNT] for x in inputs.split(256)]
    found: Floats = torch.cat([torch.softmax(part, -1).mean(0) for part in logits], 0).numpy()
    return found


def latency_ms(model: Model, x: Tensor, repeats: int = 300) -> dict[str, float]:
    """Quantiles of one call on one CPU thread for one frame."""
    batch = {"curve": x[:1].numpy()}
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.run(batch)
        times.append(1e3 * (time.perf_counter() - began))
    return {name: round(float(np.quantile(times, q)), 3) for name, q in (("p05", 0.05), ("p50", 0.5), ("p99", 0.99))}


# From measurements to figures.


def _merged(parts: list[Figures]) -> Figures:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def on_classes(found: Figures) -> Figures:
    label, p, D = found["label"], found["p"], found["D_min"]
    correct = p.argmax(-1) == label
    figures: Figures = {
        "accuracy_7_D5": float(correct.mean()),
        "accuracy_7_D5_interval": interval(int(correct.sum()), len(label)),
        "n_accuracy_7_D5": len(label),
        "accuracy_7_by_D": {f"{a:g}-{b:g}": float(correct[(a <= D) & (b > D)].mean()) for a, b in D_BINS},
        "recall_7": {name: float(correct[label == k].mean()) for k, name in enumerate(CLASSES)},
        "n_7": {name: int((label == k).sum()) for k, name in enumerate(CLASSES)},
        "confusion_7": [[int(((p.argmax(-1) == j) & (label == k)).sum()) for j in ALL] for k in ALL],
    }
    novelty, near, bound = {}, {}, {}
    for name in left_out():
        k = int(name[-1])
        is_new = label == k
        novelty[CLASSES[k]] = auroc(found[name], is_new)
        close = ~is_new | (D < 8)
        near[CLASSES[k]] = auroc(found[name][close], is_new[close])
        bound[CLASSES[k]] = omnibus(D[is_new & (D < 8)])
    if novelty:
        figures |= {
            "novelty_auroc": novelty,
            "novelty_auroc_mean": float(np.mean(list(novelty.values()))),
            "novelty_auroc_min": float(min(novelty.values())),
            "novelty_auroc_D_5_8": near,
            "novelty_omnibus_bound_D_5_8": bound,
            "n_novelty_auroc": len(label),
        }
    return figures


def omnibus(D: Floats, points: int = 90) -> float:
    """AUROC of χ² over all points for curves at these distances: what a test can do that knows no alternative."""
    g = np.random.default_rng(0)
    null = g.chisquare(points, 20_000)
    shifted = g.noncentral_chisquare(points, np.resize(D, 20_000) ** 2) if len(D) else null
    return auroc(np.concatenate((null, shifted)), np.repeat([False, True], 20_000))


def on_mixture(found: Figures, name: str) -> Figures:
    return {
        name: calibration_error(found["p"], found["label"]),
        f"n_{name}": len(found["label"]),
        f"accuracy_{name.replace('ece', 'mix')}": float((found["p"].argmax(-1) == found["label"]).mean()),
        f"accuracy_without_reference_{name.replace('ece', 'mix')}": float(
            (found["p"].argmax(-1) == found["label"])[~found["has"]].mean()
        ),
    }


def on_normal(found: Figures) -> Figures:
    n = len(found["surprise"])
    alarms = int(sequence.is_alarm(found["surprise"], found["bands"][:, -1]).sum())
    return {
        "alpha": sequence.ALPHA,
        "false_alarms": alarms,
        "false_alarms_per_1e6": 1e6 * alarms / n,
        "false_alarms_per_1e6_interval": poisson_interval(alarms, 1e6 / n),
        "n_false_alarms_per_1e6": n,
    } | sequence.false_alarms(found["surprise"], found["bands"], seed=TEST_SEED)


def on_faults(found: Figures) -> Figures:
    in_order = found["fault"] < 0
    by_any, by_own, by_novelty = {}, {}, {}
    for k, name in enumerate(faults.NAMES):
        rows = in_order | ((found["fault"] == k) & (found["D"] >= 5))
        is_fault = ~in_order[rows]
        by_any[name] = auroc(found["any"][rows], is_fault)
        by_own[name] = auroc(found["own"][rows, k], is_fault)
        by_novelty[name] = auroc(found["surprise"][rows], is_fault)
    return {
        "fault_auroc": by_any,
        "fault_auroc_own": by_own,
        "fault_auroc_novelty": by_novelty,
        "fault_auroc_mean": float(np.mean(list(by_any.values()))),
        "n_fault_auroc_mean": len(found["fault"]),
    }


def on_mission(found: Figures) -> Figures:
    predicted, label, D = found["p"].argmax(-1), found["label"], found["D"]
    return {
        "accuracy_3": float((predicted == label).mean()),
        "accuracy_3_interval": interval(int((predicted == label).sum()), len(label)),
        "f1_3": f1(predicted, label, train.MISSION),
        "accuracy_3_by_D": {
            f"{a:g}-{b:g}": float((predicted == label)[(a <= D) & (b > D)].mean()) for a, b in (*D_BINS, (100.0, 1e3))
        },
        "precision_3": {CLASSES[c]: float((label == c)[predicted == c].mean()) for c in train.MISSION},
        "recall_3": {CLASSES[c]: float((predicted == c)[label == c].mean()) for c in train.MISSION},
        "auroc_3": {CLASSES[c]: auroc(found["p"][:, c], label == c) for c in train.MISSION},
        "n_accuracy_3": len(label),
        "accuracy_3_D5": float((found["decisive_p"].argmax(-1) == found["decisive_label"]).mean()),
        "f1_3_D5": f1(found["decisive_p"].argmax(-1), found["decisive_label"], train.MISSION),
        "n_accuracy_3_D5": len(found["decisive_label"]),
        "n_f1_3": len(label),
    }


Job = tuple[Callable[..., Figures], tuple[Any, ...], dict[str, Any]]


def _run(job: Job) -> Figures:
    _keep_to_figures()
    work, positional, named = job
    return work(*positional, **named)


def _keep_to_figures() -> None:
    """One thread a process, and nothing on standard output but the figures."""
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def evaluate(*, quick: bool, workers: int | None = None) -> tuple[Figures, Figures]:
    """All figures, and what they were computed from (for plots)."""
    # Instruments per piece and pieces; a piece is one seed.
    plan: dict[str, list[Job]] = {
        "classes": [(classification, (TEST_SEED + k, 10), {}) for k in range(4 if quick else 20)],
        "mixture": [(mixture, (TEST_SEED + 1000 + k, 20), {}) for k in range(4 if quick else 20)],
        "unseen": [(mixture, (TEST_SEED + 2000 + k, 20), {"unseen": True}) for k in range(1 if quick else 4)],
        "normal": [(normal_frames, (TEST_SEED + 3000 + k, 49), {}) for k in range(8 if quick else 80)],
        "faults": [(faulty_frames, (TEST_SEED + 4000 + k, 16), {}) for k in range(1 if quick else 4)],
    }
    if not quick:
        plan["oracle"] = [(oracle.judged, (TEST_SEED + 8000 + k, 12), {}) for k in range(42)]
    if (export.HEADS / "mission.pt").exists():
        plan["mission"] = [(mission, (TEST_SEED + 5000 + k, 16), {}) for k in range(1 if quick else 12)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or min(os.cpu_count() or 1, 8), mp_context=context) as processes:
        running = {name: [processes.submit(_run, job) for job in jobs] for name, jobs in plan.items()}
        measured = {name: _merged([one.result() for one in parts]) for name, parts in running.items()}
    figures: Figures = {"seed": TEST_SEED, "quick": quick, "bayes_gap": None, "n_bayes_gap": None}
    figures |= on_classes(measured["classes"]) | on_mixture(measured["mixture"], "ece")
    figures |= on_mixture(measured["unseen"], "ece_unseen_instrument") | on_normal(measured["normal"])
    figures |= on_faults(measured["faults"]) | sequence.delays(seed=TEST_SEED)
    if "mission" in measured:
        figures |= on_mission(measured["mission"])
    example = pool.make(TEST_SEED, instruments=2).inputs
    for name, folder in export.FOLDERS.items():
        if (folder / "model.onnx").exists():
            spent = latency_ms(load_model(folder, device="cpu"), example)
            figures |= {
                f"graph_ms_{name}": spent["p50"],
                f"graph_ms_{name}_quantiles": spent,
                f"n_graph_ms_{name}": 300,
            }
    if not quick:
        figures |= baseline.figures(decisive_curves(TEST_SEED + 9000, 12)[0])
        figures |= oracle.figures(measured["oracle"], fast_model(), TEST_SEED)
    return figures, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most two minutes on two cores")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--write", action="store_true", help="write the figures into card.toml")
    parser.add_argument("--plots", type=Path, help="folder for reliability, ROC, confusion and delay")
    parser.add_argument("--real", type=Path, help="folder with saxs/raw_gi_series and so on")
    arguments = parser.parse_args()
    _keep_to_figures()
    figures, measured = evaluate(quick=arguments.quick)
    if arguments.real:
        figures["real"] = real.figures(arguments.real)
    if arguments.plots:
        from models.saxs import plots

        plots.write(arguments.plots, figures, measured)
    if arguments.write:
        path = export.FOLDERS["fast"] / "card.toml"
        training.write_card(path, training.read_card(path) | {"metrics": _without_nothing(figures)})
    print(json.dumps(figures) if arguments.json else "\n".join(_lines(figures)))


def _without_nothing(figures: Figures) -> Figures:
    """TOML has no null; lists of lists stay out of the card."""
    kept = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            kept[name] = _without_nothing(value)
        elif isinstance(value, float):
            kept[name] = float(f"{value:.5g}")
        elif value is not None and not (isinstance(value, list) and value and isinstance(value[0], list)):
            kept[name] = value
    return kept


def _lines(figures: Figures) -> Iterator[str]:
    for name, value in figures.items():
        yield f"{name:38} {value:.5g}" if isinstance(value, float) else f"{name:38} {value}"


if __name__ == "__main__":
    main()
