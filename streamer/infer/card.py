"""What a model says of itself: `card.toml`, read strictly.

A key that is not known, missing or of another kind is refused with the words of the file: a misspelt unit or grid would
otherwise be found out by wrong answers.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.records import UNITS, BadInput, BadModel, did_you_mean

__all__ = ["CARD", "NETWORK", "Card", "Grid", "ModelInput", "ModelOutput", "read_card", "require_coverage"]

DType = Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"]
Entry = TypeVar("Entry", bound=msgspec.Struct)

CARD, NETWORK = "card.toml", "model.onnx"


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[grids.NAME]`: the coordinates of the points along the last axis of an input or output, ascending.

    unit: "1/nm", "1/A", "A", …
    values: every coordinate. Or, in its place: start, stop (both included), points and spacing ("linear" or "log").
    """

    unit: str
    values: tuple[float, ...] | None = None
    start: float | None = None
    stop: float | None = None
    points: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] | None = None
    spacing: Literal["linear", "log"] | None = None

    def __post_init__(self) -> None:
        ruler = (self.start, self.stop, self.points, self.spacing)
        if (self.values is None) == (None in ruler) or (self.values is not None and ruler != (None,) * 4):
            raise ValueError("expected either 'values' or all of 'start', 'stop', 'points', 'spacing'")
        if self.spacing == "log" and not (self.start or 0) > 0:
            raise ValueError(f"expected start > 0 for a log grid, found {self.start}")
        given = self.values or tuple(end for end in (self.start, self.stop) if end is not None)
        if not all(map(math.isfinite, given)) or any(one >= next_one for one, next_one in pairwise(given)):
            raise ValueError(f"expected finite, ascending coordinates, found {list(given)}")

    def coordinates(self) -> NDArray[np.float64]:
        """The coordinates, (points,) in `unit`."""
        if self.start is None or self.stop is None or self.points is None:
            return np.array(self.values, dtype=np.float64)
        space = np.geomspace if self.spacing == "log" else np.linspace
        return space(self.start, self.stop, self.points, dtype=np.float64)


class ModelInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[inputs.NAME]`: what one input of the network is for one frame.

    dtype: numpy's name. shape: without the batch axis, which comes first in the network; [] for a single number.
    unit: "1" for pure numbers. grid: name of the grid along the last axis. meaning: a phrase.
    """

    dtype: DType
    shape: tuple[Annotated[int, msgspec.Meta(ge=1)], ...]
    unit: str
    grid: str | None = None
    meaning: str = ""


class ModelOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[outputs.NAME]`: what one output of the network is for one frame; as an input, but it must say what it means.

    dtype: a float, for only a float can say "not known".
    """

    dtype: Literal["float16", "float32", "float64"]
    shape: tuple[Annotated[int, msgspec.Meta(ge=1)], ...]
    unit: str
    meaning: str
    grid: str | None = None


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`card.toml`: what a model says of itself. Everything a beamline must know before it believes an answer.

    name = "saxs"
    version = "1.0.0"
    question = "Is this the curve of an undisturbed solution?"     # one sentence
    licence = "BSD-3-Clause"
    sha256 = "9f86d081…"                                           # of model.onnx, 64 hexadecimal digits
    opset = 18
    max_batch = 16                                                 # no batch larger than it was measured with
    limits = ["Trained on dilute spheres between 2 and 30 nm."]    # what it cannot do, one sentence each

    [inputs.curve]          # by the network's own names, see ModelInput
    dtype = "float32"
    shape = [2, 256]
    unit = "1"
    grid = "q"

    [outputs.anomaly]       # see ModelOutput
    dtype = "float32"
    shape = []
    unit = "1"
    meaning = "probability that the curve is not one of an undisturbed solution"

    [grids.q]               # see Grid
    unit = "1/nm"
    start = 0.05
    stop = 5.0
    points = 256
    spacing = "log"

    [calibration]           # free: method, temperature, …
    [training]              # free: simulator, seed, number of curves, date, …
    [metrics]               # free: figures that evaluate.py reproduces
    """

    name: str
    version: str
    question: str
    licence: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    opset: Annotated[int, msgspec.Meta(ge=1)]
    inputs: Annotated[dict[str, ModelInput], msgspec.Meta(min_length=1)]
    outputs: Annotated[dict[str, ModelOutput], msgspec.Meta(min_length=1)]
    limits: tuple[str, ...]
    grids: dict[str, Grid] = {}
    calibration: dict[str, Any] = {}
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    max_batch: Annotated[int, msgspec.Meta(ge=1)] = 16

    def grid(self, name: str) -> NDArray[np.float64]:
        """The coordinates of a grid, (points,) in `grids[name].unit`. Raises BadModel if the card has no such grid."""
        if name not in self.grids:
            raise BadModel(f"{self.name}: {CARD} has no [grids.{name}]{did_you_mean(name, self.grids)}")
        return self.grids[name].coordinates()


