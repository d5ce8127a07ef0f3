"""Where every pixel of the detector stands relative to the sample: what turns an image into physics.

The conventions are pyFAI's, whose `.poni` file is the one format for geometries here. Axis 1 runs along rows (y),
axis 2 along columns (x). A position in pixels counts from the outer edge of the first pixel, so pixel (0, 0) covers
0…1 and its centre is 0.5; `beam_center` of a detector header is read that way too. Images are taken as they come:
row 0 first, no flip. Mask, flat and dark belong to the geometry, because they are constant wherever it is.

pyFAI takes about a second to import and is loaded at the first call that needs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.records import BadInput, SeriesStart

if TYPE_CHECKING:
    import pyFAI.geometry
    import pyFAI.io.ponifile

__all__ = ["Geometry", "Unit", "geometry_for", "geometry_of", "read_geometry"]

log = structlog.get_logger(__name__)

WAVELENGTH_TOLERANCE = 1e-3
"""Relative. A monochromator is calibrated to 10⁻⁴; more than ten times that is another energy."""

Unit = Literal["1/nm", "1/A"]

PYFAI_UNIT = {"1/nm": "q_nm^-1", "1/A": "q_A^-1"}


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Detector, beam and what is constant between them.

    shape: (rows, columns) of an image; None for a detector that does not say, until `with_shape`.
    pixel_size_m: (along columns x, along rows y).   distance_m: sample to detector plane, along its normal.
    poni_m: (along rows y, along columns x) of the point of normal incidence.   rotations: pyFAI's three, rad.
    mask: (rows, columns) bool, True = never used.   flat: (rows, columns) float32, divides the counts.
    dark: (rows, columns) float32, counts to subtract from every frame.   None: there is none.
    detector: pyFAI's name for it, detector_config: pyFAI's description of it as JSON (orientation, distortion, …).
    parallax: whether pyFAI corrects for the depth of the sensor in detector_config.
    """

    shape: tuple[int, int] | None
    pixel_size_m: tuple[float, float]
    distance_m: float
    wavelength_A: float
    poni_m: tuple[float, float]
    rotations: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mask: NDArray[np.bool_] | None = None
    flat: NDArray[np.float32] | None = None
    dark: NDArray[np.float32] | None = None
    detector: str = "Detector"
    detector_config: str = "{}"
    parallax: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("distance", self.distance_m),
            ("wavelength", self.wavelength_A),
            ("pixel size", min(self.pixel_size_m)),
        ):
            if not value > 0:
                raise BadInput(f"geometry: {name} is {value}, expected a positive number; correct the geometry")
        for name, array in (("mask", self.mask), ("flat", self.flat), ("dark", self.dark)):
            if array is not None and array.shape != self.shape:
                raise BadInput(
                    f"geometry: {name} has shape {array.shape}, the detector {self.shape}; give one value per pixel"
                )

    @property
    def beam_center(self) -> tuple[float, float]:
        """(column, row) where the direct beam hits the detector, in pixels from the edge of the first one."""
        beam = self._pyfai().getFit2D()
        return float(beam["centerX"]), float(beam["centerY"])

    @property
    def fingerprint(self) -> str:
        """The same for geometries that reduce every image alike, mask, flat and dark included; 64 hex digits."""
        digest = hashlib.sha256(json.dumps([self.shape, self._poni()], sort_keys=True).encode())
        for array in (self.mask, self.flat, self.dark):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def with_shape(self, shape: tuple[int, int]) -> Geometry:
        """This geometry for images of (rows, columns); itself if it has that shape. BadInput if it has another."""
        if self.shape is None:
            return replace(self, shape=shape)
        if self.shape != shape:
            raise BadInput(
                f"geometry: the detector {self.detector!r} has {self.shape} pixels (rows, columns), "
                f"the images have {shape}; give the geometry of this detector, unbinned and not cropped"
            )
        return self

    def q(self, unit: Unit = "1/nm") -> NDArray[np.float64]:
        """(rows, columns) momentum transfer 4π/λ·sin θ at the centre of every pixel."""
        shape = self._known_shape()
        q: NDArray[np.float64] = self._pyfai().center_array(shape, unit=PYFAI_UNIT[unit])
        return q

    def chi(self) -> NDArray[np.float64]:
        """(rows, columns) azimuth of every pixel's centre, −180 to 180 degrees from the columns' axis."""
        shape = self._known_shape()
        chi: NDArray[np.float64] = self._pyfai().center_array(shape, unit="chi_rad")
        return np.degrees(chi)

    def solid_angle(self) -> NDArray[np.float64]:
        """(rows, columns) solid angle of every pixel relative to one at the point of normal incidence, cos³."""
        solid_angle: NDArray[np.float64] = self._pyfai().solidAngleArray(self._known_shape())
        return solid_angle

    def polarization(self, factor: float) -> NDArray[np.float32]:
        """(rows, columns) intensity after polarisation relative to that without; 1 is horizontal, −1 vertical."""
        polarization: NDArray[np.float32] = self._pyfai().polarization(self._known_shape(), factor)
        return polarization

    def write(self, poni: Path) -> None:
        """Write a `.poni` file, which carries neither mask, flat nor dark. An older file is replaced."""
        with poni.open("w") as file:
            _poni_file(self._poni()).write(file)

    def _known_shape(self) -> tuple[int, int]:
        if self.shape is None:
            raise BadInput(
                f"geometry: the shape of the detector {self.detector!r} is not known; "
                "call with_shape((rows, columns)) with the shape of an image"
            )
        return self.shape

    def _poni(self) -> dict[str, Any]:
        """What pyFAI keeps in a .poni file, as its dictionary."""
        config = json.loads(self.detector_config)
        if self.detector == "Detector":
            # Not orientation: pyFAI's own default, 3, is what a file without one means.
            x, y = self.pixel_size_m
            config |= {"pixel1": y, "pixel2": x, "max_shape": self.shape, "orientation": config.get("orientation", 3)}
        poni1, poni2 = self.poni_m
        rot1, rot2, rot3 = self.rotations
        return {
            "poni_version": 3 if self.parallax else 2.1,
            "detector": self.detector,
            "detector_config": config,
            "dist": self.distance_m,
            "poni1": poni1,
            "poni2": poni2,
            "rot1": rot1,
            "rot2": rot2,
            "rot3": rot3,
            "wavelength": self.wavelength_A * 1e-10,
        } | ({"parallax": True} if self.parallax else {})

    def _pyfai(self) -> pyFAI.geometry.Geometry:
        import pyFAI.geometry

        geometry = pyFAI.geometry.Geometry()
        # Else pyFAI runs the garbage collector of the whole process at every change.
        geometry.auto_gc = False
        geometry.load(_poni_file(self._poni()))
        return geometry


