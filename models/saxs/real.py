"""Real curves: files of many programs read or refused with the reason, and what the default rules say of real series.

Nothing of it is tuned: the reference of every series is its first two frames, the limits are those of the simulation.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from models.saxs import export
from models.saxs.instruments import GRID
from models.saxs.sequence import rules
from streamer.analyses.saxs.said import Memory, judged, of_curve
from streamer.decide import Decider
from streamer.infer import load_model
from streamer.records import BadInput, Quantity, Result, SeriesKey
from streamer.reduce.curves import Rebinning, rebin
from streamer.reduce.reading import Reader
from streamer.reduce.reference import gather

SERIES = {
    "glucose isomerase": ("raw_gi_series", "GI2_*.dat"),
    "its buffer": ("raw_gi_buffer_series", "GIbuf2_*.dat"),
    "lysozyme buffer": ("udem_lysozyme", "02698_*.dat"),
    "lysozyme 8 mg/ml": ("udem_lysozyme", "02700_*.dat"),
}
REFERENCE_FRAMES = 2
LEAST_ROWS = 20

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats, Floats]


def read_curve(path: Path) -> Curve:
    """q in nm⁻¹ ascending, I, σ. Raises BadInput with the reason a file cannot be used."""
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf", ".hdf5"):
        q, I, sigma, unit = _nxcansas(path)
    elif suffix == ".xml":
        q, I, sigma, unit = _cansas(path)
    elif suffix in (".dat", ".txt", ".csv", ".pdh"):
        q, I, sigma, unit = _columns(path)
    else:
        raise BadInput(f"{path.name}: {suffix or 'a file without a suffix'} holds no curve; expected text, XML or HDF5")
    return _checked(path, q * (10.0 if unit == "1/A" else 1.0), I, sigma)


def _checked(path: Path, q: Floats, I: Floats, sigma: Floats) -> Curve:
    good = np.isfinite(q) & (q > 0)
    q, I, sigma = q[good], I[good], sigma[good]
    order = np.argsort(q, kind="stable")
    q, I, sigma = q[order], I[order], sigma[order]
    if len(q) < LEAST_ROWS:
        raise BadInput(f"{path.name}: found {len(q)} points with q > 0, expected {LEAST_ROWS} or more")
    if not np.any(np.isfinite(sigma) & (sigma > 0)):
        raise BadInput(f"{path.name}: found no point with a σ, and without σ nothing can be said to be new")
    ratio = I[np.isfinite(I) & (I != 0)] / sigma[np.isfinite(I) & (I != 0)]
    if len(ratio) and np.ptp(ratio) < 1e-3 * abs(ratio.mean()):
        raise BadInput(
            f"{path.name}: σ is the same multiple of I in every point ({ratio.mean():.4g}): it is no uncertainty"
        )
    distinct = np.concatenate(([True], np.diff(q) > 0))
    return q[distinct], I[distinct], sigma[distinct]


def _columns(path: Path) -> tuple[Floats, Floats, Floats, str]:
    """The longest run of columns of numbers; headers and metadata around them are passed over."""
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(_numbers(text))
    widths = [len(row) for row in rows]
    if not widths or max(widths) < 2:
        raise BadInput(f"{path.name}: found no columns of numbers")
    width = max({w for w in widths if w >= 2}, key=widths.count)
    table = np.array([row for row in rows if len(row) == width])
    if width == 2:
        raise BadInput(f"{path.name}: found two columns, expected q, I and σ")
    if width > 4:
        raise BadInput(f"{path.name}: found {width} columns and no word on which is σ")
    unit = "1/nm" if path.suffix.lower() == ".pdh" else "1/A"
    return table[:, 0], table[:, 1], table[:, 2], unit


def _numbers(text: str) -> Iterator[list[float]]:
    for line in text.replace("\r", "\n").splitlines():
        try:
            yield [float(word) for word in line.replace(";", " ").replace(",", " ").split()]
        except ValueError:
            continue


def _cansas(path: Path) -> tuple[Floats, Floats, Floats, str]:
    root = ElementTree.parse(path).getroot()
    rows, units = [], set()
    for data in root.iter():
        if data.tag.rpartition("}")[2] != "SASdata":
            continue
        for point in data:
            named = {child.tag.rpartition("}")[2]: child for child in point}
            if {"Q", "I", "Idev"} <= named.keys():
                rows.append([float(named[name].text or "nan") for name in ("Q", "I", "Idev")])
                units.add(named["Q"].get("unit", "1/A"))
        if rows:
            break
    if not rows:
        raise BadInput(f"{path.name}: found no Idata with Q, I and Idev")
    table = np.array(rows)
    return table[:, 0], table[:, 1], table[:, 2], "1/nm" if any("nm" in unit for unit in units) else "1/A"


def _nxcansas(path: Path) -> tuple[Floats, Floats, Floats, str]:
    """The first group that holds Q, I and Idev."""
    found: list[h5py.Group] = []

    def look(_: str, thing: Any) -> None:
        if isinstance(thing, h5py.Group) and {"Q", "I", "Idev"} <= set(thing) and "SMR" not in thing.name:
            found.append(thing)

    with h5py.File(path) as file:
        file.visititems(look)
        if not found:
            raise BadInput(f"{path.name}: found no group with Q, I and Idev (NXcanSAS)")
        group = found[0]
        q, I, sigma = (np.asarray(group[name], dtype=np.float64).ravel() for name in ("Q", "I", "Idev"))
        unit = str(group["Q"].attrs.get("units", "1/angstrom"))
    return q, I, sigma, "1/nm" if "nm" in unit else "1/A"


def every_curve(folder: Path) -> dict[str, str]:
    """Each file under saxs/ that might be a curve: "" where it loads onto the grid, else why it is refused."""
    said = {}
    for path in sorted((folder / "saxs").rglob("*")):
        if not path.is_file() or path.suffix in (".md", ".cfg", ".log") or "licenses" in path.parts:
            continue
        try:
            q, I, sigma = read_curve(path)
            measured = np.isfinite(rebin(q, I, sigma, GRID)[0]).sum()
            said[path.name] = (
                "" if measured >= LEAST_ROWS else f"{measured} points of the model's grid, expected {LEAST_ROWS}"
            )
        except (BadInput, OSError) as refused:
            said[path.name] = str(refused)
    return said


def judge(paths: list[Path]) -> dict[str, Any]:
    """What the model and the default rules say of the frames of a series."""
    model, decider, memory = load_model(export.FOLDERS["fast"], device="cpu"), Decider(rules()), Memory()
    curves = [read_curve(path) for path in paths]
    grid = [rebin(*curve, GRID) for curve in curves]
    reference = gather(grid[:REFERENCE_FRAMES])
    rows: dict[str, list[float]] = {
        name: [] for name in ("novelty", "score", "flux", "low_q", "anomaly", "scale", "class")
    }
    begun = []
    for number, (q, raw, error) in enumerate(curves):
        curve = Reader(Rebinning(q, GRID), GRID)(raw, error, np.ones(q.size, np.int64), reference)
        answers = model.run({"curve": curve.seen[None]})
        quantities = {"profile": Quantity(raw, error, axes={"q": (q, "1/nm")})}
        quantities |= of_curve(curve, {"q": (GRID, "1/nm")}, has_reference=True)
        quantities |= judged({name: values[0] for name, values in answers.items()}, None, has_reference=True)
        quantities |= memory.of(quantities)
        for name in rows:
            rows[name].append(round(float(quantities[name].value), 4))
        said = decider.decide(Result("saxs", SeriesKey(1), number, quantities), float(number))
        begun += [f"{alarm.name} at frame {number}" for alarm in said if alarm.is_active]
    return {"frames": len(paths), "alarms": begun, "noise": round(reference.noise, 3), **rows}


def figures(folder: Path) -> dict[str, Any]:
    """Every series, and which files were refused and why."""
    found: dict[str, Any] = {}
    for name, (place, pattern) in SERIES.items():
        found[name] = judge(sorted((folder / "saxs" / place).glob(pattern)))
    said = every_curve(folder)
    found["loaded"] = sum(not reason for reason in said.values())
    found["refused"] = {name: reason for name, reason in said.items() if reason}
    return found
