"""Curves for training, kept on disk while several networks learn from them; physics' features come with them.

A shard is SHARD curves of INSTRUMENTS instruments, made from its own number as seed: any of them can be made again, and
none is in any test (see `seeds`). Nothing of it is part of the repository.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from models import training
from models.saxs.bank import Bank, Templates, typical
from models.saxs.evidence import Evidence
from models.saxs.frames import Camera, photograph
from models.saxs.samples import Spheroids
from models.saxs.simulate import Curves, Mix, join, simulate

DISTANCES_M = (0.8, 1.3, 2.2)
INSTRUMENTS, PER_INSTRUMENT = 64, 256
SHARD = INSTRUMENTS * PER_INSTRUMENT

CALIBRATION_SEED = 1_000_003
"""Seeds below a million train, those from here to two million calibrate, those above test."""


@dataclass(frozen=True)
class Shard:
    """seen: (n, SEEN, 128) half, the channels of the curve and what the bank leaves of it. features: (n, f) half.
    scores: (n, SCORES). label, faults, D, D_fault, has_reference: as in `Curves`."""

    seen: Tensor
    features: Tensor
    scores: Tensor
    label: Tensor
    faults: Tensor
    D: Tensor
    D_fault: Tensor
    has_reference: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> Shard:
        return Shard(**{name: values[rows] for name, values in vars(self).items()})

    @classmethod
    def of(cls, curves: Curves, evidence: Evidence) -> Shard:
        with torch.no_grad():
            said = [evidence(part) for part in curves.inputs.split(256)]
        features, left, scores = (torch.cat(column) for column in zip(*said, strict=True))
        return cls(
            torch.cat((curves.inputs, left), 1).half(),
            features.half(),
            scores,
            curves.label,
            curves.faults,
            curves.D,
            curves.D_fault,
            curves.has_reference,
        )


def evidence(without: int | None = None) -> Evidence:
    return Evidence(Bank(Templates.make(typical()).without(without))).eval()


def make(
    seed: int, mix: Mix | None = None, *, instruments: int = INSTRUMENTS, per_instrument: int = PER_INSTRUMENT
) -> Curves:
    """Curves of random instruments, and last of one whose frames are made pixel by pixel."""
    g = Generator().manual_seed(seed)
    spheroids = Spheroids(g)
    parts = [simulate(per_instrument, spheroids, g, mix) for _ in range(instruments - 1)]
    return join([*parts, photograph(per_instrument, spheroids, g, camera(DISTANCES_M[seed % len(DISTANCES_M)]), mix)])


@functools.cache
def camera(distance_m: float) -> Camera:
    return Camera.at(distance_m)


def fill(folder: Path, first: int, count: int, mix: Mix | None = None) -> None:
    """Make the shards that are not there yet."""
    asked = evidence()
    with training.progress("curves", count) as advance:
        for seed in range(first, first + count):
            path = folder / f"shard_{seed:05d}.pt"
            if not path.exists():
                training.write_checkpoint(path, **vars(Shard.of(make(seed, mix), asked)))
            advance(1)


def read(path: Path) -> Shard:
    return Shard(**training.read_checkpoint(path))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard_*.pt"))


def batches(folder: Path, size: int, g: Generator) -> Iterator[Shard]:
    """Batches for ever, two shards mixed at a time; shards that appear meanwhile join in the next round."""
    while True:
        paths = shards(folder)
        order = [paths[k] for k in torch.randperm(len(paths), generator=g)]
        for pair in zip(order[::2], order[1::2], strict=False):
            both = [vars(read(path)) for path in pair]
            pool = Shard(**{name: torch.cat([part[name] for part in both]) for name in both[0]})
            for rows in torch.randperm(len(pool), generator=g).split(size)[:-1]:
                yield pool[rows]
