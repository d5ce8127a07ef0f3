"""Four pictures of the figures: reliability, ROC, confusion by D, detection delay. Needs matplotlib (extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from models.saxs.defects import CLASSES
from streamer.sequential import SHIFTS, run_length, threshold

Measured = dict[str, dict[str, Any]]
D_BINS = ((5.0, 10.0), (10.0, 30.0), (30.0, 100.0))


def write(folder: Path, figures: dict[str, Any], measured: Measured) -> None:
    """reliability.png, roc.png, confusion.png and delay.png into a folder, which is made if need be."""
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for name, draw in (("reliability", _reliability), ("roc", _roc), ("confusion", _confusion), ("delay", _delay)):
            figure = plt.figure(figsize=(7.2, 3.2) if name == "confusion" else (3.6, 3.2), layout="constrained")
            draw(figure, figures, measured)
            figure.savefig(folder / f"{name}.png", dpi=160)
            plt.close(figure)


def _reliability(figure: Any, figures: dict[str, Any], measured: Measured) -> None:
    axes: Axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for name, label in (("mixture", "trained instruments"), ("unseen", "an unseen one")):
        p, truth = measured[name]["p"], measured[name]["label"]
        confidence, correct = p.max(-1), p.argmax(-1) == truth
        index = np.minimum((confidence * 15).astype(int), 14)
        n = np.bincount(index, minlength=15)
        kept = n > 20
        x, y = (np.bincount(index, values, 15)[kept] / n[kept] for values in (confidence, correct.astype(float)))
        axes.errorbar(x, y, np.sqrt(y * (1 - y) / n[kept]), fmt="o-", ms=3, lw=1, label=label)
    axes.set(xlabel="probability of the likeliest class", ylabel="how often it is right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, title=f"ECE {figures['ece']:.4f}, {figures['ece_unseen_instrument']:.4f}")


def _roc(figure: Any, figures: dict[str, Any], measured: Measured) -> None:
    axes: Axes = figure.subplots()
    found = measured["classes"]
    for k, name in enumerate(CLASSES):
        score = found.get(f"without_{k}")
        if score is None:
            continue
        is_new = found["label"] == k
        order = np.argsort(-score)
        hits = np.cumsum(is_new[order]) / max(is_new.sum(), 1)
        false = np.cumsum(~is_new[order]) / max((~is_new).sum(), 1)
        axes.plot(np.maximum(false, 1e-4), hits, lw=1, label=f"{name} {figures['novelty_auroc'][name]:.3f}")
    axes.set(xscale="log", xlabel="share of known curves", ylabel="share of the class never seen", ylim=(0, 1.01))
    axes.legend(frameon=False, title="left out, AUROC", fontsize=7)


def _confusion(figure: Any, figures: dict[str, Any], measured: Measured) -> None:
    found = measured["classes"]
    answer = found["p"].argmax(-1)
    panels = figure.subplots(1, len(D_BINS), sharey=True)
    for axes, (low, high) in zip(panels, D_BINS, strict=True):
        rows = ((found["D_min"] >= low) & (found["D_min"] < high)) | (found["label"] == 0)
        table = np.zeros((len(CLASSES), len(CLASSES)))
        np.add.at(table, (found["label"][rows], answer[rows]), 1)
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(share.shape):
            if share[i, j] >= 0.005:
                shade = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=shade)
        axes.set_title(f"$D_{{min}}$ {low:g}–{high:g}", fontsize=9)
        axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=90, fontsize=7)
        axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=7)
    panels[0].set_ylabel("is")
    panels[1].set_xlabel("is called, %")


def _delay(figure: Any, figures: dict[str, Any], measured: Measured) -> None:
    axes: Axes = figure.subplots()
    shifts = np.geomspace(0.4, 4, 25)
    theory = [run_length(shift, threshold(float(shift), figures["delay_arl"]), mean=shift) for shift in shifts]
    axes.plot(shifts, theory, color="0.6", lw=1, label="the CUSUM made for that step")
    axes.plot(SHIFTS, list(figures["delay_frames"].values()), "o", ms=4, label="one bank for all")
    axes.set(xscale="log", yscale="log", xlabel="step / σ", ylabel="mean delay / frames")
    axes.set_title(f"ARL$_0$ = {figures['delay_arl']:.0e}", fontsize=9)
    axes.legend(frameon=False)
