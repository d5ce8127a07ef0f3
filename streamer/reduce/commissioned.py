"""What a beamline knows of its own sample in order: reference, noise and calibration, in one file of JSON.

`streamer commission` writes it, the `saxs` analysis reads it. It belongs to one sample on one instrument.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.conformal import Conformal
from streamer.reduce.reference import Reference

__all__ = ["Commissioned", "read_commissioned", "write_commissioned"]

FORMAT = "streamer saxs commissioning 1"


@dataclass(frozen=True, slots=True)
class Commissioned:
    """reference: on `grid` (m,) nm⁻¹, counts per pixel. stability: standard deviation of ln(scale) from frame to frame.
    novelty: of the frames in order, by the model's own calibration; what is strange here is counted among them. source,
    model: where the frames came from, sha256 of the model that judged them."""

    grid: NDArray[np.float64]
    reference: Reference
    stability: float
    novelty: Conformal
    source: str
    model: str


def write_commissioned(path: Path, what: Commissioned) -> None:
    """Write the file whole or not at all. Numbers that were not measured are null."""
    table = {
        "format": FORMAT,
        "source": what.source,
        "model": what.model,
        "frames": what.reference.frames,
        "noise": what.reference.noise,
        "stability": what.stability,
        "q": _plain(what.grid),
        "I": _plain(what.reference.I),
        "sigma": _plain(what.reference.sigma),
        "novelty": _plain(what.novelty.scores),
    }
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_commissioned(path: Path, grid: NDArray[np.float64]) -> Commissioned:
    """Raises BadInput naming the file when it is not one of ours, damaged, or made for another grid."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); make it with `streamer commission saxs`") from error
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error}); make it again with `streamer commission saxs`") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise BadInput(f"{path}: is not '{FORMAT}'; make it with `streamer commission saxs`")
    try:
        q, I, sigma, novelty = (_array(table[name]) for name in ("q", "I", "sigma", "novelty"))
        reference = Reference(I, sigma, float(table["noise"]), int(table["frames"]))
        stability, source, model = float(table["stability"]), str(table["source"]), str(table["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path}: {error!r} is missing or no number; make it again with `streamer commission saxs`"
        ) from error
    if q.shape != grid.shape or not np.allclose(q, grid) or not I.shape == sigma.shape == q.shape:
        raise BadInput(f"{path}: was made on {q.size} points of q, the model has {grid.size}; commission it again")
    if not (reference.noise > 0 and stability > 0):
        raise BadInput(f"{path}: noise {reference.noise} and stability {stability}, expected positive numbers")
    return Commissioned(q, reference, stability, Conformal(novelty), source, model)


def _plain(values: Any) -> list[float | None]:
    return [float(f"{value:.9g}") if np.isfinite(value) else None for value in np.asarray(values)]


def _array(values: Any) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
