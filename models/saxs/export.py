"""Turn trained networks into what is shipped: calibrated, exported, with their cards, and the heads for novelty.

python -m models.saxs.export fast         # models/saxs: model.onnx and the numbers of card.toml
python -m models.saxs.export faithful     # models/saxs_faithful
python -m models.saxs.export heads        # models/saxs/heads: mission.pt, without_1.pt … without_6.pt
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models import training
from models.saxs import pool, train
from models.saxs.bank import Templates, typical
from models.saxs.calibrate import answers, calibrate, from_folder, gaussians, known_tables
from models.saxs.network import CLASS_COUNT, Calibration, Exported, Network, identity
from models.saxs.pool import Shard
from models.saxs.simulate import Curves

FOLDERS = {"fast": train.FOLDER, "faithful": train.FOLDER.parent / "saxs_faithful"}
HEADS = train.FOLDER / "heads"
DRAWS = {"fast": 32, "faithful": 8}
DRAW_SEED = 11


def network(build: Path, name: str) -> tuple[Network, dict[str, Any]]:
    """A trained network and its checkpoint."""
    saved = training.read_checkpoint(build / f"{name}.pt")
    left_out = int(name.removeprefix("without_")) if name.startswith("without") else 0
    classes = (
        train.MISSION if name == "mission" else tuple(k for k in range(CLASS_COUNT) if not left_out or k != left_out)
    )
    made = Network(is_faithful=name in ("faithful", "mission"), classes=classes)
    made.load_state_dict(saved["network"])
    return made.eval(), saved


def exported(build: Path, name: str, normal: Iterator[Shard]) -> tuple[Exported, int]:
    """The calibrated network, ready to be written, and the number of normal frames behind its p-values."""
    made, _ = network(build, name)
    whole = Exported(made, Templates.make(typical()), draws=DRAWS[name], seed=DRAW_SEED)
    return whole, calibrate(whole, held_out(), normal)[1]


def held_out(without: int | None = None) -> Shard:
    """Curves of the training mix that took no part in training."""
    curves = _calibration_curves()
    if without is not None:
        curves = curves[torch.nonzero(curves.label != without)[:, 0]]
    return Shard.of(curves, pool.evidence(without))


@functools.cache
def _calibration_curves() -> Curves:
    return pool.make(pool.CALIBRATION_SEED)


def write(build: Path, name: str) -> None:
    """model.onnx, and what of card.toml follows from training and calibration."""
    folder = FOLDERS[name]
    whole, frames = exported(build, name, from_folder(build / "normal"))
    path = folder / "model.onnx"
    example = pool.make(pool.CALIBRATION_SEED, instruments=2).inputs
    training.export(whole.eval(), example[:2], path, inputs=["curve"], outputs=list(Exported.OUTPUTS))
    saved = training.read_checkpoint(build / f"{name}.pt")
    card = training.read_card(folder / "card.toml")
    card["sha256"] = training.sha256(path)
    card["calibration"] |= {
        "temperature_classes": round(whole.temperature[0], 4),
        "temperature_faults": round(whole.temperature[1], 4),
        "normal_frames": frames,
        "floor": 1 / (frames + 1),
        "draws": DRAWS[name],
        "seed": pool.CALIBRATION_SEED,
    }
    card["training"] |= {
        "steps": int(saved["step"]),
        "minutes": round(float(saved["seconds"]) / 60, 1),
        "largest_difference_torch_onnx": training.largest_difference(whole, path, example[:256]),
    }
    training.write_card(folder / "card.toml", card)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {frames} normal frames")


def write_head(build: Path, name: str) -> None:
    """A network for the evaluation alone, as half-precision numbers: weights, Gaussians, table of what it knows."""
    made, _ = network(build, name)
    left_out = int(name.removeprefix("without_")) if name.startswith("without") else None
    whole = Exported(made, Templates.make(typical()).without(left_out), draws=8, seed=DRAW_SEED)
    parts: dict[str, Any] = {key: value.half() for key, value in made.state_dict().items()}
    if left_out is not None:
        shard = held_out(left_out)
        said = answers(whole, shard)
        means, factors, weights = gaussians(said.embedding, shard)
        whole.calibrate(replace(identity(made.widths.embedding), means=means, factors=factors, log_weights=weights))
        clean = (shard.D_fault == 0) & shard.has_reference
        known = known_tables(answers(whole, shard).scores[clean])
        parts |= {"means": means, "factors": factors, "log_weights": weights, "known": known}
    training.write_checkpoint(HEADS / f"{name}.pt", **parts)


def read_head(name: str) -> Exported:
    """What `write_head` wrote."""
    parts = training.read_checkpoint(HEADS / f"{name}.pt")
    left_out = int(name.removeprefix("without_")) if name.startswith("without") else None
    classes = train.MISSION if left_out is None else tuple(k for k in range(CLASS_COUNT) if k != left_out)
    made = Network(is_faithful=left_out is None, classes=classes)
    made.load_state_dict({key: parts[key].float() for key in made.state_dict()})
    blank = identity(made.widths.embedding)
    given = {key: parts[key].float() for key in ("means", "factors", "log_weights", "known") if key in parts}
    calibration: Calibration = replace(blank, **given)
    templates = Templates.make(typical()).without(left_out)
    return Exported(made.eval(), templates, draws=8, seed=DRAW_SEED, calibration=calibration).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["fast", "faithful", "heads"])
    parser.add_argument("--build", type=Path, default=Path("build/models/saxs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what != "heads":
        write(arguments.build, arguments.what)
        return
    for name in ("mission", *(f"without_{k}" for k in range(1, CLASS_COUNT))):
        if (arguments.build / f"{name}.pt").exists():
            write_head(arguments.build, name)


if __name__ == "__main__":
    main()
