"""Frames from files: HDF5 and NeXus stacks, DECTRIS master and data files, folders of TIFF, EDF or CBF.

HDF5. The images are the dataset named by the option `dataset`, else the `data_000001`, `data_000002`, … of a group
`data` (DECTRIS; external links are followed), else the default signal of the file (NXdata), else the only dataset with
three or more dimensions. All but the last two dimensions count frames. What the file says of geometry, energy, mask
and exposure (NXdetector, NXbeam, and the fields DECTRIS adds under `detectorSpecific`) becomes the SeriesStart.

Single images. A folder or a pattern (`run7_*.tif`) is one series in natural order of the file names, and so is one
file. They carry no geometry, so the SeriesStart has only shape and type; what negative counts mean is left to `reduce`.

Threads. Images are read in `decode`, by the workers. The HDF5 library lets one thread in at a time, decompression
included. Images in bslz4 chunks of their own, as detectors write them, are therefore decompressed outside of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import fabio
import h5py
import hdf5plugin
import numpy as np
import structlog
from numpy.typing import NDArray

from streamer import compression
from streamer.pixels import Scratch
from streamer.records import BadConfig, BadFrame, Frame, SeriesEnd, SeriesKey, SeriesStart, SourceLost, WireRecord
from streamer.sources import Message
from streamer.sources.playback import Cue, Playback, Rate, natural_order

log = structlog.get_logger(__name__)

IMAGE_SUFFIXES = (".tif", ".tiff", ".edf", ".cbf")
FILTERS = hdf5plugin.FILTERS
"""Naming it keeps the import, and the import teaches the HDF5 library bitshuffle and its relatives."""

METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "nm": 1e-9}
ANGSTROMS = {"angstrom": 1.0, "Å": 1.0, "A": 1.0, "nm": 10.0, "m": 1e10}
ELECTRONVOLTS = {"eV": 1.0, "keV": 1e3}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

_UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, TypeError, struct.error)
"""What h5py and fabio raise for a damaged file."""


class Recorded(Playback):
    """Plays the images of a file, a folder or a pattern as one series.

    dataset: path of the images inside an HDF5 file, where it cannot be found without help. rate: frames per second.
    repeat: how often the images are played; the numbers go on.

    Raises SourceLost for files that are missing, hold no images or cannot be opened (saying what was found instead),
    BadConfig for options that make no sense.
    """

    def __init__(self, path: Path | str, *, dataset: str = "", rate: Rate = "max", repeat: int = 1) -> None:
        super().__init__(str(path), rate)
        if repeat < 1:
            raise BadConfig(f"recorded: repeat is {repeat}; expected how often to play the images, at least 1")
        self._stack = _open_stack(self.url, dataset)
        self.start = replace(self._stack.start, images=max(len(self._stack), self._stack.start.images or 0) * repeat)
        self.announced_frames = len(self._stack) * repeat
        if self.start.images != self.announced_frames:
            log.warning(
                "the files hold fewer images than their header announces",
                source=self.url,
                held=self.announced_frames,
                announced=self.start.images,
            )
        self._play(self._script(self.announced_frames))

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        kind, number = message.parts
        if kind == "start":
            return [replace(self.start, received_ns=message.received_ns)]
        if kind == "end":
            return [SeriesEnd(self.start.series, message.received_ns)]
        frame_time = self.start.frame_time_s
        return [
            Frame(
                image=self._image(number, scratch),
                series=self.start.series,
                number=number,
                start_s=None if frame_time is None else number * Fraction(frame_time).limit_denominator(10**9),
                received_ns=message.received_ns,
            )
        ]

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        return self.start.series, message.parts[1]

    def close(self) -> None:
        super().close()
        self._stack.close()

    @staticmethod
    def _script(frames: int) -> Iterator[Cue]:
        yield Cue(0, ("start", 0), "start")
        for number in range(frames):
            yield Cue(number, ("image", number), "image")
        yield Cue(frames, ("end", frames), "end")

    def _image(self, number: int, scratch: Scratch | None) -> NDArray[Any]:
        series = self.start.series
        try:
            image = as_image(self._stack.read(number % len(self._stack), scratch))
        except (*_UNREADABLE, BadFrame) as error:
            raise BadFrame(
                "unreadable", f"recorded: frame {number} of {self.url} ({error})", series=series, number=number
            ) from error
        if image.shape != self.start.shape:
            raise BadFrame(
                "shape",
                f"recorded: frame {number} of {self.url} is {image.shape}, the first one is {self.start.shape}",
                series=series,
                number=number,
            )
        return image


def as_image(array: NDArray[Any]) -> NDArray[Any]:
    """The array in one of the types a Frame may have: uint8/16/32, int32 or float32, in the machine's byte order.

    float64 is rounded to float32. Raises ValueError for a colour image, for complex or text, and for 64-bit counts
    beyond 32 bits.
    """
    if array.ndim != 2:
        raise ValueError(f"an image has 2 dimensions, this has shape {array.shape}")
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if dtype.kind not in "iu":
        raise ValueError(f"an image holds counts or intensities, this holds {dtype}")
    if dtype.kind == "u" and dtype.itemsize <= 4:
        return array.astype(dtype, copy=False)
    target = np.dtype(np.uint32 if dtype.kind == "u" else np.int32)
    limits = np.iinfo(target)
    if dtype.itemsize > 4 and array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(f"counts from {array.min()} to {array.max()} do not fit {target}")
    return array.astype(target, copy=False)


class _Stack(Protocol):
    """Images by index, and what is known of them."""

    start: SeriesStart

    def __len__(self) -> int: ...
    def read(self, index: int, scratch: Scratch | None) -> NDArray[Any]: ...
    def close(self) -> None: ...


def _open_stack(path: str, dataset: str) -> _Stack:
    if any(character in path for character in "*?["):
        pattern = Path(path)
        files = natural_order(pattern.parent.glob(pattern.name))
        if not files:
            raise SourceLost(f"recorded: no file matches {path}")
        return _ImageFiles(files)
    found = Path(path)
    if found.is_dir():
        return _ImageFiles(_images_in(found))
    if not found.is_file():
        raise SourceLost(f"recorded: there is no file {path}")
    return _Hdf5(found, dataset) if h5py.is_hdf5(found) else _ImageFiles([found])


def _images_in(folder: Path) -> list[Path]:
    files = natural_order(entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise SourceLost(f"recorded: {folder} mixes {' and '.join(suffixes)}; choose with a pattern ({folder}/*.tif)")
    if not files:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise SourceLost(f"recorded: {folder} holds {found}; expected images ({', '.join(IMAGE_SUFFIXES)})")
    return files


class _ImageFiles:
    """One image per file, or the pages of one file."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        try:
            with fabio.open(str(files[0])) as first:
                self._pages = first.nframes if len(files) == 1 else 1
                image = as_image(first.data)
        except _UNREADABLE as error:
            raise SourceLost(
                f"recorded: {files[0]} is no image this package can read ({error}); "
                "expected HDF5, TIFF, EDF or CBF with counts"
            ) from error
        key = SeriesKey(1, files[0].name)
        self.start = SeriesStart(key, shape=image.shape, dtype=image.dtype)

    def __len__(self) -> int:
        return len(self._files) * self._pages

    def read(self, index: int, scratch: Scratch | None) -> NDArray[Any]:
        file, page = divmod(index, self._pages)
        with fabio.open(str(self._files[file])) as opened:
            image: NDArray[Any] = opened.get_frame(page).data if page else opened.data
            return image

    def close(self) -> None:
        """Nothing is held open."""


