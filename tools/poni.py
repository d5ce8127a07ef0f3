"""Turn the geometry other programs keep into a pyFAI `.poni` file and a mask.

    python tools/poni.py raw SETTINGS.cfg --shape 3262,3108 --out detector.poni --mask mask.npy
    python tools/poni.py tiff IMAGE.tiff --out detector.poni --mask mask.npy

`raw`: the settings file of BioXTAS RAW. RAW shows images upside down and counts y from the bottom row, for the beam
centre and for the mask, while images on the wire and in files start with the top row. `--shape` is that of an image
as the detector delivers it; without it, that of the mask in the settings.

`tiff`: an image of a SAXSLAB/Xenocs instrument, which keeps its geometry as XML in TIFF tag 315 ("Artist"). Pixels
below zero are masked: −1 is a gap between modules, −2 a bad pixel.

The mask is a (rows, columns) bool array, True = not used.
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput, StreamerError
from streamer.reduce.detector import Geometry

RAW_DEFAULTS = {"Xcenter": 512.0, "Ycenter": 512.0, "SampleDistance": 1000.0, "WaveLength": 1.0}
"""What RAW writes before anyone has calibrated."""

ARTIST = 315
"""TIFF tag where SAXSLAB's software puts its XML."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        geometry = from_raw(options.file, options.shape) if options.program == "raw" else from_tiff(options.file)
    except StreamerError as error:
        print(error, file=sys.stderr)
        return 1
    geometry.write(options.out)
    mask = np.zeros(geometry.shape or (0, 0), dtype=bool) if geometry.mask is None else geometry.mask
    np.save(options.mask, mask)
    column, row = geometry.beam_center
    print(
        f"{options.out}: beam at row {row:.2f}, column {column:.2f}; {geometry.distance_m * 1e3:.2f} mm, "
        f"{geometry.wavelength_A:.4f} Å; {options.mask}: {mask.mean():.2%} of {mask.shape} masked"
    )
    return 0


def from_raw(path: Path, shape: tuple[int, int] | None = None) -> Geometry:
    """The geometry and mask in a settings file of BioXTAS RAW. Raises BadInput."""
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a RAW settings file ({error}); give the .cfg that RAW saves") from error
    if not isinstance(settings, dict) or not RAW_DEFAULTS.keys() <= settings.keys():
        raise BadInput(f"{path}: found no {', '.join(RAW_DEFAULTS)}; give the .cfg that RAW saves")
    if all(settings[key] == value for key, value in RAW_DEFAULTS.items()):
        raise BadInput(f"{path}: no geometry: found RAW's defaults {RAW_DEFAULTS}; calibrate in RAW and save again")
    turned = [
        key
        for key in ("DetectorTilt", "DetectorTiltPlanRot", "DetectorFlipLR", "DetectorFlipUD", "DetectorFlipped90")
        if settings.get(key)
    ]
    if turned:
        raise BadInput(
            f"{path}: found {', '.join(turned)}, expected a detector neither tilted nor turned; use pyFAI-calib2"
        )
    rows, columns = shape or _raw_shape(settings, path)
    x = settings.get("DetectorPixelSizeX", settings.get("DetectorPixelSize")) * 1e-6
    y = settings.get("DetectorPixelSizeY", settings.get("DetectorPixelSize")) * 1e-6
    row = rows - 1 - settings["Ycenter"]
    return Geometry(
        shape=(rows, columns),
        pixel_size_m=(x, y),
        distance_m=settings["SampleDistance"] * 1e-3,
        wavelength_A=settings["WaveLength"],
        poni_m=(row * y, settings["Xcenter"] * x),
        mask=_raw_mask(settings, (rows, columns), path),
    )


def _raw_shape(settings: dict[str, Any], path: Path) -> tuple[int, int]:
    match settings.get("MaskDimension"):
        case [int(rows), int(columns)]:
            return rows, columns
    raise BadInput(f"{path}: found no shape of the detector; give --shape rows,columns")


def _raw_mask(settings: dict[str, Any], shape: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """What RAW masks on purpose (its "BeamStopMask" holds gaps and bad pixels too), first row on top."""
    mask = np.zeros(shape, dtype=bool)
    figures = settings.get("Masks", {}).get("BeamStopMask", [None, None])[1]
    for figure in figures or []:
        if figure["negative"]:
            raise BadInput(f"{path}: found a negative mask, expected masks that exclude; draw the mask the other way")
        _fill(mask, figure, path)
    return mask[::-1].copy()


def _fill(mask: NDArray[np.bool_], figure: dict[str, Any], path: Path) -> None:
    """Draw one figure of a RAW mask, in RAW's rows. Points are (x, y); a rectangle ends before its second corner."""
    match figure["type"]:
        case "rectangle":
            x0, x1 = sorted(max(0, x) for x, _ in (figure["first_point"], figure["second_point"]))
            y0, y1 = sorted(max(0, y) for _, y in (figure["first_point"], figure["second_point"]))
            mask[y0:y1, x0:x1] = True
        case "circle":
            (x, y), edge = figure["center_point"], figure["radius_point"]
            rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
            mask |= np.hypot(rows - y, columns - x) <= np.hypot(edge[0] - x, edge[1] - y)
        case "polygon":
            from silx.image.shapes import polygon_fill_mask  # comes with pyFAI

            mask |= polygon_fill_mask([(y, x) for x, y in figure["vertices"]], mask.shape).astype(bool)
        case other:
            raise BadInput(f"{path}: found a mask figure {other!r}, expected rectangle, circle or polygon")


def from_tiff(path: Path) -> Geometry:
    """The geometry in TIFF tag 315 and the mask in the pixels of a SAXSLAB image. Raises BadInput."""
    from PIL import Image  # comes with pyFAI

    try:
        with Image.open(path) as tiff:
            text, image = str(tiff.tag_v2.get(ARTIST, "")).strip("\0 "), np.array(tiff)
    except (OSError, AttributeError) as error:
        raise BadInput(f"{path}: not a readable TIFF ({error})") from error
    try:
        values = {param.get("name"): param.text or "" for param in ET.fromstring(text).iter("param")}
        row, column = map(float, values["beamcenter_actual"].split())
        x, y = map(float, values["det_pixel_size"].split())
        distance_mm, wavelength_A = float(values["detector_dist"]), float(values["wavelength"])
    except (ET.ParseError, KeyError, ValueError) as error:
        raise BadInput(
            f"{path}: no geometry: found no SAXSLAB parameters in TIFF tag {ARTIST} ({error}); "
            "calibrate with pyFAI-calib2 and give a .poni"
        ) from error
    return Geometry(
        shape=image.shape,
        pixel_size_m=(x, y),
        distance_m=distance_mm * 1e-3,
        wavelength_A=wavelength_A,
        poni_m=(row * y, column * x),
        mask=image < 0,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    programs = parser.add_subparsers(dest="program", required=True)
    for name, what in (("raw", "settings of BioXTAS RAW (.cfg)"), ("tiff", "image of a SAXSLAB instrument")):
        program = programs.add_parser(name, help=what)
        program.add_argument("file", type=Path, help=what)
        program.add_argument("--out", type=Path, required=True, help="the .poni file to write")
        program.add_argument("--mask", type=Path, required=True, help="the .npy mask to write")
        if name == "raw":
            program.add_argument("--shape", type=_shape, help="rows,columns of an image")
    return parser


def _shape(text: str) -> tuple[int, int]:
    rows, columns = map(int, text.split(","))
    return rows, columns


if __name__ == "__main__":
    sys.exit(main())
