"""Make the model: operators, WT-RDF+ and their calibration from the boxes; and the folds that figures are made with.

    python -m models.rdf.train [--out FOLDER] [--seed N] [--skip-folds]

Ten minutes of one core. `model.onnx` and its card come from all six boxes; `folds.npz` holds, for each composition
left out, what is too slow to make again in an evaluation: WT-RDF+ and LSTM, and the calibration.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from structlog import get_logger

from models import training
from models.rdf.baselines import Lstm, train_lstm
from models.rdf.network import OUTPUTS, Bank, WtRdf
from models.rdf.operators import Q_MAXIMA, on_output
from models.rdf.protocol import (
    FAMILY_CURVES,
    SHARE,
    SIGMA_S,
    WT_CURVES,
    Boxes,
    Calibration,
    calibrate,
    classes,
    noisy,
    operators,
    train_wt,
)
from models.rdf.simulate import COMPOSITIONS

FOLDER = Path(__file__).parent
FOLDS = "folds.npz"
INPUTS = ("F", "noise", "density", "q_max")
LSTM_STEPS = 500

log = get_logger(__name__)


def train_fold(boxes: Boxes, x: int, others: Any, seed: int) -> dict[str, np.ndarray]:
    """What a fold keeps, by name: the LSTM, WT-RDF+ for every q_max, and the calibration, without composition x."""
    rest = [one for one in COMPOSITIONS if one != x]
    family = boxes.family(rest, FAMILY_CURVES // 2, seed=seed, share=SHARE)[0]
    lstm = train_lstm(family, on_output(family.G), seed=seed, steps=LSTM_STEPS, sigma_S=SIGMA_S)
    kept = {f"lstm.{name}": value.numpy() for name, value in lstm.state_dict().items()}
    for q_max in Q_MAXIMA:
        wt = train_wt(family[slice(0, WT_CURVES)], q_max)
        kept[f"wt.{q_max:g}"] = np.array([float(value.detach()) for value in wt.free.values()])
    found = calibrate(boxes, rest, others, seed)
    kept["inflation"], kept["limits"] = np.array(found.inflation), np.array(found.limits)
    return kept


def read_fold(path: Path, x: int) -> tuple[Lstm, dict[float, WtRdf], Calibration]:
    """What `train_fold` kept of composition x."""
    prefix = f"{x}."
    with np.load(path) as saved:
        kept = {name.removeprefix(prefix): saved[name] for name in saved.files if name.startswith(prefix)}
    lstm = Lstm()
    lstm.load_state_dict(
        {k.removeprefix("lstm."): torch.from_numpy(v) for k, v in kept.items() if k.startswith("lstm.")}
    )
    wt = {}
    for q_max in Q_MAXIMA:
        wt[q_max] = WtRdf(q_max).eval()
        for parameter, value in zip(wt[q_max].free.values(), kept[f"wt.{q_max:g}"], strict=True):
            parameter.data.fill_(float(value))
    return lstm.eval(), wt, Calibration(list(kept["inflation"]), list(kept["limits"]))


def shipped(boxes: Boxes, others: Any, seed: int) -> tuple[Bank, dict[float, WtRdf], Calibration]:
    """The model from all six boxes."""
    family = boxes.family(COMPOSITIONS, FAMILY_CURVES, seed=seed)
    wt = {q_max: train_wt(family[0][slice(0, WT_CURVES)], q_max) for q_max in Q_MAXIMA}
    found = calibrate(boxes, COMPOSITIONS, others, seed)
    bank = Bank(operators(family, others), wt, inflation=found.inflation, limits=found.limits)
    return bank.eval(), wt, found


def examples(boxes: Boxes, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """One input of every q_max and composition, for the export and for comparing torch with ONNX Runtime."""
    rows = [noisy(boxes.truths(x), 1, rng) for x in COMPOSITIONS]
    F = np.concatenate([one.F[:4] for one in rows])
    density = np.concatenate([one.density[:4] for one in rows])
    q_max = torch.tensor(Q_MAXIMA).repeat(len(COMPOSITIONS))
    return torch.from_numpy(F).float(), torch.full((len(F),), SIGMA_S), torch.from_numpy(density).float(), q_max


def largest_difference(bank: Bank, path: Path, inputs: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Largest absolute difference between torch and ONNX Runtime, by output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    said = session.run(None, {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)})
    with torch.no_grad():
        expected = bank(*inputs)
    pairs = zip(OUTPUTS, expected, said, strict=True)
    return {name: float(np.abs(a.numpy() - b).max()) for name, a, b in pairs}


def card_changes(wt: Mapping[float, WtRdf], found: Calibration) -> dict[str, Any]:
    """The tables of the card that training writes."""
    return {
        "inflation_of_sigma": dict(zip(("G", "position", "coordination"), map(_rounded, found.inflation), strict=True)),
        "limits_of_novelty": [_rounded(one) for one in found.limits],
        "wt_rdf_plus": {
            f"q_max_{q_max:g}": {name: _rounded(float(value.detach())) for name, value in one.parameters_now.items()}
            for q_max, one in wt.items()
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of card.toml, model.onnx and folds.npz")
    parser.add_argument("--skip-folds", action="store_true", help="make the model only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    boxes, others = Boxes.read(), classes(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    bank, wt, found = shipped(boxes, others, arguments.seed)
    path = arguments.out / "model.onnx"
    inputs = examples(boxes, np.random.default_rng(arguments.seed))
    training.export(bank, tuple(one[:2] for one in inputs), path, inputs=INPUTS, outputs=OUTPUTS)
    difference = largest_difference(bank, path, inputs)
    card_path = arguments.out / "card.toml"
    card = training.read_card(card_path if card_path.exists() else FOLDER / "card.toml")
    card["sha256"] = training.sha256(path)
    card["calibration"] |= card_changes(wt, found)
    card["training"] |= {"seed": arguments.seed, "largest_difference_torch_onnx": max(difference.values())}
    training.write_card(card_path, card)
    log.info("model", MB=path.stat().st_size / 1e6, difference=difference, s=round(time.monotonic() - began))
    if arguments.skip_folds:
        return
    kept: dict[str, np.ndarray] = {}
    for x in COMPOSITIONS:
        kept |= {f"{x}.{name}": value for name, value in train_fold(boxes, x, others, arguments.seed).items()}
        log.info("fold", x=x, s=round(time.monotonic() - began))
        np.savez_compressed(arguments.out / FOLDS, **kept)


if __name__ == "__main__":
    main()