class _Hdf5:
    """The datasets of one HDF5 file, in order, as one stack."""

    def __init__(self, path: Path, dataset: str) -> None:
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise SourceLost(f"recorded: {path} cannot be opened ({error})") from error
        try:
            self._datasets = find_images(self._file, dataset)
            self.start = describe(self._file, self._datasets[0])
        except SourceLost:
            self.close()
            raise
        self._frames = [int(np.prod(dataset.shape[:-2])) for dataset in self._datasets]

    def __len__(self) -> int:
        return sum(self._frames)

    def read(self, index: int, scratch: Scratch | None) -> NDArray[Any]:
        for dataset, frames in zip(self._datasets, self._frames, strict=True):
            if index < frames:
                place = np.unravel_index(index, dataset.shape[:-2])
                if is_bslz4_per_image(dataset):
                    return _read_chunk(dataset, place, scratch)
                image: NDArray[Any] = dataset[place]
                return image
            index -= frames
        raise IndexError(f"there are {len(self)} images")

    def close(self) -> None:
        self._file.close()


BITSHUFFLE = 32008
"""The filter's registered number; LZ4 is its fifth option 2. Source: kiyo-masui/bitshuffle, src/bshuf_h5filter.h."""


def is_bslz4_per_image(dataset: h5py.Dataset) -> bool:
    """Whether each image is one chunk, compressed with bitshuffle and LZ4 and nothing else, in our byte order."""
    if dataset.chunks != (1,) * (dataset.ndim - 2) + dataset.shape[-2:] or not dataset.dtype.isnative:
        return False
    filters = dataset.id.get_create_plist()
    if filters.get_nfilters() != 1:
        return False
    code, _, options, _ = filters.get_filter(0)
    return bool(code == BITSHUFFLE and options[4:5] == (2,))