def read_geometry(poni: Path, mask: Path | None = None, flat: Path | None = None, dark: Path | None = None) -> Geometry:
    """The geometry in a pyFAI `.poni` file, with the images that belong to it.

    mask, flat, dark: `.npy`, or any image fabio reads. Non-zero mask pixels are not used; the gaps that pyFAI knows
    of the detector are added to the mask.
    The shape is the detector's or, where the file does not say, that of the images; else it stays None.
    Raises BadInput naming the file, what was found there, what was expected and what to do.
    """
    content = _read_poni(poni)
    images = {path: _read_image(path) for path in (mask, flat, dark) if path is not None}
    detector = content.detector
    shape = _shape(detector.shape) or next((image.shape for image in images.values()), None)
    for path, image in images.items():
        if image.shape != shape:
            raise BadInput(
                f"{path}: found {image.shape} pixels (rows, columns), expected {shape} as the detector of {poni} has; "
                "give an image of this detector"
            )
    return Geometry(
        shape=shape,
        pixel_size_m=(detector.pixel2, detector.pixel1),
        distance_m=content.dist,
        wavelength_A=content.wavelength * 1e10,
        poni_m=(content.poni1, content.poni2),
        rotations=(content.rot1 or 0.0, content.rot2 or 0.0, content.rot3 or 0.0),
        mask=_union(detector.mask, images[mask] != 0 if mask else None),
        flat=images[flat].astype(np.float32) if flat else None,
        dark=images[dark].astype(np.float32) if dark else None,
        detector=type(detector).__name__,
        detector_config=json.dumps(detector.get_config()),
        parallax=bool(content.parallax),
    )


