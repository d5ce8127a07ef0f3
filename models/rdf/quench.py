"""Make the boxes again: melt and quench Ge–Se and Ag–Ge–Se glasses with a universal potential ("MLIP-MD").

    python -m models.rdf.quench [--x 0 5 10 15 20 25] [--atoms 120] [--seed 100] [--out FOLDER] [--stop-after STEPS]

Needs `chgnet` and `ase` (extra `boxes`); the potential's weights come inside its package. Half an hour of one core
for a composition of 120 atoms. The state is written every thousand steps: started again, the same command goes on.

What comes out is a box of a simulated glass and nothing more: a liquid of 120 atoms quenched at 40 K/ps with CHGNet
0.3.0, which was trained on PBE crystals. Not ab initio; `check.py` tells its distances and coordination numbers beside
published ones. The same seed gives the same box on the same machine and torch only: molecular dynamics is chaotic.

The recipe, in steps of 4 fs (the ions are heavy), Langevin thermostat with 0.02 fs⁻¹, constant volume: random packing,
40 steps of FIRE, 2000 K for 8 ps, to 1100 K in 8 ps, to 300 K in 20 ps, 8 ps at 300 K, of which the last 6 ps are kept.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase import units
from ase.io import write
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from chgnet.model.dynamics import CHGNetCalculator
from numpy.typing import NDArray
from structlog import get_logger

log = get_logger(__name__)

STEP_FS = 4.0
FRICTION_PER_FS = 0.02
SCHEDULE = ((2000.0, 2000.0, 2000), (2000.0, 1100.0, 2000), (1100.0, 300.0, 5000), (300.0, 300.0, 2000))
"""Kelvin at the beginning and the end of a part, and its steps: 8, 8, 20 and 8 ps."""
KEPT_FROM, KEPT_EVERY = 9500, 30
"""Steps: frames are kept from 2 ps after the quench on, 120 fs apart."""
CHECKPOINT_EVERY = 1000
CLOSEST_A = 2.1
"""No two atoms of the random packing are nearer: below, the potential was never trained."""


def number_density(x: float) -> float:
    """Atoms per Å³ of Ag_x(Ge0.25Se0.75)_{100−x}: linear from 4.3 g/cm³ of GeSe₃ to about 5.6 g/cm³ at x = 25."""
    return 0.0335 + (0.0400 - 0.0335) * x / 25


def atoms_of(x: float, atoms: int) -> list[str]:
    """The symbols of a box, silver first taken away, the rest one germanium to three seleniums."""
    silver = round(atoms * x / 100)
    germanium = round((atoms - silver) / 4)
    return ["Ge"] * germanium + ["Se"] * (atoms - silver - germanium) + ["Ag"] * silver


def temperature(step: int) -> float:
    """Of the thermostat in kelvin, after so many steps."""
    for first, last, steps in SCHEDULE:
        if step < steps:
            return first + (last - first) * step / steps
        step -= steps
    return SCHEDULE[-1][1]


def packed(symbols: list[str], density: float, rng: np.random.Generator) -> ase.Atoms:
    """Atoms at random places of a cubic box, none nearer to another than `CLOSEST_A` (less where that does not fit)."""
    L = (len(symbols) / density) ** (1 / 3)
    closest = CLOSEST_A
    places: list[NDArray[np.float64]] = []
    tries = 0
    while len(places) < len(symbols):
        place = rng.uniform(0, L, 3)
        away = np.array(places).reshape(-1, 3) - place
        away -= L * np.round(away / L)
        if not len(places) or (away**2).sum(axis=1).min() > closest**2:
            places.append(place)
        tries += 1
        if tries % 20000 == 0:
            closest *= 0.98
    return ase.Atoms(list(rng.permutation(symbols)), positions=np.array(places), cell=[L, L, L], pbc=True)


@dataclass
class Run:
    """A quench under way: all that must be kept to go on as if nothing had happened."""

    atoms: ase.Atoms
    rng: np.random.Generator
    step: int
    frames: list[NDArray[np.float64]]

    def write(self, path: Path) -> None:
        part = path.with_suffix(".part.npz")
        np.savez(
            part,
            symbols=self.atoms.get_chemical_symbols(),
            cell=np.array(self.atoms.cell),
            positions=self.atoms.get_positions(),
            momenta=self.atoms.get_momenta(),
            step=self.step,
            frames=np.array(self.frames),
            rng=np.array([str(self.rng.bit_generator.state)]),
        )
        part.replace(path)

    @classmethod
    def read(cls, path: Path, seed: int) -> Run:
        """The thermostat's noise goes on from a seed made of the step: independent of what went before."""
        saved = np.load(path)
        atoms = ase.Atoms(list(saved["symbols"]), positions=saved["positions"], cell=saved["cell"], pbc=True)
        atoms.set_momenta(saved["momenta"])
        step = int(saved["step"])
        return cls(atoms, np.random.default_rng([seed, step]), step, list(saved["frames"]))