def _read_chunk(dataset: h5py.Dataset, place: tuple[Any, ...], scratch: Scratch | None) -> NDArray[Any]:
    """One image, decompressed here: the chunk is framed as on a DECTRIS wire."""
    is_raw, chunk = dataset.id.read_direct_chunk((*(int(index) for index in place), 0, 0))
    if is_raw:
        return np.frombuffer(chunk, dataset.dtype).reshape(dataset.shape[-2:])
    image = (scratch.empty if scratch else np.empty)(dataset.shape[-2:], dataset.dtype)
    compression.decompress("bslz4", dataset.dtype.itemsize, chunk, image.reshape(-1).view(np.uint8))
    return image


def find_images(file: h5py.File, dataset: str = "") -> list[h5py.Dataset]:
    """The datasets that hold the images, in order (see the module's description).

    Raises SourceLost naming what was found where there is none, where several could be meant, or where a linked data
    file is missing.
    """
    if dataset:
        chosen = _dataset(file, dataset)
        if chosen is None or chosen.ndim < 2 or chosen.dtype.kind not in "iuf":
            raise SourceLost(f"recorded: {file.filename} has no images at {dataset!r}; it holds {_listing(file)}")
        return [chosen]
    for entry in file.values():
        linked = _linked_stacks(entry) if isinstance(entry, h5py.Group) else []
        if linked:
            return linked
    signal = _default_signal(file)
    if signal is not None and signal.ndim >= 3:
        return [signal]
    stacks = [item for item in _walk(file) if item.ndim >= 3]
    if len(stacks) != 1:
        problem = "several stacks" if stacks else "no stack of images"
        raise SourceLost(
            f"recorded: {file.filename} has {problem}; it holds {_listing(file)}; choose with dataset=/path/in/the/file"
        )
    return stacks


def _linked_stacks(entry: h5py.Group) -> list[h5py.Dataset]:
    """entry/data/data_000001 and what follows it, through external links."""
    group = entry.get("data")
    if not isinstance(group, h5py.Group):
        return []
    stacks = []
    for name in sorted(name for name in group if re.fullmatch(r"data_\d+", name)):
        item = _dataset(group, name)
        if item is None:
            link = group.get(name, getlink=True)
            target = getattr(link, "filename", name)
            raise SourceLost(f"recorded: {group.file.filename} links to {target}, which is not there; put it beside it")
        stacks.append(item)
    return stacks


def _default_signal(file: h5py.File) -> h5py.Dataset | None:
    """The signal NeXus calls default: attributes `default` lead to an NXdata whose `signal` names the dataset."""
    group: Any = file
    while isinstance(group, h5py.Group):
        for attribute in ("default", "signal"):
            if attribute in group.attrs:
                group = group.get(_text(group.attrs[attribute]))
                break
        else:
            return None
    return group if isinstance(group, h5py.Dataset) else None


def _walk(file: h5py.File) -> list[h5py.Dataset]:
    """Every dataset of numbers; links are not followed."""
    found: list[h5py.Dataset] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf":
            found.append(item)

    file.visititems(visit)
    return found


def _listing(file: h5py.File) -> str:
    found = [f"{item.name} {item.shape}" for item in _walk(file) if item.ndim]
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "") or "no arrays"


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    try:
        item = group[name]
    except (KeyError, OSError):
        return None
    return item if isinstance(item, h5py.Dataset) else None