def geometry_for(given: Geometry | None, series: SeriesStart, channel: str, who: str) -> Geometry:
    """What a series is reduced with: the configured geometry with the series' shape and mask, else its header's.

    who: names the analysis in errors. A wavelength other than the configured one is warned of, and not used.
    Raises BadInput when the header tells too little, or the series' mask is of another detector.
    """
    geometry = geometry_of(series, channel) if given is None else given
    if series.shape is not None:
        geometry = geometry.with_shape(series.shape)
    if given is None:
        return geometry
    _warn_of_another_wavelength(geometry, series)
    mask = series.mask.get(channel)
    if mask is None or geometry.shape is None:
        return geometry
    if mask.shape != geometry.shape:
        raise BadInput(
            f"{who}: the mask of series {series.series} has shape {mask.shape}, the geometry {geometry.shape}; "
            "give the geometry of this detector"
        )
    return replace(geometry, mask=mask if geometry.mask is None else geometry.mask | mask)


def _warn_of_another_wavelength(geometry: Geometry, series: SeriesStart) -> None:
    announced = series.photon_wavelength_A
    if announced is not None and abs(announced / geometry.wavelength_A - 1) > WAVELENGTH_TOLERANCE:
        log.warning(
            "the detector announces another wavelength than the .poni, which is used",
            series=str(series.series),
            header_A=round(announced, 5),
            poni_A=round(geometry.wavelength_A, 5),
        )


def geometry_of(series: SeriesStart, channel: str = "") -> Geometry:
    """The geometry a detector header tells: a detector square to the beam, its mask for `channel`.

    The header's flat field is left alone: detectors that send one have applied it.
    Raises BadInput naming every field that the header lacks or gives as zero.
    """
    wavelength_A = series.photon_wavelength_A
    pixel_size_m = series.pixel_size_m if series.pixel_size_m and min(series.pixel_size_m) > 0 else None
    fields = {
        "beam_center": series.beam_center,
        "pixel_size_m": pixel_size_m,
        "distance_m": series.distance_m or None,
        "wavelength_A": wavelength_A,
    }
    if series.beam_center is None or pixel_size_m is None or not series.distance_m or wavelength_A is None:
        missing = ", ".join(name for name, value in fields.items() if value is None)
        raise BadInput(f"series {series.series}: no geometry: the header lacks {missing}; give a .poni (--poni)")
    column, row = series.beam_center
    x, y = pixel_size_m
    mask = series.mask.get(channel)
    return Geometry(
        shape=series.shape or (mask.shape if mask is not None else None),
        pixel_size_m=pixel_size_m,
        distance_m=series.distance_m,
        wavelength_A=wavelength_A,
        poni_m=(row * y, column * x),
        mask=mask,
    )


def _read_poni(path: Path) -> pyFAI.io.ponifile.PoniFile:
    try:
        content = _poni_file(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"{path}: not a readable .poni file ({reason}); give one written by pyFAI-calib2 or tools/poni.py"
        ) from error
    needed = {
        "Distance": content.dist,
        "Poni1": content.poni1,
        "Poni2": content.poni2,
        "Wavelength": content.wavelength,
        "pixel size": content.detector.pixel1 and content.detector.pixel2,
    }
    missing = ", ".join(name for name, value in needed.items() if value is None)
    if missing:
        raise BadInput(f"{path}: found no {missing}, expected a complete .poni file; calibrate, or add the lines")
    return content


def _poni_file(content: Path | dict[str, Any]) -> pyFAI.io.ponifile.PoniFile:
    from pyFAI.io.ponifile import PoniFile

    # pyFAI logs, over several screens, what it also raises; the error raised here says it in a line.
    logging.getLogger("pyFAI").setLevel(logging.CRITICAL)
    return PoniFile(data=content)


def _read_image(path: Path) -> NDArray[Any]:
    """A two-dimensional array from a file, never from a pickle."""
    try:
        image = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _fabio_image(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable image ({error}); give a .npy file or one that fabio reads") from error
    if image.ndim != 2 or image.dtype.kind not in "biuf":
        raise BadInput(
            f"{path}: found an array of shape {image.shape} and type {image.dtype}, expected a 2-D image of numbers; "
            "give one value per pixel"
        )
    return image


def _fabio_image(path: Path) -> NDArray[Any]:
    import fabio

    with fabio.open(str(path)) as file:
        image: NDArray[Any] = np.array(file.data)
    return image


def _shape(shape: tuple[int, ...] | None) -> tuple[int, int] | None:
    return (int(shape[0]), int(shape[1])) if shape is not None else None


def _union(one: NDArray[Any] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    if one is None or other is None:
        return other if one is None else one.astype(np.bool_)
    return one.astype(np.bool_) | other