def read_card(folder: str | Path) -> Card:
    """The card in a model's folder.

    Raises BadModel naming the file, the key, what was found and what was expected.
    """
    path = Path(folder) / CARD
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModel(
            f"{path}: cannot be read ({error.strerror}); a model's folder holds {CARD} and {NETWORK}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadModel(f"{path}: is not TOML ({error})") from error
    entries: tuple[tuple[str, type[msgspec.Struct]], ...] = (
        ("grids", Grid),
        ("inputs", ModelInput),
        ("outputs", ModelOutput),
    )
    for section, kind in entries:
        for name, entry in _table(table.get(section, {}), f"{path}: [{section}]").items():
            _convert(entry, kind, f"{path}: [{section}.{name}]")
    card = _convert(table, Card, str(path))
    for title, tensors in (("inputs", card.inputs), ("outputs", card.outputs)):
        for name, tensor in tensors.items():
            _check_grid_of(tensor, card, f"{path}: [{title}.{name}]")
    return card


def require_coverage(card: Card, grid_name: str, low: float, high: float, unit: str, *, at_least: float = 0.9) -> float:
    """Check before the first frame that a geometry reaches what the model was trained on.

    low, high: what the geometry reaches, in `unit`. at_least: fraction of the grid's points that must lie inside.
    Returns the fraction that does. Raises BadModel if it is too small or the units are not of one kind.
    """
    if not low < high:
        raise BadInput(f"{card.name}: the geometry's range is {low:g}–{high:g} {unit}, expected low < high")
    grid, wanted = card.grid(grid_name), card.grids[grid_name].unit
    factor = _convert_unit(unit, wanted, f"{card.name}: grid '{grid_name}'")
    low, high = low * factor, high * factor
    covered = float(np.mean((grid >= low) & (grid <= high)))
    if covered < at_least:
        shown = f"{wanted.removeprefix('1/')}⁻¹" if wanted.startswith("1/") else wanted
        raise BadModel(
            f"{card.name}: model expects {len(grid)} {grid_name}-bins {grid[0]:.3g}–{grid[-1]:.3g} {shown} ({CARD}), "
            f"the geometry reaches {low:.3g}–{high:.3g} {shown}, {covered:.0%} of them, where {at_least:.0%} are needed"
            f"; move the detector or choose a model made for this range"
        )
    return covered


def require_tensors(card: Card, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Check that a model takes and gives what an analysis will ask of it.

    inputs, outputs: name → unit. Raises BadModel naming every tensor that is missing, not foreseen or in another unit.
    """
    problems = []
    for side, wanted, given in (("input", inputs, card.inputs), ("output", outputs, card.outputs)):
        found = {name: tensor.unit for name, tensor in given.items()}
        for name, unit in wanted.items():
            if name not in found:
                problems.append(f"{side} '{name}' is missing{did_you_mean(name, found)}")
            elif found[name] != unit:
                problems.append(f"{side} '{name}' is in '{found[name]}', expected '{unit}'")
    problems += [f"input '{name}' is asked for, and nobody gives it" for name in card.inputs if name not in inputs]
    if problems:
        raise BadModel(f"{card.name}: this model answers another question: {'; '.join(problems)} ({CARD})")


def _check_grid_of(tensor: ModelInput | ModelOutput, card: Card, where: str) -> None:
    if tensor.grid is None:
        return
    if tensor.grid not in card.grids:
        raise BadModel(f"{where} grid = '{tensor.grid}': no such grid{did_you_mean(tensor.grid, card.grids)}")
    points = len(card.grid(tensor.grid))
    if tensor.shape[-1:] != (points,):
        raise BadModel(
            f"{where} shape = {list(tensor.shape)}: grid '{tensor.grid}' has {points} points, expected as many along "
            f"the last axis"
        )


def _convert(table: Any, kind: type[Entry], where: str) -> Entry:
    """A table of the card as the record it should be, or BadModel in the words of the file."""
    table = _table(table, where)
    fields = {entry.name: entry for entry in msgspec.structs.fields(kind)}
    for key in table:
        if key not in fields:
            raise BadModel(f"{where}: unknown key '{key}'{did_you_mean(key, fields)}")
    missing = [name for name, entry in fields.items() if entry.required and name not in table]
    if missing:
        raise BadModel(f"{where}: found no {listed(missing)}, expected {'it' if len(missing) == 1 else 'them'}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        key = re.sub(r"^\W+", "", place).rstrip("`")
        if not key:
            raise BadModel(f"{where}: {text}") from error
        name = re.split(r"[.[]", key)[0]
        choices = _choices(fields[name].type)
        expected = f"expected one of {listed(choices)}" if choices else text
        raise BadModel(f"{where}: key '{key}': found {table[name]!r}; {expected}") from error


def _choices(kind: Any) -> list[str]:
    """The words a key may be; none where it is not a choice of words."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return list(parts)
    return [word for part in parts for word in _choices(part)]


def _table(table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise BadModel(f"{where}: found {table!r}, expected a table")
    return table


def _convert_unit(unit: str, wanted: str, who: str) -> float:
    """How many of the wanted unit one unit is."""
    if unit == wanted:
        return 1.0
    kind, factor = UNITS.get(unit, (unit, 1.0))
    wanted_kind, wanted_factor = UNITS.get(wanted, (wanted, 1.0))
    if kind != wanted_kind:
        raise BadModel(f"{who} is in {wanted} ({CARD}), the geometry in {unit}; give the range in {wanted}")
    return factor / wanted_factor


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