def describe(file: h5py.File, images: h5py.Dataset) -> SeriesStart:
    """What an HDF5 file says of its images, as far as it says it, in our units."""
    header = _Header(file)
    shape = (int(images.shape[-2]), int(images.shape[-1]))
    dtype = as_image(np.empty((0, 0), images.dtype)).dtype
    wavelength_A = header.number(ANGSTROMS, "incident_wavelength", "wavelength")
    energy_eV = header.number(ELECTRONVOLTS, "photon_energy", "incident_energy", "energy")
    saturation = header.number({}, "saturation_value", "countrate_correction_count_cutoff")
    triggers = header.number({}, "ntrigger") or 1
    images_per_trigger = header.number({}, "nimages")
    mask = header.array(shape, "pixel_mask")
    flatfield = header.array(shape, "flatfield")
    return SeriesStart(
        SeriesKey(1, Path(file.filename).name),
        images=None if images_per_trigger is None else int(images_per_trigger * triggers),
        shape=shape,
        dtype=dtype,
        saturation=None if saturation is None else int(saturation),
        frame_time_s=header.number(SECONDS, "frame_time"),
        count_time_s=header.number(SECONDS, "count_time"),
        energy_eV=energy_eV,
        wavelength_A=wavelength_A,
        beam_center=header.pair({}, "beam_center_x", "beam_center_y"),
        pixel_size_m=header.pair(METRES, "x_pixel_size", "y_pixel_size"),
        distance_m=header.number(METRES, "detector_distance", "distance"),
        mask={} if mask is None else {"": mask != 0},
        flatfield={} if flatfield is None else {"": flatfield.astype(np.float32)},
        detector=header.text("description"),
    )


@dataclass(frozen=True)
class _Header:
    """Fields by name, wherever the entry of the images keeps them: detector, its detectorSpecific, beam, source."""

    file: h5py.File

    def number(self, units: dict[str, float], *names: str) -> float | None:
        """The first finite value of these names, in the unit for which the table says 1 (also where none is given)."""
        for item in self._fields(names):
            value = np.ravel(item[()])
            unit = _text(item.attrs.get("units", ""))
            if value.size == 1 and value.dtype.kind in "iuf" and np.isfinite(value[0]):
                if unit and units and unit not in units:
                    log.warning("a field has an unknown unit and is not used", field=item.name, unit=unit)
                    continue
                return float(value[0]) * units.get(unit, 1.0)
        return None

    def pair(self, units: dict[str, float], x: str, y: str) -> tuple[float, float] | None:
        first, second = self.number(units, x), self.number(units, y)
        return None if first is None or second is None else (first, second)

    def array(self, shape: tuple[int, int], name: str) -> NDArray[Any] | None:
        for item in self._fields([name]):
            if item.shape == shape:
                array: NDArray[Any] = item[()]
                return array
            log.warning("a field does not fit the images and is not used", field=item.name, shape=item.shape)
        return None

    def text(self, name: str) -> str:
        return next((_text(item[()]) for item in self._fields([name]) if item.shape == ()), "")

    def _fields(self, names: Iterable[str]) -> Iterator[h5py.Dataset]:
        for name in names:
            for group in self._groups():
                item = _dataset(group, name)
                if item is not None:
                    yield item

    def _groups(self) -> Iterator[h5py.Group]:
        for entry in self.file.values():
            instrument = _child(entry, "NXinstrument", "instrument")
            detector = _child(instrument, "NXdetector", "detector")
            places = (
                detector,
                _child(detector, "NXcollection", "detectorSpecific"),
                _child(instrument, "NXbeam", "beam"),
                _child(instrument, "NXmonochromator", "monochromator"),
                _child(_child(entry, "NXsample", "sample"), "NXbeam", "beam"),
            )
            yield from (place for place in places if place is not None)


def _child(group: Any, nexus_class: str, name: str) -> h5py.Group | None:
    """The child of that name, else the first of that NeXus class."""
    if not isinstance(group, h5py.Group):
        return None
    named = group.get(name)
    if isinstance(named, h5py.Group):
        return named
    children = (child for child in group.values() if isinstance(child, h5py.Group))
    return next((child for child in children if _text(child.attrs.get("NX_class", "")) == nexus_class), None)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