def quench(x: float, atoms: int, seed: int, checkpoint: Path, *, stop_after: int | None = None) -> Run:
    """The box at 300 K and its frames, going on from the checkpoint if there is one."""
    calculator = CHGNetCalculator(use_device="cpu")
    if checkpoint.exists():
        run = Run.read(checkpoint, seed)
        run.atoms.calc = calculator
    else:
        rng = np.random.default_rng(seed)
        run = Run(packed(atoms_of(x, atoms), number_density(x), rng), rng, 0, [])
        run.atoms.calc = calculator
        FIRE(run.atoms, logfile=None).run(fmax=0.5, steps=40)
    dynamics = Langevin(
        run.atoms,
        STEP_FS * units.fs,
        temperature_K=temperature(run.step),
        friction=FRICTION_PER_FS / units.fs,
        rng=run.rng,
    )
    last = min(sum(steps for *_, steps in SCHEDULE), stop_after or 10**9)
    began = time.monotonic()
    while run.step < last:
        dynamics.set_temperature(temperature_K=temperature(run.step))
        dynamics.run(10)
        run.step += 10
        if run.step > KEPT_FROM and (run.step - KEPT_FROM) % KEPT_EVERY == 0:
            run.frames.append(run.atoms.get_positions(wrap=True))
        if run.step % CHECKPOINT_EVERY == 0 or run.step >= last:
            run.write(checkpoint)
            log.info("quench", x=x, step=run.step, kelvin=round(run.atoms.get_temperature()), s=_since(began))
    return run


def _since(began: float) -> int:
    return round(time.monotonic() - began)


def trajectory(run: Run) -> list[ase.Atoms]:
    """The frames that were kept, as boxes."""
    boxes = []
    for positions in run.frames:
        box = ase.Atoms(run.atoms.get_chemical_symbols(), positions=positions, cell=run.atoms.cell, pbc=True)
        boxes.append(box)
    return boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--x", type=float, nargs="+", default=[0, 5, 10, 15, 20, 25], help="atomic percent of silver")
    parser.add_argument("--atoms", type=int, default=120)
    parser.add_argument("--seed", type=int, default=100, help="the box of x is made with seed + x")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/models/rdf"), help="folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "boxes")
    parser.add_argument("--stop-after", type=int, help="steps; go on later with the same command")
    arguments: Any = parser.parse_args()
    torch.set_num_threads(1)
    arguments.checkpoint.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for x in arguments.x:
        seed = arguments.seed + round(x)
        name = f"ag{x:g}_{arguments.atoms}_seed{seed}"
        run = quench(x, arguments.atoms, seed, arguments.checkpoint / f"{name}.npz", stop_after=arguments.stop_after)
        if run.frames:
            path = arguments.out / f"{name}.extxyz"
            write(path, trajectory(run), format="extxyz", columns=["symbols", "positions"], write_results=False)


if __name__ == "__main__":
    main()
