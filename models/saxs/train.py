"""Train the SAXS network on curves made while it learns, calibrate it, export it, and write its card.

    python -m models.saxs.train --steps 3800 --seed 1

A run that was stopped goes on from its last checkpoint. No curve is seen twice, so the training loss is the loss on new
data. The loss is that of a Bayesian network: negative log-likelihood plus Brier score over the posterior, and the
divergence from the prior divided by the number of curves.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from models import training
from models.saxs.network import Exported, Network
from models.saxs.simulate import Curves, Spheroids, simulate

FOLDER = Path(__file__).parent
BATCH, INSTRUMENTS, PER_INSTRUMENT = 256, 8, 128
LEARNING_RATE = 3e-3
CHECKPOINT_EVERY = 400
"""Steps; a multiple of the batches in a pool, for the pool itself is not kept."""
CALIBRATION_SEED = 1_000_003
"""Seeds below a million train, this one calibrates, those above it (see `evaluate`) test."""
DRAWS = 32


def batches(spheroids: Spheroids, g: Generator, n: int, *, normal: float = 0.5) -> Iterator[Curves]:
    """n batches of BATCH curves, each with curves of INSTRUMENTS instruments. normal: the share without a fault."""
    per_pool = INSTRUMENTS * PER_INSTRUMENT // BATCH
    for _ in range(math.ceil(n / per_pool)):
        parts = [vars(simulate(PER_INSTRUMENT, spheroids, g, normal=normal)) for _ in range(INSTRUMENTS)]
        order = torch.randperm(INSTRUMENTS * PER_INSTRUMENT, generator=g).split(BATCH)
        pool = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for rows in order[: min(n, per_pool)]:
            yield Curves(**{name: values[rows] for name, values in pool.items()})
        n -= per_pool


def loss(logits: Tensor, label: Tensor) -> Tensor:
    """Negative log-likelihood + Brier score of the labelled curves."""
    is_labelled = label >= 0
    logits, y = logits[is_labelled], label[is_labelled].float()
    brier = (torch.sigmoid(logits) - y).square().mean()
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, y) + brier


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 100 steps, then half a cosine down to 1 % of LEARNING_RATE."""
    return LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


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


def train(steps: int, seed: int, checkpoint: Path, *, stop_after: int | None = None) -> tuple[Network, float]:
    """The trained network and the seconds it took, going on from the checkpoint if there is one.

    stop_after: end early, after so many steps of the plan for `steps`; a whole number of pools.
    """
    g = training.seeded(seed)
    network, spheroids = Network().train(), Spheroids(g)
    run = Run(network, torch.optim.Adam(network.parameters(), lr=LEARNING_RATE), g)
    if checkpoint.exists():
        run.read(checkpoint)
    begun = time.monotonic() - run.seconds
    last = stop_after or steps
    with training.progress("training", steps) as advance:
        advance(run.step)
        for batch in batches(spheroids, g, last - run.step):
            value = _learn(run, batch, steps)
            run.step, run.seconds = run.step + 1, time.monotonic() - begun
            advance(1, f"loss {value:.3f}")
            if run.step % CHECKPOINT_EVERY == 0 or run.step == last:
                run.write(checkpoint)
    return network, run.seconds


def _learn(run: Run, batch: Curves, steps: int) -> float:
    """One step of the optimiser. Returns the loss without the divergence."""
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(run.step, steps)
    value = loss(run.network(batch.inputs), batch.label)
    run.optimiser.zero_grad()
    (value + run.network.divergence() / (steps * BATCH)).backward()
    run.optimiser.step()
    return value.item()


def temperature(network: Network, seed: int, curves: int = 16384) -> float:
    """The temperature that makes the probabilities of held-out curves most likely."""
    g = Generator().manual_seed(seed)
    held_out = Exported(network.eval(), draws=DRAWS, seed=seed)
    logits, labels = [], []
    with torch.no_grad():
        for batch in batches(Spheroids(g), g, curves // BATCH):
            logits.append(held_out.logits(batch.inputs)[batch.label >= 0])
            labels.append(batch.label[batch.label >= 0].float())
    grid = torch.logspace(-0.5, 0.7, 121)
    z, y = torch.cat(logits), torch.cat(labels)
    losses = [torch.nn.functional.binary_cross_entropy(torch.sigmoid(z / T).mean(-1), y) for T in grid]
    return float(grid[torch.stack(losses).argmin()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3800, help="batches of 256 curves")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/models/saxs.pt"))
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of card.toml and model.onnx")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, seconds = train(arguments.steps, arguments.seed, arguments.checkpoint)
    T = temperature(network, CALIBRATION_SEED)
    exported = Exported(network, draws=DRAWS, seed=arguments.seed, temperature=T)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "model.onnx"
    g = Generator().manual_seed(CALIBRATION_SEED)
    example = next(batches(Spheroids(g), g, 1)).inputs
    training.export(exported, example[:2], path, inputs=["curve"], outputs=["anomaly", "sigma", "entropy"])
    difference = training.largest_difference(exported, path, example)
    known = arguments.out / "card.toml"
    card = training.read_card(known if known.exists() else FOLDER / "card.toml")
    card["sha256"] = training.sha256(path)
    card["calibration"] |= {"temperature": T, "draws": DRAWS, "seed": CALIBRATION_SEED}
    card["training"] |= {
        "seed": arguments.seed,
        "curves": arguments.steps * BATCH,
        "minutes": round(seconds / 60, 1),
        "largest_difference_torch_onnx": difference,
    }
    training.write_card(arguments.out / "card.toml", card)
    print(f"temperature {T:.3f}, torch − ONNX ≤ {difference:.1e}, {path.stat().st_size / 1e6:.2f} MB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
