"""Draw what the figures say: g(r) with its bands against the truth, and errors against q_max and noise.

    python -m models.rdf.plots [--out FOLDER] [--x 10]

Needs matplotlib. The composition that is drawn was left out of everything that is drawn of it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from models.rdf.baselines import sine
from models.rdf.evaluate import SEED
from models.rdf.network import Bank
from models.rdf.operators import Q_MAXIMA, R_OUT, on_output
from models.rdf.protocol import FAMILY_CURVES, SIGMA_S, Boxes, ask, classes, noisy, operators, rw
from models.rdf.simulate import COMPOSITIONS, Curves
from models.rdf.train import FOLDER, FOLDS, read_fold

NOISES = (0.003, 0.01, 0.03)


def draw(out: Path, x: int) -> None:
    """Two pictures in the folder: `rdf-curves.png` and `rdf-errors.png`."""
    boxes, others = Boxes.read(), classes(SEED)
    rest = [one for one in COMPOSITIONS if one != x]
    _, wt, found = read_fold(FOLDER / FOLDS, x)
    made = operators(boxes.family(rest, FAMILY_CURVES, seed=SEED), others)
    bank = Bank(made, wt, inflation=found.inflation, limits=found.limits).eval()
    out.mkdir(parents=True, exist_ok=True)
    _curves(boxes, bank, x, out / "rdf-curves.png")
    _errors(boxes, bank, x, out / "rdf-errors.png")


def _curves(boxes: Boxes, bank: Bank, x: int, path: Path) -> None:
    test = noisy(boxes.truths(x)[slice(0, 2)], 1, np.random.default_rng(SEED))
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for row, radiation in enumerate(("X-rays", "neutrons")):
        for column, q_max in enumerate((16.0, 25.0)):
            _band(axes[row, column], ask(bank, test, q_max), test, row, q_max)
            axes[row, column].set_title(f"Ag{x}(Ge0.25Se0.75){100 - x}, {radiation}, q_max {q_max:g} Å⁻¹", fontsize=10)
    axes[0, 0].legend(fontsize=8)
    for one in axes[1]:
        one.set_xlabel("r / Å")
    for one in axes[:, 0]:
        one.set_ylabel("g(r)")
    figure.savefig(path, dpi=110)


def _band(axes: Axes, said: dict[str, np.ndarray], test: Curves, row: int, q_max: float) -> None:
    per = 1 / (4 * np.pi * test.density[row] * R_OUT)
    truth = 1 + on_output(test.G[row : row + 1])[0] * per
    transform = 1 + sine(test.F[row : row + 1], q_max)[0] * per
    sigma = said["sigma"][row] * per
    shown = (R_OUT > 1.5) & (R_OUT < 7)
    r = R_OUT[shown]
    axes.plot(r, transform[shown], color="0.7", lw=1, label="sine transform")
    axes.fill_between(
        r, (said["g"][row] - 2 * sigma)[shown], (said["g"][row] + 2 * sigma)[shown], color="C0", alpha=0.3
    )
    axes.plot(r, said["g"][row][shown], color="C0", lw=1.2, label="model ± 2σ")
    axes.plot(r, truth[shown], "k--", lw=0.9, label="truth (box left out)")


def _errors(boxes: Boxes, bank: Bank, x: int, path: Path) -> None:
    rng = np.random.default_rng(SEED)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for noise in NOISES:
        ours, theirs = [], []
        for q_max in Q_MAXIMA:
            test = noisy(boxes.truths(x), 4, rng, noise)
            truth = on_output(test.G)
            ours.append(np.median(rw(ask(bank, test, q_max, noise)["G"], truth)))
            theirs.append(np.median(rw(sine(test.F, q_max), truth)))
        [line] = axes[0].plot(Q_MAXIMA, ours, "o-", label=f"model, σ_S = {noise:g}")
        axes[0].plot(Q_MAXIMA, theirs, "s--", color=line.get_color(), alpha=0.5)
    axes[0].set(xlabel="q_max / Å⁻¹", ylabel="Rw, 1.5–7 Å (dashed: sine transform)", ylim=(0, None))
    axes[0].legend(fontsize=8)
    test = noisy(boxes.truths(x), 20, rng)
    said, truth = ask(bank, test, 16.0), on_output(test.G)
    levels = np.linspace(0.1, 3, 30)
    pull = np.abs(said["G"] - truth)[:, (R_OUT > 1.5) & (R_OUT < 7)] / said["sigma"][:, (R_OUT > 1.5) & (R_OUT < 7)]
    axes[1].plot(levels, [(pull < k).mean() for k in levels], label="G(r), q_max 16 Å⁻¹")
    axes[1].plot(levels, [_normal(k) for k in levels], "k--", lw=0.8, label="normal distribution")
    axes[1].set(xlabel="k", ylabel="part of the points within kσ")
    axes[1].legend(fontsize=8)
    figure.suptitle(f"x = {x}, left out; σ_S = {SIGMA_S:g} where nothing else is said", fontsize=10)
    figure.savefig(path, dpi=110)


def _normal(k: float) -> float:
    return math.erf(k / math.sqrt(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "plots")
    parser.add_argument("--x", type=int, default=10, choices=COMPOSITIONS)
    arguments = parser.parse_args()
    draw(arguments.out, arguments.x)


if __name__ == "__main__":
    main()
