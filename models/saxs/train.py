"""Train the SAXS networks, calibrate them, export them, and write their cards.

    python -m models.saxs.train pool --shards 40            # curves, kept under build/
    python -m models.saxs.train fast --steps 12000          # the default model, models/saxs
    python -m models.saxs.train faithful --steps 12000      # every layer variational, models/saxs_faithful
    python -m models.saxs.train mission                     # the faithful network on three classes, its own curves
    python -m models.saxs.train without --label 3           # one that never saw point defects, for the novelty figures

A run that was stopped goes on from its last checkpoint. The loss is that of a Bayesian network: negative log-likelihood
plus Brier score over the posterior, and the divergence from the prior divided by the number of curves. The class of the
material is learned from curves without a fault of the instrument, faults from all.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from models import training
from models.saxs import pool
from models.saxs.evidence import Evidence
from models.saxs.network import CLASS_COUNT, Network
from models.saxs.pool import Shard
from models.saxs.simulate import STRANGE, Mix
from streamer.reduce.reference import CHANNELS

FOLDER = Path(__file__).parent
LEARNING_RATE = 1e-3
CHECKPOINT_EVERY = 500


def loss(logits: Tensor, batch: Shard) -> Tensor:
    """Negative log-likelihood + Brier score: of the class where no fault was drawn, of every fault, and of being none
    of the classes."""
    material, yes_or_no = logits[:, :CLASS_COUNT], logits[:, CLASS_COUNT:]
    is_strange = batch.label == STRANGE
    clean = (batch.D_fault == 0) & ~is_strange
    p = torch.softmax(material[clean], -1)
    label = batch.label[clean]
    brier = (p - one_hot(label, CLASS_COUNT)).square().sum(-1).mean()
    likelihood = cross_entropy(material[clean], label)
    truth = torch.cat((batch.faults, is_strange[:, None].float()), 1)
    present = binary_cross_entropy_with_logits(yes_or_no, truth)
    return likelihood + brier + present * 3 + (torch.sigmoid(yes_or_no) - truth).square().mean() * 3


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, a plateau, and from half-way half a cosine down to 2 % of the peak."""
    late = max(0.0, 2 * step / steps - 1)
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * late)) / 2)


@dataclass
class Run:
    """A training under way: everything that a checkpoint must hold to go on as if nothing had happened."""

    network: Network
    optimiser: torch.optim.Optimizer
    generator: Generator
    step: int = 0
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        training.write_checkpoint(
            path,
            network=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            generator=self.generator.get_state(),
            torch=torch.get_rng_state(),
            step=self.step,
            seconds=self.seconds,
        )

    def read(self, path: Path) -> None:
        saved = training.read_checkpoint(path)
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch"])
        self.step, self.seconds = saved["step"], saved["seconds"]


def train(
    network: Network,
    curves: Iterator[Shard],
    g: Generator,
    steps: int,
    checkpoint: Path,
    *,
    peak: float = LEARNING_RATE,
    stop_after: int | None = None,
) -> float:
    """Train in place, going on from the checkpoint if there is one. Returns the seconds it took.

    stop_after: end early, after so many steps of the plan for `steps`.
    """
    run = Run(network.train(), torch.optim.Adam(network.parameters(), lr=peak), g)
    if checkpoint.exists():
        run.read(checkpoint)
    last = stop_after or steps
    begun, seen = time.monotonic() - run.seconds, 0.0
    with training.progress(checkpoint.stem, steps) as advance:
        advance(run.step)
        while run.step < last:
            batch = next(curves)
            for group in run.optimiser.param_groups:
                group["lr"] = learning_rate(run.step, steps, peak)
            value = loss(network(batch.seen.float(), batch.features.float()), batch)
            run.optimiser.zero_grad()
            (value + network.divergence() / (steps * len(batch))).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            run.optimiser.step()
            seen = value.item() if run.step == 0 else 0.99 * seen + 0.01 * value.item()
            run.step, run.seconds = run.step + 1, time.monotonic() - begun
            advance(1, f"loss {seen:.3f}")
            if run.step % CHECKPOINT_EVERY == 0 or run.step == last:
                run.write(checkpoint)
                print(f"{checkpoint.stem} step {run.step} of {steps}: loss {seen:.4f}, {run.seconds:.0f} s", flush=True)
    return run.seconds


MISSION = (1, 2, 3)
"""Vacancy, edge dislocation, point defect: the three classes of the task this project began with."""
MISSION_MIX = Mix.material(*MISSION, D=(5.0, 1000.0))
MISSION_SEED = 500_001
TRAINING_MIX = Mix(strange=0.125)


def without(path: Path, label: int, asked: Evidence) -> Shard:
    """A shard as somebody sees it who never heard of a class."""
    shard = pool.read(path)
    shard = shard[torch.nonzero(shard.label != label)[:, 0]]
    with torch.no_grad():
        said = [asked(part.float()) for part in shard.seen[:, : len(CHANNELS)].split(256)]
    features, left, scores = (torch.cat(column) for column in zip(*said, strict=True))
    seen = torch.cat((shard.seen[:, : len(CHANNELS)], left.half()), 1)
    return replace(shard, seen=seen, features=features.half(), scores=scores)


def fill_without(build: Path, label: int, count: int) -> Path:
    """The first shards of the pool without a class, in a folder of their own."""
    folder, asked = build / f"without_{label}", pool.evidence(label)
    for path in pool.shards(build)[:count]:
        if not (folder / path.name).exists():
            training.write_checkpoint(folder / path.name, **vars(without(path, label, asked)))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pool", "normal", "fast", "faithful", "mission", "without"])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--label", type=int, default=0, help="for 'without': the class it never sees")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--build", type=Path, default=Path("build/models/saxs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build, what, steps = arguments.build, arguments.what, arguments.steps
    g = training.seeded(arguments.seed)
    match what:
        case "pool":
            pool.fill(build, 1, arguments.shards, TRAINING_MIX)
        case "normal":
            pool.fill(build / "normal", pool.CALIBRATION_SEED + 1, arguments.shards, Mix.normal())
        case "fast" | "faithful":
            network = Network(is_faithful=what == "faithful")
            train(network, pool.batches(build, arguments.batch, g), g, steps, build / f"{what}.pt")
        case "mission":
            pool.fill(build / "mission", MISSION_SEED, arguments.shards, MISSION_MIX)
            network = Network(is_faithful=True, classes=MISSION)
            train(network, pool.batches(build / "mission", arguments.batch, g), g, steps, build / "mission.pt")
        case "without":
            folder = fill_without(build, arguments.label, arguments.shards)
            network = Network(classes=tuple(k for k in range(CLASS_COUNT) if k != arguments.label))
            name = f"without_{arguments.label}.pt"
            train(network, pool.batches(folder, arguments.batch, g), g, steps, build / name)


if __name__ == "__main__":
    main()
